/**
 * Structured logging, handed down by constructor.
 *
 * Hides the writer (pino) and its formats. Values go in fields, not in the text; the fixed field names are `component`,
 * `session`, `user`, `device`, `peer`, `reason`, `code`. Levels: `debug` for developers, `info` for an operator's
 * record, `warn` for a failed operation, `error` for a failed feature, `fatal` before the process ends. Nothing is
 * logged per packet. Secrets are wrapped in `Secret` by whoever reads them, and print as `***`.
 */

import { pino } from 'pino';
import { type AddressRule, addressFilter } from './log-addresses.ts';

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';
export type LogFields = Readonly<Record<string, unknown>>;

/** What the rooms know of logging. */
export interface Logger {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  fatal(message: string, fields?: LogFields): void;
  /** A logger that adds these fields to every line. */
  child(fields: LogFields): Logger;
}

/** A value that must never be printed. Read it with `reveal()` where it is used, nowhere else. */
export class Secret<T> {
  readonly #value: T;

  constructor(value: T) {
    this.#value = value;
  }

  reveal(): T {
    return this.#value;
  }

  toString(): string {
    return '***';
  }

  toJSON(): string {
    return '***';
  }

  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return '***';
  }
}

/** Characters of log lines that may wait for the end of the turn. */
const MAX_WAITING = 64 * 1024;

interface Sink {
  write(line: string): void;
}

export interface LogOptions {
  level?: LogLevel;
  /** `json`: one object a line; `text`: `level time component message key=value`. */
  format?: 'json' | 'text';
  /** What becomes of addresses in lines; default: they stay. */
  addresses?: AddressRule;
  /** Networks whose addresses stay all the same. */
  keepAddresses?: readonly string[];
  /** Where lines go; default standard error. */
  sink?: Sink;
}

/** Fields that are never written, in a line or one level deeper. */
export const SECRET_FIELDS = ['password', 'secret', 'token', 'totp', 'privateKey', 'authorization', 'cookie'];

/** Opens a logger on standard error, or on `sink`. */
export function createLogger(options: LogOptions = {}): Logger {
  standardError ??= new StandardError();
  const sink = options.sink ?? standardError;
  const filter = addressFilter(options.addresses ?? 'keep', options.keepAddresses ?? []);
  const form = options.format === 'json' ? (line: string) => line : formatText;
  const target = { write: (line: string) => sink.write(form(filter === undefined ? line : filter(line))) };
  return new FieldLogger(
    pino(
      {
        level: options.level ?? 'info',
        base: null,
        timestamp: pino.stdTimeFunctions.isoTime,
        formatters: { level: (label) => ({ level: label }) },
        serializers: { error: describeError },
        // Nobody logs these; one who does by mistake shall not have done harm.
        redact: { paths: [...SECRET_FIELDS, ...SECRET_FIELDS.map((name) => `*.${name}`)], censor: '***' },
      },
      target,
    ),
  );
}

/**
 * A logger is an object of two fields: each connection and each session has one, and most of them seldom write a line. Pino's own
 * children cost more than all that a session needs otherwise.
 */
class FieldLogger implements Logger {
  readonly #pino: pino.Logger;
  readonly #fields: LogFields;

  constructor(inner: pino.Logger, fields: LogFields = {}) {
    this.#pino = inner;
    this.#fields = fields;
  }

  debug(message: string, fields?: LogFields): void {
    if (this.#pino.isLevelEnabled('debug')) this.#pino.debug({ ...this.#fields, ...fields }, message);
  }

  info(message: string, fields?: LogFields): void {
    this.#pino.info({ ...this.#fields, ...fields }, message);
  }

  warn(message: string, fields?: LogFields): void {
    this.#pino.warn({ ...this.#fields, ...fields }, message);
  }

  error(message: string, fields?: LogFields): void {
    this.#pino.error({ ...this.#fields, ...fields }, message);
  }

  fatal(message: string, fields?: LogFields): void {
    this.#pino.fatal({ ...this.#fields, ...fields }, message);
  }

  child(fields: LogFields): Logger {
    return new FieldLogger(this.#pino, { ...this.#fields, ...fields });
  }
}

/**
 * Standard error, with one write for all lines of a turn of the event loop: a write for each would be a tenth of what a login
 * costs. What waits is written before the process ends, also by an exception.
 */
class StandardError implements Sink {
  #lines = '';

  constructor() {
    process.on('exit', () => this.#flush());
  }

  write(line: string): void {
    if (this.#lines === '') setImmediate(() => this.#flush());
    this.#lines += line;
    if (this.#lines.length > MAX_WAITING) this.#flush();
  }

  #flush(): void {
    const lines = this.#lines;
    this.#lines = '';
    if (lines !== '') process.stderr.write(lines);
  }
}

/** All loggers of a process share it, so that their lines keep their order. */
let standardError: StandardError | undefined;

/** A logger that says nothing. */
export const silentLogger: Logger = {
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
  fatal: () => {},
  child: () => silentLogger,
};

function describeError(value: unknown): unknown {
  if (!(value instanceof Error)) return String(value);
  const code = 'code' in value ? String(value.code) : undefined;
  return { code, message: value.message, cause: value.cause === undefined ? undefined : describeError(value.cause) };
}

function formatText(line: string): string {
  const { level, time, msg, component, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const rest = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}=${printable(value)}`)
    .join('');
  const clock = String(time).slice(11, 23);
  return `${String(level).padEnd(5)} ${clock} ${component === undefined ? '' : `${String(component)}: `}${String(msg)}${rest}\n`;
}

/** A peer chooses some of the values: control characters are escaped, so that a line stays a line. */
function printable(value: unknown): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return /[\s"\p{Cc}]/u.test(text) ? JSON.stringify(text) : text;
}
