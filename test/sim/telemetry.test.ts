// A small OTLP receiver gets the metrics and the spans of a gateway; one that is away costs nothing but a line of the log.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../../src/base/errors.ts';
import { GATEWAY_METRICS } from '../../src/telemetry/gateway-metrics.ts';
import { Receiver } from '../support/receiver.ts';
import { exchange, Relay, until, World } from '../support/world.ts';

const folder = mkdtempSync(join(tmpdir(), 'customvpn-otlp-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const headersFile = join(folder, 'headers');
writeFileSync(headersFile, 'authorization=Bearer%20T0KEN,x-tenant=vpn\n', { mode: 0o600 });

interface Attribute {
  key: string;
  value: Record<string, string | number | boolean>;
}
interface Point {
  attributes: Attribute[];
  startTimeUnixNano: string;
  timeUnixNano: string;
  asDouble?: number;
  count?: string;
  bucketCounts?: string[];
  explicitBounds?: number[];
}
interface Metric {
  name: string;
  description: string;
  gauge?: { dataPoints: Point[] };
  sum?: { dataPoints: Point[]; aggregationTemporality: number; isMonotonic: boolean };
  histogram?: { dataPoints: Point[]; aggregationTemporality: number };
}
interface Span {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  attributes: Attribute[];
  status: { code?: number; message?: string };
}
interface Resource {
  attributes: Attribute[];
}

const factsOf = (attributes: Attribute[]) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));

function spansOf(receiver: Receiver): Span[] {
  return receiver.received
    .filter(({ path }) => path === '/otel/v1/traces')
    .flatMap(({ body }) => (JSON.parse(body) as { resourceSpans: { scopeSpans: { spans: Span[] }[] }[] }).resourceSpans)
    .flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans));
}

