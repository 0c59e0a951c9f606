/**
 * The measurements: one TCP flow, processor time beside it, and round trips.
 *
 * Hides `iperf3`, `ping` and `ss` and their output. A measurement is of whatever tunnel is up between two namespaces; it
 * does not know which.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { cpuSeconds, LabError } from '../lab/process.ts';
import type { Namespace } from '../lab/rig.ts';
import { quantile } from './statistics.ts';
import type { BenchNetwork, BottleneckNetwork, System, TunnelEnds } from './system.ts';

const IPERF_PORT = 5201;
const BYTES_PER_GB = 1e9;
/** Between pings: far longer than a round trip, so that the tunnel is idle when each is sent. */
const PING_INTERVAL_S = 0.005;

/** Between pings beside a load: often enough to see a queue come and go, too little to be a load. */
const LOADED_PING_INTERVAL_S = 0.02;
/** Until a load has filled what queues there are. */
const RISE_MS = 1500;

/** `down`: from the server to the client. */
export type Direction = 'down' | 'up';

export interface FlowResult {
  /** As received, Mbit/s. */
  mbps: number;
  /** Seconds of processor time per 10^9 bytes received; undefined where no process carries the traffic. */
  serverCpuPerGb: number | undefined;
  clientCpuPerGb: number | undefined;
  /** What both ends of the inner connection used. */
  congestion: string;
}

/** Round trips beside a load. */
export interface LoadedResult {
  p50: number;
  p95: number;
  /** What passed the bottleneck meanwhile in the direction of the load, all headers included; of both, the lesser. Mbit/s. */
  mbps: number;
  congestion: string;
}

/** The part of iperf3's report that is read. */
interface IperfReport {
  error?: string;
  end: {
    sum_received: { bytes: number; bits_per_second: number };
    sender_tcp_congestion?: string;
    receiver_tcp_congestion?: string;
  };
}

/** One TCP flow through a tunnel. @throws {LabError} when it carried nothing */
export async function measureFlow(
  network: BenchNetwork,
  system: System,
  ends: TunnelEnds,
  direction: Direction,
  options: { seconds: number; congestion: string },
): Promise<FlowResult> {
  const serve = ['iperf3', '-s', '-1', '-B', ends.server, '-p', String(IPERF_PORT), '--forceflush'];
  await using listener = await network.server.start(serve, { ready: /Server listening/ });
  const where = ['-c', ends.server, '-p', String(IPERF_PORT), '--connect-timeout', '5000'];
  const how = ['-t', String(options.seconds), '-C', options.congestion, '-J', ...(direction === 'down' ? ['-R'] : [])];
  const used = () => [system.server, system.client].map((side) => cpuSeconds(side.map((process) => process.pid)));
  const [serverBefore = 0, clientBefore = 0] = used();
  const { stdout } = await network.client.run(['iperf3', ...where, ...how], {
    anyStatus: true,
    timeoutMs: (options.seconds + 30) * 1000,
  });
  const [serverAfter = 0, clientAfter = 0] = used();
  await listener.stop();
  const report = parseReport(stdout, system.name);
  const gigabytes = report.end.sum_received.bytes / BYTES_PER_GB;
  if (!(gigabytes > 0)) throw new LabError(`${system.name}: no byte came through`);
  const congestion = [report.end.sender_tcp_congestion, report.end.receiver_tcp_congestion];
  return {
    mbps: report.end.sum_received.bits_per_second / 1e6,
    serverCpuPerGb: system.server.length === 0 ? undefined : (serverAfter - serverBefore) / gigabytes,
    clientCpuPerGb: system.client.length === 0 ? undefined : (clientAfter - clientBefore) / gigabytes,
    congestion: [...new Set(congestion.filter((name) => name !== undefined))].join('/'),
  };
}

/**
 * Round trips through an idle tunnel, in milliseconds.
 *
 * @param options.lostMs what one that stays unanswered counts for
 * @throws {LabError} when more than a tenth stay unanswered, unless that counts
 */
