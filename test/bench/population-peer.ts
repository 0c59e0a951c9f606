/**
 * Thousands of clients in one process, for the benches of a gateway and a test of the lab; run inside namespaces.
 *
 *   node population-peer.ts enrol STATE KEYS USER N      makes N device keys and puts the devices on a stopped gateway's record
 *   node population-peer.ts hold PROFILE KEYS N FIRST ADDRESS…  opens N sessions with data inline, of the devices from FIRST on,
 *     and from these addresses in turn, and keeps them
 *   node population-peer.ts burst PROFILE KEYS N FIRST ADDRESS… the same, all at once
 *   node population-peer.ts hold-tls HOST PORT CA N      opens N bare TLS connections and keeps them
 *   node population-peer.ts serve-tls HOST PORT CERT KEY a bare TLS server that sends back what it gets
 *
 * Those that hold take one command a line on standard input and answer each with one line of JSON (`Outcome`): `carry BYTES`
 * sends that much on each connection in turn and waits for it to come back; `reconnect` cuts all of them at once and has all
 * come back at once, sessions by resuming; `end` ends. The packets of `carry` are pings of the gateway's own address, so that
 * they go all the way to a TUN device and back.
 */

import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { createServer, type TLSSocket } from 'node:tls';
import { systemClock } from '../../src/base/clock.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { readProfile } from '../../src/control/profile.ts';
import { statePaths } from '../../src/gateway/layout.ts';
import { openStore } from '../../src/store/store.ts';
import { serverTlsOptions } from '../../src/transport/tls.ts';
import { connector, PeerGateway, PeerSession } from './peer-session.ts';
import { quantile } from './statistics.ts';

/** What a command has come to. */
export interface Outcome {
  done: string;
  /** How many of the connections. */
  count: number;
  failed: number;
  /** Why the first of those that failed did. */
  error?: string;
  seconds: number;
  /** Milliseconds of one connection. */
  p50: number;
  p99: number;
}

/** Handshakes at a time while they are opened: as many as keep the server busy. */
const OPENING = 64;
/** Connections that carry at a time. */
const CARRYING = 8;
/** Pings in flight on one of them, and bytes of each. */
const WINDOW = 16;
const PING_BYTES = 1400;
const ICMP_ECHO = 8;
/** How long anything may take. */
const PATIENCE_MS = 120_000;

/** A connection that is kept. */
interface Held {
  carry(bytes: number): Promise<void>;
  cut(): void;
  again(): Promise<void>;
}

/** Does the same to all, so many at a time, and says how it went. */
async function each(
  done: string,
  count: number,
  parallel: number,
  one: (index: number) => Promise<void>,
): Promise<Outcome> {
  const times: number[] = [];
  let next = 0;
  let failed = 0;
  let error: string | undefined;
  const since = performance.now();
  const run = async (): Promise<void> => {
    while (next < count) {
      const index = next;
      next += 1;
      const start = performance.now();
      try {
        await withPatience(one(index));
        times.push(performance.now() - start);
      } catch (cause) {
        failed += 1;
        error ??= String(cause);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(parallel, count) }, run));
  const seconds = (performance.now() - since) / 1000;
  const [p50 = 0, p99 = 0] = [quantile(times, 0.5), quantile(times, 0.99)];
  return { done, count: times.length, failed, ...(error === undefined ? {} : { error }), seconds, p50, p99 };
}

async function withPatience(work: Promise<void>): Promise<void> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error('it took too long')), PATIENCE_MS);
  try {
    await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

async function hold(count: number, open: (index: number) => Promise<Held>, parallel = OPENING): Promise<void> {
  const held: Held[] = [];
  print(
    await each('hold', count, parallel, async (index) => {
      held[index] = await open(index);
    }),
  );
  const all = held.filter((one) => one !== undefined);
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, words] = line.split(' ');
    if (verb === 'end') break;
    if (verb === 'carry') {
      print(await each(verb, all.length, CARRYING, async (index) => all[index]?.carry(Number(words))));
    } else if (verb === 'reconnect') {
      for (const one of all) one.cut();
      print(await each(verb, all.length, all.length, async (index) => all[index]?.again()));
    }
  }
  process.exit(0);
}

async function holdSessions(
  profileFile: string,
  folder: string,
  count: number,
  first: number,
  from: string[],
  parallel?: number,
): Promise<void> {
  const gateway = new PeerGateway(await readProfile(profileFile));
  const open = async (index: number): Promise<Held> => {
    const peer = await PeerSession.logIn(
      gateway,
      await DeviceKey.open(keyFile(folder, first + index)),
      'login',
      from[index % from.length],
    );
    return {
      carry: async (bytes) => {
        const { v4 } = peer.config?.addresses ?? {};
        if (v4 === undefined) throw new Error('the session has no IPv4 address');
        const ping = pingOf(v4.address, v4.gateway);
        const whole = Math.ceil(bytes / PING_BYTES);
        const { promise, resolve } = Promise.withResolvers<void>();
        let [sent, answered] = [0, 0];
        peer.onPacket = (packet) => {
          // An echo reply, not the request of somebody else.
          if (packet[9] !== 1 || packet[20] !== 0) return;
          answered += 1;
          if (answered === whole) resolve();
          else if (sent < whole) send();
        };
        const send = (): void => {
          sent += 1;
          peer.send(ping);
        };
        while (sent < Math.min(WINDOW, whole)) send();
        await promise;
      },
      cut: () => peer.cut(),
      again: () => peer.resume(),
    };
  };
  await hold(count, open, parallel);
}

