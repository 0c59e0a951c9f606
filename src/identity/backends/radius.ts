/**
 * Accounts at RADIUS servers (RFC 2865, 2866, 2869, 5080): passwords, one-time codes by challenge, and accounting.
 *
 * Hides the packets. Passwords go by PAP: the gateway has them in clear, CHAP would make the server keep them so, and PAP is
 * what one-time code servers speak. The shared secret hides them only as well as MD5 can, so the way to the servers has to
 * be trusted. Every request carries Message-Authenticator as its first attribute, and an answer without a right one does not
 * exist for us: else somebody on the way could turn a no into a yes (CVE-2024-3596). A codec encodes; answers are taken apart
 * and verified here.
 */

import { createHash, createHmac, randomInt, timingSafeEqual } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { isIP } from 'node:net';
import codec, { type Attribute } from 'radius';
import { isVpnError, toVpnError, VpnError } from '../../base/errors.ts';
import type { Secret } from '../../base/log.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import { normaliseName } from '../names.ts';
import {
  type BackendVerdict,
  type GroupTable,
  mapGroups,
  type PasswordBackend,
  type Rechecked,
  type SessionAccountant,
  type SessionReport,
} from './backend.ts';

const MAX_PACKET_BYTES = 4096;
const HEADER_BYTES = 20;
const AUTHENTICATOR = { start: 4, end: 20 } as const;
const DIGEST_BYTES = 16;
/** RFC 2865 §5.2 */
const MAX_PASSWORD_BYTES = 128;
/** Of an attribute's value. */
const MAX_TEXT_BYTES = 253;
const MAX_PROMPT_CHARACTERS = 256;
/** Questions at once, each with a socket of its own. */
const MAX_QUESTIONS = 128;

const Code = { accept: 2, reject: 3, accountingResponse: 5, challenge: 11 } as const;
const Type = {
  userName: 1,
  filterId: 11,
  replyMessage: 18,
  state: 24,
  class: 25,
  prompt: 76,
  messageAuthenticator: 80,
} as const;

/** RFC 2866 §5.10 */
const TERMINATE_CAUSES: Readonly<Record<CloseReason, number>> = {
  peer_disconnect: 1,
  dead_peer: 2,
  idle_timeout: 4,
  session_timeout: 5,
  replaced: 13,
  admin: 6,
  revoked: 6,
  shutdown: 11,
  protocol_error: 17,
};

/** As in the configuration; see docs/configuration.md. */
export interface RadiusOptions {
  readonly servers: readonly string[];
  readonly nasIdentifier: string;
  readonly groupAttribute: 'Class' | 'Filter-Id';
  readonly groups?: GroupTable;
  readonly tries: number;
  readonly timeoutSeconds: number;
  readonly accountingServers?: readonly string[] | undefined;
  readonly interimSeconds: number;
}

interface Server {
  readonly address: string;
  readonly port: number;
}

interface Reply {
  readonly code: number;
  /** The values of one type of attribute, in order. */
  values(type: number): Uint8Array[];
}

export class RadiusBackend implements PasswordBackend, SessionAccountant {
  readonly name: string;
  readonly interimSeconds: number | undefined;
  readonly #options: RadiusOptions;
  readonly #secret: Secret<string>;
  readonly #closing = new AbortController();
  readonly #servers: readonly Server[];
  readonly #accountingServers: readonly Server[];
  #questions = 0;

  constructor({ name, options, secret }: { name: string; options: RadiusOptions; secret: Secret<string> }) {
    // They are files, read at once: better now than in the midst of a login.
    codec.load_dictionaries();
    this.name = name;
    this.#options = options;
    this.#secret = secret;
    this.#servers = options.servers.map((text) => parseServer(text, 1812));
    this.#accountingServers = (options.accountingServers ?? []).map((text) => parseServer(text, 1813));
    this.interimSeconds = this.#accountingServers.length === 0 ? undefined : options.interimSeconds;
  }

