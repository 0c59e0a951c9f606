/**
 * The part `policy/traffic`: how well a limit of 10 Mbit/s is kept, and what compression does on a link of 10 Mbit/s.
 *
 * Everything is measured at the receiver: the limit by what passes its tunnel device, with the kernel's times, every segment
 * with its headers; compression by what of a file arrives in a second.
 */

import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BEHIND, type Client, Deployment } from '../lab/deployment.ts';
import { describeMachine, type Report, type Result, rounded } from './report.ts';

export interface TrafficEffort {
  seconds: number;
}

export const FULL_TRAFFIC_EFFORT: TrafficEffort = { seconds: 10 };
export const QUICK_TRAFFIC_EFFORT: TrafficEffort = { seconds: 4 };

const MBIT = 10;
const BYTES_PER_SECOND = 1_250_000;
const BURST_KIB = 32;
const PORT = '5201';
/** Headers of a segment: IPv4, TCP, timestamps. */
const HEADER_BYTES = 52;
const MSS = 1448;
const FILE_BYTES = 8 * 1024 * 1024;

interface Passed {
  readonly at: number;
  readonly bytes: number;
}

export async function measureTraffic(
  effort: TrafficEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using deployment = await Deployment.open();
  const policyFile = join(deployment.state, 'policy.toml');
  const rules = `\n[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["${BEHIND.host4}"]\n`;
  await deployment.configure((text) => `policyFile = "${policyFile}"\n${text}`);
  const write = (settings: string) =>
    writeFile(policyFile, `version = 1\n[[settings]]\nfor = ["any"]\ncompression = true\n${settings}${rules}`);
  await write(`downMbit = ${MBIT}\nupMbit = ${MBIT}\nburstKiB = ${BURST_KIB}\n`);
  await deployment.run();
  const [client] = deployment.clients;
  if (client === undefined) throw new Error('the deployment has no client');
  await deployment.enrol(client);
  await deployment.behind.start(['iperf3', '-s', '--forceflush', '-B', BEHIND.host4, '-p', PORT], {
    ready: /Server listening/,
  });
  const results = [
    ...(await limit(deployment, client, 'down', effort, progress)),
    ...(await limit(deployment, client, 'up', effort, progress)),
  ];
  await write('');
  await deployment.ask('server', 'reload');
  results.push(...(await compression(deployment, client, progress)));
  return {
    measured: results.every(({ ours }) => ours !== null),
    report: { machine, versions: { node: process.version }, rounds: 1, results },
  };
}

async function limit(
  deployment: Deployment,
  client: Client,
  direction: 'down' | 'up',
  { seconds }: TrafficEffort,
  progress: (line: string) => void,
): Promise<Result[]> {
  const { device } = await client.up();
  const [namespace, at] = direction === 'down' ? [client.namespace, device ?? ''] : [deployment.behind, 'lan0'];
  const from = direction === 'down' ? `src host ${BEHIND.host4}` : `dst host ${BEHIND.host4}`;
  const filter = `tcp and ${from} and port ${PORT}`;
  const file = join(deployment.rig.folder, `${direction}.pcap`);
  const argv = ['tcpdump', '-i', at, '-n', '-s', '96', '-Z', 'root', '-w', file, filter];
  const capture = await namespace.start(argv, { ready: /listening on/ });
  const words = [
    'iperf3',
    '-c',
    BEHIND.host4,
    '-p',
    PORT,
    '-t',
    String(seconds + 2),
    ...(direction === 'down' ? ['-R'] : []),
  ];
  await client.namespace.run(words, { timeoutMs: 60_000 });
  await capture.stop();
  await client.down();
  const { stdout } = await namespace.run(['tcpdump', '-r', file, '-n', '-tt', '-q'], { timeoutMs: 60_000 });
  const passed = readTimes(stdout);
  const start = (passed[0]?.at ?? 0) + 1;
  const within = (since: number, span: number) =>
    passed.filter(({ at: time }) => time >= since && time < since + span).reduce((sum, { bytes }) => sum + bytes, 0);
  const rates = Array.from({ length: seconds }, (_, second) => within(start + second, 1));
  const whole = within(start, seconds) / seconds;
  const burst = Math.max(
    ...passed.filter(({ at: time }) => time < start + seconds).map(({ at: time }) => within(time, 0.1)),
  );
  const mbit = (bytes: number) => rounded((bytes * 8) / 1_000_000);
  const allowed = BYTES_PER_SECOND / 10 + BURST_KIB * 1024;
  progress(`${direction}: ${mbit(whole)} Mbit/s, ${rates.map(mbit).join(' ')}; ${burst} of ${allowed} bytes in 100 ms`);
  const isNear = (bytes: number) => Math.abs(bytes / BYTES_PER_SECOND - 1) <= 0.05;
  return [
    result(`a limit of ${MBIT} Mbit/s ${direction}, ${seconds} s`, 'Mbit/s', mbit(whole), '± 5 %', isNear(whole)),
    {
      ...result(`the same, single seconds`, 'Mbit/s', mbit(whole), '± 5 %', rates.every(isNear)),
      spread: { low: mbit(Math.min(...rates)), high: mbit(Math.max(...rates)), ratios: [] },
    },
    result(`the most within 100 ms, ${direction}`, 'bytes', burst, `≤ ${allowed}`, burst <= allowed),
  ];
}

