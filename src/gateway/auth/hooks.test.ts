// Whatever a hook does, its result is defined, and the next one is asked again.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collectLog } from '../../../test/support/log-lines.ts';
import { until } from '../../../test/support/world.ts';
import { systemClock } from '../../base/clock.ts';
import { Hooks, type HooksOptions } from './hooks.ts';

const folder = await mkdtemp(join(tmpdir(), 'customvpn-hooks-'));
after(() => rm(folder, { recursive: true, force: true }));
let files = 0;

async function open(text: string, options: Partial<HooksOptions> = {}) {
  files += 1;
  const file = join(folder, `hooks-${files}.ts`);
  await writeFile(file, text);
  const { log, lines } = collectLog();
  const hooks = await Hooks.start({ file, timeoutMs: 30_000, onFailure: 'deny', clock: systemClock, log, ...options });
  return { hooks, lines, [Symbol.asyncDispose]: () => hooks.stop() };
}

const login = (user: string) => ({ user, groups: ['staff'], device: 'ab'.repeat(16), remote: '192.0.2.7:1000' });
const session = {
  id: 'abcd',
  user: 'ada',
  device: 'ab',
  addresses: ['10.0.0.2'],
  remote: '192.0.2.7:1',
  openedAt: '2026-01-01T00:00:00Z',
};

test('a login has the verdict of the function, which is TypeScript, may wait, and gives a reason for the record', async () => {
  await using opened = await open(`
    interface Login { user: string; groups: readonly string[] }
    export async function onLogin({ user, groups }: Login): Promise<boolean | { allow: boolean; reason?: string }> {
      await new Promise((resolve) => setTimeout(resolve, 1));
      if (user === 'eve') return { allow: false, reason: 'on leave' };
      return groups.includes('staff') && user !== 'bob';
    }
  `);
  const { hooks } = opened;
  assert.deepEqual(await hooks.login(login('ada')), { allow: true, reason: '' });
  assert.deepEqual(await hooks.login(login('bob')), { allow: false, reason: 'the hook onLogin refuses it' });
  assert.deepEqual(await hooks.login(login('eve')), { allow: false, reason: 'the hook onLogin refuses it: on leave' });
  assert.deepEqual(hooks.counts.get('onLogin'), { allowed: 1, refused: 2, failed: 0 });
  // What the file has not is not asked.
  assert.equal((await hooks.policy({ file: null, text: null, digest: null, formerDigest: null })).allow, true);
});

test('one that throws, answers nonsense or ends its process refuses, or lets in where the operator says so', async () => {
  const text = `
    export default {
      onLogin({ user }) {
        if (user === 'throws') throw new Error('no server');
        if (user === 'nonsense') return 'yes';
        if (user === 'nothing') return;
        if (user === 'exits') process.exit(3);
        if (user === 'rejects') Promise.reject(new Error('late'));
        return true;
      },
    };
  `;
  for (const onFailure of ['deny', 'allow'] as const) {
    await using opened = await open(text, { onFailure });
    const { hooks, lines } = opened;
    for (const [user, reason] of [
      ['throws', /it threw: no server/],
      ['nonsense', /neither true nor false/],
      ['nothing', /neither true nor false/],
      ['exits', /its process ended/],
    ] as const) {
      const { allow, reason: why } = await hooks.login(login(user));
      assert.equal(allow, onFailure === 'allow', user);
      assert.match(why, reason);
    }
    // It is there again, and was waited for.
    assert.equal((await hooks.login(login('ada'))).allow, true);
    assert.ok(
      lines.some(({ msg, status }) => msg === 'the process of the hooks ended; it is started again' && status === 3),
    );
    assert.equal(hooks.counts.get('onLogin')?.failed, 4);
  }
});

test('one that is slow fails alone; one that blocks its thread has its process ended, and the next is asked anew', async () => {
  await using opened = await open(
    `
    export function onLogin({ user }) {
      if (user === 'blocks') for (;;);
      return user === 'hangs' ? new Promise(() => {}) : true;
    }
  `,
    { timeoutMs: 3000 },
  );
  const { hooks, lines } = opened;
  const first = hooks.pid;
  const hanging = hooks.login(login('hangs'));
  assert.equal((await hooks.login(login('ada'))).allow, true, 'while another hangs');
  assert.match((await hanging).reason, /no answer within 3 s/);
  assert.equal(hooks.pid, first);
  assert.equal((await hooks.login(login('blocks'))).allow, false);
  const isLoadedAgain = () => lines.filter(({ msg }) => msg === 'the hooks are loaded').length === 2;
  await until(isLoadedAgain, 'another process', 30_000);
  assert.notEqual(hooks.pid, first);
  assert.equal((await hooks.login(login('ada'))).allow, true);
  assert.ok(lines.some(({ msg }) => msg === 'a hook blocks its process, which is started again'));
});

