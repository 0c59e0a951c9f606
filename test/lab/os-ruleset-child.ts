/**
 * The gateway in `os-ruleset.test.ts`: owns two real TUN devices, plays the clients behind them packet by packet under the
 * real rules, and prints for each case which counters moved, what came out of the devices and what reached the host
 * outside.
 */

import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { AccessTable } from '../../src/gateway/supervisor/access-table.ts';
import {
  GATEWAY_TABLE,
  gatewayRuleset,
  moveHost,
  moveNetwork,
  POLICY_VERDICTS,
  type RulesetInput,
} from '../../src/gateway/supervisor/ruleset.ts';
import { formatIp, type Prefix, parseIp, parsePrefix } from '../../src/ip/address.ts';
import { NO_OFFLOAD } from '../../src/ip/super-packet.ts';
import { deleteTable, findForeignDrops, readCounters, replaceTable, runNft } from '../../src/os/nft.ts';
import { PACKET_OFFSET, type TunDevice } from '../../src/os/tun.ts';
import { openTun } from '../../src/os/tun-linux.ts';
import { icmpPacket, TcpFlag, tcpPacket, udpPacket } from '../support/packets.ts';

export interface Observation {
  counters: Record<string, number>;
  /** `device protocol source>destination text` */
  received: string[];
  outside: string[];
}

const CLIENT = '10.8.0.5';
const CLIENT6 = 'fd00:8::5';
const OTHER = '10.8.0.6';
const PLAIN = '10.8.0.9';
const OUTSIDE = '198.51.100.2';
const OUTSIDE6 = '2001:db8::2';
const GATEWAY = '10.8.0.1';
const GATEWAY6 = 'fd00:8::1';
const SERVICE_PORT = 5353;

const received: string[] = [];
const devices: TunDevice[] = [];

function openDevices(): void {
  for (const [index, superPackets] of [true, false].entries()) {
    const tun = openTun({ name: `cvpn${index}`, superPackets, mtu: 1400 });
    tun.start({
      packet(bytes, length) {
        const text = describe(bytes.slice(PACKET_OFFSET, PACKET_OFFSET + length));
        if (text !== undefined) received.push(`${index} ${text}`);
      },
      idle: () => {},
    });
    devices.push(tun);
  }
  execFileSync('ip', ['-batch', '-'], {
    input: `
      address add ${GATEWAY}/16 dev cvpn0
      address add ${GATEWAY6}/64 dev cvpn0 nodad
      link set cvpn0 up
      link set cvpn1 up
      route add ${PLAIN}/32 dev cvpn1
    `,
  });
}

/** What the kernel says by itself on a new device (router solicitations and the like) is no part of a case. */
function describe(packet: Uint8Array): string | undefined {
  const version = (packet[0] ?? 0) >> 4;
  const at = version === 4 ? ((packet[0] ?? 0) & 15) * 4 : 40;
  const size = version === 4 ? 4 : 16;
  const sourceAt = version === 4 ? 12 : 8;
  const address = (from: number): string =>
    formatIp({ version: version === 4 ? 4 : 6, bytes: packet.slice(from, from + size) });
  const destination = address(sourceAt + size);
  if (destination.startsWith('ff')) return undefined;
  const protocol = packet[version === 4 ? 9 : 6];
  const what =
    protocol === 17
      ? `udp ${new TextDecoder().decode(packet.slice(at + 8))}`
      : protocol === 6
        ? 'tcp'
        : `icmp ${packet[at]}.${packet[at + 1]}`;
  return `${address(sourceAt)}>${destination} ${what}`;
}

function send(device: number, packet: Uint8Array): void {
  const tun = devices[device];
  if (tun === undefined) throw new Error(`no device ${device}`);
  const buffer = tun.createBuffer();
  buffer.bytes.set(packet, PACKET_OFFSET);
  if (!tun.write(buffer, packet.length, NO_OFFLOAD)) throw new Error('the device refused a packet');
}

let lastPort = 20_000;

