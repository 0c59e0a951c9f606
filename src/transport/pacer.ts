/**
 * Rates: how many bytes may go, and when.
 *
 * Hides token buckets. A bucket fills at its rate up to its burst; whoever has packets reserves some of it, in turn, and is
 * told how long to wait until that is covered. So those who share a bucket get equal turns, nobody is passed over, and what
 * leaves within a time t is never more than burst + rate × t. A late timer loses nothing: the bucket goes on filling.
 * Bytes are those of the packets on the network, IP headers included, every segment of a super-packet with its own.
 *
 * Must not know timers or what is sent. Costs some additions per batch; nothing is allocated.
 */

/** A batch takes this long at the rate, within the bounds that the burst sets. */
const QUANTUM_MS = 4;
/** A segment of a super-packet has at least 256 bytes beside headers of at most some 100. */
const HEADER_SHARE = 0.7;

/** Some bytes per second, and how many may go at once. */
export interface Rate {
  readonly bytesPerSecond: number;
  readonly burstBytes: number;
}

/** One rate, shared by everybody who reserves from it. */
export class TokenBucket {
  /** Bytes per millisecond. */
  #rate: number;
  #burst: number;
  /** Below 0 while some wait for what they have reserved. */
  #tokens: number;
  /** Paid for and not gone yet. With the tokens it never exceeds the burst, however late those are who hold it. */
  #held = 0;
  #at: number;
  /** Bytes that have gone since the bucket was made. */
  usedBytes = 0;
  /** How often somebody had to wait. */
  waits = 0;

  /** @param now monotonic milliseconds, here as in all calls. It is full. */
  constructor(rate: Rate, now: number) {
    this.#rate = rate.bytesPerSecond / 1000;
    this.#burst = rate.burstBytes;
    this.#tokens = rate.burstBytes;
    this.#at = now;
  }

  /** Bytes per millisecond. */
  get rate(): number {
    return this.#rate;
  }

  get burst(): number {
    return this.#burst;
  }

  /** Another rate from now on; what has been reserved stays paid. */
  change(rate: Rate, now: number): void {
    this.#fill(now);
    this.#rate = rate.bytesPerSecond / 1000;
    this.#burst = rate.burstBytes;
    this.#tokens = Math.min(this.#tokens, this.#burst - this.#held);
  }

  /** Whether so many bytes may go at once, with nobody waiting. */
  has(bytes: number, now: number): boolean {
    this.#fill(now);
    return this.#tokens >= bytes;
  }

  /** Pays for bytes that go later. @returns milliseconds until they are covered */
  reserve(bytes: number, now: number): number {
    this.#fill(now);
    this.#tokens -= bytes;
    this.#held += bytes;
    if (this.#tokens >= 0) return 0;
    this.waits += 1;
    return -this.#tokens / this.#rate;
  }

  /** So many bytes have gone, reserved or not: what was not is made up for by the next reservation. */
  sent(bytes: number): void {
    this.#held -= bytes;
    this.usedBytes += bytes;
  }

  /** Takes back what was reserved and has not gone. */
  refund(bytes: number): void {
    this.#tokens += bytes;
    this.#held -= bytes;
  }

  #fill(now: number): void {
    if (now > this.#at) {
      this.#tokens = Math.min(this.#burst - this.#held, this.#tokens + (now - this.#at) * this.#rate);
      this.#at = now;
    }
  }
}

/** The rates that packets of one direction of a session have to keep, all of them. */
export class Pacer {
  readonly #buckets: readonly TokenBucket[];
  readonly #leastQuantum: number;

  /** @param mtu of the packets: two of them always go together if they are one super-packet */
  constructor(buckets: readonly TokenBucket[], mtu: number) {
    this.#buckets = buckets;
    this.#leastQuantum = 2 * mtu + 128;
  }

