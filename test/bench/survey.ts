/**
 * A survey: every system measured in turn, forwards and backwards by rounds, one up at a time, each on a network of its own.
 *
 * Hides who is missing, what failed, and how samples stay paired by rounds. A figure is what was noted under its key.
 */

import type { Rig } from '../lab/rig.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from './report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from './statistics.ts';
import type { BenchNetwork, System, TunnelEnds } from './system.ts';

/** What the figures are about. */
export const OURS = 'customvpn';
/** The bare link; never a rival. */
export const RAW = 'raw';

/** A system in its turn. */
export interface Surveyed<N extends BenchNetwork> {
  readonly system: System;
  readonly network: N;
  /** Brings it up; for another time, after it has been taken down. It is down again when its turn is over. */
  up(): Promise<TunnelEnds>;
  /** Keeps a sample of this round. */
  note(key: string, value: number, unit: string): void;
}

/** One line of a report. */
export interface Figure {
  readonly name: string;
  readonly unit: string;
  /** Under which its samples were noted. */
  readonly key: string;
  readonly goals: readonly Goal[];
}

export class Survey<N extends BenchNetwork> {
  readonly #rig: Rig;
  readonly #rounds: number;
  readonly #progress: (line: string) => void;
  readonly #machine = describeMachine();
  readonly #versions: Record<string, string> = {};
  readonly #contestants: { system: System; network: N }[] = [];
  readonly #names: string[] = [];
  /** By system and key: one sample a round, `undefined` where it failed. */
  readonly #samples = new Map<string, (number | undefined)[]>();

  constructor(rig: Rig, rounds: number, progress: (line: string) => void) {
    this.#rig = rig;
    this.#rounds = rounds;
    this.#progress = progress;
  }

  /** Makes a network for each system that can be measured here. @param open gets a label that names it */
  async open(systems: readonly System[], open: (rig: Rig, label: string) => Promise<N>): Promise<void> {
    for (const [index, system] of systems.entries()) {
      this.#names.push(system.name);
      const why = await system.missing();
      this.#versions[system.name] = why === undefined ? await system.version() : `missing: ${why}`;
      if (why !== undefined) this.#progress(`${system.name}: missing: ${why}`);
      else this.#contestants.push({ system, network: await open(this.#rig, `s${index}`) });
    }
  }

  /** Measures all of them, round by round. What fails is told and leaves a gap. */
  async run(measure: (surveyed: Surveyed<N>) => Promise<void>): Promise<void> {
    for (let round = 0; round < this.#rounds; round += 1) {
      const order = round % 2 === 0 ? this.#contestants : this.#contestants.toReversed();
      for (const { system, network } of order) {
        const note = (key: string, value: number, unit: string): void => {
          this.#samplesOf(system.name, key)[round] = value;
          this.#progress(`round ${round + 1}/${this.#rounds} ${system.name} ${key}: ${rounded(value)} ${unit}`);
        };
        try {
          await measure({ system, network, up: () => system.up(network), note });
        } catch (error) {
          this.#progress(`${system.name} failed: ${error instanceof Error ? error.message : String(error)}`);
        } finally {
          await system.down();
        }
      }
    }
  }

  /** The samples of a system, one a round. */
  values(name: string, key: string): (number | undefined)[] {
    return Array.from({ length: this.#rounds }, (_, round) => this.#samplesOf(name, key)[round]);
  }

  /** The median of a system's samples; undefined when there are none. */
  middle(name: string, key: string): number | undefined {
    return median(this.values(name, key).filter((value) => value !== undefined));
  }

  /** The largest sample of each round among some systems. */
  best(names: readonly string[], key: string): (number | undefined)[] {
    const rounds = names.map((name) => this.values(name, key));
    return Array.from({ length: this.#rounds }, (_, round) => largest(rounds.map((values) => values[round])));
  }

  /** The rivals: everybody but us and the bare link. */
  get rivals(): string[] {
    return this.#names.filter((name) => name !== OURS && name !== RAW);
  }

  /**
   * A figure as the report has it.
   *
   * @param theirs the samples that a goal's peer stands for; default: those of the system of that name
   */
  result(
    area: string,
    { name, unit, key, goals }: Figure,
    theirs: (goal: Goal) => (number | undefined)[] = ({ peer }) => this.values(peer, key),
  ): Result {
    const own = this.values(OURS, key);
    const known = own.filter((value) => value !== undefined);
    const ratios = goals.map((goal) => summarise(judge(pairedRatios(own, theirs(goal)), goal), formatGoal(goal)));
    const peers = this.#names.filter((peer) => peer !== OURS);
    return {
      area,
      name,
      unit,
      ours: nullable(median(known)),
      spread: { low: nullable(quantile(known, 0)), high: nullable(quantile(known, 1)), ratios },
      peers: Object.fromEntries(peers.map((peer) => [peer, nullable(this.middle(peer, key))])),
      goal: goals.length === 0 ? null : goals.map(formatGoal).join(', '),
      met: goals.length > 0 && ratios.every(({ verdict }) => verdict === 'met'),
    };
  }

  /** The report, and whether our own system could be measured at all. */
  finish(results: readonly Result[], machine: Record<string, unknown>): { report: Report; measured: boolean } {
    return {
      report: {
        machine: { ...this.#machine, ...machine },
        versions: this.#versions,
        rounds: this.#rounds,
        results: [...results],
      },
      measured: results.every(({ ours }) => ours !== null),
    };
  }

  #samplesOf(name: string, key: string): (number | undefined)[] {
    const id = `${name} ${key}`;
    const samples = this.#samples.get(id) ?? [];
    this.#samples.set(id, samples);
    return samples;
  }
}

function largest(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined);
  return known.length === 0 ? undefined : Math.max(...known);
}

/** As a report writes it. */
export function nullable(value: number | undefined): number | null {
  return value === undefined ? null : rounded(value);
}
