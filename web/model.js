/**
 * What the page knows: conversations, their lines, receipts, unread counts. The views only read it.
 *
 * Lines of a conversation are contiguous: history pages go in below the first line, messages the client hands
 * out in order go in at the end, and a conversation whose client position was reset starts over. Bounds:
 * `MAX_LISTED` conversations are listed at start, `KEEP_LINES` lines are kept per conversation (older ones are
 * loaded again on scrolling), `MAX_LINES` while someone scrolls back.
 *
 * Events: `list`, `thread` (conversation id), `line` (a message that came live), `problem` (text).
 * @module
 */

import { Emitter, directConversationId } from './tl-util.js';

const LIST_PAGE = 50;
export const MAX_LISTED = 200;
/** Lines a conversation keeps when nobody looks at older ones. */
export const KEEP_LINES = 300;
/** Lines a conversation holds at most; scrolling back ends there. */
export const MAX_LINES = 5_000;
const HISTORY_PAGE = 40;
/** Longest the connection waits for the list at start. */
const LIST_PATIENCE_MS = 2_000;
/** Conversations at the top of the list whose ticks are looked up without being opened. */
const TICKED = 12;
const TYPING_MS = 6_000;
const REFRESH_DELAY_MS = 150;
const MAX_WATCHED = 100;

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {'direct' | 'group' | 'channel'} kind
 * @property {string} title
 * @property {string | null} peer
 * @property {string} role
 * @property {number} memberCount
 * @property {number} headSeq
 * @property {number} unread
 * @property {number} countedSeq highest seq that `unread` takes into account
 * @property {number} readSeq
 * @property {import('./trunkline.js').Message | null} last
 * @property {number} activity
 * @property {import('./trunkline.js').Message[]} lines
 * @property {'idle' | 'loading' | 'ready'} history
 * @property {boolean} more older lines exist
 * @property {Map<string, {delivered: number, read: number}>} marks of the other members
 * @property {boolean} marked `marks` were loaded, not only heard of
 * @property {{delivered: {seq: number, count: number}, read: {seq: number, count: number}}} tally for large groups
 * @property {Map<string, number>} typing user to end time
 * @property {boolean} local not (yet) known by the server
 * @property {boolean} gone we are no longer a member
 * @property {string} draft
 * @property {number} dividerSeq "new messages" starts after it; 0 for none
 */

/** @returns {Conversation} */
const blank = (id) => ({
  id, kind: 'group', title: '', peer: null, role: 'member', memberCount: 2, headSeq: 0, unread: 0, countedSeq: 0, readSeq: 0,
  last: null, activity: 0, lines: [], history: 'idle', more: false, marks: new Map(), marked: false,
  tally: { delivered: { seq: 0, count: 0 }, read: { seq: 0, count: 0 } }, typing: new Map(), local: true, gone: false, draft: '', dividerSeq: 0,
});

export class Model extends Emitter {
  /** @type {Map<string, Conversation>} */
  conversations = new Map();
  presence = new Map();
  openId = null;
  #refreshTimer = null;
  #watched = '';

