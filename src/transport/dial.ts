/**
 * Connects to a gateway: names to addresses, the first of them that answers to a verified TLS channel.
 *
 * Hides which ways there are (both families, several servers, proxies, NAT64), socket tuning and the order of the checks. A channel comes out only when chain, name,
 * pins, protocol version and application protocol are what was asked for; every other outcome is an error whose code says
 * which of them failed. It must not know of sessions or of trying again.
 *
 * @see docs/protocol.md §1
 */

import type { X509Certificate } from 'node:crypto';
import { lookup as systemLookup } from 'node:dns/promises';
import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger, Secret } from '../base/log.ts';
import { parseIp } from '../ip/address.ts';
import { openMarkedSocket, socketFd, sourceAddress, tuneSocket } from '../os/socket.ts';
import { Channel } from './channel.ts';
import { localEnd, remoteEnd } from './endpoint.ts';
import { IPV4_ONLY_NAME, nat64Prefixes, throughNat64 } from './nat64.ts';
import { type ChooseProxy, connectThrough, type OutboundProxy } from './outbound-proxy.ts';
import type { QueueBudget } from './queue-budget.ts';
import { race, Ways } from './race.ts';
import {
  type ClientCredentials,
  certificateError,
  checkHandshake,
  clientTlsOptions,
  HTTP_ALPN,
  isPinned,
  isTunnelProtocol,
  keyHash,
  type MinTlsVersion,
  readFacts,
  STREAMS_ALPN,
  TUNNEL_ALPN,
  translateTlsError,
  tunnelProtocols,
} from './tls.ts';
import { askForUpgrade } from './upgrade.ts';

const TIMEOUT_MS = 10_000;
/** The kernel gives the connection up when sent data stays unacknowledged for so long. */
const USER_TIMEOUT_MS = 30_000;
/** A way that is there again is noticed by what is sent again; see docs/decisions/0027. */
const MAX_RETRANSMIT_MS = 1000;
const CONGESTION = 'bbr';
const NOT_SENT_LOWAT = 8192;

export interface DialOptions extends ClientCredentials {
  /** Names or addresses of one gateway, the preferred one first. */
  host: string | readonly string[];
  port: number;
  /** The name the certificate must be for; default the first host. */
  serverName?: string;
  /** Base64 SHA-256 of an SPKI; one of them must be in the verified chain. None: no pinning. */
  pins?: readonly string[];
  /** Default true. `false` accepts any server, whatever the pins say, and is logged as a warning. */
  verifyServer?: boolean;
  /** Default 1.3. */
  minVersion?: MinTlsVersion;
  /** The worker that a session belongs to; offered in ALPN. */
  worker?: number;
  /** For names, TCP and TLS together. */
  timeoutMs?: number;
  signal?: AbortSignal;
  dataQueueBytes?: number;
  /** Shared by the data queues of all connections. */
  queues?: QueueBudget;
  log: Logger;
  /** The firewall mark of the connection's packets: what keeps them outside a tunnel. Needs CAP_NET_ADMIN. */
  mark?: number;
  /** The proxy on the way to each host; default none. It resolves the hosts' names. */
  proxy?: ChooseProxy;
  /**
   * The secret path at which the server's front door opens a tunnel: to whoever watches, the connection is one to a web server.
   */
  camouflage?: Secret<string>;
  /** Resolves a name to addresses, in the order of preference; default the system's resolver. */
  lookup?: (host: string) => Promise<readonly string[]>;
  /** Whether a server may be dialled, by its way: its address, or the host that a proxy connects to. Default: every one. */
  accepts?: (way: string) => boolean;
}

/** A channel, and the way it came: the server's address, or the host that a proxy connected to. */
export interface DialledChannel {
  readonly channel: Channel;
  readonly way: string;
}

/**
 * Opens a channel to a gateway.
 *
 * @throws {VpnError} ERR_NAME_LOOKUP, ERR_CONNECT, ERR_CONNECT_TIMEOUT, ERR_STAGE_TIMEOUT, ERR_NOT_TLS, ERR_TLS_VERSION,
 *   ERR_TLS_MASTER_SECRET, ERR_TLS_ALPN, ERR_TLS_HANDSHAKE, ERR_CERT_EXPIRED, ERR_CERT_NOT_YET_VALID, ERR_CERT_NAME,
 *   ERR_CERT_UNTRUSTED, ERR_CERT_PIN, ERR_CERT_REVOKED, ERR_CERT_REQUIRED (TLS 1.2; on 1.3 it comes to the channel),
 *   ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_PEER_GONE, ERR_PRIVILEGE (mark), ERR_PROXY, ERR_PROXY_AUTH, ERR_UPGRADE
 */
