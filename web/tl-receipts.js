/**
 * Receipts on their way out: watermarks that only rise, sent at most once per rise and in small batches.
 *
 * Receipts get no answer, so those sent shortly before a connection was lost are sent again on the next.
 * @module
 */

/** Time in which further marks of the same conversation join one frame. */
export const FLUSH_MS = 120;
/** Conversations whose watermarks are remembered; beyond, the one marked longest ago is forgotten. */
export const MAX_MARKS = 5_000;
/** Sent this long before a loss: may have been lost with it. */
const DOUBTFUL_MS = 65_000;

export class Receipts {
  #marks = new Map();
  #dirty = new Set();
  #timer = null;
  #online = false;
  #clock;
  #send;

  /** @param {{clock: import('./tl-util.js').Clock, send: (frame: object) => boolean}} options */
  constructor({ clock, send }) {
    this.#clock = clock;
    this.#send = send;
  }

  /** @param {string} id @param {number} seq @param {'delivered' | 'read'} status */
  mark(id, seq, status) {
    if (!Number.isSafeInteger(seq) || seq < 1) return;
    const mark = this.#marks.get(id) ?? { delivered: 0, read: 0, sentDelivered: 0, sentRead: 0, sentAt: 0 };
    if (seq <= mark[status]) return;
    mark[status] = seq;
    mark.delivered = Math.max(mark.delivered, mark.read);
    this.#marks.delete(id);
    this.#marks.set(id, mark);
    if (this.#marks.size > MAX_MARKS) this.#marks.delete(this.#marks.keys().next().value);
    this.#dirty.add(id);
    this.#plan();
  }

  up() {
    this.#online = true;
    this.#plan();
  }

  down() {
    this.#online = false;
    if (this.#timer !== null) this.#clock.clearTimeout(this.#timer);
    this.#timer = null;
    const doubtful = this.#clock.now() - DOUBTFUL_MS;
    for (const [id, mark] of this.#marks) {
      if (mark.sentAt <= doubtful) continue;
      mark.sentDelivered = 0;
      mark.sentRead = 0;
      this.#dirty.add(id);
    }
  }

  #plan() {
    if (!this.#online || this.#timer !== null || this.#dirty.size === 0) return;
    this.#timer = this.#clock.setTimeout(() => {
      this.#timer = null;
      this.#flush();
    }, FLUSH_MS);
  }

  #flush() {
    for (const id of this.#dirty) {
      const mark = this.#marks.get(id);
      if (mark && !this.#flushOne(id, mark)) return;
      this.#dirty.delete(id);
    }
  }

  #flushOne(id, mark) {
    const { read, delivered } = mark;
    // Read covers delivered, so one frame is enough unless delivered is further on.
    if (read > mark.sentRead && !this.#write(id, read, 'read', mark)) return false;
    if (delivered > Math.max(read, mark.sentDelivered) && !this.#write(id, delivered, 'delivered', mark)) return false;
    mark.sentRead = read;
    mark.sentDelivered = delivered;
    mark.sentAt = this.#clock.now();
    return true;
  }

  #write(id, seq, status) {
    return this.#send({ type: 'receipt', conversation_id: id, seq, status });
  }
}