test('it reaches the folder of its file and the network, and no other file of the gateway', async (t) => {
  const { landlockVersion } = await import('../../os/landlock.ts');
  if (landlockVersion() === 0) {
    t.skip('this kernel has no Landlock');
    return;
  }
  const elsewhere = await mkdtemp(join(tmpdir(), 'customvpn-secret-'));
  try {
    await writeFile(join(elsewhere, 'master.key'), 'secret');
    await writeFile(join(folder, 'allowed.json'), '{"ada":true}');
    await using opened = await open(`
      import { readFileSync, writeFileSync } from 'node:fs';
      import { spawnSync } from 'node:child_process';
      const fails = (work) => { try { work(); return ''; } catch (error) { return error.code; } };
      const allowed = JSON.parse(readFileSync(new URL('./allowed.json', import.meta.url), 'utf8'));
      export const onLogin = ({ user }) => ({ allow: allowed[user] === true, reason: [
        fails(() => readFileSync('${elsewhere}/master.key')),
        fails(() => writeFileSync('${elsewhere}/new', '')),
        spawnSync('/bin/true').error?.code,
      ].join() });
    `);
    assert.equal((await opened.hooks.login(login('ada'))).allow, true);
    assert.match((await opened.hooks.login(login('bob'))).reason, /: EACCES,EACCES,EACCES$/);
  } finally {
    await rm(elsewhere, { recursive: true, force: true });
  }
});

test('what it prints is in the log, bounded, and sessions are told', async () => {
  await using opened = await open(`
    export const onSessionStart = ({ user, addresses }) => console.log('start', user, addresses[0]);
    export const onSessionEnd = ({ user, reason, sentBytes }) => console.log('end', user, reason, sentBytes);
    export const onPolicy = ({ digest }) => { for (let i = 0; i < 1000; i++) console.error('x'.repeat(5000)); return digest !== 'bad'; };
  `);
  const { hooks, lines } = opened;
  hooks.sessionStarted(session);
  hooks.sessionEnded({ ...session, reason: 'revoked', receivedBytes: 1, sentBytes: 2 });
  const said = () => lines.filter(({ msg }) => msg === 'said by a hook').map((line) => line.said);
  await until(() => said().length === 2, 'both to be said');
  assert.deepEqual(said(), ['start ada 10.0.0.2', 'end ada revoked 2']);
  const policy = { file: 'p', text: '', digest: 'good', formerDigest: null };
  assert.equal((await hooks.policy(policy)).allow, true);
  assert.equal((await hooks.policy({ ...policy, digest: 'bad' })).allow, false);
  assert.ok(said().length <= 10, String(said().length));
  assert.ok(said().every((text) => String(text).length <= 500));
});

test('a line that never ends, and a flood of lines, are read within bounds, and verdicts come all the same', async () => {
  await using opened = await open(`
    export const onLogin = ({ user }) => {
      if (user === 'long') for (let i = 0; i < 200; i++) process.stdout.write('x'.repeat(100_000));
      if (user === 'left') return { allow: false, reason: String(process.stdout.writableLength) };
      if (user === 'many') for (let i = 0; i < 100; i++) process.stderr.write('y\\n'.repeat(1000));
      return true;
    };
  `);
  const { hooks, lines } = opened;
  const said = () => lines.filter(({ msg }) => msg === 'said by a hook').map((line) => String(line.said));
  const before = process.memoryUsage.rss();
  const since = performance.now();
  assert.equal((await hooks.login(login('long'))).allow, true);
  await until(async () => (await hooks.login(login('left'))).reason.endsWith(': 0'), 'all to be read');
  assert.ok(performance.now() - since > 1900, 'of more than 8 MiB a second the rest waits');
  assert.deepEqual(said(), ['x'.repeat(500)], 'once, cut, though it has not ended');
  assert.ok(process.memoryUsage.rss() - before < 64 << 20, '20 MB of a line are not kept');
  assert.equal((await hooks.login(login('many'))).allow, true);
  assert.ok(said().length < 20, String(said().length));
});

test('sessions that are told of keep no login out, however many wait', async () => {
  await using opened = await open(`
    export const onSessionStart = () => new Promise(() => {});
    export const onLogin = () => true;
  `);
  const { hooks, lines } = opened;
  for (let count = 0; count < 1500; count++) hooks.sessionStarted(session);
  assert.deepEqual(await hooks.login(login('ada')), { allow: true, reason: '' });
  await until(() => (hooks.counts.get('onSessionStart')?.failed ?? 0) === 500, 'those beyond the bound to fail');
  assert.ok(lines.some(({ reason }) => reason === '1000 calls wait for an answer'));
});

test('a file that cannot be loaded, or has no hook, is refused with what is wrong', async () => {
  for (const [text, why] of [
    ['export const onLogin = (', /hooks-\d+\.ts cannot be loaded/],
    ['throw new Error("no such table")', /no such table/],
    ['export const onLogin = 7', /expected onLogin to be a function/],
    ['export const onlogin = () => true', /it exports none/],
    ['process.exit(0)', /it ended with status 0/],
  ] as const) {
    await assert.rejects(open(text), (error: Error & { code?: string }) => {
      assert.equal(error.code, 'ERR_CONFIG_FILE');
      assert.match(error.message, why);
      return true;
    });
  }
});

test('a file that fills its memory is ended, and nothing of it is left with the gateway', async () => {
  await using opened = await open(`export const onLogin = ({ user }) => {
    const all = []; while (user === 'greedy') all.push(new Array(1e6).fill(Math.random())); return true; };`);
  const { hooks } = opened;
  const { allow, reason } = await hooks.login(login('greedy'));
  assert.equal(allow, false);
  assert.match(reason, /its process ended/);
  assert.equal((await hooks.login(login('ada'))).allow, true);
});
