/**
 * What the views are built from: elements, icons, avatars, dates, keyed lists.
 *
 * All text goes through `textContent`; nothing here parses HTML.
 * @module
 */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * An element. Properties: `class`, `on` (listeners), `aria` (without prefix), `data`, anything else an attribute
 * (`false`, `null` and `undefined` leave it out, `true` is the empty string).
 * @param {string} tag @param {object} [props] @param {...(Node | string | null | false | undefined)} children
 */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') for (const [type, fn] of Object.entries(value)) el.addEventListener(type, fn);
    else if (name === 'aria') for (const [k, v] of Object.entries(value)) el.setAttribute(`aria-${k}`, String(v));
    else if (name === 'data') Object.assign(el.dataset, value);
    else el.setAttribute(name, value === true ? '' : String(value));
  }
  el.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return el;
}

const ICONS = {
  back: ['M15 5l-7 7 7 7'],
  send: ['M4.5 12h14', 'M12.5 5.5L19 12l-6.5 6.5'],
  compose: ['M4 20h4L19 9a2.1 2.1 0 0 0-3-3L5 17z', 'M14 7.5l3 3'],
  people: ['M9 11a3.2 3.2 0 1 0 0-6.4A3.2 3.2 0 0 0 9 11z', 'M3 19.5c.4-3.3 2.9-5 6-5s5.6 1.7 6 5', 'M15.5 5a3.2 3.2 0 0 1 0 5.8', 'M17.5 14.8c2 .6 3.2 2.3 3.5 4.7'],
  close: ['M6 6l12 12', 'M18 6L6 18'],
  down: ['M12 5v14', 'M5.5 12.500L12 19l6.5-6.5'],
  exit: ['M10 4H6a2 2 0 0 0-2 2v12a2 2 0 0 0 2 2h4', 'M15 8l4 4-4 4', 'M19 12H9.5'],
  search: ['M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13z', 'M15.3 15.300L20 20'],
  clock: ['M12 20a8 8 0 1 0 0-16 8 8 0 0 0 0 16z', 'M12 8v4.300l2.8 1.7'],
  alert: ['M12 20a8 8 0 1 0 0-16 8 8 0 0 0 0 16z', 'M12 8v4.5', 'M12 15.600v.1'],
  check: ['M5 12.500l4.5 4.500L19 7.5'],
  checks: ['M1.5 12.500L6 17l9.5-9.5', 'M11.5 16l1 1L22 7.5'],
  chat: ['M20 11.500a7.5 7.5 0 0 1-11 6.600L4 19.500l1.5-4.400A7.5 7.5 0 1 1 20 11.500z'],
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [k, v] of Object.entries({ viewBox: '0 0 24 24', class: `icon icon-${name}`, 'aria-hidden': 'true', focusable: 'false' })) svg.setAttribute(k, v);
  for (const d of ICONS[name]) {
    const path = document.createElementNS(SVG, 'path');
    path.setAttribute('d', d);
    svg.append(path);
  }
  return svg;
}

/** @param {string} label @param {keyof typeof ICONS} name @param {(event: Event) => void} onClick @param {string} [cls] */
export const iconButton = (label, name, onClick, cls = '') =>
  h('button', { type: 'button', class: `icon-button ${cls}`, title: label, aria: { label }, on: { click: onClick } }, icon(name));

/** A stable hue for a name, one of 24 around the wheel (FNV-1a with a seed that keeps common names apart). */
export function hueOf(name) {
  let hash = 0x9e3779b9;
  for (const char of name) hash = Math.imul(hash ^ char.codePointAt(0), 0x01000193);
  hash ^= hash >>> 15;
  return ((hash >>> 0) % 24) * 15;
}

/** Up to two letters that stand for a name. */
export function initials(name) {
  const words = name.split(/[\s._:@-]+/).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words[1]].map((w) => [...w][0]) : [...(words[0] ?? '?')].slice(0, 2);
  return letters.join('').toUpperCase();
}

/** @param {string} name @param {{group?: boolean, online?: boolean}} [look] */
export function avatar(name, { group = false, online = false } = {}) {
  const el = h('span', { class: `avatar${group ? ' avatar-group' : ''}${online ? ' is-online' : ''}`, aria: { hidden: 'true' } }, initials(name));
  el.style.setProperty('--hue', String(hueOf(name)));
  return el;
}

const timeFormat = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const weekdayFormat = new Intl.DateTimeFormat(undefined, { weekday: 'long' });
const shortDayFormat = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const yearFormat = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'long', year: 'numeric' });
export const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'medium' });

const dayStart = (ts) => new Date(ts).setHours(0, 0, 0, 0);
const daysAgo = (ts) => Math.round((dayStart(Date.now()) - dayStart(ts)) / 86_400_000);

export const clockTime = (ts) => timeFormat.format(ts);
export const sameDay = (a, b) => dayStart(a) === dayStart(b);

/** For a day separator. */
export function dayLabel(ts) {
  const days = daysAgo(ts);
  if (days === 0) return 'Today';
  if (days === 1) return 'Yesterday';
  if (days > 1 && days < 7) return weekdayFormat.format(ts);
  return new Date(ts).getFullYear() === new Date().getFullYear() ? dayFormat.format(ts) : yearFormat.format(ts);
}

/** For the conversation list: the shortest thing that is still clear. */
export function shortTime(ts) {
  const days = daysAgo(ts);
  if (days === 0) return clockTime(ts);
  if (days === 1) return 'Yesterday';
  if (days > 1 && days < 7) return weekdayFormat.format(ts);
  return shortDayFormat.format(ts);
}

/**
 * Makes `container`'s children be `items`, keeping elements whose key and signature did not change.
 * @template T
 * @param {HTMLElement} container
 * @param {T[]} items
 * @param {{key: (item: T) => string, signature: (item: T) => string, build: (item: T) => HTMLElement}} how
 */
export function reconcile(container, items, { key, signature, build }) {
  const old = new Map();
  for (const child of container.children) old.set(child.dataset.key, child);
  let cursor = container.firstElementChild;
  for (const item of items) {
    const k = key(item);
    const s = signature(item);
    let el = old.get(k);
    if (!el || el.dataset.signature !== s) {
      const built = build(item);
      built.dataset.key = k;
      built.dataset.signature = s;
      if (el) {
        if (cursor === el) cursor = built;
        el.replaceWith(built);
      }
      el = built;
    }
    old.delete(k);
    if (el === cursor) cursor = cursor.nextElementSibling;
    else container.insertBefore(el, cursor);
  }
  for (const leftover of old.values()) leftover.remove();
}

const LINK = /\bhttps?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]]/g;

/** Text with its http(s) addresses made into links. @param {string} text @returns {(Node | string)[]} */
export function linkify(text) {
  const out = [];
  let end = 0;
  for (const match of text.matchAll(LINK)) {
    out.push(text.slice(end, match.index));
    out.push(h('a', { href: match[0], target: '_blank', rel: 'noopener noreferrer nofollow' }, match[0]));
    end = match.index + match[0].length;
  }
  out.push(text.slice(end));
  return out;
}

/** A short notice that leaves by itself. @param {string} text */
export function toast(text) {
  const region = document.getElementById('toasts');
  for (const shown of [...region.children]) if (shown.textContent === text) shown.remove();
  if (region.children.length >= 3) region.firstElementChild.remove();
  const el = h('div', { class: 'toast' }, icon('alert'), h('span', {}, text));
  region.append(el);
  setTimeout(() => el.remove(), 6_000);
}