  /** What is reserved at a time. */
  get quantum(): number {
    let quantum = Number.POSITIVE_INFINITY;
    for (const { rate, burst } of this.#buckets) quantum = Math.min(quantum, rate * QUANTUM_MS, burst / 2);
    return Math.max(this.#leastQuantum, Math.min(quantum, 0xffff));
  }

  /** Bytes of frames that cost no more than so many bytes of packets. */
  framesWithin(credit: number): number {
    return Math.floor(credit * HEADER_SHARE);
  }

  /** Pays for something that goes at once. @returns false, and nothing is paid, when it has to wait */
  tryPay(bytes: number, now: number): boolean {
    for (const bucket of this.#buckets) if (!bucket.has(bytes, now)) return false;
    for (const bucket of this.#buckets) {
      bucket.reserve(bytes, now);
      bucket.sent(bytes);
    }
    return true;
  }

  /** Pays for what goes later. @returns milliseconds until it may go, 0: at once */
  reserve(bytes: number, now: number): number {
    let wait = 0;
    for (const bucket of this.#buckets) wait = Math.max(wait, bucket.reserve(bytes, now));
    return wait;
  }

  /** So many bytes have gone. */
  sent(bytes: number): void {
    for (const bucket of this.#buckets) bucket.sent(bytes);
  }

  /** Takes back what was reserved and is not needed. */
  refund(bytes: number): void {
    for (const bucket of this.#buckets) bucket.refund(bytes);
  }
}

/**
 * Sends a queue within the rates of a pacer: has credit for the next batch, or waits for it with one timer.
 *
 * At most one reservation stands at a time. Its owner asks `isOpen` before each batch and says what the batch was.
 */
export class PaceGate {
  readonly #resume: () => void;
  readonly #now: () => number;
  #pacer: Pacer | undefined;
  #credit = 0;
  #isWaiting = false;
  #timer: NodeJS.Timeout | undefined;
  #timerMs = 0;

  /** @param resume called when there is credit again */
  constructor(resume: () => void, now: () => number = () => performance.now()) {
    this.#resume = () => {
      this.#isWaiting = false;
      resume();
    };
    this.#now = now;
  }

  /** Undefined: everything may go. */
  get pacer(): Pacer | undefined {
    return this.#pacer;
  }

  /** What was reserved with the one before is given back. */
  set pacer(pacer: Pacer | undefined) {
    if (pacer === this.#pacer) return;
    this.idle();
    this.#pacer = pacer;
    if (!this.#isWaiting) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#isWaiting = false;
    setImmediate(this.#resume);
  }

  /** Whether `resume` will be called. */
  get isWaiting(): boolean {
    return this.#isWaiting;
  }

  /** Whether a batch may go; if not, `resume` will be called. */
  isOpen(): boolean {
    const pacer = this.#pacer;
    if (pacer === undefined) return true;
    if (this.#isWaiting) return false;
    const { quantum } = pacer;
    // What is left of one batch is used in the next.
    if (this.#credit >= quantum) return true;
    const wait = pacer.reserve(quantum - this.#credit, this.#now());
    this.#credit = quantum;
    if (wait <= 0) return true;
    this.#isWaiting = true;
    const ms = Math.max(1, Math.ceil(wait));
    if (this.#timer !== undefined && ms === this.#timerMs) this.#timer.refresh();
    else {
      clearTimeout(this.#timer);
      this.#timerMs = ms;
      this.#timer = setTimeout(this.#resume, ms).unref();
    }
    return false;
  }

  /** How many bytes of frames may go in a batch that is allowed. */
  get batchBytes(): number {
    return this.#pacer?.framesWithin(this.#credit) ?? Number.POSITIVE_INFINITY;
  }

  /** A batch of so many bytes of packets has gone. More than the credit is made up for by the next. */
  spent(bytes: number): void {
    if (this.#pacer === undefined) return;
    this.#credit -= bytes;
    this.#pacer.sent(bytes);
  }

  /** Whether so many bytes of packets may go past an empty queue; they are paid for. */
  tryPay(bytes: number): boolean {
    return this.#pacer === undefined || (!this.#isWaiting && this.#pacer.tryPay(bytes, this.#now()));
  }

  /** The queue is empty: what was reserved and not used is given back. */
  idle(): void {
    if (this.#credit !== 0) this.#pacer?.refund(this.#credit);
    this.#credit = 0;
  }

  close(): void {
    this.idle();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#isWaiting = false;
    this.#pacer = undefined;
  }
}
