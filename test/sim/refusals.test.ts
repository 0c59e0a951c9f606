// Logins that are refused, gateways that are full, many clients at once, and configurations that cannot be used.

import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { ErrorCode } from '../../src/base/errors.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { initGateway } from '../../src/gateway/init.ts';
import { readGatewayConfig } from '../../src/gateway/layout.ts';
import { VpnServer } from '../../src/gateway/server.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import { addressOf, exchange, type RawLogin, until, World } from '../support/world.ts';

interface Refusal {
  event: unknown;
  reason: unknown;
  detail: Record<string, unknown>;
}

/** What the record says of the last refusal. */
function lastRefusal(world: World): Refusal | undefined {
  const row = world
    .rows("select event, reason, detail from audit where event in ('login.refused', 'token.reused') order by id")
    .at(-1);
  return (
    row && { event: row.event, reason: row.reason, detail: JSON.parse(String(row.detail)) as Record<string, unknown> }
  );
}

test('REQ-ENROL-002: two clients with one profile: the second is told profile_used, and the record names both', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice');
  const first = await world.connected('alice', { profile });
  const second = await world.client('alice', { profile });
  await assert.rejects(second.client.connect(), { code: 'ERR_AUTH_PROFILE_USED' });
  const refusal = lastRefusal(world);
  assert.equal(refusal?.event, 'token.reused');
  assert.equal(refusal.detail.firstDevice, first.key.id.toHex());
  assert.equal(refusal.detail.secondDevice, second.key.id.toHex());
  assert.match(String(refusal.detail.firstSource), /^127\.0\.0\.1:\d+$/);
  assert.match(String(refusal.detail.secondSource), /^127\.0\.0\.1:\d+$/);
  assert.notEqual(refusal.detail.firstSource, refusal.detail.secondSource);
  await exchange(world, first);
});

test('two clients with one profile at the same moment: one gets in, the other is told profile_used', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice');
  const sims = await Promise.all([world.client('alice', { profile }), world.client('alice', { profile })]);
  const outcomes = await Promise.allSettled(sims.map(({ client }) => client.connect({ once: true })));
  const codes = outcomes.map((outcome) => (outcome.status === 'fulfilled' ? 'in' : String(outcome.reason.code)));
  assert.deepEqual(codes.sort(), ['ERR_AUTH_PROFILE_USED', 'in']);
});

test('a lost ACCEPT locks nobody out: the same device may use its token again', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice');
  const device = DeviceKey.generate();
  const raw = await world.raw();
  await raw.login({ device, token: profile.token?.reveal() });
  raw.socket.destroy();
  const sim = await world.connected('alice', { profile, deviceKey: device });
  await exchange(world, sim);
});

test('REQ-ENROL-003: a token past its time is told so', async () => {
  const clock = new ManualClock(Date.now());
  await using world = await World.open({ clock });
  const profile = await world.profile('alice', { validHours: 1 });
  clock.advance(3_600_001);
  const sim = await world.client('alice', { profile });
  await assert.rejects(sim.client.connect(), { code: 'ERR_AUTH_TOKEN_EXPIRED' });
  await exchange(world, await world.connected('bob'));
});

test('REQ-ENROL-004: a device that must be approved waits, and gets in when it is', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice', { approve: true });
  const sim = await world.client('alice', { profile });
  await assert.rejects(sim.client.connect({ once: true }), { code: 'ERR_AUTH_APPROVAL_PENDING' });
  const { administration } = world.server;
  assert.equal((await administration['device.list']({ user: 'alice' }))[0]?.state, 'pending');
  await administration['device.approve']({ id: sim.key.id.toHex() });
  await exchange(world, await world.connected('alice', { profile, deviceKey: sim.key }));
});

