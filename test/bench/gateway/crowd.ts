/**
 * Several clients of one gateway at once, beside wireguard-go with as many: what they carry together and how evenly, and what
 * one that asks for much and never reads takes from the others.
 *
 * Each client has a namespace, a link and processes of its own; the links meet in a bridge beside the gateway. One TCP flow a
 * client, from the gateway's side. The client that never reads is a VPN process that is stopped while datagrams for it keep
 * coming: what cannot be delivered must cost nobody else.
 */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type BackgroundProcess, LabError } from '../../lab/process.ts';
import { type Namespace, Rig } from '../../lab/rig.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from '../report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from '../statistics.ts';
import { type CrowdNetwork, INNER_SERVER, OUTER_SERVER, stopAll } from '../system.ts';
import { CustomVpn } from '../systems/customvpn.ts';
import { WireguardGo } from '../systems/wireguard-go.ts';

export interface CrowdEffort {
  rounds: number;
  seconds: number;
}
export const FULL_CROWD_EFFORT: CrowdEffort = { rounds: 12, seconds: 5 };
export const QUICK_CROWD_EFFORT: CrowdEffort = { rounds: 3, seconds: 3 };

const CLIENTS = 8;
const FIRST_PORT = 5201;
const FLOOD_RATE = '200M';
/** Until a flood has filled what queues there are. */
const RISE_MS = 1000;
const OURS = 'customvpn';
const WIREGUARD = 'wireguard-go';
const ONE = 'one client';
const CALM = 'without it';

/** A VPN with several clients. */
export interface CrowdSystem {
  readonly name: string;
  missing(): Promise<string | undefined>;
  version(): Promise<string>;
  /** Brings up the server and every client. @returns the clients' addresses inside the tunnel */
  upWith(network: CrowdNetwork): Promise<readonly string[]>;
  /** Of the clients, in order. */
  readonly client: readonly BackgroundProcess[];
  down(): Promise<void>;
}

/** One round of one system, Mbit/s. */
interface Sample {
  alone: number;
  each: number[];
  /** Of all but the last, which is idle; and the same while the last never reads. */
  calm: number;
  flooded: number;
}

/** Measures. @param progress gets one line at a time */
export async function measureCrowd(
  { rounds, seconds }: CrowdEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using rig = await Rig.open();
  const systems: CrowdSystem[] = [new CustomVpn({ plain: false }), new WireguardGo()];
  const versions: Record<string, string> = {};
  const samples = new Map<string, (Sample | undefined)[]>();
  const present: { system: CrowdSystem; network: CrowdNetwork }[] = [];
  for (const [index, system] of systems.entries()) {
    const why = await system.missing();
    versions[system.name] = why === undefined ? await system.version() : `missing: ${why}`;
    if (why !== undefined) progress(`${system.name}: missing: ${why}`);
    else present.push({ system, network: await openCrowd(rig, `w${index}`) });
    samples.set(system.name, []);
  }
  for (let round = 0; round < rounds; round += 1) {
    for (const { system, network } of round % 2 === 0 ? present : present.toReversed()) {
      try {
        const addresses = await system.upWith(network);
        const sample = await measureRound(network, system, addresses, seconds);
        const kept = samples.get(system.name);
        if (kept !== undefined) kept[round] = sample;
        progress(`round ${round + 1}/${rounds} ${system.name}: ${describe(sample)}`);
      } catch (error) {
        progress(`${system.name} failed: ${error instanceof Error ? error.message : String(error)}`);
      } finally {
        await system.down();
      }
    }
  }
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  const of = (name: string, value: (sample: Sample) => number): (number | undefined)[] =>
    Array.from({ length: rounds }, (_, round) => {
      const sample = samples.get(name)?.[round];
      return sample === undefined ? undefined : value(sample);
    });
  const together = ({ each }: Sample): number => each.reduce((sum, mbps) => sum + mbps, 0);
  const results = [
    result(`tcp down, ${CLIENTS} clients together`, 'Mbit/s', of(OURS, together), {
      [WIREGUARD]: { values: of(WIREGUARD, together), goal: { relation: '≥', factor: 1 } },
      [ONE]: { values: of(OURS, ({ alone }) => alone), goal: { relation: '≥', factor: 0.85 } },
    }),
    fairness(
      of(OURS, ({ each }) => jain(each)),
      of(WIREGUARD, ({ each }) => jain(each)),
    ),
    result(
      `tcp down of ${CLIENTS - 1} beside one that is sent ${FLOOD_RATE}bit/s and never reads`,
      'Mbit/s',
      of(OURS, ({ flooded }) => flooded),
      {
        [CALM]: { values: of(OURS, ({ calm }) => calm), goal: { relation: '≥', factor: 0.95 } },
        [WIREGUARD]: { values: of(WIREGUARD, ({ flooded }) => flooded) },
      },
    ),
  ];
  const measured = results.every(({ ours }) => ours !== null);
  return { report: { machine, versions, rounds, results }, measured };
}

/** (Σx)² / n Σx²: 1 when all have the same. */
function jain(values: readonly number[]): number {
  const sum = values.reduce((total, value) => total + value, 0);
  return sum ** 2 / (values.length * values.reduce((total, value) => total + value ** 2, 0));
}

async function openCrowd(rig: Rig, label: string): Promise<CrowdNetwork> {
  const server = await rig.namespace(`${label}-s`);
  await server.run(['ip', 'link', 'add', 'out0', 'type', 'bridge']);
  await server.run(['ip', 'address', 'add', `${OUTER_SERVER}/24`, 'dev', 'out0']);
  await server.run(['ip', 'link', 'set', 'out0', 'up']);
  const clients: Namespace[] = [];
  for (let index = 0; index < CLIENTS; index += 1) {
    const client = await rig.namespace(`${label}-c${index}`);
    await rig.link(
      { namespace: server, device: `port${index}` },
      { namespace: client, device: 'out0', addresses: [`198.51.100.${100 + index}/24`] },
    );
    await server.run(['ip', 'link', 'set', `port${index}`, 'master', 'out0']);
    clients.push(client);
  }
  const folder = join(rig.folder, label);
  await mkdir(folder, { mode: 0o700 });
  return { rig, server, clients, folder };
}

