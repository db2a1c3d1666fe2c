/**
 * The REST half of the API: conversations, members, history, receipts.
 *
 * Problems come back as `TrunklineError` with the server's code; a refused token is renewed once.
 * @module
 */

import { TrunklineError } from './tl-util.js';

/** Longest wait for an answer. */
export const REST_TIMEOUT_MS = 15_000;
const enc = encodeURIComponent;

const query = (params) => {
  const pairs = Object.entries(params).filter(([, v]) => v !== undefined && v !== null);
  return pairs.length === 0 ? '' : `?${pairs.map(([k, v]) => `${k}=${enc(v)}`).join('&')}`;
};

export class Rest {
  #baseUrl;
  #fetch;
  #tokens;

  /** @param {{baseUrl: string | null, fetch: typeof fetch, tokens: import('./tl-util.js').TokenSource}} options */
  constructor({ baseUrl, fetch, tokens }) {
    this.#baseUrl = baseUrl;
    this.#fetch = fetch;
    this.#tokens = tokens;
  }

  get available() {
    return this.#baseUrl !== null;
  }

  /** @returns {Promise<{items: object[], next_cursor?: string}>} newest activity first */
  listConversations({ cursor, limit } = {}) {
    return this.request('GET', `/v1/conversations${query({ cursor, limit })}`);
  }

  /** @param {{kind: 'direct' | 'group' | 'channel', title?: string, members: string[]}} conversation */
  createConversation(conversation) {
    return this.request('POST', '/v1/conversations', conversation);
  }

  /** @param {string} id */
  conversation(id) {
    return this.request('GET', `/v1/conversations/${enc(id)}`);
  }

  /** @param {string} id @param {string} title */
  renameConversation(id, title) {
    return this.request('PATCH', `/v1/conversations/${enc(id)}`, { title });
  }

  /** @param {string} id @param {{cursor?: string, limit?: number}} [page] */
  members(id, { cursor, limit } = {}) {
    return this.request('GET', `/v1/conversations/${enc(id)}/members${query({ cursor, limit })}`);
  }

  /** @param {string} id @param {string} userId @param {'admin' | 'member'} [role] */
  addMember(id, userId, role) {
    return this.request('PUT', `/v1/conversations/${enc(id)}/members/${enc(userId)}`, role ? { role } : {});
  }

  /** Removes a member; one's own id leaves. @param {string} id @param {string} userId */
  removeMember(id, userId) {
    return this.request('DELETE', `/v1/conversations/${enc(id)}/members/${enc(userId)}`);
  }

  /** @param {string} id @param {{before?: number, after?: number, limit?: number}} [range] */
  messages(id, { before, after, limit } = {}) {
    return this.request('GET', `/v1/conversations/${enc(id)}/messages${query({ before, after, limit })}`);
  }

  /** @param {string} id @param {number} [seq] */
  receipts(id, seq) {
    return this.request('GET', `/v1/conversations/${enc(id)}/receipts${query({ seq })}`);
  }

  /** @param {string} method @param {string} path @param {object} [body] */
  async request(method, path, body) {
    if (!this.available) throw new TrunklineError('offline', 'No baseUrl was given');
    const first = await this.#once(method, path, body);
    if (first.status !== 401 || !this.#tokens.refreshable) return this.#result(first);
    this.#tokens.reject();
    return this.#result(await this.#once(method, path, body));
  }

  async #once(method, path, body) {
    const token = await this.#tokens.get();
    const headers = { Authorization: `Bearer ${token}`, Accept: 'application/json' };
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), REST_TIMEOUT_MS);
    try {
      const init = { method, headers, signal: abort.signal, body: body === undefined ? undefined : JSON.stringify(body) };
      const response = await this.#fetch(this.#baseUrl + path, init);
      const text = await response.text();
      return { status: response.status, ok: response.ok, text, retryAfter: response.headers.get('Retry-After') };
    } catch (error) {
      const timedOut = abort.signal.aborted;
      throw new TrunklineError(timedOut ? 'timeout' : 'offline', timedOut ? 'The server did not answer in time' : 'The server cannot be reached');
    } finally {
      clearTimeout(timer);
    }
  }

  #result({ status, ok, text, retryAfter }) {
    let body = null;
    try {
      body = text === '' ? null : JSON.parse(text);
    } catch {
      // Not JSON: the status has to speak for itself.
    }
    if (ok) return body;
    throw new TrunklineError(body?.code ?? (status === 401 ? 'unauthorized' : 'internal'), body?.detail ?? body?.title ?? `HTTP ${status}`, {
      status,
      retryAfterMs: retryAfter ? Number(retryAfter) * 1000 || undefined : undefined,
    });
  }
}