const tampered: readonly [what: string, login: RawLogin, why: RegExp][] = [
  ['a signature with one bit changed', { sign: (bytes, device) => flip(device.sign(bytes), 10) }, /signature is wrong/],
  ['a signature of another key', { sign: (bytes) => DeviceKey.generate().sign(bytes) }, /signature is wrong/],
  ['a signature over other bytes', { sign: (bytes, device) => device.sign(flip(bytes, 70)) }, /signature is wrong/],
  ["a name that is not the token's user", { user: 'bob' }, /name is not that/],
  ['a token with one bit changed', { tamper: (frame) => withToken(frame) }, /token is unknown or wrong|signature/],
];
for (const [what, login, why] of tampered) {
  test(`REQ-LOGIN-022: ${what} is answered with rejected and nothing else`, async () => {
    await using world = await World.open();
    const bob = await world.connected('bob');
    const { token } = await world.profile('alice');
    const raw = await world.raw();
    await assert.rejects(raw.login({ token: token?.reveal(), ...login }), {
      code: 'ERR_AUTH_REJECTED',
      details: { reject: 'rejected' },
    });
    await raw.closed();
    assert.match(String(lastRefusal(world)?.reason), why);
    assert.equal((await world.status()).counters.refused_rejected, 1);
    assert.equal((await world.status()).pool[0]?.used, 1);
    await exchange(world, bob);
    // The token is not burnt by it.
    const again = await world.raw();
    await again.login({ token: token?.reveal() });
  });
}

function flip(bytes: Uint8Array, at: number): Uint8Array {
  const copy = Uint8Array.from(bytes);
  copy[at] = (copy[at] ?? 0) ^ 1;
  return copy;
}

/** An ANSWER whose token has another character at its end; other frames as they are. */
function withToken(frame: Uint8Array): Uint8Array {
  if (frame[0] !== FrameType.answer) return frame;
  const text = Buffer.from(frame).toString('latin1');
  const at = text.indexOf('"token"') + 20;
  return Uint8Array.from(frame, (byte, index) => (index !== at ? byte : byte === 0x41 ? 0x42 : 0x41));
}

test('REQ-LOGIN-022: an unknown device and an unknown token are answered alike', async () => {
  await using world = await World.open();
  for (const login of [{}, { token: new Uint8Array(40) }]) {
    const raw = await world.raw();
    await assert.rejects(raw.login(login), { code: 'ERR_AUTH_REJECTED', message: /refused the login$/ });
  }
});

test('answers that do not fit the steps end the connection: ERR_MESSAGE_FIELD', async () => {
  await using world = await World.open();
  const { token } = await world.profile('alice');
  const answers = [
    [],
    [{ kind: 'device', value: 'A'.repeat(86) }],
    [
      { kind: 'token', value: 'A' },
      { kind: 'device', value: 'A' },
    ],
    [
      { kind: 'device', value: 'A'.repeat(85) },
      { kind: 'token', value: 'A'.repeat(54) },
    ],
    [
      { kind: 'device', value: 'A'.repeat(86) },
      { kind: 'password', value: 'x' },
    ],
  ];
  for (const list of answers) {
    const raw = await world.raw();
    const tamper = (frame: Uint8Array): Uint8Array => {
      if (frame[0] !== FrameType.answer) return frame;
      const payload = Buffer.from(JSON.stringify({ answers: list }));
      return Buffer.concat([Uint8Array.of(FrameType.answer, 0, payload.length >> 8, payload.length & 0xff), payload]);
    };
    await assert.rejects(raw.login({ token: token?.reveal(), tamper }), /CLOSE protocol_error/);
    await raw.closed();
  }
  assert.equal((await world.status()).counters.refused_err_message_field, answers.length);
  await exchange(world, await world.connected('bob'));
});

