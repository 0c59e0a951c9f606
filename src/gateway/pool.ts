/** The pool of addresses that a configuration describes. */

import { VpnError } from '../base/errors.ts';
import { type Prefix, parsePrefix } from '../ip/address.ts';
import { LeasePool } from '../ip/lease-pool.ts';
import type { GatewayConfig } from './config.ts';

/**
 * The pool that a configuration describes, cut into shares.
 *
 * @param first the prefixes that the gateway started with, where it has grown since: its shares are as they were
 * @throws {VpnError} ERR_CONFIG_VALUE for two prefixes of one family, or one without room
 */
export function openPool(
  { pool }: Pick<GatewayConfig, 'pool'>,
  shares = 1,
  first: readonly string[] = pool,
): LeasePool {
  const opened = new LeasePool({ ...prefixesOf(first), shares });
  opened.grow(prefixesOf(pool));
  return opened;
}

/** Why the pool of a gateway that runs cannot become another; undefined: it can. @throws {VpnError} ERR_CONFIG_VALUE */
export function whyNotGrown(pool: readonly string[], next: readonly string[]): string | undefined {
  return new LeasePool(prefixesOf(pool)).whyNotGrown(prefixesOf(next));
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
export function prefixesOf(pool: readonly string[]): { v4?: Prefix; v6?: Prefix } {
  const prefixes = pool.map(parsePrefix);
  const [v4, second4] = prefixes.filter(({ address }) => address.version === 4);
  const [v6, second6] = prefixes.filter(({ address }) => address.version === 6);
  if (second4 !== undefined || second6 !== undefined) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      'pool: expected at most one IPv4 and one IPv6 prefix, got two of one family',
    );
  }
  return { ...(v4 === undefined ? {} : { v4 }), ...(v6 === undefined ? {} : { v6 }) };
}
