// Rates and quotas of a policy file for those who use the gateway as a proxy: each way to open a stream keeps them at the
// receiver, both ways; streams, other streams and packets share one rate; what is open follows a change; a quota that streams
// use up is on record and closes them. The network behind the gateway is of this process; everything else is real.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { ProxyStreams } from '../../src/client/proxy-streams.ts';
import { encodeUdp } from '../../src/protocol/capsule.ts';
import { udpPacket } from '../support/packets.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { addressOf, type SimClient, until, World } from '../support/world.ts';

const LIMIT = { timeout: 60_000 };
const SOURCE_PORT = 19;
const SINK_PORT = 9;
const WEB_PORT = 80;
const UDP_PORT = 4433;
const SERVER = '192.0.2.1';
/** 4 Mbit/s, as bytes. */
const BYTES_PER_SECOND = 500_000;
/** So that a moment without processor time loses nothing of the rate. */
const BURST_BYTES = 128 * 1024;
const RATES = '[[settings]]\nfor = ["any"]\ndownMbit = 4\nupMbit = 4\nburstKiB = 128\n';
const ALLOWED = '[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["192.0.2.0/24"]\n';
const MEASURED_MS = 1500;
/** A busy machine delays what was sent so long before. */
const LATE_MS = 200;

/** What has arrived somewhere, and when. */
class Receiver {
  readonly #arrivals: { readonly at: number; readonly bytes: number }[] = [];

  took(bytes: number): void {
    this.#arrivals.push({ at: performance.now(), bytes });
  }

