/** The pool of addresses that a configuration describes. */

import { VpnError } from '../base/errors.ts';
import { parsePrefix } from '../ip/address.ts';
import { LeasePool } from '../ip/lease-pool.ts';
import type { GatewayConfig } from './config.ts';

/**
 * The pool that a configuration describes, cut into shares.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE for two prefixes of one family, or one without room
 */
export function openPool(config: GatewayConfig, shares = 1): LeasePool {
  const prefixes = config.pool.map(parsePrefix);
  const [v4, second4] = prefixes.filter(({ address }) => address.version === 4);
  const [v6, second6] = prefixes.filter(({ address }) => address.version === 6);
  if (second4 !== undefined || second6 !== undefined) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      'pool: expected at most one IPv4 and one IPv6 prefix, got two of one family',
    );
  }
  return new LeasePool({ ...(v4 === undefined ? {} : { v4 }), ...(v6 === undefined ? {} : { v6 }), shares });
}
