import test from 'node:test';
import assert from 'node:assert/strict';
import { MAX_OUTBOX } from '../tl-outbox.js';
import { connected, CONV, handshake, message, settle, setup } from './fakes.js';

const ack = (frame, seq, extra = {}) => ({
  type: 'ack', id: frame.id, client_msg_id: frame.client_msg_id, conversation_id: frame.conversation_id ?? CONV,
  message_id: `${seq}`, seq, ts: 5, status: 'sent', ...extra,
});
const refuse = (frame, code, extra = {}) => ({
  type: 'error', id: frame.id, client_msg_id: frame.client_msg_id, conversation_id: frame.conversation_id, code, message: code, ...extra,
});
const contents = (frames) => frames.map((f) => f.content);

test('an ack settles the promise, and the own message comes once, in its place', async () => {
  const { client, server, log } = await connected({ position: 0 });
  const { clientMsgId, promise } = client.send({ conversationId: CONV, content: 'hi' });
  const [frame] = server.socket.take('send_message');
  assert.equal(frame.client_msg_id, clientMsgId);
  server.socket.push(ack(frame, 1));
  assert.deepEqual(await promise, { clientMsgId, conversationId: CONV, messageId: '1', seq: 1, ts: 5, duplicate: false });
  server.socket.push(message(1, { sender_id: 'alice', client_msg_id: clientMsgId }));
  assert.deepEqual(log.seqs, [1]);
  assert.equal(log.messages[0].content, 'hi');
  assert.equal(log.messages[0].sender_id, 'alice');
  assert.deepEqual(client.pending(), []);
});

test('one conversation is sent one by one in order, others do not wait for it', async () => {
  const { client, server } = await connected();
  client.send({ conversationId: CONV, content: 'a1' });
  client.send({ conversationId: CONV, content: 'a2' });
  client.send({ conversationId: 'other', content: 'b1' });
  const first = server.socket.take('send_message');
  assert.deepEqual(contents(first), ['a1', 'b1']);
  server.socket.push(ack(first[0], 1));
  assert.deepEqual(contents(server.socket.take('send_message')), ['a2']);
});

test('the outbox survives a reconnect with the same ids in the same order', async () => {
  const { client, clock, server } = await connected();
  const ids = ['one', 'two', 'three'].map((content) => client.send({ conversationId: CONV, content }).clientMsgId);
  assert.equal(server.socket.take('send_message').length, 1);
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server);
  const seen = [];
  for (let seq = 1; seq <= 3; seq += 1) {
    const [frame] = socket.take('send_message');
    seen.push(frame.client_msg_id);
    socket.push(ack(frame, seq, { duplicate: seq === 1 }));
  }
  assert.deepEqual(seen, ids);
  assert.deepEqual(client.pending(), []);
});

test('the outbox survives a reload: another client with the same storage sends the same ids', async () => {
  const before = setup();
  const ids = ['one', 'two'].map((content) => before.client.send({ conversationId: CONV, content }).clientMsgId);
  const after = await connected({ storage: before.storage });
  assert.deepEqual(after.client.pending().map((e) => e.clientMsgId), ids);
  assert.deepEqual(after.client.pending().map((e) => e.content), ['one', 'two']);
  // `connected` swallowed the first transmission: lose the connection and look at the second.
  after.server.socket.drop();
  await after.clock.advance(1_000);
  const socket = await handshake(after.server);
  const [frame] = socket.take('send_message');
  assert.equal(frame.client_msg_id, ids[0]);
  socket.push(ack(frame, 1));
  socket.push(ack(socket.take('send_message')[0], 2));
  assert.equal(after.storage.map.size, 0, 'an empty outbox leaves nothing behind');
});

test('damaged storage reads as empty', () => {
  const key = 'trunkline.outbox:alice:d1';
  for (const damaged of ['{', '7', '[{"x":1}, null]']) {
    const world = setup();
    world.storage.setItem(key, damaged);
    assert.deepEqual(setup({ storage: world.storage }).client.pending(), [], damaged);
  }
});

test('a storage that is full is reported, and sending goes on', async () => {
  const storage = { getItem: () => null, setItem: () => { throw new Error('quota'); }, removeItem: () => {} };
  const { client, server, log } = await connected({ storage });
  client.send({ conversationId: CONV, content: 'x' });
  assert.deepEqual(log.errors.map((e) => e.code), ['storage']);
  assert.equal(server.socket.take('send_message').length, 1);
});

