/**
 * A program that can reach few files, for `cage.test.ts`: tries others, on the main thread and on those of the thread pool,
 * and prints what came of it as JSON. Its descriptor 3 is a file with a greeting.
 *
 *   confine-child.ts STATE_FOLDER OTHER_FOLDER
 */

import { spawnSync } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { createLogger } from '../../src/base/log.ts';
import { HasherProcess } from '../../src/gateway/auth/hasher.ts';
import { enterCage } from '../../src/os/cage.ts';

const [state = '', other = ''] = process.argv.slice(2);
const log = createLogger({ level: 'silent' });
const results: Record<string, string> = {};

async function attempt(name: string, action: () => unknown): Promise<void> {
  try {
    await action();
    results[name] = 'done';
  } catch (error) {
    results[name] = String(Reflect.get(error as Error, 'code'));
  }
}

function run(program: string, ...args: string[]): void {
  const { error, status } = spawnSync(program, args, { env: {} });
  if (error !== undefined) throw error;
  if (status !== 0) throw Object.assign(new Error(program), { code: `status ${status}` });
}

enterCage('auth', { log });
// The hasher keeps nobody alive.
const alive = setInterval(() => {}, 1000);
await attempt('write its state', () => {
  writeFileSync(join(state, 'new'), 'text');
  renameSync(join(state, 'new'), join(state, 'old'));
  rmSync(join(state, 'old'));
});
await attempt('use a database', () => {
  using database = new DatabaseSync(join(state, 'store.sqlite'));
  database.exec('PRAGMA journal_mode = WAL; CREATE TABLE t (a)');
});
await attempt('read an open secret elsewhere', () => readFileSync(join(other, 'open')));
await attempt('read it on the thread pool', () => readFile(join(other, 'open')));
await attempt('write elsewhere', () => writeFileSync(join(other, 'written'), ''));
await attempt('read /etc/passwd', () => readFileSync('/etc/passwd'));
await attempt('read a process', () => readFileSync(`/proc/${process.ppid}/cmdline`));
await attempt('start a shell', () => run('/bin/sh', '-c', 'true'));
await attempt('start Node', () => run(process.execPath, '-e', '0'));
await attempt('signal its parent', () => process.kill(process.ppid, 0));
await attempt('look a name up', () => lookup('localhost'));
await attempt('hash a password', async () => {
  using hasher = new HasherProcess({ log, parameters: { memory: 64, passes: 1, parallelism: 1 } });
  const phc = await hasher.hash('secret');
  if (!(await hasher.verify(phc, 'secret'))) throw new Error('not verified');
});
await attempt('see its memory', () => process.memoryUsage());
await attempt('use what it inherited', () => {
  if (readFileSync(3, 'utf8') !== 'hello') throw new Error('something else');
});
clearInterval(alive);
process.stdout.write(JSON.stringify(results));
