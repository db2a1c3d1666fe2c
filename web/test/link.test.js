import test from 'node:test';
import assert from 'node:assert/strict';
import { connected, handshake, settle, setup, finishSyncs } from './fakes.js';

const lastState = (log) => log.states.at(-1);

test('connects with the JSON subprotocol and says who it is', async () => {
  const { client, server } = setup();
  client.connect();
  const socket = await handshake(server, { answerSyncs: false });
  assert.deepEqual(socket.protocols, ['trunkline.json.v1']);
  assert.equal(socket.url, 'ws://test/v1/connect');
  const [hello] = socket.take('connect');
  assert.equal(hello.token, 't0');
  assert.equal(hello.device_id, 'd1');
  assert.equal(client.online, true);
});

test('reconnects with growing, jittered waits that never exceed a minute', async () => {
  const { client, clock, server, log } = setup();
  clock.dice = 0.999;
  client.connect();
  for (let i = 0; i < 9; i += 1) {
    await settle();
    server.socket.drop();
    const { state, delayMs } = lastState(log);
    assert.equal(state, 'waiting');
    const ceiling = Math.min(60_000, 1_000 * 2 ** i);
    assert.ok(delayMs >= ceiling * 0.99 && delayMs <= ceiling, `try ${i}: ${delayMs}`);
    const before = server.sockets.length;
    await clock.advance(delayMs - 1);
    assert.equal(server.sockets.length, before, 'not before the wait is over');
    await clock.advance(1);
    assert.equal(server.sockets.length, before + 1);
  }
});

test('a connection that lasts resets the back-off, one that does not leaves it', async () => {
  const { client, clock, server, log } = setup();
  clock.dice = 0.999;
  client.connect();
  for (const expected of [999, 1_998, 3_996]) {
    await handshake(server);
    server.socket.drop();
    assert.equal(lastState(log).delayMs, expected);
    await clock.advance(expected);
  }
  await handshake(server);
  await clock.advance(6_000);
  server.socket.drop();
  assert.equal(lastState(log).delayMs, 999);
});

for (const code of [1002, 1003, 1007, 1009, 4400, 4409]) {
  test(`close ${code} is terminal`, async () => {
    const { clock, server, log } = await connected();
    server.socket.drop(code);
    assert.deepEqual([lastState(log).state, lastState(log).code], ['terminal', code]);
    await clock.advance(600_000);
    assert.equal(server.sockets.length, 1);
    assert.equal(clock.pending, 0);
  });
}

for (const code of [1000, 1001, 1005, 1006, 1011, 4408, 4410, 4411, 4429]) {
  test(`close ${code} is followed by a reconnect`, async () => {
    const { clock, server } = await connected();
    server.socket.drop(code);
    await clock.advance(1_000);
    assert.equal(server.sockets.length, 2);
  });
}

test('4401 without a way to a new token is terminal until one is set', async () => {
  const { client, clock, server, log } = await connected();
  server.socket.drop(4401);
  assert.equal(lastState(log).state, 'terminal');
  await clock.advance(600_000);
  assert.equal(server.sockets.length, 1);
  client.setToken('t1');
  client.connect();
  const socket = await handshake(server, { answerSyncs: false });
  assert.equal(socket.take('connect')[0].token, 't1');
});

test('4401 asks getToken and comes back with the new token', async () => {
  const tokens = ['t1', 't2'];
  const asked = [];
  const { clock, server } = await connected({ token: undefined, getToken: async (why) => (asked.push(why.refresh), tokens.shift()) });
  server.socket.drop(4401);
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  assert.equal(socket.take('connect')[0].token, 't2');
  assert.deepEqual(asked, [false, true]);
});

test('4401 is terminal when getToken has only the refused token', async () => {
  const { clock, server, log } = await connected({ token: undefined, getToken: () => 'same' });
  server.socket.drop(4401);
  await clock.advance(60_000);
  assert.equal(lastState(log).state, 'terminal');
  assert.equal(server.sockets.length, 1);
});

test('a getToken that fails for lack of network is tried again', async () => {
  let fail = true;
  const getToken = () => (fail ? Promise.reject(new TypeError('network')) : 't1');
  const { client, clock, server, log } = setup({ token: undefined, getToken });
  client.connect();
  await settle();
  assert.equal(lastState(log).state, 'waiting');
  fail = false;
  await clock.advance(1_000);
  assert.equal(server.sockets.length, 1);
});

test('reconnect.after_ms rules when the server closes before', async () => {
  const { clock, server, log } = await connected();
  server.socket.push({ type: 'reconnect', after_ms: 7_000, reason: 'draining' });
  await clock.advance(2_000);
  assert.equal(lastState(log).state, 'online', 'the session is good until it closes');
  server.socket.drop(1001);
  assert.equal(lastState(log).delayMs, 5_000);
  await clock.advance(4_999);
  assert.equal(server.sockets.length, 1);
  await clock.advance(1);
  assert.equal(server.sockets.length, 2);
});

