// Passwords are hashed elsewhere, one after the other, a bounded number waits, and a hasher that fails is replaced.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { getPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collectLog } from '../../../test/support/log-lines.ts';
import { isVpnError } from '../../base/errors.ts';
import { SCHED_IDLE } from '../../os/idle.ts';
import { HasherProcess } from './hasher.ts';
import { isHasherReply, isHasherRequest } from './hasher-messages.ts';

const CHEAP = { memory: 64, passes: 1, parallelism: 1 };
const folder = await mkdtemp(join(tmpdir(), 'customvpn-hasher-'));
after(() => rm(folder, { recursive: true, force: true }));

async function program(name: string, source: string): Promise<string> {
  const path = join(folder, `${name}.mjs`);
  await writeFile(path, source);
  return path;
}

/** The scheduling policy of a thread, the 41st field of its status. */
const policyOf = (pid: number, thread: string): number => {
  const status = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8');
  return Number(status.slice(status.lastIndexOf(')') + 2).split(' ')[41 - 3]);
};

const isGone = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
};

test('another process hashes and verifies, in idle time, with nothing in its arguments and environment', async () => {
  const { log } = collectLog();
  using hasher = new HasherProcess({ log, parameters: CHEAP, starvedMs: 60_000 });
  assert.equal(hasher.pid, undefined, 'it starts with the first password');
  const phc = await hasher.hash('correct horse battery');
  assert.match(phc, /^\$argon2id\$v=19\$m=64,t=1,p=1\$/);
  assert.deepEqual(await Promise.all([hasher.verify(phc, 'correct horse battery'), hasher.verify(phc, 'wrong')]), [
    true,
    false,
  ]);
  const { pid } = hasher;
  assert.ok(pid !== undefined && pid !== process.pid);
  if (process.platform !== 'linux') return;
  assert.equal(getPriority(pid), 19);
  // Each thread has a priority of its own: it is the pool's that do the work.
  const workers = readdirSync(`/proc/${pid}/task`).filter(
    (thread) => readFileSync(`/proc/${pid}/task/${thread}/comm`, 'utf8').trim() === 'libuv-worker',
  );
  assert.ok(workers.length > 0);
  for (const thread of workers) {
    assert.equal(getPriority(Number(thread)), 19);
    assert.equal(policyOf(pid, thread), SCHED_IDLE);
  }
  const seen = ['cmdline', 'environ'].map((name) => readFileSync(`/proc/${pid}/${name}`, 'utf8')).join('\n');
  assert.ok(!seen.includes('battery') && !seen.includes('PATH='), seen);
});

test('a password that finds no idle time is checked by another process at once, and so are those after it for a while', async () => {
  const { log } = collectLog();
  const echo = await program(
    'starving',
    `if (!process.argv.includes('idle')) process.on('message', ({ id }) => process.send({ id, result: String(process.pid) }));
     else process.on('message', () => {});`,
  );
  using hasher = new HasherProcess({ log, parameters: CHEAP, program: echo, starvedMs: 20, busyMs: 60_000 });
  const [first, second] = await Promise.all([hasher.hash('the first password'), hasher.hash('the second password')]);
  assert.equal(first, second);
  assert.equal(await hasher.hash('the third password'), String(hasher.pid));
});

test('when there may be idle time again, the process that takes part of a busy core ends', async () => {
  const { log } = collectLog();
  const echo = await program(
    'resting',
    `if (!process.argv.includes('idle')) process.on('message', ({ id }) => process.send({ id, result: String(process.pid) }));
     else process.on('message', () => {});`,
  );
  let time = 0;
  using hasher = new HasherProcess({
    log,
    parameters: CHEAP,
    program: echo,
    starvedMs: 20,
    busyMs: 500,
    now: () => time,
  });
  const busy = await hasher.hash('the first password');
  time = 499;
  assert.equal(await hasher.hash('the second password'), busy);
  time = 500;
  assert.notEqual(await hasher.hash('the third password'), busy);
  while (!isGone(Number(busy))) await new Promise(setImmediate);
});

test('a bounded number waits; one more is ERR_BUSY at once, and the others get their answers', async () => {
  const { log } = collectLog();
  using hasher = new HasherProcess({ log, parameters: CHEAP, maxWaiting: 2 });
  const answers = [hasher.hash('first of them'), hasher.hash('second of them'), hasher.hash('third of them')];
  await assert.rejects(hasher.hash('one too many'), { code: 'ERR_BUSY' });
  assert.equal(hasher.waiting, 3);
  assert.equal(new Set(await Promise.all(answers)).size, 3);
  assert.equal(hasher.waiting, 0);
});

