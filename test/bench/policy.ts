/**
 * The area `policy`: what a policy of 1,000 and of 10,000 rules costs, with 100 groups and 5,000 sessions, and whether one flow
 * through a gateway is slower with it than without.
 *
 * The flow goes from a client through the real gateway to a host behind it; the policy comes and goes by `server reload`, in
 * pairs, so that both kinds are measured in the same minutes.
 */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BEHIND, Deployment } from '../lab/deployment.ts';
import { benchPolicy, GROUPS } from './policy-text.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from './report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios } from './statistics.ts';

export interface PolicyEffort {
  /** Of the costs. */
  rounds: number;
  /** Of the flow: one with and one without. */
  pairs: number;
  flowSeconds: number;
}

export const FULL_POLICY_EFFORT: PolicyEffort = { rounds: 5, pairs: 12, flowSeconds: 4 };
export const QUICK_POLICY_EFFORT: PolicyEffort = { rounds: 2, pairs: 4, flowSeconds: 2 };

const PEER = join(import.meta.dirname, 'policy-peer.ts');
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const WITHOUT = 'without a policy';
const GOAL: Goal = { peer: WITHOUT, relation: '≥', factor: 0.95 };
const SIZES = [1000, 10_000] as const;

const COSTS = [
  ['read', 'reading the file', 'ms'],
  ['select', 'the rules of 5,000 sessions', 'ms'],
  ['compile', 'compiling them', 'ms'],
  ['apply', 'putting them into the kernel', 'ms'],
  ['replace', 'replacing them there', 'ms'],
  ['admit', 'one more client', 'ms'],
  ['check', 'checking one stream', 'µs'],
  ['textKiB', 'the transaction', 'KiB'],
] as const;

export async function measurePolicy(
  effort: PolicyEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using deployment = await Deployment.open();
  const results = [...(await costs(deployment, effort, progress)), await flow(deployment, effort, progress)];
  return {
    measured: results.every(({ ours }) => ours !== null),
    report: { machine, versions: { node: process.version }, rounds: effort.rounds, results },
  };
}

async function costs(
  deployment: Deployment,
  { rounds }: PolicyEffort,
  progress: (line: string) => void,
): Promise<Result[]> {
  const results: Result[] = [];
  for (const size of SIZES) {
    const samples: Record<string, number>[] = [];
    for (let round = 0; round < rounds; round++) {
      const { stdout } = await deployment.behind.run([...NODE, PEER, String(size)], { timeoutMs: 120_000 });
      samples.push(JSON.parse(stdout) as Record<string, number>);
      progress(`${size} rules: ${stdout.trim()}`);
    }
    for (const [key, what, unit] of COSTS) {
      const values = samples.map((sample) => sample[key] ?? Number.NaN);
      results.push({
        area: 'policy',
        name: `${size} rules: ${what}`,
        unit,
        ours: rounded(median(values) ?? Number.NaN),
        spread: { low: rounded(Math.min(...values)), high: rounded(Math.max(...values)), ratios: [] },
        peers: {},
        goal: null,
        met: false,
      });
    }
  }
  return results;
}

/** One TCP connection from behind the gateway to a client, with a policy of 10,000 rules and without. */
async function flow(
  deployment: Deployment,
  { pairs, flowSeconds }: PolicyEffort,
  progress: (line: string) => void,
): Promise<Result> {
  const [client] = deployment.clients;
  if (client === undefined) throw new Error('there is no client');
  const file = join(deployment.state, 'policy.toml');
  const last = `[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["${BEHIND.host4}"]\n`;
  await writeFile(file, benchPolicy(10_000, last));
  await deployment.run();
  await deployment.enrol(client);
  const add = ['user', 'group', client.user, '--add', `g${GROUPS - 1}`];
  await deployment.ok(deployment.gateway, ...add, '--state', deployment.state);
  await client.up();
  await using server = await deployment.behind.start(['iperf3', '--forceflush', '-s', '-p', '5201'], {
    ready: /listening/,
  });
  const measure = async (isPoliced: boolean): Promise<number> => {
    await deployment.configure((text) => {
      const bare = text.replace(/^policyFile.*\n/m, '');
      return isPoliced ? `policyFile = ${JSON.stringify(file)}\n${bare}` : bare;
    });
    await deployment.ok(deployment.gateway, 'server', 'reload', '--state', deployment.state);
    const words = ['iperf3', '-J', '-R', '-c', BEHIND.host4, '-p', '5201', '-O', '1', '-t', String(flowSeconds)];
    const { stdout } = await client.namespace.run(words, { timeoutMs: 60_000 });
    const { end } = JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number } } };
    return end.sum_received.bits_per_second / 1e6;
  };
  await measure(true);
  const [policed, bare]: [number[], number[]] = [[], []];
  for (let pair = 0; pair < pairs; pair++) {
    for (const isPoliced of pair % 2 === 0 ? [true, false] : [false, true]) {
      const mbps = await measure(isPoliced);
      (isPoliced ? policed : bare).push(mbps);
      progress(`pair ${pair + 1}/${pairs}, ${isPoliced ? 'with 10,000 rules' : WITHOUT}: ${rounded(mbps)} Mbit/s`);
    }
  }
  await server.stop();
  await deployment.stop();
  const summary = summarise(judge(pairedRatios(policed, bare), GOAL), formatGoal(GOAL));
  return {
    area: 'policy',
    name: 'tcp down, with 10,000 rules',
    unit: 'Mbit/s',
    ours: rounded(median(policed) ?? Number.NaN),
    spread: { low: rounded(Math.min(...policed)), high: rounded(Math.max(...policed)), ratios: [summary] },
    peers: { [WITHOUT]: rounded(median(bare) ?? Number.NaN) },
    goal: formatGoal(GOAL),
    met: summary.verdict === 'met',
  };
}
