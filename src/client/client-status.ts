/** What callers are shown of a client, and of what it does to its machine. */

import type { ClientStatus } from '../control/operations.ts';
import type { Profile } from '../control/profile.ts';
import { formatIp, formatPrefix, type IpAddress } from '../ip/address.ts';
import type { NameKeeper } from '../os/name-service.ts';
import type { ClientSnapshot } from './client.ts';

/** What a client has done to its machine. */
export interface ShownHost {
  readonly plan:
    | {
        readonly mode: 'full' | 'split';
        readonly dns:
          | { readonly servers: readonly IpAddress[]; readonly domains: readonly string[]; readonly all: boolean }
          | undefined;
        readonly notes: readonly string[];
      }
    | undefined;
  readonly nameKeeper: NameKeeper;
  readonly isClosed: boolean;
  readonly isPortalOpen: boolean;
  /** Where commands run, if the tunnel is there for them only. */
  readonly namespace?: ClientStatus['namespace'];
}

/** What a caller is shown of a client, and of what it does to its machine. */
export function statusOf(snapshot: ClientSnapshot, profile: Profile, host: ShownHost, version: string): ClientStatus {
  const { config, tls, lastError } = snapshot;
  const { plan, nameKeeper, isClosed, isPortalOpen } = host;
  const addresses = config === undefined ? [] : [config.addresses.v4, config.addresses.v6];
  return {
    version,
    pid: process.pid,
    profile: profile.name,
    name: profile.name,
    state: snapshot.state === 'idle' || snapshot.state === 'stopped' ? 'stopping' : snapshot.state,
    server: `${profile.server.name}:${profile.server.port}`,
    verified: profile.verifyServer,
    since: new Date(snapshot.since).toISOString(),
    user: snapshot.user ?? null,
    device: snapshot.device?.name ?? null,
    addresses: addresses.flatMap((entry) => (entry === undefined ? [] : [formatIp(entry.address)])),
    routes: (config?.routes.map(formatPrefix) ?? []).filter(
      (route) => !snapshot.refused.some(({ item }) => item === `routes ${route}`),
    ),
    networks: (config?.networks ?? []).map(({ network, seenAs }) => ({
      network: formatPrefix(network),
      seenAs: formatPrefix(seenAs),
    })),
    refused: [...snapshot.refused],
    tls: tls === undefined ? null : { protocol: tls.protocol, cipher: tls.cipher, group: tls.group },
    dns: {
      servers: (plan?.dns ?? config?.dns)?.servers.map(formatIp) ?? [],
      domains: [...((plan?.dns ?? config?.dns)?.domains ?? [])],
      all: plan?.dns?.all ?? false,
      keeper: nameKeeper,
    },
    mode: plan?.mode ?? null,
    killSwitch: isPortalOpen ? 'portal' : isClosed ? 'closed' : 'open',
    notes: [...(plan?.notes ?? []), ...(config?.notices ?? []).map((notice) => `the server says: ${notice}`)],
    namespace: host.namespace ?? null,
    superPackets: snapshot.superPackets,
    channels: snapshot.channels,
    sentBytes: snapshot.sentBytes,
    receivedBytes: snapshot.receivedBytes,
    roundTripMs: snapshot.roundTripMs ?? null,
    reconnects: snapshot.reconnects,
    rekeys: snapshot.rekeys,
    rekeyGaps: snapshot.rekeyGaps,
    lastError: lastError === undefined ? null : { code: lastError.code, message: lastError.message },
  };
}
