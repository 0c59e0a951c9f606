/**
 * A bad cable between two namespaces of a lab: loss, delay, jitter, reordering, duplication, or nothing at all.
 *
 * Hides the relay (`impairment-peer.ts`) in a namespace of its own, and that every device around it must leave packets as a
 * cable would carry them. What it does may be changed while traffic flows. The same for every product: it sees frames.
 */

import { type BackgroundProcess, LabError, until } from './process.ts';
import type { Namespace, Rig } from './rig.ts';

/** What happens to each frame, in both directions; chances in [0, 1]. */
export interface ImpairmentOptions {
  /** One way. */
  readonly delayMs?: number;
  /** Added to the delay or taken from it, evenly; it changes no order. */
  readonly jitterMs?: number;
  readonly loss?: number;
  readonly duplicate?: number;
  /** Chance that a frame is held back so that later ones pass it, by `reorderMs` (default 5). */
  readonly reorder?: number;
  readonly reorderMs?: number;
  /** Everything is lost. */
  readonly isBlackHole?: boolean;
}

export interface ImpairmentCounters {
  passed: number;
  lost: number;
  duplicated: number;
  reordered: number;
  /** Let go early because too many were on the way: what was measured then is worth nothing. */
  overflowed: number;
  /** Longer than an Ethernet frame: some device has joined segments. */
  tooLong: number;
  /** That were passed. */
  bytes: number;
}

export interface ImpairmentEnd {
  readonly namespace: Namespace;
  readonly device: string;
  readonly addresses: readonly string[];
}

export class Impairment {
  readonly #process: BackgroundProcess;
  #answers = 0;

  private constructor(process: BackgroundProcess) {
    this.#process = process;
  }

  /** Lays the cable; the ends are neighbours on one network. @param label of the namespace in between */
  static async open(
    rig: Rig,
    label: string,
    ends: readonly [ImpairmentEnd, ImpairmentEnd],
    options: ImpairmentOptions = {},
    seed = 1,
  ): Promise<Impairment> {
    const cable = await rig.namespace(label);
    await cable.setSysctl('net.ipv6.conf.default.disable_ipv6', '1');
    for (const [at, end] of ends.entries()) {
      const device = `cable${at}`;
      await rig.link(end, { namespace: cable, device }, { offloads: false });
      // A relay of frames computes no checksums.
      await end.namespace.run(['ethtool', '-K', end.device, 'tx', 'off']);
    }
    const peer = new URL('./impairment-peer.ts', import.meta.url).pathname;
    const node = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
    const started = await cable.start([...node, peer, 'cable0', 'cable1', String(seed)], {
      ready: /ready/,
      isTyped: true,
    });
    const impairment = new Impairment(started);
    await impairment.set(options);
    return impairment;
  }

  /** Changes what is done to frames that come from now on. */
  async set(options: ImpairmentOptions): Promise<void> {
    await this.#ask(JSON.stringify(options));
  }

  /** What has been done so far, from the first end to the second, and back. @throws {LabError} when a frame was too long */
  async counters(): Promise<[ImpairmentCounters, ImpairmentCounters]> {
    const counters = JSON.parse(await this.#ask('')) as [ImpairmentCounters, ImpairmentCounters];
    const tooLong = counters[0].tooLong + counters[1].tooLong;
    if (tooLong > 0) throw new LabError(`${tooLong} frames on the cable were longer than 1,514 bytes`);
    return counters;
  }

  async close(): Promise<void> {
    await this.#process.stop();
  }

  async #ask(line: string): Promise<string> {
    const before = this.#answers;
    this.#answers += 1;
    this.#process.write(`${line}\n`);
    const answers = () => this.#process.output.split('\n').filter((text) => text.startsWith('['));
    await until('the cable to answer', () => answers().length > before || !this.#process.running, { intervalMs: 5 });
    const answer = answers()[before];
    if (answer === undefined) throw new LabError(`the cable broke:\n${this.#process.output.slice(-2000)}`);
    return answer;
  }
}