  /** @param {import('./trunkline.js').TrunklineClient} client @param {string} me */
  constructor(client, me) {
    super();
    this.client = client;
    this.me = me;
    client.on('message', ({ message }) => this.#onMessage(message));
    client.on('ack', (ack) => this.emit('thread', ack.conversationId));
    client.on('outbox', ({ entry, change, error }) => this.#onOutbox(entry, change, error));
    client.on('receipt', (frame) => this.#onReceipt(frame));
    client.on('typing', (frame) => this.#onTyping(frame));
    client.on('presence', (frame) => this.#onPresence(frame));
    client.on('conversation', (frame) => this.#onConversation(frame));
    client.on('reset', ({ conversationId }) => this.#restart(conversationId));
    client.on('connected', () => this.#onConnected());
    client.on('state', () => {
      this.emit('list');
      if (this.openId) this.emit('thread', this.openId);
    });
    client.on('error', (error) => this.#onError(error));
  }

  /** Loads the list, then connects; the list may fail, the connection then brings it. */
  async start() {
    for (const entry of this.client.pending()) if (entry.conversationId) this.#stubFor(entry);
    await Promise.race([this.refresh(), new Promise((resolve) => setTimeout(resolve, LIST_PATIENCE_MS))]);
    this.client.connect();
  }

  /** @returns {Conversation | undefined} */
  get open() {
    return this.conversations.get(this.openId);
  }

  name(conv) {
    if (conv.kind !== 'direct') return conv.title || 'Untitled group';
    return conv.peer ?? (conv.memberCount === 1 ? `${this.me} (you)` : 'Direct chat');
  }

  /** What is known of a user's presence; nothing while we are offline ourselves. */
  presenceOf(user) {
    return this.client.online ? this.presence.get(user) : undefined;
  }

  /** Newest activity first. */
  sorted() {
    return [...this.conversations.values()].filter((c) => !c.gone || c.id === this.openId).sort((a, b) => b.activity - a.activity);
  }

  get totalUnread() {
    return this.sorted().reduce((sum, c) => sum + c.unread, 0);
  }

  // ---- the list -----------------------------------------------------------------------------------------

  async refresh() {
    const seen = new Set();
    let cursor;
    try {
      do {
        const page = await this.client.listConversations({ cursor, limit: LIST_PAGE });
        for (const item of page.items ?? []) {
          seen.add(item.conversation_id);
          this.#merge(item);
        }
        cursor = page.next_cursor;
      } while (cursor && seen.size < MAX_LISTED);
      if (!cursor) for (const conv of this.conversations.values()) if (!conv.local && !seen.has(conv.id)) this.#setGone(conv);
    } catch (error) {
      if (error.code !== 'offline') this.emit('problem', `The conversations could not be loaded: ${error.message}`);
    }
    this.emit('list');
    this.#watchPeers();
    for (const conv of this.sorted().slice(0, TICKED)) if (!conv.marked && conv.last?.sender_id === this.me) this.loadReceipts(conv);
  }

  #refreshSoon() {
    this.#refreshTimer ??= setTimeout(() => {
      this.#refreshTimer = null;
      this.refresh();
    }, REFRESH_DELAY_MS);
  }

  #merge(item) {
    const conv = this.#ensure(item.conversation_id);
    const head = item.head_seq ?? 0;
    conv.local = false;
    conv.gone = false;
    conv.kind = item.kind ?? conv.kind;
    conv.title = item.title ?? conv.title;
    conv.peer = item.peer ?? conv.peer;
    conv.role = item.role ?? conv.role;
    conv.memberCount = item.member_count ?? conv.memberCount;
    if (item.unread !== undefined && head >= conv.countedSeq) {
      conv.readSeq = Math.max(conv.readSeq, item.read_seq ?? 0);
      // Reading here is news the server may not have had when it made the list.
      conv.unread = conv.readSeq >= head ? 0 : item.unread;
      conv.countedSeq = head;
    }
    this.#noteLast(conv, item.last_message);
    conv.headSeq = Math.max(conv.headSeq, head);
    conv.activity = Math.max(conv.activity, conv.last?.ts ?? item.created_at ?? 0);
    this.client.follow(conv.id, head);
    if (head > (item.delivered_seq ?? head)) this.client.markDelivered(conv.id, head);
    return conv;
  }

  #ensure(id) {
    let conv = this.conversations.get(id);
    if (!conv) {
      conv = blank(id);
      this.conversations.set(id, conv);
    }
    return conv;
  }

  /** A conversation we only know from the outbox, until the server tells more. */
  #stubFor(entry) {
    const known = this.conversations.has(entry.conversationId);
    const conv = this.#ensure(entry.conversationId);
    if (!known && entry.to) Object.assign(conv, { kind: 'direct', peer: entry.to });
    conv.activity = Math.max(conv.activity, entry.createdAt);
  }

  #noteLast(conv, message) {
    if (!message || (conv.last && conv.last.seq >= message.seq)) return;
    conv.last = message;
    conv.activity = Math.max(conv.activity, message.ts);
  }

  #setGone(conv) {
    conv.gone = true;
    conv.unread = 0;
    this.client.forget(conv.id);
    this.emit('thread', conv.id);
  }

  /** @param {string} user @returns {Promise<string>} the conversation's id; works offline too */
  async startDirect(user) {
    const id = directConversationId(this.me, user);
    if (this.conversations.has(id)) return id;
    try {
      this.#merge(await this.client.createConversation({ kind: 'direct', members: [user] }));
    } catch (error) {
      if (error.code !== 'offline') throw error;
    }
    Object.assign(this.#ensure(id), { kind: 'direct', peer: user, activity: Date.now() });
    this.emit('list');
    this.#watchPeers();
    return id;
  }

  /** @param {string} title @param {string[]} members @returns {Promise<string>} */
  async startGroup(title, members) {
    const conv = this.#merge(await this.client.createConversation({ kind: 'group', title, members }));
    conv.activity = Math.max(conv.activity, Date.now());
    this.emit('list');
    return conv.id;
  }

  // ---- one conversation -----------------------------------------------------------------------------------

  /** Makes `id` the open conversation and loads its newest lines. @param {string | null} id */
  select(id) {
    const previous = this.open;
    if (previous && previous.id !== id) this.trim(previous, KEEP_LINES / 3);
    this.openId = id;
    const conv = this.open;
    if (!conv) return;
    conv.dividerSeq = conv.unread > 0 ? conv.readSeq : 0;
    if (conv.history === 'idle') this.loadOlder(conv);
    this.loadReceipts(conv);
  }

  /** One more page of older lines. @param {Conversation} conv */
  async loadOlder(conv) {
    if (conv.history === 'loading' || conv.lines.length >= MAX_LINES) return;
    if (conv.local && !this.client.online) return;
    const first = conv.history === 'idle';
    const position = this.client.position(conv.id);
    // Live messages are added from the position on, so history has to reach exactly up to it.
    const before = conv.lines[0]?.seq ?? (position === null ? undefined : position + 1);
    conv.history = 'loading';
    this.emit('thread', conv.id);
    try {
      const page = await this.client.fetchBefore(conv.id, before, HISTORY_PAGE);
      this.#insert(conv, page.messages);
      conv.more = page.more && page.messages.length > 0;
      conv.history = 'ready';
    } catch (error) {
      conv.history = first ? 'idle' : 'ready';
      const fresh = error.code === 'not_found' || (conv.local && error.code === 'not_a_member');
      if (fresh) conv.history = 'ready';
      else if (error.code !== 'offline' && !conv.gone) this.emit('problem', `Earlier messages could not be loaded: ${error.message}`);
    }
    this.emit('thread', conv.id);
  }

  /** Forgets lines from the top; they are loaded again on scrolling. @param {Conversation} conv @param {number} [keep] */
  trim(conv, keep = KEEP_LINES) {
    if (conv.lines.length <= keep) return;
    conv.lines = conv.lines.slice(-keep);
    conv.more = true;
  }

  #insert(conv, messages) {
    const known = new Set(conv.lines.map((m) => m.seq));
    const fresh = messages.filter((m) => !known.has(m.seq));
    if (fresh.length > 0) conv.lines = [...conv.lines, ...fresh].sort((a, b) => a.seq - b.seq);
    this.#noteLast(conv, messages.at(-1));
  }

  #restart(id) {
    const conv = this.conversations.get(id);
    if (!conv) return;
    Object.assign(conv, { lines: [], history: 'idle', more: false });
    this.#refreshSoon();
  }

