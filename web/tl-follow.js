/**
 * Following conversations: where we stand in each, what is missing, and getting exactly that.
 *
 * The client hands in every `message`, `page`, `synced` and `conversation`; out come messages, each once and
 * in seq order per conversation. Invariants: at most one request per conversation is under way
 * (`timeline.busy`); at most `MAX_FETCHES` over all; at most one `sync` frame; requests ask for what is
 * missing and nothing else; nothing waits on a connection that is gone (`down` forgets all requests, the
 * next `up` starts from the positions).
 * @module
 */

import { HeldBudget, MAX_PAGE, Timeline } from './tl-timeline.js';

/** Conversations followed at once; beyond, the one quiet for longest is forgotten. */
export const MAX_FOLLOWED = 5_000;
/** Conversations in one `sync` frame (the protocol's limit). */
export const MAX_SYNC = 500;
/** Messages per conversation a sync answer brings at first. */
const SYNC_LIMIT = 50;
/** Fetches for missing ranges under way at once. */
export const MAX_FETCHES = 8;
/** Messages asked for when a conversation turns up whose position is unknown. */
const FIRST_PAGE = 20;
const RETRY_BASE_MS = 500;
const RETRY_CAP_MS = 30_000;
/** After these no retry can help: the conversation isn't ours to read. */
const LOST_ACCESS = new Set(['not_a_member', 'not_found', 'forbidden']);

export class Follower {
  /** @type {Map<string, Timeline>} least recently active first */
  #timelines = new Map();
  #budget = new HeldBudget();
  #queue = new Set();
  #fetching = 0;
  #sync = null;
  #epoch = 0;
  #online = false;
  #o;

  /**
   * @param {object} options
   * @param {import('./tl-util.js').Clock} options.clock
   * @param {number} options.maxCatchUp
   * @param {(frame: object, onPage?: (frame: object) => void) => Promise<object>} options.request
   * @param {(messages: object[], source: 'live' | 'sync') => void} options.deliver
   * @param {(conversationId: string) => void} options.onReset
   * @param {(error: Error, conversationId: string) => void} options.onLost
   */
  constructor(options) {
    this.#o = options;
  }

  /** @param {string} id @returns {number | null} last seq handed out, null when not followed or not yet known */
  position(id) {
    const timeline = this.#timelines.get(id);
    return timeline?.anchored ? timeline.last : null;
  }

