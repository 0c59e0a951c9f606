/** Runs inside a namespace for `os-tun.test.ts`: works a real device and prints what happened as JSON. */

import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { existsSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { isVpnError, type VpnError } from '../../src/base/errors.ts';
import { DropReason } from '../../src/ip/drop-reason.ts';
import { SegmentJoiner } from '../../src/ip/segment-joiner.ts';
import { NO_OFFLOAD, type Offload, rebuildOffload } from '../../src/ip/super-packet.ts';
import { PACKET_OFFSET, type TunDevice } from '../../src/os/tun.ts';
import { openTun } from '../../src/os/tun-linux.ts';

const scenarios: Record<string, () => Promise<unknown>> = {
  lifecycle,
  fallback: () => bulk(true, false),
  plain: () => bulk(false, false),
  joined: () => bulk(false, false, true),
  super: () => bulk(true, true),
  collected,
  ticks,
  removed,
  exits,
};

function up(tun: TunDevice): void {
  execFileSync('ip', ['address', 'add', '10.9.0.1/24', 'dev', tun.name]);
  execFileSync('ip', ['link', 'set', tun.name, 'up']);
}

function codeOf(action: () => unknown): string {
  try {
    action();
    return 'none';
  } catch (error) {
    return isVpnError(error) ? error.code : String(error);
  }
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('waited too long');
    await delay(2);
  }
}

async function lifecycle(): Promise<unknown> {
  const tun = openTun({ name: 'cvt%d', superPackets: true, mtu: 1380 });
  const isThere = existsSync(`/sys/class/net/${tun.name}`);
  const shown = JSON.parse(execFileSync('ip', ['-j', 'link', 'show', tun.name], { encoding: 'utf8' })) as [
    { mtu: number },
  ];
  const second = codeOf(() => openTun({ name: tun.name, superPackets: true, mtu: 1380 }));
  const badName = codeOf(() => openTun({ name: 'a name with spaces', superPackets: true, mtu: 1380 }));
  tun.start({ packet: () => {}, idle: () => {} });
  const startedTwice = codeOf(() => tun.start({ packet: () => {}, idle: () => {} }));
  await Promise.all([tun.close(), tun.close()]);
  const lateWrite = tun.write(tun.createBuffer(), 40, NO_OFFLOAD);
  const isGone = !JSON.parse(execFileSync('ip', ['-j', 'link'], { encoding: 'utf8' })).some(
    (link: { ifname: string }) => link.ifname === tun.name,
  );
  return { name: tun.name, isThere, mtu: shown[0].mtu, second, badName, startedTwice, lateWrite, isGone };
}

/**
 * A TCP upload into the device, whose packets are sent back into it with source and destination swapped: the kernel then
 * talks to itself through us, both ways, and the checksums it left partial are right after the swap.
 *
 * @param joins segments that come in one wake go back as one super-packet
 */
async function bulk(superPackets: boolean, uso: boolean, joins = false): Promise<unknown> {
  const tun = openTun({ name: 'cvt%d', superPackets, mtu: 1400, force: { uso } });
  up(tun);
  const buffer = tun.createBuffer();
  const offload: Offload = { ...NO_OFFLOAD };
  const limits = { mtu: tun.mtu, uso: tun.uso };
  const drops = new Map<number, number>();
  let largest = 0;
  let udpSuper = 0;
  const joined = tun.createBuffer();
  const joiner = new SegmentJoiner(joined.bytes, PACKET_OFFSET, tun.mtu);
  const writeJoined = (): void => {
    if (joiner.segments === 0) return;
    joiner.finish();
    tun.write(joined, joiner.length, joiner.offload);
    joiner.clear();
  };
  tun.start({
    packet(bytes, length, gsoType, flags, gsoSize) {
      if ((bytes[PACKET_OFFSET] ?? 0) >> 4 !== 4) return;
      largest = Math.max(largest, length);
      if (gsoType === 3) udpSuper += 1;
      buffer.bytes.set(bytes.subarray(PACKET_OFFSET, PACKET_OFFSET + length), PACKET_OFFSET);
      for (let i = 0; i < 4; i += 1) {
        const source = buffer.bytes[PACKET_OFFSET + 12 + i] ?? 0;
        buffer.bytes[PACKET_OFFSET + 12 + i] = buffer.bytes[PACKET_OFFSET + 16 + i] ?? 0;
        buffer.bytes[PACKET_OFFSET + 16 + i] = source;
      }
      const reason = rebuildOffload(buffer.bytes, PACKET_OFFSET, length, gsoType, flags, gsoSize, limits, offload);
      if (reason !== DropReason.none) {
        drops.set(reason, (drops.get(reason) ?? 0) + 1);
        return;
      }
      if (joins) {
        if (joiner.append(buffer.bytes, PACKET_OFFSET, length)) return;
        writeJoined();
        if (joiner.begin(buffer.bytes, PACKET_OFFSET, length)) return;
      }
      tun.write(buffer, length, offload);
    },
    idle: writeJoined,
  });
  const total = 8 * 1024 * 1024;
  let received = 0;
  const server = createServer((socket) => socket.on('data', (chunk) => (received += chunk.length)));
  await new Promise<void>((done) => server.listen(7000, '10.9.0.1', done));
  const client = connect(7000, '10.9.0.2');
  client.end(Buffer.alloc(total, 'a'));
  await until(() => received === total);
  client.destroy();
  server.close();
  const { counters } = tun;
  await tun.close();
  return { received, largest, udpSuper, uso: tun.uso, drops: [...drops.values()].length, counters };
}

