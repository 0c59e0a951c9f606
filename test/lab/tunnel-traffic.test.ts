/** What goes through the tunnel arrives: both families outside and inside, with and without super-packets. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import {
  BEHIND,
  type Client,
  type ClientStatus,
  Deployment,
  deviceCounters,
  INNER,
  labOptions,
  PORT,
  peer,
  startPeer,
} from './deployment.ts';
import { until } from './process.ts';

const ECHO_PORT = '7007';
const HOSTS = [BEHIND.host4, BEHIND.host6];
const CLOSED_PORT = '7008';
const TCP_BYTES = 8 * 1024 * 1024;
const MODES = [
  { name: 'super-packets', flags: [], device: 'cvpn0', superPackets: true },
  { name: '--plain', flags: ['--plain'], device: 'cvpn0p', superPackets: false },
] as const;

interface TcpResult {
  sent: { bytes: number; sha256: string };
  returned: { bytes: number; sha256: string };
}

interface UdpResult {
  sent: number;
  intact: number;
  error?: string;
}

describe('traffic through a tunnel', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  let device: string;

  before(async () => {
    // One worker, so that addresses and devices are known beforehand.
    deployment = await Deployment.open({ workers: 1 });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.run();
    await deployment.enrol(client);
    for (const address of HOSTS) await startPeer(deployment.behind, 'serve', ECHO_PORT, address);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  async function connect(over: 4 | 6, flags: readonly string[]): Promise<ClientStatus> {
    await client.dialOver(over);
    const status = await client.up(...flags);
    device = status.device ?? '';
    return status;
  }

  async function tcpBothWays(address: string, bytes = TCP_BYTES): Promise<void> {
    const { sent, returned } = await peer<TcpResult>(client.namespace, 'tcp', address, ECHO_PORT, String(bytes));
    assert.deepEqual(returned, sent);
    assert.equal(sent.bytes, bytes);
  }

  for (const over of [4, 6] as const) {
    for (const mode of MODES) {
      test(`outer IPv${over}, ${mode.name}: ping, TCP and UDP, inner IPv4 and IPv6`, async () => {
        const status = await connect(over, mode.flags);
        assert.equal(status.state, 'connected');
        assert.equal(status.superPackets, mode.superPackets);
        assert.equal(status.tls?.protocol, 'TLSv1.3');
        assert.deepEqual(status.addresses, ['10.88.0.2', 'fd88::2']);
        const others = MODES.map(({ device }) => device).filter((name) => name !== mode.device);
        const before = await deployment.deviceBytes(mode.device);
        const idle = await Promise.all(others.map((name) => deployment.deviceBytes(name)));
        for (const address of [INNER.gateway4, BEHIND.host4, INNER.gateway6, BEHIND.host6]) {
          assert.ok(await client.reaches(address), `${address} does not answer`);
        }
        const inside = await deviceCounters(client.namespace, device);
        await Promise.all(HOSTS.map((address) => tcpBothWays(address)));
        const udp = (address: string) => peer<UdpResult>(client.namespace, 'udp', address, ECHO_PORT, '50', '1400');
        for (const result of await Promise.all(HOSTS.map(udp))) assert.deepEqual(result, { sent: 50, intact: 50 });

        // Both ways over the device for this kind of peer, and nothing over the other.
        assert.ok((await deployment.deviceBytes(mode.device)) - before > 4 * TCP_BYTES);
        assert.deepEqual(await Promise.all(others.map((name) => deployment.deviceBytes(name))), idle);
        const now = await deviceCounters(client.namespace, device);
        const mean = (now.tx.bytes - inside.tx.bytes) / (now.tx.packets - inside.tx.packets);
        if (mode.superPackets) assert.ok(mean > 3000, `the client sent packets of ${mean} bytes on average`);
        else assert.ok(mean < 1500, `the client sent packets of ${mean} bytes on average`);
        const { sentBytes, receivedBytes } = await client.status();
        assert.ok(sentBytes > 2 * TCP_BYTES && receivedBytes > 2 * TCP_BYTES, `${sentBytes}, ${receivedBytes}`);
        await client.down();
      });
    }
  }

  test('a burst of datagrams goes through as one super-packet, both ways', async (t) => {
    const status = await deployment.status;
    if (!status.devices.some(({ udpSegmentation }) => udpSegmentation)) {
      t.skip('this kernel has no UDP segmentation on TUN devices');
      return;
    }
    await connect(4, []);
    for (const address of HOSTS) {
      assert.ok(await client.reaches(address));
      const from = await deviceCounters(client.namespace, device);
      const burst = await peer<UdpResult>(client.namespace, 'udp-burst', address, ECHO_PORT, '40', '1200');
      assert.deepEqual(burst, { sent: 40, intact: 40 });
      const to = await deviceCounters(client.namespace, device);
      // The burst and a few requests, not forty packets.
      assert.ok(to.tx.packets - from.tx.packets < 20, `${to.tx.packets - from.tx.packets} packets sent`);
      assert.ok(to.rx.packets - from.rx.packets < 20, `${to.rx.packets - from.rx.packets} packets received`);
    }
    await client.down();
  });

  test('a burst of datagrams reaches a peer without super-packets as single ones', async () => {
    await connect(4, ['--plain']);
    for (const address of HOSTS) {
      const burst = await peer<UdpResult>(client.namespace, 'udp-burst', address, ECHO_PORT, '40', '1200');
      assert.deepEqual(burst, { sent: 40, intact: 40 });
    }
    await client.down();
  });

  describe('with a tunnel up', () => {
    before(() => connect(4, []));
    after(() => client.down());

    test('packets that may not be fragmented pass up to the MTU of 1500 and are refused above', async () => {
      const headers = { 4: 28, 6: 48 };
      for (const [version, address] of [
        [4, BEHIND.host4],
        [6, BEHIND.host6],
      ] as const) {
        for (const size of [56, 1232, 1500 - headers[version]]) {
          assert.ok(await client.reaches(address, '-M', 'do', '-s', String(size)), `${size} bytes over IPv${version}`);
        }
        const tooLong = await client.ping(address, '-c1', '-W1', '-M', 'do', '-s', String(1501 - headers[version]));
        assert.match(tooLong.stdout + tooLong.stderr, /message too long|mtu/i);
        assert.ok(await client.reaches(address, '-M', 'want', '-s', '4000'), `fragments over IPv${version}`);
      }
    });

    test('a smaller MTU behind the gateway is reported by ICMP, and TCP goes on with it', async (t) => {
      for (const where of [deployment.gateway, deployment.behind]) {
        await where.run(['ip', 'link', 'set', 'lan0', 'mtu', '1300']);
      }
      t.after(async () => {
        for (const where of [deployment.gateway, deployment.behind]) {
          await where.run(['ip', 'link', 'set', 'lan0', 'mtu', '1500']);
        }
        for (const family of ['-4', '-6']) await client.namespace.run(['ip', family, 'route', 'flush', 'cache']);
      });
      const ping4 = await client.ping(BEHIND.host4, '-c1', '-W2', '-M', 'do', '-s', '1472');
      assert.match(ping4.stdout, /From 10\.88\.0\.1 .*mtu = 1300/);
      const ping6 = await client.ping(BEHIND.host6, '-c1', '-W2', '-M', 'do', '-s', '1452');
      assert.match(ping6.stdout, /From fd88::1 .*mtu=1300/);
      await tcpBothWays(BEHIND.host4, 1024 * 1024);
      await tcpBothWays(BEHIND.host6, 1024 * 1024);
    });

    test('ICMP errors come back from where they arise', async () => {
      const far4 = await client.ping(BEHIND.host4, '-c1', '-W2', '-t', '1');
      assert.match(far4.stdout, /From 10\.88\.0\.1 .*Time to live exceeded/);
      const far6 = await client.ping(BEHIND.host6, '-c1', '-W2', '-t', '1');
      assert.match(far6.stdout, /From fd88::1 .*Time exceeded: Hop limit/);
      const [nobody4, nobody6] = await Promise.all([
        client.ping(BEHIND.nobody4, '-c1', '-W6'),
        client.ping(BEHIND.nobody6, '-c1', '-W6'),
      ]);
      // The kernel finds out after it has masqueraded, so it speaks with its address on that side.
      assert.match(nobody4.stdout, /From (192\.0\.2|10\.88\.0)\.1 .*Destination Host Unreachable/);
      assert.match(nobody6.stdout, /From (2001:db8:2|fd88)::1 .*Address unreachable/);
      for (const address of HOSTS) {
        const refused = await peer<UdpResult>(client.namespace, 'udp', address, CLOSED_PORT, '1', '64');
        assert.equal(refused.error, 'ECONNREFUSED');
      }
    });

    const BBR_MISSING = hasCongestionControl('bbr') ? false : 'this kernel has no BBR';
    test('data goes by Reno while the path is near and clean, and by BBR once it loses', {
      skip: BBR_MISSING || labOptions({ iperf3: 'iperf3' }).skip,
    }, async (t) => {
      const dataConnection = async (): Promise<string> => {
        const { stdout } = await deployment.gateway.run(['ss', '-Htni', 'sport', '=', `:${PORT}`]);
        const flows = [...stdout.matchAll(/^\s+(\w+) .*? bytes_sent:(\d+)/gm)].map(([, name, sent]) => ({
          name,
          sent: Number(sent),
        }));
        return flows.sort((a, b) => b.sent - a.sent)[0]?.name ?? '';
      };
      assert.equal(await dataConnection(), 'bbr');
      await using _server = await deployment.behind.start(['iperf3', '-s', '-1', '--forceflush', '-B', BEHIND.host4], {
        ready: /Server listening/,
      });
      await using _flow = await client.namespace.start(['iperf3', '-c', BEHIND.host4, '-R', '-t', '60']);
      const isBy = (name: string) => async (): Promise<boolean> => (await dataConnection()) === name;
      await until('Reno on a clean path', isBy('reno'), { timeoutMs: 20_000 });
      const loss = ['chain', 'inet', 'loss', 'in', '{ type filter hook input priority 0; }'];
      await client.namespace.run(['nft', 'add table inet loss']);
      t.after(() => client.namespace.run(['nft', 'delete table inet loss']));
      await client.namespace.run(['nft', 'add', ...loss]);
      const drop = `add rule inet loss in tcp sport ${PORT} numgen random mod 50 < 1 drop`;
      await client.namespace.run(['nft', drop]);
      await until('BBR on a path that loses', isBy('bbr'), { timeoutMs: 20_000 });
    });

    test('DSCP and ECN pass unchanged, both ways', async () => {
      const tos = 0xb9; // expedited forwarding, ECT(1)
      for (const { address, filter } of [
        { address: BEHIND.host4, filter: `icmp and ip[1] == ${tos}` },
        { address: BEHIND.host6, filter: `icmp6 and (ip6[0:2] & 0x0ff0) == ${tos << 4}` },
      ]) {
        await using there = await deployment.behind.capture('lan0', { filter });
        await using back = await client.namespace.capture(device, { filter });
        assert.ok(await client.reaches(address, '-Q', String(tos)));
        // Requests and answers, three each; the kernel answers with the same mark.
        await captured(there, 6);
        await captured(back, 6);
      }
    });

    test('congestion is experienced end to end: a mark behind the gateway makes the client say so', async (t) => {
      for (const where of [client.namespace, deployment.behind]) await where.setSysctl('net.ipv4.tcp_ecn', '1');
      t.after(async () => {
        for (const where of [client.namespace, deployment.behind]) await where.setSysctl('net.ipv4.tcp_ecn', '2');
      });
      const mark = 'add table inet marks; add chain inet marks out { type filter hook postrouting priority 0; }';
      await deployment.behind.run(['nft', mark]);
      await deployment.behind.run(['nft', 'add rule inet marks out tcp sport 7007 ip ecn & 2 == 2 ip ecn set ce']);
      t.after(() => deployment.behind.run(['nft', 'delete table inet marks']));
      await using capable = await deployment.behind.capture('lan0', { filter: 'dst port 7007 and ip[1] & 3 == 2' });
      await using marked = await client.namespace.capture(device, { filter: 'src port 7007 and ip[1] & 3 == 3' });
      await using echoed = await deployment.behind.capture('lan0', {
        filter: 'dst port 7007 and tcp[13] & 0x42 == 0x40',
      });
      await tcpBothWays(BEHIND.host4, 1024 * 1024);
      for (const capture of [capable, marked, echoed]) await captured(capture, 1);
    });
  });
});

function hasCongestionControl(name: string): boolean {
  return readFileSync('/proc/sys/net/ipv4/tcp_available_congestion_control', 'utf8').split(/\s+/).includes(name);
}

async function captured(capture: { facts: { packets: number } }, packets: number): Promise<void> {
  await until(`${packets} packets in the capture`, () => capture.facts.packets >= packets, { timeoutMs: 3000 });
}
