/**
 * What one flow carries over a path that loses packets, beside every peer in the same run.
 *
 * The path is a cable that loses frames (`test/lab/impairment.ts`). What it carries without a VPN, good, is measured too:
 * where that is less than three times the fastest in a row, the row says something of the cable, and no goal is met by it.
 */

import { LabError } from '../../lab/process.ts';
import { Rig } from '../../lab/rig.ts';
import { measureFlow } from '../measure.ts';
import { type Report, type Result, rounded } from '../report.ts';
import type { Goal } from '../statistics.ts';
import { nullable, OURS, RAW, Survey } from '../survey.ts';
import { type CableNetwork, openCable, type System, type TunnelEnds } from '../system.ts';

interface LossCondition {
  readonly loss: number;
  readonly roundTripMs: number;
}

export interface LossEffort {
  rounds: number;
  flowSeconds: number;
  conditions: readonly LossCondition[];
}

const GOAL_CONDITION: LossCondition = { loss: 0.01, roundTripMs: 20 };

export const FULL_LOSS_EFFORT: LossEffort = {
  rounds: 3,
  flowSeconds: 5,
  conditions: [
    GOAL_CONDITION,
    { loss: 0.001, roundTripMs: 20 },
    { loss: 0.03, roundTripMs: 20 },
    { loss: 0.01, roundTripMs: 100 },
  ],
};
export const QUICK_LOSS_EFFORT: LossEffort = { rounds: 3, flowSeconds: 3, conditions: [GOAL_CONDITION] };

const WIREGUARD = 'wireguard-go';
/** Those that carry packets in TLS over TCP. */
const TLS_PEERS = ['openvpn-tcp', 'ocserv-tls'];
const BEST_TLS_PEER = 'the best TLS peer';
/** For a TCP carrier that does not choose; the one that serves it best where packets are lost. */
const OUTER = 'bbr';
const HEADROOM = 3;
const GOOD_CABLE = 'the cable, good';

const INNER: readonly { control: string; goals: readonly Goal[] }[] = [
  {
    control: 'cubic',
    goals: [
      { peer: WIREGUARD, relation: '≥', factor: 20 },
      { peer: BEST_TLS_PEER, relation: '≥', factor: 2 },
    ],
  },
  { control: 'bbr', goals: [{ peer: WIREGUARD, relation: '≥', factor: 1.2 }] },
];

/** Measures. @param progress gets one line at a time */
export async function measureLoss(
  systems: readonly System[],
  { rounds, flowSeconds, conditions }: LossEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const survey = new Survey<CableNetwork>(rig, rounds, progress);
  await survey.open(systems, (where, label) => openCable(where, label, OUTER));
  await survey.run(async ({ system, network, up, note }) => {
    const flow = async (ends: TunnelEnds, control: string): Promise<number> => {
      const options = { seconds: flowSeconds, congestion: control };
      const { mbps, congestion } = await measureFlow(network, system, ends, 'down', options);
      if (congestion !== control) throw new LabError(`the inner control was ${congestion}`);
      return mbps;
    };
    try {
      if (system.name === RAW) note(GOOD_CABLE, await flow(await up(), 'cubic'), 'Mbit/s');
      for (const condition of conditions) {
        await system.down();
        // A connection remembers the shortest round trip that it has seen: the distance is there before it is.
        await network.cable.set({ delayMs: condition.roundTripMs / 2 });
        const ends = await up();
        await network.cable.set({ delayMs: condition.roundTripMs / 2, loss: condition.loss });
        for (const { control } of INNER) note(keyOf(condition, control), await flow(ends, control), 'Mbit/s');
      }
      const counters = await network.cable.counters();
      if (counters.some(({ overflowed }) => overflowed > 0)) throw new LabError('the cable could not hold the frames');
    } finally {
      await network.cable.set({});
    }
  });
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  const results = conditions.flatMap((condition) =>
    INNER.map(({ control, goals }) => resultOf(survey, condition, control, condition === GOAL_CONDITION ? goals : [])),
  );
  const congestion = { inner: INNER.map(({ control }) => control).join(', '), outer: OUTER };
  return survey.finish(results, { congestion, cableMbps: nullable(survey.middle(RAW, GOOD_CABLE)) });
}

function resultOf(
  survey: Survey<CableNetwork>,
  condition: LossCondition,
  control: string,
  goals: readonly Goal[],
): Result {
  const key = keyOf(condition, control);
  const fastest = Math.max(...[OURS, ...survey.rivals].map((name) => survey.middle(name, key) ?? 0));
  const isCableBound = (survey.middle(RAW, GOOD_CABLE) ?? 0) < HEADROOM * fastest;
  const name = `tcp down, ${key}${isCableBound ? ' (relay-bound)' : ''}`;
  const result = survey.result('gateway', { name, unit: 'Mbit/s', key, goals }, ({ peer }) =>
    peer === BEST_TLS_PEER ? survey.best(TLS_PEERS, key) : survey.values(peer, key),
  );
  const isComplete = TLS_PEERS.every((peer) => survey.middle(peer, key) !== undefined);
  return { ...result, met: result.met && isComplete && !isCableBound };
}

function keyOf({ loss, roundTripMs }: LossCondition, control: string): string {
  return `${rounded(loss * 100)} % lost each way, ${roundTripMs} ms, inner ${control}`;
}
