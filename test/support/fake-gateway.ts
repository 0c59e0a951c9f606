/** A gateway of TLS and frames and nothing behind them, which says what a test has it say. */

import type { Clock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/log.ts';
import { VpnClient } from '../../src/client/client.ts';
import { AttachServer } from '../../src/protocol/attach.ts';
import { encodeGreeting, FrameDecoder } from '../../src/protocol/frame.ts';
import { attachKey } from '../../src/protocol/keys.ts';
import { LoginServer, type LoginServerOutput } from '../../src/protocol/login.ts';
import { type ConfigMessage, encodeMessage } from '../../src/protocol/messages.ts';
import type { Channel } from '../../src/transport/channel.ts';
import { Listener } from '../../src/transport/listener.ts';
import { TestAuthority } from './certificates.ts';
import { primitives } from './protocol.ts';
import { SimHost } from './world.ts';

/** The client's address. */
export const OWN = '10.9.0.2';
const CONFIG: ConfigMessage = {
  revision: 1,
  addresses: { v4: { address: OWN, gateway: '10.9.0.1' } },
  routes: ['192.0.2.0/24'],
  dns: { servers: [], domains: [] },
  mtu: 1400,
  ping: { intervalSeconds: 20, deadSeconds: 60 },
  data: { mode: 'attached', channels: 1 },
  transports: [],
  pins: [],
};

/** What the gateway does where ours has no choice. Frames are sent as they are. */
export interface Manners {
  greeting?: Uint8Array;
  config?: Partial<ConfigMessage>;
  /** Sent right after ACCEPT, in place of CONFIG. */
  afterAccept?: Uint8Array;
  attach?: () => Uint8Array;
  /** Default `attach`; with more than that an ATTACH is answered as it should be. */
  features?: readonly string[];
  clock?: Clock;
}

/** What the gateway has of one data connection. */
export interface DataEnd {
  readonly slot: number;
  readonly generation: number;
  readonly channel: Channel;
  /** Control frames, in order. */
  readonly frames: { type: number; payload: Uint8Array }[];
}

export class FakeGateway implements AsyncDisposable {
  /** ALPN of every connection, in order. */
  readonly protocols: (string | undefined)[] = [];
  readonly packets: Uint8Array[] = [];
  /** Data connections, in the order in which they were attached. */
  readonly data: DataEnd[] = [];
  readonly authority: TestAuthority;
  control: Channel | undefined;
  readonly #manners: Manners;
  #listener: Listener | undefined;
  #session: { id: Uint8Array; server: AttachServer } | undefined;

  static async open(manners: Manners): Promise<FakeGateway> {
    const authority = await TestAuthority.create();
    const gateway = new FakeGateway(authority, manners);
    gateway.#listener = await Listener.open({
      address: '127.0.0.1',
      credentials: await authority.server(),
      onChannel: (channel) => gateway.#accept(channel),
      log: silentLogger,
    });
    return gateway;
  }

  private constructor(authority: TestAuthority, manners: Manners) {
    this.authority = authority;
    this.#manners = manners;
  }

  /** A client of this gateway. */
  client(): { client: VpnClient; host: SimHost } {
    const host = new SimHost({ superPackets: false });
    const client = new VpnClient({
      serverHost: '127.0.0.1',
      serverPort: this.#listener?.address.port ?? 0,
      serverName: 'localhost',
      ca: this.authority.cert,
      host,
      ...(this.#manners.clock === undefined ? {} : { clock: this.#manners.clock }),
    });
    return { client, host };
  }

  #accept(channel: Channel): void {
    this.protocols.push(channel.facts.alpn);
    const login = new LoginServer({
      primitives,
      exporter: (label, context) => channel.exporter(label, context),
      serverId: channel.facts.serverId,
      features: this.#manners.features ?? ['attach'],
    });
    const target = new Uint8Array(70_000);
    const frames: DataEnd['frames'] = [];
    const decoder = new FrameDecoder(
      {
        target,
        targetOffset: 0,
        reserve: () => {},
        data: (_type, length) => void this.packets.push(target.slice(0, length)),
        control: (type, payload) => {
          if (decoder.phase === 'login') this.#drive(channel, decoder, login, login.receive(type, payload), frames);
          else frames.push({ type, payload: Uint8Array.from(payload) });
        },
        unknown: () => {},
      },
      'client',
    );
    channel.start({ bytes: (chunk) => decoder.push(chunk), closed: () => {} });
    channel.sendControl(this.#manners.greeting ?? encodeGreeting());
  }

  #drive(
    channel: Channel,
    decoder: FrameDecoder,
    login: LoginServer,
    output: LoginServerOutput,
    frames: DataEnd['frames'],
  ): void {
    const { config, afterAccept, attach } = this.#manners;
    switch (output.kind) {
      case 'send':
        channel.sendControl(output.frame);
        break;
      case 'challenge':
        this.#drive(
          channel,
          decoder,
          login,
          login.challenge({ nonce: primitives.randomBytes(32), steps: [{ kind: 'device' }] }),
          frames,
        );
        break;
      case 'verify': {
        const grant = { session: primitives.randomBytes(16), worker: 0, user: 'alice' };
        const times = { absoluteSeconds: 0, idleSeconds: 0, graceSeconds: 0 };
        this.#drive(channel, decoder, login, login.accept({ ...grant, ...times }), frames);
        break;
      }
      case 'accepted':
        this.control = channel;
        this.#session = {
          id: output.accept.session,
          server: new AttachServer({
            primitives,
            session: output.accept.session,
            epoch: 0,
            key: attachKey(primitives, output.secret),
            slots: 1,
          }),
        };
        decoder.setPhase('session');
        channel.sendControl(output.frame);
        channel.sendControl(afterAccept ?? encodeMessage('config', { ...CONFIG, ...config }));
        break;
      case 'attach':
        if (this.#manners.features !== undefined && this.#session !== undefined) {
          const attached = this.#session.server.receive(output.message, (label, context) =>
            channel.exporter(label, context),
          );
          decoder.setPhase('data');
          const { slot, generation, frame } = attached;
          channel.sendControl(frame);
          this.data.push({ slot, generation, channel, frames });
          break;
        }
        channel.sendControl(attach?.() ?? encodeMessage('moved', { worker: 0 }));
        break;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.control?.destroy();
    await this.#listener?.close();
  }
}