test('rate_limited holds everything back for retry_after_ms, then goes on in order with the same id', async () => {
  const { client, clock, server } = await connected();
  client.send({ conversationId: CONV, content: 'a1' });
  client.send({ conversationId: CONV, content: 'a2' });
  const [first] = server.socket.take('send_message');
  server.socket.push(refuse(first, 'rate_limited', { retry_after_ms: 1_500 }));
  client.send({ conversationId: 'other', content: 'b1' });
  await clock.advance(1_499);
  assert.deepEqual(server.socket.take('send_message'), []);
  await clock.advance(1);
  const again = server.socket.take('send_message');
  assert.deepEqual(contents(again), ['a1', 'b1']);
  assert.equal(again[0].client_msg_id, first.client_msg_id);
  server.socket.push(ack(again[0], 1));
  assert.deepEqual(contents(server.socket.take('send_message')), ['a2']);
});

test('overloaded holds back its conversation only', async () => {
  const { client, clock, server } = await connected();
  client.send({ conversationId: CONV, content: 'a1' });
  client.send({ conversationId: CONV, content: 'a2' });
  server.socket.push(refuse(server.socket.take('send_message')[0], 'overloaded', { retry_after_ms: 1_000 }));
  client.send({ conversationId: 'other', content: 'b1' });
  assert.deepEqual(contents(server.socket.take('send_message')), ['b1']);
  await clock.advance(1_000);
  assert.deepEqual(contents(server.socket.take('send_message')), ['a1']);
});

test('unavailable backs off longer each time and never lets a later message overtake', async () => {
  const { client, clock, server } = await connected();
  clock.dice = 0.999;
  client.send({ conversationId: CONV, content: 'a1' });
  client.send({ conversationId: CONV, content: 'a2' });
  for (const wait of [999, 1_998, 3_996]) {
    server.socket.push(refuse(server.socket.take('send_message')[0], 'unavailable'));
    await clock.advance(wait - 1);
    assert.deepEqual(server.socket.take('send_message'), []);
    await clock.advance(1);
    assert.deepEqual(contents(server.socket.sent.filter((f) => f.type === 'send_message')), ['a1']);
  }
});

test('an unavailable that names nothing is about everything under way', async () => {
  const { client, clock, server } = await connected();
  client.send({ conversationId: CONV, content: 'a' });
  client.send({ conversationId: 'other', content: 'b' });
  const history = client.fetchBefore(CONV, 9);
  const first = server.socket.take('send_message');
  server.socket.push({ type: 'error', code: 'unavailable', message: 'the link broke' });
  await assert.rejects(history, { code: 'unavailable' });
  await clock.advance(1_000);
  const second = server.socket.take('send_message');
  assert.deepEqual(second.map((f) => f.client_msg_id), first.map((f) => f.client_msg_id));
});

test('a feature the server lacks is asked for once and troubles nobody', async () => {
  const { client, server, log } = await connected();
  client.typing(CONV, true);
  const [typing] = server.socket.take('typing');
  server.socket.push({ type: 'error', id: typing.id, code: 'not_implemented', message: '' });
  client.typing(CONV, true);
  client.watch(['bob']);
  assert.deepEqual(server.socket.take('typing'), []);
  assert.equal(server.socket.take('watch').length, 1);
  assert.deepEqual(log.errors, []);
});

test('no ack in time: sent again with the same id', async () => {
  const { client, clock, server } = await connected();
  client.send({ conversationId: CONV, content: 'x' });
  const [first] = server.socket.take('send_message');
  await clock.advance(21_000);
  const [second] = server.socket.take('send_message');
  assert.equal(second.client_msg_id, first.client_msg_id);
});

test('a refusal fails the message, rejects the promise, and lets the next one go', async () => {
  const { client, server, log } = await connected();
  const failed = client.send({ conversationId: CONV, content: 'bad' });
  client.send({ conversationId: CONV, content: 'good' });
  server.socket.push(refuse(server.socket.take('send_message')[0], 'not_a_member'));
  await assert.rejects(failed.promise, { code: 'not_a_member', clientMsgId: failed.clientMsgId });
  assert.deepEqual(client.pending(CONV).map((e) => [e.content, e.state, e.error]), [['bad', 'failed', 'not_a_member'], ['good', 'queued', null]]);
  assert.deepEqual(contents(server.socket.take('send_message')), ['good']);
  assert.equal(log.outbox.filter((c) => c.change === 'failed').length, 1);
});

