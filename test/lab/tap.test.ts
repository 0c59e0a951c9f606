/**
 * Ethernet across the tunnel: clients as stations on a bridge of the administrator's or of the gateway's own, at one worker and
 * at two; what they must not say; what is left of it afterwards.
 */

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { arpFrame, BROADCAST, dhcpFrame, frame, ipFrame, neighbourFrame, udpFrame } from '../support/ethernet.ts';
import { concat, tcpPacket } from '../support/packets.ts';
import type { Capture } from './capture.ts';
import { BEHIND, type Client, changesSince, Deployment, labOptions, peer, startPeer } from './deployment.ts';
import { until } from './process.ts';
import { hasTool, type Namespace } from './rig.ts';

const FLAGS = ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const FRAMES = join(import.meta.dirname, 'ethernet-peer.ts');
const DEVICE = 'cvpn0';
const OTHER_MAC = '02:00:00:00:00:99';
const HOST = { v4: BEHIND.host4, v6: BEHIND.host6 };

/** The gateway's side of the link to the host becomes a port of a bridge, which has its addresses. */
async function makeBridge(gateway: Namespace): Promise<void> {
  const lines = [
    'link add br0 type bridge',
    'address flush dev lan0',
    'link set lan0 master br0',
    'link set br0 up',
    `address add ${BEHIND.gateway4}/24 dev br0`,
    `address add ${BEHIND.gateway6}/64 dev br0`,
  ];
  await gateway.run(['ip', '-batch', '-'], { input: `${lines.join('\n')}\n` });
}

/** The configuration of a gateway that bridges; keys first, then the table. */
async function configure(deployment: Deployment, keys: string, tap: string, pool?: string): Promise<void> {
  await deployment.configure((text) => {
    const made = pool === undefined ? text : text.replace(/^pool = .*$/m, `pool = ${pool}`);
    return `device = "tap"\n${keys}${made.replace(/^routes = .*$/m, 'routes = []')}\n[tap]\n${tap}`;
  });
}

async function send(where: Namespace, device: string, ...frames: readonly Uint8Array[]): Promise<void> {
  const input = frames.map((bytes) => `${Buffer.from(bytes).toString('hex')}\n`).join('');
  await where.run([process.execPath, ...FLAGS, FRAMES, device], { input, timeoutMs: 60_000 });
}

/** Behind an ARP message; a bridge whose packets IP rules look at cuts off what is behind a packet. */
const marked = (bytes: Uint8Array, marker: Buffer): Uint8Array => concat(bytes, marker);

async function linkOf(where: Namespace, device: string): Promise<{ address: string; mtu: number }> {
  const { stdout } = await where.run(['ip', '-j', 'link', 'show', 'dev', device]);
  const [link] = JSON.parse(stdout) as { address: string; mtu: number }[];
  assert.ok(link !== undefined, `there is no ${device}`);
  return link;
}

/** The port of the bridge at which the bridge sees an address. */
async function portOf(gateway: Namespace, mac: string): Promise<string | undefined> {
  const { stdout } = await gateway.run(['bridge', '-j', 'fdb', 'show', 'br', 'br0']);
  const entries = JSON.parse(stdout) as { mac: string; ifname: string; state: string }[];
  return entries.find((entry) => entry.mac === mac && entry.state !== 'permanent')?.ifname;
}

interface Station {
  client: Client;
  mac: string;
  v4: string;
  v6: string;
}

async function station(client: Client): Promise<Station> {
  const { addresses } = await client.status();
  const { address: mac } = await linkOf(client.namespace, DEVICE);
  return { client, mac, v4: addresses[0] ?? '', v6: addresses[1] ?? '' };
}

/** Has the second client come back until both are at one worker, or at two. */
async function place(deployment: Deployment, first: Client, second: Client, where: 'one' | 'two'): Promise<Station[]> {
  const is = async (): Promise<boolean> => {
    const ports = [];
    for (const client of [first, second]) {
      const { mac } = await station(client);
      ports.push(await portOf(deployment.gateway, mac));
    }
    return ports.every((port) => port !== undefined) && (ports[0] === ports[1]) === (where === 'one');
  };
  for (let tries = 0; !(await is()) && tries < 25; tries++) {
    await second.down();
    await second.up();
  }
  assert.ok(await is(), `the clients never met at ${where} worker`);
  return [await station(first), await station(second)];
}