/** A datagram to the host outside, on a connection of its own. */
function datagram(
  source: string,
  text = 'hello',
  more: { destination?: string; sourcePort?: number } = {},
): Uint8Array {
  lastPort += 1;
  return udpPacket({
    source,
    destination: more.destination ?? (source.includes(':') ? OUTSIDE6 : OUTSIDE),
    sourcePort: more.sourcePort ?? lastPort,
    destinationPort: 9000,
    payload: new TextEncoder().encode(text),
  });
}

/** Changes bytes of an IPv6 packet's addresses to a v4-mapped one, which the builder refuses to write. */
function mapped(packet: Uint8Array, at: number): Uint8Array {
  packet.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 2], at);
  return packet;
}

const control = createSocket('udp4');

/** Asks the host outside, from the gateway itself, whose traffic the rules do not touch. */
async function ask(text: string): Promise<string> {
  const answer = new Promise<string>((done) => control.once('message', (message) => done(message.toString())));
  control.send(text, 9000, OUTSIDE);
  return await answer;
}

async function counters(): Promise<Map<string, number>> {
  const all = await readCounters(GATEWAY_TABLE).catch(() => new Map());
  return new Map([...all].map(([name, value]) => [name, value.packets]));
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`waited too long for ${what}; came: ${received.join(', ')}`);
    await delay(1);
  }
}

/** Runs one case; `answers` is how many packets must come out of the devices. */
async function observe(action: () => unknown, answers = 0): Promise<Observation> {
  await ask('fence');
  received.length = 0;
  const before = await counters();
  await action();
  await until(`${answers} packets`, () => received.length >= answers);
  const outside = JSON.parse(await ask('fence')) as string[];
  const moved: Record<string, number> = {};
  for (const [name, value] of await counters()) {
    const difference = value - (before.get(name) ?? 0);
    if (difference !== 0) moved[name] = difference;
  }
  return { counters: moved, received: [...received], outside };
}

let generation = 0;

async function apply(over: Partial<RulesetInput> = {}): Promise<void> {
  generation += 1;
  const input: RulesetInput = {
    devices: [
      { name: 'cvpn0', kind: 'super', blocks: [parsePrefix('10.8.0.0/16'), parsePrefix('fd00:8::/64')], hosts: [] },
      { name: 'cvpn1', kind: 'plain', blocks: [], hosts: [parseIp(PLAIN)] },
    ],
    pool4: parsePrefix('10.8.0.0/16'),
    pool6: parsePrefix('fd00:8::/64'),
    gateway4: parseIp(GATEWAY),
    gateway6: parseIp(GATEWAY6),
    allowed: [parsePrefix('198.51.100.0/24'), parsePrefix('2001:db8::/32')],
    clientToClient: false,
    services: [{ protocol: 'udp', port: SERVICE_PORT }],
    listenPorts: [443],
    masquerade4: true,
    masquerade6: true,
    generation,
    connectionsPerAddress: 1000,
    ...over,
  };
  await replaceTable(GATEWAY_TABLE, gatewayRuleset(input));
}

const results: Record<string, Observation> = {};

async function record(name: string, action: () => unknown, answers = 0): Promise<void> {
  results[name] = await observe(action, answers);
}

