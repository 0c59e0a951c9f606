/** Holds docs/metrics.md, the dashboard and the alerts to the metrics that there are. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { GATEWAY_METRICS } from '../src/telemetry/gateway-metrics.ts';

const ROOT = dirname(import.meta.dirname);
const read = (file: string): string => readFileSync(join(ROOT, file), 'utf8');
const hasPromtool = spawnSync('promtool', ['--version']).status === 0;
const skip = hasPromtool ? false : 'promtool (Debian package prometheus) is not installed';

interface Dashboard {
  readonly panels: readonly { readonly title: string; readonly targets: readonly { readonly expr: string }[] }[];
}

const expressions = (JSON.parse(read('packaging/grafana/customvpn.json')) as Dashboard).panels.flatMap(
  ({ title, targets }) => targets.map(({ expr }) => ({ title, expr })),
);

/** Names of metrics in a text; those of a histogram's parts are the histogram's. */
function namesIn(text: string): string[] {
  return [...text.matchAll(/\bcustomvpn_[a-z_]+/g)].map(([name]) => {
    const base = name.replace(/_(?:bucket|sum|count)$/, '');
    return base in GATEWAY_METRICS && GATEWAY_METRICS[base as keyof typeof GATEWAY_METRICS].type === 'histogram'
      ? base
      : name;
  });
}

test('the document has every metric with its type, labels and meaning, and no other', () => {
  const rows = [...read('docs/metrics.md').matchAll(/^\| `(customvpn_\w+)` *\| (\w+) *\| (.+?) *\| (.+?) *\|$/gm)];
  const documented = rows.map(([, name, type, labels = '', help]) => ({
    name,
    type,
    labels: [...labels.matchAll(/`(\w+)`/g)].map(([, label]) => label),
    help,
  }));
  const expected = Object.entries(GATEWAY_METRICS).map(([name, metric]) => ({ name, ...metric }));
  assert.deepEqual(
    documented,
    expected.map(({ name, type, labels, help }) => ({ name, type, labels: [...labels], help })),
  );
});

test('names are those that Prometheus expects: a counter ends in _total, and nothing else does', () => {
  for (const [name, { type, labels }] of Object.entries(GATEWAY_METRICS)) {
    assert.match(name, /^customvpn_[a-z][a-z_]*[a-z]$/);
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    for (const label of labels)
      assert.ok(!['user', 'device', 'address', 'peer', 'session'].includes(label), `${name}: ${label}`);
  }
});

test('dashboard and alerts name only metrics that exist, and show every one that an operator is to see', () => {
  const used = new Set([
    ...namesIn(read('packaging/prometheus/alerts.yml')),
    ...expressions.flatMap(({ expr }) => namesIn(expr)),
  ]);
  for (const name of used) assert.ok(name in GATEWAY_METRICS, `${name} does not exist`);
  const left = Object.keys(GATEWAY_METRICS).filter((name) => !used.has(name));
  // Facts, and parts of what is shown.
  assert.deepEqual(left.sort(), [
    'customvpn_data_connections_total',
    'customvpn_draining',
    'customvpn_handshake_failures_total',
    'customvpn_hook_calls_total',
    'customvpn_info',
    'customvpn_otlp_requests_total',
    'customvpn_peak_bytes',
    'customvpn_proxy_refusals_total',
    'customvpn_queue_bytes',
    'customvpn_queue_marked_packets_total',
    'customvpn_queue_memory_bytes',
    'customvpn_queue_signals_total',
    'customvpn_spans_dropped_total',
    'customvpn_start_time_seconds',
    'customvpn_webhook_events_total',
  ]);
});

test('labels in dashboard and alerts are those of their metrics', () => {
  for (const { title, expr } of expressions) {
    for (const [, name = '', matchers = ''] of expr.matchAll(/\b(customvpn_[a-z_]+)\{([^}]*)\}/g)) {
      const [base = ''] = namesIn(name);
      const labels: readonly string[] = GATEWAY_METRICS[base as keyof typeof GATEWAY_METRICS].labels;
      const given = [...matchers.matchAll(/(\w+)\s*[=!]~?/g)].map(([, label = '']) => label);
      for (const label of given) assert.ok(['instance', 'job', 'le', ...labels].includes(label), `${title}: ${label}`);
    }
    for (const [, list = ''] of expr.matchAll(/\bby \(([^)]*)\)/g)) {
      const labels = namesIn(expr).flatMap(
        (name): readonly string[] => GATEWAY_METRICS[name as keyof typeof GATEWAY_METRICS].labels,
      );
      for (const label of list.split(/,\s*/))
        assert.ok(['instance', 'le', ...labels].includes(label), `${title}: ${label}`);
    }
  }
});

function checkRules(text: string): { status: number | null; said: string } {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-rules-'));
  try {
    writeFileSync(join(folder, 'rules.yml'), text);
    const { status, stdout, stderr } = spawnSync('promtool', ['check', 'rules', join(folder, 'rules.yml')], {
      encoding: 'utf8',
    });
    return { status, said: stdout + stderr };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test('promtool accepts the alerts', { skip }, () => {
  const { status, said } = checkRules(read('packaging/prometheus/alerts.yml'));
  assert.equal(status, 0, said);
  assert.match(said, /SUCCESS: \d+ rules found/);
});

test('promtool parses every expression of the dashboard, and sees one that is broken', { skip }, () => {
  const rules = (list: readonly string[]): string =>
    `groups:\n- name: dashboard\n  rules:\n${list.map((expr, at) => `  - record: dashboard:x${at}\n    expr: ${JSON.stringify(expr)}\n`).join('')}`;
  const written = expressions.map(({ expr }) =>
    expr.replaceAll('$__rate_interval', '5m').replaceAll('$instance', '.+'),
  );
  const { status, said } = checkRules(rules(written));
  assert.equal(status, 0, said);
  assert.notEqual(checkRules(rules(['sum by (x (customvpn_info)'])).status, 0);
});
