// The operator's functions have a say in logins and policies, hear of sessions, and harm nothing else when they go wrong.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../../src/base/errors.ts';
import { exchange, until, World } from '../support/world.ts';

const folder = mkdtempSync(join(tmpdir(), 'customvpn-hook-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const file = join(folder, 'hooks.ts');
const POLICY = `version = 1
[[rules]]
name = "all"
action = "allow"
from = ["any"]
to = ["192.0.2.0/24"]
`;

function write(body: string): void {
  writeFileSync(file, body);
}

const said = (world: World): string[] =>
  world.lines.flatMap(({ msg, said: text }) => (msg === 'said by a hook' ? [String(text)] : []));

test('a hook refuses logins with a reason that only the record has, and hears of sessions', async () => {
  write(`
    export const onLogin = ({ user, groups, remote }: { user: string; groups: string[]; remote: string }) =>
      user === 'eve' ? { allow: false, reason: 'on leave' } : remote.startsWith('127.');
    export const onSessionStart = ({ id, user, addresses }) => console.log('start', id.length, user, addresses.join());
    export const onSessionEnd = ({ user, reason, receivedBytes }) => console.log('end', user, reason, receivedBytes > 0);
  `);
  await using world = await World.open({ config: { hook: { file } } });
  await assert.rejects(world.connected('eve'), (error) => isVpnError(error, 'ERR_AUTH_REJECTED'));
  const ada = await world.connected('ada');
  await exchange(world, ada);
  const refused = world.rows("select user, reason from audit where event = 'login.refused'");
  assert.deepEqual(
    refused.map((row) => ({ ...row })),
    [{ user: 'eve', reason: 'the hook onLogin refuses it: on leave' }],
  );
  world.server.kick(world.server.sessions[0]?.id ?? '');
  await until(() => said(world).length === 2, 'start and end');
  const [{ addresses: [v4 = ''] = [] } = {}] = [{ addresses: said(world)[0]?.split(' ').at(-1)?.split(',') }];
  assert.match(v4, /^10\.20\.0\.\d+$/);
  assert.match(said(world).join('\n'), /^start 8 ada .*\nend ada admin true$/);
});

test('while a hook blocks its thread, traffic flows and other logins wait no longer than their time', async () => {
  write(`export const onLogin = ({ user }) => { if (user === 'eve') for (;;); return true; };`);
  await using world = await World.open({ config: { hook: { file, timeoutSeconds: 3 } } });
  const ada = await world.connected('ada');
  const blocked = assert.rejects(world.connected('eve'), (error) => isVpnError(error, 'ERR_AUTH_REJECTED'));
  await exchange(world, ada);
  await exchange(world, ada, 6);
  await blocked;
  const loads = () => world.lines.filter(({ msg }) => msg === 'the hooks are loaded').length;
  await until(() => loads() === 2, 'another process', 30_000);
  assert.ok(world.lines.some(({ msg }) => msg === 'a hook blocks its process, which is started again'));
  const bob = await world.connected('bob');
  await exchange(world, bob);
  await exchange(world, ada);
});

test('a policy that the hook refuses does not take effect; a file of hooks that is broken leaves the former in force', async () => {
  const policyFile = join(folder, 'policy.toml');
  writeFileSync(policyFile, POLICY);
  write(`export const onPolicy = ({ text, digest, formerDigest }) =>
    text.includes('0.0.0.0/0') ? { allow: false, reason: 'too wide' } : digest !== formerDigest;`);
  await using world = await World.open({ config: { hook: { file }, policyFile } });
  const digest = async () => (await world.server.api(() => Promise.reject())['policy.text']({})).text;
  writeFileSync(policyFile, POLICY.replace('192.0.2.0/24', '0.0.0.0/0'));
  await assert.rejects(world.server.reload(), (error: Error) => {
    assert.ok(isVpnError(error, 'ERR_CONFIG_VALUE'));
    assert.equal(error.message, 'policyFile: the hook onPolicy refuses it: too wide');
    return true;
  });
  assert.match(await digest(), /192\.0\.2\.0/);
  writeFileSync(policyFile, POLICY.replace('192.0.2.0/24', '198.51.100.0/24'));
  write('export const onLogin = 1;');
  await assert.rejects(world.server.reload(), (error) => isVpnError(error, 'ERR_CONFIG_FILE'));
  assert.match(await digest(), /192\.0\.2\.0/);
  write('export const onLogin = () => false;');
  await world.server.reload();
  assert.match(await digest(), /198\.51\.100\.0/);
  await assert.rejects(world.connected('ada'), (error) => isVpnError(error, 'ERR_AUTH_REJECTED'));
});

test('a gateway whose file of hooks cannot be loaded does not start', async () => {
  write('export const onLogin = () => { syntax');
  await assert.rejects(World.open({ config: { hook: { file } } }), (error) => isVpnError(error, 'ERR_CONFIG_FILE'));
});
