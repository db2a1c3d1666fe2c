import test from 'node:test';
import assert from 'node:assert/strict';
import { connected, CONV, handshake } from './fakes.js';

const sent = (socket) => socket.take('receipt').map((r) => [r.status, r.seq]);

test('marks are merged into one frame and only ever rise', async () => {
  const { client, clock, server } = await connected();
  for (const seq of [1, 3, 2]) client.markDelivered(CONV, seq);
  await clock.advance(200);
  assert.deepEqual(sent(server.socket), [['delivered', 3]]);
  client.markDelivered(CONV, 3);
  client.markDelivered(CONV, 1);
  await clock.advance(200);
  assert.deepEqual(sent(server.socket), []);
});

test('read covers delivered', async () => {
  const { client, clock, server } = await connected();
  client.markDelivered(CONV, 5);
  client.markRead(CONV, 5);
  await clock.advance(200);
  assert.deepEqual(sent(server.socket), [['read', 5]]);
  client.markDelivered(CONV, 5);
  client.markDelivered(CONV, 6);
  await clock.advance(200);
  assert.deepEqual(sent(server.socket), [['delivered', 6]]);
});

test('marks made offline are sent on the next connection, recent ones again', async () => {
  const { client, clock, server } = await connected();
  client.markDelivered(CONV, 5);
  await clock.advance(200);
  server.socket.take();
  server.socket.drop();
  client.markRead('other', 2);
  await clock.advance(1_000);
  const socket = await handshake(server);
  await clock.advance(200);
  const receipts = socket.take('receipt').map((r) => [r.conversation_id, r.status, r.seq]);
  assert.deepEqual(receipts.sort(), [[CONV, 'delivered', 5], ['other', 'read', 2]].sort());
});