test('an application may refuse a login that the steps have accepted, and learns of sessions', async () => {
  const seen: string[] = [];
  await using world = await World.open({
    hooks: {
      authorizeLogin: ({ user, device, remote, groups }) => {
        assert.match(device, /^[0-9a-f]{32}$/);
        assert.match(remote, /^127\.0\.0\.1:\d+$/);
        assert.deepEqual(groups, []);
        if (user === 'carol') throw new Error('the directory is down');
        return user === 'alice';
      },
      onSessionStart: ({ user, addresses }) => void seen.push(`start ${user} ${addresses.join(' ')}`),
      onSessionEnd: ({ user, receivedBytes }, reason) => void seen.push(`end ${user} ${reason} ${receivedBytes > 0}`),
    },
  });
  for (const user of ['bob', 'carol']) {
    const sim = await world.client(user);
    await assert.rejects(sim.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  }
  const alice = await world.connected('alice');
  await exchange(world, alice);
  await alice.client.disconnect();
  await until(() => seen.length === 2, 'both hooks');
  assert.deepEqual(seen, ['start alice 10.20.0.2 fd20:1::2', 'end alice peer_disconnect true']);
});

test('a login can be called off at any time: the client stops, and no session stays', async () => {
  const asked = Promise.withResolvers<void>();
  const verdict = Promise.withResolvers<boolean>();
  await using world = await World.open({
    config: { data: { mode: 'inline' } },
    hooks: {
      authorizeLogin: () => {
        asked.resolve();
        return verdict.promise;
      },
    },
  });
  const { client } = await world.client('alice');
  const connecting = assert.rejects(client.connect(), { code: 'ERR_PEER_GONE' });
  await asked.promise;
  await client.disconnect();
  await connecting;
  assert.equal(client.snapshot.state, 'stopped');
  verdict.resolve(true);
  await until(() => world.server.sessions.length === 0, 'no session');
});

test('a device that is revoked while its login is being judged gets no session', async () => {
  const asked = Promise.withResolvers<string>();
  const verdict = Promise.withResolvers<boolean>();
  await using world = await World.open({
    hooks: {
      authorizeLogin: ({ device }) => {
        asked.resolve(device);
        return verdict.promise;
      },
    },
  });
  const { client } = await world.client('alice');
  const connecting = assert.rejects(client.connect(), { code: 'ERR_AUTH_REJECTED' });
  await world.server.administration['device.revoke']({ id: await asked.promise });
  verdict.resolve(true);
  await connecting;
  assert.deepEqual(world.server.sessions, []);
});

test('hooks that throw change nothing', async () => {
  const fail = (): never => {
    throw new Error('a bug of the application');
  };
  await using world = await World.open({ hooks: { onSessionStart: fail, onSessionEnd: fail } });
  const sim = await world.connected('alice');
  await exchange(world, sim);
  await sim.client.disconnect();
  await until(() => world.lines.filter(({ msg }) => msg === 'a session hook failed').length === 2, 'both lines');
});

test('REQ-SESSION-002: a full pool is told as pool_exhausted, which a client retries; others are not touched', async () => {
  await using world = await World.open({ config: { pool: ['10.20.0.0/30'] } });
  const first = await world.connected('alice');
  const second = await world.client('bob');
  await assert.rejects(second.client.connect({ once: true }), { code: 'ERR_POOL_EXHAUSTED' });
  await exchange(world, first);
  assert.equal((await world.status()).counters.refused_pool_exhausted, 1);
  const waiting = await world.client('carol');
  const connected = waiting.client.connect();
  await until(() => waiting.client.snapshot.state === 'waiting', 'the wait');
  await first.client.disconnect();
  await connected;
  assert.equal(addressOf(waiting, 4), '10.20.0.2');
  await exchange(world, waiting);
});

test('too many sessions are told as too_many_sessions', async () => {
  await using world = await World.open({ config: { limits: { sessions: 1 } } });
  const first = await world.connected('alice');
  const second = await world.client('bob');
  await assert.rejects(second.client.connect({ once: true }), { code: 'ERR_TOO_MANY_SESSIONS' });
  await exchange(world, first);
  await first.client.disconnect();
  await until(() => world.server.sessions.length === 0, 'room');
  await exchange(world, await world.connected('carol'));
});

test('REQ-STAGE-001: a login that takes too long is ended: ERR_STAGE_TIMEOUT', async () => {
  const clock = new ManualClock(Date.now());
  await using world = await World.open({ clock, config: { limits: { loginSeconds: 5 } } });
  const good = await world.connected('bob');
  const silent = await (await world.raw()).greeted();
  const pinging = await (await world.raw()).greeted();
  const { token } = await world.profile('alice');
  const half = await world.raw();
  const login = half.login({
    token: token?.reveal(),
    tamper: (frame) => (frame[0] === FrameType.answer ? undefined : frame),
  });
  login.catch(() => {});
  await until(async () => (await world.status()).counters.connections === 5, 'all connections');
  clock.advance(5_001);
  pinging.send(FrameType.ping, new Uint8Array(0));
  for (const raw of [silent, pinging]) {
    assert.equal((await raw.message('close')).reason, 'dead_peer');
    await raw.closed();
  }
  await assert.rejects(login, /CLOSE dead_peer/);
  assert.equal(world.withCode('ERR_STAGE_TIMEOUT').length, 3);
  assert.equal((await world.status()).counters.refused_err_stage_timeout, 3);
  await exchange(world, good);
});

test('fifty clients at once: each gets its own addresses, and its own packets only', async () => {
  await using world = await World.open({ config: { limits: { connectionsPerSource: 256 } } });
  const sims = await Promise.all(Array.from({ length: 50 }, (_, at) => world.client(`user${at}`)));
  await Promise.all(sims.map(({ client }) => client.connect({ once: true })));
  assert.equal(new Set(sims.map((sim) => addressOf(sim, 4))).size, 50);
  assert.equal(new Set(sims.map((sim) => addressOf(sim, 6))).size, 50);
  for (const sim of sims) await exchange(world, sim, 4);
  for (const { host } of sims) assert.equal(host.tun.counters.writtenPackets, 1);
  assert.equal((await world.status()).sessions, 50);
  await Promise.all(sims.map(({ client }) => client.disconnect()));
  await until(() => world.server.sessions.length === 0, 'the end of all sessions');
  assert.equal((await world.status()).pool[0]?.used, 0);
  assert.deepEqual(await world.drops(), {});
});

test('connections beyond what one source may have are refused, and the gateway serves on', async () => {
  await using world = await World.open({ config: { limits: { connectionsPerSource: 4 } } });
  const good = await world.connected('alice');
  await world.raw();
  await world.raw();
  await assert.rejects(world.raw());
  assert.ok(((await world.status()).counters.refusedSource ?? 0) > 0);
  assert.equal(world.withCode('ERR_TOO_MANY_CONNECTIONS').length, 1);
  await exchange(world, good);
});

test('a port that is taken: ERR_PORT_TAKEN, and what runs there runs on', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const second = new VpnServer({
    address: '127.0.0.1',
    port: world.port,
    names: ['localhost'],
    stateDir: world.dir,
    tun: 'none',
  });
  await assert.rejects(second.start(), {
    code: 'ERR_PORT_TAKEN',
    details: { errno: 'EADDRINUSE', address: '127.0.0.1', port: world.port },
  });
  await exchange(world, sim);
});

