/**
 * The user's traffic, for leak tests: `chatter TARGETS` sends all the time, in ways that programs do; `holder ADDRESS PORT`
 * keeps one connection; `names PORT ANSWERS` is a name server; `advertise DEVICE` sends router advertisements; `listen PORT`
 * answers. Each says `ready`.
 *
 * What is sent need not arrive: packets that leave are what is looked for.
 */

import { createSocket } from 'node:dgram';
import { writeSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { NativeMemory, nativeCalls } from '../../src/os/ffi.ts';

export interface Target {
  kind: 'udp' | 'tcp' | 'dns';
  address: string;
  port: number;
}

const EVERY_MS = 20;
/** TCP connections of the user come from here, so that one to the gateway's own port is told from the client's. */
export const USER_PORTS = { first: 40_001, last: 40_400 } as const;

const [program, ...words] = process.argv.slice(2);

async function chatter(targets: readonly Target[]): Promise<void> {
  process.stdout.write('ready\n');
  let localPort: number = USER_PORTS.first;
  for (let count = 0; ; count++) {
    for (const { kind, address, port } of targets) {
      if (kind === 'tcp') {
        localPort = localPort >= USER_PORTS.last ? USER_PORTS.first : localPort + 1;
        const socket = connect({ host: address, port, localPort });
        socket.on('error', () => {});
        setTimeout(() => socket.destroy(), 200);
        continue;
      }
      const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
      socket.on('error', () => {});
      const payload = kind === 'dns' ? question(`secret-${count}.test`) : 'user traffic';
      socket.send(payload, port, address, () => socket.close());
    }
    await sleep(EVERY_MS);
  }
}

/** A query for an IPv4 address. */
function question(name: string): Buffer {
  const labels = name.split('.').flatMap((label) => [Buffer.from([label.length]), Buffer.from(label)]);
  return Buffer.concat([
    Buffer.from([0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ...labels,
    Buffer.from([0, 0, 1, 0, 1]),
  ]);
}

function holder(address: string, port: number): void {
  const socket = connect({ host: address, port }, () => process.stdout.write('ready\n'));
  const timer = setInterval(() => socket.write('still here\n'), EVERY_MS);
  socket.on('error', (error: NodeJS.ErrnoException) => {
    clearInterval(timer);
    process.stdout.write(`cut ${error.code}\n`);
    process.exit(0);
  });
}

function listen(port: number): void {
  createServer((socket) => socket.on('error', () => {}).pipe(socket)).listen(port, () =>
    process.stdout.write('ready\n'),
  );
}

/** Answers for the names that it has; for all others there is no such name. `silent` on standard input ends the answers. */
function names(port: number, answers: Readonly<Record<string, readonly string[]>>, only?: string): void {
  let isSilent = false;
  process.stdin.setEncoding('utf8').on('data', (text: string) => {
    isSilent = text.includes('silent');
    process.stdout.write(isSilent ? 'now silent\n' : 'now answering\n');
  });
  // An answer comes from the address that was asked, also where several devices lead to who asks.
  for (const address of only === undefined ? ['0.0.0.0', '::'] : [only]) {
    const socket = address.includes(':') ? createSocket({ type: 'udp6', ipv6Only: true }) : createSocket('udp4');
    socket.on('message', (query, from) => {
      if (!isSilent) socket.send(answerTo(query, answers), from.port, from.address);
    });
    socket.bind(port, address, () => {
      if (address === (only ?? '::')) process.stdout.write('ready\n');
    });
  }
}

function answerTo(query: Buffer, answers: Readonly<Record<string, readonly string[]>>): Buffer {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
    labels.push(query.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  const type = query.readUInt16BE(at + 1);
  const known = answers[labels.join('.')];
  const found = (known ?? []).filter((address) => address.includes(':') === (type === 28));
  const records = found.map((address) => {
    const bytes = addressBytes(address);
    return Buffer.concat([Buffer.from([0xc0, 12, 0, type, 0, 1, 0, 0, 0, 1, 0, bytes.length]), bytes]);
  });
  const header = Buffer.from([query[0] ?? 0, query[1] ?? 0, 0x81, known === undefined ? 0x83 : 0x80]);
  return Buffer.concat([
    header,
    Buffer.from([0, 1, 0, found.length, 0, 0, 0, 0]),
    query.subarray(12, at + 5),
    ...records,
  ]);
}

function addressBytes(address: string): Buffer {
  if (!address.includes(':')) return Buffer.from(address.split('.').map(Number));
  const [head = '', tail = ''] = address.split('::');
  const groups = (text: string): string[] => text.split(':').filter((group) => group !== '');
  const zeros = Array.from({ length: 8 - groups(head).length - groups(tail).length }, () => '0');
  return Buffer.concat(
    [...groups(head), ...(address.includes('::') ? zeros : []), ...groups(tail)].map((group) => {
      const bytes = Buffer.alloc(2);
      bytes.writeUInt16BE(Number.parseInt(group, 16));
      return bytes;
    }),
  );
}

/** Says all the time: I am the router for everything, and this prefix is on this link (RFC 4861 §4.2). */
async function advertise(device: string, prefix: string): Promise<void> {
  const calls = nativeCalls();
  const [AF_INET6, SOCK_RAW, IPPROTO_ICMPV6, IPPROTO_IPV6, IPV6_MULTICAST_HOPS] = [10, 3, 58, 41, 18];
  const fd = calls.socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
  const hops = new NativeMemory(4);
  hops.view.setInt32(0, 255, true);
  calls.setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, hops.address, 4);
  const index = networkInterfaces()[device]?.find(({ scopeid }) => (scopeid ?? 0) > 0)?.scopeid ?? 0;
  const everybody = new NativeMemory(28);
  everybody.view.setUint16(0, AF_INET6, true);
  everybody.bytes.set(addressBytes('ff02::1'), 8);
  everybody.view.setUint32(24, index, true);
  if (calls.connect(fd, everybody.address, 28) < 0) throw new Error('cannot send to ff02::1');
  const header = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
  const option = [3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0];
  const message = Buffer.concat([Buffer.from([...header, ...option]), addressBytes(prefix)]);
  process.stdout.write('ready\n');
  for (;;) {
    writeSync(fd, message);
    await sleep(100);
  }
}

if (import.meta.main) {
  if (program === 'chatter') await chatter(JSON.parse(words[0] ?? '[]') as Target[]);
  else if (program === 'holder') holder(words[0] ?? '', Number(words[1]));
  else if (program === 'listen') listen(Number(words[0]));
  else if (program === 'names')
    names(Number(words[0]), JSON.parse(words[1] ?? '{}') as Record<string, string[]>, words[2]);
  else if (program === 'advertise') await advertise(words[0] ?? '', words[1] ?? '');
  else throw new Error(`no such program: ${program}`);
}
