/**
 * The gateway in `policy-kernel.test.ts`: for one random policy after another it puts the compiled rules into the kernel,
 * writes packets of clients to one TUN device, and sees which come out: of another, to a network, or of the same, to a
 * client. Prints what differs from the model.
 */

import { execFileSync } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import { ACCESS_RULES, AccessTable } from '../../src/gateway/supervisor/access-table.ts';
import { parseIp } from '../../src/ip/address.ts';
import { NO_OFFLOAD } from '../../src/ip/super-packet.ts';
import { replaceTableText, runNft } from '../../src/os/nft.ts';
import { PACKET_OFFSET, type TunDevice } from '../../src/os/tun.ts';
import { openTun } from '../../src/os/tun-linux.ts';
import { groupsOf, rulesFor } from '../../src/policy/access.ts';
import { withAddresses } from '../../src/policy/kernel-rules.ts';
import { type Policy, readPolicy } from '../../src/policy/policy.ts';
import { icmpPacket, ipPacket, mendIpv4, optionsHeader, TcpFlag, tcpPacket, udpPacket } from '../support/packets.ts';
import {
  CLIENTS,
  HOSTS,
  isAllowed,
  type ModelFlow,
  type ModelPolicy,
  modelFlow,
  modelPolicy,
  POOLS,
  textOf,
} from '../support/policy-model.ts';

export interface Report {
  seed: number;
  sent: number;
  allowed: number;
  /** How packets were dressed up, and how often. */
  dresses: Record<string, number>;
  /** Empty when kernel and model agree. */
  differences: { flow: ModelFlow; dress: string; model: string; kernel: string; policy: string }[];
}

const [, , seedText = '1', policiesText = '10', flowsText = '40'] = process.argv;
const NOW = Date.now();
const TABLE = { family: 'inet', name: 'policy_lab' } as const;
const FENCE = '10.20.0.200';
const DRESSES = ['plain', 'plain', 'fragments', 'extensions'] as const;
const HOP_BY_HOP = 0;
const DESTINATION_OPTIONS = 60;

/** What came out, by the number at the end of each packet. */
const out = new Set<number>();
// No address of a packet that the kernel sends by itself ends like that.
let number = 0x5a00_0000;
let mark = 0;

function open(name: string): TunDevice {
  const tun = openTun({ name, superPackets: false, mtu: 1400 });
  tun.start({
    packet(bytes, length) {
      if (length < 4) return;
      out.add(new DataView(bytes.buffer, bytes.byteOffset + PACKET_OFFSET + length - 4).getUint32(0));
    },
    idle: () => {},
  });
  return tun;
}

const clients = open('pc0');
open('pn0');
execFileSync('ip', ['-batch', '-'], {
  input: `
    link set pc0 up
    link set pn0 up
    address add 192.0.2.254/32 dev pn0
    address add 2001:db8::fe/128 dev pn0 nodad
    route add ${POOLS[0]} dev pc0
    route add ${POOLS[1]} dev pc0
    route add default dev pn0
    route add ::/0 dev pn0
  `,
});

function write(packet: Uint8Array): void {
  const buffer = clients.createBuffer();
  buffer.bytes.set(packet, PACKET_OFFSET);
  if (!clients.write(buffer, packet.length, NO_OFFLOAD)) throw new Error('the device refused a packet');
}

function packetOf(
  { destination, protocol, port = 0, isEcho }: ModelFlow,
  source: string,
  id: number,
  dress: string,
): Uint8Array[] {
  const is6 = destination.includes(':');
  const extensions =
    dress === 'extensions' && is6 ? [optionsHeader(HOP_BY_HOP), optionsHeader(DESTINATION_OPTIONS)] : [];
  const payload = new Uint8Array(64);
  new DataView(payload.buffer).setUint32(60, id);
  const ip = { source, destination, extensions };
  const transport = { ...ip, sourcePort: 1024 + (id % 60_000), destinationPort: port, payload };
  let packet: Uint8Array;
  if (protocol === 6) packet = tcpPacket({ ...transport, flags: TcpFlag.syn });
  else if (protocol === 17) packet = udpPacket(transport);
  else if (isEcho === true) packet = icmpPacket({ ...ip, payload, sequence: id & 0xffff });
  else if (isEcho === false) {
    // A timestamp request, or a node information query: of the protocol, and no echo request.
    packet = icmpPacket({ ...ip, payload });
    const at = is6 ? 40 + 8 * extensions.length : 20;
    const [old, type] = is6 ? [128, 139] : [8, 13];
    packet[at] = type;
    const view = new DataView(packet.buffer);
    // RFC 1624: the checksum follows the changed word.
    let sum = (~view.getUint16(at + 2) & 0xffff) + (~(old << 8) & 0xffff) + (type << 8);
    sum = (sum & 0xffff) + (sum >>> 16);
    sum = (sum & 0xffff) + (sum >>> 16);
    view.setUint16(at + 2, ~sum & 0xffff);
  } else packet = ipPacket(protocol, payload, ip);
  return dress === 'fragments' && !is6 ? fragments(packet, id) : [packet];
}

