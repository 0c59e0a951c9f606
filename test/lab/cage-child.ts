/**
 * A program in a cage, for `cage.test.ts`: enters it, serves TLS on an inherited socket, and on demand tries everything
 * that it must not be able to do. Says what came of each attempt by the name of the error.
 */

import { spawnSync } from 'node:child_process';
import { pbkdf2, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { createServer } from 'node:tls';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { createLogger } from '../../src/base/log.ts';
import { type CageKind, enterCage } from '../../src/os/cage.ts';
import { errnoName, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';

export interface CageOrder {
  kind: CageKind;
  cert: string;
  key: string;
  /** A folder that anybody may write to, then files in it that must stay closed. */
  paths: string[];
  /** A port of this machine where somebody listens. */
  port: number;
  /** Leaves the cage out: what the attempts do without one. */
  isFree?: boolean;
}

const LISTEN_FD = 4;
const TUN_FD = 5;
const calls = nativeCalls();

process.once('disconnect', () => process.exit(0));
process.once('message', (order: CageOrder) => {
  start(order);
});
process.once('uncaughtException', (error) => {
  process.send?.({ failed: { code: String(Reflect.get(error, 'code')), message: error.message } });
});

function start(order: CageOrder): void {
  const server = createServer({ cert: order.cert, key: order.key }, (socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  server.listen({ fd: LISTEN_FD }, () => {
    const filtered = order.isFree !== true && enterCage(order.kind, { log: createLogger() });
    process.on('message', (question) => {
      const answer = question === 'attempts' ? attempts(order) : question === 'way out' ? wayOut(order) : works();
      void answer.then((result) => process.send?.(result));
    });
    process.send?.({ ready: true, filtered });
  });
}

/** What the language still has to do for its living. */
async function works(): Promise<unknown> {
  const started = performance.now();
  await delay(20);
  const isLate = performance.now() - started < 15;
  const derived = await promisify(pbkdf2)('a', 'b', 1000, 32, 'sha256');
  const packed = await promisify(gzip)(Buffer.alloc(100_000));
  let stack = '';
  try {
    JSON.parse('{');
  } catch (error) {
    stack = (error as Error).stack ?? '';
  }
  // Enough for the collector to want more memory and to give some back.
  const held = Array.from({ length: 200 }, () => randomBytes(256 * 1024));
  console.error('a line on standard error');
  return {
    timer: !isLate,
    threadPool: derived.length,
    packed: packed.length < 1000,
    stack: /SyntaxError[\s\S]*at .*works.*cage-child\.ts:\d+/.test(stack),
    memory: held.length,
  };
}

/** Each by the name of its error; `done` is what no worker may hear. */
async function attempts({ paths, port, isFree }: CageOrder): Promise<Record<string, string>> {
  const results: Record<string, string> = {};
  const attempt = (name: string, action: () => unknown): void => {
    try {
      action();
      results[name] = 'done';
    } catch (error) {
      results[name] = String(Reflect.get(error as Error, 'code'));
    }
  };
  const native = (name: string, result: number): void => {
    results[name] = result >= 0 ? 'done' : errnoName(calls.errno());
  };
  const syscall = (name: string, number: number, a = 0n, b = 0n, c = 0n, d = 0n): void => {
    native(name, calls.syscall(BigInt(number), a, b, c, d));
  };
  const word = new NativeMemory(40);
  const ioctl = (name: string, request: bigint, value = 0n): void => native(name, calls.ioctl(TUN_FD, request, value));

  const [folder = '', ...secrets] = paths;
  for (const [index, path] of secrets.entries()) attempt(`read secret ${index}`, () => readFileSync(path));
  attempt('read /etc/passwd', () => readFileSync('/etc/passwd'));
  attempt('write a file', () => writeFileSync(`${folder}/written`, ''));
  native('open /etc/passwd', calls.open('/etc/passwd', 0, 0));
  native('open /dev/net/tun', calls.open('/dev/net/tun', 2, 0));
  attempt('import a module', () =>
    process.getBuiltinModule('node:module').createRequire(import.meta.url)('../../package.json'),
  );
  attempt('spawn', () => {
    const { error } = spawnSync('/bin/true');
    if (error !== undefined) throw error;
  });
  results.connect = await outcome((done) =>
    connect(port, '127.0.0.1', () => done('done')).on('error', (error) => done(String(Reflect.get(error, 'code')))),
  );
  results['datagram socket'] = await outcome((done) => {
    const socket = createSocket('udp4').on('error', (error) => done(String(Reflect.get(error, 'code'))));
    socket.bind(0, () => done('done'));
  });
  native('socket', calls.socket(2, 1, 0));
  native('netlink socket', calls.socket(16, 3, 0));

  word.bytes.set(new TextEncoder().encode('cvcage9'));
  word.view.setUint16(16, 0x1001, true);
  ioctl('TUNSETIFF', 0x4004_54can, word.address);
  ioctl('TUNSETPERSIST', 0x4004_54cbn, 1n);
  ioctl('TUNSETPERSIST with high bits', 0xff_4004_54cbn, 1n);
  ioctl('TUNSETOFFLOAD', 0x4004_54d0n, 0n);
  word.view.setUint32(0, 12, true);
  ioctl('TUNSETVNETHDRSZ', 0x4004_54d8n, word.address);
  ioctl('TUNSETSNDBUF', 0x4004_54d4n, word.address);
  ioctl('TUNSETOWNER', 0x4004_54ccn, 65534n);
  ioctl('TUNDETACHFILTER', 0x4010_54d6n, word.address);

  // struct sock_fprog of one instruction: the first of the port's sockets gets every connection.
  const instruction = new NativeMemory(8);
  instruction.view.setUint16(0, 6, true);
  const filter = new NativeMemory(16);
  filter.view.setUint16(0, 1, true);
  filter.view.setBigUint64(8, instruction.address, true);
  native('SO_ATTACH_REUSEPORT_CBPF', calls.setsockopt(LISTEN_FD, 1, 51, filter.address, 16));

  const parent = BigInt(process.ppid);
  native('fcntl F_SETOWN', calls.fcntl(LISTEN_FD, 8, parent));
  native('prctl PR_SET_DUMPABLE', calls.prctl(4, 1n, 0n, 0n, 0n));
  if (process.arch === 'x64') {
    syscall('ptrace', 101, 16n, parent);
    syscall('process_vm_readv', 310, parent);
    syscall('kill another', 62, parent, 0n);
    syscall('kill all', 62, BigInt.asUintN(64, -1n), 0n);
    syscall('prlimit64 of another', 302, parent, 7n);
    syscall('mount', 165);
    syscall('unshare', 272, 0x1000_0000n);
    syscall('setns', 308, 0n);
    syscall('bpf', 321);
    syscall('perf_event_open', 298);
    syscall('userfaultfd', 323);
    syscall('io_uring_setup', 425, 8n, word.address);
    syscall('io_uring_enter', 426, 4n, 0n);
    syscall('memfd_create', 319, word.address);
    syscall('openat2', 437);
    syscall('open_by_handle_at', 304);
    syscall('execveat', 322);
    syscall('keyctl', 250);
    syscall('pidfd_open', 434, parent);
    syscall('add a filter', 317, 1n, 0n, 0n);
    syscall('clone3', 435, word.address, 0n);
    syscall('getpid of x32', 0x4000_0027);
    // Without a cage there would be a second one of this program.
    if (isFree !== true) syscall('fork', 57);
    if (isFree !== true) syscall('clone a child', 56, 17n);
  }
  return results;
}

function outcome(begin: (done: (result: string) => void) => void): Promise<string> {
  return new Promise(begin);
}

/** Makes the listening socket a fresh one, and connects it by sending: the way out that needs neither socket nor connect. */
async function wayOut({ port }: CageOrder): Promise<string> {
  const address = new NativeMemory(16);
  address.view.setUint16(0, 2, true);
  address.view.setUint16(2, port);
  address.bytes.set([127, 0, 0, 1], 4);
  const SHUT_RDWR = 2n;
  const shutdown = process.arch === 'x64' ? 48n : 210n;
  calls.syscall(shutdown, BigInt(LISTEN_FD), SHUT_RDWR, 0n, 0n);
  const MSG_FASTOPEN_DONTWAIT = 0x2000_0040;
  const sent = calls.sendto(LISTEN_FD, address.address, 1n, MSG_FASTOPEN_DONTWAIT, address.address, 16);
  return sent >= 0 ? 'done' : errnoName(calls.errno());
}