const toHost = (from: Station, payload: Uint8Array, source = from.mac): Uint8Array =>
  ipFrame(tcpPacket({ source: from.v4, destination: HOST.v4, payload }), { source, destination: BROADCAST });

describe('on a bridge of the administrator’s', labOptions({ bridge: 'iproute2' }), () => {
  let deployment: Deployment;
  let ann: Client;
  let bob: Client;

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 2 });
    const [one, two] = deployment.clients;
    assert.ok(one && two);
    [ann, bob] = [one, two];
    await makeBridge(deployment.gateway);
    const pool = '["192.0.2.128/25", "2001:db8:2:0:8000::/65"]';
    const networks = 'networks = ["192.0.2.0/24", "2001:db8:2::/64"]\nrouters = ["192.0.2.1"]\n';
    await configure(deployment, '', `bridge = "br0"\n${networks}`, pool);
    await deployment.run();
    for (const client of [ann, bob]) {
      await deployment.enrol(client);
      await client.up();
    }
  });
  after(async () => {
    // Down already, unless a test before the last has failed.
    for (const client of [ann, bob]) await client?.down().catch(() => {});
    assert.deepEqual(await deployment?.close(), []);
  });

  const drop = async (reason: string): Promise<number> => (await deployment.status).drops[reason] ?? 0;

  for (const where of ['one', 'two'] as const) {
    test(`REQ-ETHERNET-007 clients at ${where} worker(s) reach the host by ARP and neighbour discovery, the host them, and not each other`, async () => {
      const [first, second] = await place(deployment, ann, bob, where);
      assert.ok(first && second);
      for (const one of [first, second]) {
        assert.equal(
          one.mac,
          `02:c5:${one.v4
            .split('.')
            .map((part) => Number(part).toString(16).padStart(2, '0'))
            .join(':')}`,
        );
        assert.ok(await one.client.reaches(HOST.v4), 'the host');
        assert.ok(await one.client.reaches(HOST.v6), 'the host by IPv6');
        assert.ok(await one.client.reaches(HOST.v4, '-s', '1472', '-M', 'do'), 'a frame of the whole MTU');
        for (const address of [one.v4, one.v6]) {
          await deployment.behind.run(['ip', 'neigh', 'flush', 'dev', 'lan0']);
          await deployment.behind.run(['ping', '-n', '-c', '2', '-i', '0.2', '-W', '5', address]);
        }
      }
      const marker = randomBytes(16);
      await using atBob = await second.client.namespace.capture(DEVICE, { markers: [marker] });
      await using atHost = await deployment.behind.capture('lan0', { markers: [marker] });
      assert.equal(await first.client.reaches(second.v4), false, 'the other client');
      assert.equal(await first.client.reaches(second.v6), false);
      await send(first.client.namespace, DEVICE, toHost(first, marker));
      await until('the broadcast to come to the host', () => atHost.seen(marker));
      assert.equal(atBob.seen(marker), false, 'and not to the other client');
      if (where === 'one') {
        const before = await drop('client_isolated');
        const toBob = ipFrame(tcpPacket({ source: first.v4, destination: second.v4 }), {
          source: first.mac,
          destination: second.mac,
        });
        await send(first.client.namespace, DEVICE, toBob);
        await until('the drop to be counted', async () => (await drop('client_isolated')) > before);
      }
    });
  }

  test('what a client must not say does not come to the segment, and is counted under its reason', async (t) => {
    const from = await station(ann);
    const other = await station(bob);
    const ownArp = { source: from.mac, sender: from.v4 };
    const host = (await linkOf(deployment.behind, 'lan0')).address;
    const out = { source: from.mac, destination: BROADCAST };
    const cases: readonly [reason: string, make: (marker: Buffer) => Uint8Array][] = [
      ['mac_limit', (payload) => toHost(from, payload, OTHER_MAC)],
      ['mac_spoofed', (payload) => toHost(from, payload, host)],
      ['mac_spoofed', (marker) => marked(arpFrame({ ...ownArp, senderMac: OTHER_MAC }), marker)],
      ['mac_spoofed', (name) => dhcpFrame({ from: 'client', message: 1, ...out, chaddr: OTHER_MAC, name })],
      ['address_spoofed', (payload) => ipFrame(tcpPacket({ source: other.v4, destination: HOST.v4, payload }), out)],
      ['address_spoofed', (payload) => ipFrame(tcpPacket({ source: other.v6, destination: HOST.v6, payload }), out)],
      ['address_spoofed', (marker) => marked(arpFrame({ ...ownArp, sender: HOST.v4, operation: 2 }), marker)],
      ['address_spoofed', (marker) => marked(arpFrame({ ...ownArp, sender: '192.0.2.1' }), marker)],
      ['address_spoofed', (rest) => neighbourFrame({ type: 136, ...out, sender: from.v6, target: HOST.v6, rest })],
      ['router_advertisement', (rest) => neighbourFrame({ type: 134, ...out, rest })],
      ['router_advertisement', (rest) => neighbourFrame({ type: 137, ...out, rest })],
      ['dhcp_server', (name) => dhcpFrame({ from: 'server', message: 5, ...out, sender: from.v4, name })],
      ['dhcp_server', (payload) => udpFrame({ source: from.v6, destination: HOST.v6, sourcePort: 547, payload }, out)],
      [
        'frame_control',
        (marker) => frame(38, concat(marker, new Uint8Array(30)), { ...out, destination: '01:80:c2:00:00:00' }),
      ],
      ['frame_control', (marker) => frame(0x88cc, marker, { ...out, destination: '01:80:c2:00:00:0e' })],
      [
        'frame_tagged',
        (payload) => frame(0x8100, concat(Uint8Array.of(0, 5, 8, 0), tcpPacket({ source: from.v4, payload })), out),
      ],
      ['frame_protocol', (marker) => frame(0x8892, marker, out)],
    ];
    // So that the guard knows the host's address.
    assert.ok(await ann.reaches(HOST.v4));
    const frames = cases.map(([reason, make]) => {
      const marker = randomBytes(16);
      return { reason, marker, bytes: make(marker) };
    });
    const last = randomBytes(16);
    await using capture = await deployment.behind.capture('lan0', {
      markers: [...frames.map(({ marker }) => marker), last],
    });
    for (const [index, { reason, bytes }] of frames.entries()) {
      const before = await drop(reason);
      await send(ann.namespace, DEVICE, bytes);
      await until(`${reason} to be counted (case ${index})`, async () => (await drop(reason)) > before);
    }
    await send(ann.namespace, DEVICE, toHost(from, last));
    await until('what is allowed to come', () => capture.seen(last));
    for (const [index, { reason, marker }] of frames.entries()) {
      assert.equal(capture.seen(marker), false, `case ${index}: ${reason}`);
    }
    t.diagnostic(`${cases.length} frames, each dropped and counted`);
  });

  test('REQ-ETHERNET-008 a client that floods is cut off for the rest of the second', async () => {
    const from = await station(ann);
    const before = await drop('broadcast_rate');
    await send(ann.namespace, DEVICE, ...Array.from({ length: 2000 }, () => toHost(from, new Uint8Array(20))));
    await until('frames to be dropped', async () => (await drop('broadcast_rate')) > before + 100);
    await until('it may speak again', () => ann.reaches(HOST.v4));
  });

  test('REQ-ETHERNET-003 from the segment come no tags and no control frames either; what is meant for the client does', async () => {
    const to = await station(ann);
    const source = (await linkOf(deployment.behind, 'lan0')).address;
    const [tagged, control, good] = [randomBytes(16), randomBytes(16), randomBytes(16)];
    await using capture = await ann.namespace.capture(DEVICE, { markers: [tagged, control, good] });
    const before = { tagged: await drop('frame_tagged'), protocol: await drop('frame_protocol') };
    const packet = (payload: Uint8Array) => tcpPacket({ source: HOST.v4, destination: to.v4, payload });
    await send(
      deployment.behind,
      'lan0',
      frame(0x8100, concat(Uint8Array.of(0, 5, 8, 0), packet(tagged)), { source, destination: to.mac }),
      frame(0x88cc, control, { source, destination: BROADCAST }),
      ipFrame(packet(good), { source, destination: to.mac }),
    );
    await until('what is good to come', () => capture.seen(good));
    await until('the others to be counted', async () => {
      return (await drop('frame_tagged')) > before.tagged && (await drop('frame_protocol')) > before.protocol;
    });
    assert.deepEqual([capture.seen(tagged), capture.seen(control)], [false, false]);
  });

  test('the kernel’s rules hold without the worker’s guards', async () => {
    const rogue = await deployment.rig.namespace('rogue');
    await deployment.rig.link(
      { namespace: deployment.gateway, device: 'rogue0' },
      { namespace: rogue, device: 'rogue0' },
    );
    await deployment.gateway.run(['ip', 'link', 'set', 'rogue0', 'master', 'br0']);
    await deployment.gateway.run(['nft', 'add element bridge customvpn workers { "rogue0" }']);
    const source = (await linkOf(rogue, 'rogue0')).address;
    const markers = Array.from({ length: 4 }, () => randomBytes(16));
    const [first, second, third, fourth] = markers;
    const frames: readonly [string, Uint8Array][] = [
      ['rule_drop_router_advertisement', neighbourFrame({ type: 134, source, ...(first && { rest: first }) })],
      ['rule_drop_dhcp_server', dhcpFrame({ from: 'server', message: 5, source, ...(second && { name: second }) })],
      [
        'rule_drop_tagged',
        frame(0x8100, concat(new Uint8Array(4), third ?? new Uint8Array(0)), { source, destination: BROADCAST }),
      ],
      ['rule_drop_control', frame(0x88cc, fourth ?? new Uint8Array(0), { source, destination: '01:00:0c:cc:cc:cc' })],
    ];
    const last = randomBytes(16);
    await using capture = await deployment.behind.capture('lan0', { markers: [...markers, last] });
    const before = (await deployment.status).counters;
    await send(rogue, 'rogue0', ...frames.map(([, bytes]) => bytes));
    await send(rogue, 'rogue0', marked(arpFrame({ source }), last));
    await until('the last to come', () => capture.seen(last));
    const counters = (await deployment.status).counters;
    for (const [index, [name]] of frames.entries()) {
      assert.ok((counters[name] ?? 0) > (before[name] ?? 0), name);
      assert.equal(capture.seen(markers[index] ?? last), false, name);
    }
    const { stdout } = await deployment.gateway.run(['bridge', '-d', 'link', 'show', 'dev', 'cvtap0']);
    for (const flag of ['isolated on', 'guard on', 'root_block on']) assert.ok(stdout.includes(flag), flag);
  });

  test('REQ-ETHERNET-009 a client that moves to another worker is announced, and reached there at once', async (t) => {
    const { mac, v4, v6 } = await station(ann);
    const hex = (text: string): string => text.replaceAll(':', '');
    const v4Hex = v4
      .split('.')
      .map((part) => Number(part).toString(16).padStart(2, '0'))
      .join('');
    const gratuitous = Buffer.from(`${hex(mac)}${v4Hex}000000000000${v4Hex}`, 'hex');
    const rarp = Buffer.from(`8035000108000604000${'3'}${hex(mac)}`, 'hex');
    const advertisement = Buffer.from(`0201${hex(mac)}`, 'hex');
    const from = await portOf(deployment.gateway, mac);
    await ann.namespace.setSysctl('net.ipv4.conf.all.promote_secondaries', '1');
    let moves = 0;
    let [current, next] = [`${ann.outer.client4}/24`, '198.51.100.9/24'];
    await using capture = await deployment.behind.capture('lan0', {
      filter: 'arp or rarp or icmp6',
      markers: [gratuitous, rarp, advertisement],
    });
    for (; (await portOf(deployment.gateway, mac)) === from && moves < 25; moves++) {
      const { reconnects } = await ann.status();
      // A client whose own address is another one resumes on a new connection; which worker gets that is chance.
      await ann.namespace.run(['ip', 'address', 'add', next, 'dev', 'out0']);
      await ann.namespace.run(['ip', 'address', 'delete', current, 'dev', 'out0']);
      await ann.statusWhen('it to be back', (status) => status.state === 'connected' && status.reconnects > reconnects);
      [current, next] = [next, current];
    }
    const to = await portOf(deployment.gateway, mac);
    t.diagnostic(`from ${from} to ${to} at resume ${moves}`);
    assert.notEqual(to, from);
    await until('the announcements at the host', () =>
      [gratuitous, rarp, advertisement].every((marker) => capture.seen(marker)),
    );
    // No word of the client's is waited for.
    const { stdout } = await deployment.behind.run(['ping', '-n', '-c', '1', '-W', '5', v4]);
    assert.match(stdout, / 0% packet loss/);
    await deployment.behind.run(['ping', '-n', '-c', '1', '-W', '5', v6]);
    assert.deepEqual((await ann.status()).addresses, [v4, v6]);
    assert.ok(await ann.reaches(HOST.v4));
  });

  test('bytes come as they were sent; how many there are is printed', async (t) => {
    const server = await startPeer(deployment.behind, 'serve', '7001');
    const { bytes, same } = await peer<{ bytes: number; same: boolean }>(ann.namespace, 'stream', HOST.v4, '7001', '2');
    assert.ok(same && bytes > 1e6);
    await server.stop();
    if (!hasTool('iperf3')) return;
    await deployment.behind.start(['iperf3', '-s', '-1', '--forceflush'], { ready: /listening/ });
    const { stdout } = await ann.namespace.run(['iperf3', '-c', HOST.v4, '-R', '-t', '3', '-J'], { timeoutMs: 60_000 });
    const { end } = JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number } } };
    t.diagnostic(
      `${(end.sum_received.bits_per_second / 1e6).toFixed(0)} Mbit/s over a TAP device, one flow to the client`,
    );
  });

  test('REQ-ETHERNET-002 a client that wants packets is told what to change', async () => {
    await bob.down();
    const text = await readFile(bob.profile, 'utf8');
    assert.match(text, /^device = "tap"$/m, 'the gateway says so in its profiles');
    await writeFile(bob.profile, text.replace(/^device = "tap"$/m, ''));
    const refused = await deployment.cli(bob.namespace, 'client', 'up', bob.profile, '--state', bob.state);
    assert.notEqual(refused.status, 0);
    assert.match(`${refused.stdout}${refused.stderr}`, /set device = "tap" under \[tunnel\]/);
    await writeFile(bob.profile, text);
    const full = await deployment.cli(bob.namespace, 'client', 'up', bob.profile, '--state', bob.state, '--full');
    assert.equal(full.status, 64);
    await bob.up();
    assert.ok(await bob.reaches(HOST.v4));
  });

  test('client and gateway put their hosts back', async () => {
    for (const client of [ann, bob]) {
      await client.down();
      const { stdout } = await client.namespace.run(['ip', '-o', 'link']);
      assert.doesNotMatch(stdout, /cvpn/);
    }
    const before = await linkOf(deployment.gateway, 'br0');
    assert.equal(await deployment.stop(), 0);
    const { stdout } = await deployment.gateway.run(['ip', '-o', 'link']);
    assert.doesNotMatch(stdout, /cvtap/);
    assert.deepEqual(await linkOf(deployment.gateway, 'br0'), before, 'the bridge is as it was');
    assert.equal((await deployment.gateway.run(['nft', 'list', 'ruleset'])).stdout.trim(), '');
    const other = await deployment.gateway.run(['ip', 'link', 'set', 'br0', 'mtu', '1400']);
    assert.equal(other.status, 0);
    const refused = await deployment.cli(deployment.gateway, 'server', 'run', '--state', deployment.state);
    assert.equal(refused.status, 78);
    assert.match(refused.stderr, /mtu: expected that of the bridge br0, 1400, got 1500/);
  });
});