test('a hash that is damaged in the store is ERR_STORE, and the hasher goes on', async () => {
  const { log } = collectLog();
  using hasher = new HasherProcess({ log, parameters: CHEAP });
  await assert.rejects(hasher.verify('no hash', 'x'), { code: 'ERR_STORE' });
  const { pid } = hasher;
  assert.match(await hasher.hash('correct horse battery'), /^\$argon2id/);
  assert.equal(hasher.pid, pid);
});

test('a hasher that is killed fails the password at hand with ERR_BUSY; the next ones go to another', async () => {
  const { log, lines } = collectLog();
  using hasher = new HasherProcess({ log, parameters: CHEAP });
  await hasher.hash('to have it started');
  const { pid } = hasher;
  assert.ok(pid !== undefined);
  // It must not be done before it is killed.
  process.kill(pid, 'SIGSTOP');
  const [lost, next] = [hasher.hash('lost with it'), hasher.hash('the next one')];
  process.kill(pid, 'SIGKILL');
  await assert.rejects(lost, { code: 'ERR_BUSY' });
  assert.match(await next, /^\$argon2id/);
  assert.notEqual(hasher.pid, pid);
  assert.ok(lines.some(({ msg }) => msg === 'the hasher ended'));
});

for (const [what, source] of [
  ['ends at once', 'process.exit(3);'],
  ['throws', 'throw new Error("broken");'],
  ['says something else', 'process.on("message", () => process.send({ hello: 1 }));'],
  ['answers another question', 'process.on("message", ({ id }) => process.send({ id: id + 1, result: true }));'],
  ['answers too much', 'process.on("message", ({ id }) => process.send({ id, result: "x".repeat(1000) }));'],
  ['never answers', 'process.on("message", () => {});'],
] as const) {
  test(`a hasher that ${what} costs ERR_BUSY, and hangs nobody`, async () => {
    const { log } = collectLog();
    const file = await program(what.replaceAll(' ', '-'), source);
    using hasher = new HasherProcess({ log, parameters: CHEAP, program: file, deadlineMs: 300 });
    await assert.rejects(hasher.hash('correct horse battery'), { code: 'ERR_BUSY' });
    await assert.rejects(hasher.verify('x', 'y'), { code: 'ERR_BUSY' });
  });
}

test('a verdict of another kind than asked for is no verdict', async () => {
  const { log } = collectLog();
  const file = await program('kinds', 'process.on("message", ({ id }) => process.send({ id, result: "yes" }));');
  using hasher = new HasherProcess({ log, parameters: CHEAP, program: file });
  await assert.rejects(hasher.verify('x', 'y'), { code: 'ERR_INVARIANT' });
});

test('closing fails what waits, ends the process and takes nothing more', async () => {
  const { log } = collectLog();
  const hasher = new HasherProcess({ log, parameters: CHEAP });
  await hasher.hash('to have it started');
  const { pid } = hasher;
  assert.ok(pid !== undefined);
  const waiting = hasher.hash('what waits');
  hasher[Symbol.dispose]();
  await assert.rejects(waiting, { code: 'ERR_BUSY' });
  await assert.rejects(hasher.hash('later'), (error) => isVpnError(error, 'ERR_BUSY'));
  while (!isGone(pid)) await new Promise(setImmediate);
});

test('both ends check what they get', () => {
  const hash = { kind: 'hash', id: 1, password: 'x', memory: 64, passes: 1, parallelism: 1 };
  assert.ok(isHasherRequest(hash));
  assert.ok(isHasherRequest({ kind: 'verify', id: 1, password: 'x', phc: 'y' }));
  for (const bad of [
    undefined,
    null,
    'hash',
    {},
    { ...hash, id: '1' },
    { ...hash, kind: 'run' },
    { ...hash, password: 5 },
    { ...hash, password: 'x'.repeat(2000) },
    { ...hash, memory: 'all' },
    { ...hash, passes: 1.5 },
    { kind: 'verify', id: 1, password: 'x' },
    { kind: 'verify', id: 1, password: 'x', phc: 'y'.repeat(1000) },
  ]) {
    assert.equal(isHasherRequest(bad), false, JSON.stringify(bad)?.slice(0, 60));
  }
  assert.ok(isHasherReply({ id: 1, result: true }) && isHasherReply({ id: 1, error: 'why' }));
  for (const bad of [undefined, 'x', { id: 1 }, { result: true }, { id: 1, result: 5 }, { id: 1, error: 5 }]) {
    assert.equal(isHasherReply(bad), false);
  }
});
