/**
 * The handshakes in flight: whose turn it is to begin, and who makes room when there are too many.
 *
 * Hides fairness among strangers, who may be clients that have all lost their gateway at once, or mean to keep clients out. A
 * handshake costs most of a millisecond, and packets of living sessions wait meanwhile: so one begins in each turn of the event
 * loop, of the source that has the fewest begun, and those who have sent their whole hello wait for that. Nobody who waits for us is
 * sent away while there is room to wait. Who says nothing, or does not go on, waits for nobody: he makes room as soon as others
 * need it. Must not know sockets, nor TLS.
 */

/** As many are begun as answers are on their way from clients: at 250 ms each, 500 come to an end in a second. */
const MOST_BEGUN = 128;
/** One that was begun and does not go on for so long makes room for one that waits. */
const PATIENCE_MS = 1000;
/** The same where there is no room left to wait: far more than a way to the other side of the world and back. */
const SHORT_PATIENCE_MS = 500;

export interface HandshakeLimits {
  /** How many may be there whose hello is not whole, and how many that wait for their turn. */
  readonly most: number;
  /** How many of the former may be one source's, and how many of those that are begun. */
  readonly mostPerSource: number;
}

export interface HandshakesOptions<T> {
  /** Asked every time. */
  limits: () => HandshakeLimits;
  /** It is this one's turn: it begins. */
  begin(handshake: T): void;
  /** This one is in flight no more: it makes room. */
  displaced(handshake: T): void;
  /** Monotonic milliseconds. */
  now?: () => number;
}

/** Those of one source, each in the order in which they came. */
interface Source<T> {
  readonly name: string | undefined;
  readonly silent: Set<T>;
  readonly waiting: Set<T>;
  readonly begun: Set<T>;
}

/** All handshakes in a stage that anybody can bring about; who makes room is found at the same cost, however many there are. */
class Crowd<T> {
  /** In the order in which they came. */
  readonly all = new Set<T>();
  /** The sets of sources with a name, by their size. */
  readonly #bySize: Set<Set<T>>[] = [];

  get size(): number {
    return this.all.size;
  }

  /** @param own those of the source in this stage */
  add(handshake: T, own: Set<T>, isNamed: boolean): void {
    this.all.add(handshake);
    own.add(handshake);
    if (isNamed) this.#resized(own, own.size - 1);
  }

  /** @returns whether it was there */
  delete(handshake: T, own: Set<T>, isNamed: boolean): boolean {
    if (!own.delete(handshake)) return false;
    this.all.delete(handshake);
    if (isNamed) this.#resized(own, own.size + 1);
    return true;
  }

  /** The first of a source that has the most; where none has more than one, the first of all. */
  first(): T | undefined {
    const most = this.#bySize.length > 2 ? this.#bySize.at(-1) : undefined;
    const [own = this.all] = most ?? [];
    const [handshake] = own;
    return handshake;
  }

  #resized(own: Set<T>, before: number): void {
    this.#bySize[before]?.delete(own);
    for (let size = this.#bySize.length; size <= own.size; size += 1) this.#bySize.push(new Set());
    if (own.size > 0) this.#bySize[own.size]?.add(own);
    while (this.#bySize.at(-1)?.size === 0) this.#bySize.pop();
  }
}

/** Handshakes, of the kind that the caller has, by their source. */
export class Handshakes<T extends { readonly source: string | undefined }> {
  readonly #options: HandshakesOptions<T>;
  readonly #now: () => number;
  readonly #sources = new Map<string | undefined, Source<T>>();
  readonly #silent = new Crowd<T>();
  readonly #waiting = new Crowd<T>();
  /** With the time, in its order. */
  readonly #begun = new Map<T, number>();
  /** Those with somebody who waits, who had its turn longest ago first. */
  readonly #awaited = new Set<Source<T>>();
  #turn: NodeJS.Immediate | undefined;
  #patience: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(options: HandshakesOptions<T>) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** How many are in flight. */
  get size(): number {
    return this.#silent.size + this.#waiting.size + this.#begun.size;
  }