describe('with addresses by DHCP', labOptions({ dnsmasq: 'dnsmasq-base', udhcpc: 'udhcpc' }), () => {
  let deployment: Deployment;
  let ann: Client;
  let bob: Client;

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 2 });
    const [one, two] = deployment.clients;
    assert.ok(one && two);
    [ann, bob] = [one, two];
    await makeBridge(deployment.gateway);
    await configure(
      deployment,
      'clientToClient = true\n',
      `bridge = "br0"\naddressing = "dhcp"\nrouters = ["192.0.2.1"]\nreserved = ["${HOST.v4}"]\n`,
    );
    await deployment.run();
    const server = ['dnsmasq', '--keep-in-foreground', '--port=0', '--interface=lan0', '--bind-interfaces'];
    const folder = deployment.rig.folder;
    await deployment.behind.start(
      [
        ...server,
        '--user=root',
        '--conf-file=/dev/null',
        '--dhcp-range=192.0.2.100,192.0.2.120,10m',
        '--dhcp-range=2001:db8:2::,ra-only',
        `--dhcp-leasefile=${join(folder, 'leases')}`,
        `--pid-file=${join(folder, 'dnsmasq.pid')}`,
        '--log-facility=-',
      ],
      { ready: /DHCP, IP range/ },
    );
    for (const client of [ann, bob]) {
      await deployment.enrol(client);
      await client.up();
    }
  });
  after(async () => {
    for (const client of [ann, bob]) await client?.down();
    await deployment?.stop();
    assert.deepEqual(await deployment?.close(), []);
  });

  /** Asks for an address, as a user's own DHCP client does. */
  async function ask(client: Client): Promise<string> {
    const script = join(import.meta.dirname, 'udhcpc.sh');
    await client.namespace.run(['udhcpc', '-i', DEVICE, '-s', script, '-n', '-q', '-t', '10', '-T', '1'], {
      timeoutMs: 60_000,
    });
    const { stdout } = await client.namespace.run(['ip', '-j', '-4', 'address', 'show', 'dev', DEVICE]);
    const [link] = JSON.parse(stdout) as { addr_info: { local: string }[] }[];
    return link?.addr_info[0]?.local ?? '';
  }

  for (const where of ['one', 'two'] as const) {
    test(`clients at ${where} worker(s) are given addresses by the segment's server, and reach it and each other`, async () => {
      await place(deployment, ann, bob, where);
      const addresses = [await ask(ann), await ask(bob)];
      for (const address of addresses) assert.match(address, /^192\.0\.2\.1[012]\d$/);
      assert.notEqual(addresses[0], addresses[1]);
      assert.deepEqual((await ann.status()).addresses, [], 'nothing was pushed');
      for (const [index, client] of [ann, bob].entries()) {
        assert.ok(await client.reaches(HOST.v4), 'the host');
        assert.ok(await client.reaches(addresses[1 - index] ?? ''), 'the other client');
      }
      await until('an address of the router’s prefix', async () => {
        const { stdout } = await ann.namespace.run(['ip', '-6', 'address', 'show', 'dev', DEVICE, 'scope', 'global']);
        return stdout.includes('2001:db8:2:');
      });
      assert.ok(await ann.reaches(HOST.v6), 'by IPv6');
      const { stdout } = await ann.namespace.run(['ip', '-6', 'route', 'show', 'default']);
      assert.equal(stdout.trim(), '', 'the segment’s router is no way to everywhere');
    });
  }

  test('REQ-ETHERNET-005 an address that was given to one client is not the other’s, nor a reserved one anybody’s', async () => {
    const [first, second] = await place(deployment, ann, bob, 'one');
    assert.ok(first && second);
    const address = await ask(ann);
    assert.ok(await ann.reaches(HOST.v4));
    const drops = async (): Promise<number> => (await deployment.status).drops.address_spoofed ?? 0;
    const [stolen, reserved, own] = [randomBytes(16), randomBytes(16), randomBytes(16)];
    await using capture: Capture = await deployment.behind.capture('lan0', { markers: [stolen, reserved, own] });
    const before = await drops();
    await send(
      bob.namespace,
      DEVICE,
      marked(arpFrame({ source: second.mac, sender: address, operation: 2 }), stolen),
      marked(arpFrame({ source: second.mac, sender: HOST.v4, operation: 2 }), reserved),
    );
    await until('both to be counted', async () => (await drops()) >= before + 2);
    await send(ann.namespace, DEVICE, marked(arpFrame({ source: first.mac, sender: address }), own));
    await until('the owner’s to come', () => capture.seen(own));
    assert.deepEqual([capture.seen(stolen), capture.seen(reserved)], [false, false]);
  });
});

