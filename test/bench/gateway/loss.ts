/**
 * What one flow carries over a path that loses packets, beside every peer in the same run.
 *
 * One system is up at a time, over a cable of its own (`test/lab/impairment.ts`), and all are measured in turn, forwards
 * and backwards by rounds. What the cable carries without a VPN, good, is measured too: where that is less than three times
 * the fastest in a row, the row says something of the cable, and no goal is met by it.
 */

import type { ImpairmentOptions } from '../../lab/impairment.ts';
import { LabError } from '../../lab/process.ts';
import { Rig } from '../../lab/rig.ts';
import { measureFlow } from '../measure.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from '../report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from '../statistics.ts';
import { type CableNetwork, openCable, type System } from '../system.ts';

export interface LossEffort {
  rounds: number;
  flowSeconds: number;
  conditions: readonly LossCondition[];
}

interface LossCondition {
  readonly loss: number;
  readonly roundTripMs: number;
}

const GOAL_CONDITION: LossCondition = { loss: 0.01, roundTripMs: 20 };

export const FULL_LOSS_EFFORT: LossEffort = {
  rounds: 3,
  flowSeconds: 5,
  conditions: [
    GOAL_CONDITION,
    { loss: 0.001, roundTripMs: 20 },
    { loss: 0.03, roundTripMs: 20 },
    { loss: 0.01, roundTripMs: 100 },
  ],
};
export const QUICK_LOSS_EFFORT: LossEffort = { rounds: 3, flowSeconds: 3, conditions: [GOAL_CONDITION] };

const OURS = 'customvpn';
const WIREGUARD = 'wireguard-go';
const RAW = 'raw';
/** Those that carry packets in TLS over TCP. */
const TLS_PEERS = ['openvpn-tcp', 'ocserv-tls'];
const BEST_TLS_PEER = 'the best TLS peer';
/** For a TCP carrier that does not choose; the one that serves it best where packets are lost. */
const OUTER = 'bbr';
const HEADROOM = 3;

const INNER: readonly { control: string; goals: readonly Goal[] }[] = [
  {
    control: 'cubic',
    goals: [
      { peer: WIREGUARD, relation: '≥', factor: 20 },
      { peer: BEST_TLS_PEER, relation: '≥', factor: 2 },
    ],
  },
  { control: 'bbr', goals: [{ peer: WIREGUARD, relation: '≥', factor: 1.2 }] },
];

/**
 * Measures.
 *
 * @param progress gets one line at a time
 * @returns the report, and whether our own system could be measured at all
 */
export async function measureLoss(
  systems: readonly System[],
  effort: LossEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const run = new LossRun(rig, effort, progress);
  await run.open(systems);
  for (let round = 0; round < effort.rounds; round += 1) await run.round(round);
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  return run.finish(systems);
}

class LossRun {
  readonly #rig: Rig;
  readonly #effort: LossEffort;
  readonly #progress: (line: string) => void;
  readonly #machine = describeMachine();
  readonly #versions: Record<string, string> = {};
  readonly #contestants: { system: System; network: CableNetwork }[] = [];
  /** By system, condition and inner control: Mbit/s, one sample a round, `undefined` where it failed. */
  readonly #samples = new Map<string, (number | undefined)[]>();
  /** What the cable carries when it is good, one sample a round. */
  readonly #bare: number[] = [];

  constructor(rig: Rig, effort: LossEffort, progress: (line: string) => void) {
    this.#rig = rig;
    this.#effort = effort;
    this.#progress = progress;
  }

  async open(systems: readonly System[]): Promise<void> {
    for (const [index, system] of systems.entries()) {
      const why = await system.missing();
      this.#versions[system.name] = why === undefined ? await system.version() : `missing: ${why}`;
      if (why !== undefined) this.#progress(`${system.name}: missing: ${why}`);
      else this.#contestants.push({ system, network: await openCable(this.#rig, `l${index}`, OUTER) });
    }
  }

