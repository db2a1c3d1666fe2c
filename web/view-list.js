/**
 * The left pane: who I am, how the connection is, the conversations.
 * @module
 */

import { avatar, fullFormat, h, icon, iconButton, reconcile, shortTime } from './dom.js';

export class ListView {
  #model;
  #actions;
  #filter = '';
  #frame = null;
  #focusId = null;
  #tick = null;

  /**
   * @param {import('./model.js').Model} model
   * @param {{open: (id: string) => void, compose: () => void, signOut: () => void, reconnect: () => void, takeOver: () => void}} actions
   */
  constructor(model, actions) {
    this.#model = model;
    this.#actions = actions;
    this.status = h('div', { class: 'status', role: 'status' });
    this.list = h('div', {
      class: 'conversations', role: 'listbox', aria: { label: 'Conversations' },
      on: { keydown: (e) => this.#onKey(e), click: (e) => this.#onClick(e) },
    });
    this.empty = h('div', { class: 'list-empty' });
    this.search = h('input', {
      type: 'search', placeholder: 'Search', autocomplete: 'off', spellcheck: 'false', aria: { label: 'Search conversations' },
      on: { input: () => this.#onFilter(), keydown: (e) => this.#onSearchKey(e) },
    });
    const { me } = model;
    this.element = h('aside', { class: 'pane-list', aria: { label: 'Conversations' } },
      h('header', { class: 'bar' },
        avatar(me),
        h('div', { class: 'bar-text' }, h('h1', { class: 'bar-title' }, me), this.status),
        iconButton('New conversation', 'compose', actions.compose),
        iconButton('Switch user', 'exit', actions.signOut)),
      h('label', { class: 'search' }, icon('search'), this.search),
      this.list, this.empty);
    model.on('list', () => this.#plan());
    model.on('thread', () => this.#plan());
    model.client.on('state', () => this.renderStatus());
    this.renderStatus();
    this.render();
  }

  /** Puts the keyboard into the list. */
  focus() {
    const target = this.#rowOf(this.#model.openId) ?? this.#rowOf(this.#focusId) ?? this.list.firstElementChild;
    (target ?? this.search).focus();
  }

  #plan() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.render();
    });
  }

  render() {
    const model = this.#model;
    const all = model.sorted();
    const shown = all.filter((c) => model.name(c).toLowerCase().includes(this.#filter));
    const focused = document.activeElement?.closest?.('.conversation')?.dataset.key;
    const anchor = shown.find((c) => c.id === this.#focusId) ?? shown.find((c) => c.id === model.openId) ?? shown[0];
    reconcile(this.list, shown, {
      key: (c) => c.id,
      signature: (c) => JSON.stringify([this.#describe(c), c.id === anchor?.id]),
      build: (c) => this.#row(c, c.id === anchor?.id),
    });
    if (focused && document.activeElement?.closest?.('.conversation')?.dataset.key !== focused) this.#rowOf(focused)?.focus();
    this.list.hidden = shown.length === 0;
    this.empty.hidden = shown.length > 0;
    if (shown.length === 0) this.empty.replaceChildren(...this.#emptyState(all.length > 0));
  }

  /** What a row shows; also its signature. */
  #describe(conv) {
    const model = this.#model;
    const waiting = model.pending(conv).at(-1);
    const last = conv.last;
    const typists = model.typists(conv);
    let text = '';
    let mark = '';
    if (typists.length > 0) {
      text = conv.kind === 'direct' ? 'typing…' : `${typists[0]} is typing…`;
      mark = 'typing';
    } else if (conv.draft && conv.id !== model.openId) {
      text = conv.draft;
      mark = 'draft';
    } else if (waiting) {
      text = waiting.content;
      mark = waiting.state === 'failed' ? 'failed' : 'sending';
    } else if (last) {
      const mine = last.sender_id === model.me;
      const content = last.content || last.media?.name || 'Attachment';
      text = mine ? `You: ${content}` : conv.kind === 'direct' ? content : `${last.sender_id}: ${content}`;
      if (mine && conv.marked) mark = model.progress(conv, last.seq).state;
    } else {
      text = conv.gone ? 'You left this group' : 'No messages yet';
    }
    return {
      name: model.name(conv), group: conv.kind !== 'direct', text: text.slice(0, 160), mark,
      time: conv.last || waiting ? shortTime(conv.activity) : '', at: conv.activity, unread: conv.unread, gone: conv.gone,
      online: conv.kind === 'direct' && Boolean(model.presenceOf(conv.peer)?.online), open: conv.id === model.openId,
    };
  }

  #row(conv, focusable) {
    const d = this.#describe(conv);
    const marks = { sending: 'clock', failed: 'alert', sent: 'check', delivered: 'checks', read: 'checks' };
    return h('div', {
      class: `conversation${d.unread > 0 ? ' has-unread' : ''}${d.open ? ' is-open' : ''}`, role: 'option',
      tabindex: focusable ? '0' : '-1', aria: { selected: d.open, label: `${d.name}${d.unread ? `, ${d.unread} unread` : ''}. ${d.text}` },
    },
    avatar(d.name, { group: d.group, online: d.online }),
    h('div', { class: 'conversation-text' },
      h('div', { class: 'conversation-line' },
        h('span', { class: 'conversation-name' }, d.name),
        h('time', { class: 'conversation-time', title: d.time && fullFormat.format(d.at) }, d.time)),
      h('div', { class: 'conversation-line' },
        h('span', { class: `preview preview-${d.mark}` },
          marks[d.mark] ? icon(marks[d.mark]) : null,
          d.mark === 'draft' ? h('b', {}, 'Draft: ') : null,
          d.text.replace(/\s+/g, ' ')),
        d.unread > 0 ? h('span', { class: 'badge' }, d.unread > 99 ? '99+' : String(d.unread)) : null)));
  }

  #emptyState(filtered) {
    if (filtered) return [h('p', {}, 'No conversation matches your search.')];
    return [
      icon('chat'),
      h('p', {}, 'No conversations yet.'),
      h('button', { type: 'button', class: 'button', on: { click: this.#actions.compose } }, 'Start one'),
    ];
  }

  // ---- connection ---------------------------------------------------------------------------------------

  renderStatus() {
    const { state, retryAt, code } = this.#model.client.state;
    clearTimeout(this.#tick);
    const link = (text, fn) => h('button', { type: 'button', class: 'link', on: { click: fn } }, text);
    const show = (look, ...content) => {
      this.status.className = `status status-${look}`;
      this.status.replaceChildren(h('i', { class: 'dot' }), ...content);
    };
    if (state === 'online') show('good', h('span', {}, 'Connected'));
    else if (state === 'waiting') {
      const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
      show('wait', h('span', {}, seconds > 0 ? `Reconnecting in ${seconds} s` : 'Reconnecting…'), seconds > 2 ? link('Now', this.#actions.reconnect) : '');
      this.#tick = setTimeout(() => this.renderStatus(), 1_000);
    } else if (state === 'terminal' && code === 4409) show('bad', h('span', {}, 'Open elsewhere'), link('Use here', this.#actions.takeOver));
    else if (state === 'terminal' && code === 4401) show('bad', h('span', {}, 'Signed out'), link('Sign in', this.#actions.signOut));
    else if (state === 'terminal') show('bad', h('span', {}, `Disconnected (${code})`), link('Retry', this.#actions.reconnect));
    else show('wait', h('span', {}, 'Connecting…'));
  }

  // ---- keyboard and pointer -------------------------------------------------------------------------------

  #rowOf(id) {
    return id ? [...this.list.children].find((el) => el.dataset.key === id) : undefined;
  }

  #onClick(event) {
    const row = event.target.closest('.conversation');
    if (row) this.#open(row.dataset.key);
  }

  #open(id) {
    this.#focusId = id;
    this.#actions.open(id);
  }

  #onKey(event) {
    const row = event.target.closest('.conversation');
    if (!row) return;
    const target = {
      ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling ?? this.search,
      Home: this.list.firstElementChild, End: this.list.lastElementChild,
    }[event.key];
    if (target) {
      event.preventDefault();
      this.#focusId = target.dataset.key ?? this.#focusId;
      for (const el of this.list.children) el.tabIndex = el === target ? 0 : -1;
      if (target === this.search) row.tabIndex = 0;
      target.focus();
    } else if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      this.#open(row.dataset.key);
    }
  }

  #onSearchKey(event) {
    const first = this.list.hidden ? null : this.list.firstElementChild;
    if (event.key === 'ArrowDown' && first) {
      event.preventDefault();
      first.focus();
    } else if (event.key === 'Enter' && first) {
      this.#open(first.dataset.key);
    } else if (event.key === 'Escape' && this.search.value) {
      event.stopPropagation();
      this.search.value = '';
      this.#onFilter();
    }
  }

  #onFilter() {
    this.#filter = this.search.value.trim().toLowerCase();
    this.render();
  }
}
