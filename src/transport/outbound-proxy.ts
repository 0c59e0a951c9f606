/**
 * Proxies that stand between a client and the world: HTTP CONNECT, in the clear or within TLS, and SOCKS 5.
 *
 * Hides their URLs, the environment's variables, and what is said to them until the connection is the server's own. Names are
 * left to the proxy to resolve. A password goes to the proxy only, never into an error. It must not know what is said through it.
 *
 * @see RFC 9110 §9.3.6, RFC 7617, RFC 1928, RFC 1929
 */

import { isIP, type Socket } from 'node:net';
import { connect as connectTls, getCACertificates } from 'node:tls';
import { VpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import { parseIp, parsePrefix, prefixContains } from '../ip/address.ts';

const MAX_ANSWER_BYTES = 16 * 1024;
const MAX_SOCKS_STRING_BYTES = 255;

export interface OutboundProxy {
  readonly kind: 'http' | 'https' | 'socks5';
  readonly host: string;
  readonly port: number;
  readonly user?: string;
  readonly password?: Secret<string>;
}

const SCHEMES: ReadonlyMap<string, OutboundProxy['kind']> = new Map([
  ['http:', 'http'],
  ['https:', 'https'],
  ['socks5:', 'socks5'],
  ['socks5h:', 'socks5'],
  ['socks:', 'socks5'],
]);
const DEFAULT_PORTS = { http: 80, https: 443, socks5: 1080 } as const;
const KIND_WORDS = { http: 'HTTP', https: 'HTTPS', socks5: 'SOCKS' } as const;

/** The proxy on the way to a host, if any. */
export type ChooseProxy = (host: string, port: number) => OutboundProxy | undefined;

/**
 * Reads `http://[user:password@]host[:port]`, `https://…` or `socks5://…`; without a scheme it is HTTP.
 *
 * @param source what messages call it; they never repeat the URL
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function parseProxyUrl(text: string, source: string): OutboundProxy {
  const failure = (why: string) => new VpnError('ERR_CONFIG_VALUE', `${source}: ${why}`, { details: { source } });
  let url: URL;
  try {
    url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`);
  } catch {
    throw failure('expected the URL of a proxy, such as http://proxy.example.org:3128 or socks5://127.0.0.1:1080');
  }
  const kind = SCHEMES.get(url.protocol);
  if (kind === undefined) {
    throw failure(`proxies of kind ${url.protocol.slice(0, -1)} are not spoken; there are http, https and socks5`);
  }
  const host = url.hostname.replace(/^\[|\]$/g, '');
  if (host === '' || (url.pathname !== '' && url.pathname !== '/')) throw failure('expected a host and no path');
  const port = url.port === '' ? DEFAULT_PORTS[kind] : Number(url.port);
  let credentials: { user?: string; password?: Secret<string> } = {};
  try {
    if (url.username !== '') {
      credentials = {
        user: decodeURIComponent(url.username),
        password: new Secret(decodeURIComponent(url.password)),
      };
    }
  } catch {
    throw failure('user or password are not percent-encoded as a URL needs it');
  }
  return { kind, host, port, ...credentials };
}

/**
 * The environment's proxy for a host: `HTTPS_PROXY`, else `ALL_PROXY`, but for what `NO_PROXY` names; lower case goes first.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function proxiesOfEnvironment(env: NodeJS.ProcessEnv): ChooseProxy {
  const variable = (name: string) => env[name.toLowerCase()] || env[name] || undefined;
  const name = variable('HTTPS_PROXY') === undefined ? 'ALL_PROXY' : 'HTTPS_PROXY';
  const text = variable(name);
  if (text === undefined) return () => undefined;
  const proxy = parseProxyUrl(text, `the environment variable ${name}`);
  const exceptions = (variable('NO_PROXY') ?? '').split(/[\s,]+/).filter((entry) => entry !== '');
  return (host, port) => (exceptions.some((entry) => isException(entry, host, port)) ? undefined : proxy);
}

/** Whether an entry of `NO_PROXY` is for this host: `*`, a domain with all below it, an address or a network, each with a port or not. */
export function isException(entry: string, host: string, port: number): boolean {
  if (entry === '*') return true;
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(entry);
  const withPort = bracketed ?? (entry.split(':').length === 2 ? /^([^:]+):(\d+)$/.exec(entry) : null);
  const what = withPort?.[1] ?? entry;
  if (withPort?.[2] !== undefined && Number(withPort[2]) !== port) return false;
  try {
    if (what.includes('/')) return isIP(host) !== 0 && prefixContains(parsePrefix(what), parseIp(host));
    if (isIP(what) !== 0) return isIP(host) !== 0 && same(parseIp(what).bytes, parseIp(host).bytes);
  } catch {
    return false;
  }
  const domain = what.toLowerCase().replace(/^\*?\.+/, '');
  const name = host.toLowerCase().replace(/\.$/, '');
  return domain !== '' && (name === domain || name.endsWith(`.${domain}`));
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/**
 * Has a proxy connect to a host. What is returned is the host's: nothing has been read of what it says. It is `socket`, or,
 * where the proxy is spoken to in TLS, a connection within it.
 *
 * @param ca authorities that may have signed the proxy's certificate; default those of Node and of the system
 * @throws {VpnError} ERR_PROXY, ERR_PROXY_AUTH, ERR_PEER_GONE
 */
export async function connectThrough(
  socket: Socket,
  proxy: OutboundProxy,
  host: string,
  port: number,
  ca?: readonly string[],
): Promise<Socket> {
  const carrier = proxy.kind === 'https' ? await secured(socket, proxy, ca) : socket;
  if (proxy.kind === 'socks5') await connectSocks(carrier, proxy, host, port);
  else await connectHttp(carrier, proxy, host, port);
  return carrier;
}

/** TLS to a proxy, which is told the user's password: so its certificate is checked, whatever is thought of the server's. */
async function secured(socket: Socket, proxy: OutboundProxy, ca: readonly string[] | undefined): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const { host } = proxy;
  const name = isIP(host) === 0 ? { servername: host } : { host, servername: '' };
  const authorities = ca ?? [...getCACertificates('default'), ...getCACertificates('system')];
  const carrier = connectTls({
    socket,
    ca: [...authorities],
    ALPNProtocols: ['http/1.1'],
    minVersion: 'TLSv1.2',
    ...name,
  });
  const fail = (error: Error): void => {
    const why = 'code' in error && typeof error.code === 'string' ? `${error.message} (${error.code})` : error.message;
    reject(new VpnError('ERR_PROXY', `no TLS with ${describeProxy(proxy)}: ${why}`, { cause: error }));
  };
  const end = (): void => reject(new VpnError('ERR_PEER_GONE', `${describeProxy(proxy)} ended the connection`));
  carrier.once('secureConnect', resolve).on('error', fail).once('close', end);
  try {
    await promise;
    return carrier;
  } catch (error) {
    carrier.destroy();
    throw error;
  } finally {
    carrier.off('close', end);
  }
}

async function connectHttp(socket: Socket, proxy: OutboundProxy, host: string, port: number): Promise<void> {
  const target = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
  const { user, password } = proxy;
  const lines = [
    `CONNECT ${target} HTTP/1.1`,
    `Host: ${target}`,
    'User-Agent: customvpn',
    'Proxy-Connection: keep-alive',
  ];
  if (user !== undefined) {
    const pair = Buffer.from(`${user}:${password?.reveal() ?? ''}`).toString('base64');
    lines.push(`Proxy-Authorization: Basic ${pair}`);
  }
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  const head = await readFrom(socket, proxy, (bytes) => {
    const end = bytes.indexOf('\r\n\r\n');
    if (end < 0) return undefined;
    // A refusal may have a page behind it.
    return /^HTTP\/1\.[01] 2/.test(bytes.toString('latin1', 0, 12)) ? end + 4 : bytes.length;
  });
  const text = head.toString('latin1');
  const [, code = '', reason = ''] = /^HTTP\/1\.[01] (\d{3})(?: ([^\r\n]*))?/.exec(text) ?? [];
  if (/^2\d\d$/.test(code)) return;
  const where = describeProxy(proxy);
  if (code === '') throw new VpnError('ERR_PROXY', `${where} does not speak HTTP; is it a proxy of another kind?`);
  // Some say 401, which is a server's word: but no server has been asked anything yet.
  if (code === '407' || code === '401') {
    const schemes = [...text.matchAll(/^(?:proxy|www)-authenticate: *([A-Za-z]+)/gim)]
      .map(([, scheme]) => scheme)
      .join(', ');
    throw new VpnError(
      'ERR_PROXY_AUTH',
      user === undefined
        ? `${where} wants a user and password (${schemes || 'it does not say how'}); give them in its URL: http://user:password@host:port`
        : `${where} refuses this user and password (it knows: ${schemes || 'nothing it says'}; of these Basic is spoken)`,
    );
  }
  throw new VpnError('ERR_PROXY', `${where} answered ${code} ${printable(reason)} to a connection to ${target}`, {
    details: { status: Number(code) },
  });
}

const SOCKS_FAILURES: Readonly<Record<number, string>> = {
  1: 'a general failure',
  2: 'not allowed by its rules',
  3: 'network unreachable',
  4: 'host unreachable',
  5: 'connection refused',
  6: 'time ran out',
  7: 'it does not know CONNECT',
  8: 'it does not know this kind of address',
};

async function connectSocks(socket: Socket, proxy: OutboundProxy, host: string, port: number): Promise<void> {
  const where = describeProxy(proxy);
  const { user, password } = proxy;
  socket.write(Uint8Array.from(user === undefined ? [5, 1, 0] : [5, 2, 0, 2]));
  const [version, method] = await readFrom(socket, proxy, (bytes) => (bytes.length < 2 ? undefined : 2));
  if (version !== 5) throw new VpnError('ERR_PROXY', `${where} does not speak SOCKS 5; is it a proxy of another kind?`);
  if (method === 2 && user !== undefined) {
    const pair = [user, password?.reveal() ?? ''].map((text) => Buffer.from(text));
    if (pair.some(({ length }) => length === 0 || length > MAX_SOCKS_STRING_BYTES)) {
      throw new VpnError('ERR_PROXY_AUTH', `${where} takes user and password of 1 to 255 bytes`);
    }
    socket.write(Buffer.concat([Buffer.of(1), ...pair.flatMap((text) => [Buffer.of(text.length), text])]));
    const [, status] = await readFrom(socket, proxy, (bytes) => (bytes.length < 2 ? undefined : 2));
    if (status !== 0) throw new VpnError('ERR_PROXY_AUTH', `${where} refuses this user and password`);
  } else if (method !== 0) {
    throw new VpnError(
      'ERR_PROXY_AUTH',
      `${where} wants ${user === undefined ? 'a user and password; give them in its URL: socks5://user:password@host:port' : 'another way of proving who asks than a password'}`,
    );
  }
  const family = isIP(host);
  const name = Buffer.from(host);
  if (family === 0 && name.length > MAX_SOCKS_STRING_BYTES) {
    throw new VpnError('ERR_PROXY', `${where} takes names of at most 255 bytes`);
  }
  const address =
    family === 0
      ? Buffer.concat([Buffer.of(3, name.length), name])
      : Buffer.concat([Buffer.of(family === 4 ? 1 : 4), parseIp(host).bytes]);
  socket.write(Buffer.concat([Buffer.of(5, 1, 0), address, Buffer.of(port >> 8, port & 0xff)]));
  const reply = await readFrom(socket, proxy, socksReplyLength);
  if (reply[0] !== 5) throw new VpnError('ERR_PROXY', `${where} does not speak SOCKS 5`);
  if (reply[1] === 0) return;
  const why = SOCKS_FAILURES[reply[1] ?? 0] ?? `failure ${reply[1]}`;
  throw new VpnError('ERR_PROXY', `${where} cannot connect to ${host} port ${port}: ${why}`, {
    details: { status: reply[1] },
  });
}

function socksReplyLength(bytes: Buffer): number | undefined {
  if (bytes.length < 5) return undefined;
  if (bytes[1] !== 0) return bytes.length;
  const length = bytes[3] === 1 ? 10 : bytes[3] === 4 ? 22 : 7 + (bytes[4] ?? 0);
  return bytes.length < length ? undefined : length;
}

/** Reads until `enough` tells the length of the answer. The server waits for us, so nothing may follow it. */
async function readFrom(
  socket: Socket,
  proxy: OutboundProxy,
  enough: (bytes: Buffer) => number | undefined,
): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  let bytes = Buffer.alloc(0);
  const where = describeProxy(proxy);
  const take = (): void => {
    for (let chunk: unknown = socket.read(); chunk !== null; chunk = socket.read()) {
      bytes = Buffer.concat([bytes, chunk as Buffer]);
      const length = enough(bytes);
      if (length === undefined && bytes.length <= MAX_ANSWER_BYTES) continue;
      if (length === bytes.length) resolve(bytes);
      else reject(new VpnError('ERR_PROXY', `${where} says more than a proxy has to say`));
      return;
    }
  };
  const fail = (error?: Error): void =>
    reject(
      new VpnError('ERR_PEER_GONE', `${where} ended the connection${error === undefined ? '' : `: ${error.message}`}`),
    );
  const end = (): void => fail();
  socket.on('readable', take).on('error', fail).on('end', end).on('close', end);
  try {
    take();
    return await promise;
  } finally {
    socket.off('readable', take).off('error', fail).off('end', end).off('close', end);
  }
}

function describeProxy({ kind, host, port }: OutboundProxy): string {
  return `the ${KIND_WORDS[kind]} proxy ${host.includes(':') ? `[${host}]` : host}:${port}`;
}

function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?').slice(0, 100);
}
