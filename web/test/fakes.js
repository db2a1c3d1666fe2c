// Stand-ins for the world outside the client: a clock that moves only on demand, a socket whose other end is the test.

import { TrunklineClient } from '../trunkline.js';

export class FakeClock {
  #now = 1_000_000;
  #timers = new Map();
  #ids = 0;
  /** What `random()` answers. */
  dice = 0.5;

  now = () => this.#now;
  random = () => this.dice;

  setTimeout = (fn, ms) => {
    this.#ids += 1;
    this.#timers.set(this.#ids, { at: this.#now + Math.max(0, ms), fn });
    return this.#ids;
  };

  clearTimeout = (id) => {
    this.#timers.delete(id);
  };

  get pending() {
    return this.#timers.size;
  }

  /** Moves time, running what falls due in order; promises settle in between. */
  async advance(ms) {
    await settle();
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, t]) => t.at <= end).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
      if (!due) break;
      const [id, timer] = due;
      this.#timers.delete(id);
      this.#now = Math.max(this.#now, timer.at);
      timer.fn();
      await settle();
    }
    this.#now = end;
    await settle();
  }
}

/** Lets everything that is already resolved run. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

export class MemoryStorage {
  map = new Map();
  getItem = (key) => this.map.get(key) ?? null;
  setItem = (key, value) => void this.map.set(key, String(value));
  removeItem = (key) => void this.map.delete(key);
}

/** A server end: `sockets` lists every connection made, the last one is `socket`. */
export function fakeServer() {
  const server = { sockets: [], get socket() { return server.sockets.at(-1); } };
  server.WebSocket = class {
    readyState = 0;
    bufferedAmount = 0;
    sent = [];

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      server.sockets.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.closedBy = code ?? 'client';
      this.readyState = 3;
    }

    // What the other end does:
    open() {
      this.readyState = 1;
      this.onopen?.({});
    }

    push(frame) {
      this.onmessage?.({ data: JSON.stringify(frame) });
    }

    drop(code = 1006, reason = '') {
      this.readyState = 3;
      this.onclose?.({ code, reason });
    }

    /** Takes what the client has sent since the last take. */
    take(type) {
      const taken = this.sent.filter((f) => type === undefined || f.type === type);
      this.sent = this.sent.filter((f) => !taken.includes(f));
      return taken;
    }
  };
  return server;
}

export const CONV = '00000000-0000-7000-8000-000000000001';

export const message = (seq, extra = {}) => ({
  type: 'message', conversation_id: CONV, message_id: String(seq), seq, sender_id: 'bob',
  client_msg_id: `b${seq}`, content: `m${seq}`, content_type: 'text/plain', ts: seq, ...extra,
});

export const range = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => message(from + i));

/** A client with everything faked, and a log of what it told the application. */
export function setup(options = {}) {
  const clock = options.clock ?? new FakeClock();
  const server = options.server ?? fakeServer();
  const storage = options.storage ?? new MemoryStorage();
  const client = new TrunklineClient({
    url: 'ws://test/v1/connect', token: 't0', userId: 'alice', deviceId: 'd1', WebSocket: server.WebSocket, clock, storage, ...options,
  });
  const log = { seqs: [], messages: [], acks: [], states: [], errors: [], outbox: [], resets: [] };
  client.on('message', ({ message: m }) => {
    log.seqs.push(m.seq);
    log.messages.push(m);
  });
  client.on('ack', (ack) => log.acks.push(ack));
  client.on('state', (state) => log.states.push(state));
  client.on('error', (error) => log.errors.push(error));
  client.on('outbox', (change) => log.outbox.push(change));
  client.on('reset', (reset) => log.resets.push(reset));
  return { client, clock, server, storage, log };
}

/** Takes the newest socket through the handshake. */
export async function handshake(server, { heartbeat_ms = 30_000, answerSyncs = true } = {}) {
  await settle();
  const { socket } = server;
  socket.open();
  socket.push({ type: 'connected', session_id: 's', user_id: 'alice', device_id: 'd1', heartbeat_ms, limits: { max_content_chars: 1000 } });
  await settle();
  if (answerSyncs) await finishSyncs(socket);
  return socket;
}

/** Moves time until the client dials again, however long its back-off is by now. */
export async function untilRedial({ clock, server }) {
  const before = server.sockets.length;
  for (let waited = 0; server.sockets.length === before && waited < 61_000; waited += 100) await clock.advance(100);
}

/** Answers every sync with "nothing new" until no more come. */
export async function finishSyncs(socket) {
  for (let syncs = socket.take('sync'); syncs.length > 0; syncs = socket.take('sync')) {
    for (const { id } of syncs) socket.push({ type: 'synced', id, conversations: 0 });
    await settle();
  }
}

/** A connected client that follows `CONV` from after `position`. */
export async function connected(options = {}) {
  const world = setup(options);
  world.client.connect();
  await handshake(world.server);
  if (options.position !== undefined) world.client.follow(CONV, options.position);
  world.server.socket.take();
  return world;
}
