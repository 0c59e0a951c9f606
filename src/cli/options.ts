/**
 * Options and argument shapes that several verbs share.
 */

import { Option } from 'commander';
import { VpnError } from '../base/errors.ts';

export const DEFAULT_GATEWAY_STATE = '/var/lib/customvpn';
export const DEFAULT_CLIENT_STATE = '/var/lib/customvpn-client';

export const gatewayState = (): Option =>
  new Option('--state <dir>', 'state directory of the gateway').default(DEFAULT_GATEWAY_STATE);
export const gatewayConfig = (): Option =>
  new Option('--config <file>', 'its configuration, while it does not run (default: the one it ran with last)');
export const clientState = (): Option =>
  new Option('--state <dir>', 'state directory of the client').default(DEFAULT_CLIENT_STATE);
export const jsonOutput = (): Option => new Option('--json', 'print one JSON document');

/** What to add to a suggested command so that it means the same state directory and configuration. */
export function stateHint(state: string, config?: string): string {
  const isDefault = state === DEFAULT_GATEWAY_STATE || state === DEFAULT_CLIENT_STATE;
  return `${isDefault ? '' : ` --state ${state}`}${config === undefined ? '' : ` --config ${config}`}`;
}

/** A comma-separated list without empty parts. An option that is given again adds to it. */
export function list(value: string, previous: readonly string[] = []): string[] {
  return [...previous, ...value.split(',').map((part) => part.trim())].filter((part) => part !== '');
}

/**
 * `HOST:PORT`, `[V6]:PORT`, or a bare host with the default port.
 *
 * @throws {VpnError} ERR_USAGE
 */
export function hostAndPort(value: string, defaultPort: number): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(value);
  if (match === null && /^[0-9a-fA-F:]+$/.test(value)) return { host: value, port: defaultPort };
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? defaultPort : Number(match[3]);
  if (host === undefined || port < 1 || port > 65_535) {
    throw new VpnError('ERR_USAGE', `expected HOST:PORT or [IPV6]:PORT with a port from 1 to 65535, got "${value}"`);
  }
  return { host, port };
}

const DURATION = /^(\d{1,6})([mhdw])$/;
const UNITS = { m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 } as const;

/** As `instant`, but a time is one ago. @throws {VpnError} ERR_USAGE */
export function since(value: string): string {
  const [, count, unit] = DURATION.exec(value) ?? [];
  if (count === undefined || !isUnit(unit)) return parseInstant(value, 'a time ago');
  return new Date(Date.now() - Number(count) * UNITS[unit]).toISOString();
}

const LENGTH = /^([1-9]\d{0,3})([smh])$/;
const LENGTH_UNITS = { s: 1000, m: 60_000, h: 3_600_000 } as const;

/** Milliseconds of a length of time: `90s`, `5m`, at most an hour. @throws {VpnError} ERR_USAGE */
export function lengthOfTime(value: string): number {
  const [, count, unit] = LENGTH.exec(value) ?? [];
  const milliseconds = Number(count) * (LENGTH_UNITS[unit === 's' || unit === 'm' ? unit : 'h'] ?? 0);
  if (count !== undefined && milliseconds <= LENGTH_UNITS.h) return milliseconds;
  throw new VpnError('ERR_USAGE', `expected a length of time such as 90s or 5m, 1h at most, got "${value}"`);
}

function isUnit(unit: string | undefined): unit is keyof typeof UNITS {
  return unit !== undefined && Object.hasOwn(UNITS, unit);
}

/**
 * An instant in ISO form from a date (its first moment, UTC), an instant, or a time from now: `90m`, `12h`, `30d`, `4w`.
 *
 * @throws {VpnError} ERR_USAGE
 */
export function instant(value: string): string {
  return parseInstant(value, 'a time from now');
}

/** @throws {VpnError} ERR_USAGE */
export function wholeNumber(value: string): number {
  if (/^[1-9]\d{0,8}$/.test(value)) return Number(value);
  throw new VpnError('ERR_USAGE', `expected a whole number, got "${value}"`);
}

function parseInstant(value: string, distance: string): string {
  const [, count, unit] = DURATION.exec(value) ?? [];
  const isoForm = /^\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?(?:Z|[+-]\d\d:\d\d))?$/.test(value);
  const at =
    count !== undefined && isUnit(unit)
      ? Date.now() + Number(count) * UNITS[unit]
      : isoForm
        ? Date.parse(value)
        : Number.NaN;
  if (Number.isNaN(at)) {
    throw new VpnError(
      'ERR_USAGE',
      `expected a date such as 2030-06-30, an instant such as 2030-06-30T12:00:00Z or ${distance} such as 30d, got "${value}"`,
    );
  }
  return new Date(at).toISOString();
}
