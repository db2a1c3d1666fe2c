/**
 * The demo page: sign in, wire client, model and views together, route by `location.hash`.
 *
 * A tab is a user and a device of its own (`sessionStorage`), so two windows can talk to each other.
 * @module
 */

import { TrunklineClient, isUserId, randomId } from './trunkline.js';
import { h, toast } from './dom.js';
import { Model } from './model.js';
import { ListView } from './view-list.js';
import { ThreadView } from './view-thread.js';
import { composeDialog, groupDialog, signInView } from './view-dialogs.js';

const USER_KEY = 'trunkline.user';
const DEVICE_KEY = 'trunkline.device';
const TOKEN_KEY = 'trunkline.token';
/** A page that was away longer than this many messages starts at the newest. */
const MAX_CATCH_UP = 500;
const CONFIG_RETRY_MS = 2_000;
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0|\[::1?\])$/;

const root = document.getElementById('app');

async function loadConfig() {
  for (;;) {
    try {
      const response = await fetch('/v1/config');
      if (response.ok) return await response.json();
    } catch {
      // Not there yet; the page may have come from a cache.
    }
    root.replaceChildren(h('div', { class: 'sign-in' }, h('p', { class: 'muted', role: 'status' }, 'Waiting for the server…')));
    await new Promise((resolve) => setTimeout(resolve, CONFIG_RETRY_MS));
  }
}

/** Where the WebSocket is, seen from this browser: a loopback address means the host the page came from. */
function socketUrl(config) {
  const url = new URL(config.transports?.websocket ?? `ws://${location.hostname}:7400/v1/connect`);
  if (LOOPBACK.test(url.hostname) && url.hostname !== location.hostname) url.hostname = location.hostname;
  if (location.protocol === 'https:') url.protocol = 'wss:';
  return url.href;
}

async function devToken(user) {
  const response = await fetch(`/v1/dev/token?user=${encodeURIComponent(user)}`);
  if (!response.ok) throw new Error(`The server gave no token (HTTP ${response.status}).`);
  return (await response.json()).token;
}

function deviceId() {
  const id = sessionStorage.getItem(DEVICE_KEY) ?? `web-${randomId().slice(0, 13)}`;
  sessionStorage.setItem(DEVICE_KEY, id);
  return id;
}

/** The name asked for in the address (`/?user=alice`) or remembered by this tab. */
function rememberedUser() {
  const asked = new URLSearchParams(location.search).get('user');
  if (isUserId(asked)) return asked;
  return sessionStorage.getItem(USER_KEY);
}

async function start() {
  const config = await loadConfig();
  const user = rememberedUser();
  const token = sessionStorage.getItem(TOKEN_KEY) ?? undefined;
  if (user && (config.dev_tokens || token)) {
    try {
      await chat(config, user, config.dev_tokens ? undefined : token);
      return;
    } catch (error) {
      toast(error.message);
    }
  }
  root.replaceChildren(signInView({
    devTokens: Boolean(config.dev_tokens),
    suggested: user ?? '',
    onUser: (name, pasted) => chat(config, name, pasted),
  }));
  document.getElementById('name').focus();
}

async function chat(config, user, pasted) {
  const token = pasted ?? (await devToken(user));
  sessionStorage.setItem(USER_KEY, user);
  if (pasted) sessionStorage.setItem(TOKEN_KEY, pasted);
  const client = new TrunklineClient({
    url: socketUrl(config),
    baseUrl: location.origin,
    userId: user,
    deviceId: deviceId(),
    token,
    getToken: pasted ? undefined : () => devToken(user),
    maxCatchUp: MAX_CATCH_UP,
  });
  Object.assign(client.limits, config.limits);
  const model = new Model(client, user);
  const page = new Page(model);
  root.replaceChildren(page.element);
  await model.start();
}

const hashId = () => /^#\/c\/([0-9a-f-]{36})$/.exec(location.hash)?.[1] ?? null;

class Page {
  #model;
  #list;
  #thread;

  /** @param {Model} model */
  constructor(model) {
    this.#model = model;
    const compose = () => composeDialog(model, (id) => this.#go(id));
    this.#list = new ListView(model, {
      open: (id) => this.#go(id),
      compose,
      signOut: () => this.#signOut(),
      reconnect: () => model.client.connect(),
      takeOver: () => this.#takeOver(),
    });
    this.#thread = new ThreadView(model, { back: () => this.#go(null), info: () => groupDialog(model, model.openId), compose });
    this.element = h('div', { class: 'shell' }, this.#list.element, this.#thread.element);
    this.#listen();
    this.route();
  }

  #listen() {
    const { client } = this.#model;
    this.#model.on('problem', toast);
    this.#model.on('list', () => {
      // The conversation in the address may only now be known.
      const asked = hashId();
      if (asked && asked !== this.#model.openId && this.#model.conversations.has(asked)) this.route();
      this.#title();
    });
    window.addEventListener('hashchange', () => this.route());
    window.addEventListener('online', () => this.#awake());
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && this.#awake());
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.#model.openId && !event.defaultPrevented) this.#go(null);
    });
    client.on('state', ({ state }) => this.element.classList.toggle('is-offline', state !== 'online'));
  }

  /** Network or screen came back: don't sit out a long wait, and don't trust an old connection. */
  #awake() {
    const { client } = this.#model;
    if (client.state.state === 'waiting') client.connect();
    else client.probe();
  }

  /** @param {string | null} id */
  #go(id) {
    const hash = id ? `#/c/${id}` : '#/';
    if (location.hash === hash) this.route();
    else location.hash = hash;
  }

  /** Shows what the address says. */
  route() {
    const id = hashId();
    const known = id && this.#model.conversations.has(id) ? id : null;
    const closing = this.#model.openId && !known;
    if (known !== this.#model.openId) this.#model.select(known);
    this.element.classList.toggle('has-open', Boolean(known));
    this.#thread.show();
    this.#list.render();
    if (closing) this.#list.focus();
    this.#title();
  }

  #title() {
    const unread = this.#model.totalUnread;
    const open = this.#model.open;
    document.title = `${unread > 0 ? `(${unread}) ` : ''}${open ? `${this.#model.name(open)} · ` : ''}Trunkline`;
  }

  #signOut() {
    this.#model.client.close();
    for (const key of [USER_KEY, TOKEN_KEY, DEVICE_KEY]) sessionStorage.removeItem(key);
    location.replace(location.pathname);
  }

  /** Another tab runs under our device id (a duplicated tab takes it along): go on as a device of our own. */
  #takeOver() {
    const key = (device) => `trunkline.outbox:${this.#model.me}:${device}`;
    const unsent = localStorage.getItem(key(deviceId()));
    sessionStorage.removeItem(DEVICE_KEY);
    // Both tabs may now send these; the ids are the same, so each arrives once.
    if (unsent) localStorage.setItem(key(deviceId()), unsent);
    location.reload();
  }
}

start();
