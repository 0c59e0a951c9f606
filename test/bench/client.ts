/**
 * The area `client`: how long a person waits for the tunnel, and how long it is gone when the network changes.
 *
 * Each system has two namespaces of its own. The time is that from the command, or from the change, to the first answered ping
 * that was sent after it; what lasts longer than half a minute counts as that. Peers are set to come back as soon as they can.
 */

import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { Rig } from '../lab/rig.ts';
import { describeMachine, type Report, type Result, rounded } from './report.ts';
import { median } from './statistics.ts';
import { type BenchNetwork, firstPing, INNER_SERVER, OUTER_CLIENT, openNetwork, type System } from './system.ts';
import type { CustomVpn } from './systems/customvpn.ts';

export interface ClientEffort {
  rounds: number;
}

export const FULL_CLIENT_EFFORT: ClientEffort = { rounds: 20 };
export const QUICK_CLIENT_EFFORT: ClientEffort = { rounds: 3 };

const MOVED = '198.51.100.77';
const BLACK_HOLE_MS = 5000;
/** Until what one change has set going is over before the next. */
const SETTLE_MS = 1500;
const GIVEN_UP_MS = 30_000;

type Key = 'cold' | 'resume' | 'address' | 'hole' | 'restart';

interface Figure {
  key: Key;
  name: string;
  /** Our own bound. */
  limitMs: number | undefined;
}

const FIGURES: readonly Figure[] = [
  { key: 'cold', name: 'up to the first ping, cold', limitMs: undefined },
  { key: 'resume', name: 'up to the first ping, with resume', limitMs: 400 },
  { key: 'address', name: 'another address to the first ping', limitMs: 1000 },
  { key: 'hole', name: 'the end of 5 s of black hole to the first ping', limitMs: undefined },
  { key: 'restart', name: 'the server listens again to the first ping', limitMs: 2000 },
];

/** Never slower than these. */
const RIVALS = ['openvpn-udp', 'openvpn-tcp', 'ocserv-tls'];

export async function measureClient(
  systems: { ours: CustomVpn; peers: readonly System[] },
  effort: ClientEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const { ours, peers } = systems;
  const samples = new Map<string, Map<Key, number[]>>();
  const versions: Record<string, string> = {};
  const rig = await Rig.open();
  try {
    for (const system of [ours, ...peers]) {
      const missing = await system.missing();
      if (missing !== undefined) {
        versions[system.name] = `missing: ${missing}`;
        progress(`${system.name}: ${missing}`);
        continue;
      }
      versions[system.name] = await system.version();
      const network = await openNetwork(rig, system.name, await defaultCongestion());
      const own = new Map<Key, number[]>();
      samples.set(system.name, own);
      const add = (key: Key, ms: number): void => {
        own.set(key, [...(own.get(key) ?? []), ms]);
      };
      for (let round = 0; round < effort.rounds; round++) {
        const seen = await measureRound(system, network, add);
        progress(`${system.name} ${round + 1}/${effort.rounds}: ${seen}`);
      }
    }
  } finally {
    await rig.close();
  }
  return {
    report: {
      machine: describeMachine(),
      versions,
      rounds: effort.rounds,
      results: FIGURES.map((figure) => resultOf(figure, ours.name, samples)),
    },
    measured: samples.has(ours.name),
  };
}

async function measureRound(
  system: System,
  network: BenchNetwork,
  add: (key: Key, ms: number) => void,
): Promise<string> {
  const seen: string[] = [];
  const note = (key: Key, ms: number): void => {
    add(key, ms);
    seen.push(`${key} ${Math.round(ms)}`);
  };
  const { firstPingMs } = await system.up(network);
  try {
    note('cold', firstPingMs);
    if (isOurs(system)) {
      await system.park(network);
      note('resume', await system.unpark(network));
    }
    await delay(SETTLE_MS);
    note('address', await afterMove(system, network));
    await delay(SETTLE_MS);
    note('hole', await afterBlackHole(system, network));
    await delay(SETTLE_MS);
    if (system.restartServer !== undefined) {
      await system.restartServer(network);
      note('restart', await answered(system, network, performance.now()));
    }
    return seen.join(', ');
  } finally {
    await system.down();
    // In this order: the second address of a network goes with its first.
    await network.client.run(['ip', 'address', 'delete', `${MOVED}/24`, 'dev', 'out0'], { anyStatus: true });
    await network.client.run(['ip', 'address', 'replace', `${OUTER_CLIENT}/24`, 'dev', 'out0']);
  }
}

function isOurs(system: System): system is CustomVpn {
  return 'park' in system;
}

/** Milliseconds to an answer, or what counts as none. */
async function answered(system: System, network: BenchNetwork, since: number): Promise<number> {
  try {
    return await firstPing(network, INNER_SERVER, since, system.client);
  } catch {
    return GIVEN_UP_MS;
  }
}

async function afterMove(system: System, network: BenchNetwork): Promise<number> {
  const input = `address delete ${OUTER_CLIENT}/24 dev out0\naddress add ${MOVED}/24 dev out0\n`;
  const since = performance.now();
  await network.client.run(['ip', '-batch', '-'], { input });
  return await answered(system, network, since);
}

async function afterBlackHole(system: System, network: BenchNetwork): Promise<number> {
  // Lost on the way, so that neither end hears of it.
  const ends = [network.client, network.server];
  const input = 'table inet hole { chain in { type filter hook prerouting priority -300; iifname "out0" drop; }; }';
  for (const end of ends) await end.run(['nft', '-f', '-'], { input });
  // Somebody works on: what is lost in the hole is sent again, less and less often.
  const traffic = await network.client.start(['ping', '-q', '-n', '-i', '0.2', INNER_SERVER]);
  await delay(BLACK_HOLE_MS);
  const since = performance.now();
  for (const end of ends) await end.run(['nft', 'delete', 'table', 'inet', 'hole']);
  const ms = await answered(system, network, since);
  await traffic.stop();
  return ms;
}

function resultOf(figure: Figure, ours: string, samples: ReadonlyMap<string, ReadonlyMap<Key, number[]>>): Result {
  const own = samples.get(ours)?.get(figure.key) ?? [];
  const value = median(own);
  const worst = own.length === 0 ? null : rounded(Math.max(...own));
  const peers: Record<string, number | null> = {};
  for (const [name, figures] of samples) {
    if (name === ours) continue;
    const middle = median(figures.get(figure.key) ?? []);
    peers[name] = middle === undefined ? null : rounded(middle);
  }
  const { limitMs } = figure;
  const rivals = RIVALS.flatMap((name) => peers[name] ?? []);
  const isFast = value !== undefined && (limitMs === undefined || value <= limitMs);
  const isFirst = value !== undefined && rivals.every((rival) => value <= rival);
  const bound = limitMs === undefined ? '' : `≤ ${limitMs} ms, `;
  return {
    area: 'client',
    name: figure.name,
    unit: 'ms',
    ours: value === undefined ? null : rounded(value),
    spread: { low: own.length === 0 ? null : rounded(Math.min(...own)), high: worst, ratios: [] },
    peers,
    goal: `${bound}not slower than OpenVPN and openconnect (the worst of ours: ${worst ?? '–'})`,
    met: isFast && isFirst,
  };
}

/** What this machine's TCP does unless it is told otherwise. */
async function defaultCongestion(): Promise<string> {
  return (await readFile('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8')).trim();
}
