/**
 * A whole gateway and its clients in one process: real TLS over loopback, TUN devices in memory, a store on disk.
 *
 * Hides how they are set up and torn down, and watches two things for every test: that no secret of this world is in its
 * log, and that nothing is left running. A `RawClient` is a client that may say anything.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect as connectTcp, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Clock } from '../../src/base/clock.ts';
import { createLogger, type Logger } from '../../src/base/log.ts';
import { type ClientOptions, type ClientState, VpnClient } from '../../src/client/client.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import type { ClientHost } from '../../src/client/machine.ts';
import type { GatewayStatus } from '../../src/control/operations.ts';
import { encodeToken, type Profile, parseProfile } from '../../src/control/profile.ts';
import {
  type GatewayConfig,
  type GatewayOptions,
  gatewayConfigSchema,
  resolveFiles,
} from '../../src/gateway/config.ts';
import { initGateway } from '../../src/gateway/init.ts';
import { type DialNetwork, type ServerHooks, VpnServer } from '../../src/gateway/server.ts';
import { formatIp } from '../../src/ip/address.ts';
import { MemoryTun, type MemoryTunOptions } from '../../src/os/tun-memory.ts';
import type { AcceptedConfig } from '../../src/protocol/config-check.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { attachKey, type Exporter } from '../../src/protocol/keys.ts';
import { LoginClient, type LoginClientOutput } from '../../src/protocol/login.ts';
import type { CloseReason } from '../../src/protocol/messages.ts';
import { type AcceptMessage, decodeMessage, type MessageName } from '../../src/protocol/messages.ts';
import { ResumeClient } from '../../src/protocol/resume.ts';
import { keyHash } from '../../src/transport/tls.ts';
import { icmpPacket } from './packets.ts';
import { primitives } from './protocol.ts';

/** Names in the certificate of every world. */
export const NAMES = ['localhost', '127.0.0.1', '::1'];
const DEADLINE_MS = 10_000;

/** Waits until `condition` gives something; fails with `what` when that takes too long. */
export async function until<T>(
  condition: () => T | Promise<T>,
  what: string,
  deadlineMs = DEADLINE_MS,
): Promise<Exclude<T, undefined | false>> {
  const deadline = performance.now() + deadlineMs;
  for (let round = 0; ; round++) {
    const value = await condition();
    if (value !== undefined && value !== false) return value as Exclude<T, undefined | false>;
    if (performance.now() > deadline) assert.fail(`not within ${deadlineMs} ms: ${what}`);
    await (round < 20 ? immediate() : sleep(3));
  }
}

/** Bytes of memory outside the JavaScript heap that something still refers to. */
export function heldBytes(): number {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  // The second waits for what the first has left to the background.
  if (typeof collect === 'function') for (let round = 0; round < 2; round++) collect();
  return process.memoryUsage().arrayBuffers;
}

/** One line of the log. */
export type LogLine = Readonly<Record<string, unknown>>;

export interface WorldOptions {
  config?: GatewayOptions;
  /** The gateway's device; `none` for a gateway without one. */
  tun?: MemoryTunOptions | 'none';
  /** A second device for plain peers; default true. */
  plain?: boolean;
  hooks?: ServerHooks;
  clock?: Clock;
  /** Where the gateway's proxy gets to. */
  network?: DialNetwork;
}

export class World implements AsyncDisposable {
  readonly dir: string;
  readonly lines: LogLine[] = [];
  readonly log: Logger;
  readonly secrets = new Set<string>();
  server: VpnServer;
  tun: MemoryTun;
  plain: MemoryTun | undefined;
  readonly #options: WorldOptions;
  readonly #clients: SimClient[] = [];
  readonly #raws: RawClient[] = [];
  #current: GatewayOptions = {};
  #port = 0;

  static async open(options: WorldOptions = {}): Promise<World> {
    const world = new World(options);
    await initGateway(world.dir, { names: NAMES, pool: ['10.20.0.0/24', 'fd20:1::/64'] });
    for (const file of ['certs/ca.key', 'certs/server.key', 'certs/server.next.key']) {
      world.keepSecret(readFileSync(join(world.dir, file), 'utf8'));
    }
    world.keepSecret(readFileSync(join(world.dir, 'master.key')));
    await world.#start();
    return world;
  }

