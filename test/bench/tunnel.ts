/**
 * The area `tunnel`: what one tunnel carries, what it costs and how long it takes, beside every peer in the same run.
 *
 * Each system has two namespaces of its own and stays up, so that two of them can be measured within seconds of each
 * other. A *survey* measures all of them in turn, forwards and backwards by rounds; a *duel* measures two of them in
 * ABBA order, for the goals that need pairs. The congestion control of every TCP is set: inner by `iperf3`, outer by the
 * namespace for whoever does not choose.
 */

import { readFile } from 'node:fs/promises';
import { Rig } from '../lab/rig.ts';
import { type Direction, type FlowResult, measureFlow, measureRoundTrips, outerCongestion } from './measure.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from './report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from './statistics.ts';
import { type BenchNetwork, OUTER_SERVER, openNetwork, type System, type TunnelEnds } from './system.ts';

/** How much is measured. */
export interface Effort {
  rounds: number;
  flowSeconds: number;
  pings: number;
  /** Pairs of a duel over throughput and processor time. */
  flowPairs: number;
  /** Pairs of a duel over round trips. */
  pingPairs: number;
  /** How often each system is started for the time to the first ping. */
  starts: number;
}

export const FULL_EFFORT: Effort = { rounds: 3, flowSeconds: 5, pings: 300, flowPairs: 12, pingPairs: 12, starts: 5 };
export const QUICK_EFFORT: Effort = { rounds: 3, flowSeconds: 2, pings: 150, flowPairs: 0, pingPairs: 12, starts: 3 };

/** The names of the systems that a verdict is about, and of the peers that goals name. */
const OURS = 'customvpn';
const OURS_PLAIN = 'customvpn-plain';
const WIREGUARD = 'wireguard-go';
const OPENVPN = 'openvpn-udp';
const RAW = 'raw';

type Key = `${'mbps' | 'server' | 'client'}-${Direction}` | 'rtt-p50' | 'rtt-p99' | 'first-ping';

interface Figure {
  name: string;
  unit: string;
  key: Key;
  subject: string;
  goals: Goal[];
}

const FIGURES: readonly Figure[] = [
  ...(['down', 'up'] as const).map(
    (direction): Figure => ({
      name: `tcp ${direction}`,
      unit: 'Mbit/s',
      key: `mbps-${direction}`,
      subject: OURS,
      goals: [
        { peer: WIREGUARD, relation: '≥', factor: 1.3 },
        { peer: OPENVPN, relation: '≥', factor: 5 },
      ],
    }),
  ),
  ...(['down', 'up'] as const).flatMap((direction) =>
    (['server', 'client'] as const).map(
      (side): Figure => ({
        name: `cpu ${side}, tcp ${direction}`,
        unit: 's/GB',
        key: `${side}-${direction}`,
        subject: OURS,
        goals: [{ peer: WIREGUARD, relation: '≤', factor: 0.6 }],
      }),
    ),
  ),
  {
    name: 'round trip p50',
    unit: 'ms',
    key: 'rtt-p50',
    subject: OURS,
    goals: [{ peer: WIREGUARD, relation: '≤', factor: 1.2 }],
  },
  { name: 'round trip p99', unit: 'ms', key: 'rtt-p99', subject: OURS, goals: [] },
  { name: 'first ping after start', unit: 'ms', key: 'first-ping', subject: OURS, goals: [] },
  ...(['down', 'up'] as const).map(
    (direction): Figure => ({
      name: `plain fallback, tcp ${direction}`,
      unit: 'Mbit/s',
      key: `mbps-${direction}`,
      subject: OURS_PLAIN,
      goals: [{ peer: OPENVPN, relation: '>', factor: 1 }],
    }),
  ),
];

/** A system that is up. */
interface Contestant {
  system: System;
  network: BenchNetwork;
  ends: TunnelEnds;
}

type Sample = Partial<Record<Key, number>>;

/**
 * Measures.
 *
 * @param progress gets one line at a time
 * @returns the report, and whether our own systems could be measured at all
 */
export async function measureTunnel(
  systems: readonly System[],
  effort: Effort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const congestion = { inner: 'cubic', outer: await usualCongestion() };
  const run = new TunnelRun(rig, effort, congestion, progress);
  await run.bringUp(systems);
  await run.survey();
  await run.duels();
  await run.tearDown();
  const left = await rig.close();
  for (const line of left) progress(`left behind: ${line}`);
  return run.finish(systems);
}

class TunnelRun {
  readonly #rig: Rig;
  readonly #effort: Effort;
  readonly #congestion: { inner: string; outer: string };
  readonly #progress: (line: string) => void;
  readonly #machine = describeMachine();
  readonly #versions: Record<string, string> = {};
  readonly #contestants = new Map<string, Contestant>();
  /** By system: one sample a round, `undefined` where it failed, so that rounds stay paired. */
  readonly #rounds = new Map<string, (Sample | undefined)[]>();
  /** By `subject peer`: the samples of the duels, in pairs. */
  readonly #duels = new Map<string, { ours: (Sample | undefined)[]; theirs: (Sample | undefined)[] }>();
  readonly #starts = new Map<string, number[]>();
  /** By system: what its own TCP connections used, in the order seen. */
  readonly #outer = new Map<string, Set<string>>();
  readonly #inner = new Set<string>();

