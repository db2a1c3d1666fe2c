/**
 * One conversation's position in its sequence: reorder buffer, duplicate filter, gap finder.
 *
 * Invariants: `offer`, `applyPage` and `advance` return messages in strictly rising seq order and never the same seq
 * twice; a seq is skipped only when the server, asked for exactly that range, said there is nothing
 * visible in it (a member who was away between two memberships). The buffer never holds more than
 * `MAX_HELD` messages, and all timelines of a client together never more than `HeldBudget.max`;
 * what doesn't fit is forgotten and fetched later, since `head` remembers that it exists.
 * @module
 */

/** Messages one conversation may hold back while an earlier one is missing. */
export const MAX_HELD = 256;
/** Messages all conversations of a client may hold back together. */
export const MAX_HELD_TOTAL = 4_096;
/** Largest page the server gives. */
export const MAX_PAGE = 200;

/** Shared count of held messages. */
export class HeldBudget {
  constructor(max = MAX_HELD_TOTAL) {
    this.max = max;
    this.used = 0;
  }
}

/** @typedef {import('./trunkline.js').Message} Message */

export class Timeline {
  #held = new Map();
  #budget;

  /** @param {string} conversationId @param {HeldBudget} [budget] */
  constructor(conversationId, budget = new HeldBudget()) {
    this.conversationId = conversationId;
    this.#budget = budget;
    /** Next seq to hand out; null until the timeline is anchored. */
    this.next = null;
    /** Highest seq known to exist. */
    this.head = 0;
    /** A request for missing messages is under way. */
    this.busy = false;
  }

  get anchored() {
    return this.next !== null;
  }

  /** Last seq handed out without a gap; 0 when none. */
  get last() {
    return this.next === null ? 0 : this.next - 1;
  }

  get heldCount() {
    return this.#held.size;
  }

  /** Start handing out after `seq`. @param {number} seq @returns {Message[]} */
  anchor(seq) {
    if (this.next === null) this.next = seq + 1;
    return this.#drain();
  }

  /** Forget the position; the next newest page sets it anew. */
  reset() {
    this.next = null;
    this.clear();
  }

  /** Lets go of everything held (the conversation is no longer followed). */
  clear() {
    this.#budget.used -= this.#held.size;
    this.#held.clear();
  }

  /** @param {number} head */
  noteHead(head) {
    if (Number.isSafeInteger(head) && head > this.head) this.head = head;
  }

  /**
   * A single message arrived.
   * @param {Message} message
   * @returns {Message[]} what can be handed out now
   */
  offer(message) {
    const { seq } = message;
    if (!Number.isSafeInteger(seq) || seq < 1) return [];
    this.noteHead(seq);
    if (this.next !== null && seq < this.next) return [];
    if (seq === this.next) {
      this.next += 1;
      return [message, ...this.#drain()];
    }
    this.#hold(message);
    return [];
  }

  /**
   * The range to ask for, both bounds exclusive, or null when nothing is missing.
   * @returns {{after: number, before: number} | null}
   */
  missing() {
    if (this.next === null) return null;
    let end = this.head + 1;
    for (const seq of this.#held.keys()) if (seq < end) end = seq;
    return end > this.next ? { after: this.next - 1, before: end } : null;
  }

  /**
   * A page that starts right after `after`. It is the truth about its range: what it leaves out
   * between two of its messages, or, when it is complete, up to `before`, isn't visible to us.
   * @param {Message[]} messages ascending
   * @param {{before?: number, complete: boolean}} range `complete`: no more in this range
   * @returns {Message[]}
   */
  applyPage(messages, { before, complete }) {
    const out = [];
    for (const message of messages) {
      const { seq } = message;
      if (!Number.isSafeInteger(seq) || (before !== undefined && seq >= before)) continue;
      this.noteHead(seq);
      // A held message below this one may be newer than the page's snapshot: it comes first.
      out.push(...this.#takeBelow(seq));
      if (seq < this.next) continue;
      out.push(message);
      this.#drop(seq);
      this.next = seq + 1;
    }
    if (complete && before !== undefined && before > this.next) {
      out.push(...this.#takeBelow(before));
      this.next = Math.max(this.next, before);
    }
    return [...out, ...this.#drain()];
  }

  /** The newest page of a conversation whose position was unknown. @param {Message[]} messages @param {number} headSeq @returns {Message[]} */
  anchorAtPage(messages, headSeq) {
    if (this.next === null) {
      const first = messages.length > 0 ? messages[0].seq : headSeq + 1;
      this.next = first;
      for (const seq of [...this.#held.keys()]) if (seq < first) this.#drop(seq);
    }
    this.noteHead(headSeq);
    return this.applyPage(messages, { complete: false });
  }

  #hold(message) {
    if (this.#held.has(message.seq)) return;
    if (this.#held.size >= MAX_HELD || this.#budget.used >= this.#budget.max) {
      // Full: keep the lowest seqs, they are the ones that free the buffer.
      const highest = Math.max(...this.#held.keys());
      if (this.#held.size === 0 || message.seq > highest) return;
      this.#drop(highest);
    }
    this.#held.set(message.seq, message);
    this.#budget.used += 1;
  }

  #drop(seq) {
    if (this.#held.delete(seq)) this.#budget.used -= 1;
  }

  #takeBelow(limit) {
    const seqs = [...this.#held.keys()].filter((seq) => seq >= this.next && seq < limit).sort((a, b) => a - b);
    const out = [];
    for (const seq of seqs) {
      out.push(this.#held.get(seq));
      this.#drop(seq);
      this.next = seq + 1;
    }
    return out;
  }

  #drain() {
    const out = [];
    while (this.next !== null && this.#held.has(this.next)) {
      out.push(this.#held.get(this.next));
      this.#drop(this.next);
      this.next += 1;
    }
    return out;
  }
}
