/**
 * The audit record as a file of JSON lines, for programs that collect logs.
 *
 * Hides when lines are written. The table is the record: what is committed there is written here within a second, in its
 * order, also what commands have recorded while no gateway ran. The file is opened for every batch, so that it can be moved
 * away at any time. When it cannot be written, that is said, and made up for later.
 */

import { open } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { type Audit, type AuditRecord, firstIdOf, timeOfId } from '../../store/audit.ts';

const LOOK_MS = 1000;
const BATCH = 1000;
/** A record is far shorter. */
const END_BYTES = 64 * 1024;
/** Two writers can commit in another order than their records are in: for so long one before others is waited for. */
const OVERLAP_MS = 10_000;

export interface AuditFileOptions {
  audit: Audit;
  path: string;
  clock: Clock;
  log: Logger;
  /** One record as JSON. */
  format: (record: AuditRecord) => unknown;
}

export class AuditFile {
  readonly #options: AuditFileOptions;
  /** When the written records of the overlap were seen, by id, monotonic. */
  readonly #written = new Map<string, number>();
  /** Nothing before it comes any more; and the greatest id that is written. */
  #settled = '';
  #newest = '';
  #timer: NodeJS.Timeout | undefined;
  #look: Promise<void> | undefined;
  #isFailing = false;
  /** The last line was cut short, as by a full disk. */
  #isBroken = false;

  private constructor(options: AuditFileOptions) {
    this.#options = options;
  }

  /** Goes on where the file ends; a file that is not there begins with what is recorded from now on. */
  static async open(options: AuditFileOptions): Promise<AuditFile> {
    const file = new AuditFile(options);
    await file.#findEnd();
    file.#timer = setInterval(() => void file.look(), LOOK_MS).unref();
    return file;
  }

  /** Writes what is recorded and not written yet. Never rejects. */
  look(): Promise<void> {
    this.#look ??= this.#write()
      .then(
        () => this.#say(undefined),
        (error: unknown) => this.#say(error),
      )
      .finally(() => {
        this.#look = undefined;
      });
    return this.#look;
  }

  /** Writes the last records, and no more. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#look;
    await this.look();
  }

  async #findEnd(): Promise<void> {
    const { audit, path } = this.#options;
    const end = await readEnd(path);
    this.#isBroken = end !== '' && !end.endsWith('\n');
    // The last line is not the newest record when that was committed before it.
    const ids = end.split('\n').flatMap((line) => idOf(line) ?? []);
    const known = ids.toSorted().at(-1) ?? (await audit.list({ limit: 1 }))[0]?.id;
    if (known === undefined) return;
    this.#newest = known;
    this.#settled = firstIdOf(timeOfId(known) - OVERLAP_MS);
    for (let after = this.#settled; ; ) {
      const written = (await audit.next(after, 0, BATCH)).filter((record) => record.id <= known);
      this.#note(written);
      const last = written.at(-1);
      if (last === undefined) return;
      after = last.id;
    }
  }

  async #write(): Promise<void> {
    const { audit } = this.#options;
    const counts = await audit.countAfter(this.#settled);
    let left = [...counts.values()].reduce((sum, count) => sum + count, 0) - this.#written.size;
    if (left > 0) left -= await this.#writeAfter(this.#newest);
    // Others have been committed before those that are written.
    if (left > 0) await this.#writeAfter(this.#settled);
    this.#settle();
  }

  /** Writes what comes after a record, as far as it is not written; returns how many that were. @param id of the record */
  async #writeAfter(id: string): Promise<number> {
    let count = 0;
    for (let after = id; ; ) {
      const records = await this.#options.audit.next(after, 0, BATCH);
      const fresh = records.filter((record) => !this.#written.has(record.id));
      if (fresh.length > 0) await this.#append(fresh);
      this.#note(fresh);
      count += fresh.length;
      const last = records.at(-1);
      if (last === undefined) return count;
      after = last.id;
      if (after > this.#newest) this.#newest = after;
    }
  }

  async #append(records: readonly AuditRecord[]): Promise<void> {
    const { path, format } = this.#options;
    const handle = await open(path, 'a', 0o600);
    try {
      if (this.#isBroken) await handle.appendFile('\n');
      this.#isBroken = false;
      await handle.appendFile(records.map((record) => `${JSON.stringify(format(record))}\n`).join(''));
    } finally {
      await handle.close();
    }
  }

  #note(records: readonly AuditRecord[]): void {
    const now = this.#options.clock.now();
    for (const { id } of records) this.#written.set(id, now);
  }

  #settle(): void {
    const end = this.#options.clock.now() - OVERLAP_MS;
    for (const [id, seenAt] of this.#written) {
      if (seenAt > end) break;
      if (id > this.#settled) this.#settled = id;
    }
    for (const id of this.#written.keys()) if (id <= this.#settled) this.#written.delete(id);
  }

  #say(error: unknown): void {
    const { log, path } = this.#options;
    if (error !== undefined && !this.#isFailing) {
      log.error('the audit file cannot be written; the table goes on, and the file is made up for', { path, error });
    } else if (error === undefined && this.#isFailing) {
      log.info('the audit file is written again', { path });
    }
    this.#isFailing = error !== undefined;
  }
}

/** The last lines of a file; nothing of one that cannot be read. */
async function readEnd(path: string): Promise<string> {
  const handle = await open(path, 'r').catch(() => undefined);
  if (handle === undefined) return '';
  try {
    const { size } = await handle.stat();
    const length = Math.min(size, END_BYTES);
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length);
    return buffer.toString('utf8', 0, bytesRead);
  } catch {
    return '';
  } finally {
    await handle.close();
  }
}

function idOf(line: string): string | undefined {
  try {
    const { id } = JSON.parse(line) as { id?: unknown };
    return typeof id === 'string' && /^[0-9a-f]{32}$/.test(id) ? id : undefined;
  } catch {
    return undefined;
  }
}
