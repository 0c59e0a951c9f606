// What a rule requires of a session, over the session's life: a second factor that has become too old takes away, within a
// second and without a new login, what it had opened, and nothing else. The network behind the gateway is of this process.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { test } from 'node:test';
import { URI } from 'otpauth';
import { ManualClock } from '../../src/base/clock.ts';
import { ProxyStreams } from '../../src/client/proxy-streams.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { until, World } from '../support/world.ts';

const LIMIT = { timeout: 60_000 };
const MFA_MINUTES = 10;
const MINUTE_MS = 60_000;
/** The gateway looks every second whether something has changed by itself. */
const LOOK_MS = 1500;
const POLICY = `version = 1
[[rules]]
name = "fresh"
action = "allow"
from = ["any"]
to = ["192.0.2.1"]
require = { mfaMinutes = ${MFA_MINUTES} }
[[rules]]
name = "always"
action = "allow"
from = ["any"]
to = ["192.0.2.2"]
`;

async function says(stream: Duplex, word: string): Promise<void> {
  stream.write(word);
  assert.equal(String((await once(stream, 'data'))[0]), word);
}

test(
  'a second factor that is too old takes away what it has opened, and a new login gives it back',
  LIMIT,
  async () => {
    await using undo = new AsyncDisposableStack();
    const folder = mkdtempSync(join(tmpdir(), 'customvpn-conditions-'));
    undo.defer(() => rmSync(folder, { recursive: true }));
    const policyFile = join(folder, 'policy.toml');
    writeFileSync(policyFile, POLICY);
    const network = undo.use(new TargetNetwork());
    for (const address of ['192.0.2.1', '192.0.2.2']) {
      await network.serve(address, 7, (socket) => void socket.pipe(socket));
    }
    // Rules by the hour are looked at with each minute: it is to lapse within one.
    const clock = new ManualClock(Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS + 15_000);
    const world = undo.use(
      await World.open({ network, clock, tun: 'none', config: { policyFile, login: { steps: ['device', 'totp'] } } }),
    );
    const { administration } = world.server;
    await administration['user.add']({ name: 'ada' });
    const app = URI.parse((await administration['user.totp']({ name: 'ada' })).uri);
    world.secrets.add(app.secret.base32);
    const answer = async () => ({ totp: app.generate({ timestamp: clock.wallNow() } as never) });
    const login = async () => {
      const sim = await world.connected('ada', { tun: 'none', answer });
      return undo.use(new ProxyStreams(sim.client, world.log));
    };
    const api = world.server.api(async () => world.config({}));
    const rules = async () => {
      const { user } = await api['policy.show']({ user: 'ada' });
      return user?.map((session) => session.rules.map(({ name }) => name));
    };

    const streams = await login();
    const { duplex: fresh } = await streams.open('tcp', { host: '192.0.2.1', port: 7 });
    const { duplex: always } = await streams.open('tcp', { host: '192.0.2.2', port: 7 });
    fresh.on('error', () => {});
    await says(fresh, 'hello');
    assert.deepEqual(await rules(), [['fresh', 'always']]);

    clock.advance(MFA_MINUTES * MINUTE_MS - 2000);
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    await says(fresh, 'still');
    const lapsed = performance.now();
    clock.advance(3000);
    await until(() => fresh.destroyed, 'the stream is cut');
    // A busy machine takes its time.
    assert.ok(performance.now() - lapsed < 3000, `${performance.now() - lapsed} ms`);
    assert.deepEqual(await rules(), [['always']]);
    await says(always, 'still here');
    await assert.rejects(streams.open('tcp', { host: '192.0.2.1', port: 7 }), /destination_ip_prohibited/);
    assert.equal(world.server.sessions.length, 1, 'the session goes on');
    const denials = await api['policy.denied']({});
    assert.ok(denials.some(({ user, destination }) => user === 'ada' && destination === '192.0.2.1'));

    const again = await login();
    const { duplex: anew } = await again.open('tcp', { host: '192.0.2.1', port: 7 });
    await says(anew, 'again');
  },
);