test('failed messages survive a reload as failed and are not sent by themselves', async () => {
  const { client, server, storage } = await connected();
  client.send({ conversationId: CONV, content: 'bad' });
  server.socket.push(refuse(server.socket.take('send_message')[0], 'forbidden'));
  const after = await connected({ storage });
  assert.deepEqual(after.client.pending().map((e) => e.state), ['failed']);
  assert.deepEqual(after.server.socket.take('send_message'), []);
  const { clientMsgId } = after.client.pending()[0];
  const retried = after.client.retry(clientMsgId);
  const [frame] = after.server.socket.take('send_message');
  assert.equal(frame.client_msg_id, clientMsgId);
  after.server.socket.push(ack(frame, 1));
  assert.equal((await retried).seq, 1);
});

test('after an idempotency conflict a retry takes a new id', async () => {
  const { client, server } = await connected();
  const { clientMsgId } = client.send({ conversationId: CONV, content: 'x' });
  server.socket.push(refuse(server.socket.take('send_message')[0], 'idempotency_conflict'));
  client.retry(clientMsgId);
  assert.notEqual(server.socket.take('send_message')[0].client_msg_id, clientMsgId);
});

test('discarding takes a message out for good', async () => {
  const { client, server, storage } = setup();
  const { clientMsgId, promise } = client.send({ conversationId: CONV, content: 'x' });
  client.discard(clientMsgId);
  await assert.rejects(promise, { code: 'discarded' });
  client.connect();
  const socket = await handshake(server);
  assert.deepEqual(socket.take('send_message'), []);
  assert.equal(storage.map.size, 0);
});

test('the message itself settles a send whose ack was lost', async () => {
  const { client, clock, server, log } = await connected({ position: 0 });
  const { clientMsgId, promise } = client.send({ conversationId: CONV, content: 'x' });
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const [sync] = socket.take('sync');
  socket.push({ type: 'page', id: sync.id, conversation_id: CONV, messages: [message(1, { sender_id: 'alice', client_msg_id: clientMsgId })], head_seq: 1, more: false });
  assert.equal((await promise).seq, 1);
  socket.push(ack(socket.take('send_message')[0], 1, { duplicate: true }));
  assert.deepEqual(log.seqs, [1]);
  assert.equal(log.acks.length, 1);
});

test('a message of another own device with a foreign id leaves the outbox alone', async () => {
  const { client, server, log } = await connected({ position: 0 });
  client.send({ conversationId: CONV, content: 'mine' });
  server.socket.push(message(1, { sender_id: 'alice', client_msg_id: 'from-the-phone', content: 'theirs' }));
  assert.deepEqual(log.seqs, [1]);
  assert.equal(client.pending().length, 1);
});

test('what cannot be sent is refused at once and never queued', async () => {
  const { client } = setup();
  await assert.rejects(client.send({ conversationId: CONV, content: '' }).promise, { code: 'bad_request' });
  await assert.rejects(client.send({ content: 'x' }).promise, { code: 'bad_request' });
  await assert.rejects(client.send({ to: 'bob', content: '😀'.repeat(1_001) }).promise, { code: 'too_large' });
  assert.deepEqual(client.pending(), []);
  client.send({ to: 'bob', content: '😀'.repeat(1_000) });
  assert.equal(client.pending().length, 1);
});

test('a message to a user is queued under the direct conversation', () => {
  const { client } = setup();
  client.send({ to: 'bob', content: 'x' });
  assert.equal(client.pending('ca3ece1f-0478-587e-ab74-78af8c811a22').length, 1);
});

test('the outbox is bounded', async () => {
  const { client } = setup({ storage: null });
  for (let i = 0; i < MAX_OUTBOX; i += 1) client.send({ conversationId: CONV, content: `${i}` });
  await assert.rejects(client.send({ conversationId: CONV, content: 'one more' }).promise, { code: 'outbox_full' });
  assert.equal(client.pending().length, MAX_OUTBOX);
});

test('a stuffed socket stops the outbox until it has drained', async () => {
  const { client, clock, server } = await connected();
  server.socket.bufferedAmount = 2 << 20;
  client.send({ conversationId: CONV, content: 'x' });
  await settle();
  assert.deepEqual(server.socket.take('send_message'), []);
  server.socket.bufferedAmount = 0;
  await clock.advance(100);
  assert.equal(server.socket.take('send_message').length, 1);
});
