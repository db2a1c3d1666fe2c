// Starts a real server for tests in Node: a process of the built binary, on ports of its own.
import { execFileSync, spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const BINARY = process.env.TRUNKLINE_BIN ?? new URL('../../target/debug/trunkline', import.meta.url).pathname;
// For packages that ./test installs beside the build.
export const require = createRequire(new URL('../../target/test-env/node/package.json', import.meta.url));
const SECRET = 'a secret that only the tests know, of some length';

export async function startServer(...extra) {
  const dir = mkdtempSync(join(tmpdir(), 'trunkline-test-'));
  const portsFile = join(dir, 'ports.json');
  const any = '127.0.0.1:0';
  let addresses = { ws: any, tcp: any, http: any, admin: any };
  let child;
  let ports;

  async function start() {
    if (existsSync(portsFile)) rmSync(portsFile);
    const log = openSync(join(dir, 'log'), 'a');
    child = spawn(BINARY, ['serve', '--data', join(dir, 'data'), '--jwt-secret', SECRET,
      '--ports-file', portsFile, ...Object.entries(addresses).flatMap(([k, v]) => [`--${k}`, v]),
      ...extra], { stdio: ['ignore', log, log] });
    const deadline = Date.now() + 20000;
    while (Date.now() < deadline && child.exitCode === null) {
      if (existsSync(portsFile)) {
        ports = JSON.parse(readFileSync(portsFile, 'utf8'));
        const ready = await fetch(`http://${ports.admin}/readyz`).then((r) => r.ok, () => false);
        if (ready) return;
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`the server did not get ready:\n${readFileSync(join(dir, 'log'), 'utf8')}`);
  }

  const gone = () => new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve(child.exitCode);
    else child.once('exit', (code) => resolve(code));
  });

  await start();
  return {
    get wsUrl() { return `ws://${ports.ws}/v1/connect`; },
    get httpUrl() { return `http://${ports.http}`; },
    mint: (user) => execFileSync(BINARY, ['token', '--user', user, '--secret', SECRET]).toString().trim(),
    async kill() { child.kill('SIGKILL'); await gone(); },
    // On the same ports and data.
    async restart() { addresses = { ws: ports.ws, tcp: ports.tcp, http: ports.http, admin: ports.admin }; await start(); },
    async stop() { child.kill('SIGTERM'); return gone(); },
  };
}