async function compression(
  deployment: Deployment,
  client: Client,
  progress: (line: string) => void,
): Promise<Result[]> {
  for (const [namespace, device] of [
    [client.namespace, 'out0'],
    [deployment.gateway, 'out0'],
  ] as const) {
    await namespace.run(['ethtool', '-K', device, 'tso', 'off', 'gso', 'off', 'gro', 'off']);
    const shape = ['tbf', 'rate', `${MBIT}mbit`, 'burst', '16kb', 'limit', '256kb'];
    await namespace.run(['tc', 'qdisc', 'add', 'dev', device, 'root', ...shape]);
  }
  const text = await readFile(new URL('../../docs/protocol.md', import.meta.url));
  const files = {
    text: Buffer.concat(Array.from({ length: Math.ceil(FILE_BYTES / text.length) }, () => text)).subarray(
      0,
      FILE_BYTES,
    ),
    random: randomBytes(FILE_BYTES),
  };
  const profile = await readFile(client.profile, 'utf8');
  const results: Result[] = [];
  for (const [kind, bytes] of Object.entries(files)) {
    const path = join(deployment.rig.folder, kind);
    await writeFile(path, bytes);
    const found: Record<string, number> = {};
    for (const mode of ['with', 'without']) {
      await writeFile(client.profile, mode === 'with' ? `${profile}\n[tunnel]\ncompression = true\n` : profile);
      await client.up();
      const words = ['iperf3', '-c', BEHIND.host4, '-p', PORT, '-F', path, '-n', String(FILE_BYTES), '-J'];
      const { stdout } = await client.namespace.run(words, { timeoutMs: 60_000 });
      const { end } = JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number } } };
      found[mode] = rounded(end.sum_received.bits_per_second / 1_000_000);
      await client.down();
    }
    const { with: ours = 0, without = 0 } = found;
    progress(`${kind} on ${MBIT} Mbit/s: ${ours} Mbit/s with compression, ${without} without`);
    const goal = kind === 'random' ? '≥ 0.95 × without' : null;
    results.push({
      ...result(`${kind} on a link of ${MBIT} Mbit/s, compressed`, 'Mbit/s', ours, goal, ours >= 0.95 * without),
      peers: { 'without compression': without },
    });
  }
  await writeFile(client.profile, profile);
  return results;
}

/** What `tcpdump -tt -q` printed; lengths are those of the payload. */
function readTimes(text: string): Passed[] {
  return [...text.matchAll(/^(\d+\.\d+) IP .* tcp (\d+)/gm)].map(([, at, length]) => {
    const payload = Number(length);
    return { at: Number(at), bytes: payload + Math.max(1, Math.ceil(payload / MSS)) * HEADER_BYTES };
  });
}

function result(name: string, unit: string, ours: number, goal: string | null, met: boolean): Result {
  return { area: 'policy', name, unit, ours, spread: { low: ours, high: ours, ratios: [] }, peers: {}, goal, met };
}
