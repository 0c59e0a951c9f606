/**
 * What happens at a gateway, as it happens: sessions, records and health, sent to whoever listens (server-sent events).
 *
 * Hides that it is asked for in an interval, once for all listeners and not at all without one, and that only what has changed
 * is sent. Whoever does not read is cut off: its backlog is bounded in bytes and time. It must not know who may listen.
 */

import type { ServerResponse } from 'node:http';
import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { Repeat } from '../../base/repeat.ts';
import type { AuditRecordInfo, GatewayStatus, SessionInfo } from '../../control/operations.ts';
import { beginStream } from './exchange.ts';

const LOOK_MS = 2000;
/** Each so many looks. */
const HEALTH_LOOKS = 5;
const ALIVE_LOOKS = 8;
const MAX_LISTENERS = 64;
/** More than all sessions of a full gateway at once. */
const MAX_BACKLOG_BYTES = 8 << 20;
const MAX_STALL_MS = 15_000;
const RECORDS_PER_LOOK = 200;

/** What can be listened to. */
export const TOPICS = ['sessions', 'audit', 'health'] as const;
export type Topic = (typeof TOPICS)[number];

export interface EventSource {
  sessions(): Promise<readonly SessionInfo[]>;
  /** Records after this one, the newest so many; undefined: only the newest there is. */
  records(after: string | undefined, limit: number): Promise<readonly AuditRecordInfo[]>;
  status(): Promise<GatewayStatus>;
}

export interface EventFeedParts {
  readonly source: EventSource;
  readonly clock: Clock;
  failed(error: unknown): void;
}

interface Listener {
  readonly response: ServerResponse;
  readonly topics: ReadonlySet<Topic>;
  /** Asked now and then. */
  readonly mayListen: () => Promise<boolean>;
  hasSessions: boolean;
  /** Since when it has not read all that was sent, by the monotonic clock. */
  stalledSince: number | undefined;
}

export class EventFeed {
  readonly #parts: EventFeedParts;
  readonly #listeners = new Set<Listener>();
  readonly #repeat: Repeat;
  #sessions = new Map<string, string>();
  #lastRecord: string | undefined;
  #health = '';
  #looks = 0;

  constructor(parts: EventFeedParts) {
    this.#parts = parts;
    this.#repeat = new Repeat(
      LOOK_MS,
      () => this.look(),
      (error) => parts.failed(error),
    );
  }

  /** How many listen. */
  get listeners(): number {
    return this.#listeners.size;
  }

  /**
   * Sends events until the other end is gone or `ended` says so.
   *
   * @throws {VpnError} ERR_BUSY when too many listen
   */
  add(
    response: ServerResponse,
    topics: readonly Topic[],
    { ended, mayListen }: { ended: AbortSignal; mayListen: () => Promise<boolean> },
  ): void {
    if (this.#listeners.size >= MAX_LISTENERS) {
      throw new VpnError('ERR_BUSY', `${MAX_LISTENERS} listen to events already; close another page first`);
    }
    const listener: Listener = {
      response,
      topics: new Set(topics),
      mayListen,
      hasSessions: false,
      stalledSince: undefined,
    };
    beginStream(response);
    const end = (): void => void response.end();
    ended.addEventListener('abort', end, { once: true });
    response.once('close', () => {
      ended.removeEventListener('abort', end);
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#pause();
    });
    response.on('error', () => response.destroy());
    this.#listeners.add(listener);
    if (this.#listeners.size === 1) this.#repeat.start();
    void this.#repeat.run();
  }

  async stop(): Promise<void> {
    for (const { response } of this.#listeners) response.destroy();
    await this.#repeat.stop();
  }

  /** Looks once, and tells. */
  async look(): Promise<void> {
    this.#looks += 1;
    if (this.#looks % HEALTH_LOOKS === 0) await this.#checkListeners();
    for (const listener of this.#listeners) this.#cutSilent(listener);
    const wanted = (topic: Topic) => [...this.#listeners].some(({ topics }) => topics.has(topic));
    if (wanted('sessions')) await this.#lookAtSessions();
    if (wanted('audit')) await this.#lookAtRecords();
    if (wanted('health') && (this.#health === '' || this.#looks % HEALTH_LOOKS === 0)) await this.#lookAtHealth();
    if (this.#looks % ALIVE_LOOKS === 0) for (const { response } of this.#listeners) response.write(': alive\n\n');
  }

  #pause(): void {
    void this.#repeat.stop();
    this.#sessions.clear();
    this.#lastRecord = undefined;
    this.#health = '';
  }

  async #checkListeners(): Promise<void> {
    for (const listener of [...this.#listeners]) if (!(await listener.mayListen())) listener.response.end();
  }

  #cutSilent(listener: Listener): void {
    const { response } = listener;
    const now = this.#parts.clock.now();
    listener.stalledSince = response.writableNeedDrain ? (listener.stalledSince ?? now) : undefined;
    const isSilent = listener.stalledSince !== undefined && now - listener.stalledSince >= MAX_STALL_MS;
    if (isSilent || response.writableLength > MAX_BACKLOG_BYTES) response.destroy();
  }

  async #lookAtSessions(): Promise<void> {
    const sessions = await this.#parts.source.sessions();
    const next = new Map(sessions.map((session) => [session.id, JSON.stringify(session)]));
    const changed = [...next].flatMap(([id, text]) => (this.#sessions.get(id) === text ? [] : [text]));
    const removed = [...this.#sessions.keys()].filter((id) => !next.has(id));
    this.#sessions = next;
    const news = changed.length + removed.length;
    const difference = event('sessions', `{"changed":[${changed.join()}],"removed":${JSON.stringify(removed)}}`);
    let whole: string | undefined;
    for (const listener of this.#listeners) {
      if (!listener.topics.has('sessions')) continue;
      if (listener.hasSessions) {
        if (news > 0) this.#tell(listener, difference);
        continue;
      }
      whole ??= event('sessions', `{"all":[${[...next.values()].join()}]}`);
      listener.hasSessions = true;
      this.#tell(listener, whole);
    }
  }

  async #lookAtRecords(): Promise<void> {
    const known = this.#lastRecord;
    const records = await this.#parts.source.records(known, known === undefined ? 1 : RECORDS_PER_LOOK);
    const last = records.at(-1);
    if (last !== undefined) this.#lastRecord = last.id;
    // The newest that there was at the first look is old news.
    if (known === undefined || last === undefined) return;
    this.#tellAll('audit', JSON.stringify(records));
  }

  async #lookAtHealth(): Promise<void> {
    const { sessions, waiting, warnings, certificates, pool, since } = await this.#parts.source.status();
    const text = JSON.stringify({ sessions, waiting, warnings, certificates, pool, since });
    if (text === this.#health) return;
    this.#health = text;
    this.#tellAll('health', text);
  }

  #tellAll(topic: Topic, data: string): void {
    const text = event(topic, data);
    for (const listener of this.#listeners) if (listener.topics.has(topic)) this.#tell(listener, text);
  }

  #tell(listener: Listener, text: string): void {
    listener.response.write(text);
    this.#cutSilent(listener);
  }
}

function event(topic: Topic, data: string): string {
  return `event: ${topic}\ndata: ${data}\n\n`;
}
