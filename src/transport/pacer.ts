/**
 * Rates: how many bytes may go, and when.
 *
 * Hides token buckets and the waiting for them. A bucket fills at its rate up to its burst; a batch goes when it is covered,
 * so what leaves within a time t is never more than burst + rate × t. Whoever has to wait stands in line, one turn is one
 * batch, and a bucket has one timer however many wait. A late timer loses nothing: the bucket goes on filling.
 * Bytes are those of the packets on the network, IP headers included, every segment of a super-packet with its own.
 *
 * Must not know what is sent. Costs some additions per batch.
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

/** One rate, shared by everybody who sends from it. */
export class TokenBucket {
  /** Bytes per millisecond. */
  #rate: number;
  #burst: number;
  /** Below 0 after a batch that was longer than its turn. */
  #tokens: number;
  #at: number;
  readonly #now: () => number;
  /** In the order of their turns. */
  readonly #waiting = new Set<PaceGate>();
  #timer: NodeJS.Timeout | undefined;
  /** Bytes that have gone since the bucket was made. */
  usedBytes = 0;
  /** How often somebody had to wait. */
  waits = 0;

  /** It is full. @param now monotonic milliseconds */
  constructor(rate: Rate, now: () => number = () => performance.now()) {
    this.#rate = rate.bytesPerSecond / 1000;
    this.#burst = rate.burstBytes;
    this.#tokens = rate.burstBytes;
    this.#now = now;
    this.#at = now();
  }

  /** Bytes per millisecond. */
  get rate(): number {
    return this.#rate;
  }

  get burst(): number {
    return this.#burst;
  }

  /** Another rate from now on. */
  change(rate: Rate): void {
    this.#fill();
    this.#rate = rate.bytesPerSecond / 1000;
    this.#burst = rate.burstBytes;
    this.#tokens = Math.min(this.#tokens, this.#burst);
    this.#arm();
  }

  /** Whether so many bytes are covered. */
  has(bytes: number): boolean {
    this.#fill();
    return this.#tokens >= bytes;
  }

  /** Whether somebody stands in line. */
  get isAwaited(): boolean {
    return this.#waiting.size > 0;
  }

  /** So many bytes have gone. */
  spent(bytes: number): void {
    this.#tokens -= bytes;
    this.usedBytes += bytes;
  }

  /** Puts a gate at the end of the line; it is called when it has its turn. */
  wait(gate: PaceGate): void {
    this.waits += 1;
    this.#waiting.add(gate);
    if (this.#timer === undefined) this.#arm();
  }

  /** Takes a gate out of the line. */
  leave(gate: PaceGate): void {
    this.#waiting.delete(gate);
  }

  #fill(): void {
    const now = this.#now();
    if (now <= this.#at) return;
    this.#tokens = Math.min(this.#burst, this.#tokens + (now - this.#at) * this.#rate);
    this.#at = now;
  }

  #arm(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const gate of this.#waiting) {
      const missing = gate.quantum - this.#tokens;
      this.#timer = setTimeout(() => this.#serve(), Math.max(1, Math.ceil(missing / this.#rate))).unref();
      break;
    }
  }

  /** Lets those go whose turn is covered. */
  #serve(): void {
    this.#timer = undefined;
    for (const gate of this.#waiting) {
      if (!this.has(gate.quantum)) break;
      this.#waiting.delete(gate);
      gate.takeTurn(this);
    }
    this.#arm();
  }
}

/** The rates that packets of one direction of a session have to keep, all of them. */
export class Pacer {
  readonly buckets: readonly TokenBucket[];
  readonly #leastQuantum: number;

  /** @param mtu of the packets: two of them always go together if they are one super-packet */
  constructor(buckets: readonly TokenBucket[], mtu: number) {
    this.buckets = buckets;
    this.#leastQuantum = 2 * mtu + 128;
  }

  /** The longest batch. */
  get quantum(): number {
    let quantum = 0xffff;
    let most = Number.POSITIVE_INFINITY;
    for (const { rate, burst } of this.buckets) {
      quantum = Math.min(quantum, rate * QUANTUM_MS, burst / 2);
      most = Math.min(most, burst);
    }
    // More than the burst would never be covered.
    return Math.min(most, Math.max(this.#leastQuantum, quantum));
  }

  /** Pays for something that goes at once. @returns false, and nothing is paid, when it has to wait */
  tryPay(bytes: number): boolean {
    for (const bucket of this.buckets) if (bucket.isAwaited || !bucket.has(bytes)) return false;
    this.spent(bytes);
    return true;
  }

  /** So many bytes have gone. */
  spent(bytes: number): void {
    for (const bucket of this.buckets) bucket.spent(bytes);
  }
}

/**
 * One queue that is sent within the rates of a pacer. Its owner asks `isOpen` before each batch and says with `spent` what
 * it was.
 */
export class PaceGate {
  readonly #resume: () => void;
  #pacer: Pacer | undefined;
  /** Where it stands in line. */
  #waitsFor: TokenBucket | undefined;
  /** Whose turn it has. */
  #turnOf: TokenBucket | undefined;

  /** @param resume called when a batch may go */
  constructor(resume: () => void) {
    this.#resume = resume;
  }

  /** Undefined: everything may go. */
  get pacer(): Pacer | undefined {
    return this.#pacer;
  }

  set pacer(pacer: Pacer | undefined) {
    if (pacer === this.#pacer) return;
    const wasWaiting = this.isWaiting;
    this.close();
    this.#pacer = pacer;
    if (wasWaiting) setImmediate(this.#resume);
  }

  /** Whether `resume` will be called. */
  get isWaiting(): boolean {
    return this.#waitsFor !== undefined;
  }

  /** What must be covered. */
  get quantum(): number {
    return this.#pacer?.quantum ?? 0;
  }

  /** Whether a batch may go; if not, `resume` will be called. */
  isOpen(): boolean {
    const pacer = this.#pacer;
    if (pacer === undefined) return true;
    if (this.isWaiting) return false;
    const { quantum } = pacer;
    for (const bucket of pacer.buckets) {
      // Those who stand in line come first, unless it has come out of that line.
      if (bucket.has(quantum) && (bucket === this.#turnOf || !bucket.isAwaited)) continue;
      this.#waitsFor = bucket;
      bucket.wait(this);
      return false;
    }
    return true;
  }

  /** How many bytes of frames may go in a batch that is allowed. */
  get batchBytes(): number {
    return this.#pacer === undefined ? Number.POSITIVE_INFINITY : Math.floor(this.#pacer.quantum * HEADER_SHARE);
  }

  /** A batch of so many bytes of packets has gone. */
  spent(bytes: number): void {
    this.#turnOf = undefined;
    this.#pacer?.spent(bytes);
  }

  /** Whether so many bytes of packets may go past an empty queue; they are paid for. */
  tryPay(bytes: number): boolean {
    return this.#pacer === undefined || (!this.isWaiting && this.#pacer.tryPay(bytes));
  }

  /** For the bucket: it is this gate's turn, and covered. */
  takeTurn(bucket: TokenBucket): void {
    this.#waitsFor = undefined;
    this.#turnOf = bucket;
    this.#resume();
    this.#turnOf = undefined;
  }

  /** Waits no more; everything may go. */
  close(): void {
    this.#waitsFor?.leave(this);
    this.#waitsFor = undefined;
    this.#turnOf = undefined;
    this.#pacer = undefined;
  }
}
