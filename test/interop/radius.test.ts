/** The RADIUS back end at Debian's freeradius, run by the test on ports of its own. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { Secret } from '../../src/base/log.ts';
import type { BackendVerdict } from '../../src/identity/backends/backend.ts';
import { RadiusBackend, type RadiusOptions } from '../../src/identity/backends/radius.ts';
import { Freeradius, PROGRAM } from './freeradius.ts';

const SECRET = 'testing 123';
const USERS = {
  alice: { password: 'correct horse', classes: ['VPN', 'Ops'] },
  josé: { password: 'a pass phrase of more than sixteen bytes: é' },
  otto: { password: 'first', classes: ['VPN'], otp: true },
};
const never = new AbortController().signal;

describe('freeradius', { skip: existsSync(PROGRAM) ? false : 'freeradius: `apt-get install freeradius`' }, () => {
  let radius: Freeradius;

  before(async () => {
    radius = await Freeradius.start({ secret: SECRET, users: USERS });
  });
  after(() => radius?.[Symbol.asyncDispose]());

  function open(options: Partial<RadiusOptions> = {}, secret = SECRET): RadiusBackend {
    return new RadiusBackend({
      name: 'radius',
      secret: new Secret(secret),
      options: {
        servers: [radius.server],
        accountingServers: [radius.accountingServer],
        nasIdentifier: 'gate',
        groupAttribute: 'Class',
        groups: { VPN: 'staff', Ops: 'operators', Board: 'board' },
        tries: 2,
        timeoutSeconds: 2,
        interimSeconds: 600,
        ...options,
      },
    });
  }

  const login = (backend: RadiusBackend, user: string, password: string, state?: string): Promise<BackendVerdict> =>
    backend.authenticate(
      { user, password, source: '192.0.2.7:5555', ...(state === undefined ? {} : { state }) },
      never,
    );

  test('the right password is accepted with our groups, a wrong one and an unknown name are refused', async () => {
    const accepted = { kind: 'accepted', user: 'alice', groups: ['operators', 'staff'] };
    assert.deepEqual(await login(open(), 'alice', 'correct horse'), accepted);
    assert.deepEqual(await login(open(), 'josé', USERS.josé.password), { kind: 'accepted', user: 'josé', groups: [] });
    for (const [user, password] of [
      ['alice', 'battery staple'],
      ['mallory', 'x'],
    ] as const) {
      assert.equal((await login(open(), user, password)).kind, 'refused', user);
    }
    assert.match(radius.log, /Calling-Station-Id = "192\.0\.2\.7"/);
  });

  test('a challenge is asked and answered', async () => {
    const backend = open();
    const asked = await login(backend, 'otto', 'first');
    assert.ok(asked.kind === 'ask', JSON.stringify(asked));
    assert.equal(asked.prompt, 'One-time code:');
    assert.equal((await login(backend, 'otto', '654321', asked.state)).kind, 'refused');
    const accepted = { kind: 'accepted', user: 'otto', groups: ['staff'] };
    assert.deepEqual(await login(backend, 'otto', '123456', asked.state), accepted);
    assert.equal((await login(backend, 'otto', 'second')).kind, 'refused');
  });

  test('another secret gets no word', async () => {
    const verdict = await login(open({ timeoutSeconds: 0.3 }, 'another'), 'alice', 'correct horse');
    assert.equal(verdict.kind, 'unavailable', JSON.stringify(verdict));
  });

  test('a server that leaves Message-Authenticator out of its answers is not believed', async () => {
    await using old = await Freeradius.start({ secret: SECRET, users: USERS, signs: false });
    const verdict = await login(open({ servers: [old.server], timeoutSeconds: 0.5 }), 'alice', 'correct horse');
    assert.equal(verdict.kind, 'unavailable', JSON.stringify(verdict));
    assert.match('reason' in verdict ? verdict.reason : '', /no Message-Authenticator/);
    assert.match(old.log, /Access-Accept/);
  });

  test('start, interim and stop of a session are on record at the server', async () => {
    const backend = open();
    const session = {
      id: '0a1b2c3d',
      user: 'alice',
      remote: '192.0.2.7:5555',
      addresses: ['10.88.0.2'],
      seconds: 0,
      counters: { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 },
    };
    const counters = { receivedBytes: 0x1_0000_0007, receivedPackets: 9, sentBytes: 11, sentPackets: 2 };
    await backend.report({ ...session, status: 'start' }, never);
    await backend.report({ ...session, status: 'interim', seconds: 600, counters }, never);
    await backend.report({ ...session, status: 'stop', seconds: 700, counters, reason: 'peer_disconnect' }, never);
    const records = (await radius.records()).split(/\n\n/).filter((record) => record.includes('Acct-Session-Id'));
    assert.equal(records.length, 3);
    const [start = '', interim = '', stop = ''] = records;
    for (const record of records) assert.match(record, /Acct-Session-Id = "0a1b2c3d"/);
    assert.match(start, /Acct-Status-Type = Start/);
    assert.match(start, /Framed-IP-Address = 10\.88\.0\.2/);
    assert.match(interim, /Acct-Status-Type = Interim-Update/);
    assert.match(interim, /Acct-Input-Octets = 7\n[\s\S]*Acct-Input-Gigawords = 1\n/);
    assert.match(stop, /Acct-Status-Type = Stop/);
    assert.match(stop, /Acct-Terminate-Cause = User-Request/);
    assert.match(stop, /Acct-Session-Time = 700/);
    assert.match(stop, /NAS-Identifier = "gate"/);
  });
});