export async function dial(options: DialOptions): Promise<Channel> {
  return (await dialSomewhere(options)).channel;
}

/** As `dial`; says also which server it was. @throws {VpnError} as `dial`; with `details.passedOver` when `accepts` left none */
export async function dialSomewhere(options: DialOptions): Promise<DialledChannel> {
  const { camouflage, worker } = options;
  if (camouflage === undefined) {
    const { taken, way } = await dialFor(options, {
      protocols: tunnelProtocols(worker),
      isExpected: isTunnelProtocol,
      take: openChannel,
    });
    return { channel: taken, way };
  }
  const { taken, way } = await dialFor(options, {
    protocols: [HTTP_ALPN],
    isExpected: (protocol) => protocol === HTTP_ALPN,
    take: async (socket, raw, secured) => {
      await askForUpgrade(socket, secured.serverName, camouflage.reveal(), TUNNEL_ALPN);
      return openChannel(socket, raw, secured);
    },
  });
  return { channel: taken, way };
}

/**
 * Opens a connection to a gateway for streams; what it says on it is the caller's.
 *
 * @throws {VpnError} as `dial`; ERR_TLS_ALPN or, behind camouflage, ERR_UPGRADE when the gateway has no streams
 */
export async function dialStreams(options: DialOptions): Promise<TLSSocket> {
  try {
    return await dialForStreams(options);
  } catch (error) {
    if (!isVpnError(error, 'ERR_TLS_ALPN') && !isVpnError(error, 'ERR_UPGRADE')) throw error;
    const why =
      'the gateway takes no streams: its proxy is switched off ([proxy] in its configuration), or it is older than this client';
    throw new VpnError(error.code, why, { cause: error });
  }
}

async function dialForStreams(options: DialOptions): Promise<TLSSocket> {
  const { camouflage } = options;
  const { taken } = await dialFor(options, {
    protocols: [camouflage === undefined ? STREAMS_ALPN : HTTP_ALPN],
    isExpected: (protocol) => protocol === (camouflage === undefined ? STREAMS_ALPN : HTTP_ALPN),
    take: async (socket, _raw, { serverName }) => {
      // Until somebody has taken it over, an error must find a listener.
      socket.on('error', ignore);
      if (camouflage !== undefined) await askForUpgrade(socket, serverName, camouflage.reveal(), STREAMS_ALPN);
      return socket;
    },
  });
  return taken;
}

/** What a connection is for. */
interface Purpose<T> {
  readonly protocols: readonly string[];
  isExpected(protocol: string): boolean;
  /** Takes a connection that has passed every check, in the turn in which it has. */
  take(socket: TLSSocket, raw: Socket, options: SecureOptions): T | Promise<T>;
}

