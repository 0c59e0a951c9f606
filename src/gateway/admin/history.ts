/**
 * The last hour of a gateway in samples: sessions, bytes carried, logins.
 *
 * Hides how rates come out of counters that end with their sessions. It keeps a fixed number of samples, and asks once in an
 * interval, whoever looks.
 */

import type { Clock } from '../../base/clock.ts';
import { Repeat } from '../../base/repeat.ts';
import type { GatewayHistory, SessionInfo } from '../../control/operations.ts';

const EVERY_MS = 10_000;
const SAMPLES = 360;

/** Logins since the start of the process. */
export interface LoginCounts {
  readonly accepted: number;
  readonly refused: number;
}

export interface HistoryParts {
  sessions(): Promise<readonly SessionInfo[]>;
  logins(): LoginCounts;
  clock: Clock;
  failed(error: unknown): void;
}

type Traffic = ReadonlyMap<string, { readonly receivedBytes: number; readonly sentBytes: number }>;

export class History {
  readonly #parts: HistoryParts;
  readonly #samples: GatewayHistory['samples'] = [];
  readonly #repeat: Repeat;
  #traffic: Traffic | undefined;
  #logins: LoginCounts = { accepted: 0, refused: 0 };

  constructor(parts: HistoryParts) {
    this.#parts = parts;
    this.#repeat = new Repeat(
      EVERY_MS,
      () => this.sample(),
      (error) => parts.failed(error),
    );
  }

  start(): void {
    this.#repeat.start();
    void this.#repeat.run();
  }

  async stop(): Promise<void> {
    await this.#repeat.stop();
  }

  report(): GatewayHistory {
    return { everySeconds: EVERY_MS / 1000, samples: [...this.#samples] };
  }

  /** Takes one sample now. */
  async sample(): Promise<void> {
    const sessions = await this.#parts.sessions();
    const logins = this.#parts.logins();
    const former = this.#traffic;
    const before = this.#logins;
    this.#traffic = new Map(sessions.map(({ id, receivedBytes, sentBytes }) => [id, { receivedBytes, sentBytes }]));
    this.#logins = logins;
    // Of what was carried before the first look nobody knows when.
    if (former === undefined) return;
    let receivedBytes = 0;
    let sentBytes = 0;
    for (const session of sessions) {
      const known = former.get(session.id);
      receivedBytes += Math.max(0, session.receivedBytes - (known?.receivedBytes ?? 0));
      sentBytes += Math.max(0, session.sentBytes - (known?.sentBytes ?? 0));
    }
    this.#samples.push({
      at: new Date(this.#parts.clock.wallNow()).toISOString(),
      sessions: sessions.length,
      receivedBytes,
      sentBytes,
      accepted: logins.accepted - before.accepted,
      refused: logins.refused - before.refused,
    });
    if (this.#samples.length > SAMPLES) this.#samples.shift();
  }
}
