import test from 'node:test';
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { Backoff, Emitter, TokenSource, countScalars, directConversationId, isUserId, randomId, sha1, tokenClaims } from '../tl-util.js';
import { FakeClock } from './fakes.js';

test('direct conversation ids match the contract and ignore the order of users', () => {
  assert.equal(directConversationId('alice', 'bob'), 'ca3ece1f-0478-587e-ab74-78af8c811a22');
  assert.equal(directConversationId('bob', 'alice'), 'ca3ece1f-0478-587e-ab74-78af8c811a22');
});

test('sha1 agrees with the platform at every length around the block borders', () => {
  for (let length = 0; length < 200; length += 1) {
    const input = Uint8Array.from({ length }, (_, i) => (i * 37 + length) & 255);
    assert.equal(Buffer.from(sha1(input)).toString('hex'), createHash('sha1').update(input).digest('hex'), `length ${length}`);
  }
});

test('back-off doubles from 1 s to 60 s, and full jitter stays below the ceiling', () => {
  const clock = new FakeClock();
  clock.dice = 0.999999;
  const backoff = new Backoff(clock);
  const ceilings = [];
  for (let i = 0; i < 10; i += 1) {
    const ceiling = backoff.ceiling();
    ceilings.push(ceiling);
    const delay = backoff.next();
    assert.ok(delay < ceiling && delay > ceiling * 0.99, `${delay} of ${ceiling}`);
  }
  assert.deepEqual(ceilings, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000]);
  clock.dice = 0;
  assert.equal(backoff.next(), 0);
  for (let i = 0; i < 5_000; i += 1) backoff.next();
  assert.equal(backoff.ceiling(), 60_000);
  backoff.reset();
  assert.equal(backoff.ceiling(), 1_000);
});

test('ids are version 4 UUIDs and differ', () => {
  const ids = new Set(Array.from({ length: 1_000 }, randomId));
  assert.equal(ids.size, 1_000);
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
});

test('content is counted in scalars, not in UTF-16 units', () => {
  assert.equal(countScalars('aé€😀'), 4);
  assert.equal(countScalars(''), 0);
});

test('user ids', () => {
  for (const good of ['a', 'alice@example.org', 'A-1_b:c.d', 'x'.repeat(64)]) assert.equal(isUserId(good), true, good);
  for (const bad of ['', 'x'.repeat(65), 'a b', 'é', 'a/b', null]) assert.equal(isUserId(bad), false, String(bad));
});

test('a failing listener does not silence the others', (t) => {
  t.mock.method(console, 'error', () => {});
  const emitter = new Emitter();
  const heard = [];
  emitter.on('x', () => { throw new Error('boom'); });
  const off = emitter.on('x', (detail) => heard.push(detail));
  emitter.emit('x', 1);
  off();
  emitter.emit('x', 2);
  assert.deepEqual(heard, [1]);
});

const jwt = (claims) => `h.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.s`;

test('token claims are read, and garbage reads as no claims', () => {
  assert.deepEqual(tokenClaims(jwt({ sub: 'zoë', exp: 5 })), { sub: 'zoë', exp: 5 });
  assert.deepEqual(tokenClaims('garbage'), {});
});

test('a token source asks once for many askers, and again after a refusal', async () => {
  let asked = 0;
  const source = new TokenSource({ getToken: async () => `t${(asked += 1)}` }, new FakeClock());
  assert.deepEqual(await Promise.all([source.get(), source.get()]), ['t1', 't1']);
  source.reject();
  assert.equal(await source.get(), 't2');
});

test('a token source never offers a refused token again', async () => {
  const source = new TokenSource({ getToken: () => 'same' }, new FakeClock());
  await source.get();
  source.reject();
  await assert.rejects(source.get(), { code: 'unauthorized' });
});

test('an ended token is replaced before use', async () => {
  const clock = new FakeClock();
  const old = jwt({ sub: 'a', exp: clock.now() / 1000 - 1 });
  const source = new TokenSource({ token: old, getToken: () => 'new' }, clock);
  assert.equal(await source.get(), 'new');
});
