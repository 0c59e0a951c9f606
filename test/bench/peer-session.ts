/**
 * A client that is kept small, for benches that need thousands of them: the product's own protocol machines on a bare
 * `node:tls` connection, without a TUN device, timers or retries.
 *
 * Hides the login, the resume and the frames of one connection with data inline. It answers pings, so that the gateway keeps
 * it; it must cost as little as it can, because it is the gateway that is measured.
 */

import { once } from 'node:events';
import { connect, createSecureContext, type TLSSocket } from 'node:tls';
import { nodePrimitives } from '../../src/base/primitives.ts';
import type { DeviceKey } from '../../src/client/device-key.ts';
import type { Profile } from '../../src/control/profile.ts';
import { Feature } from '../../src/protocol/features.ts';
import { encodeFrame, FrameDecoder, type FrameSink, FrameType } from '../../src/protocol/frame.ts';
import { LoginClient, type LoginClientOutput } from '../../src/protocol/login.ts';
import { type ConfigMessage, decodeMessage, encodeMessage, fromBase64Url } from '../../src/protocol/messages.ts';
import { ResumeClient, type ResumeClientOutput } from '../../src/protocol/resume.ts';
import { clientTlsOptions, keyHash, tunnelProtocols } from '../../src/transport/tls.ts';

/** Connects over and over with settings that are read once. */
export function connector(caPem: string): (host: string, port: number, from?: string) => TLSSocket {
  const secureContext = createSecureContext(clientTlsOptions({ ca: caPem }, true, '1.3'));
  const ALPNProtocols = tunnelProtocols();
  return (host, port, from) => {
    const where = { host, port, servername: '', ...(from === undefined ? {} : { localAddress: from }) };
    return connect({ secureContext, ALPNProtocols, ...where, checkServerIdentity: () => undefined });
  };
}

const CLOSE = encodeMessage('close', { reason: 'peer_disconnect' });
const FEATURES = [Feature.superPackets, Feature.udpSuperPackets, Feature.resume];
/** Received packets are looked at one at a time, and then not needed. */
const RECEIVED = new Uint8Array(1 << 17);

/** A gateway as a profile names it. */
export class PeerGateway {
  readonly profile: Profile;
  readonly open: (from?: string) => TLSSocket;
  /** What the server's certificate says, once a connection has shown it. */
  serverId: Uint8Array | undefined;

  constructor(profile: Profile) {
    this.profile = profile;
    const dial = connector(profile.ca ?? '');
    const { hosts, port } = profile.server;
    this.open = (from) => dial(hosts[0] ?? '', port, from);
  }
}

/** What a session was told and must prove with. */
interface Standing {
  session: Uint8Array;
  epoch: number;
  secret: Uint8Array;
  features: readonly string[];
}

export class PeerSession {
  /** Told of each packet, which is borrowed until it returns. */
  onPacket: (packet: Uint8Array) => void = () => {};
  /** As the gateway has pushed them. */
  config: ConfigMessage | undefined;
  readonly #gateway: PeerGateway;
  readonly #device: DeviceKey;
  readonly #from: string | undefined;
  readonly #features: readonly string[];
  #standing: Standing | undefined;
  #socket: TLSSocket | undefined;

  private constructor(gateway: PeerGateway, device: DeviceKey, from: string | undefined, features: readonly string[]) {
    this.#features = features;
    this.#gateway = gateway;
    this.#device = device;
    this.#from = from;
  }

