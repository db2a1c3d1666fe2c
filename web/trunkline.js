/**
 * Trunkline's JavaScript client: one import, no dependencies, browsers and Node >= 20.
 *
 * ```js
 * const client = new TrunklineClient({ url: 'ws://127.0.0.1:7400/v1/connect', getToken, deviceId: 'laptop' });
 * client.on('message', ({ message }) => console.log(message.seq, message.sender_id, message.content));
 * client.connect();
 * await client.send({ to: 'bob', content: 'hello' }).promise;
 * ```
 *
 * What the application may rely on: `message` comes once per (conversation, seq), rising and without gaps,
 * own messages included (also those sent by the user's other devices); a message given to `send` stays
 * in the outbox until the server has acked or refused it, over reconnects and, with a storage, over reloads; nothing
 * here grows without a bound.
 * @module
 */

import { Link } from './tl-link.js';
import { Follower } from './tl-follow.js';
import { Outbox } from './tl-outbox.js';
import { Receipts } from './tl-receipts.js';
import { Rest } from './tl-rest.js';
import { Backoff, Emitter, TokenSource, TrunklineError, countScalars, directConversationId, randomId, systemClock, tokenClaims } from './tl-util.js';

export { TrunklineError, countScalars, directConversationId, isUserId, randomId, tokenClaims } from './tl-util.js';

/** No ack within this time on a live connection: send again with the same id. */
export const SEND_TIMEOUT_MS = 20_000;
/** No answer to a request within this time: it failed with `timeout`. */
export const REQUEST_TIMEOUT_MS = 20_000;
/** Requests waiting for an answer at once. */
export const MAX_REQUESTS = 64;
/** Bytes the socket may have queued before the outbox waits. */
const MAX_BACKLOG = 1 << 20;
const BACKLOG_POLL_MS = 100;
/** A refused send waits at least this long, whatever the dice say. */
const MIN_RESEND_MS = 250;
const RETRYABLE = new Set(['rate_limited', 'overloaded', 'unavailable']);
/** Frames a client works as well without, by the `id` they carry: errors about them aren't the application's. */
const TYPING_ID = 'optional:typing';
const WATCH_ID = 'optional:watch';
const NOT_THERE = new Set(['not_implemented', 'unknown_frame']);

/**
 * @typedef {object} Message
 * @property {string} conversation_id
 * @property {string} message_id
 * @property {number} seq
 * @property {string} sender_id
 * @property {string} client_msg_id
 * @property {string} content
 * @property {string} content_type
 * @property {object} [media]
 * @property {number} ts
 *
 * @typedef {object} ClientOptions
 * @property {string | (() => string | Promise<string>)} url WebSocket address of an edge
 * @property {string} deviceId unique per live client of the user
 * @property {string} [token]
 * @property {(why: {refresh: boolean}) => string | Promise<string>} [getToken]
 * @property {string} [userId] default: the token's `sub`
 * @property {string} [baseUrl] of the REST API, e.g. `http://127.0.0.1:7410`; without it there are no REST helpers
 * @property {any} [WebSocket] needed where there is no global one (Node < 22)
 * @property {typeof fetch} [fetch]
 * @property {Storage | null} [storage] keeps the outbox; default `localStorage` where there is one
 * @property {string} [outboxKey] default: one per user and device
 * @property {number} [maxCatchUp] further behind than this, skip ahead (`reset`) instead of paging; default never
 * @property {import('./tl-util.js').Clock} [clock]
 *
 * @typedef {object} Ack
 * @property {string} clientMsgId
 * @property {string} conversationId
 * @property {string} messageId
 * @property {number} seq
 * @property {number} ts
 * @property {boolean} duplicate
 */

/**
 * Events (`on(type, listener)`):
 * - `state` {@link import('./tl-link.js').LinkState}
 * - `connected` the server's frame
 * - `message` `{message, source: 'live' | 'sync'}`
 * - `ack` {@link Ack}
 * - `outbox` `{entry, change: 'queued' | 'failed' | 'sent' | 'discarded'}`
 * - `receipt`, `typing`, `presence`, `conversation` the server's frame
 * - `reset` `{conversationId}`: too much was missed, messages go on from the newest page
 * - `error` {@link TrunklineError}
 */
export class TrunklineClient extends Emitter {
  #clock;
  #tokens;
  #link;
  #outbox;
  #follower;
  #receipts;
  #requests = new Map();
  #requestCounter = 0;
  #promises = new Map();
  #sendTimers = new Map();
  #backoffs = new Map();
  #pumpTimer = null;
  #missing = new Set();