  /** @returns {string[]} */
  get followed() {
    return [...this.#timelines.keys()];
  }

  /** Follow from after `seq`; a known position is kept. @param {string} id @param {number} seq @param {number} [head] */
  follow(id, seq, head = seq) {
    const timeline = this.#ensure(id);
    const wasAnchored = timeline.anchored;
    timeline.noteHead(head);
    if (!wasAnchored) this.#o.deliver(timeline.anchor(seq), 'live');
    this.#want(timeline);
  }

  /** @param {string} id */
  forget(id) {
    this.#timelines.get(id)?.clear();
    this.#timelines.delete(id);
    this.#queue.delete(id);
  }

  /** @param {object} message a live message, or our own with the seq its ack gave */
  message(message) {
    const timeline = this.#ensure(message.conversation_id);
    if (!timeline.anchored && message.seq === 1) timeline.anchor(0);
    this.#o.deliver(timeline.offer(message), 'live');
    this.#touch(timeline);
    this.#want(timeline);
  }

  /** The server told of a conversation, or to look at one. @param {string} id @param {number} headSeq */
  head(id, headSeq) {
    const timeline = this.#ensure(id);
    timeline.noteHead(headSeq);
    if (!timeline.anchored && !(headSeq > 0)) timeline.anchor(0);
    this.#want(timeline);
  }

  /** Connected: catch up everything we follow, then ask for what we have never heard of. */
  up() {
    this.#online = true;
    this.#epoch += 1;
    this.#catchUp(this.#epoch);
  }

  down() {
    this.#online = false;
    this.#epoch += 1;
    this.#sync = null;
    this.#queue.clear();
    this.#fetching = 0;
    for (const timeline of this.#timelines.values()) timeline.busy = false;
  }

  /** A page without a request of its own (its sync was given no id back). @param {object} page */
  strayPage(page) {
    if (this.#sync) this.#syncPage(page);
    else this.head(page.conversation_id, page.head_seq);
  }

  /** An error that names a conversation while a sync runs. @param {Error} error @returns {boolean} whether it was ours */
  syncError(error) {
    if (!this.#sync?.has(error.conversationId) || !LOST_ACCESS.has(error.code)) return false;
    this.#lose(error, error.conversationId);
    return true;
  }

  async #catchUp(epoch) {
    const anchored = [...this.#timelines.values()].filter((t) => t.anchored);
    for (const timeline of anchored) timeline.busy = true;
    for (const timeline of this.#timelines.values()) if (!timeline.anchored) this.#want(timeline);
    for (let i = 0; i < anchored.length; i += MAX_SYNC) {
      const chunk = anchored.slice(i, i + MAX_SYNC);
      if (!(await this.#runSync(chunk, SYNC_LIMIT, epoch))) return;
      for (const timeline of chunk) this.#settled(timeline);
    }
    // With an empty list the server names what has news for us; one line each is enough to learn of it.
    await this.#runSync([], 1, epoch);
  }

  /** @returns {Promise<boolean>} false when the connection went away meanwhile */
  async #runSync(chunk, limit, epoch) {
    for (let attempt = 0; ; attempt += 1) {
      // Read anew on every try: a sync that broke off midway has moved some positions.
      const asked = chunk.filter((t) => this.#timelines.get(t.conversationId) === t);
      if (asked.length === 0 && chunk.length > 0) return true;
      const conversations = asked.map((t) => ({ conversation_id: t.conversationId, after_seq: t.last }));
      this.#sync = new Set(asked.map((t) => t.conversationId));
      try {
        await this.#o.request({ type: 'sync', conversations, limit }, (page) => this.#syncPage(page));
        return epoch === this.#epoch;
      } catch (error) {
        if (epoch !== this.#epoch) return false;
        await this.#pause(attempt, error.retryAfterMs);
        if (epoch !== this.#epoch) return false;
      } finally {
        if (epoch === this.#epoch) this.#sync = null;
      }
    }
  }

  #syncPage(page) {
    const timeline = this.#timelines.get(page.conversation_id);
    if (!timeline?.anchored) {
      this.head(page.conversation_id, page.head_seq);
      return;
    }
    timeline.noteHead(page.head_seq);
    // Only an answer to our own position starts where we stand; others are single messages to us.
    const ours = this.#sync?.has(page.conversation_id);
    const fresh = ours
      ? timeline.applyPage(page.messages ?? [], { complete: false })
      : (page.messages ?? []).flatMap((m) => timeline.offer(m));
    this.#o.deliver(fresh, 'sync');
    if (!ours) this.#want(timeline);
  }

  #settled(timeline) {
    timeline.busy = false;
    this.#want(timeline);
  }

  /** Queues a fetch when the timeline lacks something. */
  #want(timeline) {
    if (!this.#online || timeline.busy || this.#timelines.get(timeline.conversationId) !== timeline) return;
    if (timeline.anchored && timeline.missing() === null) return;
    this.#queue.add(timeline.conversationId);
    this.#work();
  }

  #work() {
    for (const id of this.#queue) {
      if (this.#fetching >= MAX_FETCHES) return;
      this.#queue.delete(id);
      const timeline = this.#timelines.get(id);
      if (timeline && !timeline.busy) this.#fetch(timeline, this.#epoch);
    }
  }

  async #fetch(timeline, epoch) {
    timeline.busy = true;
    this.#fetching += 1;
    for (let attempt = 0; epoch === this.#epoch && this.#timelines.get(timeline.conversationId) === timeline; ) {
      try {
        if (await this.#step(timeline, epoch)) break;
        attempt = 0;
      } catch (error) {
        if (epoch !== this.#epoch) return;
        if (LOST_ACCESS.has(error.code)) this.#lose(error, timeline.conversationId);
        else await this.#pause(attempt, error.retryAfterMs);
        attempt += 1;
      }
    }
    if (epoch !== this.#epoch) return;
    this.#fetching -= 1;
    this.#settled(timeline);
    this.#work();
  }

  /** One page towards completeness. @returns {Promise<boolean>} whether nothing is missing any more */
  async #step(timeline, epoch) {
    const conversation_id = timeline.conversationId;
    if (timeline.anchored && timeline.head - timeline.last > this.#o.maxCatchUp) {
      timeline.reset();
      this.#o.onReset(conversation_id);
    }
    if (!timeline.anchored) {
      const page = await this.#o.request({ type: 'fetch', conversation_id, limit: FIRST_PAGE });
      if (epoch === this.#epoch) this.#o.deliver(timeline.anchorAtPage(page.messages ?? [], page.head_seq ?? 0), 'sync');
      return false;
    }
    const range = timeline.missing();
    if (range === null) return true;
    const { after } = range;
    const before = Math.min(range.before, after + MAX_PAGE + 1);
    const page = await this.#o.request({ type: 'fetch', conversation_id, after, before, limit: before - after - 1 });
    if (epoch !== this.#epoch || !timeline.anchored) return true;
    timeline.noteHead(page.head_seq);
    const messages = page.messages ?? [];
    this.#o.deliver(timeline.applyPage(messages, { before, complete: !page.more }), 'sync');
    if (timeline.last === after) throw new Error('the server sent a page that leads nowhere');
    return false;
  }

  #lose(error, id) {
    this.forget(id);
    this.#o.onLost(error, id);
  }

  #pause(attempt, retryAfterMs) {
    const { clock } = this.#o;
    const backoff = (0.5 + clock.random() / 2) * Math.min(RETRY_CAP_MS, RETRY_BASE_MS * 2 ** Math.min(attempt, 10));
    return new Promise((resolve) => {
      clock.setTimeout(resolve, Math.max(backoff, retryAfterMs ?? 0));
    });
  }

  #ensure(id) {
    let timeline = this.#timelines.get(id);
    if (!timeline) {
      timeline = new Timeline(id, this.#budget);
      this.#timelines.set(id, timeline);
      if (this.#timelines.size > MAX_FOLLOWED) this.forget(this.#timelines.keys().next().value);
    }
    return timeline;
  }

  #touch(timeline) {
    const id = timeline.conversationId;
    if (this.#timelines.delete(id)) this.#timelines.set(id, timeline);
  }
}