  get bytes(): number {
    return this.#arrivals.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Within no time t more than burst + rate × t came, and over all of it most of the rate. */
  check(elapsedMs: number, what: string): void {
    for (const [first, { at }] of this.#arrivals.entries()) {
      let sum = 0;
      for (const { at: last, bytes } of this.#arrivals.slice(first)) {
        sum += bytes;
        const most = BURST_BYTES + (BYTES_PER_SECOND * (last - at + LATE_MS)) / 1000;
        assert.ok(sum <= most, `${what}: ${sum} bytes within ${last - at} ms`);
      }
    }
    assert.ok(this.bytes >= (BYTES_PER_SECOND * elapsedMs * 0.7) / 1000, `${what}: ${this.bytes} in ${elapsedMs} ms`);
  }
}

class Stage implements AsyncDisposable {
  readonly network = new TargetNetwork();
  /** What servers have received. */
  uploaded = new Receiver();
  readonly #folder = mkdtempSync(join(tmpdir(), 'customvpn-stream-rates-'));
  readonly #undo = new AsyncDisposableStack();
  readonly file = join(this.#folder, 'policy.toml');
  #world: World | undefined;
  #token = '';

  get world(): World {
    assert.ok(this.#world !== undefined);
    return this.#world;
  }

  get #authorization(): string {
    return `Basic ${Buffer.from(`alice:${this.#token}`).toString('base64')}`;
  }

  write(settings: string): void {
    writeFileSync(this.file, `version = 1\n${settings}${ALLOWED}`);
  }

  async open(settings: string, { hasTun = false } = {}): Promise<void> {
    this.write(settings);
    const { network } = this;
    const flood = (socket: Duplex): void => {
      const chunk = Buffer.alloc(65_536, 0x5a);
      const more = (): void => {
        while (!socket.destroyed && socket.write(chunk));
      };
      socket.on('drain', more).resume();
      more();
    };
    await network.serve(SERVER, SOURCE_PORT, flood);
    await network.serve(SERVER, WEB_PORT, (socket) => {
      socket.once('data', () => {
        socket.write('HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n');
        flood(socket);
      });
    });
    await network.serve(SERVER, SINK_PORT, (socket) => {
      socket.on('data', (chunk) => this.uploaded.took(chunk.length));
      socket.once('end', () => socket.end('thanks'));
    });
    await network.serveUdp(SERVER, UDP_PORT, (payload) => {
      this.uploaded.took(payload.length);
      return [];
    });
    this.#world = await World.open({ network, ...(hasTun ? {} : { tun: 'none' }), config: { policyFile: this.file } });
    this.#token = (await this.world.accessToken('alice')).token;
  }

  /** What servers receive from now on. */
  uploadedFromNow(): Receiver {
    this.uploaded = new Receiver();
    return this.uploaded;
  }

  /** The streams of a client of ours, which are bound to its session. */
  clientStreams(sim: SimClient): ProxyStreams {
    return this.#undo.use(new ProxyStreams(sim.client, this.world.log));
  }

  async #dial(protocol: string) {
    const { world } = this;
    const tls = { host: '127.0.0.1', port: world.port, ca: world.ca, servername: 'localhost' };
    const socket = connectTls({ ...tls, ALPNProtocols: [protocol] });
    this.#undo.defer(() => void socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'secureConnect');
    return socket;
  }

  async http1(request: string): Promise<Duplex> {
    const socket = await this.#dial('http/1.1');
    socket.write(`${request}\r\nHost: ${SERVER}\r\nProxy-Authorization: ${this.#authorization}\r\n\r\n`);
    let head = '';
    while (!head.includes('\r\n\r\n')) head += String((await once(socket, 'data'))[0]);
    socket.pause();
    assert.match(head, /^HTTP\/1\.1 (200|101) /);
    return socket;
  }

  async http2(headers: Record<string, string>): Promise<Duplex> {
    const socket = await this.#dial('h2');
    const session = connectHttp2('https://localhost', { createConnection: () => socket });
    session.on('error', () => {});
    // It learns first that the gateway knows CONNECT with a protocol.
    await once(session, 'remoteSettings');
    const stream = session.request(
      { ':method': 'CONNECT', ...headers, 'proxy-authorization': this.#authorization },
      { endStream: false },
    );
    stream.on('error', () => {});
    const [answer] = await once(stream, 'response');
    assert.equal(answer[':status'], 200);
    return stream;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#undo.disposeAsync();
    await this.#world?.[Symbol.asyncDispose]();
    await this.network[Symbol.asyncDispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Reads all that comes by a stream. */
function receive(stream: Duplex, receiver = new Receiver()): Receiver {
  stream.on('error', () => {});
  stream.on('data', (chunk: Uint8Array) => receiver.took(chunk.length)).resume();
  return receiver;
}

/** Writes as much as a stream takes. */
function fill(stream: Duplex): void {
  const chunk = Buffer.alloc(65_536, 0xa5);
  const more = (): void => {
    while (!stream.destroyed && !stream.writableEnded && stream.write(chunk));
  };
  stream.on('error', () => {}).on('drain', more);
  more();
}

type Way = 'customvpn-streams/1' | 'HTTP/2' | 'HTTP/1.1';

async function connectBy(way: Way, stage: Stage, port: number): Promise<Duplex> {
  if (way === 'HTTP/2') return await stage.http2({ ':authority': `${SERVER}:${port}` });
  if (way === 'HTTP/1.1') return await stage.http1(`CONNECT ${SERVER}:${port} HTTP/1.1`);
  const sim = await stage.world.connected('alice', { tun: 'none' });
  const { duplex } = await stage.clientStreams(sim).open('tcp', { host: SERVER, port });
  return duplex;
}

for (const way of ['customvpn-streams/1', 'HTTP/2', 'HTTP/1.1'] as const) {
  test(`a stream by ${way} keeps its user's rate at the receiver, both ways, and loses nothing`, LIMIT, async () => {
    await using stage = new Stage();
    await stage.open(RATES);
    const down = await connectBy(way, stage, SOURCE_PORT);
    const started = performance.now();
    const downloaded = receive(down);
    await pause(MEASURED_MS);
    downloaded.check(performance.now() - started, 'down');
    down.destroy();

    await until(() => stage.network.connections === 0, 'the server sees that it is gone');

    // An end waits for what is held before it.
    const whole = await connectBy(way, stage, SINK_PORT);
    whole.end(Buffer.alloc(150_000, 1));
    let answer = '';
    for await (const chunk of whole) answer += String(chunk);
    assert.equal(answer, 'thanks');
    assert.equal(stage.uploaded.bytes, 150_000);

    const up = await connectBy(way, stage, SINK_PORT);
    const began = performance.now();
    const uploaded = stage.uploadedFromNow();
    fill(up);
    await pause(MEASURED_MS);
    uploaded.check(performance.now() - began, 'up');
  });
}

test('a plain request that is sent on keeps the rate', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open(RATES);
  const started = performance.now();
  const answer = receive(await stage.http1(`GET http://${SERVER}/ HTTP/1.1`));
  await pause(MEASURED_MS);
  answer.check(performance.now() - started, 'answer');
});

test('datagrams of a stream keep the rate, whole; those that would wait long are dropped', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open(RATES);
  const stream = await stage.http2({
    ':protocol': 'connect-udp',
    ':scheme': 'https',
    ':authority': 'localhost',
    ':path': `/.well-known/masque/udp/${SERVER}/${UDP_PORT}/`,
  });
  const payload = Buffer.alloc(1200, 7);
  const started = performance.now();
  // 9 Mbit/s and more.
  while (performance.now() - started < MEASURED_MS) {
    for (let count = 0; count < 10; count++) stream.write(encodeUdp(payload));
    await pause(10);
  }
  stage.uploaded.check(performance.now() - started, 'datagrams');
  assert.equal(stage.uploaded.bytes % payload.length, 0);
  const { counters } = await stage.world.status();
  assert.ok((counters.proxy_dropped_datagrams ?? 0) > 0);
});

test('streams and packets of a user share one rate, and each gets a part', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open(RATES, { hasTun: true });
  const { world } = stage;
  const sim = await world.connected('alice');
  const all = new Receiver();
  const packets = new Receiver();
  sim.host.tun.onWritten = ({ bytes }) => {
    all.took(bytes.length);
    packets.took(bytes.length);
  };
  const { duplex } = await stage.clientStreams(sim).open('tcp', { host: SERVER, port: SOURCE_PORT });
  const started = performance.now();
  const bound = receive(duplex, all);
  const token = receive(await stage.http2({ ':authority': `${SERVER}:${SOURCE_PORT}` }), all);
  assert.equal(bound, token);
  const packet = udpPacket({ source: '192.0.2.80', destination: addressOf(sim, 4), payload: 1200 });
  while (performance.now() - started < MEASURED_MS) {
    for (let count = 0; count < 10; count++) world.tun.inject(packet);
    await pause(10);
  }
  all.check(performance.now() - started, 'all together');
  assert.ok(packets.bytes > all.bytes / 10, `${packets.bytes} of ${all.bytes} bytes are of packets`);
  assert.ok(packets.bytes < all.bytes * 0.9, `${packets.bytes} of ${all.bytes} bytes are of packets`);
});

test("a group's rate holds for all its streams together, of a session and of a token", LIMIT, async () => {
  await using stage = new Stage();
  await stage.open('[groups]\nstaff = ["alice"]\n[groupLimits.staff]\ndownMbit = 4\nburstKiB = 128\n');
  const sim = await stage.world.connected('alice', { tun: 'none' });
  const { duplex } = await stage.clientStreams(sim).open('tcp', { host: SERVER, port: SOURCE_PORT });
  const token = await stage.http2({ ':authority': `${SERVER}:${SOURCE_PORT}` });
  const all = new Receiver();
  const started = performance.now();
  receive(duplex, all);
  receive(token, all);
  await pause(MEASURED_MS);
  all.check(performance.now() - started, 'both');
});

test('a stream that is open follows a change of the policy within a second, slower and faster', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open('');
  const stream = receive(await stage.http2({ ':authority': `${SERVER}:${SOURCE_PORT}` }));
  await until(() => stream.bytes > 4 * BYTES_PER_SECOND, 'nothing holds it back');
  stage.write(RATES);
  await stage.world.server.reload();
  await pause(500);
  const [before, began] = [stream.bytes, performance.now()];
  await pause(1000);
  const elapsed = (performance.now() - began) / 1000;
  const carried = stream.bytes - before;
  assert.ok(carried <= BYTES_PER_SECOND * (elapsed + LATE_MS / 1000) + BURST_BYTES, `${carried} in ${elapsed} s`);
  assert.ok(carried >= BYTES_PER_SECOND * elapsed * 0.5, `${carried} in ${elapsed} s`);
  stage.write('');
  await stage.world.server.reload();
  const then = stream.bytes;
  await until(() => stream.bytes > then + 4 * BYTES_PER_SECOND, 'nothing holds it back again');
});

test(
  'a quota counts the streams of an access token, also those that are short, and closes what is open',
  LIMIT,
  async () => {
    await using stage = new Stage();
    // 1 MB.
    await stage.open('[[settings]]\nfor = ["any"]\nquotaDayGiB = 0.001\noverQuota = "refuse"\n');
    const short = await stage.http1(`CONNECT ${SERVER}:${SINK_PORT} HTTP/1.1`);
    short.end(Buffer.alloc(300_000));
    for await (const _ of short);
    const rows = () => stage.world.rows('select account, bytes from usage');
    await until(() => rows().some(({ bytes }) => Number(bytes) >= 300_000), 'it is on record');
    const long = await stage.http2({ ':authority': `${SERVER}:${SOURCE_PORT}` });
    receive(long);
    await until(() => long.closed, 'it is closed');
    await until(
      () => rows().some(({ account, bytes }) => account === 'alice' && Number(bytes) > 1_000_000),
      'all of it',
    );
    await assert.rejects(stage.http2({ ':authority': `${SERVER}:${SOURCE_PORT}` }), assert.AssertionError);
  },
);