async function runCases(): Promise<void> {
  await apply();
  await record('allowed', () => send(0, datagram(CLIENT)), 1);
  await record('allowed6', () => send(0, datagram(CLIENT6)), 1);
  await record('allowed plain', () => send(1, datagram(PLAIN)), 1);

  await record('foreign source', () => send(0, datagram('10.9.0.5')));
  await record('foreign source6', () => send(0, datagram('fd00:9::5')));
  await record('source of another device', () => send(0, datagram(PLAIN)));
  await record('block source on the plain device', () => send(1, datagram(CLIENT)));
  await record('source of the gateway', () => send(0, datagram(GATEWAY)));
  await record('source of the gateway6', () => send(0, datagram(GATEWAY6)));
  await record('link-local source', () => send(0, datagram('fe80::5')));
  await record('v4-mapped source', () => send(0, mapped(datagram(CLIENT6), 8)));
  await record('foreign source to the host', () => send(0, icmpPacket({ source: '10.9.0.5', destination: GATEWAY })));

  for (const destination of ['224.0.0.251', '255.255.255.255', '127.0.0.1', '169.254.1.1', '0.0.0.1']) {
    await record(`to ${destination}`, () => send(0, datagram(CLIENT, 'x', { destination })));
  }
  for (const destination of ['ff02::1', '::1', 'fe80::1']) {
    await record(`to ${destination}`, () => send(0, datagram(CLIENT6, 'x', { destination })));
  }
  await record('to v4-mapped', () => send(0, mapped(datagram(CLIENT6), 24)));

  await record('echo to the gateway', () => send(0, icmpPacket({ source: CLIENT, destination: GATEWAY })), 1);
  await record('echo to the gateway6', () => send(0, icmpPacket({ source: CLIENT6, destination: GATEWAY6 })), 1);
  await record('echo to the outer address', () => send(0, icmpPacket({ source: CLIENT, destination: '198.51.100.1' })));
  const service = (destinationPort: number): Uint8Array =>
    udpPacket({ source: CLIENT, destination: GATEWAY, destinationPort, payload: new TextEncoder().encode('query') });
  await record('service', () => send(0, service(SERVICE_PORT)), 1);
  await record('other port of the gateway', () => send(0, service(SERVICE_PORT + 1)));
  await record('login port of the host', () =>
    send(0, tcpPacket({ source: CLIENT, destination: '198.51.100.1', destinationPort: 22, flags: TcpFlag.syn })),
  );
  await record('answer to the host', async () => {
    const socket = createSocket('udp4');
    await new Promise<void>((done) => socket.bind(6000, GATEWAY, done));
    const heard = new Promise<void>((done) => socket.once('message', () => done()));
    socket.send('question', 6001, CLIENT);
    await until('the question', () => received.length > 0);
    send(0, udpPacket({ source: CLIENT, destination: GATEWAY, sourcePort: 6001, destinationPort: 6000, payload: 4 }));
    await heard;
    socket.close();
  });

  await record('from outside to a client', () => ask(`send ${CLIENT} 7000`));
  await record('from outside to the inner gateway', () => ask(`send ${GATEWAY} ${SERVICE_PORT}`));

  await record('source port of the listener', () => send(0, datagram(CLIENT, 'x', { sourcePort: 443 })));
  await record('client to client', () => send(0, datagram(CLIENT, 'x', { destination: OTHER })));
  await record('client to plain client', () => send(0, datagram(CLIENT, 'x', { destination: PLAIN })));
  await record('not allowed', () => send(0, datagram(CLIENT, 'x', { destination: '203.0.113.1' })));
  await record('no connection', () =>
    send(0, tcpPacket({ source: CLIENT, destination: OUTSIDE, flags: TcpFlag.rst, sourcePort: 30_000 })),
  );
  await record(
    'closed port outside',
    () => send(0, udpPacket({ source: CLIENT, destination: OUTSIDE, destinationPort: 9 })),
    1,
  );
  await record(
    'closed port outside6',
    () => send(0, udpPacket({ source: CLIENT6, destination: OUTSIDE6, destinationPort: 9 })),
    1,
  );

  await changeRules();
  await moveHosts();
  await sites();
  await cap();
  await routed();
  await foreignFirewall();

  await apply({ clientToClient: true });
  await record(
    'client to client when on',
    () => send(0, datagram(CLIENT, 'x', { destination: OTHER, sourcePort: 9000 })),
    1,
  );
  await record(
    'answer of a client when on',
    () => send(0, datagram(OTHER, 'y', { destination: CLIENT, sourcePort: 9000 })),
    1,
  );
  await record('client to plain client when on', () => send(0, datagram(CLIENT, 'x', { destination: PLAIN })), 1);

  await deleteTable(GATEWAY_TABLE);
  await record('without rules', () => send(0, datagram('10.8.0.77', 'unmasked')), 1);
}

