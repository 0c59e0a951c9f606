/**
 * Accounts in an LDAP directory: OpenLDAP, Active Directory, FreeIPA and their like.
 *
 * Hides LDAP. A login searches the account, then binds as it; or binds at once where the configuration says what a DN looks
 * like. Every question has a connection of its own, so that nothing of one login is left for the next.
 *
 * What the library must not be left to do is done here: it dials again by itself when a connection is lost, then without
 * StartTLS, and keeps bytes that came before TLS for after it. So sockets are made here, once, and handed to it encrypted.
 */

import { once } from 'node:events';
import { connect, isIP, type Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';
import { Client, type Entry, ResultCodeError } from 'ldapts';
import { isVpnError, toVpnError, VpnError } from '../../base/errors.ts';
import type { Secret } from '../../base/log.ts';
import { normaliseName } from '../names.ts';
import { type BackendVerdict, type GroupTable, mapGroups, type PasswordBackend, type Rechecked } from './backend.ts';

/** How much a directory may send in answer to one question. */
const MAX_ANSWER_BYTES = 1_048_576;
/** Questions at once; a flood of logins must not become one of connections to the directory. */
const MAX_QUESTIONS = 64;
const MAX_GROUPS = 1000;

/** RFC 4511 §4.14: ExtendedRequest 1.3.6.1.4.1.1466.20037 with message id 1. */
const START_TLS_OID = '1.3.6.1.4.1.1466.20037';
const START_TLS = Buffer.from([0x30, 0x1d, 0x02, 0x01, 0x01, 0x77, 0x18, 0x80, 0x16, ...Buffer.from(START_TLS_OID)]);
const MAX_START_TLS_ANSWER_BYTES = 1024;

/** Result codes (RFC 4511 §A.1) that speak of the account; any other speaks of the directory. */
const REFUSALS: Readonly<Record<number, string>> = {
  19: 'the directory does not let this account in (constraint violation)',
  32: 'no such account',
  34: 'no such account',
  48: 'the account has no password',
  49: 'wrong password, or an account that the directory does not let in',
  50: 'the account may not log in',
  53: 'the directory does not let this account in (unwilling to perform)',
};
const NO_SUCH_OBJECT = 32;

/** As in the configuration; see docs/configuration.md. */
export interface LdapOptions {
  readonly urls: readonly string[];
  readonly startTls: boolean;
  readonly insecure: boolean;
  readonly bindDn?: string | undefined;
  readonly bindTemplate?: string | undefined;
  readonly baseDn?: string | undefined;
  readonly filter: string;
  readonly nameAttribute: string;
  readonly disabledFilter?: string | undefined;
  readonly groupAttribute: string;
  readonly groupBaseDn?: string | undefined;
  readonly groupFilter: string;
  readonly groups?: GroupTable;
  readonly timeoutSeconds: number;
}

interface Parts {
  readonly name: string;
  readonly options: LdapOptions;
  /** PEM of the CAs; the configuration lets only `insecure` do without. */
  readonly ca: string | undefined;
  readonly bindPassword: Secret<string> | undefined;
}

export class LdapBackend implements PasswordBackend {
  readonly name: string;
  readonly #options: LdapOptions;
  readonly #ca: string | undefined;
  readonly #bindPassword: Secret<string> | undefined;
  readonly #closing = new AbortController();
  #questions = 0;

  constructor({ name, options, ca, bindPassword }: Parts) {
    this.name = name;
    this.#options = options;
    this.#ca = ca;
    this.#bindPassword = bindPassword;
  }

  async authenticate(
    { user, password }: { readonly user: string; readonly password: string },
    signal: AbortSignal,
  ): Promise<BackendVerdict> {
    const name = normaliseName(user);
    if (name === undefined) return refused('not a name');
    // RFC 4513 §5.1.2: a bind without a password succeeds, as nobody.
    if (password.length === 0 || password.includes('\0')) return refused('an empty password, or one with a NUL');
    try {
      return await this.#ask((directory) => this.#judge(directory, name, password), signal);
    } catch (error) {
      return { kind: 'unavailable', reason: toVpnError(error, 'ERR_BACKEND').message };
    }
  }

  async recheck(user: string, signal: AbortSignal): Promise<Rechecked> {
    const { baseDn, bindDn, bindTemplate } = this.#options;
    // Without an account that searches, nobody but the user could be asked.
    if (bindTemplate !== undefined && bindDn === undefined) return { standing: 'unknown' };
    const name = normaliseName(user);
    if (name === undefined) return { standing: 'gone' };
    try {
      return await this.#ask(async (directory) => {
        await this.#bindSearcher(directory);
        const entry =
          baseDn === undefined
            ? await directory.find(this.#dnOf(name), 'base', this.#filterFor(name), this.#wanted)
            : await directory.find(baseDn, 'sub', this.#standingFilter(name), this.#wanted);
        if (entry === undefined || (await this.#isDisabled(directory, entry.dn))) return { standing: 'gone' };
        return { standing: 'good', groups: await this.#groupsOf(directory, entry, name) };
      }, signal);
    } catch {
      return { standing: 'unknown' };
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
  }

  async #judge(directory: Directory, name: string, password: string): Promise<BackendVerdict> {
    const { bindTemplate, baseDn } = this.#options;
    if (bindTemplate !== undefined) {
      const dn = this.#dnOf(name);
      const refusal = await directory.bind(dn, password);
      if (refusal !== undefined) return refused(refusal);
      const entry = await directory.find(dn, 'base', this.#filterFor(name), this.#wanted);
      if (entry === undefined) return refused('the account does not match the filter');
      return await this.#accept(directory, entry, name);
    }
    await this.#bindSearcher(directory);
    const entry = await directory.find(baseDn ?? '', 'sub', this.#filterFor(name), this.#wanted);
    if (entry === undefined) return refused('no such account');
    // What the searcher can see is looked at before the bind: afterwards the connection is the user's.
    const verdict = await this.#accept(directory, entry, name);
    if (verdict.kind !== 'accepted') return verdict;
    const refusal = await directory.bind(entry.dn, password);
    return refusal === undefined ? verdict : refused(refusal);
  }

  async #accept(directory: Directory, entry: Entry, asked: string): Promise<BackendVerdict> {
    if (await this.#isDisabled(directory, entry.dn)) return refused('the account is disabled');
    const names = textsOf(entry, this.#options.nameAttribute);
    const text = names.length === 1 ? names[0] : names.find((name) => name.toLowerCase() === asked.toLowerCase());
    const user = text === undefined ? undefined : normaliseName(text);
    if (user === undefined) return refused(`${this.#options.nameAttribute} of the account holds no name of ours`);
    return { kind: 'accepted', user, groups: await this.#groupsOf(directory, entry, user) };
  }

  async #isDisabled(directory: Directory, dn: string): Promise<boolean> {
    const { disabledFilter } = this.#options;
    return disabledFilter !== undefined && (await directory.find(dn, 'base', disabledFilter, ['1.1'])) !== undefined;
  }

  async #groupsOf(directory: Directory, entry: Entry, user: string): Promise<readonly string[] | undefined> {
    const { groups, groupBaseDn, groupFilter, groupAttribute } = this.#options;
    if (groups === undefined) return undefined;
    if (groupBaseDn === undefined) return mapGroups(groups, textsOf(entry, groupAttribute), sameDn);
    const filter = fill(groupFilter, { user: escapeFilter(user), dn: escapeFilter(entry.dn) });
    const found = await directory.search(groupBaseDn, 'sub', filter, ['1.1'], MAX_GROUPS);
    return mapGroups(
      groups,
      found.map(({ dn }) => dn),
      sameDn,
    );
  }

  /** Binds as the account that searches, if there is one. */
  async #bindSearcher(directory: Directory): Promise<void> {
    const { bindDn } = this.#options;
    if (bindDn === undefined) return;
    const refusal = await directory.bind(bindDn, this.#bindPassword?.reveal() ?? '');
    if (refusal !== undefined) throw new VpnError('ERR_BACKEND', 'the directory refuses bindDn with its password');
  }

  get #wanted(): string[] {
    const { nameAttribute, groupAttribute } = this.#options;
    return [nameAttribute, groupAttribute];
  }

  #dnOf(name: string): string {
    return fill(this.#options.bindTemplate ?? '', { user: escapeDn(name) });
  }

  #filterFor(name: string): string {
    return fill(this.#options.filter, { user: escapeFilter(name) });
  }

  /** Finds by the account's own name an account that a login may have found by another, such as its address. */
  #standingFilter(name: string): string {
    const { filter, nameAttribute } = this.#options;
    return `(&(${nameAttribute}=${escapeFilter(name)})(|${this.#filterFor(name)}${fill(filter, { user: '*' })}))`;
  }

  /**
   * Asks the first directory that answers. None has more than its share of the time, so that one that hangs leaves some
   * for the next.
   *
   * @throws {VpnError} ERR_BACKEND when none does
   */
  async #ask<T>(work: (directory: Directory) => Promise<T>, signal: AbortSignal): Promise<T> {
    const { urls, timeoutSeconds } = this.#options;
    if (this.#questions >= MAX_QUESTIONS) throw this.#unavailable('too many questions at once');
    this.#questions += 1;
    const end = performance.now() + timeoutSeconds * 1000;
    const reasons: string[] = [];
    try {
      for (const [index, url] of urls.entries()) {
        const share = AbortSignal.timeout(Math.max(1, Math.ceil((end - performance.now()) / (urls.length - index))));
        const limit = AbortSignal.any([signal, this.#closing.signal, share]);
        try {
          await using directory = new Directory(await this.#dial(url, limit), limit);
          return await work(directory);
        } catch (error) {
          reasons.push(`${url}: ${share.aborted ? 'no answer in time' : messageOf(error)}`);
          if (signal.aborted || this.#closing.signal.aborted) break;
        }
      }
    } finally {
      this.#questions -= 1;
    }
    throw this.#unavailable(reasons.join('; '));
  }

  #unavailable(reason: string): VpnError {
    return new VpnError('ERR_BACKEND', `the directory ${this.name} cannot be asked: ${reason}`);
  }

  /** A connection on which a password may be sent. */
  async #dial(url: string, signal: AbortSignal): Promise<Socket> {
    const { protocol, hostname, port } = new URL(url);
    const host = hostname.replace(/^\[|\]$/g, '');
    const security: ConnectionOptions = {
      host,
      minVersion: 'TLSv1.2',
      ...(isIP(host) === 0 ? { servername: host } : {}),
      ...(this.#ca === undefined ? {} : { ca: this.#ca }),
    };
    if (protocol === 'ldaps:') {
      return await established(connectTls({ ...security, port: Number(port || 636) }), 'secureConnect', signal);
    }
    const socket = await established(connect({ host, port: Number(port || 389) }), 'connect', signal);
    if (!this.#options.startTls) return socket;
    await startTls(socket, signal);
    return await established(connectTls({ ...security, socket }), 'secureConnect', signal);
  }
}

/** One connection to a directory. */
class Directory implements AsyncDisposable {
  readonly #client: Client;
  readonly #socket: Socket;
  readonly #abort: () => void;
  readonly #signal: AbortSignal;

  /** The socket is owned. */
  constructor(socket: Socket, signal: AbortSignal) {
    this.#socket = socket;
    this.#signal = signal;
    this.#abort = () => socket.destroy();
    signal.addEventListener('abort', this.#abort, { once: true });
    if (signal.aborted) socket.destroy();
    let received = 0;
    socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
      if (received > MAX_ANSWER_BYTES) socket.destroy();
    });
    let given = false;
    this.#client = new Client({
      url: 'ldap://directory',
      createConnection: () => {
        if (given || socket.destroyed) throw new VpnError('ERR_BACKEND', 'the connection was lost');
        given = true;
        return socket;
      },
    });
  }

  /** Returns why not, or undefined. @throws what speaks of the directory, not of the account */
  async bind(dn: string, password: string): Promise<string | undefined> {
    try {
      await this.#client.bind(dn, password);
      return undefined;
    } catch (error) {
      const refusal = error instanceof ResultCodeError ? REFUSALS[error.code] : undefined;
      if (refusal === undefined) throw error;
      return refusal;
    }
  }

  async search(
    base: string,
    scope: 'base' | 'sub',
    filter: string,
    attributes: string[],
    limit: number,
  ): Promise<Entry[]> {
    const { searchEntries } = await this.#client.search(base, { scope, filter, attributes, sizeLimit: limit });
    return searchEntries;
  }

  /** The one entry, or undefined for none. @throws {VpnError} ERR_BACKEND for several */
  async find(base: string, scope: 'base' | 'sub', filter: string, attributes: string[]): Promise<Entry | undefined> {
    let found: Entry[];
    try {
      found = await this.search(base, scope, filter, attributes, 2);
    } catch (error) {
      // An entry that is not there; a base that is not there is a fault of the configuration.
      if (scope === 'base' && error instanceof ResultCodeError && error.code === NO_SUCH_OBJECT) return undefined;
      throw error;
    }
    if (found.length > 1) throw new VpnError('ERR_BACKEND', `several accounts match ${filter}`);
    return found[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal.removeEventListener('abort', this.#abort);
    this.#socket.destroy();
  }
}

function refused(reason: string): BackendVerdict {
  return { kind: 'refused', reason };
}

function messageOf(error: unknown): string {
  if (isVpnError(error)) return error.message;
  return error instanceof Error ? error.message.split('\n', 1)[0]?.slice(0, 200) || error.name : String(error);
}

async function established(socket: Socket, event: string, signal: AbortSignal): Promise<Socket> {
  try {
    await once(socket, event, { signal });
  } catch (error) {
    // It may still fail while it is torn down.
    socket.on('error', () => {});
    socket.destroy();
    throw error;
  }
  socket.on('error', () => {});
  return socket;
}

/**
 * Asks for TLS. Anything that comes beside the one answer was put there by somebody else.
 *
 * @throws {VpnError} ERR_BACKEND when the directory does not say yes
 */
async function startTls(socket: Socket, signal: AbortSignal): Promise<void> {
  const answered = Promise.withResolvers<void>();
  let answer = Buffer.alloc(0);
  const read = (chunk: Buffer) => {
    answer = Buffer.concat([answer, chunk]);
    if (answer.length >= Math.min(messageLength(answer), MAX_START_TLS_ANSWER_BYTES)) answered.resolve();
  };
  const fail = () => answered.reject(new VpnError('ERR_BACKEND', 'the connection ended before StartTLS was answered'));
  socket.on('data', read).once('close', fail);
  signal.addEventListener('abort', fail, { once: true });
  try {
    socket.write(START_TLS);
    await answered.promise;
    socket.pause();
    if (messageLength(answer) !== answer.length || !agreesToTls(answer)) {
      throw new VpnError('ERR_BACKEND', 'the directory does not agree to StartTLS');
    }
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    socket.off('data', read).off('close', fail);
    signal.removeEventListener('abort', fail);
  }
}

/** SEQUENCE { INTEGER 1, [APPLICATION 24] SEQUENCE { ENUMERATED 0 (success), … (RFC 4511 §4.12) */
function agreesToTls(message: Uint8Array): boolean {
  const { next } = lengthAt(message, 1);
  const operation = message.subarray(next);
  if (!startsWith(operation, [0x02, 0x01, 0x01, 0x78])) return false;
  return startsWith(operation.subarray(lengthAt(operation, 4).next), [0x0a, 0x01, 0x00]);
}

/** Bytes of the whole message whose beginning this is; 0 for what is none, infinity while it cannot be told. */
function messageLength(start: Uint8Array): number {
  if (start.length > 0 && start[0] !== 0x30) return 0;
  const { length, next } = lengthAt(start, 1);
  return next + length;
}

/** Length octets of BER (X.690 §8.1.3), the definite forms. */
function lengthAt(bytes: Uint8Array, at: number): { length: number; next: number } {
  const first = bytes[at];
  if (first === undefined) return { length: Number.POSITIVE_INFINITY, next: at };
  if (first < 0x80) return { length: first, next: at + 1 };
  const next = at + 1 + (first & 0x7f);
  if (bytes.length < next) return { length: Number.POSITIVE_INFINITY, next };
  return { length: bytes.subarray(at + 1, next).reduce((sum, byte) => sum * 256 + byte, 0), next };
}

function startsWith(bytes: Uint8Array, start: readonly number[]): boolean {
  return start.every((byte, index) => bytes[index] === byte);
}

function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replaceAll(/\{(\w+)\}/g, (whole, key: string) => values[key] ?? whole);
}

/** A value inside a filter (RFC 4515 §3). */
export function escapeFilter(value: string): string {
  return value.replaceAll(/[\\*()\0]/g, hexOf);
}

/** A value inside a DN (RFC 4514 §2.4). */
export function escapeDn(value: string): string {
  return value.replaceAll(/[^\p{L}\p{M}\p{N}._@-]/gu, hexOf);
}

function hexOf(text: string): string {
  return [...Buffer.from(text)].map((byte) => `\\${byte.toString(16).padStart(2, '0')}`).join('');
}

/** The form in which two spellings of a DN are the same for a table: case and spaces about separators do not count. */
function sameDn(dn: string): string {
  return dn
    .trim()
    .replaceAll(/\s*(?<!\\)([,=+])\s*/g, '$1')
    .toLowerCase();
}

/** The values of an attribute; a server may spell its name otherwise. */
function textsOf(entry: Entry, attribute: string): string[] {
  const wanted = attribute.toLowerCase();
  return Object.entries(entry).flatMap(([key, value]) =>
    key.toLowerCase() === wanted ? [value].flat().filter((text) => typeof text === 'string') : [],
  );
}
