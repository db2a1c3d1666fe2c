/**
 * The connection: dial, authenticate, keep alive, notice death, come back.
 *
 * Invariants: at most one socket is live, and events of an older one are ignored; a terminal close
 * ends in state `terminal` and no timer runs; every other loss ends in `waiting` with exactly one
 * timer. The owner is told `onUp` after each `connected` and `onDown` after each loss of one.
 * @module
 */

import { Backoff, TrunklineError } from './tl-util.js';

export const SUBPROTOCOL = 'trunkline.json.v1';
/** Closes after which coming back unchanged can only fail again. 4401 joins them when no new token can be had. */
export const TERMINAL_CLOSES = new Set([1002, 1003, 1007, 1009, 4400, 4409]);
/** From dialling to `connected`. */
export const CONNECT_TIMEOUT_MS = 15_000;
/** A connection that lived this long proves the server well: back-off starts over. */
export const STABLE_MS = 5_000;
/** Answer time of a probe, asked for after the device woke up or changed networks. */
export const PROBE_TIMEOUT_MS = 5_000;
/** A token is renewed on the live session this long before its end. */
export const TOKEN_RENEW_MS = 60_000;
/** Slack on the silence limit of 2 x heartbeat. */
const SILENCE_SLACK_MS = 5_000;
/** Floor of `reconnect.after_ms`: a server that says 0 again and again must not make us spin. */
const MIN_DRAIN_MS = 100;
const DEFAULT_HEARTBEAT_MS = 30_000;
const MIN_HEARTBEAT_MS = 1_000;
const OPEN = 1;

/**
 * @typedef {'idle' | 'connecting' | 'online' | 'waiting' | 'closed' | 'terminal'} LinkStateName
 * @typedef {object} LinkState
 * @property {LinkStateName} state
 * @property {number} [attempt] how many tries in a row have failed
 * @property {number} [delayMs] with `waiting`
 * @property {number} [retryAt] with `waiting`, on the clock
 * @property {number} [code] close code that led here
 * @property {string} [reason]
 */

export class Link {
  #o;
  #socket = null;
  #generation = 0;
  #backoff;
  #timers = { connect: null, retry: null, heartbeat: null, probe: null, drain: null, renew: null, stable: null };
  #heartbeatMs = DEFAULT_HEARTBEAT_MS;
  #lastReceived = 0;
  #drainAt = null;
  #minDelayMs = 0;

  /**
   * @param {object} options
   * @param {string | (() => string | Promise<string>)} options.url
   * @param {any} options.WebSocket
   * @param {import('./tl-util.js').Clock} options.clock
   * @param {import('./tl-util.js').TokenSource} options.tokens
   * @param {() => object} options.hello fields of `connect` besides the token
   * @param {(connected: object) => void} options.onUp
   * @param {() => void} options.onDown
   * @param {(frame: object) => void} options.onFrame
   * @param {(state: LinkState) => void} options.onState
   * @param {(error: TrunklineError) => void} options.onError
   */
  constructor(options) {
    this.#o = options;
    this.#backoff = new Backoff(options.clock);
    /** @type {LinkState} */
    this.state = { state: 'idle' };
  }

  get online() {
    return this.state.state === 'online';
  }

  /** Starts, or starts again after `closed` or `terminal`; when waiting, tries at once. */
  open() {
    if (this.state.state === 'connecting' || this.online) return;
    this.#clearTimers();
    this.#drainAt = null;
    this.#dial();
  }

  /** Ends on the user's wish; stays closed until `open`. */
  close() {
    const socket = this.#abandon();
    socket?.close(1000);
    this.#setState({ state: 'closed' });
  }

  /** @param {object} frame @returns {boolean} whether the frame was given to the socket */
  send(frame) {
    return this.online && this.#write(frame);
  }

  /** Bytes the socket has not yet passed on. */
  get backlog() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /** Checks the connection now: no byte within `PROBE_TIMEOUT_MS` means it is dead. */
  probe() {
    if (!this.online || this.#timers.probe !== null) return;
    this.#write({ type: 'ping', nonce: 'probe' });
    this.#arm('probe', PROBE_TIMEOUT_MS, () => this.#dead('no answer to a probe'));
  }

  #dial() {
    this.#generation += 1;
    const generation = this.#generation;
    this.#setState({ state: 'connecting', attempt: this.#backoff.attempt });
    this.#prepare().then(
      ({ token, url }) => {
        if (generation === this.#generation) this.#openSocket(url, token, generation);
      },
      (error) => {
        if (generation !== this.#generation) return;
        const refused = error instanceof TrunklineError && error.code === 'unauthorized';
        if (refused) this.#terminal(4401, 'unauthorized');
        else this.#schedule(undefined, String(error?.message ?? error));
      },
    );
  }

  async #prepare() {
    const token = await this.#o.tokens.get();
    const url = typeof this.#o.url === 'function' ? await this.#o.url() : this.#o.url;
    return { token, url };
  }

