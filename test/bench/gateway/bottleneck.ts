/**
 * How long packets wait beside a load that fills a slow link, beside every peer in the same run.
 *
 * One system is up at a time, in namespaces of its own with a router of 20 Mbit/s between them, and all are measured in
 * turn, forwards and backwards by rounds. A ping beside a load says something only while the load fills the link: a round
 * with less than 85 % of it does not count, neither for us nor for a peer. The best peer is the best of each round.
 */

import { LabError } from '../../lab/process.ts';
import { Rig } from '../../lab/rig.ts';
import { type Direction, type LoadedResult, measureLoadedRoundTrips, outerCongestion } from '../measure.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from '../report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from '../statistics.ts';
import { type BottleneckNetwork, OUTER_SERVER, openBottleneck, type System, type TunnelEnds } from '../system.ts';

export interface BottleneckEffort {
  rounds: number;
  pings: number;
}

export const FULL_BOTTLENECK_EFFORT: BottleneckEffort = { rounds: 5, pings: 250 };
export const QUICK_BOTTLENECK_EFFORT: BottleneckEffort = { rounds: 3, pings: 100 };

const OURS = 'customvpn';
const RAW = 'raw';
const BEST_PEER = 'the best peer';
const RATE_MBPS = 20;
const LEAST_USE = 0.85;
/** An Ethernet header on a packet of 1,500 bytes. */
const LONGEST_FRAME_BYTES = 1514;
/** For a TCP carrier that does not choose; the one that serves it best behind a queue. */
const OUTER = 'bbr';

const DIRECTIONS = ['up', 'down', 'both'] as const;
const INNER = [
  { control: 'cubic', factor: 0.3 },
  { control: 'bbr', factor: 1.3 },
] as const;

type Load = Direction | 'both';

interface Contestant {
  system: System;
  network: BottleneckNetwork;
}

/**
 * Measures.
 *
 * @param progress gets one line at a time
 * @returns the report, and whether our own system could be measured at all
 */
export async function measureBottleneck(
  systems: readonly System[],
  effort: BottleneckEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const run = new BottleneckRun(rig, effort, progress);
  await run.open(systems);
  for (let round = 0; round < effort.rounds; round += 1) await run.round(round);
  const left = await rig.close();
  for (const line of left) progress(`left behind: ${line}`);
  return run.finish(systems);
}

class BottleneckRun {
  readonly #rig: Rig;
  readonly #effort: BottleneckEffort;
  readonly #progress: (line: string) => void;
  readonly #machine = describeMachine();
  readonly #versions: Record<string, string> = {};
  readonly #contestants: Contestant[] = [];
  /** By system, load and inner control: one sample a round, `undefined` where it failed. */
  readonly #samples = new Map<string, (LoadedResult | undefined)[]>();
  readonly #outer = new Map<string, Set<string>>();

  constructor(rig: Rig, effort: BottleneckEffort, progress: (line: string) => void) {
    this.#rig = rig;
    this.#effort = effort;
    this.#progress = progress;
  }

