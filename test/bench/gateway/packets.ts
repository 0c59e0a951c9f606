/**
 * How many small packets a tunnel carries, beside every peer in the same run.
 *
 * Datagrams of 100 bytes at a steady rate; the figure is the highest rate of which less than one in a hundred is lost, found
 * by doubling and halving. The sender is the same for all and needs processor time itself: the bare link says how much.
 */

import { LabError } from '../../lab/process.ts';
import { Rig } from '../../lab/rig.ts';
import type { Report } from '../report.ts';
import { Survey } from '../survey.ts';
import { type BenchNetwork, openNetwork, type System, type TunnelEnds } from '../system.ts';

export interface PacketEffort {
  rounds: number;
  seconds: number;
  /** Halvings once the rate is known within a factor of two. */
  steps: number;
}

export const FULL_PACKET_EFFORT: PacketEffort = { rounds: 3, seconds: 3, steps: 4 };
export const QUICK_PACKET_EFFORT: PacketEffort = { rounds: 1, seconds: 2, steps: 3 };

const PACKET_BYTES = 100;
/** Of IPv4 and UDP. */
const HEADER_BYTES = 28;
const MAX_LOSS = 0.01;
const FIRST_RATE = 4_000;
const LAST_RATE = 1_024_000;
/** A sender that gets less than this part of a rate out cannot say anything of it. */
const LEAST_SENT = 0.95;
const PORT = 5201;

/** The part of iperf3's report that is read. */
interface DatagramReport {
  error?: string;
  end?: { sum: { packets: number; lost_packets: number; seconds: number } };
}

/** Measures. @param progress gets one line at a time */
export async function measurePackets(
  systems: readonly System[],
  { rounds, seconds, steps }: PacketEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const survey = new Survey<BenchNetwork>(rig, rounds, progress);
  await survey.open(systems, (where, label) => openNetwork(where, label, 'bbr'));
  await survey.run(async ({ network, up, note }) => {
    const ends = await up();
    note('packets', await highestRate((rate) => isCarried(network, ends, rate, seconds), steps), '1/s');
  });
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  const name = `packets of ${PACKET_BYTES} bytes up, less than 1 % lost`;
  return survey.finish([survey.result('gateway', { name, unit: '1/s', key: 'packets', goals: [] })], {});
}

/** The highest rate that is carried, within a factor of 2 ^ (1 / 2 ^ steps). */
async function highestRate(isGood: (rate: number) => Promise<boolean>, steps: number): Promise<number> {
  let good = 0;
  let bad = FIRST_RATE;
  while (bad <= LAST_RATE && (await isGood(bad))) {
    good = bad;
    bad *= 2;
  }
  if (good === 0) throw new LabError(`not even ${FIRST_RATE} packets a second were carried`);
  for (let step = 0; step < steps; step += 1) {
    const middle = Math.sqrt(good * bad);
    if (await isGood(middle)) good = middle;
    else bad = middle;
  }
  return good;
}

async function isCarried(network: BenchNetwork, ends: TunnelEnds, rate: number, seconds: number): Promise<boolean> {
  const serve = ['iperf3', '-s', '-1', '-B', ends.server, '-p', String(PORT), '--forceflush'];
  await using _listener = await network.server.start(serve, { ready: /Server listening/ });
  const payload = PACKET_BYTES - HEADER_BYTES;
  const where = ['-c', ends.server, '-p', String(PORT), '--connect-timeout', '5000'];
  const how = ['-u', '-l', String(payload), '-b', `${Math.round(rate * payload * 8)}`, '-t', String(seconds), '-J'];
  const { stdout } = await network.client.run(['iperf3', ...where, ...how], {
    anyStatus: true,
    timeoutMs: (seconds + 30) * 1000,
  });
  const { error, end } = JSON.parse(stdout) as DatagramReport;
  if (error !== undefined || end === undefined) throw new LabError(`iperf3: ${error ?? 'no result'}`);
  const { packets, lost_packets: lost } = end.sum;
  return packets >= rate * seconds * LEAST_SENT && lost < packets * MAX_LOSS;
}