test('reconnect.after_ms makes the client leave on its own when the server stays', async () => {
  const { clock, server } = await connected();
  const old = server.socket;
  old.push({ type: 'reconnect', after_ms: 3_000, reason: 'draining' });
  await clock.advance(3_000);
  assert.equal(old.closedBy, 1000);
  assert.equal(server.sockets.length, 2);
});

test('sends a heartbeat each heartbeat_ms, give or take a tenth', async () => {
  const { clock, server } = await connected();
  clock.dice = 0.5;
  server.socket.push({ type: 'presence', users: [] });
  let heartbeats = 0;
  for (let i = 0; i < 30; i += 1) {
    await clock.advance(10_000);
    server.socket.push({ type: 'presence', users: [] });
    heartbeats += server.socket.take('heartbeat').length;
  }
  assert.ok(heartbeats >= 9 && heartbeats <= 11, `${heartbeats} in 300 s`);
  assert.equal(server.sockets.length, 1);
});

test('a silent server is asked by ping, then given up after 2 x heartbeat + 5 s', async () => {
  const { clock, server, log } = await connected();
  const old = server.socket;
  await clock.advance(33_000);
  assert.equal(old.take('ping').length, 1);
  await clock.advance(28_000);
  assert.equal(lastState(log).state, 'online', 'not before 65 s');
  await clock.advance(40_000);
  assert.ok(old.closedBy, 'the dead socket is closed');
  assert.ok(server.sockets.length >= 2, 'and a new one opened');
});

test('pongs keep a quiet connection alive', async () => {
  const { clock, server } = await connected();
  for (let i = 0; i < 20; i += 1) {
    await clock.advance(30_000);
    for (const ping of server.socket.take('ping')) server.socket.push({ type: 'pong', nonce: ping.nonce });
  }
  assert.equal(server.sockets.length, 1);
});

test('an unanswered probe ends a dead connection at once', async () => {
  const { client, clock, server, log } = await connected();
  client.probe();
  await clock.advance(4_999);
  assert.equal(lastState(log).state, 'online');
  await clock.advance(1);
  assert.equal(lastState(log).state, 'waiting');
  await clock.advance(1_000);
  await handshake(server);
  client.probe();
  server.socket.push({ type: 'pong', nonce: 'probe' });
  await clock.advance(10_000);
  assert.equal(lastState(log).state, 'online');
});

test('no `connected` in time counts as a failed try', async () => {
  const { client, clock, server, log } = setup();
  client.connect();
  await settle();
  server.socket.open();
  await clock.advance(15_000);
  assert.equal(lastState(log).state, 'waiting');
});

test('close() stays closed, and events of the old socket are ignored', async () => {
  const { client, clock, server, log } = await connected();
  const old = server.socket;
  client.close();
  assert.equal(old.closedBy, 1000);
  old.drop(1006);
  old.push({ type: 'error', code: 'internal' });
  await clock.advance(600_000);
  assert.equal(lastState(log).state, 'closed');
  assert.equal(server.sockets.length, 1);
  assert.deepEqual(log.errors, []);
  client.connect();
  await handshake(server);
  assert.equal(client.online, true);
});

test('a token is renewed on the live session before it ends', async () => {
  const jwt = (exp, n) => `h.${Buffer.from(JSON.stringify({ sub: 'alice', exp, n })).toString('base64url')}.s`;
  let n = 0;
  let now = null;
  const getToken = () => jwt((now() + 600_000) / 1000, (n += 1));
  const world = setup({ token: undefined, getToken });
  now = world.clock.now;
  world.client.connect();
  const socket = await handshake(world.server);
  socket.take();
  for (let i = 0; i < 54; i += 1) {
    await world.clock.advance(10_000);
    socket.push({ type: 'presence', users: [] });
  }
  await world.clock.advance(1_000);
  assert.equal(socket.take('connect').length, 1);
  assert.equal(n, 2);
  socket.push({ type: 'connected', user_id: 'alice', heartbeat_ms: 30_000 });
  await settle();
  assert.equal(world.log.states.filter((s) => s.state === 'online').length, 1, 'no second start of the session');
  assert.deepEqual(socket.take('sync'), []);
});

test('garbage from the server is reported and survived', async () => {
  const { client, server, log } = await connected();
  server.socket.onmessage({ data: '{nonsense' });
  server.socket.onmessage({ data: 'null' });
  server.socket.push({ type: 'something_new', x: 1 });
  assert.equal(client.online, true);
  assert.deepEqual(log.errors.map((e) => e.code), ['bad_frame']);
});

test('after a reconnect the order is connect, outbox, sync', async () => {
  const { client, clock, server } = await connected({ position: 4 });
  server.socket.drop();
  client.send({ conversationId: 'c-1', content: 'while away' });
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  assert.deepEqual(socket.sent.map((f) => f.type), ['connect', 'send_message', 'sync']);
  await finishSyncs(socket);
});