async function measureRound(
  network: CrowdNetwork,
  system: CrowdSystem,
  addresses: readonly string[],
  seconds: number,
): Promise<Sample> {
  const all = network.clients.map((_, index) => index);
  const others = all.slice(0, -1);
  // Every process has just been started, and code that has not run yet is not what people use all day.
  await flows(network, all, seconds);
  const [alone = 0] = await flows(network, [0], seconds);
  const each = await flows(network, all, seconds);
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  const calm = sum(await flows(network, others, seconds));
  const last = all.length - 1;
  const deaf = system.client[last];
  if (deaf === undefined) throw new LabError(`${system.name} has no process of its last client`);
  await using _flood = await startFlood(network.server, addresses[last] ?? '');
  deaf.signal('SIGSTOP');
  try {
    await delay(RISE_MS);
    return { alone, each, calm, flooded: sum(await flows(network, others, seconds)) };
  } finally {
    deaf.signal('SIGCONT');
  }
}

/** Datagrams for an address at `FLOOD_RATE`, whoever takes them. */
async function startFlood(server: Namespace, address: string): Promise<BackgroundProcess> {
  const script = [
    "const socket = require('node:dgram').createSocket('udp4');",
    'const payload = Buffer.alloc(1400);',
    // 200 Mbit/s are 18 datagrams of 1,400 bytes a millisecond.
    `setInterval(() => { for (let at = 0; at < 36; at += 1) socket.send(payload, 9, '${address}'); }, 2);`,
    "socket.on('error', () => {});",
    "console.log('ready');",
  ].join('\n');
  return await server.start([process.execPath, '-e', script], { ready: /ready/ });
}

/** One flow to each of these clients at the same time. @returns Mbit/s as received, in their order */
async function flows(network: CrowdNetwork, which: readonly number[], seconds: number): Promise<number[]> {
  const port = (index: number): string => String(FIRST_PORT + index);
  const listeners = await Promise.all(
    which.map((index) =>
      network.server.start(['iperf3', '-s', '-1', '-B', INNER_SERVER, '-p', port(index), '--forceflush'], {
        ready: /Server listening/,
      }),
    ),
  );
  try {
    return await Promise.all(
      which.map(async (index) => {
        const argv = ['iperf3', '-c', INNER_SERVER, '-p', port(index), '--connect-timeout', '5000'];
        const how = ['-R', '-t', String(seconds), '-C', 'cubic', '-J'];
        const client = network.clients[index];
        const { stdout = '' } =
          (await client?.run([...argv, ...how], { anyStatus: true, timeoutMs: (seconds + 30) * 1000 })) ?? {};
        const report = JSON.parse(stdout) as { error?: string; end?: { sum_received?: { bits_per_second: number } } };
        const mbps = (report.end?.sum_received?.bits_per_second ?? 0) / 1e6;
        if (!(mbps > 0)) throw new LabError(`client ${index} received nothing: ${report.error ?? ''}`);
        return mbps;
      }),
    );
  } finally {
    await stopAll(...listeners);
  }
}

function describe({ alone, each, calm, flooded }: Sample): string {
  const sum = each.reduce((total, mbps) => total + mbps, 0);
  return `alone ${rounded(alone)}, ${each.length} together ${rounded(sum)} (Jain ${rounded(jain(each))}), ${each.length - 1} of them ${rounded(calm)}, beside one that never reads ${rounded(flooded)} Mbit/s`;
}

function fairness(ours: readonly (number | undefined)[], theirs: readonly (number | undefined)[]): Result {
  const own = ours.filter((value) => value !== undefined);
  const [middle, other] = [median(own), median(theirs.filter((value) => value !== undefined))];
  return {
    area: 'gateway',
    name: `Jain's index of ${CLIENTS} clients`,
    unit: '',
    ours: nullable(middle),
    spread: { low: nullable(quantile(own, 0)), high: nullable(quantile(own, 1)), ratios: [] },
    peers: { [WIREGUARD]: nullable(other) },
    goal: '≥ 0.95',
    met: middle !== undefined && middle >= 0.95,
  };
}

function result(
  name: string,
  unit: string,
  ours: readonly (number | undefined)[],
  peers: Record<string, { values: readonly (number | undefined)[]; goal?: Omit<Goal, 'peer'> }>,
): Result {
  const own = ours.filter((value) => value !== undefined);
  const goals = Object.entries(peers).flatMap(([peer, { values, goal }]) =>
    goal === undefined ? [] : [{ goal: { peer, ...goal }, values }],
  );
  const ratios = goals.map(({ goal, values }) => summarise(judge(pairedRatios(ours, values), goal), formatGoal(goal)));
  return {
    area: 'gateway',
    name,
    unit,
    ours: nullable(median(own)),
    spread: { low: nullable(quantile(own, 0)), high: nullable(quantile(own, 1)), ratios },
    peers: Object.fromEntries(
      Object.entries(peers).map(([peer, { values }]) => [
        peer,
        nullable(median(values.filter((value) => value !== undefined))),
      ]),
    ),
    goal: goals.map(({ goal }) => formatGoal(goal)).join(', '),
    met: ratios.length > 0 && ratios.every(({ verdict }) => verdict === 'met'),
  };
}

function nullable(value: number | undefined): number | null {
  return value === undefined ? null : rounded(value);
}
