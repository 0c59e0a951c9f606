/**
 * What a client is given, and what it shows of itself.
 *
 * Hides nothing but defaults, which are said beside each option.
 */

import type { Clock } from '../base/clock.ts';
import type { VpnError } from '../base/errors.ts';
import type { Logger, Secret } from '../base/log.ts';
import type { TunDevice } from '../os/tun.ts';
import type { AcceptedConfig, ClientLimits, RefusedItem } from '../protocol/config-check.ts';
import type { ChannelFacts } from '../transport/channel.ts';
import type { ChooseProxy } from '../transport/outbound-proxy.ts';
import type { DeviceKey } from './device-key.ts';
import type { ResumeTicket } from './dialogue.ts';
import type { AnswerSteps } from './login-answers.ts';
import type { ClientHost } from './machine.ts';
import type { NetworkView } from './roaming.ts';

export interface ClientOptions {
  /** Names or addresses to dial, tried in order. */
  serverHost: string | readonly string[];
  /** Default 443. */
  serverPort?: number;
  /** The name that the certificate must carry; default the (first) host. */
  serverName?: string;
  /** A client certificate and key, PEM files. */
  certFile?: string;
  keyFile?: string;
  /** CAs that may have signed the server's certificate, PEM file; or `ca` as text. Default: the system's. */
  caFile?: string;
  ca?: string;
  /** Base64 SHA-256 of public keys, one of which must be in the verified chain. */
  pins?: readonly string[];
  /** False is loud: no secret is sent and no default route or DNS accepted. Default true. */
  verifyServer?: boolean;
  /** Default: a key that lives as long as this object, good for one enrolment. */
  deviceKey?: DeviceKey;
  /** The one-time token that enrols the device. */
  token?: Uint8Array;
  /** The server does not know the device yet; default: whether there is a token. */
  enrol?: boolean;
  user?: string;
  /** Answers the steps of a login that the device's key does not: password, one-time code, access token. */
  answer?: AnswerSteps;
  /** What a server may push; default: no default route, no DNS. */
  limits?: Partial<Omit<ClientLimits, 'serverVerified'>>;
  /** The firewall mark of the client's own connections, by which its host keeps them outside the tunnel. */
  mark?: number;
  /** Offer super-packets when the device has them; default true. */
  superPackets?: boolean;
  /** Asks the gateway for compressed packets; default no. See docs/security.md. */
  compression?: boolean;
  /** How many data connections are wanted, 1 to 16; default: as many as the server allows. */
  dataChannels?: number;
  /** Without one the client carries no packets: echoes and control only. */
  host?: ClientHost;
  /** A session that another client of this device has kept: it is resumed in place of a login. */
  resume?: ResumeTicket;
  /** This machine's network, so that its changes are noticed at once; without it they are by silence. */
  network?: NetworkView;
  /** The proxy on the way to each host; default none. */
  proxy?: ChooseProxy;
  /** The secret path at which the server's front door opens a tunnel, so that the connection looks like one to a web server. */
  camouflage?: Secret<string>;
  /** Finds out what stands between this machine and the server when a dial has failed. Must not throw. */
  explain?: (error: VpnError) => Promise<VpnError>;
  /** Resolves a server's name to addresses, in the order of preference; default the system's resolver. */
  lookup?: (host: string) => Promise<readonly string[]>;
  /** The device has been enrolled: the token is spent and should be forgotten. */
  onEnrolled?: () => void | Promise<void>;
  onState?: (state: ClientState) => void;
  log?: Logger;
  clock?: Clock;
  /** Told to the server. */
  version?: string;
}

export type ClientState = 'idle' | 'connecting' | 'connected' | 'waiting' | 'stopping' | 'stopped';

/** What an operator wants to see. */
export interface ClientSnapshot {
  readonly state: ClientState;
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  readonly user: string | undefined;
  readonly device: TunDevice | undefined;
  readonly config: AcceptedConfig | undefined;
  readonly refused: readonly RefusedItem[];
  readonly tls: ChannelFacts | undefined;
  readonly superPackets: boolean;
  readonly channels: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
  readonly roundTripMs: number | undefined;
  readonly reconnects: number;
  /** How often a session was taken up again without a login. */
  readonly resumes: number;
  /** How often a connection was changed for one with new keys. */
  readonly rekeys: number;
  /** Of these, how many may have lost or reordered packets. */
  readonly rekeyGaps: number;
  readonly lastError: VpnError | undefined;
  /** Packets dropped, by reason. */
  readonly drops: Readonly<Record<string, number>>;
}