  async round(round: number): Promise<void> {
    const order = round % 2 === 0 ? this.#contestants : this.#contestants.toReversed();
    for (const { system, network } of order) {
      try {
        const ends = await system.up(network);
        const flow = async (control: string) =>
          await measureFlow(network, system, ends, 'down', { seconds: this.#effort.flowSeconds, congestion: control });
        if (system.name === RAW) this.#bare.push((await flow('cubic')).mbps);
        for (const condition of this.#effort.conditions) {
          await network.cable.set(impairmentOf(condition));
          for (const { control } of INNER) {
            const { mbps, congestion } = await flow(control);
            if (congestion !== control) throw new LabError(`the inner control was ${congestion}`);
            this.#note(system.name, condition, control, round, mbps);
          }
        }
        const counters = await network.cable.counters();
        if (counters.some(({ overflowed }) => overflowed > 0))
          throw new LabError('the cable could not hold the frames');
      } catch (error) {
        this.#progress(`${system.name} failed: ${error instanceof Error ? error.message : String(error)}`);
      } finally {
        await network.cable.set({});
        await system.down();
      }
    }
  }

  finish(systems: readonly System[]): { report: Report; measured: boolean } {
    const peers = systems.map(({ name }) => name).filter((name) => name !== OURS);
    const results = this.#effort.conditions.flatMap((condition) =>
      INNER.map(({ control, goals }) =>
        this.#result(condition, control, condition === GOAL_CONDITION ? goals : [], peers),
      ),
    );
    const congestion = { inner: INNER.map(({ control }) => control).join(', '), outer: OUTER };
    return {
      report: {
        machine: { ...this.#machine, congestion, cableMbps: nullable(median(this.#bare)) },
        versions: this.#versions,
        rounds: this.#effort.rounds,
        results,
      },
      measured: results.every(({ ours }) => ours !== null),
    };
  }

  #note(name: string, condition: LossCondition, control: string, round: number, mbps: number): void {
    const key = keyOf(name, condition, control);
    const samples = this.#samples.get(key) ?? [];
    this.#samples.set(key, samples);
    samples[round] = mbps;
    this.#progress(`round ${round + 1}/${this.#effort.rounds} ${key}: ${rounded(mbps)} Mbit/s`);
  }

  #result(condition: LossCondition, control: string, goals: readonly Goal[], peers: readonly string[]): Result {
    const rounds = Array.from({ length: this.#effort.rounds }, (_, round) => round);
    const values = (name: string): (number | undefined)[] => {
      const samples = this.#samples.get(keyOf(name, condition, control)) ?? [];
      return rounds.map((round) => samples[round]);
    };
    const measured = (name: string): number[] => values(name).filter((value) => value !== undefined);
    const bestTls = rounds.map((round) => largest(TLS_PEERS.map((name) => values(name)[round])));
    const ours = measured(OURS);
    const ratios = goals.map((goal) => {
      const theirs = goal.peer === BEST_TLS_PEER ? bestTls : values(goal.peer);
      return summarise(judge(pairedRatios(values(OURS), theirs), goal), formatGoal(goal));
    });
    const vpns = [OURS, ...peers.filter((name) => name !== RAW)];
    const fastest = largest(vpns.map((name) => median(measured(name)))) ?? 0;
    const isCableBound = (median(this.#bare) ?? 0) < HEADROOM * fastest;
    const isComplete = TLS_PEERS.every((name) => measured(name).length > 0);
    const [low, high] = [quantile(ours, 0), quantile(ours, 1)];
    return {
      area: 'gateway',
      name: `tcp down, ${nameOf(condition)}, inner ${control}${isCableBound ? ' (relay-bound)' : ''}`,
      unit: 'Mbit/s',
      ours: nullable(median(ours)),
      spread: { low: nullable(low), high: nullable(high), ratios },
      peers: Object.fromEntries(peers.map((name) => [name, nullable(median(measured(name)))])),
      goal: goals.length === 0 ? null : goals.map(formatGoal).join(', '),
      met: goals.length > 0 && !isCableBound && isComplete && ratios.every(({ verdict }) => verdict === 'met'),
    };
  }
}

function impairmentOf({ loss, roundTripMs }: LossCondition): ImpairmentOptions {
  return { loss, delayMs: roundTripMs / 2 };
}

function nameOf({ loss, roundTripMs }: LossCondition): string {
  return `${rounded(loss * 100)} % lost each way, ${roundTripMs} ms`;
}

function keyOf(name: string, condition: LossCondition, control: string): string {
  return `${name} ${nameOf(condition)} ${control}`;
}

function largest(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined);
  return known.length === 0 ? undefined : Math.max(...known);
}

function nullable(value: number | undefined): number | null {
  return value === undefined ? null : rounded(value);
}