async function changeRules(): Promise<void> {
  await apply();
  const flow = { sourcePort: 31_000 };
  await record('flow starts', () => send(0, datagram(CLIENT, 'later', flow)), 1);
  await record('flow goes on', () => ask('again'), 1);
  await apply();
  await record('answer before the flow is judged anew', () => ask('again'));
  await record('flow is judged anew', () => send(0, datagram(CLIENT, 'later', flow)), 1);
  await record('flow goes on under new rules', () => ask('again'), 1);
  await apply({ allowed: [parsePrefix('203.0.113.0/24')] });
  await record('answer after the rule is gone', () => ask('again'));
  await record('question after the rule is gone', () => send(0, datagram(CLIENT, 'later', flow)));
  await record('answer after that', () => ask('again'));
}

async function moveHosts(): Promise<void> {
  await apply();
  const moved = parseIp('10.8.0.7');
  await runNft(moveHost(1, moved, 'here'));
  execFileSync('ip', ['route', 'add', '10.8.0.7/32', 'dev', 'cvpn1']);
  await record('moved host on its new device', () => send(1, datagram('10.8.0.7')), 1);
  await record('moved host on its old device', () => send(0, datagram('10.8.0.7')));
  execFileSync('ip', ['route', 'delete', '10.8.0.7/32', 'dev', 'cvpn1']);
  await runNft(moveHost(1, moved, 'back'));
  await runNft(moveHost(1, moved, 'back'));
  await record('host moved back, new device', () => send(1, datagram('10.8.0.7')));
  await record('host moved back, old device', () => send(0, datagram('10.8.0.7')), 1);
}

async function sites(): Promise<void> {
  const network = parsePrefix('10.40.0.0/16');
  const open = [{ from: parsePrefix('198.51.100.0/24'), to: network }];
  await apply({ networks: [network] });
  await record('to a site that is away', () => send(0, datagram(CLIENT, 'x', { destination: '10.40.1.2' })), 1);
  execFileSync('ip', ['route', 'add', '10.40.0.0/16', 'dev', 'cvpn0']);
  await runNft(moveNetwork(0, network, 'here'));
  await record('site on its device', () => send(0, datagram('10.40.1.2')), 1);
  await record('site on another device', () => send(1, datagram('10.40.1.2')));
  await record('from outside to a site that is not open', () => ask('send 10.40.1.2 7000'));
  const answer = (): void =>
    send(
      0,
      udpPacket({ source: '10.40.1.2', destination: OUTSIDE, sourcePort: 7001, destinationPort: 9000, payload: 4 }),
    );
  await apply({ networks: [network], open });
  await runNft(moveNetwork(0, network, 'here'));
  await record('from outside to an open site', () => ask('send 10.40.1.2 7001'), 1);
  await record('its answer', answer, 1);
  await apply({ networks: [network] });
  await runNft(moveNetwork(0, network, 'here'));
  await record('its answer when it is open no more', answer);
  await runNft(moveNetwork(0, network, 'away'));
  await runNft(moveNetwork(0, network, 'away'));
  await record('site that has gone', () => send(0, datagram('10.40.1.2')));
  execFileSync('ip', ['route', 'delete', '10.40.0.0/16', 'dev', 'cvpn0']);
  execFileSync('ip', ['route', 'add', '10.40.0.0/16', 'via', OUTSIDE]);
  await record('what others route through the gateway', () => ask('send 10.40.1.2 7000'));
  await apply({ networks: [network], open });
  await record('whoever may speak to a site that is away', () => ask('send 10.40.1.2 7000'));
  execFileSync('ip', ['route', 'delete', '10.40.0.0/16', 'via', OUTSIDE]);
}

