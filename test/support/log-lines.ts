/** A logger that keeps its lines. */

import { createLogger, type Logger } from '../../src/base/log.ts';

export type LogLine = Readonly<Record<string, unknown>>;

export function collectLog(): { log: Logger; lines: LogLine[] } {
  const lines: LogLine[] = [];
  const sink = { write: (line: string): void => void lines.push(JSON.parse(line) as LogLine) };
  return { log: createLogger({ level: 'debug', format: 'json', sink }), lines };
}
