/**
 * A tunnel that looks like a web server's connection: HTTP/1.1 until the server has switched to ours.
 *
 * Hides what is said: `GET` of a secret path with `Upgrade: customvpn/1` for a tunnel, or `customvpn-streams/1` for streams,
 * answered with 101 and, from there on, with the frames of that protocol. Whoever does not know the path gets what the front door gives to everybody, after the same work: the path is
 * compared by its hash, in constant time, for every request.
 *
 * @see docs/protocol.md §1, RFC 9110 §7.8
 */

import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { VpnError } from '../base/errors.ts';

const MAX_ANSWER_BYTES = 8 * 1024;

/** Which of these protocols a request at the right path asks to switch to. As much work for every request. */
export function upgradeOf(
  { method, url = '', headers }: IncomingMessage,
  path: string,
  protocols: readonly string[],
): string | undefined {
  const isPath = timingSafeEqual(hash(url), hash(path));
  const wanted = headers.upgrade?.toLowerCase();
  const protocol = method === 'GET' ? protocols.find((one) => one === wanted) : undefined;
  return isPath ? protocol : undefined;
}

function hash(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** Says yes. What comes after it is that protocol. */
export function acceptUpgrade(socket: TLSSocket, protocol: string): void {
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`);
}

/**
 * Asks a server to switch to a protocol. Then the socket speaks that; what has come of it already is back in the socket.
 *
 * @throws {VpnError} ERR_UPGRADE when the server has no tunnel there; ERR_PEER_GONE
 */
export async function askForUpgrade(socket: TLSSocket, host: string, path: string, protocol: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let bytes = Buffer.alloc(0);
  const take = (): void => {
    for (let chunk: unknown = socket.read(); chunk !== null; chunk = socket.read()) {
      bytes = Buffer.concat([bytes, chunk as Buffer]);
    }
    const end = bytes.indexOf('\r\n\r\n');
    if (end < 0 && bytes.length <= MAX_ANSWER_BYTES) return;
    const status = /^HTTP\/1\.1 (\d{3})/.exec(bytes.toString('latin1', 0, 16))?.[1];
    if (end < 0 || status !== '101') reject(refused(status));
    else {
      // Off first: what is put back would come here again.
      stop();
      if (bytes.length > end + 4) socket.unshift(bytes.subarray(end + 4));
      resolve();
    }
  };
  const gone = (): void =>
    reject(new VpnError('ERR_PEER_GONE', 'the server closed the connection and opened no tunnel'));
  const stop = (): void => {
    socket.off('readable', take).off('end', gone).off('close', gone).off('error', gone);
  };
  socket.on('readable', take).on('end', gone).on('close', gone).on('error', gone);
  const name = host.includes(':') ? `[${host}]` : host;
  const lines = [`GET ${path} HTTP/1.1`, `Host: ${name}`, 'Connection: Upgrade', `Upgrade: ${protocol}`];
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  try {
    await promise;
  } finally {
    stop();
  }
}

function refused(status: string | undefined): VpnError {
  return new VpnError(
    'ERR_UPGRADE',
    `the server answered ${status ?? 'something that is not HTTP'} where it should open a tunnel; is the secret path in the profile that of the gateway?`,
  );
}
