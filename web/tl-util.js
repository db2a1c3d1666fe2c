/**
 * Small building blocks of the Trunkline client: errors, events, identifiers, back-off, the clock.
 *
 * Nothing here touches the network. Everything runs in browsers (also on plain-http pages, where
 * `crypto.subtle` and `crypto.randomUUID` are missing) and in Node >= 20.
 * @module
 */

/** Namespace of direct conversation ids (UUIDv5). */
export const DIRECT_NAMESPACE = 'fe1939a1-c503-5c73-82b3-85a7b7106b48';

const USER_ID = /^[A-Za-z0-9._:@-]{1,64}$/;

/** @param {unknown} id @returns {boolean} whether `id` can be a user id or a device id */
export const isUserId = (id) => typeof id === 'string' && USER_ID.test(id);

/** An error with one of the protocol's codes, or one of the client's own: `offline`, `timeout`, `closed`, `outbox_full`. */
export class TrunklineError extends Error {
  /**
   * @param {string} code
   * @param {string} [message]
   * @param {{conversationId?: string, clientMsgId?: string, retryAfterMs?: number, status?: number}} [detail]
   */
  constructor(code, message, detail = {}) {
    super(message || code);
    this.name = 'TrunklineError';
    this.code = code;
    this.conversationId = detail.conversationId;
    this.clientMsgId = detail.clientMsgId;
    this.retryAfterMs = detail.retryAfterMs;
    this.status = detail.status;
  }

  /** @param {object} frame an `error` frame */
  static fromFrame(frame) {
    return new TrunklineError(String(frame.code || 'internal'), frame.message, {
      conversationId: frame.conversation_id,
      clientMsgId: frame.client_msg_id,
      retryAfterMs: frame.retry_after_ms,
    });
  }
}

/** Event hub: one failing listener disturbs neither the others nor the caller. */
export class Emitter {
  #listeners = new Map();

  /**
   * @param {string} type
   * @param {(detail: any) => void} listener
   * @returns {() => void} takes the listener off again
   */
  on(type, listener) {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
    this.#listeners.get(type).add(listener);
    return () => this.off(type, listener);
  }

  /** @param {string} type @param {(detail: any) => void} listener */
  off(type, listener) {
    this.#listeners.get(type)?.delete(listener);
  }

  /** @param {string} type @param {any} detail */
  emit(type, detail) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) {
      try {
        listener(detail);
      } catch (error) {
        console.error(`trunkline: a "${type}" listener failed`, error);
      }
    }
  }
}

/**
 * Time and chance, replaceable so that tests can own both.
 * @typedef {{now(): number, random(): number, setTimeout(fn: () => void, ms: number): any, clearTimeout(id: any): void}} Clock
 */

/** @type {Clock} */
export const systemClock = {
  now: () => Date.now(),
  random: () => Math.random(),
  setTimeout: (fn, ms) => globalThis.setTimeout(fn, ms),
  clearTimeout: (id) => globalThis.clearTimeout(id),
};

/** Exponential back-off with full jitter: attempt n waits a random time below min(cap, base x 2^n). */
export class Backoff {
  /** @param {Clock} clock @param {number} [baseMs] @param {number} [capMs] */
  constructor(clock, baseMs = 1_000, capMs = 60_000) {
    this.clock = clock;
    this.baseMs = baseMs;
    this.capMs = capMs;
    this.attempt = 0;
  }

  /** Upper bound of the next wait. */
  ceiling() {
    return Math.min(this.capMs, this.baseMs * 2 ** Math.min(this.attempt, 30));
  }

  /** @returns {number} milliseconds to wait now; each call widens the next one */
  next() {
    const delay = Math.floor(this.clock.random() * this.ceiling());
    this.attempt += 1;
    return delay;
  }

  reset() {
    this.attempt = 0;
  }
}

/** Number of Unicode scalars, which is what the server's content limit counts. */
export const countScalars = (text) => {
  let n = 0;
  for (const _ of text) n += 1;
  return n;
};

const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');

const formatUuid = (bytes) => {
  const s = hex(bytes);
  return `${s.slice(0, 8)}-${s.slice(8, 12)}-${s.slice(12, 16)}-${s.slice(16, 20)}-${s.slice(20, 32)}`;
};

/** @returns {string} a random UUID (version 4) */
export const randomId = () => {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return formatUuid(bytes);
};

const rotl = (x, n) => (x << n) | (x >>> (32 - n));

