import test from 'node:test';
import assert from 'node:assert/strict';
import { Emitter, directConversationId } from '../tl-util.js';
import { Model } from '../model.js';

const C = 'c-1';
const line = (seq, sender = 'bob') => ({ conversation_id: C, seq, sender_id: sender, client_msg_id: `x${seq}`, content: `m${seq}`, ts: seq * 1_000 });

/** A client that does what the test says and notes what the model asks of it. */
class FakeClient extends Emitter {
  online = true;
  items = [];
  history = { messages: [], head_seq: 0, more: false };
  watermarks = [];
  marks = [];
  fetches = [];
  followed = [];
  positions = new Map();

  pending = () => [];
  connect = () => {};
  watch = () => {};
  forget = (id) => this.positions.delete(id);
  position = (id) => this.positions.get(id) ?? null;
  follow = (id, seq) => {
    this.followed.push([id, seq]);
    if (!this.positions.has(id)) this.positions.set(id, seq);
  };
  markDelivered = (id, seq) => this.marks.push(['delivered', seq]);
  markRead = (id, seq) => this.marks.push(['read', seq]);
  listConversations = async () => ({ items: this.items });
  receipts = async () => ({ watermarks: this.watermarks });
  fetchBefore = async (id, before, limit) => {
    this.fetches.push([before, limit]);
    return this.history;
  };
  say = (message) => {
    this.positions.set(message.conversation_id, message.seq);
    this.emit('message', { message, source: 'live' });
  };
}

const item = (extra = {}) => ({
  conversation_id: C, kind: 'direct', title: '', peer: 'bob', role: 'member', version: 1, head_seq: 5, member_count: 2, created_at: 1,
  delivered_seq: 5, read_seq: 5, unread: 0, last_message: line(5), ...extra,
});

async function world(extra) {
  const client = new FakeClient();
  client.items = [item(extra)];
  const model = new Model(client, 'alice');
  await model.refresh();
  return { client, model, conv: model.conversations.get(C) };
}

const settle = () => new Promise((resolve) => setImmediate(resolve));

test('the list follows each conversation from its head and tells what was delivered', async () => {
  const { client, conv } = await world({ delivered_seq: 3, unread: 2, read_seq: 3 });
  assert.deepEqual(client.followed, [[C, 5]]);
  assert.deepEqual(client.marks, [['delivered', 5]]);
  assert.equal(conv.unread, 2);
});

test('a message that the list already counted is not counted again', async () => {
  const { client, model, conv } = await world();
  client.items = [item({ head_seq: 7, read_seq: 5, unread: 2, last_message: line(7) })];
  await model.refresh();
  for (const seq of [6, 7, 8]) client.say(line(seq));
  assert.equal(conv.unread, 3);
});

test('a list older than what came live takes nothing back', async () => {
  const { client, model, conv } = await world();
  client.say(line(6));
  client.items = [item()];
  await model.refresh();
  assert.equal(conv.unread, 1);
  assert.equal(conv.last.seq, 6);
});

test('own messages never count as unread', async () => {
  const { client, conv } = await world();
  client.say(line(6, 'alice'));
  assert.equal(conv.unread, 0);
});

test('reading on another device clears the badge', async () => {
  const { client, model, conv } = await world();
  for (const seq of [6, 7]) client.say(line(seq));
  client.emit('receipt', { conversation_id: C, user_id: 'alice', seq: 7, status: 'read' });
  assert.equal(conv.unread, 0);
  assert.equal(model.totalUnread, 0);
});

test('reading here is sent once and survives a list that does not know of it', async () => {
  const { client, model, conv } = await world({ unread: 2, read_seq: 3 });
  model.read(conv, 5);
  model.read(conv, 5);
  model.read(conv, 4);
  assert.deepEqual(client.marks, [['read', 5]]);
  await model.refresh();
  assert.equal(conv.unread, 0);
});

test('history reaches up to the position, and live lines join it without a gap or a double', async () => {
  const { client, model, conv } = await world();
  client.history = { messages: [3, 4, 5].map((seq) => line(seq)), head_seq: 5, more: true };
  model.select(C);
  client.say(line(6));
  await settle();
  assert.deepEqual(client.fetches, [[6, 40]]);
  assert.deepEqual(conv.lines.map((m) => m.seq), [3, 4, 5, 6]);
  client.history = { messages: [1, 2, 3].map((seq) => line(seq)), head_seq: 6, more: false };
  await model.loadOlder(conv);
  assert.deepEqual(client.fetches[1], [3, 40]);
  assert.deepEqual(conv.lines.map((m) => m.seq), [1, 2, 3, 4, 5, 6]);
  assert.equal(conv.more, false);
});

test('live lines of a conversation nobody opened are not collected', async () => {
  const { client, conv } = await world();
  for (let seq = 6; seq < 1_000; seq += 1) client.say(line(seq));
  assert.equal(conv.lines.length, 0);
  assert.equal(conv.last.seq, 999);
});

test('leaving a conversation lets go of all but its newest lines', async () => {
  const { client, model, conv } = await world();
  client.history = { messages: [4, 5].map((seq) => line(seq)), head_seq: 5, more: false };
  model.select(C);
  await settle();
  for (let seq = 6; seq < 1_000; seq += 1) client.say(line(seq));
  model.select(null);
  assert.equal(conv.lines.length, 100);
  assert.equal(conv.lines.at(-1).seq, 999);
  assert.equal(conv.more, true);
});

test('ticks: sent, delivered, read; in a group only when everybody has it', async () => {
  const { client, model, conv } = await world();
  const state = (seq) => model.progress(conv, seq).state;
  assert.equal(state(5), 'sent');
  client.emit('receipt', { conversation_id: C, user_id: 'bob', seq: 5, status: 'delivered' });
  assert.equal(state(5), 'delivered');
  client.emit('receipt', { conversation_id: C, user_id: 'bob', seq: 5, status: 'read' });
  assert.equal(state(5), 'read');
  assert.equal(state(6), 'sent');
  Object.assign(conv, { kind: 'group', memberCount: 3 });
  assert.equal(state(5), 'sent');
  assert.deepEqual(model.progress(conv, 5).readers, ['bob']);
  client.emit('receipt', { conversation_id: C, seq: 5, status: 'delivered', count: 2, sample: ['bob'] });
  assert.equal(state(5), 'delivered');
});

test('an older receipt takes nothing back', async () => {
  const { client, model, conv } = await world();
  client.emit('receipt', { conversation_id: C, user_id: 'bob', seq: 5, status: 'read' });
  client.emit('receipt', { conversation_id: C, user_id: 'bob', seq: 3, status: 'delivered' });
  assert.equal(model.progress(conv, 5).state, 'read');
});

test('being removed takes the conversation out of the list once it is not open', async () => {
  const { client, model } = await world({ kind: 'group', title: 'g' });
  model.select(C);
  client.emit('conversation', { conversation_id: C, kind: 'group', members_removed: ['alice'], head_seq: 5 });
  assert.equal(model.open.gone, true);
  model.select(null);
  assert.deepEqual(model.sorted(), []);
});

test('a direct chat can be begun offline under its final id', async () => {
  const { client, model } = await world();
  client.createConversation = async () => {
    throw Object.assign(new Error('no network'), { code: 'offline' });
  };
  const id = await model.startDirect('zoe');
  assert.equal(id, directConversationId('alice', 'zoe'));
  assert.equal(model.name(model.conversations.get(id)), 'zoe');
});