  async open(systems: readonly System[]): Promise<void> {
    for (const [index, system] of systems.entries()) {
      const why = await system.missing();
      this.#versions[system.name] = why === undefined ? await system.version() : `missing: ${why}`;
      if (why !== undefined) this.#progress(`${system.name}: missing: ${why}`);
      else {
        const network = await openBottleneck(this.#rig, `b${index}`, OUTER, `${RATE_MBPS}mbit`);
        this.#contestants.push({ system, network });
      }
    }
  }

  async round(round: number): Promise<void> {
    const order = round % 2 === 0 ? this.#contestants : this.#contestants.toReversed();
    for (const contestant of order) {
      const { system, network } = contestant;
      try {
        const ends = await system.up(network);
        const capture = await network.router.capture(network.devices.up);
        for (const { control } of INNER) {
          for (const load of DIRECTIONS) await this.#measure(contestant, ends, load, control, round);
        }
        const { longestBytes } = await capture.stop();
        if (longestBytes > LONGEST_FRAME_BYTES) throw new LabError(`a frame of ${longestBytes} bytes was on the link`);
      } catch (error) {
        this.#fail(system, error);
      } finally {
        await system.down();
      }
    }
  }

  finish(systems: readonly System[]): { report: Report; measured: boolean } {
    const peers = systems.map((system) => system.name).filter((name) => name !== OURS);
    const results = INNER.flatMap(({ control, factor }) =>
      DIRECTIONS.map((load) => this.#result(load, control, { peer: BEST_PEER, relation: '≤', factor }, peers)),
    );
    const outer = Object.fromEntries([...this.#outer].map(([name, seen]) => [name, [...seen].join('/') || 'no TCP']));
    const congestion = { inner: INNER.map(({ control }) => control).join(', '), outer };
    return {
      report: {
        machine: { ...this.#machine, congestion, bottleneckMbps: RATE_MBPS },
        versions: this.#versions,
        rounds: this.#effort.rounds,
        results,
      },
      measured: results.every((result) => result.ours !== null),
    };
  }

  async #measure(
    { system, network }: Contestant,
    ends: TunnelEnds,
    load: Load,
    control: string,
    round: number,
  ): Promise<void> {
    const key = `${system.name} ${load} ${control}`;
    const samples = this.#samples.get(key) ?? [];
    this.#samples.set(key, samples);
    try {
      const options = { pings: this.#effort.pings, congestion: control };
      const found = await measureLoadedRoundTrips(network, system, ends, load, options);
      if (found.congestion !== control) throw new LabError(`the inner control was ${found.congestion}`);
      samples[round] = found;
      await this.#noteOuter(system, network);
      const { p50, p95, mbps } = found;
      const verdict = isFull(found) ? '' : ', does not count';
      const values = `p50 ${rounded(p50)} p95 ${rounded(p95)} ms at ${rounded(mbps)} Mbit/s`;
      this.#progress(`round ${round + 1}/${this.#effort.rounds} ${key}: ${values}${verdict}`);
    } catch (error) {
      this.#fail(system, error);
    }
  }

  async #noteOuter({ name }: System, { client, server }: BottleneckNetwork): Promise<void> {
    const seen = this.#outer.get(name) ?? new Set();
    this.#outer.set(name, seen);
    for (const end of [client, server])
      for (const control of await outerCongestion(end, OUTER_SERVER)) seen.add(control);
  }

  #fail({ name }: System, error: unknown): void {
    this.#progress(`${name} failed: ${error instanceof Error ? error.message : String(error)}`);
  }

  #result(load: Load, control: string, goal: Goal, peers: readonly string[]): Result {
    const values = (name: string): (number | undefined)[] => {
      const samples = this.#samples.get(`${name} ${load} ${control}`) ?? [];
      return Array.from(samples, (sample) => (sample !== undefined && isFull(sample) ? sample.p95 : undefined));
    };
    const ours = values(OURS);
    const own = ours.filter((value) => value !== undefined);
    const rivals = peers.filter((name) => name !== RAW).map(values);
    const best = Array.from({ length: this.#effort.rounds }, (_, round) =>
      smallest(rivals.map((rounds) => rounds[round]).filter((value) => value !== undefined)),
    );
    const ratio = summarise(judge(pairedRatios(ours, best), goal), formatGoal(goal));
    const isComplete = peers.every((name) =>
      (this.#samples.get(`${name} ${load} ${control}`) ?? []).some((sample) => sample !== undefined),
    );
    const [low, high] = [quantile(own, 0), quantile(own, 1)];
    return {
      area: 'gateway',
      name: `ping p95, ${RATE_MBPS} Mbit/s full ${load}, inner ${control}`,
      unit: 'ms',
      ours: nullable(median(own)),
      spread: { low: nullable(low), high: nullable(high), ratios: [ratio] },
      peers: Object.fromEntries(
        peers.map((name) => [name, nullable(median(values(name).filter((value) => value !== undefined)))]),
      ),
      goal: formatGoal(goal),
      // A peer that was absent might have been the best; one that cannot fill the link is none.
      met: ratio.verdict === 'met' && isComplete,
    };
  }
}

function isFull({ mbps }: LoadedResult): boolean {
  return mbps >= RATE_MBPS * LEAST_USE;
}

function smallest(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : Math.min(...values);
}

function nullable(value: number | undefined): number | null {
  return value === undefined ? null : rounded(value);
}
