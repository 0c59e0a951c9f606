/**
 * Hundreds of logins that start at one moment, against a gateway with its processes: all are let in, and none hears of a fault.
 *
 * What one login after the other does not show shows here: what auth may not do in its cage once many transactions are
 * committed together, and what its channels take at once.
 */

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { Deployment, labOptions } from './deployment.ts';
import { until } from './process.ts';

/** Of two workers, each begins 128 handshakes at once: of more, those make room that a busy client is slow to go on with. */
const LOGINS = 200;
/** No deadline is what this is about, and a busy machine takes its time. */
const PATIENCE = 'handshakeSeconds = 60\nhelloSeconds = 120\nstepSeconds = 120\nloginSeconds = 120\n';
/** A source may have 64 handshakes in flight at a worker. */
const SOURCES = Array.from({ length: 20 }, (_, index) => `198.51.100.${index + 10}`);
const PEER = [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  '--conditions=customvpn-source',
  join(import.meta.dirname, '../bench/population-peer.ts'),
];

/** What `population-peer.ts` says of them. */
interface Outcome {
  count: number;
  failed: number;
  error?: string;
  seconds: number;
  p99: number;
}

test(`${LOGINS} logins by device and access token at once are all let in`, labOptions(), async (t) => {
  await using deployment = await Deployment.open({
    workers: 2,
    settings: `\n[login]\nsteps = ["device", "token"]\n[limits]\n${PATIENCE}`,
  });
  await deployment.configure((text) => text.replace('10.88.0.0/24', '10.88.0.0/22'));
  const { gateway, state, clients, rig } = deployment;
  const [client] = clients;
  assert.ok(client);
  const keys = join(rig.folder, 'keys');
  await mkdir(keys);
  await deployment.enrol(client);
  const issued = await deployment.ask<{ token: string }>('user', 'token', client.user, '--name', 'machines');
  await gateway.run([...PEER, 'enrol', state, keys, client.user, String(LOGINS)]);
  for (const source of SOURCES) await client.namespace.run(['ip', 'address', 'add', `${source}/24`, 'dev', 'out0']);
  const server = await deployment.run();

  const burst = await client.namespace.start(
    [...PEER, 'burst', client.profile, keys, String(LOGINS), '0', ...SOURCES],
    { env: { BENCH_TOKEN: issued.token }, ready: /^\{.*\}$/m, isTyped: true },
  );
  const { count, failed, error, seconds, p99 } = JSON.parse(/^\{.*\}$/m.exec(burst.output)?.[0] ?? '{}') as Outcome;
  t.diagnostic(`${count} of ${LOGINS} within ${seconds.toFixed(1)} s, p99 ${Math.round(p99)} ms`);
  assert.deepEqual({ count, failed, error }, { count: LOGINS, failed: 0, error: undefined });
  await until('all sessions', async () => (await deployment.status).sessions === LOGINS);
  assert.ok(!/ERR_STORE|ERR_INVARIANT/.test(server.output), server.output);
  await burst.stop();
});
