import test from 'node:test';
import assert from 'node:assert/strict';
import { connected, CONV, finishSyncs, handshake, message, range, settle, untilRedial } from './fakes.js';

const page = (request, messages, extra = {}) => ({
  type: 'page', id: request.id, conversation_id: CONV, messages, head_seq: messages.at(-1)?.seq ?? 0, more: false, ...extra,
});
const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);

test('live messages come in order, once', async () => {
  const { server, log } = await connected({ position: 4 });
  for (const seq of [5, 5, 6, 4, 6, 7]) server.socket.push(message(seq));
  assert.deepEqual(log.seqs, [5, 6, 7]);
  assert.deepEqual(server.socket.take('fetch'), []);
});

test('a gap makes exactly one fetch of exactly the missing range', async () => {
  const { server, log } = await connected({ position: 4 });
  for (const seq of [8, 9, 10]) server.socket.push(message(seq));
  await settle();
  const fetches = server.socket.take('fetch');
  assert.deepEqual(fetches.map(({ id, ...f }) => f), [{ type: 'fetch', conversation_id: CONV, after: 4, before: 8, limit: 3 }]);
  assert.deepEqual(log.seqs, []);
  server.socket.push(page(fetches[0], range(5, 7), { head_seq: 10 }));
  await settle();
  assert.deepEqual(log.seqs, [5, 6, 7, 8, 9, 10]);
  assert.deepEqual(server.socket.take('fetch'), []);
});

test('a wide gap is fetched in bounded pages', async () => {
  const { server, log } = await connected({ position: 0 });
  server.socket.push(message(451));
  await settle();
  const asked = [];
  for (let [f] = server.socket.take('fetch'); f; [f] = server.socket.take('fetch')) {
    asked.push([f.after, f.before, f.limit]);
    server.socket.push(page(f, range(f.after + 1, f.before - 1), { head_seq: 451 }));
    await settle();
  }
  assert.deepEqual(asked, [[0, 201, 200], [200, 401, 200], [400, 451, 50]]);
  assert.deepEqual(log.seqs, numbers(1, 451));
});

test('a page cut short by the server is continued where it ended', async () => {
  const { server, log } = await connected({ position: 0 });
  server.socket.push(message(10));
  await settle();
  const [first] = server.socket.take('fetch');
  server.socket.push(page(first, range(1, 4), { more: true, head_seq: 10 }));
  await settle();
  const [second] = server.socket.take('fetch');
  assert.deepEqual([second.after, second.before], [4, 10]);
  server.socket.push(page(second, range(5, 9), { head_seq: 10 }));
  await settle();
  assert.deepEqual(log.seqs, numbers(1, 10));
});

test('what is not visible to us does not hold up what follows', async () => {
  const { server, log } = await connected({ position: 4 });
  server.socket.push(message(8));
  await settle();
  server.socket.push(page(server.socket.take('fetch')[0], [], { head_seq: 8 }));
  await settle();
  assert.deepEqual(log.seqs, [8]);
});

test('a failed fetch is tried again until it works', async () => {
  const { clock, server, log } = await connected({ position: 4 });
  server.socket.push(message(6));
  await settle();
  const [first] = server.socket.take('fetch');
  server.socket.push({ type: 'error', id: first.id, conversation_id: CONV, code: 'overloaded', message: '', retry_after_ms: 2_000 });
  await clock.advance(1_999);
  assert.deepEqual(server.socket.take('fetch'), []);
  await clock.advance(1);
  const [second] = server.socket.take('fetch');
  server.socket.push(page(second, [message(5)], { head_seq: 6 }));
  await settle();
  assert.deepEqual(log.seqs, [5, 6]);
});

test('a page that leads nowhere cannot make the client spin', async () => {
  const { clock, server } = await connected({ position: 4 });
  server.socket.push(message(8));
  await settle();
  server.socket.push(page(server.socket.take('fetch')[0], [], { more: true, head_seq: 8 }));
  await settle();
  assert.deepEqual(server.socket.take('fetch'), []);
  await clock.advance(1_000);
  assert.equal(server.socket.take('fetch').length, 1);
});

test('losing access ends the fetching and is reported', async () => {
  const { client, clock, server, log } = await connected({ position: 4 });
  server.socket.push(message(8));
  await settle();
  const [fetch] = server.socket.take('fetch');
  server.socket.push({ type: 'error', id: fetch.id, conversation_id: CONV, code: 'not_a_member', message: '' });
  await clock.advance(60_000);
  assert.deepEqual(server.socket.take('fetch'), []);
  assert.deepEqual(log.errors.map((e) => [e.code, e.conversationId]), [['not_a_member', CONV]]);
  assert.equal(client.position(CONV), null);
});

