/**
 * What the bench prints: one JSON document for programs, one table for people.
 *
 * Hides formats. The JSON's shape is part of the command line (design: `npm run bench`): a program may rely on it.
 */

import { cpus, loadavg, release, totalmem } from 'node:os';
import type { Judgement } from './statistics.ts';

/** One measured figure of ours beside the peers'. */
export interface Result {
  area: string;
  name: string;
  unit: string;
  /** The median; null when it could not be measured. */
  ours: number | null;
  /** The smallest and largest of our own values, and for each goal the paired ratios that decide it. */
  spread: { low: number | null; high: number | null; ratios: RatioSummary[] };
  /** Medians; null for a peer that is missing (`versions` says why) or has no such figure. */
  peers: Record<string, number | null>;
  /** Null when none is set. */
  goal: string | null;
  /** Every goal is met; false when one is not, is inconclusive, lacks its peer, or there is none. */
  met: boolean;
}

/** A goal's evidence. */
export interface RatioSummary {
  goal: string;
  verdict: string;
  pairs: number;
  median: number | null;
  low: number | null;
  high: number | null;
}

/** The whole document. */
export interface Report {
  machine: Record<string, unknown>;
  versions: Record<string, string>;
  rounds: number;
  results: Result[];
}

/** What of this machine a reader of the figures must know. */
export function describeMachine(): Record<string, unknown> {
  const [first] = cpus();
  return {
    cpu: first?.model ?? 'unknown',
    cores: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    kernel: release(),
    loadBefore: loadavg().map((load) => rounded(load)),
  };
}

/** @param goalText what `formatGoal` makes of the judgement's goal */
export function summarise(judgement: Judgement, goalText: string): RatioSummary {
  const { verdict, pairs, ratio, interval } = judgement;
  const [low, high] = [interval?.low, interval?.high].map((value) => (value === undefined ? null : rounded(value)));
  return {
    goal: goalText,
    verdict,
    pairs,
    median: ratio === undefined ? null : rounded(ratio),
    low: low ?? null,
    high: high ?? null,
  };
}

/** Three significant digits: the machine's noise hides the rest. */
export function rounded(value: number): number {
  return value === 0 ? 0 : Number(value.toPrecision(3));
}

/** The report as people read it. */
export function formatReport(report: Report): string {
  const lines: string[] = [];
  const { cpu, cores, kernel } = report.machine;
  lines.push(`${cpu}, ${cores} cores, Linux ${kernel}; ${report.rounds} rounds; medians`);
  const names = [...new Set(report.results.flatMap((result) => Object.keys(result.peers)))];
  const rows = [['figure', 'unit', 'ours', '(range)', ...names]];
  for (const result of report.results) {
    const range = result.ours === null ? '' : `${cell(result.spread.low)}–${cell(result.spread.high)}`;
    const peers = names.map((name) => cell(result.peers[name]));
    rows.push([result.name, result.unit, cell(result.ours), range, ...peers]);
  }
  lines.push('', ...formatTable(rows), '');
  for (const result of report.results) {
    for (const ratio of result.spread.ratios) {
      const found = ratio.median === null ? '' : `: ${ratio.median} [${ratio.low}–${ratio.high}], ${ratio.pairs} pairs`;
      lines.push(`${result.name} ${ratio.goal}${found}: ${ratio.verdict}`);
    }
    if (result.spread.ratios.length === 0 && result.goal !== null) {
      lines.push(`${result.name} ${result.goal}: ${result.met ? 'met' : 'not met'}`);
    }
  }
  lines.push('', ...Object.entries(report.versions).map(([name, version]) => `${name}: ${version}`));
  return `${lines.join('\n')}\n`;
}

/** Columns as wide as their widest cell; the first two to the left, numbers to the right. */
export function formatTable(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [index, text] of row.entries()) widths[index] = Math.max(widths[index] ?? 0, text.length);
  }
  return rows.map((row) =>
    row
      .map((text, index) => (index < 2 ? text.padEnd(widths[index] ?? 0) : text.padStart(widths[index] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
}

function cell(value: number | null | undefined): string {
  return value === null || value === undefined ? '–' : String(rounded(value));
}