  /** @param {ClientOptions} options */
  constructor(options) {
    super();
    const WebSocketImpl = options.WebSocket ?? globalThis.WebSocket;
    if (!WebSocketImpl) throw new TypeError('No global WebSocket here: pass one as the `WebSocket` option');
    if (!options.url || !options.deviceId) throw new TypeError('`url` and `deviceId` are required');
    if (!options.token && !options.getToken) throw new TypeError('`token` or `getToken` is required');
    this.#clock = options.clock ?? systemClock;
    this.#tokens = new TokenSource(options, this.#clock);
    this.deviceId = options.deviceId;
    /** @type {string | null} */
    this.userId = options.userId ?? (options.token ? tokenClaims(options.token).sub : null) ?? null;
    this.limits = { max_content_chars: 1000 };
    const storage = options.storage === undefined ? defaultStorage() : options.storage;
    this.#outbox = new Outbox(storage, options.outboxKey ?? `trunkline.outbox:${this.userId ?? ''}:${this.deviceId}`);
    const fetchImpl = options.fetch ?? globalThis.fetch?.bind(globalThis);
    /** REST helpers; see {@link Rest}. */
    this.rest = new Rest({ baseUrl: options.baseUrl ?? null, fetch: fetchImpl, tokens: this.#tokens });
    this.#receipts = new Receipts({ clock: this.#clock, send: (frame) => this.#link.send(frame) });
    this.#follower = new Follower({
      clock: this.#clock,
      maxCatchUp: options.maxCatchUp ?? Infinity,
      request: (frame, onPage) => this.#request(frame, onPage),
      deliver: (messages, source) => this.#deliver(messages, source),
      onReset: (conversationId) => this.emit('reset', { conversationId }),
      onLost: (error, conversationId) => this.emit('error', Object.assign(error, { conversationId })),
    });
    this.#link = new Link({
      url: options.url,
      WebSocket: WebSocketImpl,
      clock: this.#clock,
      tokens: this.#tokens,
      hello: () => ({ device_id: this.deviceId, client: 'trunkline-js' }),
      onUp: (frame) => this.#onUp(frame),
      onDown: () => this.#onDown(),
      onFrame: (frame) => this.#onFrame(frame),
      onState: (state) => this.emit('state', state),
      onError: (error) => this.emit('error', error),
    });
  }

  /** @returns {import('./tl-link.js').LinkState} */
  get state() {
    return this.#link.state;
  }

  get online() {
    return this.#link.online;
  }

  /** Connects and stays connected; when waiting for the next try, tries at once. */
  connect() {
    this.#link.open();
  }

  /** Disconnects and stays so. Unsent messages remain in the outbox. */
  close() {
    const wasOnline = this.online;
    this.#link.close();
    if (wasOnline) this.#onDown();
  }

  /** Checks a connection that may have died unnoticed (after sleep, a network change); see `Link.probe`. */
  probe() {
    this.#link.probe();
  }

  /** A new token, for instance after state `terminal` with 4401. @param {string} token */
  setToken(token) {
    this.#tokens.set(token);
  }

  // ---- sending ------------------------------------------------------------------------------------------

  /**
   * Puts a message into the outbox and sends it as soon as possible.
   * @param {{to?: string, conversationId?: string, content: string, contentType?: string, media?: object, clientMsgId?: string}} message
   * @returns {{clientMsgId: string, promise: Promise<Ack>}} the promise fails with a {@link TrunklineError} when the server refuses
   */
  send({ to, conversationId, content, contentType = 'text/plain', media, clientMsgId = randomId() }) {
    const problem = this.#unsendable({ to, conversationId, content, media });
    if (problem) return { clientMsgId, promise: quiet(Promise.reject(problem)) };
    const direct = to && this.userId ? directConversationId(this.userId, to) : null;
    const entry = {
      clientMsgId, conversationId: conversationId ?? direct, to: to ?? null, content, contentType,
      media: media ?? null, createdAt: this.#clock.now(), state: 'queued', error: null,
    };
    const promise = this.#promise(clientMsgId);
    if (!this.#outbox.add(entry)) this.emit('error', new TrunklineError('storage', 'The outbox could not be saved on this device'));
    this.emit('outbox', { entry, change: 'queued' });
    this.#pump();
    return { clientMsgId, promise };
  }

  /** Unsent and failed messages, oldest first. @param {string} [conversationId] @returns {import('./tl-outbox.js').OutboxEntry[]} */
  pending(conversationId) {
    return this.#outbox.entries.filter((e) => conversationId === undefined || e.conversationId === conversationId);
  }

  /** Tries a failed message again. @param {string} clientMsgId @returns {Promise<Ack>} */
  retry(clientMsgId) {
    const conflict = this.#outbox.get(clientMsgId)?.error === 'idempotency_conflict';
    const entry = this.#outbox.requeue(clientMsgId, conflict ? randomId() : clientMsgId);
    if (!entry) return quiet(Promise.reject(new TrunklineError('not_found', 'No such failed message')));
    const promise = this.#promise(entry.clientMsgId);
    this.emit('outbox', { entry, change: 'queued' });
    this.#pump();
    return promise;
  }

  /** Gives up a message. One already under way may still arrive. @param {string} clientMsgId */
  discard(clientMsgId) {
    const entry = this.#outbox.remove(clientMsgId);
    if (!entry) return;
    this.#settle(clientMsgId)?.reject(new TrunklineError('discarded', 'The message was given up'));
    this.emit('outbox', { entry, change: 'discarded' });
    this.#pump();
  }

  /** Everything up to `seq` has reached this user. @param {string} conversationId @param {number} seq */
  markDelivered(conversationId, seq) {
    this.#receipts.mark(conversationId, seq, 'delivered');
  }

  /** Everything up to `seq` has been read. @param {string} conversationId @param {number} seq */
  markRead(conversationId, seq) {
    this.#receipts.mark(conversationId, seq, 'read');
  }

  /** @param {string} conversationId @param {boolean} active */
  typing(conversationId, active) {
    this.#sendOptional({ type: 'typing', id: TYPING_ID, conversation_id: conversationId, active });
  }

  /** Asks for the presence of up to 100 users, now and on change. @param {string[]} users */
  watch(users) {
    this.#sendOptional({ type: 'watch', id: WATCH_ID, users });
  }

  /** @param {string[]} users */
  unwatch(users) {
    this.#sendOptional({ type: 'unwatch', id: WATCH_ID, users });
  }

  /** A server that lacks a feature is asked once per connection, not again and again. */
  #sendOptional(frame) {
    if (!this.#missing.has(frame.id)) this.#link.send(frame);
  }

  // ---- conversations and history --------------------------------------------------------------------------

  /** Hand out messages after `seq`, catching up to `head` when that is higher. @param {string} conversationId @param {number} seq @param {number} [head] */
  follow(conversationId, seq, head) {
    this.#follower.follow(conversationId, seq, head);
  }

  /** @param {string} conversationId */
  forget(conversationId) {
    this.#follower.forget(conversationId);
  }

  /** Last seq handed out; null while unknown. @param {string} conversationId */
  position(conversationId) {
    return this.#follower.position(conversationId);
  }

  /**
   * A page of history; it neither moves the position nor raises `message`.
   * @param {string} conversationId @param {number} [beforeSeq] none: the newest @param {number} [limit]
   * @returns {Promise<{messages: Message[], head_seq: number, more: boolean}>}
   */
  async fetchBefore(conversationId, beforeSeq, limit = 50) {
    const page = this.online
      ? await this.#request({ type: 'fetch', conversation_id: conversationId, before: beforeSeq, limit })
      : await this.rest.messages(conversationId, { before: beforeSeq, limit });
    return { messages: page.messages ?? [], head_seq: page.head_seq ?? 0, more: Boolean(page.more) };
  }

  /** See {@link Rest}. */
  listConversations(page) {
    return this.rest.listConversations(page);
  }

  createConversation(conversation) {
    return this.rest.createConversation(conversation);
  }

  members(conversationId, page) {
    return this.rest.members(conversationId, page);
  }

  addMember(conversationId, userId, role) {
    return this.rest.addMember(conversationId, userId, role);
  }

  removeMember(conversationId, userId) {
    return this.rest.removeMember(conversationId, userId);
  }

  receipts(conversationId, seq) {
    return this.rest.receipts(conversationId, seq);
  }

  // ---- connection ---------------------------------------------------------------------------------------

  #onUp(frame) {
    this.userId = frame.user_id ?? this.userId;
    this.limits = { ...this.limits, ...frame.limits };
    this.#missing.clear();
    this.emit('connected', frame);
    // Resend first: what was accepted before the loss is acked before the sync could show it as news.
    this.#pump();
    this.#receipts.up();
    this.#follower.up();
  }

  #onDown() {
    for (const timer of this.#sendTimers.values()) this.#clock.clearTimeout(timer);
    this.#sendTimers.clear();
    this.#backoffs.clear();
    this.#stopPump();
    this.#outbox.releaseAll();
    this.#receipts.down();
    this.#follower.down();
    const requests = [...this.#requests.values()];
    this.#requests.clear();
    for (const request of requests) {
      this.#clock.clearTimeout(request.timer);
      request.reject(new TrunklineError('offline', 'The connection was lost'));
    }
  }

  #onFrame(frame) {
    switch (frame.type) {
      case 'ack':
        return this.#onAck(frame);
      case 'message':
        return this.#follower.message(frame);
      case 'page':
        return this.#onPage(frame);
      case 'synced':
        return this.#answer(frame.id ?? this.#oldestSync(), frame);
      case 'conversation':
        return this.#onConversation(frame);
      case 'error':
        return this.#onError(frame);
      case 'receipt':
      case 'typing':
      case 'presence':
        return this.emit(frame.type, frame);
      default:
        return undefined; // A newer server's frame.
    }
  }

  #onConversation(frame) {
    const removed = frame.members_removed?.includes(this.userId);
    if (removed) this.#follower.forget(frame.conversation_id);
    else this.#follower.head(frame.conversation_id, frame.head_seq ?? 0);
    this.emit('conversation', frame);
  }

  #onPage(frame) {
    const request = this.#requests.get(frame.id);
    if (request?.onPage) {
      this.#armRequest(frame.id, request); // A long answer is no silence.
      request.onPage(frame);
    } else if (request) {
      this.#answer(frame.id, frame);
    } else {
      this.#follower.strayPage(frame);
    }
  }

  #onError(frame) {
    const error = TrunklineError.fromFrame(frame);
    const sent = this.#outbox.get(frame.id) ?? this.#outbox.get(frame.client_msg_id);
    if (sent) return this.#onSendError(sent, error);
    if (frame.id === TYPING_ID || frame.id === WATCH_ID) {
      if (NOT_THERE.has(error.code)) this.#missing.add(frame.id);
      return undefined;
    }
    if (error.code === 'unavailable' && !frame.id && !frame.client_msg_id && !frame.conversation_id) this.#allUnanswered(error);
    const request = this.#requests.get(frame.id);
    if ((!request || request.onPage) && this.#follower.syncError(error)) return undefined;
    if (!request) return this.emit('error', error);
    this.#forgetRequest(frame.id);
    return request.reject(error);
  }

  /** The server lost track of what it was doing for us: of all that is under way, the outcome is unknown. */
  #allUnanswered(error) {
    for (const clientMsgId of [...this.#sendTimers.keys()]) {
      const entry = this.#outbox.get(clientMsgId);
      if (entry) this.#onSendError(entry, error);
    }
    for (const [id, request] of [...this.#requests]) {
      this.#forgetRequest(id);
      request.reject(error);
    }
  }

  // ---- requests -----------------------------------------------------------------------------------------

  /** @returns {Promise<object>} the answer; pages before it go to `onPage` when given */
  #request(frame, onPage) {
    if (!this.online) return Promise.reject(new TrunklineError('offline', 'Not connected'));
    if (this.#requests.size >= MAX_REQUESTS) return Promise.reject(new TrunklineError('overloaded', 'Too many requests at once'));
    this.#requestCounter += 1;
    const id = `q#${this.#requestCounter}`;
    return new Promise((resolve, reject) => {
      const request = { resolve, reject, onPage, timer: null };
      this.#requests.set(id, request);
      this.#armRequest(id, request);
      this.#link.send({ ...frame, id });
    });
  }

  #armRequest(id, request) {
    this.#clock.clearTimeout(request.timer);
    request.timer = this.#clock.setTimeout(() => {
      this.#requests.delete(id);
      request.reject(new TrunklineError('timeout', 'The server did not answer in time'));
    }, REQUEST_TIMEOUT_MS);
  }

  #answer(id, frame) {
    const request = this.#requests.get(id);
    if (!request) return;
    this.#forgetRequest(id);
    request.resolve(frame);
  }

  #forgetRequest(id) {
    this.#clock.clearTimeout(this.#requests.get(id)?.timer);
    this.#requests.delete(id);
  }

  #oldestSync() {
    for (const [id, request] of this.#requests) if (request.onPage) return id;
    return undefined;
  }

  // ---- outbox -------------------------------------------------------------------------------------------

  #unsendable({ to, conversationId, content, media }) {
    if (!to && !conversationId) return new TrunklineError('bad_request', '`to` or `conversationId` is required');
    if (typeof content !== 'string' || (content === '' && !media)) return new TrunklineError('bad_request', 'The message is empty');
    if (countScalars(content) > this.limits.max_content_chars) return new TrunklineError('too_large', 'The message is too long');
    if (this.#outbox.full) return new TrunklineError('outbox_full', 'Too many unsent messages');
    return null;
  }

  #promise(clientMsgId) {
    return quiet(new Promise((resolve, reject) => this.#promises.set(clientMsgId, { resolve, reject })));
  }

  #settle(clientMsgId) {
    const promise = this.#promises.get(clientMsgId);
    this.#promises.delete(clientMsgId);
    this.#backoffs.delete(clientMsgId);
    this.#stopSendTimer(clientMsgId);
    return promise;
  }

  #pump() {
    this.#stopPump();
    if (!this.online) return;
    if (this.#link.backlog > MAX_BACKLOG) {
      this.#pumpIn(BACKLOG_POLL_MS);
      return;
    }
    const now = this.#clock.now();
    const { ready, wakeAt } = this.#outbox.take(now);
    for (const entry of ready) this.#transmit(entry);
    if (wakeAt !== null) this.#pumpIn(wakeAt - now);
  }

  #pumpIn(ms) {
    this.#pumpTimer = this.#clock.setTimeout(() => this.#pump(), ms);
  }

  #stopPump() {
    if (this.#pumpTimer !== null) this.#clock.clearTimeout(this.#pumpTimer);
    this.#pumpTimer = null;
  }

  #transmit(entry) {
    const { clientMsgId } = entry;
    const target = entry.to ? { to: entry.to } : { conversation_id: entry.conversationId };
    this.#link.send({
      type: 'send_message', id: clientMsgId, ...target, client_msg_id: clientMsgId, content: entry.content,
      content_type: entry.contentType, ...(entry.media ? { media: entry.media } : {}),
    });
    const timer = this.#clock.setTimeout(() => this.#onSendError(entry, new TrunklineError('unavailable', 'No ack in time')), SEND_TIMEOUT_MS);
    this.#sendTimers.set(clientMsgId, timer);
  }

  #stopSendTimer(clientMsgId) {
    this.#clock.clearTimeout(this.#sendTimers.get(clientMsgId));
    this.#sendTimers.delete(clientMsgId);
  }

  #onSendError(entry, error) {
    const { clientMsgId } = entry;
    this.#stopSendTimer(clientMsgId);
    if (RETRYABLE.has(error.code)) {
      if (!this.#backoffs.has(clientMsgId)) this.#backoffs.set(clientMsgId, new Backoff(this.#clock));
      const backoff = this.#backoffs.get(clientMsgId).next();
      const at = this.#clock.now() + (error.retryAfterMs ?? Math.max(MIN_RESEND_MS, backoff));
      if (error.code === 'rate_limited') this.#outbox.pausedUntil = at;
      this.#outbox.postpone(clientMsgId, at);
    } else {
      this.#outbox.fail(clientMsgId, error.code);
      this.#settle(clientMsgId)?.reject(error);
      this.emit('outbox', { entry, change: 'failed', error });
    }
    this.#pump();
  }

  #onAck(frame) {
    const entry = this.#accepted(frame);
    if (!entry) return;
    this.#follower.message({
      conversation_id: frame.conversation_id,
      message_id: frame.message_id,
      seq: frame.seq,
      sender_id: this.userId,
      client_msg_id: frame.client_msg_id,
      content: entry.content,
      content_type: entry.contentType,
      ...(entry.media ? { media: entry.media } : {}),
      ts: frame.ts,
    });
  }

  /** The server has the message, as an ack or the message itself tells. @returns the outbox entry it was, if any */
  #accepted(frame) {
    const entry = this.#outbox.get(frame.client_msg_id);
    if (!entry || (entry.conversationId && entry.conversationId !== frame.conversation_id)) return undefined;
    this.#outbox.remove(entry.clientMsgId);
    const ack = {
      clientMsgId: entry.clientMsgId,
      conversationId: frame.conversation_id,
      messageId: frame.message_id,
      seq: frame.seq,
      ts: frame.ts,
      duplicate: Boolean(frame.duplicate),
    };
    this.#settle(entry.clientMsgId)?.resolve(ack);
    this.emit('ack', ack);
    this.emit('outbox', { entry, change: 'sent' });
    this.#pump();
    return entry;
  }

  #deliver(messages, source) {
    for (const message of messages) {
      if (message.sender_id === this.userId) this.#accepted(message);
      this.emit('message', { message, source });
    }
  }
}

/** Keeps a promise nobody looks at from counting as an unhandled rejection. */
function quiet(promise) {
  promise.catch(() => {});
  return promise;
}

function defaultStorage() {
  try {
    return globalThis.localStorage ?? null;
  } catch {
    return null; // Storage denied by the browser.
  }
}