describe('on a bridge of the gateway’s own', labOptions({ bridge: 'iproute2' }), () => {
  let deployment: Deployment;
  let ann: Client;
  let bob: Client;

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 1 });
    const [one, two] = deployment.clients;
    assert.ok(one && two);
    [ann, bob] = [one, two];
    await configure(deployment, 'clientToClient = true\nservices = ["7002/tcp"]\n', '');
    await deployment.configure((text) => text.replace(/^services = \[\]$/m, ''));
    for (const client of [ann, bob]) await deployment.enrol(client);
  });
  after(async () => assert.deepEqual(await deployment?.close(), []));

  test('clients are among themselves with the gateway, which answers what it is configured to; nothing is left behind', async () => {
    const clean = await deployment.gateway.snapshot();
    await deployment.run();
    await ann.up();
    await bob.up();
    const [first, second] = [await station(ann), await station(bob)];
    assert.ok(await ann.reaches(second.v4), 'the other client');
    assert.ok(await bob.reaches(first.v6));
    for (const address of ['10.88.0.1', 'fd88::1']) assert.ok(await ann.reaches(address), address);
    const services = [
      await startPeer(deployment.gateway, 'serve', '7002'),
      await startPeer(deployment.gateway, 'serve', '7003'),
    ];
    const { same } = await peer<{ same: boolean }>(ann.namespace, 'stream', '10.88.0.1', '7002', '1');
    assert.ok(same, 'a service');
    const argv = ['timeout', '2', 'bash', '-c', '</dev/tcp/10.88.0.1/7003'];
    const closed = await ann.namespace.run(argv, { anyStatus: true });
    assert.notEqual(closed.status, 0, 'what is no service');
    assert.ok(((await deployment.status).counters.rule_drop_input ?? 0) > 0);
    await ann.namespace.run(['ip', 'route', 'add', '192.0.2.0/24', 'via', '10.88.0.1']);
    await deployment.gateway.setSysctl('net.ipv4.ip_forward', '1');
    assert.equal(await ann.reaches(HOST.v4), false, 'nothing is routed');
    await ann.namespace.run(['ip', 'route', 'delete', '192.0.2.0/24']);
    await deployment.gateway.setSysctl('net.ipv4.ip_forward', '0');
    for (const service of services) await service.stop();
    await ann.down();
    await bob.down();
    assert.equal(await deployment.stop(), 0);
    assert.deepEqual(await changesSince(clean, deployment.gateway), []);
  });

  test('a gateway that was killed leaves its bridge to the next start, which takes it back', async () => {
    const clean = await deployment.gateway.snapshot();
    const killed = await deployment.run();
    process.kill(killed.pid, 'SIGKILL');
    await killed.exited.catch(() => {});
    await until('its children to end', async () => {
      return !(await deployment.gateway.run(['ip', '-o', 'link'])).stdout.includes('cvtap');
    });
    assert.match((await deployment.gateway.run(['ip', '-o', 'link'])).stdout, /cvbr0/);
    await deployment.run();
    await ann.up();
    assert.ok(await ann.reaches('10.88.0.1'));
    await ann.down();
    assert.equal(await deployment.stop(), 0);
    assert.deepEqual(await changesSince(clean, deployment.gateway), []);
  });
});