  constructor(
    rig: Rig,
    effort: Effort,
    congestion: { inner: string; outer: string },
    progress: (line: string) => void,
  ) {
    this.#rig = rig;
    this.#effort = effort;
    this.#congestion = congestion;
    this.#progress = progress;
  }

  /** Brings every system up, several times for the time that takes; the last time it stays up. */
  async bringUp(systems: readonly System[]): Promise<void> {
    for (const [index, system] of systems.entries()) {
      const why = await system.missing();
      if (why !== undefined) {
        this.#setMissing(system, why);
        continue;
      }
      this.#versions[system.name] = await system.version();
      try {
        const network = await openNetwork(this.#rig, `n${index}`, this.#congestion.outer);
        const times: number[] = [];
        let ends = await system.up(network);
        // The first start of all makes keys, enrols and fills caches: it is not what a user waits for each day.
        for (let start = 0; start < this.#effort.starts && system.name !== RAW; start += 1) {
          await system.down();
          ends = await system.up(network);
          times.push(ends.firstPingMs);
        }
        this.#starts.set(system.name, times);
        this.#contestants.set(system.name, { system, network, ends });
        await this.#noteOuter(system, network);
        this.#progress(`${system.name}: up, first ping after ${Math.round(median(times) ?? ends.firstPingMs)} ms`);
      } catch (error) {
        await system.down();
        this.#setMissing(system, error instanceof Error ? error.message : String(error));
      }
    }
  }

  async survey(): Promise<void> {
    for (let round = 0; round < this.#effort.rounds; round += 1) {
      const order = [...this.#contestants.values()];
      if (round % 2 === 1) order.reverse();
      for (const contestant of order) {
        const { name } = contestant.system;
        const sample = await this.#attempt(name, async () => ({
          ...(await this.#flows(contestant)),
          ...(await this.#roundTrips(contestant)),
        }));
        const samples = this.#rounds.get(name) ?? [];
        this.#rounds.set(name, samples);
        samples[round] = sample;
        this.#progress(`round ${round + 1}/${this.#effort.rounds} ${name}: ${describe(sample)}`);
      }
    }
  }

  /** Pairs for the goals: ours beside the peer that the goal names. */
  async duels(): Promise<void> {
    const { flowPairs, pingPairs } = this.#effort;
    await this.#duel(OURS, WIREGUARD, flowPairs, (contestant) => this.#flows(contestant));
    await this.#duel(OURS, WIREGUARD, pingPairs, (contestant) => this.#roundTrips(contestant));
    await this.#duel(OURS_PLAIN, OPENVPN, flowPairs, (contestant) => this.#flows(contestant));
  }

  async tearDown(): Promise<void> {
    for (const { system } of this.#contestants.values()) await system.down();
  }

  finish(systems: readonly System[]): { report: Report; measured: boolean } {
    const peers = systems.map((system) => system.name).filter((name) => name !== OURS && name !== OURS_PLAIN);
    const results = FIGURES.map((figure) => this.#result(figure, peers));
    const outer = Object.fromEntries([...this.#outer].map(([name, seen]) => [name, [...seen].join('/') || 'no TCP']));
    const congestion = { inner: [...this.#inner].join(', ') || this.#congestion.inner, outer };
    return {
      report: {
        machine: { ...this.#machine, congestion },
        versions: this.#versions,
        rounds: this.#effort.rounds,
        results,
      },
      measured: results.every((result) => result.ours !== null),
    };
  }

  async #duel(
    subject: string,
    peer: string,
    pairs: number,
    measure: (contestant: Contestant) => Promise<Sample>,
  ): Promise<void> {
    const [ours, theirs] = [this.#contestants.get(subject), this.#contestants.get(peer)];
    if (ours === undefined || theirs === undefined) return;
    const duel = this.#duels.get(`${subject} ${peer}`) ?? { ours: [], theirs: [] };
    this.#duels.set(`${subject} ${peer}`, duel);
    for (let pair = 0; pair < pairs; pair += 1) {
      const sides = [
        { contestant: ours, samples: duel.ours },
        { contestant: theirs, samples: duel.theirs },
      ];
      if (pair % 2 === 1) sides.reverse();
      const said: string[] = [];
      for (const { contestant, samples } of sides) {
        const sample = await this.#attempt(contestant.system.name, () => measure(contestant));
        samples.push(sample);
        said.push(`${contestant.system.name} ${describe(sample)}`);
      }
      this.#progress(`pair ${pair + 1}/${pairs}: ${said.join(' | ')}`);
    }
  }

  async #flows(contestant: Contestant): Promise<Sample> {
    const [down, up] = [await this.#flow(contestant, 'down'), await this.#flow(contestant, 'up')];
    return { ...flowSample('down', down), ...flowSample('up', up) };
  }

  async #flow({ system, network, ends }: Contestant, direction: Direction): Promise<FlowResult> {
    const options = { seconds: this.#effort.flowSeconds, congestion: this.#congestion.inner };
    const result = await measureFlow(network, system, ends, direction, options);
    this.#inner.add(result.congestion);
    await this.#noteOuter(system, network);
    return result;
  }

  async #noteOuter({ name }: System, { client, server }: BenchNetwork): Promise<void> {
    const seen = this.#outer.get(name) ?? new Set();
    this.#outer.set(name, seen);
    for (const end of [client, server])
      for (const control of await outerCongestion(end, OUTER_SERVER)) seen.add(control);
  }

  async #roundTrips({ network, ends }: Contestant): Promise<Sample> {
    const { p50, p99 } = await measureRoundTrips(network.client, ends.server, this.#effort.pings);
    return { 'rtt-p50': p50, 'rtt-p99': p99 };
  }

  /** A system that fails once keeps its other rounds. */
  async #attempt(name: string, measure: () => Promise<Sample>): Promise<Sample | undefined> {
    try {
      return await measure();
    } catch (error) {
      this.#progress(`${name} failed: ${error instanceof Error ? error.message : String(error)}`);
      return undefined;
    }
  }

  #setMissing(system: System, why: string): void {
    this.#versions[system.name] = `missing: ${why}`;
    this.#progress(`${system.name}: missing: ${why}`);
  }

  #result(figure: Figure, peers: readonly string[]): Result {
    const own = this.#values(figure.subject, figure.key);
    const ours = median(own);
    const [low, high] = [quantile(own, 0), quantile(own, 1)];
    const ratios = figure.goals.map((goal) => summarise(judge(this.#ratios(figure, goal), goal), formatGoal(goal)));
    return {
      area: 'tunnel',
      name: figure.name,
      unit: figure.unit,
      ours: ours === undefined ? null : rounded(ours),
      spread: {
        low: low === undefined ? null : rounded(low),
        high: high === undefined ? null : rounded(high),
        ratios,
      },
      peers: Object.fromEntries(
        peers.map((peer) => {
          const value = median(this.#values(peer, figure.key));
          return [peer, value === undefined ? null : rounded(value)];
        }),
      ),
      goal: figure.goals.length === 0 ? null : figure.goals.map(formatGoal).join(' and '),
      met: ratios.length > 0 && ratios.every((ratio) => ratio.verdict === 'met'),
    };
  }

  /** All values of a figure, of the rounds and of the duels. */
  #values(name: string, key: Key): number[] {
    if (key === 'first-ping') return this.#starts.get(name) ?? [];
    const samples = [...(this.#rounds.get(name) ?? [])];
    for (const [pair, duel] of this.#duels) {
      const [subject, peer] = pair.split(' ');
      if (subject === name) samples.push(...duel.ours);
      if (peer === name) samples.push(...duel.theirs);
    }
    return samples.map((sample) => sample?.[key]).filter((value) => value !== undefined);
  }

  /** The duel's pairs where there was one, the rounds' otherwise. */
  #ratios(figure: Figure, goal: Goal): number[] {
    const pick = (samples: readonly (Sample | undefined)[] = []) => samples.map((sample) => sample?.[figure.key]);
    const duel = this.#duels.get(`${figure.subject} ${goal.peer}`);
    const duelled = pairedRatios(pick(duel?.ours), pick(duel?.theirs));
    if (duelled.length > 0) return duelled;
    return pairedRatios(pick(this.#rounds.get(figure.subject)), pick(this.#rounds.get(goal.peer)));
  }
}

function flowSample(direction: Direction, result: FlowResult): Sample {
  const sample: Sample = { [`mbps-${direction}`]: result.mbps };
  if (result.serverCpuPerGb !== undefined) sample[`server-${direction}`] = result.serverCpuPerGb;
  if (result.clientCpuPerGb !== undefined) sample[`client-${direction}`] = result.clientCpuPerGb;
  return sample;
}

function describe(sample: Sample | undefined): string {
  if (sample === undefined) return 'failed';
  return Object.entries(sample)
    .map(([key, value]) => `${key} ${rounded(value)}`)
    .join(' ');
}

/**
 * For TCP carriers that do not choose: the links are near and clean, where the usual control serves them best. A namespace
 * can have as its default only what the kernel allows to everybody.
 */
async function usualCongestion(): Promise<string> {
  const allowed = await readFile('/proc/sys/net/ipv4/tcp_allowed_congestion_control', 'utf8');
  return allowed.split(/\s+/).includes('cubic') ? 'cubic' : 'reno';
}