  private constructor(options: WorldOptions) {
    this.#options = options;
    this.dir = mkdtempSync(join(tmpdir(), 'customvpn-sim-'));
    const sink = { write: (line: string): void => void this.lines.push(JSON.parse(line) as LogLine) };
    this.log = createLogger({ level: 'debug', format: 'json', sink });
    ({ server: this.server, tun: this.tun, plain: this.plain } = this.#create({}));
  }

  #create(change: GatewayOptions): { server: VpnServer; tun: MemoryTun; plain: MemoryTun | undefined } {
    const { hooks, clock, network, tun: facts = {}, plain: hasPlain = true } = this.#options;
    const tun = new MemoryTun({ name: 'gw0', mtu: 1500, ...(facts === 'none' ? {} : facts) });
    const plain = hasPlain ? new MemoryTun({ name: 'gw0p', mtu: 1500, superPackets: false }) : undefined;
    const pool = ['10.20.0.0/24', 'fd20:1::/64'];
    this.#current = { address: '127.0.0.1', port: this.#port, names: NAMES, pool, ...this.#options.config, ...change };
    const server = new VpnServer({
      ...this.#current,
      stateDir: this.dir,
      tun: facts === 'none' ? 'none' : { primary: tun, plain },
      log: this.log,
      ...(hooks === undefined ? {} : { hooks }),
      ...(clock === undefined ? {} : { clock }),
      ...(network === undefined ? {} : { network }),
    });
    return { server, tun, plain };
  }

