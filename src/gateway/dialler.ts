/**
 * Makes the connections that clients ask a gateway for as their proxy.
 *
 * Hides names, addresses and the order of attempts. A name is resolved here; each of its addresses is judged by the policy,
 * and a connection is made to one that has passed, never to the name again: what a resolver says later changes nothing. It
 * must not know who asked, but for the user, nor by which protocol.
 */

import { createSocket, type Socket as DatagramSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { readFile } from 'node:fs/promises';
import { connect, isIP, isIPv6, type NetConnectOpts, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { formatIp, type IpAddress, parseIp } from '../ip/address.ts';
import type { StreamRefusal } from '../transport/stream-request.ts';
import type { GatewayConfig } from './config.ts';
import type { DialPort, DialRequest, DialVerdict, ProxyKey } from './ipc/ports.ts';
import { type StreamJudge, type StreamPolicy, streamPolicy } from './stream-policy.ts';

/** RFC 8305 §8. */
const ATTEMPT_DELAY_MS = 250;
const LOOKUP_MS = 2000;
const LOOKUP_TRIES = 2;
const MAX_ADDRESSES = 16;
/** Connections that are being made for one user. */
const MAX_PENDING = 1024;
const HOSTS_FILE = '/etc/hosts';
const OWN_ADDRESSES_MS = 1000;
/** In bytes, for each direction. */
const HIGH_WATER_MARK = 256 * 1024;

/** What a dialler needs of the machine. */
export interface DialNetwork {
  /** The addresses of a name, the preferred first; none: there is no such name. */
  resolve(name: string): Promise<readonly string[]>;
  /** Begins a connection to the first of these addresses that answers. */
  connect(addresses: readonly string[], port: number): Socket;
  /** A socket for datagrams to and from there; resolves when it is one. */
  connectUdp(address: string, port: number): Promise<DatagramSocket>;
  /** Whether this host has the address. */
  isOwn(address: IpAddress): boolean;
}

export interface DiallerOptions {
  readonly network: DialNetwork;
  /** Whose key it is; undefined: nobody's any more. */
  userOf(key: ProxyKey): string | undefined;
  /** In force at the moment. */
  config(): GatewayConfig;
  /** What the policy file says. Default: there is none. */
  readonly judge?: StreamJudge;
}

export class Dialler implements DialPort {
  readonly #options: DiallerOptions;
  readonly #pending = new Map<string, number>();
  #config: GatewayConfig | undefined;
  #policy: StreamPolicy = { allows: () => false };

  constructor(options: DiallerOptions) {
    this.#options = options;
  }

  async dialTcp(request: DialRequest): Promise<DialVerdict<Socket>> {
    return await this.#dial(request, async (addresses, signal) => {
      const socket = this.#options.network.connect(addresses, request.target.port);
      const { promise, resolve } = Promise.withResolvers<DialVerdict<Socket>>();
      const onError = (error: NodeJS.ErrnoException): void => resolve({ refused: refusalOf(error) });
      const onAbort = (): void => resolve({ refused: 'connection_timeout' });
      signal.addEventListener('abort', onAbort, { once: true });
      socket.once('error', onError);
      socket.once('connect', () => resolve({ socket, address: socket.remoteAddress ?? addresses[0] ?? '' }));
      const verdict = await promise;
      signal.removeEventListener('abort', onAbort);
      if ('refused' in verdict) {
        socket.on('error', ignore);
        socket.destroy();
      } else {
        socket.off('error', onError);
        // Whoever gets it may hear of an error a turn later.
        socket.on('error', ignore);
      }
      return verdict;
    });
  }

  async dialUdp(request: DialRequest): Promise<DialVerdict<DatagramSocket>> {
    return await this.#dial(request, async ([address = ''], signal) => {
      const socket = await this.#options.network.connectUdp(address, request.target.port);
      if (!signal.aborted) return { socket, address };
      socket.close();
      return { refused: 'connection_timeout' };
    });
  }

  async isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
    const user = this.#options.userOf(key);
    return user !== undefined && this.#policyInForce().allows({ key, kind, address: parseIp(address), port });
  }

  #policyInForce(): StreamPolicy {
    const config = this.#options.config();
    if (config !== this.#config) {
      this.#config = config;
      this.#policy = streamPolicy(config, (address) => this.#options.network.isOwn(address), this.#options.judge);
    }
    return this.#policy;
  }

  async #dial<S>(
    { key, kind, target: { host, port } }: DialRequest,
    open: (addresses: readonly string[], signal: AbortSignal) => Promise<DialVerdict<S>>,
  ): Promise<DialVerdict<S>> {
    const user = this.#options.userOf(key);
    if (user === undefined) return { refused: 'http_request_denied' };
    const pending = this.#pending.get(user) ?? 0;
    if (pending >= MAX_PENDING) return { refused: 'connection_limit_reached' };
    this.#pending.set(user, pending + 1);
    const deadline = new AbortController();
    const timer = setTimeout(() => deadline.abort(), this.#options.config().proxy.dialSeconds * 1000);
    try {
      const found = await this.#addressesOf(host, deadline.signal);
      if ('refused' in found) return found;
      const policy = this.#policyInForce();
      const allowed = found.addresses.filter((address) => policy.allows({ key, kind, address, port }));
      if (allowed.length === 0) return { refused: 'destination_ip_prohibited' };
      return await open(allowed.map(formatIp), deadline.signal);
    } catch (error) {
      return { refused: refusalOf(error) };
    } finally {
      clearTimeout(timer);
      const left = (this.#pending.get(user) ?? 1) - 1;
      if (left === 0) this.#pending.delete(user);
      else this.#pending.set(user, left);
    }
  }

  async #addressesOf(
    host: string,
    signal: AbortSignal,
  ): Promise<{ addresses: readonly IpAddress[] } | { refused: StreamRefusal }> {
    if (isIP(host) !== 0) return { addresses: readAddresses([host]) };
    const late = Promise.withResolvers<undefined>();
    signal.addEventListener('abort', () => late.resolve(undefined), { once: true });
    const addresses = await Promise.race([this.#options.network.resolve(host), late.promise]);
    if (addresses === undefined) return { refused: 'dns_timeout' };
    if (addresses.length === 0) return { refused: 'dns_error' };
    return { addresses: readAddresses(addresses.slice(0, MAX_ADDRESSES)) };
  }
}

/** Without those that are never a destination: with a zone, or IPv4 mapped into IPv6. */
function readAddresses(texts: readonly string[]): IpAddress[] {
  return texts.flatMap((text) => {
    try {
      return [parseIp(text)];
    } catch {
      return [];
    }
  });
}

function refusalOf(error: unknown): StreamRefusal {
  const errors: unknown[] = error instanceof AggregateError ? error.errors : [error];
  const codes = errors.map((one) => (one instanceof Error && 'code' in one ? String(one.code) : ''));
  const has = (...names: string[]): boolean => codes.some((code) => names.includes(code));
  if (has('ECONNREFUSED', 'ECONNRESET')) return 'connection_refused';
  if (has('ETIMEDOUT')) return 'connection_timeout';
  if (has('ETIMEOUT')) return 'dns_timeout';
  if (has('EHOSTUNREACH', 'ENETUNREACH', 'EADDRNOTAVAIL', 'EACCES', 'EPERM', 'EHOSTDOWN', 'ENETDOWN', 'EAFNOSUPPORT')) {
    return 'destination_ip_unroutable';
  }
  if (has('ENOTFOUND', 'ENODATA', 'ESERVFAIL', 'EREFUSED', 'EBADNAME', 'EBADRESP', 'EFORMERR')) return 'dns_error';
  return 'proxy_internal_error';
}

/** This machine's own network. */
export class HostDialNetwork implements DialNetwork {
  readonly #isRead: boolean;
  #own = new Set<string>();
  #ownAt = Number.NEGATIVE_INFINITY;

  /** @param options.isRead whether connections are read here, or only made for another process. Default true. */
  constructor({ isRead = true }: { isRead?: boolean } = {}) {
    this.#isRead = isRead;
  }

  /** The hosts file first, then its name servers: asynchronously, so that a dead one holds up nobody else. */
  async resolve(name: string): Promise<readonly string[]> {
    const listed = await hostsOf(name);
    if (listed.length > 0) return listed;
    const resolver = new Resolver({ timeout: LOOKUP_MS, tries: LOOKUP_TRIES });
    const [six, four] = await Promise.allSettled([resolver.resolve6(name), resolver.resolve4(name)]);
    const found = [six, four].flatMap((one) => (one.status === 'fulfilled' ? one.value : []));
    if (found.length === 0 && four.status === 'rejected') throw four.reason;
    return found;
  }

  connect(addresses: readonly string[], port: number): Socket {
    const options: NetConnectOpts & { highWaterMark: number } = {
      // All addresses are known; the name is only what Node asks `lookup` for.
      host: addresses.length === 1 ? (addresses[0] ?? '') : 'checked.invalid',
      port,
      noDelay: true,
      allowHalfOpen: true,
      autoSelectFamily: true,
      autoSelectFamilyAttemptTimeout: ATTEMPT_DELAY_MS,
      lookup: (_host, _options, callback) =>
        callback(
          null,
          addresses.map((address) => ({ address, family: isIPv6(address) ? 6 : 4 })),
        ),
      highWaterMark: HIGH_WATER_MARK,
    };
    const socket = connect(options);
    // What is read before somebody else has the connection would be lost to them.
    if (!this.#isRead) socket.pause();
    return socket;
  }

  async connectUdp(address: string, port: number): Promise<DatagramSocket> {
    const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    socket.once('error', reject);
    socket.connect(port, address, resolve);
    try {
      await promise;
    } catch (error) {
      socket.close();
      throw error;
    }
    socket.off('error', reject);
    return socket;
  }

  isOwn(address: IpAddress): boolean {
    const now = performance.now();
    if (now - this.#ownAt > OWN_ADDRESSES_MS) {
      this.#ownAt = now;
      const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
      this.#own = new Set(all.map((one) => formatIp(parseIp(one.address.replace(/%.*$/, '')))));
    }
    return this.#own.has(formatIp(address));
  }
}

async function hostsOf(name: string): Promise<string[]> {
  const text = await readFile(HOSTS_FILE, 'utf8').catch(() => '');
  const wanted = name.toLowerCase().replace(/\.$/, '');
  return text.split('\n').flatMap((line) => {
    const [address = '', ...names] = line.replace(/#.*/, '').trim().split(/\s+/);
    return isIP(address) !== 0 && names.some((one) => one.toLowerCase() === wanted) ? [address] : [];
  });
}

function ignore(): void {}
