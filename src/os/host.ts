/**
 * Changes to this machine's network, that are taken back whatever happens.
 *
 * Hides `ip`, `nft` and `/proc/sys`, and the journal that makes a change safe: its inverse is written down and synced
 * before it is made, and undoing is idempotent, so that after a crash at any point the next start (or `revert`) brings the
 * host back to what it was. What is there already is not ours and stays. Must not know what the changes are for.
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import {
  type HostChange,
  ipUndo,
  isGone,
  type Link,
  listLinks,
  parseUndo,
  planChange,
  runUndo,
  type Step,
  type Undo,
} from './host-change.ts';
import { runIpBatch, runIpBatchLeniently } from './ip-batch.ts';
import { Journal, type JournalEntry } from './journal.ts';

export type { HostChange } from './host-change.ts';
export { type HostRoute, RouteBatch } from './route-batch.ts';

export interface HostNetworkOptions {
  /** Where inverses are written down. The folder is made; the file is there only while there is something to undo. */
  journalPath: string;
  log: Logger;
}

export class HostNetwork {
  readonly #path: string;
  readonly #log: Logger;
  #journal: Journal | undefined;
  #last: Promise<unknown> = Promise.resolve();
  /** The changes in force, by their text, in the order in which they were made. */
  readonly #made = new Map<string, { change: HostChange; undos: readonly Undo[] }>();

  private constructor(options: HostNetworkOptions) {
    this.#path = options.journalPath;
    this.#log = options.log.child({ component: 'host' });
  }

  /**
   * Takes back what a run that died has left, then stands ready for changes.
   *
   * @throws {VpnError} ERR_ALREADY_RUNNING while another process has changes under this journal; ERR_HOST_APPLY when
   *   something cannot be taken back
   */
  static async open(options: HostNetworkOptions): Promise<HostNetwork> {
    const host = new HostNetwork(options);
    await host.revert();
    return host;
  }

  /**
   * Makes a change.
   *
   * @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE, ERR_UNSUPPORTED; what has been done stays until `revert`
   */
  apply(change: HostChange): Promise<void> {
    return this.applyAll([change]);
  }

  /** Makes several changes, in order, in fewer steps than one by one. @throws {VpnError} as `apply` */
  applyAll(changes: readonly HostChange[]): Promise<void> {
    return this.#enqueue(() => this.#applyAll(changes));
  }

  /**
   * Makes the host have these changes and no others of ours: what is missing is made, then what is not wanted any more is
   * taken back, and what stays is not touched. Settings of links and of the kernel stay until `revert`, but for forwarding.
   *
   * @throws {VpnError} as `apply`; the host has then what it had before
   */
  become(changes: readonly HostChange[]): Promise<void> {
    return this.#enqueue(() => this.#become(changes));
  }

  /** Takes every change back, newest first. Idempotent; changes may follow. @throws {VpnError} ERR_HOST_APPLY */
  revert(): Promise<void> {
    return this.#enqueue(() => this.#revert());
  }

  #enqueue(action: () => Promise<void>): Promise<void> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }

