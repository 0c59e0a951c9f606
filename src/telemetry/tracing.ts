/**
 * Spans: what was done for how long, within what, and how it ended.
 *
 * Hides identifiers and the way a span finds the one that it is within. Spans wait in a bounded queue for whoever sends them; where
 * nobody does, nothing is made. Attributes are facts of ours: no secret and no address.
 */

import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';
import { toVpnError } from '../base/errors.ts';

/** Spans that wait; further ones are dropped and counted. */
const MAX_WAITING = 4096;
const MAX_TEXT = 256;

export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** Something that is being done. */
export interface Span {
  /** Adds facts that come out later. */
  set(attributes: Attributes): void;
  /** It has failed, without an error being thrown. */
  fail(why: string): void;
}

export interface Tracer {
  /** Does some work as a span, within the one that it is called in; an error that is thrown fails it. */
  span<T>(name: string, attributes: Attributes, work: (span: Span) => Promise<T>): Promise<T>;
}

/** A span that is over. */
export interface EndedSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentId: string | undefined;
  readonly name: string;
  /** Milliseconds since the Unix epoch. */
  readonly startedAt: number;
  readonly endedAt: number;
  readonly attributes: ReadonlyMap<string, string | number | boolean>;
  /** Why it failed. */
  readonly failure: string | undefined;
}

const IDLE: Span = { set: () => {}, fail: () => {} };

/** For where nobody collects. */
export const noTracer: Tracer = { span: (_name, _attributes, work) => work(IDLE) };

/** Keeps spans until they are taken. */
export class SpanQueue implements Tracer {
  readonly #current = new AsyncLocalStorage<{ readonly traceId: string; readonly spanId: string }>();
  #ended: EndedSpan[] = [];
  #dropped = 0;

  get waiting(): number {
    return this.#ended.length;
  }

  /** How many there was no room for. */
  get dropped(): number {
    return this.#dropped;
  }

  async span<T>(name: string, attributes: Attributes, work: (span: Span) => Promise<T>): Promise<T> {
    const parent = this.#current.getStore();
    const ids = { traceId: parent?.traceId ?? randomBytes(16).toString('hex'), spanId: randomBytes(8).toString('hex') };
    const facts = new Map<string, string | number | boolean>();
    let failure: string | undefined;
    const set = (more: Attributes): void => {
      for (const [key, value] of Object.entries(more)) {
        if (value !== undefined) facts.set(key, typeof value === 'string' ? value.slice(0, MAX_TEXT) : value);
      }
    };
    set(attributes);
    const fail = (why: string): void => {
      failure = why.slice(0, MAX_TEXT);
    };
    const startedAt = performance.timeOrigin + performance.now();
    try {
      return await this.#current.run(ids, () => work({ set, fail }));
    } catch (error) {
      // Its code: a message can name anything.
      fail(toVpnError(error).code);
      throw error;
    } finally {
      const endedAt = performance.timeOrigin + performance.now();
      this.#put({ ...ids, parentId: parent?.spanId, name, startedAt, endedAt, attributes: facts, failure });
    }
  }

  /** The oldest so many; they are gone from here. */
  take(most: number): EndedSpan[] {
    const taken = this.#ended.slice(0, most);
    this.#ended = this.#ended.slice(most);
    return taken;
  }

  /** They are here again, as far as there is room. */
  putBack(spans: readonly EndedSpan[]): void {
    const room = MAX_WAITING - this.#ended.length;
    this.#ended = [...spans.slice(0, room), ...this.#ended];
    this.#dropped += Math.max(0, spans.length - room);
  }

  #put(span: EndedSpan): void {
    if (this.#ended.length < MAX_WAITING) this.#ended.push(span);
    else this.#dropped += 1;
  }
}