  async authenticate(
    attempt: { readonly user: string; readonly password: string; readonly source: string; readonly state?: string },
    signal: AbortSignal,
  ): Promise<BackendVerdict> {
    const user = normaliseName(attempt.user);
    if (user === undefined || Buffer.byteLength(user) > MAX_TEXT_BYTES) return refused('not a name');
    const { password } = attempt;
    if (password.length === 0 || password.includes('\0') || Buffer.byteLength(password) > MAX_PASSWORD_BYTES) {
      return refused(`an empty password, one with a NUL, or one of more than ${MAX_PASSWORD_BYTES} bytes`);
    }
    const answered = attempt.state === undefined ? undefined : parseState(attempt.state, this.#servers.length);
    if (attempt.state !== undefined && answered === undefined) return refused('an answer to a question nobody asked');
    const attributes: Attribute[] = [
      // First, so that nothing an attacker chooses stands before it.
      ['Message-Authenticator', Buffer.alloc(DIGEST_BYTES)],
      ['User-Name', user],
      ['User-Password', password],
      ...this.#describe(attempt.source),
      ...(answered === undefined ? [] : [['State', answered.state] as const]),
    ];
    const start = answered?.server ?? 0;
    // Only the server that asked knows what it asked.
    const servers = answered === undefined ? this.#servers : this.#servers.slice(start, start + 1);
    try {
      const { reply, server } = await this.#ask(servers, 'Access-Request', attributes, signal);
      return this.#judge(reply, start + server, user);
    } catch (error) {
      return { kind: 'unavailable', reason: toVpnError(error, 'ERR_BACKEND').message };
    }
  }

  /** RADIUS can be asked only with a password. */
  async recheck(): Promise<Rechecked> {
    return { standing: 'unknown' };
  }

  async report(session: SessionReport, signal: AbortSignal): Promise<void> {
    if (this.#accountingServers.length === 0) return;
    const { status, counters, reason } = session;
    const attributes: Attribute[] = [
      ['Acct-Status-Type', { start: 1, stop: 2, interim: 3 }[status]],
      ['Acct-Session-Id', session.id],
      ['Acct-Authentic', 2],
      ['User-Name', session.user],
      ...this.#describe(session.remote),
      ...addressAttributes(session.addresses),
      ['Acct-Session-Time', Math.trunc(session.seconds)],
      ...counterAttributes('Input', counters.receivedBytes, counters.receivedPackets),
      ...counterAttributes('Output', counters.sentBytes, counters.sentPackets),
      ...(reason === undefined ? [] : [['Acct-Terminate-Cause', TERMINATE_CAUSES[reason]] as const]),
    ];
    await this.#ask(this.#accountingServers, 'Accounting-Request', attributes, signal);
  }

  async close(): Promise<void> {
    this.#closing.abort();
  }

  #judge(reply: Reply, server: number, asked: string): BackendVerdict {
    switch (reply.code) {
      case Code.accept: {
        const named = reply.values(Type.userName)[0];
        // A server that does not tell case apart says which account it meant.
        const user = named === undefined ? asked : normaliseName(Buffer.from(named).toString('utf8'));
        if (user === undefined) return refused('User-Name of the answer is no name of ours');
        const { groups, groupAttribute } = this.#options;
        const theirs = reply.values(groupAttribute === 'Class' ? Type.class : Type.filterId);
        const texts = theirs.map((value) => Buffer.from(value).toString('utf8'));
        return { kind: 'accepted', user, groups: mapGroups(groups, texts) };
      }
      case Code.challenge: {
        const state = reply.values(Type.state)[0];
        if (state === undefined) return { kind: 'unavailable', reason: 'a challenge without State' };
        const text = Buffer.concat(reply.values(Type.replyMessage)).toString('utf8');
        const prompt = text.replaceAll(/[\p{C}\p{Zl}\p{Zp}]+/gu, ' ').trim();
        return {
          kind: 'ask',
          prompt: prompt.slice(0, MAX_PROMPT_CHARACTERS) || 'Response',
          // RFC 2869 §5.10; nothing is shown unless the server says so.
          echo: reply.values(Type.prompt)[0]?.[3] === 1,
          state: `${server}.${Buffer.from(state).toString('base64url')}`,
        };
      }
      default:
        return refused('the RADIUS server said no');
    }
  }

  /** Who we are and for whom we ask. */
  #describe(source: string): Attribute[] {
    const host = hostOf(source);
    return [
      ['NAS-Identifier', this.#options.nasIdentifier],
      ['NAS-Port-Type', 5],
      ['Service-Type', 2],
      ...(host === '' ? [] : [['Calling-Station-Id', host] as const]),
    ];
  }

  /**
   * Asks one server after the other; the packet to one is the same at every try.
   *
   * @throws {VpnError} ERR_BACKEND when none answers
   */
  async #ask(
    servers: readonly Server[],
    code: 'Access-Request' | 'Accounting-Request',
    attributes: Attribute[],
    signal: AbortSignal,
  ): Promise<{ reply: Reply; server: number }> {
    if (this.#questions >= MAX_QUESTIONS) throw this.#unavailable('too many questions at once');
    this.#questions += 1;
    const limit = AbortSignal.any([signal, this.#closing.signal]);
    const reasons: string[] = [];
    try {
      for (const [index, server] of servers.entries()) {
        try {
          return { reply: await this.#exchange(server, code, attributes, limit), server: index };
        } catch (error) {
          if (limit.aborted) throw this.#unavailable('the question was called off');
          const why = isVpnError(error) ? error.message : String((error as NodeJS.ErrnoException).code ?? error);
          reasons.push(`${server.address}:${server.port}: ${why}`);
        }
      }
    } finally {
      this.#questions -= 1;
    }
    throw this.#unavailable(reasons.join('; '));
  }

  async #exchange(
    { address, port }: Server,
    code: 'Access-Request' | 'Accounting-Request',
    attributes: Attribute[],
    signal: AbortSignal,
  ): Promise<Reply> {
    const secret = this.#secret.reveal();
    const identifier = randomInt(256);
    const packet = codec.encode({
      code,
      identifier,
      secret,
      attributes: [...attributes],
      add_message_authenticator: false,
    });
    const isAccess = code === 'Access-Request';
    if (isAccess) {
      const digest = createHmac('md5', secret).update(packet).digest();
      digest.copy(packet, HEADER_BYTES + 2);
    }
    const allowed = isAccess ? [Code.accept, Code.reject, Code.challenge] : [Code.accountingResponse];
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    let discarded = '';
    // Connected: the kernel passes on only what comes from that address and port.
    const socket = createSocket(isIP(address) === 6 ? 'udp6' : 'udp4');
    const abort = () => reject(new VpnError('ERR_BACKEND', 'called off'));
    const failed = (error: Error) => reject(error);
    socket.on('error', failed);
    socket.on('message', (bytes) => {
      const reply = openReply(bytes, packet, secret, isAccess);
      if (typeof reply === 'string') discarded = `, and what came was discarded: ${reply}`;
      else if (!allowed.some((known) => known === reply.code)) discarded = `, and what came has code ${reply.code}`;
      else resolve(reply);
    });
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
    promise.catch(() => {});
    let timer: NodeJS.Timeout | undefined;
    try {
      socket.connect(port, address);
      await Promise.race([once(socket, 'connect'), promise]);
      let left = this.#options.tries;
      const send = () => {
        if (left === 0) {
          reject(new VpnError('ERR_BACKEND', `no answer${discarded}`));
          return;
        }
        left -= 1;
        socket.send(packet);
        timer = setTimeout(send, this.#options.timeoutSeconds * 1000);
      };
      send();
      return await promise;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      socket.removeAllListeners('message');
      socket.close();
    }
  }

  #unavailable(reason: string): VpnError {
    return new VpnError('ERR_BACKEND', `the RADIUS source ${this.name} cannot be asked: ${reason}`);
  }
}

/**
 * Takes an answer apart, or says why it is none to this request.
 *
 * @param needsAuthenticator whether Message-Authenticator must be there; where it is, it must be right
 */
export function openReply(
  datagram: Uint8Array,
  request: Uint8Array,
  secret: string,
  needsAuthenticator: boolean,
): Reply | string {
  if (datagram.length < HEADER_BYTES || datagram.length > MAX_PACKET_BYTES) return `${datagram.length} bytes`;
  const length = Buffer.from(datagram).readUInt16BE(2);
  if (length < HEADER_BYTES || length > datagram.length) return 'a wrong length';
  // RFC 2865 §3: what is behind the length is padding.
  const packet = Buffer.from(datagram.subarray(0, length));
  if (packet[1] !== request[1]) return 'the identifier of another request';
  const said = Buffer.from(packet.subarray(AUTHENTICATOR.start, AUTHENTICATOR.end));
  packet.set(request.subarray(AUTHENTICATOR.start, AUTHENTICATOR.end), AUTHENTICATOR.start);
  const expected = createHash('md5').update(packet).update(secret).digest();
  if (!timingSafeEqual(said, expected)) return 'a wrong authenticator: is the secret the same?';

  const attributes: { type: number; value: Uint8Array; at: number }[] = [];
  for (let at = HEADER_BYTES; at < length; ) {
    const size = packet[at + 1] ?? 0;
    if (size < 2 || at + size > length) return 'an attribute of a wrong length';
    attributes.push({ type: packet[at] ?? 0, value: Uint8Array.from(packet.subarray(at + 2, at + size)), at: at + 2 });
    at += size;
  }
  const authenticators = attributes.filter(({ type }) => type === Type.messageAuthenticator);
  const [authenticator] = authenticators;
  if (authenticator === undefined) {
    if (needsAuthenticator) return 'no Message-Authenticator; the server has to send one in every answer';
  } else {
    if (authenticators.length > 1 || authenticator.value.length !== DIGEST_BYTES)
      return 'a wrong Message-Authenticator';
    packet.fill(0, authenticator.at, authenticator.at + DIGEST_BYTES);
    const digest = createHmac('md5', secret).update(packet).digest();
    if (!timingSafeEqual(digest, authenticator.value)) return 'a wrong Message-Authenticator';
  }
  return {
    code: packet[0] ?? 0,
    values: (wanted) => attributes.flatMap(({ type, value }) => (type === wanted ? [value] : [])),
  };
}

function refused(reason: string): BackendVerdict {
  return { kind: 'refused', reason };
}

/** `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS6]` or `[ADDRESS6]:PORT`, as the configuration has checked. */
function parseServer(text: string, port: number): Server {
  const [, v6, v4 = '', given] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(text) ?? [];
  return { address: v6 ?? v4, port: given === undefined ? port : Number(given) };
}

function parseState(text: string, servers: number): { server: number; state: Uint8Array } | undefined {
  const [, server, state] = /^(\d)\.([\w-]{1,340})$/.exec(text) ?? [];
  if (server === undefined || state === undefined || Number(server) >= servers) return undefined;
  return { server: Number(server), state: Buffer.from(state, 'base64url') };
}

function hostOf(source: string): string {
  return source.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
}

function addressAttributes(addresses: readonly string[]): Attribute[] {
  return addresses.flatMap((address): Attribute[] => (isIP(address) === 4 ? [['Framed-IP-Address', address]] : []));
}

/** RFC 2869 §5.1: what is above 32 bits counts in gigawords. */
function counterAttributes(way: 'Input' | 'Output', bytes: number, packets: number): Attribute[] {
  const low = bytes % 0x1_0000_0000;
  return [
    [`Acct-${way}-Octets`, low],
    [`Acct-${way}-Gigawords`, Math.min((bytes - low) / 0x1_0000_0000, 0xffff_ffff)],
    [`Acct-${way}-Packets`, packets % 0x1_0000_0000],
  ];
}
