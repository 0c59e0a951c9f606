// Somebody between a client and its gateway, whose certificate the client trusts: what is relayed proves nothing.

import assert from 'node:assert/strict';
import { createPrivateKey } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect as connectTls, createServer as createTls, type TLSSocket } from 'node:tls';
import { DeviceKey } from '../../src/client/device-key.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { exchange, RawClient, until, World } from '../support/world.ts';

/** A relay of bytes between two TLS connections. */
interface Interceptor extends AsyncDisposable {
  readonly port: number;
  /** Bytes that it has read in the clear, from clients. */
  readonly seen: Buffer[];
}

/** Ends clients' TLS with the gateway's own certificate and key, as somebody does who has stolen both. */
async function intercept(world: World): Promise<Interceptor> {
  const seen: Buffer[] = [];
  const sockets: TLSSocket[] = [];
  const server = createTls(
    {
      cert: readFileSync(join(world.dir, 'certs/server.pem')),
      key: readFileSync(join(world.dir, 'certs/server.key')),
      ALPNCallback: ({ protocols }) => protocols[0],
    },
    (near) => {
      const far = connectTls({
        host: '127.0.0.1',
        port: world.port,
        rejectUnauthorized: false,
        ALPNProtocols: [String(near.alpnProtocol)],
      });
      sockets.push(near, far);
      near.on('data', (bytes: Buffer) => void seen.push(bytes));
      near.pipe(far).pipe(near);
      for (const socket of [near, far]) socket.on('error', () => {});
    },
  );
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return {
    port: address.port,
    seen,
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

function reasons(world: World, event: string): string[] {
  return world
    .rows(`select reason from audit where event = '${event}' order by id`)
    .map(({ reason }) => String(reason));
}

test('REQ-DEVICE-003: an enrolment and a login that are relayed onto another TLS connection are refused, and the device gets in directly', async () => {
  await using world = await World.open();
  await using relay = await intercept(world);
  const profile = await world.profile('alice');
  const deviceKey = DeviceKey.generate();
  const enrolling = await world.client('alice', { profile, deviceKey, serverPort: relay.port });
  await assert.rejects(enrolling.client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  assert.ok(Buffer.concat(relay.seen).includes('"answers"'), 'the client trusted the relay, and answered');
  assert.deepEqual(world.server.sessions, []);
  assert.equal(world.rows('select id from devices').length, 0, 'no device came of it');
  // The token has been seen, but is not used up: whoever has the profile may still enrol.
  const sim = await world.connected('alice', { profile, deviceKey });
  await exchange(world, sim);
  await sim.client.disconnect();
  const login = await world.client('alice', { profile: withoutToken(profile), deviceKey, serverPort: relay.port });
  await assert.rejects(login.client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  assert.deepEqual(world.server.sessions, []);
  const refused = reasons(world, 'login.refused');
  assert.equal(refused.length, 2);
  for (const reason of refused) assert.match(reason, /signature is wrong/);
  // Of its key nothing was said but the public half.
  const { d = '' } = createPrivateKey(deviceKey.toPem()).export({ format: 'jwk' });
  const [seen, secret] = [Buffer.concat(relay.seen), Buffer.from(d, 'base64url')];
  assert.equal(secret.length, 32);
  assert.ok(seen.includes(Buffer.from(deviceKey.publicKey).toString('base64url')));
  for (const encoding of ['hex', 'base64', 'base64url'] as const) assert.ok(!seen.includes(secret.toString(encoding)));
  assert.ok(!seen.includes(secret));
  await exchange(world, await world.connected('alice', { profile: withoutToken(profile), deviceKey }));
});

test('REQ-PROOF-002: a resume that is relayed onto another TLS connection is refused, and the session still waits for its client', async () => {
  await using world = await World.open();
  await using relay = await intercept(world);
  const { token } = await world.profile('alice');
  const raw = await world.raw();
  const session = await raw.login({ token: token?.reveal(), features: ['resume'] });
  world.keepSessions();
  raw.socket.destroy();
  await until(() => world.server.sessions.some(({ waiting }) => waiting), 'the loss');
  const relayed = await RawClient.connect(relay.port, world.ca, {});
  // The proof of the session is bound to the connection, too: the gateway does not say whether there is one.
  await assert.rejects(relayed.resume(session), { code: 'ERR_SESSION_UNKNOWN' });
  assert.equal(reasons(world, 'session.resume_refused').length, 1);
  const { done } = await (await world.raw()).resume(session);
  await done();
});

test('a profile that was copied to a second machine after its use is worth nothing there, with or without the token', async () => {
  await using world = await World.open();
  const profile = await world.profile('alice');
  const first = await world.connected('alice', { profile });
  for (const [copy, code] of [
    [profile, 'ERR_AUTH_PROFILE_USED'],
    [withoutToken(profile), 'ERR_AUTH_REJECTED'],
  ] as const) {
    const second = await world.client('alice', { profile: copy });
    await assert.rejects(second.client.connect({ once: true }), { code });
  }
  assert.equal(world.rows('select id from devices').length, 1);
  await exchange(world, first);
});