/** Traffic through the device while the collector runs over and over. */
async function collected(): Promise<unknown> {
  const gc = globalThis.gc;
  if (gc === undefined) throw new Error('--expose-gc is missing');
  const timer = setInterval(() => gc(), 3);
  const result = await bulk(true, true);
  clearInterval(timer);
  return result;
}

/** What a reader's callback queues must run before the next wake, without help from any other callback. */
async function ticks(): Promise<unknown> {
  const tun = openTun({ name: 'cvt%d', superPackets: true, mtu: 1400 });
  up(tun);
  const order: string[] = [];
  let isArmed = false;
  tun.start({
    packet(bytes) {
      if (!isArmed || (bytes[PACKET_OFFSET] ?? 0) >> 4 !== 4) return;
      isArmed = false;
      process.nextTick(() => order.push('tick'));
      Promise.resolve().then(() => order.push('promise'));
      const started = performance.now();
      process.nextTick(() => order.push(performance.now() - started < 250 ? 'soon' : 'late'));
    },
    idle: () => {},
  });
  const socket = createSocket('udp4');
  await new Promise<void>((done) => socket.bind(0, '10.9.0.1', done));
  await new Promise<void>((done) => socket.send('x', 9, '10.9.0.2', () => done()));
  await delay(20);
  // From here to the timer nothing of Node's is due but what the device's wake brings.
  execFileSync('sh', ['-c', '(sleep 0.1; exec bash -c "echo x > /dev/udp/10.9.0.2/9") >/dev/null 2>&1 &']);
  isArmed = true;
  await delay(600);
  socket.close();
  await tun.close();
  return order;
}

/** Somebody deletes the device under us: one report, and no spinning. */
async function removed(): Promise<unknown> {
  const tun = openTun({ name: 'cvt%d', superPackets: true, mtu: 1400 });
  up(tun);
  const failures: VpnError[] = [];
  tun.start({ packet: () => {}, idle: () => {}, failed: (error) => failures.push(error) });
  execFileSync('ip', ['link', 'delete', tun.name]);
  await until(() => failures.length > 0);
  const wakes = tun.counters.wakes;
  await delay(50);
  const wrote = tun.write(tun.createBuffer(), 40, NO_OFFLOAD);
  const extraWakes = tun.counters.wakes - wakes;
  await tun.close();
  return { codes: failures.map((error) => error.code), extraWakes, wrote };
}

/** A closed device does not keep the process, and a process may end with an open one. */
async function exits(): Promise<unknown> {
  const kept = openTun({ name: 'cvt%d', superPackets: true, mtu: 1400 });
  kept.start({ packet: () => {}, idle: () => {} });
  setTimeout(() => process.exit(0), 30);
  return { open: true };
}

const scenario = scenarios[process.argv[2] ?? ''];
if (scenario === undefined) throw new Error(`no scenario ${process.argv[2]}`);
process.stdout.write(`${JSON.stringify(await scenario())}\n`);