test('an address of this machine in IPv6 serves as well', async () => {
  await using world = await World.open({ config: { address: '::1' } });
  await exchange(world, await world.connected('alice'));
});

let dir = '';
before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'customvpn-config-'));
  await initGateway(dir, { names: ['localhost'] });
});
after(() => rmSync(dir, { recursive: true }));

const files: readonly [what: string, text: string, code: ErrorCode, details: Record<string, unknown>][] = [
  ['bad syntax', 'port = 1\nnames = [', 'ERR_CONFIG_SYNTAX', { line: 2 }],
  ['an unknown key', 'port = 1\n\ncolour = "red"\n', 'ERR_CONFIG_KEY', { key: 'colour', line: 3 }],
  ['an unknown key in a table', '[limits]\nsesions = 3\n', 'ERR_CONFIG_KEY', { key: 'limits.sesions', line: 2 }],
  ['a bad value', 'address = "::"\nport = 70000\n', 'ERR_CONFIG_VALUE', { key: 'port', line: 2 }],
  ['a value of the wrong type', 'names = "localhost"\n', 'ERR_CONFIG_VALUE', { key: 'names', line: 1 }],
  ['a bad prefix', 'pool = ["10.0.0.0/33"]\n', 'ERR_CONFIG_VALUE', { line: 1 }],
];
for (const [what, text, code, details] of files) {
  test(`a configuration with ${what}: ${code}, with file, key and line`, async () => {
    const file = join(dir, 'broken.toml');
    writeFileSync(file, text);
    await assert.rejects(readGatewayConfig(file), (error: { code: string; details: Record<string, unknown> }) => {
      assert.equal(error.code, code);
      assert.equal(error.details.path, file);
      for (const [name, value] of Object.entries(details)) assert.equal(error.details[name], value, name);
      return true;
    });
  });
}

