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
import { connect, createSecureContext, createServer, type TLSSocket } from 'node:tls';
import { nodePrimitives } from '../../src/base/primitives.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { type Profile, readProfile } from '../../src/control/profile.ts';
import { Feature } from '../../src/protocol/features.ts';
import { FrameDecoder, type FrameSink, FrameType } from '../../src/protocol/frame.ts';
import { LoginClient, type LoginClientOutput } from '../../src/protocol/login.ts';
import { encodeMessage, fromBase64Url } from '../../src/protocol/messages.ts';
import { clientTlsOptions, keyHash, serverTlsOptions, tunnelProtocols } from '../../src/transport/tls.ts';
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

/** Connects over and over with settings that are read once. */
function connector(caPem: string): (host: string, port: number) => TLSSocket {
  const secureContext = createSecureContext(clientTlsOptions({ ca: caPem }, true, '1.3'));
  const ALPNProtocols = tunnelProtocols();
  return (host, port) =>
    connect({ secureContext, ALPNProtocols, host, port, servername: '', checkServerIdentity: () => undefined });
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
    const peer = new LoginPeer(await readProfile(file));
    await peer.logIn(await DeviceKey.open(join(folder, `${index}.key`)), 'enrol');
  }
}

async function logins(folder: string, profileFile: string, seconds: number, parallel: number): Promise<LoadResult> {
  const peer = new LoginPeer(await readProfile(profileFile));
  const names = await readdir(folder);
  const keys = await Promise.all(names.map((name) => DeviceKey.open(join(folder, name))));
  // A device has one session: each slot logs in with devices of its own, in turn.
  return load(seconds, Math.min(parallel, keys.length), async (slot) => {
    const device = keys[slot];
    if (device === undefined) throw new Error('there are fewer keys than logins at a time');
    await peer.logIn(device, 'login');
  });
}

const CLOSE = encodeMessage('close', { reason: 'peer_disconnect' });

/** Logs in with a profile's server, from the TCP connection to CONFIG and the end that the client wishes. */
class LoginPeer {
  readonly #profile: Profile;
  readonly #open: (host: string, port: number) => TLSSocket;
  #serverId: Uint8Array | undefined;

  constructor(profile: Profile) {
    this.#profile = profile;
    this.#open = connector(profile.ca ?? '');
  }

  async logIn(device: DeviceKey, purpose: 'login' | 'enrol'): Promise<void> {
    const { BENCH_PASSWORD: password, BENCH_TOKEN: accessToken } = process.env;
    const token = purpose === 'enrol' ? this.#profile.token?.reveal() : fromBase64Url(accessToken ?? '');
    const { hosts, port, name } = this.#profile.server;
    const socket = this.#open(hosts[0] ?? '', port);
    const ended = once(socket, 'close');
    await once(socket, 'secureConnect');
    const done = Promise.withResolvers<void>();
    const leaf = this.#serverId === undefined ? socket.getPeerX509Certificate() : undefined;
    if (leaf !== undefined) this.#serverId = keyHash(leaf);
    const login = new LoginClient({
      primitives: nodePrimitives,
      exporter: (label, context) => socket.exportKeyingMaterial(32, label, Buffer.from(context)),
      serverId: this.#serverId ?? new Uint8Array(32),
      features: [Feature.superPackets, Feature.udpSuperPackets],
      purpose,
      serverName: name,
      serverVerified: true,
      device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
      client: { name: 'bench', version: '0', platform: process.platform },
    });
    const drive = (output: LoginClientOutput): void => {
      if (output.kind === 'send') socket.write(output.frame);
      else if (output.kind === 'answer') {
        const signature = device.sign(output.signedBytes);
        const secrets = { ...(token === undefined ? {} : { token }), ...(password === undefined ? {} : { password }) };
        drive(login.answer({ signature, ...secrets }));
      } else if (output.kind === 'accepted') decoder.setPhase('session');
      else if (output.kind === 'failed') done.reject(output.error);
      else if (output.kind === 'closed') done.reject(new Error(`closed: ${output.reason}`));
    };
    const sink: FrameSink = {
      target: new Uint8Array(0),
      targetOffset: 0,
      greeting: (line) => {
        decoder.setPhase('login');
        drive(login.start(line));
      },
      control: (type, payload) => {
        if (type === FrameType.config) done.resolve();
        else drive(login.receive(type, payload));
      },
      reserve: () => {},
      data: () => {},
      unknown: () => {},
    };
    const decoder = new FrameDecoder(sink, 'server');
    socket.on('data', (chunk: Buffer) => {
      try {
        decoder.push(chunk);
      } catch (error) {
        done.reject(error);
      }
    });
    socket.once('error', done.reject);
    socket.once('close', () => done.reject(new Error('the server ended the connection')));
    try {
      await done.promise;
      socket.end(CLOSE);
      await ended;
    } finally {
      socket.destroy();
    }
  }
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
