/** Connections are changed under a download, and the TCP inside notices nothing. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { Impairment, type ImpairmentOptions } from './impairment.ts';
import { until } from './process.ts';
import type { Namespace } from './rig.ts';

const CHANGES = 20;
const PORT = '5201';
/** What TCP sees of packets that were lost or overtaken, at either end. */
const SIGNS = ['TCPOFOQueue', 'TCPSackRecovery', 'TCPFastRetrans', 'TCPLostRetransmit'] as const;
/** What TCP takes for reordering; a needless repetition, which the peer reports as a duplicate, counts as such, too. */
const REORDERINGS = ['TCPSACKReorder', 'TCPTSReorder', 'TCPRenoReorder'] as const;
/** What it also does when a busy machine stops for a moment; said, and not judged. */
const NOISE = ['RetransSegs', 'TCPTimeouts', 'TCPLossProbes', 'TCPDSACKRecv'] as const;

/** Counters of a host's TCP, by name. */
async function tcpCounters(host: Namespace): Promise<Map<string, number>> {
  const counters = new Map<string, number>();
  for (const file of ['/proc/net/snmp', '/proc/net/netstat']) {
    const lines = (await host.run(['cat', file])).stdout.split('\n');
    for (let at = 0; at + 1 < lines.length; at += 2) {
      const [table, ...names] = lines[at]?.split(' ') ?? [];
      if (table !== 'Tcp:' && table !== 'TcpExt:') continue;
      const [, ...values] = lines[at + 1]?.split(' ') ?? [];
      for (const [index, name] of names.entries()) counters.set(name, Number(values[index]));
    }
  }
  return counters;
}

describe('connections that are changed', labOptions({ iperf3: 'iperf3', ethtool: 'ethtool' }), () => {
  let deployment: Deployment;
  let client: Client;
  let cable: Impairment;

  before(async () => {
    deployment = await Deployment.open({ settings: '[session]\nrekeySeconds = 2\n' });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    const { client4, client6, gateway4, gateway6 } = client.outer;
    await client.namespace.run(['ip', 'link', 'delete', 'out0']);
    cable = await Impairment.open(deployment.rig, 'cable', [
      { namespace: client.namespace, device: 'out0', addresses: [`${client4}/24`, `${client6}/64`] },
      { namespace: deployment.gateway, device: 'out0', addresses: [`${gateway4}/24`, `${gateway6}/64`] },
    ]);
    // Queues tell these flows to slow down by a mark, and take nothing from them.
    for (const host of [client.namespace, deployment.behind]) await host.setSysctl('net.ipv4.tcp_ecn', '1');
    await deployment.run();
    await deployment.enrol(client);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** What the TCP of these hosts had to repair of a download of one flow while `wait` went on. */
  async function signsOf(hosts: readonly Namespace[], wait: () => Promise<unknown>): Promise<Record<string, number>> {
    await using _server = await deployment.behind.start(['iperf3', '-s', '-1', '--forceflush', '-p', PORT], {
      ready: /Server listening/,
    });
    // Slower than machine and way: what there is to repair comes from the tunnel.
    const argv = ['iperf3', '-c', BEHIND.host4, '-p', PORT, '-R', '-b', '30M', '-t', '600', '--forceflush'];
    await using _download = await client.namespace.start(argv, { ready: / 1\.00-2\.\d\d .*bits\/sec/ });
    const from = await Promise.all(hosts.map(tcpCounters));
    const received = (await client.status()).receivedBytes;
    await wait();
    const to = await Promise.all(hosts.map(tcpCounters));
    assert.ok((await client.status()).receivedBytes - received > 10e6, 'the download goes on');
    return Object.fromEntries(
      [...SIGNS, ...REORDERINGS, ...NOISE].map((name) => [
        name,
        hosts.reduce((sum, _, at) => sum + (to[at]?.get(name) ?? 0) - (from[at]?.get(name) ?? 0), 0),
      ]),
    );
  }

  const ways: readonly [what: string, way: ImpairmentOptions][] = [
    ['a way of 20 ms', { delayMs: 10 }],
    ['a way of 20 ms that loses 1 %', { delayMs: 10, loss: 0.01 }],
  ];
  for (const [what, way] of ways) {
    test(`REQ-REKEY-002: over ${what}, ${CHANGES} changes of the connection of a download are not felt inside`, async (t) => {
      await cable.set(way);
      await client.up();
      const before = (await deployment.status).counters;
      // The client's host has the outer connections, too, which may have losses to repair; this one ends only the inner flows.
      const hosts = [deployment.behind];
      const startedAt = performance.now();
      const signs = await signsOf(hosts, async () => {
        const isDone = async () =>
          ((await deployment.status).counters.attached ?? 0) - (before.attached ?? 0) > CHANGES;
        await until(`${CHANGES} changes`, isDone, { timeoutMs: 300_000, intervalMs: 500 });
      });
      const { counters, drops } = await deployment.status;
      const { rekeyGaps } = await client.status();
      await client.down();
      const rekeys = (counters.rekeys ?? 0) - (before.rekeys ?? 0);
      t.diagnostic(
        `${rekeys} changes in ${Math.round((performance.now() - startedAt) / 1000)} s: ${JSON.stringify(signs)}`,
      );
      assert.ok(rekeys >= 2 * CHANGES - 2, 'the control connection was changed, too');
      assert.deepEqual([counters.rekeyGaps, rekeyGaps], [0, 0]);
      const lost = Object.entries(drops).filter(([name, count]) => name.startsWith('queue_') && count > 0);
      assert.deepEqual(lost, [], 'no queue ran over');
      // A kernel whose processor is taken away while it hands packets on may swap two of them now and then. Connections that are
      // changed without waiting for each other bring several of each for every change.
      const { TCPSackRecovery: recoveries = 0 } = signs;
      const reorderings = REORDERINGS.reduce((sum, name) => sum + (signs[name] ?? 0), 0);
      assert.ok(recoveries < CHANGES / 4, `${recoveries} times packets were missed`);
      assert.ok(reorderings < CHANGES / 4, `${reorderings} packets were overtaken`);
    });
  }
});
