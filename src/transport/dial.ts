/**
 * Connects to a gateway: names to addresses, addresses to the fastest TCP connection, TCP to a verified TLS channel.
 *
 * Hides Happy Eyeballs (RFC 8305), socket tuning and the order of the checks. A channel comes out only when chain, name,
 * pins, protocol version and application protocol are what was asked for; every other outcome is an error whose code says
 * which of them failed. It must not know of sessions or of trying again.
 *
 * @see docs/protocol.md §1
 */

import type { X509Certificate } from 'node:crypto';
import { lookup as systemLookup } from 'node:dns/promises';
import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { openMarkedSocket, socketFd, tuneSocket } from '../os/socket.ts';
import { Channel } from './channel.ts';
import { localEnd, remoteEnd } from './endpoint.ts';
import type { QueueBudget } from './queue-budget.ts';
import {
  type ClientCredentials,
  checkHandshake,
  clientTlsOptions,
  isPinned,
  isTunnelProtocol,
  keyHash,
  type MinTlsVersion,
  readFacts,
  translateTlsError,
  tunnelProtocols,
} from './tls.ts';

/** RFC 8305 §8: how long an attempt runs alone before the next one starts beside it. */
const ATTEMPT_DELAY_MS = 250;
const TIMEOUT_MS = 10_000;
/** The kernel gives the connection up when sent data stays unacknowledged for so long. */
const USER_TIMEOUT_MS = 30_000;
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
  /** Resolves a name to addresses, in the order of preference; default the system's resolver. */
  lookup?: (host: string) => Promise<readonly string[]>;
}

/**
 * Opens a channel to a gateway.
 *
 * @throws {VpnError} ERR_NAME_LOOKUP, ERR_CONNECT, ERR_CONNECT_TIMEOUT, ERR_STAGE_TIMEOUT, ERR_NOT_TLS, ERR_TLS_VERSION,
 *   ERR_TLS_MASTER_SECRET, ERR_TLS_ALPN, ERR_TLS_HANDSHAKE, ERR_CERT_EXPIRED, ERR_CERT_NOT_YET_VALID, ERR_CERT_NAME,
 *   ERR_CERT_UNTRUSTED, ERR_CERT_PIN, ERR_CERT_REVOKED, ERR_CERT_REQUIRED (TLS 1.2; on 1.3 it comes to the channel),
 *   ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_PEER_GONE, ERR_PRIVILEGE (mark)
 */
export async function dial(options: DialOptions): Promise<Channel> {
  const hosts = typeof options.host === 'string' ? [options.host] : options.host;
  const [firstHost] = hosts;
  if (firstHost === undefined) throw new VpnError('ERR_CONFIG_VALUE', 'expected at least one host to connect to');
  const serverName = (options.serverName ?? firstHost).toLowerCase();
  const verifyServer = options.verifyServer ?? true;
  const log = options.log.child({ component: 'dial' });
  if (!verifyServer) log.warn('the server is NOT verified: anyone on the way can be it', { serverName });
  const tlsOptions = clientTlsOptions(options, verifyServer, options.minVersion ?? '1.3');

  const deadline = new Deadline(options.timeoutMs ?? TIMEOUT_MS, options.signal);
  try {
    const addresses = await deadline.race(resolveHosts(hosts, options.lookup ?? lookupAll));
    const raw = await connectFirst(addresses, options.port, options.mark, deadline);
    tune(raw, log);
    deadline.stage = 'tls';
    const socket = connectTls({
      ...tlsOptions,
      socket: raw,
      // Server Name Indication is for names only; the certificate is checked against an address all the same.
      ...(isIP(serverName) === 0 ? { servername: serverName } : { host: serverName, servername: '' }),
      ALPNProtocols: tunnelProtocols(options.worker),
    });
    return await secure(socket, raw, { ...options, verifyServer }, deadline);
  } finally {
    deadline.clear();
  }
}

