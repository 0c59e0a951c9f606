/**
 * The resolver's file, `/etc/resolv.conf`, with other name servers in it for a while.
 *
 * Hides how it is replaced whole, and its journal: what was there is written down, and synced, before it is touched, and
 * stays written down over a crash and over a restart of the machine, which the file survives, too. Whoever else writes the
 * file meanwhile wins: theirs stays when ours would have been taken away.
 */

import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, open, readFile, readlink, rename, rm, symlink, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { writePrivateFile } from '../base/private-file.ts';

/** What glibc reads of `nameserver` lines. */
const MAX_SERVERS = 3;
const MAX_FILE_BYTES = 65_536;
const FILE_MODE = 0o644;

export interface ResolverSettings {
  readonly servers: readonly string[];
  readonly domains: readonly string[];
  /** Asked after ours when those do not know; none where nothing may be asked elsewhere. */
  readonly fallback: boolean;
}

/** What was there before. */
type Before =
  | { readonly kind: 'file'; readonly text: string; readonly mode: number }
  | { readonly kind: 'link'; readonly target: string; readonly text: string }
  | { readonly kind: 'none' };

interface Saved {
  readonly path: string;
  readonly before: Before;
  /** What we wrote. */
  readonly ours: string;
}

export interface ResolvConfOptions {
  /** Where what was there is written down; the file is there only while ours is in place. */
  journalPath: string;
  /** Default `/etc/resolv.conf`. */
  path?: string;
  log: Logger;
}

export class ResolvConf {
  readonly #journalPath: string;
  readonly #path: string;
  readonly #log: Logger;
  #saved: Saved | undefined;

  private constructor(options: ResolvConfOptions) {
    this.#journalPath = options.journalPath;
    this.#path = options.path ?? '/etc/resolv.conf';
    this.#log = options.log.child({ component: 'dns' });
  }

  /** Puts back what a run that died has left. @throws {VpnError} ERR_HOST_APPLY */
  static async open(options: ResolvConfOptions): Promise<ResolvConf> {
    const file = new ResolvConf(options);
    file.#saved = await readJournal(options.journalPath, file.#path);
    if (file.#saved !== undefined) {
      file.#log.warn('putting back the name servers that a run that died has replaced', { path: file.#path });
      await file.revert();
    }
    return file;
  }