/** A client with a network behind it, which may go anywhere under a policy. */
function accessWith(network: Prefix): string[] {
  let mark = 0;
  const client = { lease: { v4: parseIp(CLIENT) }, access: { rules: [0], peers: [], networks: [0] } };
  return new AccessTable({
    table: `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`,
    rules: [{ action: 'allow', services: [{ kind: 'any' }], to: [{ kind: 'any' }] }],
    ...POLICY_VERDICTS,
    clients: { 4: 'pool4', 6: 'pool6' },
    networks: [network],
    admitted: [client],
    nextMark: () => ++mark,
  }).lines();
}

async function cap(): Promise<void> {
  await apply({ connectionsPerAddress: 5 });
  const many = (source: string): void => {
    for (let i = 0; i < 8; i += 1) send(0, datagram(source));
  };
  await record('too many connections', () => many('10.8.0.20'), 5);
  await record('another address beside it', () => send(0, datagram('10.8.0.21')), 1);
  await record('too many connections6', () => many('fd00:8::20'), 5);
  const network = parsePrefix('10.40.0.0/16');
  await apply({ connectionsPerAddress: 5, networks: [network], access: accessWith(network) });
  await runNft(moveNetwork(0, network, 'here'));
  execFileSync('ip', ['route', 'add', '10.40.0.0/16', 'dev', 'cvpn0']);
  const behind = (): void => {
    for (let i = 1; i <= 8; i += 1) send(0, datagram(`10.40.1.${i}`));
  };
  await record('too many connections of a site', behind, 5);
  await record('its client beside it', () => send(0, datagram(CLIENT)), 1);
  await record('too many of its client', () => many(CLIENT), 4);
  execFileSync('ip', ['route', 'delete', '10.40.0.0/16', 'dev', 'cvpn0']);
}

async function routed(): Promise<void> {
  await apply({ masquerade4: false, masquerade6: false });
  await record('routed', () => send(0, datagram('10.8.0.30')), 1);
  await record('routed6', () => send(0, datagram('fd00:8::30')), 1);
  await record('routed, from outside to a client', () => ask('send 10.8.0.30 7000'));
  await record('routed, from outside to the inner gateway', () => ask(`send ${GATEWAY} ${SERVICE_PORT}`));
}

async function foreignFirewall(): Promise<void> {
  await apply();
  const query = {
    own: GATEWAY_TABLE,
    devices: ['cvpn0', 'cvpn1'],
    listen: [{ protocol: 'tcp', port: 443 } as const],
  };
  drops.none = await findForeignDrops(query);
  await runNft(`
    table inet other {
      chain forward { type filter hook forward priority 10; policy drop; }
      chain input { type filter hook input priority 10; policy drop; meta l4proto udp accept; }
      chain output { type filter hook output priority 10; policy accept; }
    }`);
  drops.found = await findForeignDrops(query);
  await record('under another firewall', () => send(0, datagram('10.8.0.40')));
  for (const { advice } of drops.found) for (const command of advice) execFileSync('sh', ['-c', command]);
  drops.mended = await findForeignDrops(query);
  await record('after its mending', () => send(0, datagram('10.8.0.40')), 1);
  await deleteTable({ family: 'inet', name: 'other' });
}

const drops: Record<string, Awaited<ReturnType<typeof findForeignDrops>>> = {};

await new Promise<void>((done) => control.bind(0, '198.51.100.1', done));
// Each case is about the rules; the kernel gives one address only so many errors in a second.
writeFileSync('/proc/sys/net/ipv4/icmp_ratelimit', '0');
writeFileSync('/proc/sys/net/ipv6/icmp/ratelimit', '0');
openDevices();
const serviceSocket = createSocket('udp4');
await new Promise<void>((done) => serviceSocket.bind(SERVICE_PORT, GATEWAY, done));
serviceSocket.on('message', (_message, from) => serviceSocket.send('answer', from.port, from.address));
await runCases();
control.close();
serviceSocket.close();
await Promise.all(devices.map((tun) => tun.close()));
process.stdout.write(`${JSON.stringify({ results, drops })}\n`);
