/** Connections between workers: what one sender does to its way is between it and the receiver. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { NativeMemory, nativeCalls } from '../../os/ffi.ts';
import { closeFd, socketFd } from '../../os/socket.ts';
import { DescriptorReceiver, DescriptorSender, socketPair } from '../../os/unix-socket.ts';
import { Handover, type HandoverListener } from './handover.ts';

const linux = { skip: process.platform === 'linux' ? false : 'needs Linux' };
const RECORD = Buffer.from('what was read');
const SHUTDOWN = process.arch === 'x64' ? 48n : 210n;

interface Taken {
  raw: Socket;
  source: string;
  over(): void;
}

/** A receiver, and connections to give to it. */
class Rig implements AsyncDisposable {
  readonly taken: Taken[] = [];
  readonly handover: Handover;
  readonly #undo = new AsyncDisposableStack();
  #port = 0;

  static async open(maxInHandshake = 100): Promise<Rig> {
    const rig = new Rig(maxInHandshake);
    const server = createServer((socket) => void socket.on('error', () => {}).resume());
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    rig.#port = (server.address() as AddressInfo).port;
    rig.#undo.defer(() => void server.close());
    return rig;
  }

  private constructor(maxInHandshake: number) {
    this.handover = new Handover({ worker: 0, maxInHandshake: () => maxInHandshake });
    const listener: HandoverListener = {
      takeOver: (raw, start, { address }, _isCounted, over) => {
        assert.deepEqual(Buffer.from(start), RECORD);
        raw.on('error', () => {});
        raw.once('close', over);
        this.#undo.defer(() => void raw.destroy());
        this.taken.push({ raw, source: address, over });
      },
    };
    this.handover.start(listener);
  }

  /** The sending end of a way from that worker. */
  addSender(worker: number): number {
    const [near, far] = socketPair('packets');
    this.handover.addSender(worker, far);
    return near;
  }

