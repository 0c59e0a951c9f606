/**
 * A worker that has been taken over: it was started, joined and caged like ours, has the same descriptors and the same
 * words, and does what it can with them.
 *
 *   hostile-worker-child.ts ATTACK [KEY_OF_ANOTHERS_SESSION ADDRESS_OF_ANOTHERS_CLIENT ADDRESS_BEHIND]
 */

import { randomBytes } from 'node:crypto';
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { createLogger } from '../../src/base/log.ts';
import { IpcChannel } from '../../src/gateway/ipc/channel.ts';
import { decodeWorkerDescriptor, type WorkerDescriptor } from '../../src/gateway/ipc/descriptors.ts';
import {
  LIMITS_FROM_ABOVE,
  LIMITS_OF_WORKER,
  supervisorToWorker,
  workerToSupervisor,
} from '../../src/gateway/ipc/messages.ts';
import { enterCage } from '../../src/os/cage.ts';
import { errnoName, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';
import { giveUpRights } from '../../src/os/launcher.ts';
import { DescriptorReceiver, DescriptorSender } from '../../src/os/unix-socket.ts';
import { icmpPacket } from '../support/packets.ts';

const [attack = '', key = '', victim = '', behind = ''] = process.argv.slice(2);
const SUPERVISOR_FD = 3;
const DESCRIPTORS_FD = 4;
/** What it has been given, by use: from the start, and when it joins the others. */
const given = new Map<WorkerDescriptor['use'], number>();
const isGiven = Promise.withResolvers<void>();
const hasJoined = Promise.withResolvers<void>();
new DescriptorReceiver(DESCRIPTORS_FD, (bytes, fd) => {
  given.set(decodeWorkerDescriptor(bytes).use, fd);
  if (given.size === 4) isGiven.resolve();
  if (given.size === 7) hasJoined.resolve();
});
const fdOf = (use: WorkerDescriptor['use']): number => given.get(use) ?? -1;
const devices = (): number[] => [fdOf('primary'), fdOf('plain')];
const VNET_HEADER_BYTES = 10;

const calls = nativeCalls();
let auth: Socket;
const answers = new Map<number, (answer: unknown) => void>();
let heard = Buffer.alloc(0);

function meetAuth(): void {
  auth = new Socket({ fd: fdOf('auth'), readable: true, writable: true });
  auth.on('error', () => {});
  auth.on('data', hear);
}

function hear(chunk: Buffer): void {
  heard = Buffer.concat([heard, chunk]);
  for (;;) {
    if (heard.length < 4 || heard.length < 4 + heard.readUInt32BE()) return;
    const body = heard.subarray(4, 4 + heard.readUInt32BE());
    heard = heard.subarray(4 + body.length);
    const message = JSON.parse(body.toString()) as { answer?: number };
    if (message.answer !== undefined) answers.get(message.answer)?.(message);
  }
}

function frameOf(message: unknown): Buffer {
  const body = Buffer.from(typeof message === 'string' ? message : JSON.stringify(message));
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  return Buffer.concat([head, body]);
}

function tell(name: string, input: unknown): void {
  auth.write(frameOf({ tell: name, input }));
}

let nextId = 0;
/** What auth answers: an output, an error's code, or silence. */
async function call(name: string, input: unknown): Promise<unknown> {
  nextId += 1;
  const id = nextId;
  const answered = new Promise<unknown>((done) => answers.set(id, done));
  auth.write(frameOf({ call: name, id, input }));
  const answer = (await Promise.race([answered, delay(5000, { error: { code: 'silence' } })])) as {
    output?: unknown;
    error?: { code: string };
  };
  return answer.error?.code ?? answer.output;
}

const bytes = (length: number) => randomBytes(length).toString('base64');
const session = Buffer.from(key, 'hex').toString('base64');
const peer = { binding: '1', remote: '203.0.113.9:1', serverId: bytes(32) };
const client = { name: 'x', version: '1', platform: 'linux' };

/** Every message of the contract, about somebody else's session. */
async function lie(): Promise<Record<string, unknown>> {
  const said: Record<string, unknown> = {};
  const attach = { session, epoch: 0, slot: 0, generation: 1, flags: 0, proof: bytes(32) };
  const evidence = {
    session,
    epoch: 0,
    deviceId: bytes(16),
    serverName: 'x',
    nonce: bytes(32),
    proof: bytes(32),
    proofInput: bytes(64),
    signature: bytes(64),
    signedBytes: bytes(64),
    serverProofInput: bytes(64),
    rekey: true,
  };
  const times = { absoluteSeconds: 1, idleSeconds: 1, graceSeconds: 1 };
  const resume = { key, attempt: 1, grant: { proof: bytes(32), worker: 1, ...times } };
  said.waiting = await call('waiting', { after: 0 });
  said.waitingFar = await call('waiting', { after: Number.MAX_SAFE_INTEGER });
  said.establish = await call('establish', { session: key, secret: bytes(32), features: [] });
  said.attach = await call('attach', { request: { message: attach, exported: bytes(32) }, peer });
  said.resume = await call('resume', { evidence, peer });
  said.proposeResume = await call('proposeResume', { resume, mix: bytes(32) });
  const confirmation = { key, attempt: 1, doneInput: bytes(64), payload: bytes(48) };
  said.confirmResume = await call('confirmResume', { confirmation, peer });
  const facts = { purpose: 'login', user: 'user0', algorithm: 'p256', serverName: 'x', client, attempt: 1 };
  const deviceId = bytes(16);
  const challenge = (await call('challenge', { request: { ...facts, deviceId }, peer })) as { nonce?: string };
  said.challenge = typeof challenge.nonce;
  const proofs = { nonce: challenge.nonce ?? bytes(32), signature: bytes(64), signedBytes: bytes(64) };
  said.verify = await call('verify', { evidence: { ...facts, deviceId, ...proofs, steps: ['device'] }, peer });
  tell('forget', { binding: '1' });
  tell('started', { session: key, remote: '203.0.113.9:1' });
  const many = Number.MAX_SAFE_INTEGER;
  tell('traffic', {
    session: key,
    traffic: { receivedBytes: many, receivedPackets: many, sentBytes: many, sentPackets: many },
  });
  said.detach = await call('detach', { session: key, reason: 'admin' });
  said.end = await call('end', { session: key, reason: 'admin' });
  return said;
}

/** Packets in the name of another's client, and whatever comes out of the devices. */
async function speakForOthers(): Promise<Record<string, unknown>> {
  const packet = icmpPacket({ source: victim, destination: behind, payload: Buffer.from('a hostile worker spoke') });
  const buffer = new NativeMemory(2048);
  buffer.bytes.set(packet, VNET_HEADER_BYTES);
  const vector = new NativeMemory(16);
  vector.view.setBigUint64(0, buffer.address, true);
  let written = 0;
  for (const fd of devices()) {
    vector.view.setBigUint64(8, BigInt(VNET_HEADER_BYTES + packet.length), true);
    for (let count = 0; count < 50; count += 1) if (calls.writev(fd, vector.address, 1) > 0) written += 1;
  }
  const stolen: string[] = [];
  vector.view.setBigUint64(8, 2048n, true);
  const end = performance.now() + 2000;
  while (performance.now() < end) {
    for (const fd of devices()) {
      const got = calls.readv(fd, vector.address, 1);
      if (
        got > 0 &&
        buffer.bytes
          .subarray(0, got)
          .toHex()
          .includes(Buffer.from(parts(victim)).toString('hex'))
      ) {
        stolen.push(buffer.bytes.subarray(0, got).toHex());
      }
    }
    await delay(10);
  }
  return { written, stolen };
}

function parts(address: string): number[] {
  return address.split('.').map(Number);
}

/** Everything that it has, given to the other worker as if it were a connection. */
function giveAway(): number {
  const sender = new DescriptorSender(fdOf('to'));
  let given = 0;
  const address = Buffer.from(victim);
  for (let round = 0; round < 20; round += 1) {
    for (const fd of [0, 1, fdOf('auth'), fdOf('listen'), ...devices(), fdOf('from'), fdOf('dialled')]) {
      for (const start of [randomBytes(200), Buffer.of(0x16, 3, 1, 0xff, 0xff, 1), Buffer.alloc(0)]) {
        const packet = Buffer.concat([Buffer.of(1, 0x1f, 0x90, address.length), address, start]);
        if (sender.send(packet, fd)) given += 1;
      }
      if (sender.send(Buffer.of(255), fd)) given += 1;
    }
  }
  return given;
}

/** The devices and the port are shared with whoever comes after. */
function spoil(): Record<string, string> {
  const result = (value: number) => (value >= 0 ? 'done' : errnoName(calls.errno()));
  const word = new NativeMemory(64);
  word.bytes.set(new TextEncoder().encode('cvpn0'));
  word.view.setUint16(16, 0x5001, true);
  const reports: Record<string, string> = {};
  for (const [name, request, value] of [
    ['TUNSETIFF', 0x4004_54can, word.address],
    ['TUNSETPERSIST', 0x4004_54cbn, 1n],
    ['TUNSETOFFLOAD', 0x4004_54d0n, 0n],
    ['TUNSETVNETHDRSZ', 0x4004_54d8n, word.address],
    ['TUNSETQUEUE', 0x4004_54d9n, word.address],
    ['TUNATTACHFILTER', 0x4010_54d5n, word.address],
    ['SIOCSIFFLAGS', 0x8914n, word.address],
  ] as const) {
    for (const fd of devices()) reports[`${name} ${fd}`] = result(calls.ioctl(fd, request, value));
  }
  reports.steer = result(calls.setsockopt(fdOf('listen'), 1, 51, word.address, 16));
  const F_SETFL = 4;
  for (const fd of [...devices(), fdOf('listen')]) reports[`blocking ${fd}`] = result(calls.fcntl(fd, F_SETFL, 0n));
  const shutdown = process.arch === 'x64' ? 48n : 210n;
  for (const use of ['listen', 'to', 'from', 'dialled'] as const) {
    reports[`shutdown ${use}`] = result(calls.syscall(shutdown, BigInt(fdOf(use)), 2n, 0n, 0n));
  }
  return reports;
}

const attacks: Record<string, () => Promise<unknown>> = {
  liar: async () => ({ said: await lie(), given: giveAway(), spoke: await speakForOthers(), spoilt: spoil() }),
  /** 10,000 a second. */
  flood: async () => {
    const traffic = { receivedBytes: 1, receivedPackets: 1, sentBytes: 1, sentPackets: 1 };
    const hundred = Buffer.concat(
      Array.from({ length: 100 }, () => frameOf({ tell: 'traffic', input: { session: key, traffic } })),
    );
    const started = performance.now();
    let sent = 0;
    while (!auth.destroyed && performance.now() - started < 60_000) {
      auth.write(hundred);
      sent += 100;
      const due = started + sent / 10;
      await delay(Math.max(0, due - performance.now()));
    }
    return { sent };
  },
  'mid-frame': async () => {
    auth.write(frameOf({ tell: 'forget', input: { binding: '1' } }).subarray(0, 9));
    auth.destroy();
  },
};

new IpcChannel({
  fd: SUPERVISOR_FD,
  out: workerToSupervisor,
  in: supervisorToWorker,
  handlers: {
    alive: async () => ({}),
    load: async () => ({}),
    prepare: async ({ identity, config }) => {
      await isGiven.promise;
      meetAuth();
      giveUpRights(identity);
      enterCage('worker', { log: createLogger(config.log) });
      return {};
    },
    serve: async () => {
      await hasJoined.promise;
      setTimeout(() => {
        const done = attacks[attack]?.() ?? Promise.reject(new Error(`no attack ${attack}`));
        done.then(
          (result) => process.stdout.write(`hostile ${attack} ${JSON.stringify(result ?? {})}\n`),
          (error: unknown) => process.stdout.write(`hostile ${attack} failed ${String(error)}\n`),
        );
      }, 200);
      return {};
    },
    useCredentials: async () => ({}),
    stop: async () => ({}),
  },
  limits: { ...LIMITS_FROM_ABOVE, burstFrames: LIMITS_OF_WORKER.burstFrames },
  // It does not go by itself.
  closed: () => {},
});
setInterval(() => {}, 1000);
