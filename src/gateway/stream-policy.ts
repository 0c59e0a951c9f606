/**
 * Where streams may go: the same as packets.
 *
 * Hides which part of the configuration, or which policy file, says it. What the kernel's rules hold for packets (`supervisor/ruleset.ts`) is held
 * here for connections that the gateway itself makes, and they are made with its own rights: so never to this host, but
 * for the services that clients have on its own address. Default deny.
 */

import {
  formatIp,
  type IpAddress,
  isUnusableAddress,
  type Prefix,
  parsePrefix,
  prefixContains,
} from '../ip/address.ts';
import type { GatewayConfig } from './config.ts';
import type { ProxyKey } from './ipc/ports.ts';
import { openPool } from './pool.ts';

/** A connection that somebody wants. */
export interface StreamFacts {
  readonly key: ProxyKey;
  readonly kind: 'tcp' | 'udp';
  readonly address: IpAddress;
  readonly port: number;
}

/** Says yes or no. The one place that knows rules. */
export interface StreamPolicy {
  allows(facts: StreamFacts): boolean;
}

/** What a policy file says of a connection; undefined: there is none. */
export type StreamJudge = (facts: StreamFacts) => boolean | undefined;

/**
 * The policy of a configuration.
 *
 * @param isOwn whether this host has the address
 * @param judge has the word on where to, in place of routes, where there is a policy file
 */
export function streamPolicy(
  config: GatewayConfig,
  isOwn: (address: IpAddress) => boolean,
  judge: StreamJudge = () => undefined,
): StreamPolicy {
  const pools = config.pool.map(parsePrefix);
  const routes = config.routes.map(parsePrefix);
  const { gateway4, gateway6 } = openPool(config);
  const gateways = [gateway4, gateway6].flatMap((address) => (address === undefined ? [] : [formatIp(address)]));
  const services = new Set(config.services.map(normalService));
  return {
    allows: (facts) => {
      const { kind, address, port } = facts;
      if (isUnusableAddress(address)) return false;
      if (gateways.includes(formatIp(address))) return services.has(`${kind}/${port}`);
      if (isOwn(address)) return false;
      const judged = judge(facts);
      if (judged !== undefined) return judged;
      if (isWithin(pools, address)) return config.clientToClient;
      return isWithin(routes, address);
    },
  };
}

function isWithin(prefixes: readonly Prefix[], address: IpAddress): boolean {
  return prefixes.some((prefix) => prefixContains(prefix, address));
}

/** `tcp/53`, whichever way round it is written. */
function normalService(service: string): string {
  const [first = '', second = ''] = service.split('/');
  return /^\d+$/.test(first) ? `${second}/${first}` : service;
}