async function holdTls(host: string, port: number, caFile: string, count: number): Promise<void> {
  const dial = connector(await readFile(caFile, 'utf8'));
  const block = Buffer.alloc(PING_BYTES);
  await hold(count, async () => {
    let socket = await open();
    async function open(): Promise<TLSSocket> {
      const opened = dial(host, port);
      await once(opened, 'secureConnect');
      opened.on('error', () => opened.destroy());
      opened.resume();
      return opened;
    }
    return {
      carry: async (bytes) => {
        const whole = Math.ceil(bytes / PING_BYTES) * PING_BYTES;
        const { promise, resolve } = Promise.withResolvers<void>();
        let [sent, received] = [0, 0];
        const send = (): void => {
          while (sent < whole && sent - received < WINDOW * PING_BYTES) {
            sent += block.length;
            socket.write(block);
          }
        };
        const take = (chunk: Buffer): void => {
          received += chunk.length;
          if (received >= whole) resolve();
          else send();
        };
        socket.on('data', take);
        send();
        await promise;
        socket.off('data', take);
      },
      cut: () => void socket.destroy(),
      again: async () => {
        socket = await open();
      },
    };
  });
}

async function serveTls(host: string, port: number, certFile: string, keyFile: string): Promise<void> {
  const [cert, key] = await Promise.all([readFile(certFile, 'utf8'), readFile(keyFile, 'utf8')]);
  const server = createServer(serverTlsOptions({ cert, key }, false, '1.3'), (socket) => {
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk) => socket.write(chunk));
  });
  server.listen({ host, port, backlog: 4096 }, () => process.stdout.write('ready\n'));
}

/** Ten thousand one-time profiles take an hour by the command line; the rows are those that an enrolment makes. */
async function enrol(state: string, folder: string, user: string, count: number): Promise<void> {
  const store = await openStore(statePaths(state).store, { mustExist: true });
  try {
    const now = systemClock.wallNow();
    const row = await store.db.selectFrom('users').select('id').where('name', '=', user).executeTakeFirstOrThrow();
    const keys = Array.from({ length: count }, (_, index) => DeviceKey.open(keyFile(folder, index)));
    const devices = (await Promise.all(keys)).map(({ id, algorithm, publicKey }, index) => ({
      id: Buffer.from(id).toString('hex'),
      user_id: row.id,
      name: `bench ${index}`,
      algorithm,
      public_key: publicKey,
      created_at: Math.trunc(now),
      approved_at: Math.trunc(now),
      first_login_at: Math.trunc(now),
      last_seen_at: null,
      revoked_at: null,
    }));
    await store.transaction(async (db) => {
      for (const device of devices) await db.insertInto('devices').values(device).execute();
    });
  } finally {
    await store.close();
  }
}

function keyFile(folder: string, index: number): string {
  return join(folder, `${index}.key`);
}

/** An echo request of `PING_BYTES` bytes, headers included. */
function pingOf(from: string, to: string): Uint8Array {
  const packet = Buffer.alloc(PING_BYTES);
  packet.writeUInt8(0x45, 0);
  packet.writeUInt16BE(PING_BYTES, 2);
  packet.writeUInt8(64, 8);
  packet.writeUInt8(1, 9);
  packet.set(bytesOf(from), 12);
  packet.set(bytesOf(to), 16);
  packet.writeUInt16BE(sum(packet.subarray(0, 20)), 10);
  packet.writeUInt8(ICMP_ECHO, 20);
  packet.writeUInt16BE(sum(packet.subarray(20)), 22);
  return packet;
}

function bytesOf(address: string): number[] {
  return address.split('.').map(Number);
}

/** RFC 1071, of an even number of bytes. */
function sum(bytes: Buffer): number {
  let total = 0;
  for (let at = 0; at < bytes.length; at += 2) total += bytes.readUInt16BE(at);
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return ~total & 0xffff;
}

function print(outcome: Outcome): void {
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}

const [verb, ...words] = process.argv.slice(2);
const [first = '', second = '', third = '', fourth = ''] = words;
if (verb === 'enrol') await enrol(first, second, third, Number(fourth));
else if (verb === 'hold') await holdSessions(first, second, Number(third), Number(fourth), words.slice(4));
else if (verb === 'burst')
  await holdSessions(first, second, Number(third), Number(fourth), words.slice(4), Number(third));
else if (verb === 'hold-tls') await holdTls(first, Number(second), third, Number(fourth));
else if (verb === 'serve-tls') await serveTls(first, Number(second), third, fourth);
else process.exitCode = 64;
