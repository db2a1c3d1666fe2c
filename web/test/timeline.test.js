import test from 'node:test';
import assert from 'node:assert/strict';
import { HeldBudget, MAX_HELD, Timeline } from '../tl-timeline.js';
import { range, message, CONV } from './fakes.js';

const seqs = (messages) => messages.map((m) => m.seq);
const anchored = (seq, budget) => {
  const timeline = new Timeline(CONV, budget);
  timeline.anchor(seq);
  return timeline;
};

test('hands out in order whatever the arrival order', () => {
  const timeline = anchored(0);
  assert.deepEqual(seqs(timeline.offer(message(3))), []);
  assert.deepEqual(seqs(timeline.offer(message(2))), []);
  assert.deepEqual(seqs(timeline.offer(message(1))), [1, 2, 3]);
  assert.equal(timeline.heldCount, 0);
});

test('every permutation of five messages with repeats comes out once and in order', () => {
  const permute = (list) => (list.length < 2 ? [list] : list.flatMap((x, i) => permute([...list.slice(0, i), ...list.slice(i + 1)]).map((p) => [x, ...p])));
  for (const order of permute([1, 2, 3, 4, 5])) {
    const timeline = anchored(0);
    const out = [...order, ...order].flatMap((seq) => timeline.offer(message(seq)));
    assert.deepEqual(seqs(out), [1, 2, 3, 4, 5], `arrival order ${order}`);
  }
});

test('an already delivered seq is dropped', () => {
  const timeline = anchored(10);
  assert.deepEqual(timeline.offer(message(10)), []);
  assert.deepEqual(seqs(timeline.offer(message(11))), [11]);
  assert.deepEqual(timeline.offer(message(11)), []);
});

test('missing() names exactly the lowest gap, then the next one', () => {
  const timeline = anchored(4);
  timeline.offer(message(8));
  timeline.offer(message(12));
  assert.deepEqual(timeline.missing(), { after: 4, before: 8 });
  assert.deepEqual(seqs(timeline.applyPage(range(5, 7), { before: 8, complete: true })), [5, 6, 7, 8]);
  assert.deepEqual(timeline.missing(), { after: 8, before: 12 });
  assert.deepEqual(seqs(timeline.applyPage(range(9, 11), { before: 12, complete: true })), [9, 10, 11, 12]);
  assert.equal(timeline.missing(), null);
});

test('a head beyond what we have is a gap too', () => {
  const timeline = anchored(4);
  timeline.noteHead(9);
  assert.deepEqual(timeline.missing(), { after: 4, before: 10 });
});

test('a complete page skips what is not visible to us, an incomplete one does not', () => {
  const timeline = anchored(4);
  timeline.offer(message(10));
  assert.deepEqual(seqs(timeline.applyPage(range(5, 6), { before: 10, complete: false })), [5, 6]);
  assert.deepEqual(timeline.missing(), { after: 6, before: 10 });
  assert.deepEqual(seqs(timeline.applyPage([], { before: 10, complete: true })), [10]);
});

test('a held message that an older page lacks is not lost', () => {
  const timeline = anchored(0);
  timeline.offer(message(3));
  assert.deepEqual(seqs(timeline.applyPage([message(1), message(2), message(4)], { complete: false })), [1, 2, 3, 4]);
});

test('the buffer is bounded and prefers the lowest seqs; the rest is still known to be missing', () => {
  const timeline = anchored(0);
  for (let seq = MAX_HELD + 50; seq >= 2; seq -= 1) timeline.offer(message(seq));
  assert.equal(timeline.heldCount, MAX_HELD);
  const out = timeline.offer(message(1));
  assert.deepEqual(seqs(out), Array.from({ length: MAX_HELD + 1 }, (_, i) => i + 1));
  assert.deepEqual(timeline.missing(), { after: MAX_HELD + 1, before: MAX_HELD + 51 });
});

test('timelines share one budget and give it back', () => {
  const budget = new HeldBudget(3);
  const [a, b] = [anchored(0, budget), anchored(0, budget)];
  for (const seq of [2, 3, 4]) a.offer(message(seq));
  b.offer(message(2));
  assert.equal(b.heldCount, 0);
  assert.equal(budget.used, 3);
  a.clear();
  assert.equal(budget.used, 0);
  b.offer(message(2));
  assert.equal(b.heldCount, 1);
});

test('anchoring at the newest page keeps what came live meanwhile', () => {
  const timeline = new Timeline(CONV);
  timeline.offer(message(31));
  timeline.offer(message(5));
  assert.deepEqual(seqs(timeline.anchorAtPage(range(11, 30), 30)), [...range(11, 30).map((m) => m.seq), 31]);
  assert.equal(timeline.heldCount, 0);
});

test('nonsense seqs are ignored', () => {
  const timeline = anchored(0);
  for (const seq of [0, -1, 1.5, NaN, '2', undefined]) assert.deepEqual(timeline.offer(message(seq)), []);
  assert.equal(timeline.heldCount, 0);
});