  /** Whether this source may have another. */
  admits(source: string | undefined): boolean {
    if (source === undefined) return true;
    return (this.#sources.get(source)?.silent.size ?? 0) < this.#options.limits().mostPerSource;
  }

  /** One has come and said nothing yet. */
  add(handshake: T): void {
    if (this.#silent.size >= this.#options.limits().most) this.#displace(this.#silent.first());
    const source = this.#sourceOf(handshake);
    this.#silent.add(handshake, source.silent, source.name !== undefined);
  }

  /** Its hello is whole: it begins when it has its turn. */
  wait(handshake: T): void {
    const source = this.#sourceOf(handshake);
    const isNamed = source.name !== undefined;
    if (!this.#silent.delete(handshake, source.silent, isNamed)) return;
    if (this.#isWaitFull) this.#displace(this.#waiting.first());
    this.#waiting.add(handshake, source.waiting, isNamed);
    this.#awaited.add(source);
    // The one that made room may have been of this source, and its last.
    this.#sources.set(source.name, source);
    this.#schedule();
  }

  /** It is over. @returns whether it was in flight */
  delete(handshake: T): boolean {
    const source = this.#sources.get(handshake.source);
    if (source === undefined) return false;
    const isNamed = source.name !== undefined;
    this.#begun.delete(handshake);
    const had =
      this.#silent.delete(handshake, source.silent, isNamed) ||
      this.#waiting.delete(handshake, source.waiting, isNamed) ||
      source.begun.delete(handshake);
    if (source.waiting.size === 0) this.#awaited.delete(source);
    if (source.silent.size + source.waiting.size + source.begun.size === 0) this.#sources.delete(source.name);
    if (had) this.#schedule();
    return had;
  }

  /** None begins any more. @returns those in flight */
  close(): T[] {
    this.#isClosed = true;
    clearImmediate(this.#turn);
    clearTimeout(this.#patience);
    return [...this.#silent.all, ...this.#waiting.all, ...this.#begun.keys()];
  }

  #sourceOf({ source: name }: T): Source<T> {
    let source = this.#sources.get(name);
    if (source === undefined) {
      source = { name, silent: new Set(), waiting: new Set(), begun: new Set() };
      this.#sources.set(name, source);
    }
    return source;
  }

  #schedule(): void {
    if (this.#awaited.size === 0 || this.#isClosed) return;
    this.#turn ??= setImmediate(() => {
      this.#turn = undefined;
      this.#beginNext();
    });
  }

  #beginNext(): void {
    const now = this.#now();
    const isFull = this.#begun.size >= Math.min(MOST_BEGUN, this.#options.limits().most);
    const source = isFull ? undefined : this.#next();
    const [handshake] = source?.waiting ?? [];
    if (source === undefined || handshake === undefined) {
      this.#displace(this.#overdue(now));
      this.#schedulePatience(now);
      return;
    }
    this.#waiting.delete(handshake, source.waiting, source.name !== undefined);
    this.#awaited.delete(source);
    if (source.waiting.size > 0) this.#awaited.add(source);
    this.#begun.set(handshake, now);
    source.begun.add(handshake);
    this.#options.begin(handshake);
    this.#schedule();
  }

  /** Whose turn it is. Seldom looks at more than a few: fewer sources than `MOST_BEGUN` have any begun. */
  #next(): Source<T> | undefined {
    let fewest = this.#options.limits().mostPerSource;
    let next: Source<T> | undefined;
    for (const source of this.#awaited) {
      // Proxies that speak for themselves are not strangers.
      const begun = source.name === undefined ? 0 : source.begun.size;
      if (begun >= fewest) continue;
      if (begun === 0) return source;
      fewest = begun;
      next = source;
    }
    return next;
  }

  /** Of those that do not go on, the first of the source that has the most begun. There are few. */
  #overdue(now: number): T | undefined {
    let most = 0;
    let found: T | undefined;
    for (const [handshake, begunAt] of this.#begun) {
      if (now - begunAt < this.#patienceMs) break;
      const { source } = handshake;
      const count = source === undefined ? 1 : (this.#sources.get(source)?.begun.size ?? 0);
      if (count <= most) continue;
      most = count;
      found = handshake;
    }
    return found;
  }

  get #isWaitFull(): boolean {
    return this.#waiting.size >= this.#options.limits().most;
  }

  get #patienceMs(): number {
    return this.#isWaitFull ? SHORT_PATIENCE_MS : PATIENCE_MS;
  }

  /** While others wait, somebody who does not go on is waited for no longer. */
  #schedulePatience(now: number): void {
    const [begunAt] = this.#begun.values();
    if (begunAt === undefined || this.#turn !== undefined) return;
    this.#patience ??= setTimeout(
      () => {
        this.#patience = undefined;
        this.#schedule();
      },
      Math.max(1, begunAt + this.#patienceMs - now),
    ).unref();
  }

  #displace(handshake: T | undefined): void {
    if (handshake === undefined) return;
    this.delete(handshake);
    this.#options.displaced(handshake);
  }
}