/** SHA-1 (FIPS 180-4). Only for UUIDv5, which is defined by it; nothing here rests on its strength. */
export function sha1(input) {
  const padded = new Uint8Array(((input.length + 8) >> 6) * 64 + 64);
  padded.set(input);
  padded[input.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(input.length / 2 ** 29));
  view.setUint32(padded.length - 4, (input.length << 3) >>> 0);
  const h = new Int32Array([0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0]);
  const w = new Int32Array(80);
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i += 1) w[i] = view.getInt32(block + i * 4);
    for (let i = 16; i < 80; i += 1) w[i] = rotl(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    let [a, b, c, d, e] = h;
    for (let i = 0; i < 80; i += 1) {
      const [f, k] =
        i < 20 ? [(b & c) | (~b & d), 0x5a827999]
        : i < 40 ? [b ^ c ^ d, 0x6ed9eba1]
        : i < 60 ? [(b & c) | (b & d) | (c & d), 0x8f1bbcdc]
        : [b ^ c ^ d, 0xca62c1d6];
      const t = (rotl(a, 5) + f + e + k + w[i]) | 0;
      [e, d, c, b, a] = [d, c, rotl(b, 30), a, t];
    }
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e;
  }
  const out = new Uint8Array(20);
  const outView = new DataView(out.buffer);
  h.forEach((word, i) => outView.setInt32(i * 4, word));
  return out;
}

/**
 * The id of the direct conversation of two users; needs no server.
 * @param {string} a @param {string} b
 * @returns {string}
 */
export function directConversationId(a, b) {
  // User ids are ASCII, so comparing code units is comparing bytes.
  const [low, high] = a < b ? [a, b] : [b, a];
  const namespace = Uint8Array.from(DIRECT_NAMESPACE.replaceAll('-', '').match(/../g), (h) => parseInt(h, 16));
  const name = new TextEncoder().encode(`${low}\n${high}`);
  const input = new Uint8Array(namespace.length + name.length);
  input.set(namespace);
  input.set(name, namespace.length);
  const bytes = sha1(input).slice(0, 16);
  bytes[6] = (bytes[6] & 0x0f) | 0x50;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return formatUuid(bytes);
}

/**
 * The claims of a JWT, unverified: the server judges tokens, the client only reads `sub` and `exp`.
 * @param {string} token
 * @returns {{sub?: string, exp?: number}}
 */
export function tokenClaims(token) {
  try {
    const part = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(part), (c) => c.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return claims && typeof claims === 'object' ? claims : {};
  } catch {
    return {};
  }
}

/** The access token: fetched once, kept, fetched anew after the server refused it or shortly before it ends. */
export class TokenSource {
  #token;
  #getToken;
  #clock;
  #rejected = null;
  #asking = null;

  /** @param {{token?: string, getToken?: (why: {refresh: boolean}) => string | Promise<string>}} source @param {Clock} clock */
  constructor({ token, getToken }, clock) {
    this.#token = token ?? null;
    this.#getToken = getToken ?? null;
    this.#clock = clock;
  }

  get refreshable() {
    return this.#getToken !== null;
  }

  /** The token in hand, possibly none. */
  get current() {
    return this.#token;
  }

  /** @returns {Promise<string>} @throws {TrunklineError} `unauthorized` when there is no token other than a refused one */
  async get() {
    const ended = this.#token && this.#endsWithin(0);
    if (!this.#token || (ended && this.#getToken)) await this.refresh();
    if (!this.#token || this.#token === this.#rejected) {
      throw new TrunklineError('unauthorized', 'No valid access token');
    }
    return this.#token;
  }

  /** Asks the application for another token; askers at the same time share one question. @returns {Promise<string>} */
  refresh() {
    if (!this.#getToken) return Promise.reject(new TrunklineError('unauthorized', 'No valid access token'));
    const refresh = this.#token !== null || this.#rejected !== null;
    this.#asking ??= Promise.resolve()
      .then(() => this.#getToken({ refresh }))
      .then((token) => (this.#token = token))
      .finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** @param {string} token a new token from the application */
  set(token) {
    this.#token = token;
  }

  /** The server refused the token in hand: it must not be offered again. */
  reject() {
    this.#rejected = this.#token;
    if (this.#getToken) this.#token = null;
  }

  /** Milliseconds until the token ends, or null when it tells none. */
  endsIn() {
    const exp = this.#token ? tokenClaims(this.#token).exp : undefined;
    return Number.isFinite(exp) ? exp * 1000 - this.#clock.now() : null;
  }

  #endsWithin(ms) {
    const left = this.endsIn();
    return left !== null && left <= ms;
  }
}
