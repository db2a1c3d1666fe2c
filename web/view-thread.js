/**
 * The right pane: one conversation with its lines and the composer.
 *
 * Scrolling: at the bottom it stays at the bottom; scrolled up, nothing moves under the reader, neither when
 * older lines come in above nor when new ones come in below.
 * @module
 */

import { avatar, clockTime, dayLabel, fullFormat, h, icon, iconButton, linkify, reconcile, sameDay, shortTime } from './dom.js';
import { countScalars } from './tl-util.js';
import { KEEP_LINES } from './model.js';

/** Lines of one sender closer than this form a group. */
const GROUP_MS = 5 * 60_000;
/** Nearer to the bottom than this counts as being there. */
const BOTTOM_PX = 48;
/** Nearer to the top than this loads older lines. */
const TOP_PX = 400;
/** The counter appears when fewer characters than this are left. */
const COUNTER_FROM = 200;
const TYPING_EVERY_MS = 3_000;

export class ThreadView {
  #model;
  #actions;
  #frame = null;
  #shownId = null;
  #atBottom = true;
  #unseen = 0;
  #typingSent = 0;
  #landed = false;

  /**
   * @param {import('./model.js').Model} model
   * @param {{back: () => void, info: () => void, compose: () => void}} actions
   */
  constructor(model, actions) {
    this.#model = model;
    this.#actions = actions;
    this.#build();
    model.on('thread', (id) => id === model.openId && this.#plan());
    model.on('list', () => this.#plan());
    model.on('line', ({ conv, message }) => this.#onLine(conv, message));
    for (const type of ['focus', 'visibilitychange']) {
      (type === 'focus' ? window : document).addEventListener(type, () => this.#markRead());
    }
    new ResizeObserver(() => this.#atBottom && this.#toBottom()).observe(this.scroller);
  }

  #build() {
    const actions = this.#actions;
    this.head = h('div', { class: 'thread-head' });
    this.lines = h('div', { class: 'lines', role: 'log', aria: { live: 'off', label: 'Conversation' } });
    this.above = h('div', { class: 'above' });
    this.scroller = h('div', { class: 'scroller', tabindex: '0', role: 'region', aria: { label: 'Messages' }, on: { scroll: () => this.#onScroll() } }, this.above, this.lines);
    this.jumpCount = h('span', { class: 'badge' });
    this.jump = h('button', { type: 'button', class: 'jump', hidden: true, aria: { label: 'Go to the newest message' }, on: { click: () => this.#toBottom(true) } }, this.jumpCount, icon('down'));
    this.input = h('textarea', {
      rows: '1', placeholder: 'Message', maxlength: '20000', aria: { label: 'Message' }, autocomplete: 'off',
      on: { input: () => this.#onInput(), keydown: (e) => this.#onKey(e) },
    });
    this.counter = h('span', { class: 'counter', aria: { live: 'polite' } });
    this.sendButton = iconButton('Send', 'send', () => this.#send(), 'send');
    this.composer = h('form', { class: 'composer', on: { submit: (e) => e.preventDefault() } },
      h('div', { class: 'composer-field' }, this.input, this.counter), this.sendButton);
    this.left = h('p', { class: 'left-note', hidden: true }, 'You are no longer a member of this group.');
    this.live = h('div', { class: 'visually-hidden', aria: { live: 'polite' } });
    this.view = h('div', { class: 'thread' }, h('header', { class: 'bar' }, iconButton('Back to conversations', 'back', actions.back, 'back'), this.head),
      h('div', { class: 'stage' }, this.scroller, this.jump), this.left, this.composer, this.live);
    this.nothing = h('div', { class: 'nothing' },
      h('img', { src: 'favicon.svg', alt: '', width: '56', height: '56' }),
      h('h2', {}, 'Pick a conversation'),
      h('p', {}, 'or start a new one: with a name for a direct chat, with several for a group.'),
      h('button', { type: 'button', class: 'button', on: { click: actions.compose } }, 'New conversation'));
    this.element = h('main', { class: 'pane-thread' }, this.nothing, this.view);
  }

  /** Shows the model's open conversation. */
  show() {
    const conv = this.#model.open;
    const changed = this.#shownId !== (conv?.id ?? null);
    this.view.hidden = !conv;
    this.nothing.hidden = Boolean(conv);
    if (changed) {
      this.#shownId = conv?.id ?? null;
      this.#atBottom = true;
      this.#landed = false;
      this.#unseen = 0;
      this.lines.replaceChildren();
      this.input.value = conv?.draft ?? '';
      this.#fit();
    }
    this.render();
    if (changed && conv && matchMedia('(hover: hover)').matches) this.input.focus();
  }

  #plan() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.render();
    });
  }

  render() {
    const conv = this.#model.open;
    if (!conv || conv.id !== this.#shownId) return;
    this.#renderHead(conv);
    this.left.hidden = !conv.gone;
    this.composer.hidden = conv.gone;
    const fromBottom = this.scroller.scrollHeight - this.scroller.scrollTop;
    const topKey = this.lines.querySelector('.row')?.dataset.key;
    this.#renderAbove(conv);
    reconcile(this.lines, this.#items(conv), { key: (i) => i.key, signature: (i) => i.signature, build: (i) => this.#item(conv, i) });
    if (!this.#landed && conv.history === 'ready') this.#land(conv);
    else if (this.#atBottom) this.#toBottom();
    else if (topKey !== this.lines.querySelector('.row')?.dataset.key) this.scroller.scrollTop = this.scroller.scrollHeight - fromBottom;
    this.#renderJump();
    this.#markRead();
    this.#fillScreen(conv);
  }

  #renderHead(conv) {
    const model = this.#model;
    const name = model.name(conv);
    const typists = model.typists(conv);
    const online = conv.kind === 'direct' && model.presenceOf(conv.peer);
    let sub = conv.kind === 'direct' ? '' : `${conv.memberCount} member${conv.memberCount === 1 ? '' : 's'}`;
    if (online) sub = online.online ? 'online' : online.lastSeen ? `last seen ${shortTime(online.lastSeen)}` : '';
    if (typists.length > 0) sub = conv.kind === 'direct' ? 'typing…' : `${typists.slice(0, 3).join(', ')} ${typists.length > 1 ? 'are' : 'is'} typing…`;
    const { state } = model.client.state;
    if (state !== 'online') sub = state === 'terminal' ? 'Disconnected' : state === 'waiting' ? 'Waiting for the connection…' : 'Connecting…';
    const signature = JSON.stringify([conv.id, name, sub, conv.gone, Boolean(online?.online)]);
    if (this.head.dataset.signature === signature) return;
    this.head.dataset.signature = signature;
    const text = h('div', { class: 'bar-text' }, h('h2', { class: 'bar-title' }, name), h('div', { class: `bar-sub${typists.length ? ' is-typing' : ''}` }, sub));
    this.head.replaceChildren(avatar(name, { group: conv.kind !== 'direct', online: Boolean(online?.online) }), text,
      ...(conv.kind === 'direct' || conv.gone ? [] : [iconButton('Group members', 'people', this.#actions.info)]));
  }

  #renderAbove(conv) {
    const signature = `${conv.history}${conv.more}${conv.lines.length === 0}${this.#model.client.online}${this.#model.pending(conv).length === 0}`;
    if (this.above.dataset.signature === signature) return;
    this.above.dataset.signature = signature;
    const empty = conv.lines.length === 0 && this.#model.pending(conv).length === 0;
    const name = this.#model.name(conv);
    const content = [];
    if (conv.history === 'loading') content.push(h('span', { class: 'spinner', role: 'progressbar', aria: { label: 'Loading messages' } }));
    else if (empty) content.push(avatar(name, { group: conv.kind !== 'direct' }), h('p', {}, h('b', {}, name)), h('p', {}, 'No messages yet. Say hello.'));
    else if (!conv.more && conv.lines[0]) content.push(h('p', {}, 'The conversation starts here.'));
    this.above.className = `above${empty ? ' above-empty' : ''}`;
    this.above.replaceChildren(...content);
  }

  // ---- lines --------------------------------------------------------------------------------------------

  #items(conv) {
    const model = this.#model;
    const items = [];
    const all = [
      ...conv.lines.map((m) => ({ key: `m${m.seq}`, id: m.client_msg_id, from: m.sender_id, ts: m.ts, text: m.content, media: m.media, seq: m.seq })),
      ...model.pending(conv).map((e) => ({ key: `p${e.clientMsgId}`, id: e.clientMsgId, from: model.me, ts: e.createdAt, text: e.content, media: e.media, seq: 0, state: e.state === 'failed' ? 'failed' : 'sending', error: e.error })),
    ];
    const lastOwn = all.findLast((l) => l.from === model.me && l.seq > 0);
    let previous = null;
    let divided = false;
    all.forEach((line, i) => {
      const next = all[i + 1];
      if (!previous || !sameDay(previous.ts, line.ts)) {
        const label = dayLabel(line.ts);
        items.push({ kind: 'day', key: `d${new Date(line.ts).toDateString()}`, signature: label, label });
        previous = null;
      }
      if (!divided && conv.dividerSeq > 0 && line.seq > conv.dividerSeq && line.from !== model.me) {
        items.push({ kind: 'divider', key: 'divider', signature: '' });
        divided = true;
        previous = null;
      }
      const joins = (a, b) => a && b && a.from === b.from && b.ts - a.ts < GROUP_MS && sameDay(a.ts, b.ts);
      const item = { kind: 'line', ...line, mine: line.from === model.me, first: !joins(previous, line), last: !joins(line, next) };
      if (item.mine && !item.state) {
        const progress = model.progress(conv, line.seq);
        item.state = progress.state;
        item.readers = line === lastOwn && conv.kind !== 'direct' ? progress.readers : [];
      }
      item.signature = JSON.stringify([item.first, item.last, item.state, item.readers, item.error]);
      items.push(item);
      previous = line;
    });
    return items;
  }

  #item(conv, item) {
    if (item.kind === 'day') return h('div', { class: 'day', role: 'separator' }, h('span', {}, item.label));
    if (item.kind === 'divider') return h('div', { class: 'divider', role: 'separator' }, h('span', {}, 'New messages'));
    const showName = conv.kind !== 'direct' && !item.mine;
    const classes = `row ${item.mine ? 'mine' : 'theirs'}${item.first ? ' first' : ''}${item.last ? ' last' : ''}${item.state === 'failed' ? ' failed' : ''}${showName ? ' named' : ''}`;
    const name = h('div', { class: 'sender' }, item.from);
    if (showName) name.style.setProperty('--hue', avatar(item.from).style.getPropertyValue('--hue'));
    return h('div', { class: classes, data: { seq: String(item.seq) } },
      showName && item.last ? avatar(item.from) : null,
      h('div', { class: 'bubble' },
        h('span', { class: 'visually-hidden' }, `${item.mine ? 'You' : item.from}: `),
        showName && item.first ? name : null,
        h('span', { class: 'text' }, ...linkify(item.text), ...this.#media(item.media)),
        h('span', { class: 'meta' }, h('time', { datetime: new Date(item.ts).toISOString(), title: fullFormat.format(item.ts) }, clockTime(item.ts)), item.mine ? this.#ticks(item.state) : null)),
      item.state === 'failed' ? this.#failure(item) : null,
      item.readers?.length > 0 && item.state !== 'read' ? h('div', { class: 'readers' }, `Read by ${item.readers.slice(0, 5).join(', ')}${item.readers.length > 5 ? ` and ${item.readers.length - 5} more` : ''}`) : null);
  }

  #media(media) {
    if (!media) return [];
    const label = media.name || media.content_type || 'Attachment';
    const safe = /^https?:\/\//.test(media.url ?? '');
    return [safe ? h('a', { href: media.url, target: '_blank', rel: 'noopener noreferrer' }, label) : label];
  }

  #ticks(state) {
    const [name, label] = { sending: ['clock', 'Sending'], failed: ['alert', 'Not sent'], sent: ['check', 'Sent'], delivered: ['checks', 'Delivered'], read: ['checks', 'Read'] }[state];
    return h('span', { class: `ticks ticks-${state}`, title: label, role: 'img', aria: { label } }, icon(name));
  }

  #failure(item) {
    const { client } = this.#model;
    const button = (text, fn) => h('button', { type: 'button', class: 'link', on: { click: fn } }, text);
    return h('div', { class: 'failure' }, h('span', {}, `Not sent (${(item.error ?? 'error').replaceAll('_', ' ')})`),
      button('Retry', () => client.retry(item.id)), button('Delete', () => client.discard(item.id)));
  }

  #onLine(conv, message) {
    if (conv.id !== this.#shownId || message.sender_id === this.#model.me) return;
    this.live.textContent = `${message.sender_id}: ${message.content}`;
    if (!this.#atBottom) this.#unseen += 1;
    // Came in while nobody looked: on return the divider shows where to go on.
    if (!document.hasFocus() && conv.unread === 1) conv.dividerSeq = message.seq - 1;
  }

  // ---- scrolling and reading --------------------------------------------------------------------------------

  /** First look at a conversation: where the news begins, else at the end. */
  #land(conv) {
    this.#landed = true;
    const divider = this.lines.querySelector('.divider');
    this.#toBottom();
    if (!divider || conv.unread <= 3) return;
    const top = divider.offsetTop - 24;
    if (top < this.scroller.scrollTop) {
      this.scroller.scrollTop = top;
      this.#onScroll();
    }
  }

  #toBottom(smooth = false) {
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: smooth && !calm ? 'smooth' : 'instant' });
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const was = this.#atBottom;
    this.#atBottom = scrollHeight - scrollTop - clientHeight < BOTTOM_PX;
    const conv = this.#model.open;
    if (!conv) return;
    if (this.#atBottom) {
      this.#unseen = 0;
      if (!was && conv.lines.length > KEEP_LINES * 2) {
        this.#model.trim(conv);
        this.#plan();
      }
    }
    if (scrollTop < TOP_PX && conv.more && conv.history === 'ready') this.#model.loadOlder(conv);
    this.#renderJump();
    this.#markRead();
  }

  /** A tall window may not be filled by one page. */
  #fillScreen(conv) {
    if (conv.history === 'ready' && conv.more && this.#landed && this.scroller.scrollHeight <= this.scroller.clientHeight + TOP_PX && this.#model.client.online) this.#model.loadOlder(conv);
  }

  #renderJump() {
    this.jump.hidden = this.#atBottom;
    this.jumpCount.hidden = this.#unseen === 0;
    this.jumpCount.textContent = String(this.#unseen);
  }

  /** What is on screen in a window someone looks at has been read. */
  #markRead() {
    const conv = this.#model.open;
    if (!conv || conv.id !== this.#shownId || !this.#landed || this.element.offsetParent === null) return;
    if (document.visibilityState !== 'visible' || !document.hasFocus() || this.scroller.clientHeight === 0) return;
    const edge = this.scroller.scrollTop + this.scroller.clientHeight;
    const rows = this.lines.children;
    for (let i = rows.length - 1; i >= 0; i -= 1) {
      const seq = Number(rows[i].dataset.seq);
      if (seq > 0 && rows[i].offsetTop < edge) {
        this.#model.read(conv, seq);
        return;
      }
    }
  }

  // ---- composing ----------------------------------------------------------------------------------------

  #onInput() {
    const conv = this.#model.open;
    if (conv) conv.draft = this.input.value;
    this.#fit();
    const now = Date.now();
    if (conv && !conv.local && this.input.value.trim() && now - this.#typingSent > TYPING_EVERY_MS) {
      this.#typingSent = now;
      this.#model.client.typing(conv.id, true);
    }
    if (conv && this.input.value === '') this.#stopTyping(conv);
  }

  #stopTyping(conv) {
    if (this.#typingSent > 0) this.#model.client.typing(conv.id, false);
    this.#typingSent = 0;
  }

  #fit() {
    const limit = this.#model.client.limits.max_content_chars;
    const left = limit - countScalars(this.input.value.trim());
    this.counter.textContent = left <= COUNTER_FROM ? String(left) : '';
    this.counter.classList.toggle('is-over', left < 0);
    this.sendButton.disabled = left < 0 || this.input.value.trim() === '';
    this.input.style.height = 'auto';
    this.input.style.height = `${Math.min(this.input.scrollHeight, 180)}px`;
  }

  #onKey(event) {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#send();
    }
  }

  #send() {
    const conv = this.#model.open;
    if (!conv || this.sendButton.disabled) return;
    const text = this.input.value.trim();
    this.input.value = '';
    conv.draft = '';
    this.#stopTyping(conv);
    this.#atBottom = true;
    this.#model.send(conv, text);
    this.#fit();
    this.render();
    this.input.focus();
  }
}
