/** Sessions end when the time of what they rest on is over, and not a moment before. */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Clock } from '../../src/base/clock.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { TestAuthority } from '../support/certificates.ts';
import { exchange, type SimClient, until, World } from '../support/world.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

/** The machine's clock, whose wall time can be set ahead: no session notices that but by what ends then. */
class SettableWall implements Clock {
  ahead = 0;
  reads = 0;

  now(): number {
    this.reads += 1;
    return performance.now();
  }

  wallNow(): number {
    return Date.now() + this.ahead;
  }

  bootNow(): number {
    return performance.now();
  }
}

function endings(world: World): unknown[] {
  return world.rows("select reason from audit where event = 'session.ended' order by id").map(({ reason }) => reason);
}

/** The client has been told, has tried again, and knows that it is refused. */
async function isRefused({ client, host }: SimClient): Promise<void> {
  await until(() => client.snapshot.state === 'stopped', 'the client to be told', 10_000);
  assert.equal(host.isClosed, true, 'the machine is put back');
}

test('REQ-LIMIT-004: an account that expires loses its sessions, live and waiting; one whose end was moved keeps them', async () => {
  const clock = new SettableWall();
  await using world = await World.open({ clock });
  const { administration } = world.server;
  const at = (ms: number) => new Date(clock.wallNow() + ms).toISOString();
  for (const name of ['ada', 'bob']) await administration['user.add']({ name, expiresAt: at(HOUR) });
  const [ada, bob, eve] = [await world.connected('ada'), await world.connected('bob'), await world.connected('eve')];
  const raw = await world.raw();
  await raw.login({ token: (await world.profile('ada')).token?.reveal(), features: ['attach', 'resume'] });
  world.keepSessions();
  raw.socket.destroy();
  await until(() => world.server.sessions.some(({ waiting }) => waiting), 'a session that waits');
  await administration['user.expire']({ name: 'bob', expiresAt: at(HOUR + 2 * MINUTE) });
  clock.ahead = HOUR - MINUTE;
  await exchange(world, ada, 4);
  clock.ahead = HOUR + MINUTE;
  await until(() => world.server.sessions.length === 2, 'the end of both sessions', 10_000);
  await isRefused(ada);
  assert.match(ada.client.snapshot.lastError?.message ?? '', /: revoked$/);
  assert.deepEqual(endings(world), ['revoked', 'revoked']);
  for (const stays of [bob, eve]) await exchange(world, stays, 4);
  assert.deepEqual(world.server.sessions.map(({ user }) => user).toSorted(), ['bob', 'eve']);
});

test('REQ-LIMIT-004: a session ends with the access token of its login, also after a restart of the gateway; others of the user stay', async () => {
  const clock = new SettableWall();
  const login = { steps: ['device' as const], groups: { robots: { steps: ['device' as const, 'token' as const] } } };
  await using world = await World.open({ clock, config: { login } });
  const { administration } = world.server;
  await administration['user.add']({ name: 'robot', groups: ['robots'] });
  const issue = async (name: string, ms: number) => {
    const expiresAt = new Date(clock.wallNow() + ms).toISOString();
    const { token } = await administration['token.issue']({ user: 'robot', name, scopes: ['tunnel'], expiresAt });
    world.keepSecret(Buffer.from(token, 'base64url'));
    return token;
  };
  const connected = async (token: string) => {
    const first = await world.connected('robot');
    await first.client.disconnect();
    const profile = withoutToken(await world.profile('robot'));
    return await world.connected('robot', { deviceKey: first.key, profile, answer: async () => ({ token }) });
  };
  const [short, middle, long] = [
    await issue('short', HOUR),
    await issue('middle', HOUR + 2 * MINUTE),
    await issue('long', 9 * HOUR),
  ];
  const [first, second, third] = [await connected(short), await connected(middle), await connected(long)];
  const before = endings(world).length;
  clock.ahead = HOUR - MINUTE;
  await exchange(world, first, 4);
  clock.ahead = HOUR + MINUTE;
  await isRefused(first);
  assert.equal(first.client.snapshot.lastError?.code, 'ERR_AUTH_REJECTED');
  assert.deepEqual(endings(world).slice(before), ['session_timeout']);
  await world.server.stop();
  await world.restart();
  await until(() => second.client.snapshot.state === 'connected', 'the second to resume', 10_000);
  await exchange(world, second, 4);
  clock.ahead = HOUR + 3 * MINUTE;
  await isRefused(second);
  await exchange(world, third, 4);
});

test('REQ-LIMIT-004: a session ends with the client certificate of its login', async () => {
  const clock = new SettableWall();
  const path = mkdtempSync(join(tmpdir(), 'customvpn-expiry-'));
  try {
    const authority = await TestAuthority.create();
    const caFile = join(path, 'ca.pem');
    writeFileSync(caFile, authority.cert);
    await using world = await World.open({
      clock,
      config: { requireClientAuth: 'optional', caFile, login: { steps: ['device', 'certificate'] } },
    });
    const holder = async (name: string, notAfterHours: number) => {
      const { cert, key } = await authority.client(name, { notAfterHours });
      const files = { certFile: join(path, `${name}.pem`), keyFile: join(path, `${name}.key`) };
      writeFileSync(files.certFile, cert);
      writeFileSync(files.keyFile, key, { mode: 0o600 });
      return await world.connected(name, files);
    };
    // The look that ends the one has seen the other, too.
    const [ada, bob] = [await holder('ada', 1), await holder('bob', 1 + 2 / 60)];
    clock.ahead = HOUR - MINUTE;
    await exchange(world, ada, 4);
    clock.ahead = HOUR + MINUTE;
    await until(() => endings(world).length > 0, 'the end of the session', 10_000);
    assert.deepEqual(endings(world), ['session_timeout']);
    await exchange(world, bob, 4);
    await ada.client.disconnect();
  } finally {
    rmSync(path, { recursive: true });
  }
});

test('REQ-LIMIT-007: a wall clock that jumps by an hour, either way, ends no session and delays no end', async () => {
  const wall = new SettableWall();
  await using world = await World.open({ clock: wall });
  const sim = await world.connected('alice', { clock: wall });
  for (const jump of [HOUR, -2 * HOUR, HOUR]) {
    wall.ahead += jump;
    const ticks = wall.reads;
    await until(() => wall.reads > ticks + 4, 'a few looks at the clock');
    await exchange(world, sim);
    const { state, reconnects, rekeys } = sim.client.snapshot;
    assert.deepEqual([state, reconnects, rekeys], ['connected', 0, 0]);
    assert.equal(world.server.sessions.length, 1);
  }
});
