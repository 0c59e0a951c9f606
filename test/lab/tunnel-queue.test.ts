/** A slow link that is busy in both directions: what is short passes what is long, inside the tunnel as well. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import {
  BEHIND,
  type Client,
  Deployment,
  INNER,
  labOptions,
  peer,
  type ServerStatus,
  startPeer,
} from './deployment.ts';

const ECHO_PORT = '7007';
const RATE = '20mbit';
/** As a router's queue that nobody has tuned: a tenth of a second at this rate. */
const LIMIT = '256kb';
/** About seven seconds each way. */
const BYTES = String(16 * 1024 * 1024);
/** The bare link's own queue, when its sender fills it, makes this a hundred milliseconds and more. */
const MEDIAN_MS = 60;

describe('a saturated link of 20 Mbit/s', labOptions({ ethtool: 'ethtool', tc: 'iproute2' }), () => {
  let deployment: Deployment;
  let client: Client;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.run();
    await deployment.enrol(client);
    await startPeer(deployment.behind, 'serve', ECHO_PORT, BEHIND.host4);
    for (const [namespace, device] of [
      [client.namespace, 'out0'],
      [deployment.gateway, 'out0'],
    ] as const) {
      await namespace.run(['ethtool', '-K', device, 'tso', 'off', 'gso', 'off', 'gro', 'off']);
      const rate = ['tbf', 'rate', RATE, 'burst', '32kb', 'limit', LIMIT];
      await namespace.run(['tc', 'qdisc', 'add', 'dev', device, 'root', ...rate]);
    }
    // A sender that fills what queue it finds, and every kernel has it.
    for (const namespace of [client.namespace, deployment.behind]) {
      await namespace.setSysctl('net.ipv4.tcp_congestion_control', 'reno');
    }
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  test('a ping passes a transfer that fills both directions; the transfer arrives whole', async () => {
    await client.up();
    const idle = median(await pings(20));
    let isLoaded = true;
    const load = peer<{ sent: object; returned: object }>(client.namespace, 'tcp', BEHIND.host4, ECHO_PORT, BYTES);
    void load.catch(() => {}).finally(() => (isLoaded = false));
    // The transfer has filled what queues there are.
    await pings(20);
    const busy = await pings(60);
    assert.ok(isLoaded, 'the transfer ended before the pings');
    const found = median(busy);
    assert.ok(found < MEDIAN_MS, `median ${found} ms under load, ${idle} ms idle`);
    const { sent, returned } = await load;
    assert.deepEqual(returned, sent);
    const { counters } = await deployment.ask<ServerStatus>('server', 'status');
    // How many there are depends on how much the kernel puts into one packet.
    assert.ok((counters.queue_split_parts ?? 0) > 0, 'super-packets left in parts');
    await client.down();
  });

  async function pings(count: number): Promise<number[]> {
    const { stdout } = await client.ping(INNER.gateway4, '-i', '0.05', '-c', String(count));
    return [...stdout.matchAll(/ time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  }
});

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.POSITIVE_INFINITY;
}
