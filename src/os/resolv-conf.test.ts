// The resolver's file is what it was, whatever happens between.

import assert from 'node:assert/strict';
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { silentLogger } from '../base/log.ts';
import { ResolvConf, type ResolverSettings, serversIn } from './resolv-conf.ts';

const root = mkdtempSync(join(tmpdir(), 'cvpn-resolv-'));
after(() => rmSync(root, { recursive: true }));

const OURS: ResolverSettings = { servers: ['10.88.0.1', 'fd88::1'], domains: ['corp.example'], fallback: false };
const THEIRS = '# of the machine\nnameserver 192.168.1.1\nsearch home.example\noptions edns0 trust-ad\n';

let count = 0;
function place(content: string | null = THEIRS): { path: string; journalPath: string; read: () => string } {
  count += 1;
  const folder = mkdtempSync(join(root, `${count}-`));
  const path = join(folder, 'resolv.conf');
  if (content !== null) writeFileSync(path, content, { mode: 0o640 });
  return { path, journalPath: join(folder, 'dns.journal'), read: () => readFileSync(path, 'utf8') };
}

const open = (where: { path: string; journalPath: string }) => ResolvConf.open({ ...where, log: silentLogger });

test('our servers and domains are in place, the options stay, and the file comes back with its mode', async () => {
  const where = place();
  const file = await open(where);
  await file.apply(OURS);
  const lines = where
    .read()
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'));
  assert.deepEqual(lines, [
    'nameserver 10.88.0.1',
    'nameserver fd88::1',
    'search corp.example',
    'options edns0 trust-ad',
  ]);
  assert.equal(lstatSync(where.path).mode & 0o777, 0o644);
  assert.ok(existsSync(where.journalPath));
  assert.deepEqual(await file.servers(), ['192.168.1.1'], 'the servers outside the tunnel');
  await file.revert();
  await file.revert();
  assert.equal(where.read(), THEIRS);
  assert.equal(lstatSync(where.path).mode & 0o777, 0o640);
  assert.equal(existsSync(where.journalPath), false);
});

test("with a fallback the machine's own servers come after ours, three in all", async () => {
  const where = place(`nameserver 10.88.0.1\n${THEIRS}nameserver 192.168.1.2\n`);
  const file = await open(where);
  await file.apply({ ...OURS, servers: ['10.88.0.1', '10.88.0.9', '10.88.0.8'], domains: [], fallback: true });
  assert.deepEqual(serversIn(where.read()), ['10.88.0.1', '10.88.0.9', '192.168.1.1']);
  assert.match(where.read(), /^search home\.example$/m);
  await file.revert();
});

test('a run that died is cleaned up after by the next one', async () => {
  const where = place();
  await (await open(where)).apply(OURS);
  const next = await open(where);
  assert.equal(where.read(), THEIRS);
  assert.deepEqual(await next.servers(), ['192.168.1.1']);
  assert.equal(existsSync(where.journalPath), false);
});

test('a run that died before it had changed anything has nothing to put back', async () => {
  const where = place();
  const file = await open(where);
  await file.apply(OURS);
  const journal = readFileSync(where.journalPath);
  await file.revert();
  writeFileSync(where.journalPath, journal);
  await open(where);
  assert.equal(where.read(), THEIRS);
  assert.equal(existsSync(where.journalPath), false);
});

test('what somebody else has written meanwhile stays', async () => {
  const where = place();
  const file = await open(where);
  await file.apply(OURS);
  writeFileSync(where.path, 'nameserver 10.1.1.1\n');
  assert.deepEqual(await file.servers(), ['10.1.1.1']);
  await file.revert();
  assert.equal(where.read(), 'nameserver 10.1.1.1\n');
  assert.equal(existsSync(where.journalPath), false);
});

test('and is what comes back when ours has been set again', async () => {
  const where = place();
  const file = await open(where);
  await file.apply(OURS);
  writeFileSync(where.path, 'nameserver 10.1.1.1\n');
  await file.apply(OURS);
  assert.deepEqual(serversIn(where.read()), ['10.88.0.1', 'fd88::1']);
  await file.apply({ ...OURS, servers: ['10.88.0.3'] });
  assert.deepEqual(serversIn(where.read()), ['10.88.0.3']);
  await file.revert();
  assert.equal(where.read(), 'nameserver 10.1.1.1\n');
});

test('a symbolic link is replaced, what it leads to is not touched, and the link comes back', async () => {
  const where = place(null);
  const target = join(where.path, '../managed.conf');
  writeFileSync(target, THEIRS);
  symlinkSync('managed.conf', where.path);
  const file = await open(where);
  await file.apply(OURS);
  assert.equal(lstatSync(where.path).isFile(), true);
  assert.equal(readFileSync(target, 'utf8'), THEIRS);
  assert.deepEqual(await file.servers(), ['192.168.1.1']);
  await file.revert();
  assert.equal(readlinkSync(where.path), 'managed.conf');
});

test('where there was no file there is none after', async () => {
  const where = place(null);
  const file = await open(where);
  await file.apply(OURS);
  assert.ok(existsSync(where.path));
  await file.revert();
  assert.equal(existsSync(where.path), false);
});

test('a journal that we did not write is not acted on', async () => {
  const where = place();
  for (const text of ['', '{}', '{"path":"/etc/shadow","before":{"kind":"file","text":"x","mode":420},"ours":""}']) {
    writeFileSync(where.journalPath, text);
    await assert.rejects(open(where), (error) => isVpnError(error, 'ERR_HOST_APPLY'));
  }
  assert.equal(where.read(), THEIRS);
});

test('what cannot be replaced is left alone', async () => {
  const where = place('x'.repeat(70_000));
  const file = await open(where);
  await assert.rejects(file.apply(OURS), (error) => isVpnError(error, 'ERR_HOST_APPLY'));
  assert.equal(where.read().length, 70_000);
});