async function dialFor<T extends { destroy(): unknown }>(
  options: DialOptions,
  purpose: Purpose<T>,
): Promise<{ taken: T; way: string }> {
  const hosts = typeof options.host === 'string' ? [options.host] : options.host;
  const [firstHost] = hosts;
  if (firstHost === undefined) throw new VpnError('ERR_CONFIG_VALUE', 'expected at least one host to connect to');
  const serverName = (options.serverName ?? firstHost).toLowerCase();
  const verifyServer = options.verifyServer ?? true;
  const log = options.log.child({ component: 'dial' });
  if (!verifyServer) log.warn('the server is NOT verified: anyone on the way can be it', { serverName });
  const tlsOptions = clientTlsOptions(options, verifyServer, options.minVersion ?? '1.3');

  const deadline = new Deadline(options.timeoutMs ?? TIMEOUT_MS, options.signal);
  const ways = new Ways<Way>();
  const names = findWays(ways, hosts, options);
  const { winner, callOff } = race(
    ways,
    async (way, control) => {
      const { address, through } = way;
      const raw = await openTcp(address, through?.proxy.port ?? options.port, options.mark, control.signal);
      try {
        const carrier =
          through === undefined
            ? raw
            : await calledOff(control.signal, connectThrough(raw, through.proxy, through.host, options.port));
        control.gotThrough();
        tune(raw, log);
        deadline.stage = 'tls';
        const socket = connectTls({
          ...tlsOptions,
          // The verdict is ours, at the end of the handshake, so that who was met can be told.
          rejectUnauthorized: false,
          socket: carrier,
          // Server Name Indication is for names only; the certificate is checked against an address all the same.
          ...(isIP(serverName) === 0 ? { servername: serverName } : { host: serverName, servername: '' }),
          ALPNProtocols: [...purpose.protocols],
        });
        const secured = { ...options, verifyServer, serverName };
        return { taken: await secure(socket, raw, secured, purpose, control.signal), way: nameOf(way) };
      } catch (error) {
        raw.destroy();
        throw error;
      }
    },
    (failures) => {
      if (failures.length > 0 || names.passedOver === 0)
        return allFailed(failures, options.port, names.failures, hosts);
      const details = { passedOver: names.passedOver };
      return new VpnError('ERR_CONNECT', 'there is no other server to connect to', { details });
    },
  );
  winner.then(
    ({ taken }) => deadline.isOver && taken.destroy(),
    () => {},
  );
  try {
    return await deadline.race(winner);
  } finally {
    callOff();
    deadline.clear();
  }
}