test('conversation{head_seq} beyond our position fetches, at our position does not', async () => {
  const { server, log } = await connected({ position: 4 });
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', head_seq: 4 });
  await settle();
  assert.deepEqual(server.socket.take('fetch'), []);
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', head_seq: 6 });
  await settle();
  const [fetch] = server.socket.take('fetch');
  assert.deepEqual([fetch.after, fetch.before], [4, 7]);
  server.socket.push(page(fetch, range(5, 6)));
  await settle();
  assert.deepEqual(log.seqs, [5, 6]);
});

test('an unknown conversation starts at its newest page, and live news waits for it', async () => {
  const { server, log } = await connected();
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', head_seq: 40 });
  server.socket.push(message(41));
  await settle();
  const [fetch] = server.socket.take('fetch');
  assert.deepEqual([fetch.after, fetch.before, fetch.limit], [undefined, undefined, 20]);
  server.socket.push(page(fetch, range(21, 40)));
  await settle();
  assert.deepEqual(log.seqs, numbers(21, 41));
});

test('a brand-new conversation needs no fetch at all', async () => {
  const { server, log } = await connected();
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'direct', head_seq: 0 });
  server.socket.push(message(1));
  server.socket.push(message(2));
  await settle();
  assert.deepEqual(log.seqs, [1, 2]);
  assert.deepEqual(server.socket.take('fetch'), []);
});

test('being removed ends the following', async () => {
  const { client, clock, server } = await connected({ position: 4 });
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', members_removed: ['alice'], head_seq: 9 });
  await settle();
  assert.deepEqual(server.socket.take('fetch'), []);
  assert.equal(client.position(CONV), null);
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  assert.deepEqual(socket.take('sync').flatMap((s) => s.conversations), []);
});

test('a reconnect syncs from the last seq without a gap, not from the highest seen', async () => {
  const { clock, server, log } = await connected({ position: 4 });
  server.socket.push(message(5));
  server.socket.push(message(8));
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const [sync] = socket.take('sync');
  assert.deepEqual(sync.conversations, [{ conversation_id: CONV, after_seq: 5 }]);
  socket.push(message(9));
  await settle();
  assert.deepEqual(socket.take('fetch'), [], 'the sync answers the gap, no fetch beside it');
  socket.push(page(sync, range(6, 8), { head_seq: 9 }));
  socket.push({ type: 'synced', id: sync.id, conversations: 1 });
  await settle();
  assert.deepEqual(log.seqs, [5, 6, 7, 8, 9]);
});

test('a sync with more is paged to its end, however long we were away', async () => {
  const { clock, server, log } = await connected({ position: 0 });
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const [sync] = socket.take('sync');
  socket.push(page(sync, range(1, 50), { more: true, head_seq: 1_000 }));
  socket.push({ type: 'synced', id: sync.id, conversations: 1 });
  await settle();
  for (let [f] = socket.take('fetch'); f; [f] = socket.take('fetch')) {
    assert.ok(f.limit <= 200);
    assert.deepEqual(socket.sent.filter((s) => s.type === 'fetch'), [], 'one page at a time');
    socket.push(page(f, range(f.after + 1, f.before - 1), { head_seq: 1_000 }));
    await settle();
  }
  assert.deepEqual(log.seqs, numbers(1, 1_000));
});

test('pages and synced without an id are understood', async () => {
  const { clock, server, log } = await connected({ position: 4 });
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  socket.take('sync');
  socket.push(page({}, range(5, 6)));
  socket.push({ type: 'synced', conversations: 1 });
  await settle();
  assert.deepEqual(log.seqs, [5, 6]);
  assert.equal(socket.take('sync')[0].conversations.length, 0, 'the sync counts as done');
});

test('many conversations are synced in frames of at most 500', async () => {
  const { client, clock, server } = await connected();
  for (let i = 0; i < 1_201; i += 1) client.follow(`c${i}`, 1);
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const sizes = [];
  for (let [sync] = socket.take('sync'); sync; [sync] = socket.take('sync')) {
    sizes.push(sync.conversations.length);
    assert.ok(JSON.stringify(sync).length < 65_536, 'fits a frame');
    socket.push({ type: 'synced', id: sync.id, conversations: 0 });
    await settle();
  }
  assert.deepEqual(sizes, [500, 500, 201, 0]);
});

test('a conversation we lost while away does not spoil the sync of the others', async () => {
  const { client, clock, server, log } = await connected({ position: 4 });
  client.follow('gone', 3);
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const [sync] = socket.take('sync');
  socket.push({ type: 'error', id: sync.id, conversation_id: 'gone', code: 'not_a_member', message: '' });
  socket.push(page(sync, [message(5)]));
  socket.push({ type: 'synced', id: sync.id, conversations: 1 });
  await settle();
  assert.deepEqual(log.seqs, [5]);
  assert.equal(client.position('gone'), null);
  assert.deepEqual(log.errors.map((e) => e.conversationId), ['gone']);
});

