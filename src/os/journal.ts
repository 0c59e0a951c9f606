/**
 * A list of what has to be undone, that survives the process which made it.
 *
 * Hides the file: one JSON value a line, appended and synced before the deed it belongs to; a line torn by a crash is a deed
 * that was not done. It is only ever appended to until it is empty again and removed. A lock of the kernel's says whether
 * its writer lives, and goes with it. An entry is worthless after a restart of the machine or in another network namespace:
 * what it would undo is not there. Must not know what the entries mean.
 */

import { constants } from 'node:fs';
import { type FileHandle, open, readFile, stat, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { VpnError } from '../base/errors.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import { lock } from './lock-file.ts';

/** An entry of a journal, with the number by which it is marked as undone. */
export interface JournalEntry {
  readonly number: number;
  readonly value: unknown;
}

interface Header {
  readonly boot: string;
  readonly netns: string;
}

/** A journal that is held: nobody else can open it until it is closed. */
export class Journal {
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #entries = new Map<number, unknown>();
  #nextNumber = 1;
  #isNew: boolean;
  /** How many entries were dropped because they belong to an earlier start of the machine or to another namespace. */
  readonly foreignEntries: number;

  private constructor(path: string, file: FileHandle, content: Content) {
    this.#path = path;
    this.#file = file;
    this.#isNew = content.isNew;
    this.foreignEntries = content.foreignEntries;
    for (const { number, value } of content.entries) this.#entries.set(number, value);
    this.#nextNumber = content.nextNumber;
  }

  /**
   * Opens a journal, or makes one.
   *
   * @throws {VpnError} ERR_ALREADY_RUNNING while another process (or another part of this one) holds it; ERR_SYSCALL
   */
  static async open(path: string): Promise<Journal> {
    await makePrivateFolder(dirname(path));
    for (;;) {
      const file = await openFile(path);
      try {
        lock(file, path);
        // Between our opening and our locking the former holder may have removed the file: then it is nobody's any more.
        if (await isStillAt(file, path)) return new Journal(path, file, await readContent(file, path));
        await file.close();
      } catch (error) {
        await file.close();
        throw error;
      }
    }
  }

  /** Entries not yet marked as undone, oldest first. */
  get entries(): JournalEntry[] {
    return [...this.#entries].map(([number, value]) => ({ number, value }));
  }

  /** Writes entries down, durably. @throws {VpnError} ERR_SYSCALL; nothing may be done then */
  async append(values: readonly unknown[]): Promise<void> {
    if (values.length === 0) return;
    const lines: string[] = [];
    if (this.#isNew) lines.push(JSON.stringify(await currentHeader()));
    for (const value of values) {
      const number = this.#nextNumber++;
      this.#entries.set(number, value);
      lines.push(JSON.stringify({ number, undo: value }));
    }
    await this.#write(lines);
    this.#isNew = false;
  }

  /** Marks an entry as undone. Undoing twice must be harmless, so this is not synced. */
  async markUndone(numbers: readonly number[]): Promise<void> {
    if (numbers.length === 0) return;
    for (const number of numbers) this.#entries.delete(number);
    await this.#write([JSON.stringify({ undone: numbers })], false);
  }

  async #write(lines: readonly string[], isDurable = true): Promise<void> {
    try {
      await this.#file.write(`${lines.join('\n')}\n`);
      if (isDurable) await this.#file.datasync();
    } catch (cause) {
      throw fileError(cause, this.#path);
    }
  }

  /** Lets go of the journal; removes it when it has no entries. */
  async close(): Promise<void> {
    if (this.#entries.size === 0) await unlink(this.#path).catch(() => {});
    await this.#file.close();
  }
}

async function openFile(path: string): Promise<FileHandle> {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW;
  try {
    return await open(path, flags, 0o600);
  } catch (cause) {
    throw fileError(cause, path);
  }
}

async function isStillAt(file: FileHandle, path: string): Promise<boolean> {
  const [ours, there] = await Promise.all([file.stat(), stat(path).catch(() => undefined)]);
  return ours.ino === there?.ino && ours.dev === there.dev;
}

interface Content {
  entries: JournalEntry[];
  nextNumber: number;
  foreignEntries: number;
  isNew: boolean;
}

async function readContent(file: FileHandle, path: string): Promise<Content> {
  const facts = await file.stat();
  const uid = process.getuid?.();
  if (!facts.isFile() || facts.uid !== uid) {
    throw new VpnError('ERR_HOST_APPLY', `${path} is not a file of user ${uid}: what it says is not done; remove it`, {
      details: { path },
    });
  }
  const text = await file.readFile('utf8');
  if (text === '') return { entries: [], nextNumber: 1, foreignEntries: 0, isNew: true };
  const { header, entries, last } = parseLines(text);
  const current = await currentHeader();
  const isForeign = header?.boot !== current.boot || header.netns !== current.netns;
  if (isForeign) {
    await file.truncate(0);
    return { entries: [], nextNumber: 1, foreignEntries: entries.length, isNew: true };
  }
  // A torn last line must not swallow the next one.
  if (!text.endsWith('\n')) await file.write('\n');
  return { entries, nextNumber: last + 1, foreignEntries: 0, isNew: false };
}

function parseLines(text: string): { header: Header | undefined; entries: JournalEntry[]; last: number } {
  let header: Header | undefined;
  let last = 0;
  const entries = new Map<number, unknown>();
  for (const line of text.split('\n')) {
    const value = parseLine(line);
    if (typeof value.boot === 'string' && typeof value.netns === 'string') {
      header ??= { boot: value.boot, netns: value.netns };
    } else if (typeof value.number === 'number') {
      last = Math.max(last, value.number);
      entries.set(value.number, value.undo);
    } else if (Array.isArray(value.undone)) {
      for (const number of value.undone) entries.delete(Number(number));
    }
  }
  return { header, entries: [...entries].map(([number, value]) => ({ number, value })), last };
}

function parseLine(line: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}

async function currentHeader(): Promise<Header> {
  try {
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8');
    const netns = await stat('/proc/self/ns/net');
    return { boot: boot.trim(), netns: `${netns.dev}:${netns.ino}` };
  } catch (cause) {
    throw fileError(cause, '/proc');
  }
}

function fileError(cause: unknown, path: string): VpnError {
  const { code, syscall, message } = cause as NodeJS.ErrnoException;
  return new VpnError('ERR_SYSCALL', `the journal of changes to this host, ${path}: ${message}`, {
    cause,
    details: { path, errno: code, syscall },
  });
}
