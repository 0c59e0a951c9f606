import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Exposition } from '../../telemetry/exposition.ts';
import { GATEWAY_METRICS } from '../../telemetry/gateway-metrics.ts';
import type { WorkerReport } from '../ipc/ports.ts';
import { addWorker } from './metrics.ts';

const NOTHING: WorkerReport = {
  sessions: 0,
  waiting: 0,
  counters: {},
  drops: {},
  traffic: { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 },
  gauges: {},
  histograms: {},
};

function linesOf(report: WorkerReport | undefined): string[] {
  const out = new Exposition(GATEWAY_METRICS);
  addWorker(out, '3', report);
  return out.toString().split('\n');
}

test('a worker that has been taken over makes up no name and no label', () => {
  const honest = linesOf({ ...NOTHING, counters: { refused_err_stage_timeout: 1 } });
  const counters = Object.fromEntries(
    Array.from({ length: 500 }, (_, at) => [`refused_x${at}"} customvpn_up 1\n`, 1] as const),
  );
  const lying = linesOf({
    ...NOTHING,
    counters: { ...counters, 'handshake_\n': 7, made_up: 1 },
    drops: { 'a reason"': 1 },
    gauges: { 'round_trip_0.99': 1, evil: 2 },
    histograms: { evil: { counts: [1], sum: 1 }, handshake: { counts: Array(32).fill(9), sum: 5 } },
  });
  assert.ok(lying.includes('customvpn_refusals_total{worker="3",code="other"} 500'));
  assert.ok(lying.includes('customvpn_handshake_failures_total{worker="3",code="other"} 7'));
  assert.ok(honest.includes('customvpn_refusals_total{worker="3",code="err_stage_timeout"} 1'));
  // One more family, of handshake failures, with its two lines of comment.
  assert.equal(lying.length, honest.length + 3);
});

test('of one that does not answer it is said that it is not up, and nothing else', () => {
  assert.deepEqual(
    linesOf(undefined).filter((line) => line !== '' && !line.startsWith('#')),
    ['customvpn_worker_up{worker="3"} 0'],
  );
});