/** One end for a dial, whichever stage it is in. */
class Deadline {
  stage: 'tcp' | 'tls' = 'tcp';
  readonly #failed = Promise.withResolvers<never>();
  readonly #timer: NodeJS.Timeout;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort = (): void => this.#failed.reject(new VpnError('ERR_CONNECT', 'connecting was called off'));

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

async function lookupAll(host: string): Promise<readonly string[]> {
  const found = await systemLookup(host, { all: true, order: 'verbatim' });
  return found.map(({ address }) => address);
}

async function resolveHosts(
  hosts: readonly string[],
  lookup: (host: string) => Promise<readonly string[]>,
): Promise<readonly string[]> {
  const failures: string[] = [];
  const resolved = await Promise.all(
    hosts.map(async (host) => {
      if (isIP(host) !== 0) return [host];
      try {
        return alternateFamilies(await lookup(host));
      } catch (cause) {
        const errno = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
        failures.push(`${host}: ${errno}`);
        return [];
      }
    }),
  );
  const addresses = [...new Set(resolved.flat())];
  if (addresses.length > 0) return addresses;
  throw new VpnError('ERR_NAME_LOOKUP', `no address found (${failures.join('; ') || hosts.join(', ')})`, {
    details: { host: hosts[0] },
  });
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

/** Starts an attempt every 250 ms, or as soon as one fails; the first that connects wins, the others are cut. */
async function connectFirst(
  addresses: readonly string[],
  port: number,
  mark: number | undefined,
  deadline: Deadline,
): Promise<Socket> {
  const winner = Promise.withResolvers<Socket>();
  const open = new Set<Socket>();
  const failures: { address: string; errno: string }[] = [];
  let next = 0;
  let delay: NodeJS.Timeout | undefined;
  let isOver = false;

  const attempt = (): void => {
    clearTimeout(delay);
    const address = addresses[next];
    if (address === undefined || isOver) return;
    next += 1;
    if (next < addresses.length) delay = setTimeout(attempt, ATTEMPT_DELAY_MS);
    const socket = connectTo(address, port, mark);
    open.add(socket);
    socket.once('connect', () => winner.resolve(socket));
    socket.on('error', (error: NodeJS.ErrnoException) => {
      open.delete(socket);
      failures.push({ address, errno: error.code ?? error.message });
      if (failures.length === addresses.length) winner.reject(connectError(failures, port));
      else attempt();
    });
  };

  attempt();
  try {
    const socket = await deadline.race(winner.promise);
    open.delete(socket);
    return socket;
  } finally {
    isOver = true;
    clearTimeout(delay);
    for (const loser of open) loser.destroy();
  }
}

function connectTo(address: string, port: number, mark: number | undefined): Socket {
  const target = { host: address, port, noDelay: true, autoSelectFamily: false };
  if (mark === undefined) return connectTcp(target);
  return openMarkedSocket(isIP(address) === 6 ? 6 : 4, mark).connect(target);
}

function connectError(failures: readonly { address: string; errno: string }[], port: number): VpnError {
  const list = failures.map(({ address, errno }) => `${address}: ${errno}`).join('; ');
  const code = failures.every(({ errno }) => errno === 'ETIMEDOUT') ? 'ERR_CONNECT_TIMEOUT' : 'ERR_CONNECT';
  return new VpnError(code, `cannot connect to port ${port} (${list})`, {
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
}

async function secure(socket: TLSSocket, raw: Socket, options: SecureOptions, deadline: Deadline): Promise<Channel> {
  const result = Promise.withResolvers<Channel>();
  const onError = (error: Error): void => result.reject(translateTlsError(error, 'ERR_TLS_HANDSHAKE'));
  const onClose = (): void => {
    result.reject(new VpnError('ERR_PEER_GONE', 'the server closed the connection during the TLS handshake'));
  };
  socket.on('error', onError);
  socket.once('close', onClose);
  // Everything happens in this one event: no byte may be read before the checks are done and somebody takes the socket.
  socket.once('secureConnect', () => {
    try {
      checkServer(socket, options);
      result.resolve(openChannel(socket, raw, options));
    } catch (error) {
      result.reject(toVpnError(error));
    }
  });
  try {
    const channel = await deadline.race(result.promise);
    socket.off('error', onError);
    return channel;
  } catch (error) {
    socket.destroy();
    raw.destroy();
    throw error;
  } finally {
    socket.off('close', onClose);
  }
}

function checkServer(socket: TLSSocket, options: SecureOptions): void {
  const error = checkHandshake(socket);
  if (error !== undefined) throw error;
  const { alpnProtocol } = socket;
  if (typeof alpnProtocol !== 'string' || !isTunnelProtocol(alpnProtocol)) {
    throw new VpnError('ERR_TLS_ALPN', 'the server speaks TLS but not customvpn/1; is this the right host and port?');
  }
  if (!options.verifyServer) return;
  if (!socket.authorized) {
    throw translateTlsError(socket.authorizationError, 'ERR_CERT_UNTRUSTED');
  }
  const { pins = [] } = options;
  if (pins.length === 0 || isPinned(socket.getPeerCertificate(true), pins)) return;
  throw new VpnError(
    'ERR_CERT_PIN',
    'no key in the chain of the server is one that the profile pins; is someone in between, or is the profile old?',
    { details: { serverName: options.serverName } },
  );
}

function openChannel(socket: TLSSocket, raw: Socket, options: SecureOptions): Channel {
  const leaf: X509Certificate | undefined = socket.getPeerX509Certificate();
  if (leaf === undefined) throw new VpnError('ERR_TLS_HANDSHAKE', 'the server showed no certificate');
  const ends = { local: localEnd(raw), remote: remoteEnd(raw), serverId: keyHash(leaf) };
  const facts = readFacts(socket, { ...ends, authorized: options.verifyServer });
  return new Channel(socket, { facts, dataQueueBytes: options.dataQueueBytes, queues: options.queues });
}
