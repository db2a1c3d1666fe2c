// The demo page in a real Chromium: two windows, two people, and a server that dies in between.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { require, startServer } from './server.mjs';

const { chromium } = require('playwright-core');

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const PATIENCE = { timeout: 20000 };

let server;
let browser;
const problems = [];

before(async () => {
  server = await startServer('--dev-tokens');
  browser = await chromium.launch({ executablePath: CHROMIUM, args: QUIET });
});
after(async () => {
  await browser?.close();
  assert.equal(await server?.stop(), 0);
  assert.deepEqual(problems, [], 'no script fails and no policy is broken');
});

// A window of its own for one person.
async function window(user, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on('pageerror', (error) => problems.push(`${user}: ${error}`));
  page.on('console', (message) => {
    if (message.type() === 'error' && /Content Security Policy|SyntaxError|TypeError/.test(message.text())) {
      problems.push(`${user}: ${message.text()}`);
    }
  });
  await page.goto(server.httpUrl);
  await page.locator('#name').fill(user);
  await page.keyboard.press('Enter');
  await page.locator('.pane-list').waitFor({ state: 'attached', ...PATIENCE });
  return page;
}

async function startChat(page, names, title) {
  await page.getByRole('button', { name: /New conversation|Start one/ }).first().click();
  for (const name of names) {
    await page.locator('#to').fill(name);
    if (names.length > 1) await page.keyboard.press(',');
  }
  if (title) await page.locator('#title').fill(title);
  await page.getByRole('button', { name: /Start chat|Create group/ }).click();
  await page.getByRole('textbox', { name: 'Message' }).waitFor(PATIENCE);
}

async function say(page, text) {
  await page.getByRole('textbox', { name: 'Message' }).fill(text);
  await page.keyboard.press('Enter');
}

const texts = (page) => page.locator('.lines .bubble .text').allTextContents();

async function until(what, probe) {
  const deadline = Date.now() + PATIENCE.timeout;
  let last;
  while (Date.now() < deadline) {
    last = await probe();
    if (last === true) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`not in time: ${what}; last: ${JSON.stringify(last)}`);
}

const shows = (page, lines) => async () => {
  const seen = await texts(page);
  return JSON.stringify(seen) === JSON.stringify(lines) || seen;
};

test('two windows chat, see ticks turn, and lose nothing when the server is killed', async () => {
  const ann = await window('ann');
  const ben = await window('ben');
  await startChat(ann, ['ben']);
  await say(ann, 'Good morning <b>Ben</b>');
  await until('Ben has the conversation', async () => (await ben.locator('.conversation').count()) === 1);
  await ben.locator('.conversation').first().click();
  await until('Ben sees the line as text', shows(ben, ['Good morning <b>Ben</b>']));
  await until('Ann sees that it was read', async () => (await ann.locator('.ticks-read').count()) === 1);
  await say(ben, 'Morning!');
  const before = ['Good morning <b>Ben</b>', 'Morning!'];
  await until('Ann sees the answer', shows(ann, before));

  await server.kill();
  await say(ann, 'Are you still there?');
  await say(ben, 'The server is gone');
  await server.restart();
  const both = new Set(['Are you still there?', 'The server is gone']);
  for (const page of [ann, ben]) {
    await until('all four lines, once each', async () => {
      const seen = await texts(page);
      return (seen.length === 4 && JSON.stringify(seen.slice(0, 2)) === JSON.stringify(before)
        && seen.slice(2).every((line) => both.has(line)) && new Set(seen).size === 4) || seen;
    });
  }
  assert.deepEqual(await texts(ann), await texts(ben), 'one order');
  const settled = await texts(ann);
  await ann.reload();
  await until('the same after a reload', shows(ann, settled));
});

test('a group of three, by keyboard, with its members', async () => {
  const cleo = await window('cleo');
  const dan = await window('dan');
  const eve = await window('eve');
  await startChat(cleo, ['dan', 'eve'], 'Lunch');
  await say(cleo, 'Noodles?');
  for (const page of [dan, eve]) {
    await until('the group is listed', async () => (await page.locator('.conversation').count()) === 1);
    await page.locator('.conversation').first().focus();
    await page.keyboard.press('Enter');
    await until('the line is there', shows(page, ['Noodles?']));
  }
  await say(dan, 'Yes');
  await until('Eve sees both', shows(eve, ['Noodles?', 'Yes']));
  await until('Cleo sees both', shows(cleo, ['Noodles?', 'Yes']));
});

test('a long history scrolls back to its first line', async () => {
  const fay = await window('fay');
  const token = server.mint('gus');
  for (let n = 0; n < 130; n += 1) {
    let status;
    do {
      const answer = await fetch(`${server.httpUrl}/v1/messages`, {
        method: 'POST',
        headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
        body: JSON.stringify({ to: 'fay', client_msg_id: `m${n}`, content: `line ${n}` }),
      });
      status = answer.status;
      if (status === 429) {
        const { retry_after_ms: pause } = await answer.json();
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    } while (status === 429);
    assert.equal(status, 201);
  }
  await fay.reload();
  await fay.locator('.conversation').first().click();
  await until('the newest line', async () => (await texts(fay)).at(-1) === 'line 129');
  await until('the first line, after scrolling', async () => {
    await fay.locator('.scroller').evaluate((e) => { e.scrollTop = 0; });
    return (await texts(fay))[0] === 'line 0';
  });
  assert.deepEqual(await texts(fay), Array.from({ length: 130 }, (_, n) => `line ${n}`));
});

test('on a phone the list and the thread take turns', async () => {
  const hal = await window('hal', { viewport: { width: 390, height: 844 } });
  await startChat(hal, ['ida']);
  await say(hal, 'hello');
  assert.equal(await hal.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, 'nothing sticks out');
  await hal.getByRole('button', { name: 'Back to conversations' }).click();
  await hal.locator('.conversation').first().waitFor({ state: 'visible', ...PATIENCE });
});