test('metrics and spans of logins, resumes, policies and control calls reach a collector, well formed', async () => {
  await using receiver = await Receiver.open();
  const hookFile = join(folder, 'hooks.ts');
  writeFileSync(hookFile, "export const onLogin = ({ user }: { user: string }) => user !== 'eve';");
  const otlp = { endpoint: `${receiver.url}/otel/`, headersFile, serviceName: 'edge' };
  await using world = await World.open({ config: { otlp, hook: { file: hookFile } } });
  const ada = await world.connected('ada');
  await exchange(world, ada);
  await assert.rejects(world.connected('eve'), (error) => isVpnError(error, 'ERR_AUTH_REJECTED'));
  const api = world.server.api(async () => world.config());
  await api['server.reload']({});
  await assert.rejects(api['session.kick']({ id: 'ffff' }), { code: 'ERR_NOT_FOUND' });
  await world.server.sendTelemetry();

  const metrics = receiver.received.find(({ path }) => path === '/otel/v1/metrics');
  assert.ok(metrics);
  assert.equal(metrics.headers.authorization, 'Bearer T0KEN');
  assert.equal(metrics.headers['x-tenant'], 'vpn');
  assert.equal(metrics.headers['content-type'], 'application/json');
  const { resourceMetrics } = JSON.parse(metrics.body) as {
    resourceMetrics: { resource: Resource; scopeMetrics: { metrics: Metric[] }[] }[];
  };
  assert.equal(resourceMetrics.length, 1);
  const [{ resource, scopeMetrics } = assert.fail()] = resourceMetrics;
  assert.partialDeepStrictEqual(factsOf(resource.attributes), {
    'service.name': 'edge',
    'service.instance.id': 'localhost',
  });
  const found = new Map((scopeMetrics[0]?.metrics ?? []).map((metric) => [metric.name, metric]));
  for (const [name, { description, gauge, sum, histogram }] of found) {
    assert.ok(name in GATEWAY_METRICS, name);
    const { type, help } = GATEWAY_METRICS[name as keyof typeof GATEWAY_METRICS];
    assert.equal(description, help);
    assert.deepEqual({ counter: sum, gauge, histogram }[type] !== undefined, true, name);
    if (sum !== undefined) assert.deepEqual([sum.aggregationTemporality, sum.isMonotonic], [2, true]);
    for (const {
      count,
      bucketCounts = [],
      explicitBounds = [],
      startTimeUnixNano,
      timeUnixNano,
    } of histogram?.dataPoints ?? []) {
      assert.equal(bucketCounts.length, explicitBounds.length + 1);
      assert.equal(
        bucketCounts.reduce((total, one) => total + Number(one), 0),
        Number(count),
      );
      assert.ok(BigInt(startTimeUnixNano) <= BigInt(timeUnixNano));
    }
  }
  // What the issue of an operator asks for, by its name there.
  for (const name of [
    'sessions',
    'logins_total',
    'bytes_total',
    'packets_total',
    'drops_total',
    'queue_delay_seconds',
  ]) {
    assert.ok(found.has(`customvpn_${name}`), name);
  }
  for (const name of [
    'handshake_seconds',
    'rekeys_total',
    'worker_starts_total',
    'event_loop_delay_seconds',
    'peak_bytes',
  ]) {
    assert.ok(found.has(`customvpn_${name}`), name);
  }
  for (const name of [
    'certificate_expiry_seconds',
    'store_latency_seconds',
    'otlp_requests_total',
    'hook_calls_total',
  ]) {
    assert.ok(found.has(`customvpn_${name}`), name);
  }
  const logins = found.get('customvpn_logins_total')?.sum?.dataPoints ?? [];
  const accepted = logins.find(({ attributes }) => factsOf(attributes).result === 'accepted');
  assert.equal(accepted?.asDouble, 1);

  const spans = spansOf(receiver);
  const named = (name: string) => spans.filter((span) => span.name === name);
  const results = named('login').map(({ attributes }) => factsOf(attributes)['customvpn.result']);
  assert.deepEqual(results, ['accepted', 'rejected']);
  assert.equal(factsOf(named('login')[0]?.attributes ?? [])['customvpn.user'], 'ada');
  const [login] = named('login');
  const [hook] = named('hook onLogin');
  assert.equal(hook?.parentSpanId, login?.spanId);
  assert.equal(hook?.traceId, login?.traceId);
  assert.equal(login?.parentSpanId, undefined);
  const [call] = named('control server.reload');
  const [reload] = named('reload');
  assert.equal(reload?.parentSpanId, call?.spanId);
  assert.ok(named('policy change').some(({ parentSpanId }) => parentSpanId === reload?.spanId));
  const [kick] = named('control session.kick');
  assert.deepEqual(kick?.status, { code: 2, message: 'ERR_NOT_FOUND' });
  for (const { traceId, spanId, startTimeUnixNano, endTimeUnixNano } of spans) {
    assert.match(traceId, /^[0-9a-f]{32}$/);
    assert.match(spanId, /^[0-9a-f]{16}$/);
    assert.ok(BigInt(startTimeUnixNano) <= BigInt(endTimeUnixNano));
  }
  const text = JSON.stringify(spans);
  assert.doesNotMatch(text, /127\.0\.0\.1|10\.20\.0\./, 'no span has an address');
  assert.ok(!JSON.stringify(world.lines).includes('T0KEN'));
});

test('a resume is a span; while the collector is away spans wait, traffic flows, and the log says it once', async () => {
  await using receiver = await Receiver.open();
  let isAway = true;
  receiver.answer = () => (isAway ? 503 : 200);
  const otlp = { endpoint: `${receiver.url}/otel`, metrics: false };
  await using world = await World.open({ config: { otlp } });
  await using relay = await Relay.open(world.port);
  const ada = await world.connected('ada', { serverPort: relay.port });
  await world.server.sendTelemetry();
  await world.server.sendTelemetry();
  await exchange(world, ada);
  for (const connection of relay.connections) connection.cut();
  await until(async () => (await world.status()).counters.resumes === 1, 'a resume');
  const said = () => world.lines.filter(({ component }) => component === 'otlp').map(({ msg }) => msg);
  assert.deepEqual(said(), ['the collector does not take telemetry']);
  assert.ok(!receiver.received.some(({ path }) => path.endsWith('/metrics')));
  receiver.received.length = 0;
  isAway = false;
  await world.server.sendTelemetry();
  const results = spansOf(receiver).flatMap(({ name, attributes }) =>
    name === 'login' || name === 'resume' ? [[name, factsOf(attributes)['customvpn.result']]] : [],
  );
  assert.deepEqual(results, [
    ['login', 'accepted'],
    ['resume', 'accepted'],
  ]);
  assert.deepEqual(said(), ['the collector does not take telemetry', 'the collector takes telemetry again']);
});