  /** The gateway's configuration with changes, for `reload`. */
  config(change: GatewayOptions = {}): GatewayConfig {
    return resolveFiles(gatewayConfigSchema.parse({ ...this.#current, ...change }), this.dir);
  }

  /** Starts another gateway on the state directory, at the port of the one before it, which has stopped. */
  async restart(change: GatewayOptions = {}): Promise<void> {
    ({ server: this.server, tun: this.tun, plain: this.plain } = this.#create(change));
    await this.#start();
  }

  async #start(): Promise<void> {
    await this.server.start();
    this.#port = this.server.address.port;
  }

  get port(): number {
    return this.#port;
  }

  get ca(): string {
    return readFileSync(join(this.dir, 'certs/ca.pem'), 'utf8');
  }

  /** What the gateway tells an operator. */
  async status(): Promise<GatewayStatus> {
    return await this.server.api(() => Promise.reject(new Error('not asked for')))['server.status']({});
  }

  /** The gateway's drops so far, without the zeros. */
  async drops(): Promise<Record<string, number>> {
    return Object.fromEntries(Object.entries((await this.status()).drops).filter(([, count]) => count > 0));
  }

  /** Rows of the gateway's store. */
  rows(sql: string): Record<string, unknown>[] {
    const store = new DatabaseSync(join(this.dir, 'store.sqlite'), { readOnly: true });
    try {
      return store.prepare(sql).all();
    } finally {
      store.close();
    }
  }

  /** Lines of the log with this code. */
  withCode(code: string): LogLine[] {
    return this.lines.filter((line) => line.code === code);
  }

  /** A new profile for a user, who is added when there is none. */
  async profile(user: string, options: { validHours?: number; approve?: boolean } = {}): Promise<Profile> {
    const { administration } = this.server;
    if (!(await administration['user.list']({})).some(({ name }) => name === user)) {
      await administration['user.add']({ name: user });
    }
    const { profile } = await administration['profile.create']({ user, ...options });
    const parsed = parseProfile(profile, 'profile');
    this.keepSecret(parsed.token?.reveal() ?? '');
    return parsed;
  }

  /** An access token of a user, who is added when there is none: id, and the text that a program shows. */
  async accessToken(
    user: string,
    scopes: ('proxy' | 'tunnel' | 'api')[] = ['proxy'],
  ): Promise<{ id: string; token: string }> {
    const { administration } = this.server;
    if (!(await administration['user.list']({})).some(({ name }) => name === user)) {
      await administration['user.add']({ name: user });
    }
    const { id, token } = await administration['token.issue']({ user, name: 'program', scopes });
    this.keepSecret(Buffer.from(token, 'base64url'));
    return { id, token };
  }

  /** A client that is not connected yet. Without a `profile` a new one is made. */
  async client(
    user: string,
    options: Partial<ClientOptions> & { profile?: Profile; tun?: MemoryTunOptions | 'none' } = {},
  ): Promise<SimClient> {
    const { profile = await this.profile(user), tun, ...rest } = options;
    const host = tun === 'none' ? undefined : new SimHost(tun ?? {});
    const deviceKey = options.deviceKey ?? DeviceKey.generate();
    this.keepSecret(deviceKey.toPem());
    const states: ClientState[] = [];
    const token = profile.token?.reveal();
    const client = new VpnClient({
      serverHost: this.server.address.address,
      serverPort: this.port,
      serverName: 'localhost',
      ...(profile.ca === undefined ? {} : { ca: profile.ca }),
      pins: profile.pins,
      deviceKey,
      ...(token === undefined ? {} : { token }),
      ...(host === undefined ? {} : { host }),
      limits: { dns: true },
      onState: (state) => void states.push(state),
      log: this.log,
      ...rest,
    });
    const sim = { client, host: host ?? new SimHost({}), key: deviceKey, states, user };
    this.#clients.push(sim);
    return sim;
  }

  /** A client that is connected. */
  async connected(user: string, options: Parameters<World['client']>[1] = {}): Promise<SimClient> {
    const sim = await this.client(user, options);
    await sim.client.connect({ once: true });
    this.keepSessions();
    return sim;
  }

  /** A connection that has done its TLS handshake and nothing else. */
  async raw(options: RawOptions = {}): Promise<RawClient> {
    const raw = await RawClient.connect(this.port, this.ca, { host: this.server.address.address, ...options });
    this.#raws.push(raw);
    return raw;
  }

  /** No log line may hold this. */
  keepSecret(secret: string | Uint8Array): void {
    if (typeof secret === 'string') {
      for (const line of secret.split('\n')) if (/^[A-Za-z0-9+/=_-]{32,}$/.test(line)) this.secrets.add(line);
      return;
    }
    const bytes = Buffer.from(secret);
    for (const encoding of ['hex', 'base64', 'base64url'] as const) this.secrets.add(bytes.toString(encoding));
    if (secret.length === 40) this.secrets.add(encodeToken(secret));
  }

  /** The whole ids of the sessions now alive are secrets, too. */
  keepSessions(): void {
    for (const { id, resume_key: key } of this.rows('select id, resume_key from sessions')) {
      this.keepSecret(Buffer.from(String(id), 'hex'));
      if (key instanceof Uint8Array) this.keepSecret(key);
    }
  }

  /** Fails when a secret is in the log. */
  checkLog(): void {
    assert.ok(this.secrets.size > 0);
    const text = this.lines.map((line) => JSON.stringify(line)).join('\n');
    for (const secret of this.secrets) {
      if (text.includes(secret)) assert.fail(`a secret is in the log: ${lineWith(text, secret)}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const raw of this.#raws) raw.socket.destroy();
    for (const { client } of this.#clients) await client.disconnect();
    await this.server.stop();
    rmSync(this.dir, { recursive: true });
    this.checkLog();
  }
}

function lineWith(text: string, secret: string): string {
  return text.split('\n').find((line) => line.includes(secret)) ?? '';
}

/** A client's machine that is only a device. */
export class SimHost implements ClientHost {
  readonly tun: MemoryTun;
  readonly applied: AcceptedConfig[] = [];
  isClosed = false;

  constructor(options: MemoryTunOptions) {
    this.tun = new MemoryTun({ name: 'sim0', mtu: 1500, ...options });
  }

  async open(): Promise<MemoryTun> {
    return this.tun;
  }

  async apply(config: AcceptedConfig): Promise<[]> {
    this.applied.push(config);
    return [];
  }

  async close(): Promise<void> {
    this.isClosed = true;
    await this.tun.close();
  }
}

export interface SimClient {
  readonly client: VpnClient;
  readonly host: SimHost;
  readonly key: DeviceKey;
  readonly states: ClientState[];
  readonly user: string;
}

/** The address that the gateway gave a client. */
export function addressOf({ client }: SimClient, version: 4 | 6): string {
  const { addresses } = client.snapshot.config ?? {};
  const own = version === 4 ? addresses?.v4 : addresses?.v6;
  assert.ok(own, `the client has no IPv${version} address`);
  return formatIp(own.address);
}

let sequence = 0;

/** Sends a packet each way between a client and the gateway's device, and checks every byte. */
export async function exchange(world: World, sim: SimClient, version: 4 | 6 = 4, device = world.tun): Promise<void> {
  const own = addressOf(sim, version);
  const far = version === 4 ? '192.0.2.80' : '2001:db8::80';
  sequence = (sequence + 1) & 0xffff;
  const up = icmpPacket({ source: own, destination: far, sequence });
  const down = icmpPacket({ source: far, destination: own, sequence });
  sim.host.tun.inject(up);
  await until(() => device.written.some(({ bytes }) => equal(bytes, up)), `IPv${version} from ${sim.user}`);
  device.inject(down);
  await until(() => sim.host.tun.written.some(({ bytes }) => equal(bytes, down)), `IPv${version} to ${sim.user}`);
}

export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** A TCP hop between clients and a gateway, where connections can be cut or held. */
export class Relay implements AsyncDisposable {
  /** In the order in which they came. */
  readonly connections: RelayedConnection[] = [];
  /** Whether it ends what comes at once. */
  refuses = false;
  /** How many it takes; what comes after them is ended at once. */
  takes = Number.POSITIVE_INFINITY;
  /** Whether what comes goes nowhere, and is not told so. */
  holds = false;
  readonly #server: Server;

  static async open(target: number): Promise<Relay> {
    const relay = new Relay(target);
    relay.#server.listen(0, '127.0.0.1');
    await once(relay.#server, 'listening');
    return relay;
  }

  private constructor(target: number) {
    this.#server = createServer({ noDelay: true }, (near) => {
      if (this.refuses || this.connections.length >= this.takes) {
        near.resetAndDestroy();
        return;
      }
      const connection = new RelayedConnection(near, connectTcp({ port: target, host: '127.0.0.1', noDelay: true }));
      this.connections.push(connection);
      if (this.holds) connection.holdAfterGreeting();
    });
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const connection of this.connections) connection.cut();
  }
}

class RelayedConnection {
  /** What came after `hold` and went nowhere. */
  heldBytes = 0;
  /** From the client, and to it. */
  upBytes = 0;
  downBytes = 0;
  readonly #near: Socket;
  readonly #far: Socket;

  constructor(near: Socket, far: Socket) {
    this.#near = near;
    this.#far = far;
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on('data', (bytes) => {
        if (from === near) this.upBytes += bytes.length;
        else this.downBytes += bytes.length;
        to.write(bytes);
      });
      from.on('end', () => to.end());
      from.on('error', () => {});
    }
  }

  get isOpen(): boolean {
    return !this.#near.closed || !this.#far.closed;
  }

  get hasClientLeft(): boolean {
    return this.#near.closed;
  }

  /** Ends it at both ends, without a word. */
  cut(): void {
    this.#near.resetAndDestroy();
    this.#far.resetAndDestroy();
  }

  /** What the client says once TLS is there goes nowhere. */
  holdAfterGreeting(): void {
    // Its part of the handshake comes in two flights.
    const isPast = (): boolean => this.upBytes > 0 && this.downBytes > 1000;
    this.#near.on('data', () => {
      if (isPast()) setImmediate(() => this.hold());
    });
  }

  /** From now on bytes go nowhere; both ends believe that the connection stands. */
  hold(): void {
    for (const socket of [this.#near, this.#far]) {
      socket.removeAllListeners('data');
      socket.removeAllListeners('end');
      socket.on('data', (bytes) => {
        this.heldBytes += bytes.length;
      });
    }
  }
}

export interface RawOptions {
  alpn?: string;
  cert?: string;
  key?: string;
  host?: string;
}

export interface RawFrame {
  readonly type: number;
  readonly payload: Uint8Array;
}

/** What a raw client may do otherwise than an honest one. */
export interface RawLogin {
  device?: DeviceKey;
  token?: Uint8Array | undefined;
  features?: readonly string[];
  user?: string;
  password?: string;
  /** Shown at a login; `token` is that of a profile, for an enrolment. */
  accessToken?: Uint8Array;
  /** Changes what is signed, or the signature. */
  sign?: (signedBytes: Uint8Array, device: DeviceKey) => Uint8Array;
  /** Changes a frame before it goes out; undefined leaves it out. */
  tamper?: (frame: Uint8Array) => Uint8Array | undefined;
}

/** A session that a raw client has. */
export interface RawSession {
  readonly accept: AcceptMessage;
  readonly attachKey: Uint8Array;
  readonly device: DeviceKey;
  /** S of the epoch in `accept`. */
  readonly secret: Uint8Array;
}

/** What a raw client may do otherwise than an honest one when it resumes. */
export interface RawResume {
  /** Signs, and says who it is. */
  device?: DeviceKey;
  secret?: Uint8Array;
  features?: readonly string[];
  /** Says that the session's other connections stay. */
  rekey?: boolean;
  /** Changes a frame before it goes out. */
  tamper?: (frame: Uint8Array) => Uint8Array;
}

/** A TLS connection to a gateway on which anything may be sent. */
export class RawClient {
  readonly socket: TLSSocket;
  readonly frames: RawFrame[] = [];
  greeting = '';
  isClosed = false;
  #rest: Uint8Array = new Uint8Array(0);

  static async connect(port: number, ca: string, options: RawOptions): Promise<RawClient> {
    const { alpn = 'customvpn/1', host = '127.0.0.1', ...credentials } = options;
    const socket = connectTls({ host, port, ca, servername: 'localhost', ALPNProtocols: [alpn], ...credentials });
    const raw = new RawClient(socket);
    await once(socket, 'secureConnect');
    return raw;
  }

  private constructor(socket: TLSSocket) {
    this.socket = socket;
    socket.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    socket.on('error', () => {});
    socket.once('close', () => {
      this.isClosed = true;
    });
  }

  readonly exporter: Exporter = (label, context) => this.socket.exportKeyingMaterial(32, label, Buffer.from(context));

  /** How the gateway's log calls this connection. */
  get name(): string {
    const { localAddress = '', localPort } = this.socket;
    return localAddress.includes(':') ? `[${localAddress}]:${localPort}` : `${localAddress}:${localPort}`;
  }

  write(bytes: Uint8Array): void {
    this.socket.write(Buffer.from(bytes));
  }

  send(type: FrameType, payload: Uint8Array): void {
    this.write(encodeFrame(type, payload));
  }

  /** A frame header and as much of a payload as is given. */
  sendHeader(type: number, length: number, payload: Uint8Array = new Uint8Array(0)): void {
    this.write(Uint8Array.of(type, length >>> 16, length >>> 8, length, ...payload));
  }

  async greeted(): Promise<this> {
    await until(() => this.greeting !== '' || this.isClosed, 'the greeting');
    return this;
  }

  /** The next frame of this type; those before it are forgotten. */
  async next(type: FrameType): Promise<Uint8Array> {
    return await until(() => {
      const at = this.frames.findIndex((frame) => frame.type === type);
      if (at >= 0) return this.frames.splice(0, at + 1).at(-1)?.payload;
      if (this.isClosed) assert.fail(`the connection closed before a frame of type ${type} came`);
      return undefined;
    }, `a frame of type ${type}`);
  }

  async message<N extends MessageName>(name: N): Promise<ReturnType<typeof decodeMessage<N>>> {
    return decodeMessage(name, await this.next(FrameType[name]));
  }

  async closed(): Promise<void> {
    await until(() => this.isClosed, 'the end of the connection');
  }

  /** Logs in, honestly where nothing else is asked for; resolves with the session once CONFIG has come. */
  async login(options: RawLogin = {}): Promise<RawSession> {
    const { device = DeviceKey.generate(), token, user, password, accessToken } = options;
    const { features = ['attach', 'super', 'uso'] } = options;
    const tamper = options.tamper ?? ((frame: Uint8Array) => frame);
    const leaf = this.socket.getPeerX509Certificate();
    assert.ok(leaf);
    const login = new LoginClient({
      primitives,
      exporter: this.exporter,
      serverId: keyHash(leaf),
      features,
      purpose: token === undefined ? 'login' : 'enrol',
      serverName: 'localhost',
      serverVerified: true,
      device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
      ...(user === undefined ? {} : { user }),
      client: { name: 'raw', version: '0', platform: 'test' },
    });
    await this.greeted();
    let output: LoginClientOutput = login.start(new TextEncoder().encode(this.greeting));
    for (;;) {
      switch (output.kind) {
        case 'send': {
          const frame = tamper(output.frame);
          if (frame !== undefined) this.write(frame);
          break;
        }
        case 'answer': {
          const signature = options.sign?.(output.signedBytes, device) ?? device.sign(output.signedBytes);
          output = login.answer({
            signature,
            ...(token === undefined ? {} : { token }),
            ...(accessToken === undefined ? {} : { token: accessToken }),
            ...(password === undefined ? {} : { password }),
          });
          continue;
        }
        case 'accepted':
          await this.next(FrameType.config);
          return rawSession(output.accept, output.secret, device);
        case 'failed':
          throw output.error;
        case 'closed':
          throw new Error(`CLOSE ${output.reason}`);
      }
      const frame = await until(
        () =>
          this.frames.shift() ?? (this.isClosed ? assert.fail('the connection closed during the login') : undefined),
        'the answer to a login',
      );
      output = login.receive(frame.type, frame.payload);
    }
  }

  /**
   * Resumes a session, as far as the server's RESUMED; `done` sends RESUME_DONE, which the server has not seen before.
   * Throws what the server rejects it with.
   */
  async resume(of: RawSession, options: RawResume = {}): Promise<{ session: RawSession; done: () => Promise<void> }> {
    const { device = of.device, secret = of.secret, features = of.accept.features, rekey } = options;
    const tamper = options.tamper ?? ((frame: Uint8Array) => frame);
    const leaf = this.socket.getPeerX509Certificate();
    assert.ok(leaf);
    const machine = new ResumeClient({
      primitives,
      exporter: this.exporter,
      serverId: keyHash(leaf),
      features,
      session: of.accept.session,
      epoch: of.accept.epoch,
      secret,
      serverName: 'localhost',
      device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
      rekey,
    });
    await this.greeted();
    let output = machine.start(new TextEncoder().encode(this.greeting));
    for (;;) {
      if (output.kind === 'answer') output = machine.answer(device.sign(output.signedBytes));
      if (output.kind === 'send') this.write(tamper(output.frame));
      if (output.kind === 'failed') throw output.error;
      if (output.kind === 'closed') throw new Error(`CLOSE ${output.reason}`);
      if (output.kind === 'resumed') {
        const { frame, secret: next } = output;
        const { proof: _, ...resumed } = output.resumed;
        const done = async (): Promise<void> => {
          this.write(frame);
          await this.next(FrameType.config);
        };
        return { session: rawSession({ ...of.accept, ...resumed }, next, device), done };
      }
      const frame = await until(
        () => this.frames.shift() ?? (this.isClosed ? assert.fail('the connection closed during a resume') : undefined),
        'the answer to a resume',
      );
      output = machine.receive(frame.type, frame.payload);
    }
  }

  #receive(chunk: Uint8Array): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    if (this.greeting === '') {
      const end = bytes.indexOf(0x0a) + 1;
      if (end > 0) this.greeting = Buffer.from(bytes.subarray(0, end)).toString();
      bytes = bytes.subarray(end);
    }
    while (this.greeting !== '' && bytes.length >= 4) {
      const length = ((bytes[1] ?? 0) << 16) | ((bytes[2] ?? 0) << 8) | (bytes[3] ?? 0);
      if (bytes.length < 4 + length) break;
      this.frames.push({ type: bytes[0] ?? 0, payload: Uint8Array.from(bytes.subarray(4, 4 + length)) });
      bytes = bytes.subarray(4 + length);
    }
    this.#rest = Uint8Array.from(bytes);
  }
}

function rawSession(accept: AcceptMessage, secret: Uint8Array, device: DeviceKey): RawSession {
  return { accept, secret, device, attachKey: attachKey(primitives, secret) };
}

/** The client has given up, and for which reason of the server. */
export async function stopsFinally({ client, host }: SimClient, reason: CloseReason): Promise<void> {
  await until(() => client.snapshot.state === 'stopped', `the client to stop after ${reason}`, 1000);
  assert.equal(client.snapshot.lastError?.code, 'ERR_PEER_GONE');
  assert.match(client.snapshot.lastError?.message ?? '', new RegExp(`: ${reason}$`));
  assert.equal(client.wasAskedToStop, false);
  assert.equal(host.isClosed, true, 'the machine is put back');
}
