/**
 * How commands speak: tables for eyes, one JSON document for programs, errors with what to do next.
 *
 * Hides column widths, units and the difference between the two audiences. Results go to standard output, everything
 * else to standard error.
 */

import { stripVTControlCharacters, styleText } from 'node:util';
import { exitStatus, toVpnError } from '../base/errors.ts';

/** Options that every verb with output takes. */
export interface OutputOptions {
  json?: boolean;
}

/** Prints a result: as JSON when asked, else whatever `text` makes of it. */
export function print<T>(value: T, options: OutputOptions, text: (value: T) => string): void {
  const out = options.json === true ? JSON.stringify(value, null, 2) : text(value);
  if (out !== '') process.stdout.write(`${out}\n`);
}

/** Rows of cells under a heading, aligned; numbers and sizes are the caller's to format. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = heading.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => stripVTControlCharacters(row[column] ?? '').length)),
  );
  const line = (cells: readonly string[]) =>
    cells
      .map(
        (cell, column) => cell + ' '.repeat(Math.max(0, (widths[column] ?? 0) - stripVTControlCharacters(cell).length)),
      )
      .join('  ')
      .trimEnd();
  return [dim(line(heading)), ...rows.map(line)].join('\n');
}

/** `name  value` lines; undefined values are left out. */
export function facts(pairs: readonly (readonly [string, string | undefined])[]): string {
  const shown = pairs.filter((pair): pair is readonly [string, string] => pair[1] !== undefined && pair[1] !== '');
  const width = Math.max(0, ...shown.map(([name]) => name.length));
  return shown.map(([name, value]) => `${dim(name.padEnd(width))}  ${value}`).join('\n');
}

/** What a stranger may have written, for a terminal: no character of it moves the cursor or turns the line around. */
export function plain(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '\uFFFD');
}

export const good = (text: string): string => style('green', text);
export const bad = (text: string): string => style('red', text);
export const warning = (text: string): string => style('yellow', text);
export const dim = (text: string): string => style('dim', text);

/** Bytes in binary units, three digits. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`;
}

/** How long ago an instant was, in its largest unit. */
export function formatAge(instant: string, now = Date.now()): string {
  const seconds = Math.max(0, Math.round((now - Date.parse(instant)) / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** Prints an error for a person and returns the status to exit with. */
export function reportError(cause: unknown): number {
  const error = toVpnError(cause);
  process.stderr.write(`${bad('error')} ${error.message} ${dim(`(${error.code})`)}\n`);
  if (error.kind === 'internal' && error.stack !== undefined) process.stderr.write(`${dim(error.stack)}\n`);
  return exitStatus(error);
}

function style(format: 'green' | 'red' | 'yellow' | 'dim', text: string): string {
  return styleText(format, text, { stream: process.stdout });
}