  /**
   * Logs in, from the TCP connection to CONFIG. Answers to password and token steps come from the environment.
   *
   * @param from the address of this machine to come from; default: the kernel's choice
   * @param features what it offers; default: all that it knows
   */
  static async logIn(
    gateway: PeerGateway,
    device: DeviceKey,
    purpose: 'login' | 'enrol',
    from?: string,
    features: readonly string[] = FEATURES,
  ): Promise<PeerSession> {
    const peer = new PeerSession(gateway, device, from, features);
    const { BENCH_PASSWORD: password, BENCH_TOKEN: accessToken } = process.env;
    const token = purpose === 'enrol' ? gateway.profile.token?.reveal() : fromBase64Url(accessToken ?? '');
    const socket = await peer.#dial();
    const login = new LoginClient({ ...peer.#foundation(socket), purpose, serverVerified: true, client: CLIENT });
    const drive = (output: LoginClientOutput): void => {
      if (output.kind === 'send') socket.write(output.frame);
      else if (output.kind === 'answer') {
        const signature = device.sign(output.signedBytes);
        const secrets = { ...(token === undefined ? {} : { token }), ...(password === undefined ? {} : { password }) };
        drive(login.answer({ signature, ...secrets }));
      } else if (output.kind === 'accepted') {
        const { session, features } = output.accept;
        peer.#standing = { session, epoch: 0, secret: output.secret, features };
        flow.enter();
      } else flow.refuse(output);
    };
    const flow = peer.#read(
      socket,
      (line) => drive(login.start(line)),
      (type, payload) => drive(login.receive(type, payload)),
    );
    await flow.ready;
    return peer;
  }

  /** Comes back on a new connection; the old one is gone already. */
  async resume(): Promise<void> {
    const standing = this.#standing;
    if (standing === undefined) throw new Error('there is no session to resume');
    const socket = await this.#dial();
    const { session, epoch, secret, features } = standing;
    const machine = new ResumeClient({ ...this.#foundation(socket), features, session, epoch, secret });
    const drive = (output: ResumeClientOutput): void => {
      if (output.kind === 'send') socket.write(output.frame);
      else if (output.kind === 'answer') drive(machine.answer(this.#device.sign(output.signedBytes)));
      else if (output.kind === 'resumed') {
        this.#standing = { ...standing, epoch: epoch + 1, secret: output.secret };
        flow.enter();
        socket.write(output.frame);
      } else flow.refuse(output);
    };
    const flow = this.#read(
      socket,
      (line) => drive(machine.start(line)),
      (type, payload) => drive(machine.receive(type, payload)),
    );
    await flow.ready;
  }

  /** Sends a packet. */
  send(packet: Uint8Array): void {
    this.#socket?.write(encodeFrame(FrameType.packet, packet));
  }

  /** Ends the connection without a word to the session, as a client does that has lost its way. */
  cut(): void {
    this.#socket?.destroy();
    this.#socket = undefined;
  }

  /** Ends the session as its user wishes. */
  async close(): Promise<void> {
    const socket = this.#socket;
    if (socket === undefined) return;
    const ended = once(socket, 'close');
    socket.end(CLOSE);
    await ended;
  }

  async #dial(): Promise<TLSSocket> {
    const socket = this.#gateway.open(this.#from);
    await once(socket, 'secureConnect');
    this.#socket = socket;
    const leaf = this.#gateway.serverId === undefined ? socket.getPeerX509Certificate() : undefined;
    if (leaf !== undefined) this.#gateway.serverId = keyHash(leaf);
    return socket;
  }

  #foundation(socket: TLSSocket) {
    const { id, algorithm, publicKey } = this.#device;
    return {
      primitives: nodePrimitives,
      exporter: (label: string, context: Uint8Array) => socket.exportKeyingMaterial(32, label, Buffer.from(context)),
      serverId: this.#gateway.serverId ?? new Uint8Array(32),
      serverName: this.#gateway.profile.server.name,
      features: this.#features,
      device: { id, algorithm, publicKey },
    };
  }

  /** Reads a connection from its greeting on; `ready` resolves with CONFIG. */
  #read(
    socket: TLSSocket,
    onGreeting: (line: Uint8Array) => void,
    onFrame: (type: number, payload: Uint8Array) => void,
  ): { ready: Promise<void>; enter: () => void; refuse: (output: { kind: string }) => void } {
    const { promise: ready, resolve, reject } = Promise.withResolvers<void>();
    let isEntered = false;
    const sink: FrameSink = {
      target: RECEIVED,
      targetOffset: 0,
      greeting: (line) => {
        decoder.setPhase('login');
        onGreeting(line);
      },
      control: (type, payload) => {
        if (!isEntered) onFrame(type, payload);
        else if (type === FrameType.ping) socket.write(encodeFrame(FrameType.pong, payload));
        else if (type === FrameType.config) {
          this.config = decodeMessage('config', payload);
          resolve();
        }
      },
      reserve: () => {},
      data: (_type, length) => this.onPacket(RECEIVED.subarray(0, length)),
      unknown: () => {},
    };
    const decoder = new FrameDecoder(sink, 'server');
    socket.on('data', (chunk: Buffer) => {
      try {
        decoder.push(chunk);
      } catch (error) {
        reject(error);
        socket.destroy();
      }
    });
    socket.on('error', reject);
    socket.once('close', () => reject(new Error('the server ended the connection')));
    return {
      ready,
      enter: () => {
        isEntered = true;
        decoder.setPhase('session');
      },
      refuse: (output) => {
        if (output.kind === 'nothing') return;
        reject(new Error(`refused: ${describe(output)}`));
      },
    };
  }
}

const CLIENT = { name: 'bench', version: '0', platform: process.platform };

function describe(output: { kind: string; error?: Error; reason?: string }): string {
  return output.error?.message ?? output.reason ?? output.kind;
}