test('a refused sync is tried again from the then position', async () => {
  const { clock, server } = await connected({ position: 4 });
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  const [first] = socket.take('sync');
  socket.push(page(first, range(5, 6)));
  socket.push({ type: 'error', id: first.id, code: 'overloaded', message: '', retry_after_ms: 100 });
  await clock.advance(1_000);
  assert.deepEqual(socket.take('sync')[0].conversations, [{ conversation_id: CONV, after_seq: 6 }]);
});

test('news of unknown conversations is found by the closing empty sync', async () => {
  const { clock, server, log } = await connected({ position: 4 });
  server.socket.drop();
  await clock.advance(1_000);
  const socket = await handshake(server, { answerSyncs: false });
  socket.push({ type: 'synced', id: socket.take('sync')[0].id, conversations: 0 });
  await settle();
  const [discovery] = socket.take('sync');
  assert.deepEqual([discovery.conversations, discovery.limit], [[], 1]);
  const news = message(1, { conversation_id: 'new' });
  socket.push({ type: 'page', id: discovery.id, conversation_id: 'new', messages: [news], head_seq: 3, more: true });
  await finishSyncs(socket);
  const [fetch] = socket.take('fetch');
  assert.equal(fetch.conversation_id, 'new');
  const messages = [1, 2, 3].map((seq) => message(seq, { conversation_id: 'new' }));
  socket.push({ type: 'page', id: fetch.id, conversation_id: 'new', messages, head_seq: 3, more: false });
  await settle();
  assert.deepEqual(log.seqs, [1, 2, 3]);
});

test('with maxCatchUp a long absence skips to the newest page and says so', async () => {
  const { server, log } = await connected({ position: 4, maxCatchUp: 100 });
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', head_seq: 5_000 });
  await settle();
  assert.deepEqual(log.resets, [{ conversationId: CONV }]);
  const [fetch] = server.socket.take('fetch');
  assert.equal(fetch.before, undefined);
  server.socket.push(page(fetch, range(4_981, 5_000)));
  await settle();
  assert.deepEqual(log.seqs, numbers(4_981, 5_000));
});

test('an ack above a gap waits for the messages before it', async () => {
  const { client, server, log } = await connected({ position: 4 });
  client.send({ conversationId: CONV, content: 'mine' });
  const [sent] = server.socket.take('send_message');
  server.socket.push({ type: 'ack', client_msg_id: sent.client_msg_id, conversation_id: CONV, message_id: '7', seq: 7, ts: 1, status: 'sent' });
  await settle();
  assert.equal(log.acks.length, 1);
  assert.deepEqual(log.seqs, []);
  const [fetch] = server.socket.take('fetch');
  assert.deepEqual([fetch.after, fetch.before], [4, 7]);
  server.socket.push(page(fetch, range(5, 6), { head_seq: 7 }));
  await settle();
  assert.deepEqual(log.seqs, [5, 6, 7]);
});

test('history pages neither move the position nor count as messages', async () => {
  const { client, server, log } = await connected({ position: 40 });
  const history = client.fetchBefore(CONV, 21, 20);
  const [fetch] = server.socket.take('fetch');
  assert.deepEqual([fetch.before, fetch.limit], [21, 20]);
  server.socket.push(page(fetch, range(1, 20), { head_seq: 40 }));
  assert.equal((await history).messages.length, 20);
  assert.deepEqual(log.seqs, []);
  assert.equal(client.position(CONV), 40);
});

test('a random storm of losses, repeats and reorderings loses and doubles nothing', async () => {
  let state = 12_345;
  const random = () => ((state = (state * 1_103_515_245 + 12_345) & 0x7fffffff) / 0x7fffffff);
  const { clock, server, log } = await connected({ position: 0 });
  const total = 400;
  const answer = async () => {
    const { socket } = server;
    for (const f of socket.take('fetch')) {
      const upTo = Math.min(f.before - 1, f.after + f.limit);
      socket.push(page(f, range(f.after + 1, upTo), { more: upTo < f.before - 1, head_seq: total }));
    }
    for (const f of socket.take('sync')) {
      const [known] = f.conversations;
      const upTo = Math.min(total, (known?.after_seq ?? 0) + 10);
      if (known) socket.push(page(f, range(known.after_seq + 1, upTo), { more: upTo < total, head_seq: upTo }));
      socket.push({ type: 'synced', id: f.id, conversations: f.conversations.length });
    }
    await settle();
  };
  for (let seq = 1; seq <= total; seq += 1) {
    if (random() < 0.7) server.socket.push(message(seq));
    if (random() < 0.3) server.socket.push(message(Math.max(1, seq - Math.floor(random() * 5))));
    if (random() < 0.3) await answer();
    if (random() < 0.03) {
      server.socket.drop();
      await untilRedial({ clock, server });
      await handshake(server, { answerSyncs: false });
    }
  }
  server.socket.push({ type: 'conversation', conversation_id: CONV, kind: 'group', head_seq: total });
  for (let i = 0; i < 100 && log.seqs.length < total; i += 1) {
    await settle();
    await answer();
  }
  assert.deepEqual(log.seqs, numbers(1, total));
});
