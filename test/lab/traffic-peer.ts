/**
 * Both ends of test traffic, run inside namespaces. All that arrives is compared with what was sent.
 *
 *   node traffic-peer.ts serve PORT [ADDRESS]             answers on TCP and UDP, prints `ready`; runs until it is ended
 *   node traffic-peer.ts tcp ADDRESS PORT BYTES           sends, has it back, prints JSON with both hashes
 *   node traffic-peer.ts stream ADDRESS PORT SECONDS      the same for so long; also the longest time without a byte
 *   node traffic-peer.ts udp ADDRESS PORT COUNT SIZE      the same in datagrams, one after the other
 *   node traffic-peer.ts udp-burst ADDRESS PORT COUNT SIZE   COUNT datagrams in one call with UDP_SEGMENT
 *   node traffic-peer.ts flows ADDRESS PORT COUNT         one datagram to each of COUNT ports, from PORT on
 *   node traffic-peer.ts crowd ADDRESS PORT COUNT         holds COUNT connections, and opens those again that are ended
 *   node traffic-peer.ts talk ADDRESS PORT                one connection: sends its input, prints `ready` and what comes back
 *   node traffic-peer.ts reach ADDRESS PORT               prints whether a TCP connection is accepted within a second
 *
 * A datagram is answered with itself; one of a burst is answered only by counting, see `udp-burst`.
 */

import { createHash } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { checkResult, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';
import { fileBlocks } from './file-peer.ts';

const SOL_UDP = 17;
const UDP_SEGMENT = 103;
const ATTEMPTS = 25;
const RETRY_MS = 200;
const REACH_MS = 1000;

interface Content {
  bytes: number;
  sha256: string;
}

function serve(port: number, address: string): void {
  const tcp = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  const udp = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  const bursts = new Map<string, Buffer[]>();
  udp.on('message', (message, { address: from, port: sender }) => {
    const key = `${from} ${sender}`;
    const kept = bursts.get(key) ?? [];
    const [kind = '', count, size] = message.subarray(0, 32).toString('latin1').split(' ');
    if (kind === 'back') {
      if (kept.length !== Number(count)) return;
      bursts.delete(key);
      setSegmentSize(udp, Number(size));
      udp.send(Buffer.concat(kept), sender, from, () => setSegmentSize(udp, 0));
    } else if (kind === 'keep') bursts.set(key, [...kept, Buffer.from(message)]);
    else udp.send(message, sender, from);
  });
  udp.bind(port, address, () => tcp.listen(port, address, () => process.stdout.write('ready\n')));
}

async function tcp(address: string, port: number, bytes: number): Promise<{ sent: Content; returned: Content }> {
  const socket = connect({ host: address, port, allowHalfOpen: true });
  await once(socket, 'connect');
  const sent = createHash('sha256');
  const returned = createHash('sha256');
  let received = 0;
  socket.on('data', (chunk) => {
    returned.update(chunk);
    received += chunk.length;
  });
  const ended = once(socket, 'end');
  for (const block of fileBlocks(bytes, Buffer.from('traffic'))) {
    sent.update(block);
    // The block's memory is used again, so one at a time.
    await new Promise<void>((resolve, reject) => socket.write(block, (error) => (error ? reject(error) : resolve())));
  }
  socket.end();
  await ended;
  return {
    sent: { bytes, sha256: sent.digest('hex') },
    returned: { bytes: received, sha256: returned.digest('hex') },
  };
}

/** Sends and has back for a while, whatever happens on the way. */
async function stream(
  address: string,
  port: number,
  seconds: number,
): Promise<Content & { gapMs: number; same: boolean }> {
  const socket = connect({ host: address, port, allowHalfOpen: true });
  await once(socket, 'connect');
  const sent = createHash('sha256');
  const returned = createHash('sha256');
  const until = performance.now() + seconds * 1000;
  let last = performance.now();
  let gapMs = 0;
  let bytes = 0;
  socket.on('data', (chunk) => {
    const now = performance.now();
    gapMs = Math.max(gapMs, now - last);
    last = now;
    returned.update(chunk);
    bytes += chunk.length;
  });
  const ended = once(socket, 'end');
  const block = Buffer.alloc(16_384, 'traffic');
  while (performance.now() < until) {
    sent.update(block);
    await new Promise<void>((resolve, reject) => socket.write(block, (error) => (error ? reject(error) : resolve())));
    // Far from what the way can carry: it is a matter of gaps.
    await delay(2);
  }
  socket.end();
  await ended;
  const sha256 = returned.digest('hex');
  return { bytes, sha256, gapMs: Math.round(gapMs), same: sent.digest('hex') === sha256 };
}

interface Datagrams {
  sent: number;
  intact: number;
  /** Error of the socket, such as ECONNREFUSED from an ICMP message. */
  error?: string;
}

async function connected(address: string, port: number): Promise<Socket> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  socket.connect(port, address);
  await once(socket, 'connect');
  return socket;
}

/** One at a time; a lost one is sent again a few times, and counts as one. */
async function udp(address: string, port: number, count: number, size: number): Promise<Datagrams> {
  const socket = await connected(address, port);
  try {
    let intact = 0;
    for (let number = 0; number < count; number++) {
      const payload = datagram('ping', number, size);
      const isBack = (message: Buffer): boolean => message.equals(payload);
      if (await exchange(socket, payload, isBack)) intact += 1;
    }
    return { sent: count, intact };
  } catch (error) {
    return { sent: count, intact: 0, error: String((error as NodeJS.ErrnoException).code) };
  } finally {
    socket.close();
  }
}