/** One end for a dial, whichever stage it is in. */
class Deadline {
  stage: 'tcp' | 'tls' = 'tcp';
  /** It has passed, or everything was called off. */
  isOver = false;
  readonly #failed = Promise.withResolvers<never>();
  readonly #timer: NodeJS.Timeout;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort = (): void => {
    this.isOver = true;
    this.#failed.reject(new VpnError('ERR_CONNECT', 'connecting was called off'));
  };

  constructor(timeoutMs: number, signal: AbortSignal | undefined) {
    this.#signal = signal;
    this.#failed.promise.catch(() => {});
    this.#timer = setTimeout(() => {
      const error =
        this.stage === 'tcp'
          ? new VpnError(
              'ERR_CONNECT_TIMEOUT',
              `no connection within ${timeoutMs} ms; is the address right, and the port open?`,
            )
          : new VpnError('ERR_STAGE_TIMEOUT', `the server did not complete the TLS handshake within ${timeoutMs} ms`);
      this.isOver = true;
      this.#failed.reject(error);
    }, timeoutMs);
    if (signal?.aborted === true) this.#onAbort();
    signal?.addEventListener('abort', this.#onAbort, { once: true });
  }

  race<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([this.#failed.promise, promise]);
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener('abort', this.#onAbort);
  }
}

/** The system's resolver. */
export async function lookupAll(host: string): Promise<readonly string[]> {
  const found = await systemLookup(host, { all: true, order: 'verbatim' });
  return found.map(({ address }) => address);
}

/** A way to the server: its address, or that of a proxy and the host that it shall connect to. */
interface Way {
  readonly address: string;
  readonly through: { readonly proxy: OutboundProxy; readonly host: string } | undefined;
}

/** By what a server is told from another. */
function nameOf({ address, through }: Way): string {
  return through?.host ?? address;
}

/** Finds ways as names resolve: those of the first host come first unless another resolves long before it. */
function findWays(
  ways: Ways<Way>,
  hosts: readonly string[],
  options: DialOptions,
): { readonly failures: readonly string[]; readonly passedOver: number } {
  const lookup = options.lookup ?? lookupAll;
  const result = { failures: [] as string[], passedOver: 0 };
  const searches = hosts.map(async (host) => {
    try {
      const proxy = options.proxy?.(host, options.port);
      const found = await addressesOf(proxy?.host ?? host, lookup, options.mark);
      const all = found.map((address): Way => ({ address, through: proxy && { proxy, host } }));
      const accepted = all.filter((way) => options.accepts?.(nameOf(way)) !== false);
      result.passedOver += all.length - accepted.length;
      ways.add(accepted);
    } catch (cause) {
      const errno = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
      result.failures.push(`${host}: ${errno}`);
    }
  });
  void Promise.all(searches).then(() => ways.complete());
  return result;
}

/** Addresses of a host, families in turn; where there is only IPv6, IPv4 ones as the network's NAT64 has them. */
async function addressesOf(
  host: string,
  lookup: (host: string) => Promise<readonly string[]>,
  mark: number | undefined,
): Promise<readonly string[]> {
  const found = isIP(host) === 0 ? alternateFamilies(await lookup(host)) : [host];
  const four = found.filter((address) => isIP(address) === 4);
  if (four.length === 0 || four.length < found.length || hasWay(four[0] ?? '', mark)) return found;
  const prefixes = nat64Prefixes(await lookup(IPV4_ONLY_NAME).catch(() => []));
  return [...prefixes.flatMap((prefix) => four.map((address) => throughNat64(prefix, address))), ...found];
}

function hasWay(address: string, mark: number | undefined): boolean {
  if (process.platform !== 'linux') return true;
  return sourceAddress(parseIp(address), mark) !== undefined;
}

/** RFC 8305 §4: families in turn, beginning with the resolver's first choice. */
export function alternateFamilies(addresses: readonly string[]): string[] {
  const first = isIP(addresses[0] ?? '');
  const queues = [addresses.filter((a) => isIP(a) === first), addresses.filter((a) => isIP(a) !== first)];
  const result: string[] = [];
  for (let i = 0; i < addresses.length; i++) {
    for (const queue of queues) {
      const address = queue[i];
      if (address !== undefined) result.push(address);
    }
  }
  return result;
}

/** Opens a TCP connection to one address. What it throws has the system's `code`, or is ERR_CONNECT when it is called off. */
export async function openTcp(
  address: string,
  port: number,
  mark: number | undefined,
  signal: AbortSignal,
): Promise<Socket> {
  const target = { host: address, port, noDelay: true, autoSelectFamily: false };
  const socket =
    mark === undefined ? connectTcp(target) : openMarkedSocket(isIP(address) === 6 ? 6 : 4, mark).connect(target);
  const connected = Promise.withResolvers<void>();
  socket.once('connect', connected.resolve);
  socket.on('error', connected.reject);
  try {
    await calledOff(signal, connected.promise);
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** What is awaited, or an error when the attempt is called off before. */
async function calledOff<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(new VpnError('ERR_CONNECT', 'connecting was called off'));
  if (signal.aborted) onAbort();
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
    work.catch(() => {});
  }
}

/** The failure that says most: of whoever spoke TLS, else of a proxy, else what became of every address. */
function allFailed(
  failures: readonly { way: Way; error: unknown }[],
  port: number,
  unresolved: readonly string[],
  hosts: readonly string[],
): VpnError {
  const told = failures.flatMap(({ error }) => (isVpnError(error) ? [error] : []));
  const spoken = told.find(({ code }) => !code.startsWith('ERR_PROXY')) ?? told[0];
  if (spoken !== undefined) return spoken;
  if (failures.length === 0) {
    return new VpnError('ERR_NAME_LOOKUP', `no address found (${unresolved.join('; ') || hosts.join(', ')})`, {
      details: { host: hosts[0] },
    });
  }
  const proxy = failures.find(({ way }) => way.through !== undefined)?.way.through?.proxy;
  const errnos = failures.map(({ way, error }) => ({
    address: way.address,
    errno: error instanceof Error && 'code' in error ? String(error.code) : String(error),
  }));
  return connectError(errnos, proxy?.port ?? port, proxy !== undefined);
}

function connectError(
  failures: readonly { address: string; errno: string }[],
  port: number,
  isProxy: boolean,
): VpnError {
  const list = failures.map(({ address, errno }) => `${address}: ${errno}`).join('; ');
  const code = failures.every(({ errno }) => errno === 'ETIMEDOUT') ? 'ERR_CONNECT_TIMEOUT' : 'ERR_CONNECT';
  return new VpnError(code, `cannot connect to port ${port}${isProxy ? ' of the proxy' : ''} (${list})`, {
    details: { port, errno: failures.at(-1)?.errno },
  });
}

function tune(socket: Socket, log: Logger): void {
  if (process.platform !== 'linux') return;
  try {
    const { congestion } = tuneSocket(socketFd(socket), {
      congestion: CONGESTION,
      notSentLowat: NOT_SENT_LOWAT,
      userTimeoutMs: USER_TIMEOUT_MS,
      maxRetransmitMs: MAX_RETRANSMIT_MS,
    });
    if (congestion === CONGESTION) return;
    log.warn(
      `this kernel gives no ${CONGESTION} congestion control: throughput will be poor on links that lose packets`,
      {
        congestion,
      },
    );
  } catch (error) {
    log.warn('the connection could not be tuned', { error });
  }
}

interface SecureOptions extends DialOptions {
  verifyServer: boolean;
  serverName: string;
}

async function secure<T>(
  socket: TLSSocket,
  raw: Socket,
  options: SecureOptions,
  purpose: Purpose<T>,
  signal: AbortSignal,
): Promise<T> {
  const result = Promise.withResolvers<T>();
  const onError = (error: Error): void => result.reject(translateTlsError(error, 'ERR_TLS_HANDSHAKE'));
  const onClose = (): void => {
    result.reject(new VpnError('ERR_PEER_GONE', 'the server closed the connection during the TLS handshake'));
  };
  socket.on('error', onError);
  socket.once('close', onClose);
  // Everything happens in this one event: no byte may be read before the checks are done and somebody takes the socket.
  socket.once('secureConnect', () => {
    try {
      checkServer(socket, options, purpose);
      result.resolve(purpose.take(socket, raw, options));
    } catch (error) {
      result.reject(toVpnError(error));
    }
  });
  try {
    const taken = await calledOff(signal, result.promise);
    socket.off('error', onError);
    return taken;
  } catch (error) {
    socket.destroy();
    raw.destroy();
    throw error;
  } finally {
    socket.off('close', onClose);
  }
}

function checkServer(socket: TLSSocket, options: SecureOptions, { isExpected, protocols }: Purpose<unknown>): void {
  const error = checkHandshake(socket);
  if (error !== undefined) throw error;
  const { alpnProtocol } = socket;
  // Who answers instead of the server says more than that it speaks something else.
  if (options.verifyServer && !socket.authorized) throw untrusted(socket, options.serverName);
  if (typeof alpnProtocol !== 'string' || !isExpected(alpnProtocol)) {
    throw new VpnError(
      'ERR_TLS_ALPN',
      `the server speaks TLS but not ${protocols.at(-1)}; is this the right host and port?`,
    );
  }
  if (!options.verifyServer) return;
  const { pins = [] } = options;
  if (pins.length === 0 || isPinned(socket.getPeerCertificate(true), pins)) return;
  throw new VpnError(
    'ERR_CERT_PIN',
    'no key in the chain of the server is one that the profile pins; is someone in between, or is the profile old?',
    { details: { serverName: options.serverName, ...signersOf(socket) } },
  );
}

/** Why a certificate is not accepted, with who is on it: that tells a proxy that reads TLS from an old profile. */
function untrusted(socket: TLSSocket, serverName: string): VpnError {
  const { authorizationError: reason } = socket;
  const error = typeof reason === 'string' ? certificateError(reason) : translateTlsError(reason, 'ERR_CERT_UNTRUSTED');
  const signers = signersOf(socket);
  if (signers === undefined) return error;
  const { subject, issuer } = signers;
  return new VpnError(error.code, `${error.message}: it is of ${subject}, signed by ${issuer}`, {
    cause: error,
    details: { ...error.details, serverName, ...signers },
  });
}

function signersOf(socket: TLSSocket): { subject: string; issuer: string } | undefined {
  const leaf = socket.getPeerX509Certificate();
  if (leaf === undefined) return undefined;
  return { subject: oneLine(leaf.subject), issuer: oneLine(leaf.issuer) };
}

/** What a stranger wrote into a certificate, for a line of ours. */
function oneLine(name: string): string {
  return (
    name
      .split('\n')
      .join(', ')
      .replace(/[\p{Cc}\p{Bidi_Control}]/gu, '?')
      .slice(0, 200) || 'nobody'
  );
}

function openChannel(socket: TLSSocket, raw: Socket, options: SecureOptions): Channel {
  const leaf: X509Certificate | undefined = socket.getPeerX509Certificate();
  if (leaf === undefined) throw new VpnError('ERR_TLS_HANDSHAKE', 'the server showed no certificate');
  const ends = { local: localEnd(raw), remote: remoteEnd(raw), serverId: keyHash(leaf) };
  const facts = readFacts(socket, { ...ends, authorized: options.verifyServer });
  return new Channel(socket, { facts, dataQueueBytes: options.dataQueueBytes, queues: options.queues });
}

function ignore(): void {}
