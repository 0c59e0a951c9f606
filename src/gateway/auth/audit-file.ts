/**
 * The audit record as a file of JSON lines, for programs that collect logs.
 *
 * Hides when lines are written. The table is the record: what is committed there is written here within a second, in its
 * order, also what commands have recorded while no gateway ran. The file is opened for every batch, so that it can be moved
 * away at any time. When it cannot be written, that is said, and made up for later.
 */

import { open } from 'node:fs/promises';
import type { Logger } from '../../base/log.ts';
import type { Audit, AuditRecord } from '../../store/audit.ts';

const LOOK_MS = 1000;
const BATCH = 1000;
/** A record is far shorter. */
const END_BYTES = 64 * 1024;
/** Two writers can commit in another order than their records are in: so far back is looked again. */
const OVERLAP_MS = 10_000;

export interface AuditFileOptions {
  audit: Audit;
  path: string;
  log: Logger;
  /** One record as JSON. */
  format: (record: AuditRecord) => unknown;
}

export class AuditFile {
  readonly #options: AuditFileOptions;
  /** When the written records of the overlap happened, by id. */
  readonly #written = new Map<string, number>();
  #since = 0;
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
    const lastLine = end === '' ? undefined : end.trimEnd().split('\n').at(-1);
    const id = lastLine === undefined ? undefined : idOf(lastLine);
    const [known] = id === undefined ? await audit.list({ limit: 1 }) : [{ id, at: timeOf(id) }];
    if (known === undefined) return;
    this.#since = Math.max(0, known.at - OVERLAP_MS);
    for (const { id: earlier, at } of await audit.list({ since: this.#since, limit: BATCH })) {
      if (earlier <= known.id) this.#written.set(earlier, at);
    }
  }

  async #write(): Promise<void> {
    const { audit, path, format } = this.#options;
    const records = await audit.list({ since: this.#since, limit: BATCH });
    const fresh = records.filter(({ id }) => !this.#written.has(id));
    if (fresh.length === 0) return;
    const handle = await open(path, 'a', 0o600);
    try {
      if (this.#isBroken) await handle.appendFile('\n');
      this.#isBroken = false;
      await handle.appendFile(fresh.map((record) => `${JSON.stringify(format(record))}\n`).join(''));
    } finally {
      await handle.close();
    }
    for (const { id, at } of fresh) this.#written.set(id, at);
    const newest = fresh.at(-1)?.at ?? this.#since;
    this.#since = Math.max(this.#since, newest - OVERLAP_MS);
    for (const [id, at] of this.#written) if (at < this.#since) this.#written.delete(id);
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

/** An id begins with the milliseconds since the Unix epoch, 12 hexadecimal digits. */
function timeOf(id: string): number {
  return Number.parseInt(id.slice(0, 12), 16);
}
