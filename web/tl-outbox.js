/**
 * The messages this device owes the server, in the order they were written, kept across reloads.
 *
 * Invariants: an entry keeps its `clientMsgId` for life, so sending it again is harmless; at most one
 * entry per conversation is in flight, so a refusal can never let a later message overtake an earlier
 * one; an entry leaves only by an ack, by `discard`, or never. Failed entries stay (the user decides)
 * but block nobody.
 * @module
 */

/** Entries one outbox may hold, failed ones included. */
export const MAX_OUTBOX = 500;
/** Sends under way at once over all conversations. */
export const MAX_IN_FLIGHT = 16;

/**
 * @typedef {object} OutboxEntry
 * @property {string} clientMsgId
 * @property {string | null} conversationId
 * @property {string | null} to
 * @property {string} content
 * @property {string} contentType
 * @property {object | null} media
 * @property {number} createdAt
 * @property {'queued' | 'failed'} state
 * @property {string | null} error the code that made it fail
 */

export class Outbox {
  #entries = [];
  /** lane → clientMsgId */
  #inFlight = new Map();
  #notBefore = new Map();
  #storage;
  #key;

  /**
   * @param {Storage | null} storage localStorage-like, or null for memory only
   * @param {string} key
   */
  constructor(storage, key) {
    this.#storage = storage;
    this.#key = key;
    /** Nothing at all is sent before this time (the server's rate limit is per user). */
    this.pausedUntil = 0;
    this.#load();
  }

  /** @returns {readonly OutboxEntry[]} */
  get entries() {
    return this.#entries;
  }

  get full() {
    return this.#entries.length >= MAX_OUTBOX;
  }

  /** @param {string} clientMsgId @returns {OutboxEntry | undefined} */
  get(clientMsgId) {
    return this.#entries.find((e) => e.clientMsgId === clientMsgId);
  }

  /** @param {OutboxEntry} entry @returns {boolean} false when it could not be stored beyond this page's life */
  add(entry) {
    this.#entries.push(entry);
    return this.#save();
  }

  /** @param {string} clientMsgId @returns {OutboxEntry | undefined} the entry that was taken out */
  remove(clientMsgId) {
    const index = this.#entries.findIndex((e) => e.clientMsgId === clientMsgId);
    if (index < 0) return undefined;
    const [entry] = this.#entries.splice(index, 1);
    this.#release(entry);
    this.#save();
    return entry;
  }

  /** @param {string} clientMsgId @param {string} code */
  fail(clientMsgId, code) {
    const entry = this.get(clientMsgId);
    if (!entry) return;
    entry.state = 'failed';
    entry.error = code;
    this.#release(entry);
    this.#save();
  }

  /** Puts a failed entry at the end of the queue again. @param {string} clientMsgId @param {string} [newId] */
  requeue(clientMsgId, newId = clientMsgId) {
    const index = this.#entries.findIndex((e) => e.clientMsgId === clientMsgId && e.state === 'failed');
    if (index < 0) return undefined;
    const [entry] = this.#entries.splice(index, 1);
    Object.assign(entry, { clientMsgId: newId, state: 'queued', error: null });
    this.#entries.push(entry);
    this.#save();
    return entry;
  }

  /** The entry goes back into its place and is tried again no earlier than `at`. @param {string} clientMsgId @param {number} at */
  postpone(clientMsgId, at) {
    const entry = this.get(clientMsgId);
    if (!entry) return;
    this.#release(entry);
    this.#notBefore.set(laneOf(entry), at);
  }

  /** The connection is gone: nothing is in flight any more, and a new one starts without old waits. */
  releaseAll() {
    this.#inFlight.clear();
    this.#notBefore.clear();
    this.pausedUntil = 0;
  }

  /**
   * Entries to send now, marked as in flight: the first queued one of each idle conversation.
   * @param {number} now
   * @returns {{ready: OutboxEntry[], wakeAt: number | null}} `wakeAt`: when to ask again
   */
  take(now) {
    const ready = [];
    const seen = new Set(this.#inFlight.keys());
    let wakeAt = null;
    for (const entry of this.#entries) {
      const lane = laneOf(entry);
      if (entry.state !== 'queued' || seen.has(lane)) continue;
      seen.add(lane);
      const at = Math.max(this.#notBefore.get(lane) ?? 0, this.pausedUntil);
      if (at > now) {
        wakeAt = wakeAt === null ? at : Math.min(wakeAt, at);
      } else if (this.#inFlight.size < MAX_IN_FLIGHT) {
        this.#inFlight.set(lane, entry.clientMsgId);
        this.#notBefore.delete(lane);
        ready.push(entry);
      }
    }
    return { ready, wakeAt };
  }

  #release(entry) {
    const lane = laneOf(entry);
    if (this.#inFlight.get(lane) === entry.clientMsgId) this.#inFlight.delete(lane);
  }

  #load() {
    try {
      const saved = JSON.parse(this.#storage?.getItem(this.#key) ?? '[]');
      if (Array.isArray(saved)) this.#entries = saved.filter(isEntry).slice(0, MAX_OUTBOX);
    } catch {
      // Unreadable or foreign data: start empty, the next save replaces it.
    }
  }

  #save() {
    if (!this.#storage) return true;
    try {
      if (this.#entries.length === 0) this.#storage.removeItem(this.#key);
      else this.#storage.setItem(this.#key, JSON.stringify(this.#entries));
      return true;
    } catch {
      return false;
    }
  }
}

/** What keeps its order: the conversation, or the peer while its conversation isn't known. */
const laneOf = (entry) => entry.conversationId ?? `to:${entry.to}`;

const isEntry = (e) =>
  e !== null && typeof e === 'object' && typeof e.clientMsgId === 'string' && typeof e.content === 'string' &&
  (typeof e.conversationId === 'string' || typeof e.to === 'string') && (e.state === 'queued' || e.state === 'failed');