  /** The name servers that are there when ours are not. */
  async servers(): Promise<readonly string[]> {
    const text = await readText(this.#path);
    return serversIn(this.#saved === undefined || text !== this.#saved.ours ? text : textOf(this.#saved.before));
  }

  /**
   * Puts settings in place; what somebody else has written since is then what was there before.
   *
   * @throws {VpnError} ERR_HOST_APPLY
   */
  async apply(settings: ResolverSettings): Promise<void> {
    const now = await readText(this.#path);
    const isOurs = this.#saved !== undefined && now === this.#saved.ours;
    const before = isOurs && this.#saved !== undefined ? this.#saved.before : await look(this.#path);
    if (this.#saved !== undefined && !isOurs) {
      this.#log.warn(
        'somebody else has changed the name servers; ours are set again, and theirs come back in the end',
        {
          path: this.#path,
        },
      );
    }
    const ours = format(settings, textOf(before));
    if (isOurs && now === ours) return;
    this.#saved = { path: this.#path, before, ours };
    await writePrivateFile(this.#journalPath, `${JSON.stringify(this.#saved)}\n`, { when: 'replace' });
    await this.#write(ours, FILE_MODE);
  }

  /** Puts back what was there, unless somebody else has changed it. Idempotent. @throws {VpnError} ERR_HOST_APPLY */
  async revert(): Promise<void> {
    const saved = this.#saved;
    if (saved === undefined) return;
    const { before, ours } = saved;
    if ((await readText(this.#path)) === ours) await this.#putBack(before);
    else {
      this.#log.warn('somebody else has changed the name servers meanwhile: theirs stay', { path: this.#path });
    }
    this.#saved = undefined;
    await rm(this.#journalPath, { force: true });
  }

  async #putBack(before: Before): Promise<void> {
    if (before.kind === 'file') await this.#write(before.text, before.mode);
    else if (before.kind === 'none') await unlink(this.#path).catch(() => this.#write('', FILE_MODE));
    else {
      const temporary = this.#temporary();
      try {
        await symlink(before.target, temporary);
        await rename(temporary, this.#path);
      } catch (cause) {
        await rm(temporary, { force: true });
        throw fileError(cause, this.#path);
      }
    }
  }

  /** As a whole; where the file is a mount of its own, as in containers, in place. */
  async #write(text: string, mode: number): Promise<void> {
    const temporary = this.#temporary();
    try {
      const file = await open(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, mode);
      try {
        await file.chmod(mode);
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, this.#path);
    } catch (cause) {
      await rm(temporary, { force: true }).catch(() => {});
      const { code } = cause as NodeJS.ErrnoException;
      if (code !== 'EBUSY' && code !== 'EROFS' && code !== 'EXDEV') throw fileError(cause, this.#path);
      await writeInPlace(this.#path, text);
    }
  }

  #temporary(): string {
    return join(dirname(this.#path), `.resolv.conf.customvpn-${randomBytes(6).toString('hex')}`);
  }
}

/** The addresses of `nameserver` lines. */
export function serversIn(text: string): string[] {
  return [...text.matchAll(/^[ \t]*nameserver[ \t]+([^\s#;]+)/gm)].map(([, server = '']) => server);
}

/** A file of its own that asks these servers, for whoever sees it in place of the machine's; with none, nobody is asked. */
export function formatResolvConf(servers: readonly string[], domains: readonly string[]): string {
  return [
    '# The name servers of the tunnel, for commands of: customvpn client exec',
    ...servers.slice(0, MAX_SERVERS).map((server) => `nameserver ${server}`),
    ...(domains.length > 0 ? [`search ${domains.join(' ')}`] : []),
    '',
  ].join('\n');
}

/** The file with our servers; `options` lines stay. */
function format({ servers, domains, fallback }: ResolverSettings, before: string): string {
  const ours = servers.slice(0, fallback ? MAX_SERVERS - 1 : MAX_SERVERS);
  const others = fallback ? serversIn(before).filter((server) => !ours.includes(server)) : [];
  const search = before.split('\n').filter((line) => fallback && /^\s*(search|domain)\s/.test(line));
  return [
    '# Set by CustomVPN while its tunnel is up; what was here comes back with: customvpn client down',
    ...[...ours, ...others].slice(0, MAX_SERVERS).map((server) => `nameserver ${server}`),
    ...(domains.length > 0 ? [`search ${domains.join(' ')}`] : search),
    ...before.split('\n').filter((line) => /^\s*options\s/.test(line)),
    '',
  ].join('\n');
}

async function readText(path: string): Promise<string> {
  return await readFile(path, 'utf8').catch(() => '');
}

function textOf(before: Before): string {
  return before.kind === 'none' ? '' : before.text;
}

async function look(path: string): Promise<Before> {
  const facts = await lstat(path).catch(() => undefined);
  if (facts === undefined) return { kind: 'none' };
  if (facts.isSymbolicLink()) return { kind: 'link', target: await readlink(path), text: await readText(path) };
  if (!facts.isFile() || facts.size > MAX_FILE_BYTES) {
    throw new VpnError('ERR_HOST_APPLY', `${path} is not a file that can be replaced; name servers were not changed`);
  }
  return { kind: 'file', text: await readText(path), mode: facts.mode & 0o777 };
}

async function writeInPlace(path: string, text: string): Promise<void> {
  try {
    const file = await open(path, constants.O_WRONLY | constants.O_TRUNC | constants.O_NOFOLLOW);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (cause) {
    throw fileError(cause, path);
  }
}

/** Checks what the journal says: root is about to act on it. */
async function readJournal(journalPath: string, path: string): Promise<Saved | undefined> {
  const text = await readFile(journalPath, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw fileError(error, journalPath);
  });
  if (text === undefined) return undefined;
  try {
    const saved = JSON.parse(text) as Saved;
    const { before } = saved;
    const isFine =
      before.kind === 'none' ||
      (before.kind === 'link' && typeof before.target === 'string' && typeof before.text === 'string') ||
      (before.kind === 'file' && typeof before.text === 'string' && Number.isInteger(before.mode));
    if (isFine && saved.path === path && typeof saved.ours === 'string') return saved;
  } catch {
    // Not ours, as below.
  }
  throw new VpnError(
    'ERR_HOST_APPLY',
    `${journalPath} is no journal that we wrote for ${path}: look at both, then remove it`,
  );
}

function fileError(cause: unknown, path: string): VpnError {
  const { message, code } = cause as NodeJS.ErrnoException;
  return new VpnError('ERR_HOST_APPLY', `name servers, ${path}: ${message}`, { cause, details: { path, errno: code } });
}
