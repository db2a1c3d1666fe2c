/**
 * Sign-in, the "new conversation" dialog, the group panel.
 * @module
 */

import { avatar, h, icon, iconButton, toast } from './dom.js';
import { isUserId, tokenClaims } from './tl-util.js';

const NAME_RULE = 'Letters, digits and . _ : @ - only, at most 64';
const TITLE_MAX = 100;
const MEMBERS_PAGE = 200;

/**
 * The first screen.
 * @param {{devTokens: boolean, suggested: string, onUser: (user: string, token?: string) => Promise<void>}} options
 */
export function signInView({ devTokens, suggested, onUser }) {
  const problem = h('p', { class: 'problem', role: 'alert' });
  const input = devTokens
    ? h('input', { id: 'name', maxlength: '64', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', placeholder: 'alice', value: suggested })
    : h('input', { id: 'name', type: 'password', autocomplete: 'off', placeholder: 'eyJ…' });
  const button = h('button', { type: 'submit', class: 'button' }, 'Continue');
  const submit = async (event) => {
    event.preventDefault();
    const value = input.value.trim();
    const user = devTokens ? value : tokenClaims(value).sub;
    problem.textContent = isUserId(user) ? '' : devTokens ? NAME_RULE : 'This is not an access token.';
    if (problem.textContent) return;
    button.disabled = true;
    try {
      await onUser(user, devTokens ? undefined : value);
    } catch (error) {
      problem.textContent = error.message;
      button.disabled = false;
    }
  };
  return h('div', { class: 'sign-in' },
    h('form', { class: 'card', on: { submit } },
      h('img', { src: 'favicon.svg', alt: '', width: '56', height: '56' }),
      h('h1', {}, 'Trunkline'),
      h('p', { class: 'muted' }, devTokens ? 'Choose a name to chat under. Open a second window to be somebody else.' : 'Paste your access token.'),
      h('label', { for: 'name' }, devTokens ? 'Your name' : 'Access token'), input, problem, button));
}

/** A modal with a title bar; it removes itself when closed. */
function modal(title, ...content) {
  const dialog = h('dialog', { class: 'dialog', aria: { label: title }, on: { close: () => dialog.remove() } });
  dialog.append(h('header', { class: 'dialog-head' }, h('h2', {}, title), iconButton('Close', 'close', () => dialog.close())), ...content);
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  dialog.addEventListener('keydown', (event) => event.key === 'Escape' && event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Runs what a button does, with the button disabled meanwhile and failures told. */
async function busy(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    toast(error.message);
  } finally {
    button.disabled = false;
  }
}

/**
 * One name makes a direct chat, several make a group.
 * @param {import('./model.js').Model} model @param {(id: string) => void} onOpen
 */
export function composeDialog(model, onOpen) {
  const names = [];
  const chips = h('span', { class: 'chips' });
  const input = h('input', { id: 'to', maxlength: '64', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', placeholder: 'User name' });
  const title = h('input', { id: 'title', maxlength: String(TITLE_MAX), autocomplete: 'off', placeholder: 'Group name' });
  const titleField = h('div', { class: 'field', hidden: true }, h('label', { for: 'title' }, 'Group name'), title);
  const problem = h('p', { class: 'problem', role: 'alert' });
  const create = h('button', { type: 'submit', class: 'button' }, 'Start chat');

  const draw = () => {
    chips.replaceChildren(...names.map((name) => h('span', { class: 'chip' }, avatar(name), name,
      iconButton(`Remove ${name}`, 'close', () => { names.splice(names.indexOf(name), 1); draw(); input.focus(); }))));
    titleField.hidden = names.length < 2;
    create.textContent = names.length < 2 ? 'Start chat' : `Create group of ${names.length + 1}`;
    input.placeholder = names.length === 0 ? 'User name' : 'Add another for a group';
  };
  const take = () => {
    const name = input.value.trim().replace(/,$/, '');
    problem.textContent = '';
    if (name === '') return true;
    if (!isUserId(name)) problem.textContent = NAME_RULE;
    else if (name === model.me) problem.textContent = 'That is you.';
    if (problem.textContent) return false;
    if (!names.includes(name)) names.push(name);
    input.value = '';
    draw();
    return true;
  };
  input.addEventListener('keydown', (event) => {
    if (event.key === ',' || event.key === ' ' || (event.key === 'Enter' && names.length > 0 && input.value.trim())) {
      event.preventDefault();
      take();
    } else if (event.key === 'Backspace' && input.value === '' && names.length > 0) {
      names.pop();
      draw();
    }
  });
  const submit = (event) => {
    event.preventDefault();
    if (!take()) return;
    if (names.length === 0) {
      problem.textContent = 'Whom do you want to write to?';
      return;
    }
    if (names.length > 1 && title.value.trim() === '') {
      problem.textContent = 'The group needs a name.';
      title.focus();
      return;
    }
    busy(create, async () => {
      const id = names.length === 1 ? await model.startDirect(names[0]) : await model.startGroup(title.value.trim(), names);
      dialog.close();
      onOpen(id);
    });
  };
  const dialog = modal('New conversation', h('form', { class: 'dialog-body', on: { submit } },
    h('div', { class: 'field' }, h('label', { for: 'to' }, 'To'), h('div', { class: 'chips-field', on: { click: () => input.focus() } }, chips, input),
      h('p', { class: 'muted small' }, 'One name starts a direct chat; separate several with a comma for a group.')),
    titleField, problem, h('footer', {}, create)));
  draw();
  input.focus();
}

/** Members of a group: see, add, remove, leave. @param {import('./model.js').Model} model @param {string} id */
export function groupDialog(model, id) {
  const conv = model.conversations.get(id);
  const { client, me } = model;
  const list = h('ul', { class: 'members', aria: { label: 'Members' } }, h('li', { class: 'muted' }, 'Loading…'));
  const input = h('input', { maxlength: '64', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', placeholder: 'Add a member', aria: { label: 'Add a member' } });
  const add = h('button', { type: 'submit', class: 'button button-quiet' }, 'Add');
  const leave = h('button', { type: 'button', class: 'button button-danger', on: { click: () => onLeave() } }, icon('exit'), 'Leave group');
  const addForm = h('form', { class: 'add-member', on: { submit: (e) => onAdd(e) } }, input, add);

  const load = async () => {
    const items = [];
    let cursor;
    do {
      const page = await client.members(id, { cursor, limit: MEMBERS_PAGE });
      items.push(...(page.items ?? []));
      cursor = page.next_cursor;
    } while (cursor && items.length < 500);
    conv.memberCount = items.length;
    const myRole = items.find((m) => m.user_id === me)?.role ?? conv.role;
    const manages = myRole === 'owner' || myRole === 'admin';
    addForm.hidden = !manages;
    list.replaceChildren(...items.map((m) => memberRow(m, manages)));
    model.emit('thread', id);
  };
  const memberRow = ({ user_id: user, role }, manages) => h('li', { class: 'member' },
    avatar(user, { online: Boolean(model.presenceOf(user)?.online) }),
    h('span', { class: 'member-name' }, user, user === me ? h('span', { class: 'muted' }, ' (you)') : null),
    role === 'member' ? null : h('span', { class: 'role' }, role),
    manages && user !== me && role !== 'owner' ? iconButton(`Remove ${user}`, 'close', (e) => busy(e.currentTarget, () => client.removeMember(id, user).then(load))) : null);
  const onAdd = (event) => {
    event.preventDefault();
    const user = input.value.trim();
    if (!isUserId(user)) return toast(NAME_RULE);
    return busy(add, async () => {
      await client.addMember(id, user);
      input.value = '';
      await load();
    });
  };
  const onLeave = () => {
    if (leave.dataset.sure !== 'yes') {
      leave.dataset.sure = 'yes';
      leave.lastChild.textContent = 'Really leave?';
      return;
    }
    busy(leave, async () => {
      await client.removeMember(id, me);
      dialog.close();
    });
  };
  const off = model.on('members', (changed) => {
    if (changed !== id) return;
    if (conv.gone) dialog.close();
    else load().catch(() => {}); // Shown as it was; the next change tries again.
  });
  const dialog = modal(model.name(conv), h('div', { class: 'dialog-body' }, addForm, list, h('footer', {}, leave)));
  dialog.addEventListener('close', off);
  load().catch((error) => toast(`The members could not be loaded: ${error.message}`));
}
