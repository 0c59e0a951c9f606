/**
 * What a new configuration changes of a gateway that runs.
 *
 * Hides which keys take effect at once and which need a start; auth and the supervisor, which both read the configuration,
 * come to the same answer here. Changes nothing itself.
 */

import { type GatewayConfig, RELOADABLE_KEYS } from './config.ts';
import { openPool, whyNotGrown } from './pool.ts';
import { isBridging } from './tap-config.ts';

type Key = keyof GatewayConfig;

/** Those that the host has to know of. */
const KEYS_OF_HOST: readonly Key[] = ['routes', 'services', 'policyFile', 'pool'];

export interface Reload {
  /** What is in force afterwards. */
  readonly merged: GatewayConfig;
  readonly applied: Key[];
  /** Changed, and left as they are. */
  readonly needsRestart: Key[];
  /** Why, where that is not plain. */
  readonly warnings: string[];
  /** Whether the host is concerned. */
  readonly isOfHost: boolean;
}

/** @throws {VpnError} ERR_CONFIG_VALUE for a pool that is none */
export function planReload(former: GatewayConfig, next: GatewayConfig): Reload {
  const keys = [...new Set([...Object.keys(former), ...Object.keys(next)])] as Key[];
  const changed = keys.filter((key) => JSON.stringify(next[key]) !== JSON.stringify(former[key]));
  const warnings: string[] = [];
  const applied = changed.filter((key) => {
    if (key !== 'pool') return RELOADABLE_KEYS.includes(key);
    const why = whyNotAtOnce(former, next);
    if (why !== undefined)
      warnings.push(`pool: ${why}; what is written takes effect when the gateway is started again`);
    return why === undefined;
  });
  const merged: GatewayConfig = { ...former, ...Object.fromEntries(applied.map((key) => [key, next[key]])) };
  const needsRestart = changed.filter((key) => !applied.includes(key));
  return { merged, applied, needsRestart, warnings, isOfHost: applied.some((key) => KEYS_OF_HOST.includes(key)) };
}

/** A configuration in which the host's keys are those of another. */
export function withHostKeys(config: GatewayConfig, of: GatewayConfig): GatewayConfig {
  const rest = Object.entries(config).filter(([key]) => !KEYS_OF_HOST.includes(key as Key));
  const taken = Object.entries(of).filter(([key]) => KEYS_OF_HOST.includes(key as Key));
  return Object.fromEntries([...rest, ...taken]) as GatewayConfig;
}

function whyNotAtOnce(former: GatewayConfig, next: GatewayConfig): string | undefined {
  openPool(next);
  if (isBridging(former)) return 'a gateway that bridges Ethernet cannot change it while it runs';
  return whyNotGrown(former.pool, next.pool);
}