/** An IPv4 packet in two fragments; the first holds 24 bytes of what is behind the header. */
function fragments(packet: Uint8Array, id: number): Uint8Array[] {
  const [header, body] = [packet.subarray(0, 20), packet.subarray(20)];
  const parts = [
    { part: body.subarray(0, 24), word: 0x2000 },
    { part: body.subarray(24), word: 3 },
  ];
  return parts.map(({ part, word }) => {
    const one = Uint8Array.from([...header, ...part]);
    const view = new DataView(one.buffer);
    view.setUint16(2, one.length);
    view.setUint16(4, id & 0xffff);
    view.setUint16(6, word);
    return mendIpv4(one);
  });
}

/** Puts the rules of a policy into the kernel; `later`: clients come one by one, some of them twice. */
async function apply(policy: Policy, later: boolean): Promise<void> {
  const admitted = CLIENTS.map(({ user, groups, address4, address6, hasCertificate, mfaMinutes }) => {
    const holder = {
      user,
      groups,
      hasCertificate,
      mfaAt: mfaMinutes === undefined ? undefined : NOW - mfaMinutes * 60_000,
    };
    const rules = rulesFor(policy, holder, NOW).map(({ index }) => index);
    const peers = [`user:${user}`, ...[...groupsOf(policy, holder)].map((group) => `group:${group}`)];
    return { lease: { v4: parseIp(address4), v6: parseIp(address6) }, access: { rules, peers } };
  });
  const table = new AccessTable({
    table: `${TABLE.family} ${TABLE.name}`,
    rules: withAddresses(policy.rules, (host) => (HOSTS[host] ?? []).map(parseIp)),
    allow: 'accept',
    deny: 'drop',
    clients: { 4: 'pool4', 6: 'pool6' },
    admitted: later ? [] : admitted,
    nextMark: () => ++mark,
    keptClasses: 0,
  });
  const body = [
    `\tset pool4 { type ipv4_addr; flags interval; elements = { ${POOLS[0]} }; }`,
    `\tset pool6 { type ipv6_addr; flags interval; elements = { ${POOLS[1]} }; }`,
    ...table.lines(),
    '\tchain forward {',
    '\t\ttype filter hook forward priority filter; policy drop;',
    '\t\tct state established counter',
    `\t\tip saddr ${FENCE} accept`,
    ...ACCESS_RULES.map((rule) => `\t\tiifname "pc0" ${rule}`),
    '\t}',
    // The kernel tells two clients of one device to talk without it, and quotes what it was sent.
    '\tchain output {',
    '\t\ttype filter hook output priority filter; policy accept;',
    '\t\toifname "pc0" icmp type redirect drop',
    '\t\toifname "pc0" icmpv6 type nd-redirect drop',
    '\t}',
  ].join('\n');
  await runNft(replaceTableText(TABLE, body));
  if (!later) return;
  // Somebody else's rights first: nothing of them may stay.
  for (const [at, { lease }] of admitted.entries()) {
    const other = admitted[(at + 1) % admitted.length];
    if (other !== undefined) await runNft(table.admit([{ lease, access: other.access }]).commands);
  }
  await runNft(table.admit(admitted).commands);
}

/** Everything that was written before has come out or has been dropped. */
async function fence(): Promise<void> {
  for (const destination of ['192.0.2.9', '10.20.0.201']) {
    number += 1;
    const id = number;
    const [packet] = packetOf({ client: 0, destination, protocol: 17, port: 9 }, FENCE, id, 'plain');
    if (packet !== undefined) write(packet);
    const deadline = performance.now() + 10_000;
    while (!out.has(id)) {
      if (performance.now() > deadline) throw new Error(`the fence to ${destination} did not come out`);
      await delay(1);
    }
  }
}

async function tryPolicy(
  model: ModelPolicy,
  flows: readonly ModelFlow[],
  report: Report,
  later: boolean,
): Promise<void> {
  const { policy, problems } = readPolicy(textOf(model));
  if (policy === undefined) throw new Error(JSON.stringify(problems));
  await apply(policy, later);
  const sent = flows.map((flow, at) => {
    number += 1;
    const dress = DRESSES[at % DRESSES.length] ?? 'plain';
    const client = CLIENTS[flow.client];
    const source = flow.destination.includes(':') ? client?.address6 : client?.address4;
    for (const packet of packetOf(flow, source ?? '', number, dress)) write(packet);
    return { flow, dress, id: number };
  });
  await fence();
  for (const { flow, dress, id } of sent) {
    const expected = isAllowed(model, flow);
    report.sent += 1;
    report.dresses[dress] = (report.dresses[dress] ?? 0) + 1;
    if (expected) report.allowed += 1;
    if (out.has(id) === expected) continue;
    const [kernel, said] = [out.has(id) ? 'lets it through' : 'drops it', expected ? 'lets it through' : 'drops it'];
    report.differences.push({ flow, dress, model: said, kernel, policy: textOf(model) });
  }
}

const report: Report = { seed: Number(seedText), sent: 0, allowed: 0, dresses: {}, differences: [] };
const models = fc.sample(modelPolicy, { seed: report.seed, numRuns: Number(policiesText) });
const flows = fc.sample(modelFlow, { seed: report.seed, numRuns: models.length * Number(flowsText) });
for (const [at, model] of models.entries()) {
  await tryPolicy(model, flows.slice(at * Number(flowsText), (at + 1) * Number(flowsText)), report, at % 2 === 1);
}
process.stdout.write(`${JSON.stringify(report)}\n`);
process.exit(0);
