import test from 'node:test';
import assert from 'node:assert/strict';
import { setup } from './fakes.js';

/** A `fetch` that answers from a list and remembers what it was asked. */
function fakeFetch(...answers) {
  const asked = [];
  const fetch = async (url, init) => {
    asked.push({ url, ...init });
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return new Response(answer.body === undefined ? null : JSON.stringify(answer.body), { status: answer.status ?? 200, headers: answer.headers });
  };
  return { fetch, asked };
}

const world = (...answers) => {
  const { fetch, asked } = fakeFetch(...answers);
  return { ...setup({ fetch, baseUrl: 'http://core' }), asked };
};

test('calls name the resource, carry the token and escape what goes into the path', async () => {
  const { client, asked } = world({ body: { items: [] } }, { status: 204 }, { status: 201, body: { conversation_id: 'c' } });
  await client.members('c/1', { limit: 5 });
  assert.equal(asked[0].url, 'http://core/v1/conversations/c%2F1/members?limit=5');
  assert.equal(asked[0].headers.Authorization, 'Bearer t0');
  assert.equal(await client.addMember('c', 'a@b', 'admin'), null);
  assert.deepEqual([asked[1].method, asked[1].url, asked[1].body], ['PUT', 'http://core/v1/conversations/c/members/a%40b', '{"role":"admin"}']);
  assert.deepEqual(await client.createConversation({ kind: 'direct', members: ['bob'] }), { conversation_id: 'c' });
});

test('problems become errors with the code of the server', async () => {
  const { client } = world({ status: 409, body: { code: 'group_full', detail: 'at most 500' } }, { status: 503, body: { code: 'overloaded' }, headers: { 'Retry-After': '3' } });
  await assert.rejects(client.addMember('c', 'x'), { code: 'group_full', message: 'at most 500', status: 409 });
  await assert.rejects(client.listConversations(), { code: 'overloaded', retryAfterMs: 3_000 });
});

test('an unreachable server reads as offline', async () => {
  const { client } = world(new TypeError('fetch failed'));
  await assert.rejects(client.listConversations(), { code: 'offline' });
});

test('a refused token is renewed once', async () => {
  const tokens = ['t1', 't2'];
  const { fetch, asked } = fakeFetch({ status: 401 }, { body: { items: [1] } }, { status: 401 });
  const { client } = setup({ fetch, baseUrl: 'http://core', token: undefined, getToken: () => tokens.shift() });
  assert.deepEqual(await client.listConversations(), { items: [1] });
  assert.deepEqual(asked.map((a) => a.headers.Authorization), ['Bearer t1', 'Bearer t2']);
});

test('history is read over REST while the socket is down', async () => {
  const { client, asked } = world({ body: { messages: [{ seq: 4 }], head_seq: 9, more: true } });
  assert.deepEqual(await client.fetchBefore('c', 5, 1), { messages: [{ seq: 4 }], head_seq: 9, more: true });
  assert.equal(asked[0].url, 'http://core/v1/conversations/c/messages?before=5&limit=1');
});

test('without a baseUrl the helpers say so', async () => {
  const { client } = setup();
  await assert.rejects(client.listConversations(), { code: 'offline' });
});
