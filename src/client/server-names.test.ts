// What is dialled when nobody answers: the addresses that a connection came about with.

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { silentLogger } from '../base/log.ts';
import { ServerNames } from './server-names.ts';

const folder = mkdtempSync(join(tmpdir(), 'cvpn-names-'));
after(() => rmSync(folder, { recursive: true }));

let count = 0;
function open(isApart = true): { names: ServerNames; path: string } {
  count += 1;
  const path = join(folder, `${count}.json`);
  // No server: our own resolver finds nothing, and needs no privilege to.
  return { path, names: new ServerNames({ path, isApart: () => isApart, servers: async () => [], log: silentLogger }) };
}

test('without an answer and without a memory there is an error that says so', async () => {
  const { names } = open();
  await assert.rejects(names.lookup('vpn.test'), (error) => isVpnError(error, 'ERR_NAME_LOOKUP'));
});

test('what worked last is dialled when nobody answers, the address that was reached first', async () => {
  const { names, path } = open(false);
  const found = await names.lookup('localhost');
  assert.ok(found.includes('127.0.0.1') || found.includes('::1'));
  await names.confirm(found.at(-1) ?? '');
  const kept = JSON.parse(readFileSync(path, 'utf8')) as Record<string, string[]>;
  assert.equal(kept.localhost?.[0], found.at(-1));
  assert.deepEqual(kept.localhost?.toSorted(), [...new Set(found)].toSorted());

  writeFileSync(path, JSON.stringify({ 'vpn.test': ['192.0.2.7', '2001:db8::7'] }));
  const later = new ServerNames({ path, isApart: () => true, servers: async () => [], log: silentLogger });
  assert.deepEqual(await later.lookup('vpn.test'), ['192.0.2.7', '2001:db8::7']);
});

test('what was found and never connected to is not kept', async () => {
  const { names, path } = open(false);
  await names.lookup('localhost');
  assert.throws(() => readFileSync(path));
});

test('a file that is broken, or holds no addresses, is as good as none', async () => {
  const { names, path } = open();
  for (const text of ['', '{', '[]', '{"vpn.test":["not an address"]}', '{"vpn.test":[]}']) {
    writeFileSync(path, text);
    await assert.rejects(names.lookup('vpn.test'), (error) => isVpnError(error, 'ERR_NAME_LOOKUP'), text);
  }
});
