// The commands for accounts, devices and the record, as an operator types them, at a gateway that runs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { auditCommand } from '../../src/cli/audit.ts';
import { deviceCommand } from '../../src/cli/device.ts';
import type { CliHost } from '../../src/cli/host.ts';
import { userCommand } from '../../src/cli/user.ts';
import { stopsFinally, World } from '../support/world.ts';

const DAY_MS = 86_400_000;
const COMMANDS = new Map([
  ['user', userCommand],
  ['device', deviceCommand],
  ['audit', auditCommand],
]);

/** Runs a command in this process; what it writes to standard output. */
async function type(world: World, line: string): Promise<string> {
  const api = world.server.api(() => Promise.reject(new Error('not asked for')));
  const host = { openGateway: async () => ({ ...api, [Symbol.asyncDispose]: async () => {} }) } as unknown as CliHost;
  const [noun = '', ...words] = line.split(' ');
  const command = COMMANDS.get(noun)?.(host);
  const write = process.stdout.write;
  let said = '';
  process.stdout.write = ((text: string) => {
    said += text;
    return true;
  }) as typeof process.stdout.write;
  try {
    await command?.exitOverride().parseAsync(words, { from: 'user' });
  } finally {
    process.stdout.write = write;
  }
  return said;
}

/** The one document that it writes. */
const json = async (world: World, line: string) => JSON.parse(await type(world, `${line} --json`));

test('an account is made, put into groups, given an end, disabled, unlocked and deleted', async () => {
  await using world = await World.open({ tun: 'none' });
  const soon = Date.now() + 30 * DAY_MS;
  assert.match(await type(world, 'user add carol --group staff,admins --expires 30d'), /^added carol\n/);
  const shown = await json(world, 'user show carol');
  assert.deepEqual([shown.groups, shown.disabled, shown.passkeys], [['admins', 'staff'], false, []]);
  assert.ok(Math.abs(Date.parse(shown.expiresAt) - soon) < DAY_MS / 24, shown.expiresAt);
  assert.match(await type(world, 'user group carol --add board --remove staff'), /^carol is in: admins, board; 0 /);
  await assert.rejects(type(world, 'user group carol'), { code: 'ERR_USAGE' });
  assert.deepEqual(await json(world, 'user expire carol never'), { kicked: 0 });
  assert.match(await type(world, 'user disable carol'), /^disabled carol; 0 sessions ended/);
  const [listed] = await json(world, 'user list');
  assert.deepEqual([listed.name, listed.disabled, listed.expiresAt], ['carol', true, null]);
  assert.match(await type(world, 'user enable carol'), /^enabled carol/);
  assert.match(await type(world, 'user unlock carol'), /^nothing was held against carol/);
  assert.deepEqual(await json(world, 'user delete carol'), { kicked: 0 });
  await assert.rejects(type(world, 'user show carol'), { code: 'ERR_NOT_FOUND' });
  assert.equal(await type(world, 'user list'), 'no users; add one with: customvpn user add NAME\n');
});

test('a second factor comes as a picture and an address, with recovery codes; tokens are shown once', async () => {
  await using world = await World.open({ tun: 'none' });
  await type(world, 'user add carol');
  const text = await type(world, 'user totp carol');
  assert.match(text, /█/);
  assert.match(text, /^otpauth:\/\/totp\/\S+$/m);
  const codes = (from: string): string[] => from.match(/^ {2}[a-z2-7]{4}(?:-[a-z2-7]{4}){3}$/gm) ?? [];
  assert.equal(codes(text).length, 10);
  const others = codes(await type(world, 'user recovery carol'));
  assert.equal(others.length, 10);
  assert.ok(!others.some((code) => codes(text).includes(code)));
  assert.match(await type(world, 'user show carol'), /one-time codes +yes; 10 recovery codes left/);
  assert.match(await type(world, 'user totp carol --remove'), /^took the second factor away from carol/);
  assert.match(await type(world, 'user totp carol --remove'), /^carol has no second factor/);
  const { id, token } = await json(world, 'user token carol --name backup --scope tunnel,api --expires 90d');
  world.keepSecret(Buffer.from(token, 'base64url'));
  const listed = await type(world, 'user token carol');
  assert.match(listed, new RegExp(`${id} +carol +backup +tunnel api +`));
  assert.ok(!listed.includes(token));
  assert.match(await type(world, `user token --revoke ${id}`), /^revoked [0-9a-f]{16}; 0 sessions ended/);
  const [revoked] = await json(world, 'user token carol');
  assert.notEqual(revoked.revokedAt, null);
  await assert.rejects(type(world, 'user token carol --name x --scope everything'), { code: 'ERR_USAGE' });
  assert.match(await type(world, 'user passkeys carol'), /^no passkeys/);
  await assert.rejects(type(world, `user passkeys --remove ${'0'.repeat(32)}`), { code: 'ERR_NOT_FOUND' });
});

test('devices are listed, renamed, approved and revoked, and the record says what was done, by time and user', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  await world.connected('bob');
  const [device] = await json(world, 'device list --user alice');
  assert.deepEqual([device.id, device.user, device.state], [sim.key.id.toHex(), 'alice', 'enrolling']);
  assert.equal((await json(world, 'device list')).length, 2);
  assert.equal(await type(world, `device rename ${device.id} laptop`), `${device.id} is laptop\n`);
  assert.match(await type(world, 'user show alice'), new RegExp(`${device.id} +laptop +enrolling`));
  assert.equal(await type(world, `device revoke ${device.id}`), `revoked ${device.id}; 1 sessions ended\n`);
  await stopsFinally(sim, 'revoked');
  await assert.rejects(type(world, `device approve ${device.id}`), { code: 'ERR_CONFLICT' });
  const events = async (options: string) =>
    (await json(world, `audit ${options}`)).map(({ event }: { event: string }) => event);
  assert.deepEqual(await events('--since 1h --user alice --event device'), [
    'device.enrolled',
    'device.renamed',
    'device.revoked',
  ]);
  assert.deepEqual(await events('--user alice --event device --limit 1'), ['device.revoked']);
  assert.ok((await events('--user bob')).includes('login.accepted'));
  assert.deepEqual(await events('--since 2100-01-01'), []);
  assert.equal(await type(world, 'audit --since 2100-01-01'), 'nothing is recorded\n');
  const [record] = await json(world, 'audit --user alice --event session.opened');
  assert.deepEqual(Object.keys(record).sort(), ['at', 'detail', 'device', 'event', 'id', 'reason', 'source', 'user']);
  assert.equal(record.device, device.id);
  await assert.rejects(type(world, 'audit --limit 0'), { code: 'ERR_USAGE' });
  await assert.rejects(type(world, 'audit --since yesterdayish'), { code: 'ERR_USAGE' });
});