  /** Unsent lines of a conversation, oldest first. @param {Conversation} conv */
  pending(conv) {
    return this.client.pending(conv.id);
  }

  send(conv, content) {
    const target = conv.kind === 'direct' && conv.peer ? { to: conv.peer } : { conversationId: conv.id };
    conv.activity = Date.now();
    conv.dividerSeq = 0;
    this.client.send({ ...target, content });
    this.emit('list');
  }

  /** Everything up to `seq` was on screen. @param {Conversation} conv @param {number} seq */
  read(conv, seq) {
    if (seq <= conv.readSeq || conv.gone) return;
    conv.readSeq = seq;
    this.client.markRead(conv.id, seq);
    this.#recount(conv);
    this.emit('list');
  }

  #recount(conv) {
    if (conv.readSeq >= conv.headSeq) conv.unread = 0;
    else if (conv.lines.length > 0 && conv.lines[0].seq <= conv.readSeq + 1) {
      conv.unread = conv.lines.filter((m) => m.seq > conv.readSeq && m.sender_id !== this.me).length;
    }
  }

  async loadReceipts(conv) {
    if (conv.local || conv.gone || conv.headSeq === 0) return;
    try {
      const answer = await this.client.receipts(conv.id, conv.headSeq);
      conv.marked = true;
      for (const w of answer.watermarks ?? []) this.#mark(conv, w.user_id, w.delivered_seq ?? 0, w.read_seq ?? 0);
      this.emit('thread', conv.id);
      this.emit('list');
    } catch {
      // Ticks then show what receipts tell from now on.
    }
  }

  #mark(conv, user, delivered, read) {
    if (user === this.me) return;
    const mark = conv.marks.get(user) ?? { delivered: 0, read: 0 };
    mark.read = Math.max(mark.read, read);
    mark.delivered = Math.max(mark.delivered, delivered, mark.read);
    conv.marks.set(user, mark);
  }

  /** How far an own message got. @returns {{state: 'sent' | 'delivered' | 'read', readers: string[]}} */
  progress(conv, seq) {
    const others = conv.kind === 'direct' ? 1 : Math.max(1, conv.memberCount - 1);
    const reached = (status) => {
      const named = [...conv.marks].filter(([, mark]) => mark[status] >= seq).map(([user]) => user);
      const tally = conv.tally[status];
      return { named, count: Math.max(named.length, tally.seq >= seq ? tally.count : 0) };
    };
    const read = reached('read');
    const state = read.count >= others ? 'read' : reached('delivered').count >= others ? 'delivered' : 'sent';
    return { state, readers: read.named };
  }

  typists(conv) {
    const now = Date.now();
    return [...conv.typing].filter(([, until]) => until > now).map(([user]) => user);
  }

  // ---- what the client tells --------------------------------------------------------------------------------

  #onMessage(message) {
    const known = this.conversations.get(message.conversation_id);
    const conv = known ?? this.#ensure(message.conversation_id);
    if (!known || conv.local) this.#refreshSoon();
    if (conv.history !== 'idle' || conv.lines.length > 0) this.#insert(conv, [message]);
    this.#noteLast(conv, message);
    conv.headSeq = Math.max(conv.headSeq, message.seq);
    conv.typing.delete(message.sender_id);
    if (message.sender_id !== this.me) {
      this.client.markDelivered(conv.id, message.seq);
      this.#mark(conv, message.sender_id, message.seq, 0);
      if (message.seq > conv.countedSeq && message.seq > conv.readSeq) conv.unread += 1;
    }
    conv.countedSeq = Math.max(conv.countedSeq, message.seq);
    this.emit('line', { conv, message });
    this.emit('thread', conv.id);
    this.emit('list');
  }

  #onOutbox(entry, change, error) {
    if (change === 'failed' && entry.conversationId !== this.openId) this.emit('problem', `A message was not sent: ${error?.message || entry.error}`);
    this.emit('thread', entry.conversationId);
    this.emit('list');
  }

  #onReceipt(frame) {
    const conv = this.conversations.get(frame.conversation_id);
    if (!conv) return;
    const { user_id: user, seq, status, count, sample } = frame;
    if (user === this.me) {
      if (status === 'read' && seq > conv.readSeq) {
        conv.readSeq = seq;
        this.#recount(conv);
        this.emit('list');
      }
      return;
    }
    const users = user ? [user] : sample ?? [];
    for (const u of users) this.#mark(conv, u, seq, status === 'read' ? seq : 0);
    if (count !== undefined && conv.tally[status]) conv.tally[status] = { seq, count };
    this.emit('thread', conv.id);
  }

  #onTyping({ conversation_id: id, user_id: user, active }) {
    const conv = this.conversations.get(id);
    if (!conv || user === this.me) return;
    if (active) conv.typing.set(user, Date.now() + TYPING_MS);
    else conv.typing.delete(user);
    this.emit('thread', id);
    if (active) setTimeout(() => this.emit('thread', id), TYPING_MS + 50);
  }

  #onPresence({ users = [] }) {
    for (const u of users) this.presence.set(u.user_id, { online: u.status === 'online', lastSeen: u.last_seen });
    this.emit('list');
    if (this.openId) this.emit('thread', this.openId);
  }

  #watchPeers(force = false) {
    const peers = this.sorted().filter((c) => c.kind === 'direct' && c.peer).map((c) => c.peer).slice(0, MAX_WATCHED);
    const wanted = peers.join(' ');
    if (peers.length === 0 || (!force && wanted === this.#watched) || !this.client.online) return;
    this.#watched = wanted;
    this.client.watch(peers);
  }

  #onConversation(frame) {
    const conv = this.#ensure(frame.conversation_id);
    if (frame.members_removed?.includes(this.me)) {
      this.#setGone(conv);
    } else {
      if (frame.kind) conv.kind = frame.kind;
      if (frame.title !== undefined) conv.title = frame.title;
      conv.headSeq = Math.max(conv.headSeq, frame.head_seq ?? 0);
      if (conv.activity === 0) conv.activity = Date.now();
      if (conv.gone || conv.local || frame.members_added?.length || frame.members_removed?.length) this.#refreshSoon();
      for (const user of frame.members_removed ?? []) conv.marks.delete(user);
    }
    this.emit('members', conv.id);
    this.emit('thread', conv.id);
    this.emit('list');
  }

  #onConnected() {
    this.#watchPeers(true);
    this.refresh().then(() => {
      const conv = this.open;
      if (!conv) return;
      if (conv.history === 'idle') this.loadOlder(conv);
      // Receipts are not kept for us while we are away: ask how far ours got.
      this.loadReceipts(conv);
    });
  }

  #onError(error) {
    const conv = this.conversations.get(error.conversationId);
    if (error.code === 'not_a_member' && conv && !conv.local) this.#setGone(conv);
    else if (error.code === 'storage') this.emit('problem', error.message);
    else if (!conv) console.warn('trunkline:', error.code, error.message);
  }
}