  async #applyAll(changes: readonly HostChange[]): Promise<void> {
    this.#journal ??= await this.#openJournal();
    const steps: Step[] = [];
    const links = await listLinks();
    for (const change of changes) {
      const planned = await planChange(change, links);
      steps.push(...planned);
      this.#made.set(JSON.stringify(change), { change, undos: planned.flatMap(({ undo }) => undo ?? []) });
    }
    await this.#journal.append(steps.flatMap(({ undo }) => (undo === undefined ? [] : [undo])));
    this.#log.debug('changes written down', { changes: changes.length });
    let lines: string[][] = [];
    const flush = async (): Promise<void> => {
      const batch = lines;
      lines = [];
      if (batch.length === 0) return;
      await runIpBatch(batch);
      this.#log.debug('changed', { commands: batch.map((words) => words.join(' ')) });
    };
    for (const { ip, run } of steps) {
      if (ip !== undefined) lines.push(...ip);
      if (run === undefined) continue;
      await flush();
      await run();
      this.#log.debug('changed');
    }
    await flush();
  }

  async #become(changes: readonly HostChange[]): Promise<void> {
    const wanted = new Set(changes.map((change) => JSON.stringify(change)));
    const added = changes.filter((change) => !this.#made.has(JSON.stringify(change)));
    const stale = [...this.#made].filter(([key]) => !wanted.has(key));
    try {
      if (added.length > 0) await this.#applyAll(added);
    } catch (error) {
      // As it was: what the failed change has half done must not stand beside it.
      await this.#undoChanges(added.map((change) => JSON.stringify(change)));
      throw error;
    }
    for (const [key, { change }] of stale) if (!isUndoneAlone(change)) this.#made.delete(key);
    await this.#undoChanges(stale.map(([key]) => key));
  }

  /** Takes single changes back, newest first; the state that another change has made of the same thing stays. */
  async #undoChanges(keys: readonly string[]): Promise<void> {
    const journal = this.#journal;
    if (journal === undefined) return;
    const undone = new Set(keys.flatMap((key) => this.#made.get(key)?.undos ?? []));
    for (const key of keys) this.#made.delete(key);
    const kept = new Set([...this.#made.values()].flatMap(({ undos }) => undos.map((undo) => JSON.stringify(undo))));
    const entries = journal.entries.filter(({ value }) => undone.has(value as Undo)).toReversed();
    const isKept = ({ value }: JournalEntry): boolean => kept.has(JSON.stringify(value));
    const [first] = await this.#undoAll(
      journal,
      entries.filter((entry) => !isKept(entry)),
    );
    await journal.markUndone(entries.filter(isKept).map(({ number }) => number));
    if (first !== undefined) this.#log.warn('a change to this host could not be taken back yet', { error: first });
  }

  async #openJournal(): Promise<Journal> {
    const journal = await Journal.open(this.#path);
    if (journal.foreignEntries > 0) {
      this.#log.warn('changes of an earlier start of this machine, or in another network namespace, are forgotten', {
        journal: this.#path,
        entries: journal.foreignEntries,
      });
    }
    return journal;
  }

  async #revert(): Promise<void> {
    const isLeftover = this.#journal === undefined;
    const journal = this.#journal ?? (await this.#openJournal());
    this.#journal = undefined;
    this.#made.clear();
    try {
      const { entries } = journal;
      if (isLeftover && entries.length > 0) {
        this.#log.warn('taking back what a run that died has left', { journal: this.#path, entries: entries.length });
      }
      const failures = await this.#undoAll(journal, entries.toReversed());
      const [first] = failures;
      if (first !== undefined) {
        const rest = failures.length === 1 ? '' : ` (and ${failures.length - 1} more)`;
        throw new VpnError(
          'ERR_HOST_APPLY',
          `cannot take back a change to this host: ${first.message}${rest}; it is tried again at the next start; ` +
            `to give it up, remove ${this.#path}`,
          { cause: first, details: { journal: this.#path, failures: failures.length } },
        );
      }
    } finally {
      await journal.close();
    }
  }

  /** Goes on after a failure: what can be taken back is. */
  async #undoAll(journal: Journal, entries: readonly JournalEntry[]): Promise<VpnError[]> {
    const failures: VpnError[] = [];
    const links = entries.length === 0 ? new Map<string, Link>() : await listLinks();
    let batch: { number: number; undo: Undo; lines: string[][] }[] = [];
    const flush = async (): Promise<void> => {
      const now = batch;
      batch = [];
      const failed = await runIpBatchLeniently(now.flatMap(({ lines }) => lines));
      const undone: number[] = [];
      let line = 0;
      for (const { number, undo, lines } of now) {
        const own = lines.flatMap(() => failed.get(++line) ?? []);
        if (own.length === 0 || (await isGone(undo))) undone.push(number);
        else failures.push(new VpnError('ERR_HOST_APPLY', own.join(' | ')));
      }
      await journal.markUndone(undone);
      if (now.length > 0) this.#log.debug('taken back', { entries: now.length });
    };
    for (const { number, value } of entries) {
      try {
        const undo = parseUndo(value);
        const lines = ipUndo(undo, links);
        if (lines !== undefined) {
          batch.push({ number, undo, lines });
          continue;
        }
        await flush();
        await runUndo(undo);
        await journal.markUndone([number]);
        this.#log.debug('taken back');
      } catch (error) {
        failures.push(toVpnError(error, 'ERR_HOST_APPLY'));
      }
    }
    await flush();
    return failures;
  }
}

/**
 * Settings are put back in the reverse of the order in which they were made, so only all together. Forwarding of one family or
 * device depends on no other setting, and is not to outlive its reason.
 */
function isUndoneAlone(change: HostChange): boolean {
  if (change.kind === 'sysctl') return change.key.endsWith('/forwarding');
  return change.kind !== 'link';
}