export async function measureRoundTrips(
  from: Namespace,
  address: string,
  count: number,
  { lostMs }: { lostMs?: number } = {},
): Promise<{ p50: number; p99: number }> {
  const argv = ['ping', '-n', '-c', String(count), '-i', String(PING_INTERVAL_S), '-W', '1', address];
  const { stdout } = await from.run(argv, { anyStatus: true });
  const times = [...stdout.matchAll(/ time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  if (lostMs !== undefined) while (times.length < count) times.push(lostMs);
  const [p50, p99] = [quantile(times, 0.5), quantile(times, 0.99)];
  if (p50 === undefined || p99 === undefined || times.length < count * 0.9) {
    throw new LabError(`${times.length} of ${count} pings to ${address} were answered`);
  }
  return { p50, p99 };
}

/**
 * Round trips while one TCP flow a direction sends as much as it can.
 *
 * @throws {LabError} when nothing was carried, or more than a tenth of the pings stay unanswered
 */
export async function measureLoadedRoundTrips(
  network: BottleneckNetwork,
  system: System,
  ends: TunnelEnds,
  direction: Direction | 'both',
  options: { pings: number; congestion: string },
): Promise<LoadedResult> {
  const serve = ['iperf3', '-s', '-1', '-B', ends.server, '-p', String(IPERF_PORT), '--forceflush'];
  await using listener = await network.server.start(serve, { ready: /Server listening/ });
  const seconds = Math.ceil(RISE_MS / 1000 + options.pings * LOADED_PING_INTERVAL_S + 0.5);
  const where = ['-c', ends.server, '-p', String(IPERF_PORT), '--connect-timeout', '5000'];
  const how = { down: ['-R'], up: [], both: ['--bidir'] }[direction];
  const load = network.client.run(['iperf3', ...where, '-t', String(seconds), '-C', options.congestion, '-J', ...how], {
    anyStatus: true,
    timeoutMs: (seconds + 30) * 1000,
  });
  void load.catch(() => {});
  await delay(RISE_MS);
  const before = await sentBytes(network, direction);
  const since = performance.now();
  const argv = ['-c', String(options.pings), '-i', String(LOADED_PING_INTERVAL_S), '-W', '5', ends.server];
  const pinged = await network.client.run(['ping', '-n', ...argv], { anyStatus: true });
  const elapsedMs = performance.now() - since;
  const after = await sentBytes(network, direction);
  const report = parseReport((await load).stdout, system.name);
  await listener.stop();
  const times = [...pinged.stdout.matchAll(/ time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  const [p50, p95] = [quantile(times, 0.5), quantile(times, 0.95)];
  if (p50 === undefined || p95 === undefined || times.length < options.pings * 0.9) {
    throw new LabError(`${system.name}: ${times.length} of ${options.pings} pings were answered under load`);
  }
  const mbps = Math.min(...after.map((bytes, at) => ((bytes - (before[at] ?? 0)) * 8) / 1000 / elapsedMs));
  return { p50, p95, mbps, congestion: report.end.sender_tcp_congestion ?? options.congestion };
}

/** What the router has sent so far, in the directions of a load. */
async function sentBytes({ router, devices }: BottleneckNetwork, direction: Direction | 'both'): Promise<number[]> {
  const watched = direction === 'both' ? [devices.up, devices.down] : [devices[direction]];
  return await Promise.all(
    watched.map(async (device) => {
      const { stdout } = await router.run(['ip', '-j', '-s', 'link', 'show', 'dev', device]);
      const [link] = JSON.parse(stdout) as { stats64: { tx: { bytes: number } } }[];
      if (link === undefined) throw new LabError(`the router has no device ${device}`);
      return link.stats64.tx.bytes;
    }),
  );
}

/** The congestion controls of the TCP connections of a namespace to or from `address`: what carries the tunnel. */
export async function outerCongestion(namespace: Namespace, address: string): Promise<string[]> {
  const { stdout } = await namespace.run(['ss', '-Htni']);
  const found = new Set<string>();
  const lines = stdout.split('\n');
  for (const [index, line] of lines.entries()) {
    if (!line.includes(` ${address}:`)) continue;
    const name = /^\s+(?:(?:ts|sack|ecn|ecnseen|fastopen) )*(\w+)/.exec(lines[index + 1] ?? '')?.[1];
    if (name !== undefined) found.add(name);
  }
  return [...found];
}

function parseReport(text: string, name: string): IperfReport {
  let report: IperfReport;
  try {
    report = JSON.parse(text) as IperfReport;
  } catch (cause) {
    throw new LabError(`${name}: iperf3 said ${text.slice(0, 500)}`, { cause });
  }
  if (report.error !== undefined) throw new LabError(`${name}: iperf3: ${report.error}`);
  return report;
}
