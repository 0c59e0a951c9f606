/**
 * Tells other programs what goes into the audit record: sessions, logins, refusals, changes.
 *
 * Hides delivery. The record itself is the queue, so that nothing is lost with a process and nothing fills its memory: each
 * webhook goes through it in order, at a pace of its own, and remembers how far it has come. A record that is refused too often, or
 * has become too old, is put aside as a dead letter, and the next one has its turn. A record may come twice after a crash; its id
 * tells. Requests are signed as Standard Webhooks has it (`webhook-id`, `webhook-timestamp`, `webhook-signature`).
 */

import { createHmac, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Clock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import { type Logger, Secret } from '../../base/log.ts';
import { readSecretFile } from '../../base/private-file.ts';
import { readAuthorities } from '../../identity/backends/open.ts';
import type { Audit, AuditRecord } from '../../store/audit.ts';
import type { DeadLetter, WebhookRecord } from '../../store/webhooks.ts';
import { type PostAnswer, Poster } from '../../telemetry/post.ts';
import { auditInfo } from '../administration.ts';
import type { GatewayConfig } from '../config.ts';

const LOOK_MS = 1000;
/** What two writers commit in another order than their records are in is there by then. */
const SETTLE_MS = 2000;
const BATCH = 100;
/** After the first failure, the second, …; the last holds for all that follow. Give or take a fifth. */
const DELAYS_MS = [1000, 5000, 30_000, 120_000, 300_000];
const MAX_RETRY_AFTER_MS = 600_000;
const MAX_WHY = 256;
/** Dead letters that wait to be tried again. */
const MAX_AGAIN = 10_000;

type WebhookConfig = GatewayConfig['webhooks'][string];

/** A webhook as configured, with what its files hold. */
export interface WebhookTarget {
  readonly name: string;
  readonly config: WebhookConfig;
  readonly key: Secret<Buffer>;
  readonly ca: string | undefined;
}

export interface WebhooksOptions {
  readonly targets: readonly WebhookTarget[];
  readonly audit: Audit;
  readonly record: WebhookRecord;
  readonly clock: Clock;
  readonly log: Logger;
  readonly settleMs?: number;
  readonly lookMs?: number;
  readonly delaysMs?: readonly number[];
}

/** How a webhook is doing. */
export interface WebhookState {
  readonly name: string;
  readonly target: string;
  readonly events: readonly string[];
  readonly state: 'idle' | 'sending' | 'failing';
  readonly waiting: number;
  readonly dead: number;
  /** Since the start: events that were told, requests that failed, events that were put aside. */
  readonly delivered: number;
  readonly failed: number;
  readonly died: number;
  /** Milliseconds since the Unix epoch. */
  readonly lastDeliveredAt: number | undefined;
  readonly nextTryAt: number | undefined;
  readonly lastError: string | undefined;
}

/** What became of one request. */
export interface WebhookTrial {
  readonly status: number | undefined;
  readonly ms: number;
  readonly error: string | undefined;
}

/**
 * Reads the secrets of the webhooks, while their files can be.
 *
 * @throws {VpnError} ERR_CONFIG_FILE, ERR_CERT_FILE
 */
export async function readWebhookTargets({ webhooks }: GatewayConfig): Promise<WebhookTarget[]> {
  const targets: WebhookTarget[] = [];
  for (const [name, config] of Object.entries(webhooks)) {
    const key = new Secret(keyOf(await readSecretFile(config.secretFile)));
    targets.push({
      name,
      config,
      key,
      ca: config.caFile === undefined ? undefined : await readAuthorities(config.caFile),
    });
  }
  return targets;
}

export class Webhooks {
  readonly #options: WebhooksOptions;
  readonly #deliveries: ReadonlyMap<string, Delivery>;

  constructor(options: WebhooksOptions) {
    this.#options = options;
    this.#deliveries = new Map(options.targets.map((target) => [target.name, new Delivery(target, options)]));
  }

  /** One that is new begins with what is recorded from now on. @throws {VpnError} ERR_STORE */
  async start(): Promise<void> {
    for (const delivery of this.#deliveries.values()) await delivery.start();
  }

  /** Requests that are under way are given up; they are made again after the next start. */
  async stop(): Promise<void> {
    await Promise.all([...this.#deliveries.values()].map((delivery) => delivery.stop()));
  }

  /** @throws {VpnError} ERR_STORE */
  async list(): Promise<WebhookState[]> {
    const dead = await this.#options.record.countDead();
    return await Promise.all(
      [...this.#deliveries.values()].map((delivery) => delivery.state(dead.get(delivery.name) ?? 0)),
    );
  }

  /** Posts an event of no meaning, once. @throws {VpnError} ERR_NOT_FOUND */
  async test(name: string): Promise<WebhookTrial> {
    return await this.#find(name).test();
  }

  /** What was not told, newest first. @throws {VpnError} ERR_STORE, ERR_NOT_FOUND */
  async dead(
    name: string | undefined,
    limit: number,
  ): Promise<{ letter: DeadLetter; record: AuditRecord | undefined }[]> {
    if (name !== undefined) this.#find(name);
    const letters = await this.#options.record.dead(name, limit);
    const records = new Map(
      (await this.#options.audit.find(letters.map(({ record }) => record))).map((record) => [record.id, record]),
    );
    return letters.map((letter) => ({ letter, record: records.get(letter.record) }));
  }

  /**
   * Has dead letters tried again, once each, before anything else; what waits for its next try is tried now.
   *
   * @param record the beginning of an id; undefined: all
   * @returns how many
   * @throws {VpnError} ERR_NOT_FOUND, ERR_STORE
   */
  async retry(name: string | undefined, record: string | undefined): Promise<number> {
    if (name !== undefined) this.#find(name);
    const letters = (await this.#options.record.dead(name, MAX_AGAIN)).filter(
      (letter) => record === undefined || letter.record.startsWith(record),
    );
    if (record !== undefined && letters.length === 0) {
      throw new VpnError('ERR_NOT_FOUND', `no dead letter starts with ${record}; see: customvpn webhook dead`);
    }
    // In their order.
    for (const letter of letters.reverse()) this.#deliveries.get(letter.webhook)?.again(letter);
    for (const delivery of this.#deliveries.values())
      if (name === undefined || delivery.name === name) delivery.hurry();
    return letters.filter(({ webhook }) => this.#deliveries.has(webhook)).length;
  }

  #find(name: string): Delivery {
    const delivery = this.#deliveries.get(name);
    if (delivery !== undefined) return delivery;
    const known = [...this.#deliveries.keys()].join(', ') || 'none';
    throw new VpnError('ERR_NOT_FOUND', `the configuration has no webhook "${name}"; it has: ${known}`);
  }
}

/** One webhook on its way through the record. */
class Delivery {
  readonly #target: WebhookTarget;
  readonly #options: WebhooksOptions;
  readonly #log: Logger;
  readonly #poster: Poster;
  readonly #stopping = new AbortController();
  readonly #again: DeadLetter[] = [];
  #hurry = new AbortController();
  #running: Promise<void> | undefined;
  #after = '';
  /** As it is in the store. */
  #saved = '';
  #isSending = false;
  #hasFailed = false;
  #lastDeliveredAt: number | undefined;
  #nextTryAt: number | undefined;
  #lastError: string | undefined;
  readonly counts = { delivered: 0, failed: 0, died: 0 };

  constructor(target: WebhookTarget, options: WebhooksOptions) {
    this.#target = target;
    this.#options = options;
    this.#log = options.log.child({ component: 'webhooks', webhook: target.name });
    const { url, timeoutSeconds } = target.config;
    this.#poster = new Poster({ url, ca: target.ca, timeoutMs: timeoutSeconds * 1000 });
  }

  get name(): string {
    return this.#target.name;
  }

  async start(): Promise<void> {
    const { record, audit } = this.#options;
    const known = await record.progress(this.name);
    this.#after = known ?? (await audit.list({ limit: 1 }))[0]?.id ?? '';
    this.#saved = known ?? '';
    if (known === undefined) await record.advance(this.name, this.#after);
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
    this.#poster[Symbol.dispose]();
  }

  async state(dead: number): Promise<WebhookState> {
    const { url, events } = this.#target.config;
    let waiting = this.#again.length;
    for (const [event, count] of await this.#options.audit.countAfter(this.#after))
      if (this.#isWanted(event)) waiting += count;
    return {
      name: this.name,
      // What follows the host is often a secret.
      target: new URL(url).origin,
      events,
      state: this.#hasFailed ? 'failing' : this.#isSending ? 'sending' : 'idle',
      waiting,
      dead,
      delivered: this.counts.delivered,
      failed: this.counts.failed,
      died: this.counts.died,
      lastDeliveredAt: this.#lastDeliveredAt,
      nextTryAt: this.#nextTryAt,
      lastError: this.#lastError,
    };
  }

  async test(): Promise<WebhookTrial> {
    const began = performance.now();
    const ms = (): number => Math.round(performance.now() - began);
    try {
      const body = JSON.stringify({ type: 'webhook.test', timestamp: this.#instant(), data: {} });
      const { status } = await this.#post(`test-${randomBytes(8).toString('hex')}`, body);
      return { status, ms: ms(), error: isGood(status) ? undefined : `the server answered ${status}` };
    } catch (error) {
      return { status: undefined, ms: ms(), error: toVpnError(error).message };
    }
  }

  again(letter: DeadLetter): void {
    if (this.#again.length < MAX_AGAIN && !this.#again.some(({ record }) => record === letter.record)) {
      this.#again.push(letter);
    }
  }

  /** What waits for its time waits no more. */
  hurry(): void {
    this.#hurry.abort();
    this.#hurry = new AbortController();
  }

  async #run(): Promise<void> {
    let isStoreBroken = false;
    while (!this.#stopping.signal.aborted) {
      try {
        const isIdle = !(await this.#tryAgain()) && !(await this.#goOn());
        await this.#save();
        isStoreBroken = false;
        if (isIdle) await this.#pause(this.#options.lookMs ?? LOOK_MS);
      } catch (error) {
        if (!isStoreBroken) this.#log.error('the webhook waits: the record cannot be read', { error });
        isStoreBroken = true;
        await this.#pause(DELAYS_MS[1] ?? LOOK_MS);
      }
    }
    await this.#save().catch((error: unknown) => this.#log.warn('some events may come twice', { error }));
  }

  /** One dead letter; false: there is none. */
  async #tryAgain(): Promise<boolean> {
    const letter = this.#again[0];
    if (letter === undefined) return false;
    const { record, audit, clock } = this.#options;
    const [event] = await audit.find([letter.record]);
    const why = event === undefined ? undefined : await this.#attempt(event);
    if (this.#stopping.signal.aborted && why !== undefined) return true;
    this.#again.shift();
    if (why === undefined) await record.forget(this.name, letter.record);
    else await record.bury([{ ...letter, at: clock.wallNow(), tries: letter.tries + 1, why: why.text }]);
    return true;
  }

  /** The next records; false: there is none. */
  async #goOn(): Promise<boolean> {
    const { audit, clock, record, settleMs = SETTLE_MS } = this.#options;
    const events = await audit.next(this.#after, settleMs, BATCH);
    const old: DeadLetter[] = [];
    const done = async (last: AuditRecord): Promise<void> => {
      this.counts.died += old.length;
      await record.bury(old.splice(0));
      this.#after = last.id;
    };
    let last: AuditRecord | undefined;
    for (const event of events) {
      if (this.#again.length > 0) break;
      const { keepHours } = this.#target.config;
      if (!this.#isWanted(event.event)) {
        // Nothing to do.
      } else if (clock.wallNow() - event.at > keepHours * 3_600_000) {
        const why = `older than ${keepHours} h`;
        old.push({ webhook: this.name, record: event.id, at: clock.wallNow(), tries: 0, why });
      } else {
        if (!(await this.#deliver(event))) break;
        await done(event);
      }
      last = event;
    }
    if (last !== undefined) await done(last);
    return events.length > 0;
  }

  /** Until it is told or dead; false: the gateway stops before. */
  async #deliver(event: AuditRecord): Promise<boolean> {
    const { tries: most } = this.#target.config;
    const { delaysMs = DELAYS_MS, record, clock } = this.#options;
    for (let tries = 1; ; tries++) {
      const why = await this.#attempt(event);
      if (why === undefined) return true;
      if (this.#stopping.signal.aborted) return false;
      if (tries >= most) {
        this.counts.died += 1;
        await record.bury([{ webhook: this.name, record: event.id, at: clock.wallNow(), tries, why: why.text }]);
        this.#log.warn('an event was put aside; see: customvpn webhook dead', {
          event: event.event,
          tries,
          reason: why.text,
        });
        return true;
      }
      const delay = (delaysMs[Math.min(tries, delaysMs.length) - 1] ?? 0) * (0.8 + Math.random() * 0.4);
      await this.#pause(Math.max(delay, Math.min(why.retryAfterMs ?? 0, MAX_RETRY_AFTER_MS)));
      if (this.#stopping.signal.aborted) return false;
    }
  }

  /** Once; undefined: it is told. */
  async #attempt(event: AuditRecord): Promise<{ text: string; retryAfterMs: number | undefined } | undefined> {
    this.#isSending = true;
    const body = JSON.stringify({
      type: event.event,
      timestamp: new Date(event.at).toISOString(),
      data: auditInfo(event),
    });
    let text: string;
    let retryAfterMs: number | undefined;
    try {
      const answer = await this.#post(event.id, body);
      if (isGood(answer.status)) {
        this.#succeeded();
        return undefined;
      }
      text = `the server answered ${answer.status}`;
      ({ retryAfterMs } = answer);
    } catch (error) {
      text = toVpnError(error).message;
    } finally {
      this.#isSending = false;
    }
    if (!this.#stopping.signal.aborted) this.#failed(text);
    return { text: text.slice(0, MAX_WHY), retryAfterMs };
  }

  #succeeded(): void {
    this.counts.delivered += 1;
    this.#lastDeliveredAt = this.#options.clock.wallNow();
    this.#lastError = undefined;
    if (this.#hasFailed) this.#log.info('the webhook answers again');
    this.#hasFailed = false;
  }

  #failed(text: string): void {
    this.counts.failed += 1;
    this.#lastError = text;
    if (!this.#hasFailed) this.#log.warn('the webhook does not take events; they wait', { reason: text });
    this.#hasFailed = true;
  }

  #post(id: string, body: string): Promise<PostAnswer> {
    const timestamp = Math.trunc(this.#options.clock.wallNow() / 1000);
    const headers = {
      'user-agent': 'customvpn',
      'webhook-id': id,
      'webhook-timestamp': String(timestamp),
      'webhook-signature': signatureOf(this.#target.key.reveal(), id, timestamp, body),
    };
    return this.#poster.post(body, headers, { signal: this.#stopping.signal });
  }

  async #save(): Promise<void> {
    if (this.#after === this.#saved) return;
    await this.#options.record.advance(this.name, this.#after);
    this.#saved = this.#after;
  }

  async #pause(ms: number): Promise<void> {
    const signal = AbortSignal.any([this.#stopping.signal, this.#hurry.signal]);
    if (this.#hasFailed) this.#nextTryAt = this.#options.clock.wallNow() + ms;
    await sleep(ms, undefined, { signal, ref: false }).catch(() => {});
    this.#nextTryAt = undefined;
  }

  /** By its whole name or the first part of it. */
  #isWanted(event: string): boolean {
    const { events } = this.#target.config;
    return events.length === 0 || events.some((name) => event === name || event.startsWith(`${name}.`));
  }

  #instant(): string {
    return new Date(this.#options.clock.wallNow()).toISOString();
  }
}

/** `webhook-signature` of a request. @param timestamp seconds since the Unix epoch */
export function signatureOf(key: Buffer, id: string, timestamp: number, body: string): string {
  return `v1,${createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest('base64')}`;
}

/** Such as `whsec_` and base64 are bytes; anything else is its own. */
function keyOf(secret: string): Buffer {
  const [, encoded] = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(secret) ?? [];
  return encoded === undefined ? Buffer.from(secret) : Buffer.from(encoded, 'base64');
}

function isGood(status: number): boolean {
  return status >= 200 && status < 300;
}
