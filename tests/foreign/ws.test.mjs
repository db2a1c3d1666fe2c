// npm's `ws`, and our JavaScript client on top of it, against a real server.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { require, startServer } from './server.mjs';

const WebSocket = require('ws');

let server;
before(async () => { server = await startServer(); });
after(async () => { assert.equal(await server.stop(), 0); });

function open(user, device) {
  const socket = new WebSocket(server.wsUrl, ['trunkline.json.v1'], {
    headers: { Authorization: `Bearer ${server.mint(user)}` },
  });
  const frames = [];
  const waiting = [];
  socket.on('message', (data) => {
    const frame = JSON.parse(data);
    const at = waiting.findIndex((w) => w.fits(frame));
    if (at >= 0) waiting.splice(at, 1)[0].resolve(frame);
    else frames.push(frame);
  });
  const expect = (type) => new Promise((resolve, reject) => {
    const at = frames.findIndex((f) => f.type === type);
    if (at >= 0) return resolve(frames.splice(at, 1)[0]);
    const timer = setTimeout(() => reject(new Error(`no ${type}; have ${JSON.stringify(frames)}`)), 10000);
    waiting.push({ fits: (f) => f.type === type, resolve: (f) => { clearTimeout(timer); resolve(f); } });
  });
  const say = (frame) => socket.send(JSON.stringify(frame));
  socket.on('open', () => say({ type: 'connect', device_id: device }));
  return { socket, expect, say };
}

test('ws chats with ws', async () => {
  const alice = open('ws-alice', 'd');
  const bob = open('ws-bob', 'd');
  await alice.expect('connected');
  await bob.expect('connected');
  alice.say({ type: 'send_message', to: 'ws-bob', client_msg_id: 'm1', content: 'hello' });
  const ack = await alice.expect('ack');
  const message = await bob.expect('message');
  assert.equal(message.message_id, ack.message_id);
  assert.equal(message.seq, 1);
  const pong = new Promise((resolve) => alice.socket.once('pong', resolve));
  alice.socket.ping('there?');
  assert.equal(String(await pong), 'there?');
  for (const { socket } of [alice, bob]) {
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.close(1000);
    assert.equal(await closed, 1000);
  }
});

test('a client that offers compression gets a plain connection that works', async () => {
  const carol = open('ws-carol', 'd');
  await carol.expect('connected');
  assert.equal(carol.socket.extensions, '');
  carol.socket.terminate();
});

test('the JavaScript client survives a restart without losing or doubling a line', async () => {
  const { TrunklineClient } = await import('../../web/trunkline.js');
  const own = await startServer();
  try {
    const make = (user) => new TrunklineClient({
      url: own.wsUrl, baseUrl: own.httpUrl, token: own.mint(user), deviceId: 'd', WebSocket,
    });
    const alice = make('js-alice');
    const bob = make('js-bob');
    const seen = [];
    bob.on('message', ({ message }) => seen.push([message.seq, message.content]));
    await Promise.all([alice.connect(), bob.connect()]);
    const acks = [];
    for (let n = 0; n < 10; n += 1) acks.push(alice.send({ to: 'js-bob', content: `line ${n}` }).promise);
    await Promise.all(acks);
    await own.kill();
    const later = [];
    for (let n = 10; n < 20; n += 1) later.push(alice.send({ to: 'js-bob', content: `line ${n}` }).promise);
    await own.restart();
    await Promise.all(later);
    const deadline = Date.now() + 20000;
    while (seen.length < 20 && Date.now() < deadline) await new Promise((r) => setTimeout(r, 20));
    assert.deepEqual(seen, Array.from({ length: 20 }, (_, n) => [n + 1, `line ${n}`]));
    alice.close();
    bob.close();
  } finally {
    await own.stop();
  }
});
