/**
 * Names what stands between a client and its gateway, when a connection failed in a way that an obstacle makes.
 *
 * Hides how a captive portal gives itself away (it answers for the gateway in plain HTTP, and sends people elsewhere), and how TLS
 * that is read on the way does (a certificate by somebody who is not the gateway's authority). Nothing is asked of third parties.
 *
 * @see RFC 6585 §6 (511), RFC 8952
 */

import { isIP, type Socket } from 'node:net';
import { VpnError } from '../base/errors.ts';
import { openTcp } from '../transport/dial.ts';

const PORTAL_PORT = 80;
const PORTAL_TIMEOUT_MS = 2500;
const MAX_HEAD_BYTES = 8 * 1024;
/** Failures that a portal makes: it answers itself, drops, or refuses. */
const PORTAL_CODES = /^ERR_(CERT_|TLS_|NOT_TLS|STAGE_TIMEOUT|CONNECT|PEER_GONE)/;
/** As our own authorities are called. */
const OWN_AUTHORITY = /CN=CustomVPN CA /;

/** Whom the connection was meant for. */
export interface ObstacleTarget {
  readonly hosts: readonly string[];
  readonly serverName: string;
  /** Whether the profile says who has to have signed: then anybody else is out of place. */
  readonly hasAuthority: boolean;
  readonly mark?: number;
  readonly lookup: (host: string) => Promise<readonly string[]>;
}

/** The same failure, or a better name for it. Takes three seconds at most; never throws. */
export async function nameObstacle(error: VpnError, target: ObstacleTarget): Promise<VpnError> {
  if (error.kind !== 'transport' || !PORTAL_CODES.test(error.code)) return error;
  const portal = await findPortal(target).catch(() => undefined);
  if (portal !== undefined) {
    return new VpnError(
      'ERR_CAPTIVE_PORTAL',
      `this network wants a login before it lets anything through; open ${portal} in a browser, and the client goes on by itself`,
      { cause: error, details: { portal } },
    );
  }
  return nameSigner(error, target);
}

/** Who else's certificate that was. */
function nameSigner(error: VpnError, { serverName, hasAuthority }: ObstacleTarget): VpnError {
  const { issuer, subject } = error.details;
  if (!hasAuthority || typeof issuer !== 'string') return error;
  if (error.code !== 'ERR_CERT_UNTRUSTED' && error.code !== 'ERR_CERT_PIN') return error;
  if (OWN_AUTHORITY.test(issuer)) {
    return new VpnError(
      error.code,
      `a CustomVPN gateway answers for ${serverName}, but not the one of this profile: its authority is "${issuer}". ` +
        'It was set up anew, or the profile is for another server; ask for a new profile',
      { cause: error, details: error.details },
    );
  }
  return new VpnError(
    'ERR_TLS_INTERCEPTED',
    `somebody between here and ${serverName} answers in its place: the certificate is of "${subject}", signed by "${issuer}", ` +
      "and not by the gateway's authority. A company's network may read TLS like that: ask for an exception, or use another network",
    { cause: error, details: error.details },
  );
}

/** Where a portal sends people who ask the gateway for a page; undefined: there is none. */
async function findPortal({ hosts, mark, lookup }: ObstacleTarget): Promise<string | undefined> {
  const [host] = hosts;
  if (host === undefined) return undefined;
  const signal = AbortSignal.timeout(PORTAL_TIMEOUT_MS);
  const [address] = isIP(host) === 0 ? await lookup(host) : [host];
  if (address === undefined) return undefined;
  const socket = await openTcp(address, PORTAL_PORT, mark, signal);
  try {
    const name = host.includes(':') ? `[${host}]` : host;
    socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\nUser-Agent: customvpn\r\nConnection: close\r\n\r\n`);
    return portalIn(await headOf(socket, signal), hosts);
  } finally {
    socket.destroy();
  }
}

async function headOf(socket: Socket, signal: AbortSignal): Promise<string> {
  let text = '';
  const stop = (): void => void socket.destroy();
  signal.addEventListener('abort', stop, { once: true });
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      text += chunk.toString('latin1');
      if (text.includes('\r\n\r\n') || text.length > MAX_HEAD_BYTES) break;
    }
  } catch {
    // What has come until then is judged.
  } finally {
    signal.removeEventListener('abort', stop);
  }
  return text;
}

/**
 * Whether the head of an answer is a portal's: it says so (511), or sends whoever asks for one of `hosts` to another host. A web
 * server of the gateway's own may answer there, too, and send to itself.
 */
export function portalIn(head: string, hosts: readonly string[]): string | undefined {
  const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(head)?.[1]);
  const location = /^location:[ \t]*([\x21-\x7e]{1,500})[ \t]*$/im.exec(head)?.[1];
  const url = location === undefined || !URL.canParse(location) ? undefined : new URL(location);
  const page = url !== undefined && /^https?:$/.test(url.protocol) ? url : undefined;
  if (status === 511) return page?.href ?? `http://${hosts[0] ?? ''}/`;
  if (!(status >= 300 && status < 400) || page === undefined) return undefined;
  const name = page.hostname.replace(/^\[|\]$/g, '').toLowerCase();
  return hosts.some((host) => host.toLowerCase() === name || `www.${host.toLowerCase()}` === name)
    ? undefined
    : page.href;
}