  async connection(): Promise<Socket> {
    const socket = connect(this.#port, '127.0.0.1');
    socket.on('error', () => {});
    this.#undo.defer(() => void socket.destroy());
    await once(socket, 'connect');
    return socket;
  }

  async takenAre(count: number): Promise<void> {
    while (this.taken.length < count) await new Promise((resolve) => setTimeout(resolve, 5));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#undo.disposeAsync();
  }
}

function packetOf(source: string): Buffer {
  const address = Buffer.from(source);
  return Buffer.concat([Buffer.of(1, 0x1f, 0x90, address.length), address, RECORD]);
}

for (const [what, spoil] of [
  ['shut down', (fd: number) => void nativeCalls().syscall(SHUTDOWN, BigInt(fd), 2n, 0n, 0n)],
  ['ended by an empty packet', (fd: number) => void sendEmpty(fd)],
  ['closed', closeFd],
] as const) {
  test(`a way that is ${what} by its sender leaves the others' as they are`, linux, async () => {
    await using rig = await Rig.open();
    const [bad, good] = [rig.addSender(1), rig.addSender(2)];
    const socket = await rig.connection();
    spoil(bad);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(new DescriptorSender(good).send(packetOf('192.0.2.2'), socketFd(socket)), true);
    await rig.takenAre(1);
    assert.equal(rig.taken[0]?.source, '192.0.2.2');
    // A new process in the place of the bad one has a way of its own.
    const next = rig.addSender(1);
    assert.equal(new DescriptorSender(next).send(packetOf('192.0.2.1'), socketFd(socket)), true);
    await rig.takenAre(2);
    assert.equal(rig.taken[1]?.source, '192.0.2.1');
    for (const fd of [good, next, ...(what === 'closed' ? [] : [bad])]) closeFd(fd);
  });
}

test('a flood of one sender keeps out nothing of another, and leaves no descriptor behind', linux, async () => {
  await using rig = await Rig.open();
  const before = readdirSync('/proc/self/fd').length;
  const [bad, good] = [rig.addSender(1), rig.addSender(2)];
  const flood = new DescriptorSender(bad);
  const socket = await rig.connection();
  let sent = 0;
  const until = performance.now() + 300;
  while (performance.now() < until) {
    while (flood.send(Buffer.of(1), 0)) sent += 1;
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(sent > 100, `${sent} were sent`);
  assert.ok(sent < 5000, `${sent} were taken: nothing bounds the rate`);
  assert.equal(new DescriptorSender(good).send(packetOf('192.0.2.2'), socketFd(socket)), true);
  await rig.takenAre(1);
  closeFd(bad);
  closeFd(good);
  while (readdirSync('/proc/self/fd').length > before + 3) await new Promise((resolve) => setTimeout(resolve, 20));
});

test(
  'so many connections of one sender are in their handshake; more wait on the way for as long as some come to their end',
  linux,
  async () => {
    await using rig = await Rig.open(3);
    const way = rig.addSender(1);
    const sender = new DescriptorSender(way);
    for (let count = 0; count < 20; count += 1) {
      assert.equal(sender.send(packetOf(`192.0.2.${count}`), socketFd(await rig.connection())), true);
    }
    for (let ended = 0; ended < 20; ended += 1) {
      await rig.takenAre(Math.min(20, ended + 3));
      assert.equal(rig.taken.length, Math.min(20, ended + 3));
      rig.taken[ended]?.over();
    }
    assert.ok(rig.taken.every(({ raw }) => !raw.destroyed));
    closeFd(way);
  },
);

test('where none comes to its end, the busiest source of a sender makes room', linux, async () => {
  await using rig = await Rig.open(3);
  const [bad, good] = [rig.addSender(1), rig.addSender(2)];
  const give = async (fd: number, source: string) => {
    const count = rig.taken.length;
    assert.equal(new DescriptorSender(fd).send(packetOf(source), socketFd(await rig.connection())), true);
    await rig.takenAre(count + 1);
  };
  await give(good, '192.0.2.2');
  for (const source of ['192.0.2.9', '192.0.2.8', '192.0.2.8']) await give(bad, source);
  await give(bad, '192.0.2.7');
  const open = () => rig.taken.filter(({ raw }) => !raw.destroyed).map(({ source }) => source);
  assert.deepEqual(open(), ['192.0.2.2', '192.0.2.9', '192.0.2.8', '192.0.2.7']);
  // What is through its handshake is not counted.
  for (const { over } of rig.taken) over();
  await give(bad, '192.0.2.6');
  assert.equal(open().length, 5);
  closeFd(bad);
  closeFd(good);
});

test('a worker that stops takes nothing any more, and its senders know', linux, async () => {
  await using rig = await Rig.open();
  const way = rig.addSender(1);
  const sender = new DescriptorSender(way);
  const socket = await rig.connection();
  assert.equal(sender.send(packetOf('192.0.2.2'), socketFd(socket)), true);
  await rig.takenAre(1);
  rig.handover.close();
  assert.equal(sender.send(packetOf('192.0.2.2'), socketFd(socket)), false);
  const late = rig.addSender(2);
  assert.equal(new DescriptorSender(late).send(packetOf('192.0.2.3'), socketFd(socket)), false);
  for (const fd of [way, late]) closeFd(fd);
});

/** The beginning of a TLS connection that asks for a tunnel at whichever worker. */
function helloForAny(): Buffer {
  const name = Buffer.from('customvpn/1');
  const names = Buffer.of(0, name.length + 1, name.length, ...name);
  const alpn = Buffer.of(0, 16, 0, names.length, ...names);
  const rest = Buffer.of(0, 0, 2, 0x13, 1, 1, 0, 0, alpn.length, ...alpn);
  return Buffer.concat([Buffer.of(0x16, 3, 1, 0, 0, 1, 0, 0, 0, 3, 3), new Uint8Array(32), rest]);
}

test('a worker that does not take what it is given gets nobody more in turn, until it does', linux, async () => {
  await using rig = await Rig.open();
  let now = 0;
  const handover = new Handover({ worker: 0, maxInHandshake: () => 100, now: () => now });
  const [near, far] = socketPair('packets');
  handover.addWay(1, near);
  const socket = await rig.connection();
  const remote = { address: '192.0.2.9', port: 1 };
  const give = (): boolean => handover.give(socket, helloForAny(), remote, true);
  assert.deepEqual([give(), give(), give(), give()], [false, true, false, true], 'itself first, and in turn');
  now = 10_000;
  assert.deepEqual([give(), give(), give(), give()], [false, false, false, false]);
  let taken = 0;
  const receiver = new DescriptorReceiver(far, (_packet, descriptor) => {
    taken += 1;
    closeFd(descriptor);
  });
  while (taken < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok([give(), give()].includes(true));
  await receiver.close();
  closeFd(near);
});

test('descriptors of auth come by a way of their own, and other workers have no part in it', linux, async () => {
  await using rig = await Rig.open();
  const came: string[] = [];
  rig.handover.onDialled = (id, fd) => {
    came.push(id);
    closeFd(fd);
  };
  const bad = rig.addSender(1);
  const [near, far] = socketPair('packets');
  rig.handover.addDialled(far);
  const id = Buffer.alloc(16, 7);
  const forged = new DescriptorSender(bad).send(id, 0);
  assert.equal(forged, true);
  assert.equal(new DescriptorSender(near).send(id, 0), true);
  while (came.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(came, [id.toString('hex')]);
  assert.deepEqual(rig.taken, []);
  closeFd(bad);
  closeFd(near);
});

test(
  'connections that ask for no worker are dealt to all in turn, others go where they ask or stay',
  linux,
  async () => {
    await using rig = await Rig.open();
    const received = new Map<number, number>();
    const receivers = [1, 2].map((worker) => {
      const [near, far] = socketPair('packets');
      rig.handover.addWay(worker, near);
      return new DescriptorReceiver(far, (_packet, fd) => {
        received.set(worker, (received.get(worker) ?? 0) + 1);
        closeFd(fd);
      });
    });
    const remote = { address: '192.0.2.1', port: 8080 };
    const give = async (protocol: string): Promise<boolean> =>
      rig.handover.give(await rig.connection(), clientHello(protocol), remote, true);
    const gone: boolean[] = [];
    for (let count = 0; count < 9; count += 1) gone.push(await give('customvpn/1'));
    assert.deepEqual(gone, [false, true, true, false, true, true, false, true, true]);
    assert.equal(await give('customvpn/1+2'), true);
    assert.equal(await give('customvpn/1+0'), false);
    assert.equal(await give('customvpn/1+9'), false);
    assert.equal(await give('h2'), false);
    while ((received.get(1) ?? 0) + (received.get(2) ?? 0) < 7) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.deepEqual([...received].toSorted(), [
      [1, 3],
      [2, 4],
    ]);
    await Promise.all(receivers.map((receiver) => receiver.close()));
  },
);

/** The first record of a client that offers one protocol. */
function clientHello(protocol: string): Buffer {
  const name = Buffer.from(protocol);
  const list = Buffer.concat([Buffer.of(0, name.length + 1, name.length), name]);
  const alpn = Buffer.concat([Buffer.of(0, 16, 0, list.length), list]);
  // Version, random, no session id, no cipher suites, no compression methods, extensions.
  const body = Buffer.concat([Buffer.alloc(34), Buffer.of(0, 0, 0, 0, 0, alpn.length), alpn]);
  const hello = Buffer.concat([Buffer.of(1, 0, 0, body.length), body]);
  return Buffer.concat([Buffer.of(0x16, 3, 1, 0, hello.length), hello]);
}

/** What `DescriptorSender` refuses to send. */
function sendEmpty(fd: number): void {
  // struct msghdr of nothing.
  const header = new NativeMemory(56);
  assert.equal(nativeCalls().sendmsg(fd, header.address, 0), 0);
}
