/** What a gateway says of itself to those who watch it: right, bounded, and whatever becomes of those who ask. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import net from 'node:net';
import { test } from 'node:test';
import { GATEWAY_METRICS } from '../../src/telemetry/gateway-metrics.ts';
import { exchange, until, World } from '../support/world.ts';

const METRICS = { metrics: { listen: '127.0.0.1:0' } };

interface Said {
  readonly text: string;
  readonly samples: ReadonlyMap<string, number>;
}

function urlOf(world: World, path: string): string {
  return `http://127.0.0.1:${world.server.metricsPort}${path}`;
}

async function scrape(world: World): Promise<Said> {
  const response = await fetch(urlOf(world, '/metrics'));
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type') ?? '', /^text\/plain; version=0\.0\.4/);
  const text = await response.text();
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return { text, samples: new Map(lines.map((line) => [line.replace(/ \S+$/, ''), Number(/\S+$/.exec(line)?.[0])])) };
}

test('sessions, logins, bytes, packets, drops and handshakes are counted as they happen', async () => {
  await using world = await World.open({ config: METRICS });
  const before = await scrape(world);
  assert.equal(before.samples.get('customvpn_sessions{worker="0",state="connected"}'), 0);
  const ada = await world.connected('ada');
  await exchange(world, ada, 4);
  const { samples } = await scrape(world);
  const at = (name: string): number => samples.get(name) ?? Number.NaN;
  assert.equal(at('customvpn_sessions{worker="0",state="connected"}'), 1);
  assert.equal(at('customvpn_logins_total{worker="0",result="accepted"}'), 1);
  assert.equal(at('customvpn_pool_leases'), 1);
  const [session] = world.server.sessions;
  assert.ok(session !== undefined && session.receivedBytes > 0);
  assert.equal(at('customvpn_bytes_total{worker="0",direction="received"}'), session.receivedBytes);
  assert.equal(at('customvpn_bytes_total{worker="0",direction="sent"}'), session.sentBytes);
  assert.ok(at('customvpn_packets_total{worker="0",direction="received"}') > 0);
  assert.ok(at('customvpn_handshake_seconds_count{worker="0"}') >= 2, 'control and data connection');
  assert.ok(at('customvpn_handshake_seconds_sum{worker="0"}') > 0);
  assert.ok(at('customvpn_certificate_expiry_seconds{certificate="server"}') > Date.now() / 1000);
  assert.equal(at('customvpn_store_up'), 1);
  assert.ok(at('customvpn_store_latency_seconds') > 0);
  assert.equal(at('customvpn_worker_starts_total{worker="0"}'), 1);
  assert.ok(at('customvpn_heap_bytes{process="auth"}') > 1e6);

  // What a session has carried is not forgotten with it.
  world.server.kick(session.id);
  await until(() => world.server.sessions.length === 0, 'the session to end');
  const after = await scrape(world);
  assert.ok(
    (after.samples.get('customvpn_bytes_total{worker="0",direction="received"}') ?? 0) >= session.receivedBytes,
  );
  assert.equal(after.samples.get('customvpn_sessions{worker="0",state="connected"}'), 0);
});

test('a refused login is counted by its code', async () => {
  await using world = await World.open({ config: METRICS });
  const raw = await world.raw();
  await assert.rejects(raw.login({ token: new Uint8Array(40), features: [] }));
  await until(async () => {
    const { samples } = await scrape(world);
    return (samples.get('customvpn_logins_total{worker="0",result="refused"}') ?? 0) >= 1;
  }, 'the refusal to be counted');
  const { text } = await scrape(world);
  assert.match(text, /^customvpn_refusals_total\{worker="0",code="[a-z_]+"\} 1$/m);
});

test('every metric is one of the catalogue, promtool finds no fault, and more sessions make no more lines', async () => {
  await using world = await World.open({ config: METRICS });
  await world.connected('ada');
  const one = await scrape(world);
  await world.connected('bob');
  await world.connected('eve');
  const three = await scrape(world);
  assert.equal(three.samples.size, one.samples.size);
  for (const user of ['ada', 'bob', 'eve']) assert.ok(!three.text.includes(`"${user}"`), user);
  for (const [, name = '', type] of three.text.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
    assert.equal(GATEWAY_METRICS[name as keyof typeof GATEWAY_METRICS]?.type, type, name);
  }
  if (spawnSync('promtool', ['--version']).status === 0) {
    const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
      input: three.text,
      encoding: 'utf8',
    });
    assert.equal(status, 0, stdout + stderr);
  }
});

test('it is alive and ready; drained, it is alive and not ready, and says why', async () => {
  await using world = await World.open({ config: METRICS });
  assert.equal((await fetch(urlOf(world, '/healthz'))).status, 200);
  assert.equal((await fetch(urlOf(world, '/readyz'))).status, 200);
  await world.connected('ada');
  await world.server.api(async () => world.config())['server.drain']({ seconds: 3600 });
  const drained = await fetch(urlOf(world, '/readyz'));
  assert.equal(drained.status, 503);
  assert.match(await drained.text(), /drained/);
  assert.equal((await fetch(urlOf(world, '/healthz'))).status, 200);
  assert.equal((await scrape(world)).samples.get('customvpn_draining'), 1);
});

test('it takes nothing but GET and HEAD for what it has, and says nothing of what it has not', async () => {
  await using world = await World.open({ config: METRICS });
  assert.equal((await fetch(urlOf(world, '/metrics'), { method: 'POST', body: 'x' })).status, 405);
  const head = await fetch(urlOf(world, '/metrics'), { method: 'HEAD' });
  assert.equal(head.status, 200);
  assert.equal(await head.text(), '');
  for (const path of ['/', '/metrics/..', '/%2e%2e/etc/passwd', '/metrics%00']) {
    assert.equal((await fetch(urlOf(world, path))).status, 404, path);
  }
});

test('connections that say nothing keep nobody out for long', async () => {
  await using world = await World.open({ config: METRICS });
  const port = world.server.metricsPort ?? 0;
  const silent = Array.from({ length: 100 }, () => net.connect(port, '127.0.0.1').on('error', () => {}));
  try {
    await until(
      async () => (await fetch(urlOf(world, '/healthz')).catch(() => undefined))?.status === 200,
      'an answer beside a hundred that say nothing',
      30_000,
    );
  } finally {
    for (const socket of silent) socket.destroy();
  }
});

test('without the key there is no port', async () => {
  await using world = await World.open();
  assert.equal(world.server.metricsPort, undefined);
});
