/**
 * The area `operations`: what the admin page weighs and how soon it can be used, how long the API takes with many users, and
 * whether a tunnel notices that somebody watches its gateway.
 *
 * A gateway as the command line runs it, in a namespace of its own, with 10,000 users and 5,000 sessions in its store; the browser and the programs that ask are in
 * the client's. Flows are measured in pairs, watched and not, in ABBA order.
 */

import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { COMMAND } from '../lab/command.ts';
import { run } from '../lab/process.ts';
import { Rig } from '../lab/rig.ts';
import { noBrowser } from '../support/browser.ts';
import { POPULATION_POOL, populate } from '../support/population.ts';
import { measureFlow } from './measure.ts';
import type { LoadFound, PageFound } from './operations-peer.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from './report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from './statistics.ts';
import { type BenchNetwork, OUTER_SERVER, openNetwork, type TunnelEnds } from './system.ts';
import { CustomVpn } from './systems/customvpn.ts';

const ROOT = join(import.meta.dirname, '../..');
const PEER = [process.execPath, '--conditions=customvpn-source', join(ROOT, 'test/bench/operations-peer.ts')];
const PAGE = `${OUTER_SERVER}:8444`;
const METRICS = `${OUTER_SERVER}:9464`;
const USERS = 10_000;
/** They wait for clients that never come; a flow has a session of its own. */
const SESSIONS = 5000;
const MAX_PAGE_BYTES = 120_000;
const UNWATCHED = 'unwatched';

export interface OperationsEffort {
  pairs: number;
  seconds: number;
  requests: number;
  visits: number;
}
export const FULL_OPERATIONS_EFFORT: OperationsEffort = { pairs: 12, seconds: 5, requests: 600, visits: 20 };
export const QUICK_OPERATIONS_EFFORT: OperationsEffort = { pairs: 4, seconds: 3, requests: 200, visits: 5 };

/** Measures. @param progress gets one line at a time */
export async function measureOperations(
  effort: OperationsEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using rig = await Rig.open();
  const network = await openNetwork(rig, 'operations', 'reno');
  let token = '';
  const system = new CustomVpn({
    plain: false,
    prepared: async (state) => {
      token = await furnish(state);
    },
  });
  const version = await system.version();
  const ends = await system.up(network);
  const ca = join(network.folder, 'gateway/certs/ca.pem');
  const ask = async <T>(...words: string[]): Promise<T> => {
    const env = { BENCH_TOKEN: token };
    const { stdout } = await network.client.run([...PEER, ...words], { env, timeoutMs: 300_000 });
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as T;
  };
  const results: Result[] = [];
  const load = await ask<LoadFound>('load', PAGE, ca, String(effort.requests));
  for (const { operation, p50, p99 } of load.operations) progress(`${operation}: p50 ${p50} ms, p99 ${p99} ms`);
  results.push(
    plain(`API p99 with ${USERS} users and ${SESSIONS} sessions`, 'ms', [load.p99]),
    ...load.operations.map(({ operation, p99 }) => plain(`API p99 of ${operation}`, 'ms', [p99])),
  );
  if (noBrowser === undefined) {
    const page = await ask<PageFound>('page', PAGE, ca, String(effort.visits));
    progress(`page: ${page.bytes} bytes, interactive after ${page.interactiveMs.map(rounded).join(', ')} ms`);
    results.push(
      {
        ...plain('page weight, compressed', 'B', [page.bytes]),
        goal: `≤ ${MAX_PAGE_BYTES} B`,
        met: page.bytes <= MAX_PAGE_BYTES,
      },
      plain('page interactive', 'ms', page.interactiveMs),
      plain('page first paint', 'ms', page.paintMs),
    );
  } else progress(`the page is not looked at: ${noBrowser}`);
  results.push(await watched(network, system, ends, { ca, token }, effort, progress));
  await system.down();
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  return { report: { machine, versions: { customvpn: version }, rounds: effort.pairs, results }, measured: true };
}

/** One flow, with metrics scraped each second and three listeners to events, and without. */
async function watched(
  network: BenchNetwork,
  system: CustomVpn,
  ends: TunnelEnds,
  { ca, token }: { ca: string; token: string },
  effort: OperationsEffort,
  progress: (line: string) => void,
): Promise<Result> {
  const [ours, theirs]: [number[], number[]] = [[], []];
  const options = { seconds: effort.seconds, congestion: 'cubic' };
  const flow = async () => (await measureFlow(network, system, ends, 'down', options)).mbps;
  await flow();
  for (let pair = 0; pair < effort.pairs; pair += 1) {
    const turns = [
      async () => {
        await using _watch = await network.client.start([...PEER, 'watch', PAGE, ca, METRICS], {
          env: { BENCH_TOKEN: token },
          ready: /^ready$/m,
        });
        ours.push(await flow());
      },
      async () => void theirs.push(await flow()),
    ];
    if (pair % 2 === 1) turns.reverse();
    for (const turn of turns) await turn();
    const [own, other] = [ours[pair] ?? 0, theirs[pair] ?? 0].map(rounded);
    progress(`pair ${pair + 1}/${effort.pairs}: watched ${own} | unwatched ${other} Mbit/s`);
  }
  const goal: Goal = { peer: UNWATCHED, relation: '≥', factor: 0.98 };
  const ratio = summarise(judge(pairedRatios(ours, theirs), goal), formatGoal(goal));
  const bare = median(theirs);
  const result = plain('throughput of one flow while watched', 'Mbit/s', ours);
  return {
    ...result,
    spread: { ...result.spread, ratios: [ratio] },
    peers: { [UNWATCHED]: bare === undefined ? null : rounded(bare) },
    goal: formatGoal(goal),
    met: ratio.verdict === 'met',
  };
}

/** Page, metrics, an administrator's token, many users and sessions. @returns the token */
async function furnish(state: string): Promise<string> {
  const file = join(state, 'server.toml');
  await writeFile(
    file,
    `${(await readFile(file, 'utf8')).replace(/^pool = .*$/m, `pool = ${JSON.stringify(POPULATION_POOL)}`)}\n[admin]\nlisten = "${PAGE}"\n[metrics]\nlisten = "${METRICS}"\n`,
  );
  await run([COMMAND, 'user', 'add', 'robot', '--group', 'administrators', '--state', state]);
  const issue = ['user', 'token', 'robot', '--name', 'bench', '--scope', 'api', '--json', '--state', state];
  const { token } = JSON.parse((await run([COMMAND, ...issue])).stdout) as { token: string };
  populate(state, { users: USERS, sessions: SESSIONS });
  return token;
}

function plain(name: string, unit: string, values: readonly number[]): Result {
  const [middle, low, high] = [median(values), quantile(values, 0), quantile(values, 1)].map((value) =>
    value === undefined ? null : rounded(value),
  );
  return {
    area: 'operations',
    name,
    unit,
    ours: middle ?? null,
    spread: { low: low ?? null, high: high ?? null, ratios: [] },
    peers: {},
    goal: null,
    met: false,
  };
}