  #openSocket(url, token, generation) {
    let socket;
    try {
      socket = new this.#o.WebSocket(url, [SUBPROTOCOL]);
    } catch (error) {
      this.#terminal(1002, `cannot open ${url}: ${error?.message ?? error}`);
      return;
    }
    this.#socket = socket;
    this.#arm('connect', CONNECT_TIMEOUT_MS, () => this.#dead('no answer to connect'));
    const current = (fn) => (event) => {
      if (generation === this.#generation) fn(event);
    };
    socket.onopen = current(() => this.#write({ type: 'connect', token, ...this.#o.hello() }));
    socket.onmessage = current((event) => this.#received(event.data));
    socket.onclose = current((event) => this.#lost(event.code, event.reason));
    // A close always follows; the handler only keeps environments quiet that throw on unhandled errors.
    socket.onerror = () => {};
  }

  #received(data) {
    this.#lastReceived = this.#o.clock.now();
    this.#disarm('probe');
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      this.#o.onError(new TrunklineError('bad_frame', 'The server sent something that is not JSON'));
      return;
    }
    if (frame === null || typeof frame !== 'object') return;
    if (frame.type === 'connected') this.#connected(frame);
    else if (frame.type === 'reconnect') this.#drain(frame);
    else if (frame.type !== 'pong') this.#deliver(frame);
  }

  #deliver(frame) {
    if (frame.type === 'error' && frame.close_code) this.#minDelayMs = Number(frame.retry_after_ms) || 0;
    this.#o.onFrame(frame);
  }

  #connected(frame) {
    this.#heartbeatMs = Math.max(MIN_HEARTBEAT_MS, Number(frame.heartbeat_ms) || DEFAULT_HEARTBEAT_MS);
    this.#planRenewal();
    if (this.online) return; // A renewed token: the session goes on as it was.
    this.#disarm('connect');
    this.#beat();
    this.#arm('stable', STABLE_MS, () => this.#backoff.reset());
    this.#minDelayMs = 0;
    this.#setState({ state: 'online' });
    this.#o.onUp(frame);
  }

  /** The server goes away soon: leave at the moment it chose for us, or reconnect then if it closes before. */
  #drain(frame) {
    const afterMs = Math.max(MIN_DRAIN_MS, Number(frame.after_ms) || 0);
    this.#drainAt = this.#o.clock.now() + afterMs;
    this.#arm('drain', afterMs, () => {
      const wasOnline = this.online;
      this.#abandon()?.close(1000);
      this.#drainAt = null;
      if (wasOnline) this.#o.onDown();
      this.#dial();
    });
  }

  #beat() {
    const { clock } = this.#o;
    const jittered = this.#heartbeatMs * (0.9 + 0.2 * clock.random());
    this.#arm('heartbeat', jittered, () => {
      const silence = clock.now() - this.#lastReceived;
      if (silence > 2 * this.#heartbeatMs + SILENCE_SLACK_MS) {
        this.#dead('the server fell silent');
        return;
      }
      // A heartbeat gets no answer; when nothing else has come either, ask for one.
      this.#write(silence >= this.#heartbeatMs * 0.9 ? { type: 'ping', nonce: 'hb' } : { type: 'heartbeat' });
      this.#beat();
    });
  }

  #planRenewal() {
    const left = this.#o.tokens.endsIn();
    if (left === null || !this.#o.tokens.refreshable) return;
    // setTimeout overflows beyond 2^31-1 ms; a token that long-lived is looked at again by then.
    const wait = Math.min(Math.max(left - TOKEN_RENEW_MS, left / 2, MIN_HEARTBEAT_MS), 2 ** 31 - 1);
    this.#arm('renew', wait, () => {
      const generation = this.#generation;
      this.#o.tokens.refresh().then(
        (token) => {
          if (generation === this.#generation) this.#write({ type: 'connect', token, ...this.#o.hello() });
        },
        () => {}, // The session then ends with 4401 and asks again.
      );
    });
  }

  /** The connection gives no sign of life. Its close handshake could take minutes, so don't wait for it. */
  #dead(why) {
    const wasOnline = this.online;
    this.#abandon()?.close();
    if (wasOnline) this.#o.onDown();
    this.#schedule(undefined, why);
  }

  #lost(code, reason) {
    const wasOnline = this.online;
    this.#abandon();
    if (wasOnline) this.#o.onDown();
    if (TERMINAL_CLOSES.has(code)) {
      this.#terminal(code, reason);
    } else if (code === 4401) {
      this.#o.tokens.reject();
      if (this.#o.tokens.refreshable) this.#schedule(code, reason);
      else this.#terminal(code, reason);
    } else {
      this.#schedule(code, reason);
    }
  }

  #schedule(code, reason) {
    const { clock } = this.#o;
    const drainAt = this.#drainAt;
    this.#drainAt = null;
    const delayMs = drainAt === null ? Math.max(this.#backoff.next(), this.#minDelayMs) : Math.max(0, drainAt - clock.now());
    this.#minDelayMs = 0;
    this.#arm('retry', delayMs, () => this.#dial());
    this.#setState({ state: 'waiting', delayMs, retryAt: clock.now() + delayMs, attempt: this.#backoff.attempt, code, reason });
  }

  #terminal(code, reason) {
    this.#abandon();
    this.#setState({ state: 'terminal', code, reason });
  }

  /** Lets go of the socket; whatever it still says is ignored. @returns the socket, to be closed by whoever wants to */
  #abandon() {
    const socket = this.#socket;
    this.#generation += 1;
    this.#socket = null;
    this.#clearTimers();
    return socket;
  }

  #write(frame) {
    if (!this.#socket || this.#socket.readyState !== OPEN) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  #setState(state) {
    this.state = state;
    this.#o.onState(state);
  }

  #arm(name, ms, fn) {
    this.#disarm(name);
    this.#timers[name] = this.#o.clock.setTimeout(() => {
      this.#timers[name] = null;
      fn();
    }, ms);
  }

  #disarm(name) {
    if (this.#timers[name] !== null) this.#o.clock.clearTimeout(this.#timers[name]);
    this.#timers[name] = null;
  }

  #clearTimers() {
    for (const name of Object.keys(this.#timers)) this.#disarm(name);
  }
}