test('a configuration that is missing or cannot be read: ERR_CONFIG_FILE', async () => {
  const missing = join(dir, 'absent.toml');
  await assert.rejects(readGatewayConfig(missing), {
    code: 'ERR_CONFIG_FILE',
    details: { path: missing, errno: 'ENOENT' },
  });
  await assert.rejects(readGatewayConfig(dir), { code: 'ERR_CONFIG_FILE', details: { path: dir, errno: 'EISDIR' } });
  const closed = join(dir, 'closed.toml');
  writeFileSync(closed, '');
  chmodSync(closed, 0);
  if (process.getuid?.() !== 0) await assert.rejects(readGatewayConfig(closed), { code: 'ERR_CONFIG_FILE' });
  await assert.rejects(
    new VpnServer({
      port: 0,
      stateDir: tmpdir(),
      certFile: join(dir, 'certs/server.pem'),
      keyFile: join(dir, 'certs/server.key'),
      tun: 'none',
    }).start(),
    { code: 'ERR_CONFIG_FILE' },
  );
});

test('options that cannot be right are refused by the constructor: ERR_CONFIG_VALUE', () => {
  for (const options of [{ port: -1 }, { pool: [] }, { mtu: 100 }, { device: 'a name that is too long' }]) {
    assert.throws(() => new VpnServer({ ...options, tun: 'none' }), { code: 'ERR_CONFIG_VALUE' });
  }
});

const unusable: readonly [what: string, options: object, code: ErrorCode][] = [
  ['a certificate that is missing', { certFile: 'certs/absent.pem' }, 'ERR_CERT_FILE'],
  ['a key that is no key', { keyFile: 'server.toml' }, 'ERR_CERT_FILE'],
  ['a key of another certificate', { keyFile: 'certs/ca.key' }, 'ERR_CERT_KEY_MISMATCH'],
  ['two pools of one family', { pool: ['10.1.0.0/24', '10.2.0.0/24'] }, 'ERR_CONFIG_VALUE'],
  ['a pool without room', { pool: ['10.1.0.0/31'] }, 'ERR_CONFIG_VALUE'],
  ['an address of another machine', { address: '192.0.2.1' }, 'ERR_CONFIG_VALUE'],
];
for (const [what, options, code] of unusable) {
  test(`a gateway with ${what} does not start: ${code}`, async () => {
    const server = new VpnServer({
      address: '127.0.0.1',
      port: 0,
      names: ['localhost'],
      ...options,
      stateDir: dir,
      tun: 'none',
    });
    await assert.rejects(server.start(), { code });
    assert.throws(() => server.address, { code: 'ERR_NOT_RUNNING' });
    await server.stop();
  });
}

test('a client that was told to trust another name or key does not connect, and says why', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice');
  const wrong: readonly [object, ErrorCode][] = [
    [{ serverName: 'vpn.example.org' }, 'ERR_CERT_NAME'],
    [{ pins: [`${'A'.repeat(43)}=`] }, 'ERR_CERT_PIN'],
    [{ ca: undefined, caFile: join(dir, 'certs/ca.pem') }, 'ERR_CERT_UNTRUSTED'],
    [{ caFile: join(dir, 'absent.pem') }, 'ERR_CERT_FILE'],
  ];
  for (const [options, code] of wrong) {
    const sim = await world.client('alice', { profile, ...options });
    await assert.rejects(sim.client.connect(), { code });
    assert.equal(sim.client.snapshot.state, 'stopped');
  }
  const insecure = await world.client('alice', { profile, verifyServer: false });
  await assert.rejects(insecure.client.connect(), { code: 'ERR_CERT_UNTRUSTED' });
  assert.equal(lastRefusal(world), undefined, 'nothing was answered to a server that was not verified');
  const sim = await world.client('alice', { profile: withoutToken(profile) });
  await assert.rejects(sim.client.connect(), { code: 'ERR_AUTH_REJECTED' });
});