/** Sends all datagrams with one call, lets the other side send them back with one call, and compares. */
async function udpBurst(address: string, port: number, count: number, size: number): Promise<Datagrams> {
  const socket = await connected(address, port);
  const payloads = Array.from({ length: count }, (_, number) => datagram('keep', number, size));
  const missing = new Set(payloads.map((payload) => payload.toString('latin1')));
  socket.on('message', (message) => missing.delete(message.toString('latin1')));
  setSegmentSize(socket, size);
  await new Promise<void>((resolve, reject) =>
    socket.send(Buffer.concat(payloads), (error) => (error ? reject(error) : resolve())),
  );
  setSegmentSize(socket, 0);
  await exchange(socket, Buffer.from(`back ${count} ${size}`), () => missing.size === 0);
  socket.close();
  return { sent: count, intact: count - missing.size };
}

/** Sends until an answer is the wanted one; false when none was. @throws what the socket reports */
async function exchange(socket: Socket, payload: Buffer, isWanted: (message: Buffer) => boolean): Promise<boolean> {
  const answer = Promise.withResolvers<boolean>();
  const listen = (message: Buffer): void => {
    if (isWanted(message)) answer.resolve(true);
  };
  socket.on('message', listen).once('error', answer.reject);
  answer.promise.catch(() => {});
  try {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      socket.send(payload, (error) => (error ? answer.reject(error) : undefined));
      if (await Promise.race([answer.promise, delay(RETRY_MS, false)])) return true;
    }
    return false;
  } finally {
    socket.off('message', listen).off('error', answer.reject);
  }
}

function datagram(kind: string, number: number, size: number): Buffer {
  const payload = Buffer.alloc(size, createHash('sha256').update(String(number)).digest());
  payload.write(`${kind} ${number} `, 'latin1');
  return payload;
}

/** Makes the kernel cut what one call sends; 0 ends that. `node:dgram` has no word for it. */
function setSegmentSize(socket: Socket, size: number): void {
  const state = Object.getOwnPropertySymbols(socket).find(({ description }) => description === 'state symbol');
  const { fd } = (socket as unknown as Record<symbol, { handle: { fd: number } }>)[state ?? Symbol()]?.handle ?? {
    fd: -1,
  };
  const value = new NativeMemory(4);
  value.view.setInt32(0, size, true);
  const calls = nativeCalls();
  checkResult(calls.setsockopt(fd, SOL_UDP, UDP_SEGMENT, value.address, 4), 'cannot set UDP_SEGMENT', 'setsockopt');
}

async function reach(address: string, port: number): Promise<{ accepted: boolean }> {
  const socket = connect({ host: address, port });
  const result = await Promise.race([
    once(socket, 'connect').then(
      () => true,
      () => false,
    ),
    delay(REACH_MS, false),
  ]);
  socket.destroy();
  return { accepted: result };
}

/** To the kernels on the way each is a connection. */
async function flows(address: string, first: number, count: number): Promise<{ sent: number }> {
  const socket = createSocket('udp4');
  // What is refused by ICMP is none of its business.
  socket.on('error', () => {});
  for (let number = 0; number < count; number++) {
    await new Promise<void>((resolve) => socket.send('flow', first + number, address, () => resolve()));
    if (number % 100 === 99) await delay(5);
  }
  socket.close();
  return { sent: count };
}

/** Strangers who say nothing. */
function crowd(address: string, port: number, count: number): void {
  const open = (): void => {
    const socket = connect({ host: address, port });
    socket.on('error', () => {});
    socket.once('close', () => setTimeout(open, RETRY_MS));
  };
  for (let number = 0; number < count; number++) open();
  process.stdout.write('ready\n');
}

/** One TCP connection that stays: sends each line of standard input, and prints what comes back. */
async function talk(address: string, port: number): Promise<undefined> {
  const socket = connect({ host: address, port });
  socket.on('error', ({ message }) => process.stdout.write(`error ${message}\n`));
  await once(socket, 'connect');
  process.stdout.write('ready\n');
  socket.pipe(process.stdout);
  process.stdin.pipe(socket);
}

async function main([verb, first = '', ...rest]: readonly string[]): Promise<unknown> {
  const [port = 0, count = 0, size = 0] = rest.map(Number);
  switch (verb) {
    case 'serve':
      return void serve(Number(first), rest[0] ?? '::');
    case 'tcp':
      return await tcp(first, port, count);
    case 'stream':
      return await stream(first, port, count);
    case 'udp':
      return await udp(first, port, count, size);
    case 'udp-burst':
      return await udpBurst(first, port, count, size);
    case 'flows':
      return await flows(first, port, count);
    case 'crowd':
      return void crowd(first, port, count);
    case 'talk':
      return await talk(first, port);
    case 'reach':
      return await reach(first, port);
    default:
      process.exitCode = 64;
      return {
        usage: 'serve | tcp | stream | udp | udp-burst | flows | crowd | talk | reach; see the top of this file',
      };
  }
}

const found = await main(process.argv.slice(2));
if (found !== undefined) process.stdout.write(`${JSON.stringify(found)}\n`);
