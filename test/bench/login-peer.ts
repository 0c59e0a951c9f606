/**
 * The client side of the login bench, and the bare server beside it; run inside namespaces.
 *
 *   node login-peer.ts serve-tls ADDRESS PORT CERT KEY        a bare node:tls server: handshake, then the end; prints `ready`
 *   node login-peer.ts tls ADDRESS PORT CA SECONDS N          handshakes, N at a time
 *   node login-peer.ts enrol KEYS PROFILE…                    makes a device key for each profile and enrols it
 *   node login-peer.ts logins KEYS PROFILE SECONDS N          whole logins with these keys, N at a time
 *
 * Answers to password and token steps come from the environment, BENCH_PASSWORD and BENCH_TOKEN. `tls` and `logins` say
 * `ready` after the first, and in the end one line of JSON: how many there were in which time, and how long each took. Both
 * kinds of connection use the product's own TLS settings for clients, read once; what a client does besides is kept small,
 * because it is the server that is measured.
 */

import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createServer } from 'node:tls';
import { DeviceKey } from '../../src/client/device-key.ts';
import { readProfile } from '../../src/control/profile.ts';
import { serverTlsOptions } from '../../src/transport/tls.ts';
import { connector, PeerGateway, PeerSession } from './peer-session.ts';
import { quantile } from './statistics.ts';

/** What a load prints. */
export interface LoadResult {
  count: number;
  failed: number;
  /** From the first start to the last end. */
  seconds: number;
  /** Milliseconds each. */
  p50: number;
  p99: number;
}

/** Runs `one` over and over, `parallel` at a time, for so long. */
async function load(seconds: number, parallel: number, one: (slot: number) => Promise<void>): Promise<LoadResult> {
  const times: number[] = [];
  let failed = 0;
  const since = performance.now();
  const until = since + seconds * 1000;
  const run = async (slot: number): Promise<void> => {
    while (performance.now() < until) {
      const start = performance.now();
      try {
        await one(slot);
        if (times.push(performance.now() - start) === 1) process.stdout.write('ready\n');
      } catch (error) {
        failed += 1;
        if (failed === 1) process.stderr.write(`${String(error)}\n`);
      }
    }
  };
  await Promise.all(Array.from({ length: parallel }, (_, slot) => run(slot)));
  const took = (performance.now() - since) / 1000;
  return {
    count: times.length,
    failed,
    seconds: took,
    p50: quantile(times, 0.5) ?? 0,
    p99: quantile(times, 0.99) ?? 0,
  };
}

async function serveTls(address: string, port: number, certFile: string, keyFile: string): Promise<void> {
  const [cert, key] = await Promise.all([readFile(certFile, 'utf8'), readFile(keyFile, 'utf8')]);
  const server = createServer(serverTlsOptions({ cert, key }, false, '1.3'), (socket) => {
    socket.on('error', () => socket.destroy());
    socket.on('end', () => socket.end());
    socket.resume();
  });
  server.listen({ host: address, port, backlog: 4096 }, () => process.stdout.write('ready\n'));
}

async function tls(address: string, port: number, caFile: string, seconds: number, parallel: number) {
  const open = connector(await readFile(caFile, 'utf8'));
  return load(seconds, parallel, async () => {
    const socket = open(address, port);
    await once(socket, 'secureConnect');
    socket.end();
    socket.resume();
    await once(socket, 'close');
  });
}

async function enrol(folder: string, files: readonly string[]): Promise<void> {
  for (const [index, file] of files.entries()) {
    const gateway = new PeerGateway(await readProfile(file));
    const session = await PeerSession.logIn(gateway, await DeviceKey.open(join(folder, `${index}.key`)), 'enrol');
    await session.close();
  }
}

async function logins(folder: string, profileFile: string, seconds: number, parallel: number): Promise<LoadResult> {
  const gateway = new PeerGateway(await readProfile(profileFile));
  const names = await readdir(folder);
  const keys = await Promise.all(names.map((name) => DeviceKey.open(join(folder, name))));
  // A device has one session: each slot logs in with devices of its own, in turn.
  return load(seconds, Math.min(parallel, keys.length), async (slot) => {
    const device = keys[slot];
    if (device === undefined) throw new Error('there are fewer keys than logins at a time');
    const session = await PeerSession.logIn(gateway, device, 'login');
    await session.close();
  });
}

const [verb, ...words] = process.argv.slice(2);
const [first = '', second = '', third = '', fourth = '', fifth = ''] = words;
if (verb === 'serve-tls') await serveTls(first, Number(second), third, fourth);
else if (verb === 'tls') print(await tls(first, Number(second), third, Number(fourth), Number(fifth)));
else if (verb === 'enrol') await enrol(first, words.slice(1));
else if (verb === 'logins') print(await logins(first, second, Number(third), Number(fourth)));
else process.exitCode = 64;

function print(result: LoadResult): void {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
