/**
 * Looks at a gateway from outside: is it there, what does its TLS look like, does it greet, how far is it.
 *
 * Needs no account. Nothing secret is sent, so the certificate may be one that this machine does not trust; whether it
 * would be trusted is part of the answer.
 */

import { type ErrorCode, isVpnError, VpnError } from '../base/errors.ts';
import { silentLogger } from '../base/log.ts';
import { encodeFrame, FrameDecoder, type FrameSink, FrameType, parseGreeting } from '../protocol/frame.ts';
import type { Channel } from '../transport/channel.ts';
import { type DialOptions, dial } from '../transport/dial.ts';

const ECHOES = 4;
const TIMEOUT_MS = 10_000;
const ECHO_BYTES = 16;

/** What a gateway shows to anyone. Times are milliseconds. */
export interface ProbeFacts {
  readonly server: string;
  readonly address: string;
  /** Name look-up, TCP and TLS. */
  readonly connectMs: number;
  readonly tls: { readonly protocol: string; readonly cipher: string; readonly group: string };
  readonly certificate: {
    readonly subject: string;
    readonly issuer: string;
    readonly notAfter: string;
    readonly pin: string;
    /** By this machine's own authorities; a gateway with its own CA is trusted through a profile. */
    readonly trusted: boolean;
    /** Why not, in words and as a code. */
    readonly reason?: string;
    readonly code?: ErrorCode;
  };
  readonly hello: string;
  /** The best of a few echoes. */
  readonly echoMs: number;
}

/** @throws {VpnError} ERR_NAME_LOOKUP, ERR_CONNECT, ERR_CONNECT_TIMEOUT, ERR_NOT_TLS, ERR_TLS_*, ERR_GREETING, ERR_STAGE_TIMEOUT */
export async function probe(host: string, port: number, options: Partial<DialOptions> = {}): Promise<ProbeFacts> {
  const { channel, connectMs, refusal } = await connect({ host, port, log: silentLogger, ...options });
  const { hello, echoMs } = await converse(channel)
    .catch((error: unknown) => {
      // Whoever is not trusted and does not even talk is not the gateway: who it is matters more.
      throw refusal ?? error;
    })
    .finally(() => channel.close());
  const { facts } = channel;
  const certificate = facts.peerCertificate;
  if (certificate === undefined) throw new VpnError('ERR_CERT_UNTRUSTED', 'the server showed no certificate');
  return {
    server: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
    address: facts.remote.address,
    connectMs,
    tls: { protocol: facts.protocol, cipher: facts.cipher, group: facts.group },
    certificate: {
      subject: certificate.name,
      issuer: certificate.issuer.replaceAll('\n', ', '),
      notAfter: new Date(certificate.notAfter).toISOString(),
      pin: certificate.pin,
      trusted: refusal === undefined,
      ...(refusal === undefined ? {} : { reason: refusal.message, code: refusal.code }),
    },
    hello,
    echoMs,
  };
}

async function connect(options: DialOptions): Promise<{ channel: Channel; connectMs: number; refusal?: VpnError }> {
  const open = async (verifyServer: boolean) => {
    const start = performance.now();
    const channel = await dial({ ...options, verifyServer, timeoutMs: TIMEOUT_MS });
    return { channel, connectMs: performance.now() - start };
  };
  try {
    return await open(true);
  } catch (error) {
    if (!isVpnError(error) || !error.code.startsWith('ERR_CERT_')) throw error;
    return { ...(await open(false)), refusal: error };
  }
}

/** Reads the greeting, then sends a few PINGs, which a gateway answers before any login. */
async function converse(channel: Channel): Promise<{ hello: string; echoMs: number }> {
  const done = Promise.withResolvers<{ hello: string; echoMs: number }>();
  let hello = '';
  let sentAt = 0;
  let left = ECHOES;
  let best = Number.POSITIVE_INFINITY;
  const ping = (): void => {
    sentAt = performance.now();
    channel.sendControl(encodeFrame(FrameType.ping, new Uint8Array(ECHO_BYTES)));
  };
  const sink: FrameSink = {
    target: new Uint8Array(0),
    targetOffset: 0,
    reserve: () => {},
    data: () => {},
    unknown: () => {},
    greeting: (line) => {
      parseGreeting(line);
      hello = new TextDecoder().decode(line).trim();
      ping();
    },
    control: (type) => {
      if (type !== FrameType.pong)
        throw new VpnError('ERR_FRAME_STATE', `frame type ${type} came where a PONG was expected`);
      best = Math.min(best, performance.now() - sentAt);
      left -= 1;
      if (left > 0) ping();
      else done.resolve({ hello, echoMs: best });
    },
  };
  const decoder = new FrameDecoder(sink, 'server');
  const timer = setTimeout(() => {
    done.reject(new VpnError('ERR_STAGE_TIMEOUT', `the server did not greet and answer within ${TIMEOUT_MS / 1000} s`));
  }, TIMEOUT_MS);
  channel.start({
    bytes: (chunk) => decoder.push(chunk),
    closed: (error) => done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the server closed the connection')),
  });
  return await done.promise.finally(() => clearTimeout(timer));
}
