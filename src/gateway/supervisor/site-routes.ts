/**
 * Networks behind clients: which device each is routed to, and which device may speak for it.
 *
 * Hides the order of these two: a network is taken from one device before it is given to another, so that two never have it, and
 * what could not be routed has no right to speak either. Must not know whose a network is, nor by which policy.
 */

import { VpnError } from '../../base/errors.ts';
import { formatPrefix, type Prefix, parsePrefix, prefixesOverlap } from '../../ip/address.ts';
import type { HostRoute } from '../../os/host.ts';
import type { Site } from '../../policy/sites.ts';
import { moveNetwork } from './ruleset.ts';

/** Where the host itself is in such a network, its own route counts: what sets routes gives them metrics of 20,000 and some at most. */
const SITE_METRIC = 50_000;

/** A network, and the number of the device where its client lives. */
export interface PlacedNetwork {
  readonly network: Prefix;
  readonly device: number;
}

export interface SiteRoutesParts {
  readonly routes: { add(route: HostRoute): Promise<void>; remove(route: HostRoute): Promise<void> };
  readonly shell: { run(commands: string): Promise<void> };
  /** What leads to a device, and the address that the host speaks from on the way to a network. */
  to(placed: PlacedNetwork): Pick<HostRoute, 'device' | 'source'>;
}

export class SiteRoutes {
  readonly #parts: SiteRoutesParts;
  /** By its text. */
  readonly #placed = new Map<string, PlacedNetwork>();

  constructor(parts: SiteRoutesParts) {
    this.#parts = parts;
  }

  /** Those of a device. */
  of(device: number): Prefix[] {
    return [...this.#placed.values()].flatMap((one) => (one.device === device ? [one.network] : []));
  }

  /** These, and no others. @throws {VpnError} ERR_HOST_APPLY; another call goes on from there */
  async become(networks: readonly PlacedNetwork[]): Promise<void> {
    const { routes, shell, to } = this.#parts;
    const wanted = new Map(networks.map((placed) => [formatPrefix(placed.network), placed]));
    for (const [prefix, placed] of [...this.#placed]) {
      if (wanted.get(prefix)?.device === placed.device) continue;
      await routes.remove({ prefix, ...to(placed) });
      await shell.run(moveNetwork(placed.device, placed.network, 'away'));
      this.#placed.delete(prefix);
    }
    for (const [prefix, placed] of wanted) {
      if (this.#placed.has(prefix)) continue;
      await shell.run(moveNetwork(placed.device, placed.network, 'here'));
      try {
        await routes.add({ prefix, ...to(placed), metric: SITE_METRIC });
      } catch (error) {
        await shell.run(moveNetwork(placed.device, placed.network, 'away'));
        throw error;
      }
      this.#placed.set(prefix, placed);
    }
  }
}

/** Nobody can be given rights over what is the clients', whatever the policy says. @throws {VpnError} ERR_CONFIG_VALUE */
export function checkSites(sites: readonly Site[], pool: readonly string[]): void {
  const clients = pool.map(parsePrefix);
  for (const { seenAs } of sites.flatMap(({ networks }) => networks)) {
    const own = clients.find((prefix) => prefixesOverlap(prefix, seenAs));
    if (own === undefined) continue;
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `pool: ${formatPrefix(own)} overlaps ${formatPrefix(seenAs)}, which the policy says is behind a client; choose another pool, or give the site another network`,
      { details: { key: 'pool' } },
    );
  }
}
