/**
 * `npm run demo [-- --json]`: real traffic through an encrypted tunnel, on this machine, in under a minute.
 *
 * Three network namespaces stand for three hosts: a client, a gateway, and a host behind the gateway that the client
 * cannot reach without it. Everything is done by the command line that a user has. A capture on the link outside shows
 * that what goes through the tunnel cannot be read there; it also shows that it would have seen it. Progress goes to
 * standard error, the result to standard output; the status is 0 only when all of it holds.
 */

import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { parseArgs, styleText } from 'node:util';
import type { Capture, CaptureFacts } from '../test/lab/capture.ts';
import type { FetchResult } from '../test/lab/file-peer.ts';
import { type BackgroundProcess, LabError, quote, type RunResult, until } from '../test/lab/process.ts';
import { missingForLab, type Namespace, Rig } from '../test/lab/rig.ts';
import { differences, type Snapshot } from '../test/lab/snapshot.ts';

const FILE_BYTES = 1024 ** 3;
const PINGS = 300;
const PING_INTERVAL_S = 0.005;

const ROOT = join(import.meta.dirname, '..');
const COMMAND = join(ROOT, 'bin/customvpn');
const FILE_PEER = join(ROOT, 'test/lab/file-peer.ts');

/** Documentation addresses: they can be no one's. */
const OUTER = {
  client4: '198.51.100.1',
  gateway4: '198.51.100.2',
  client6: '2001:db8:1::1',
  gateway6: '2001:db8:1::2',
};
const INNER = { gateway4: '192.0.2.1', host4: '192.0.2.2', gateway6: '2001:db8:2::1', host6: '2001:db8:2::2' };
const PORT = 8443;
const HTTP_PORT = 8080;

/** What `--json` prints, and nothing else. */
interface DemoResult {
  tls: { protocol: string; cipher: string; group: string };
  ping: { v4: boolean; v6: boolean };
  download: { bytes: number; sha256Equal: boolean; mbps: number };
  rttMs: { p50: number; p99: number };
  markerSeenOutside: boolean;
  leftBehind: string[];
}

/** What the table says beside it. */
interface Evidence {
  capture: CaptureFacts;
  outsideMarkerSeen: boolean;
  seconds: number;
}

interface Hosts {
  client: Namespace;
  gateway: Namespace;
  behind: Namespace;
}

/** What the command line under test was told, and where it keeps things. */
interface Setup {
  hosts: Hosts;
  gatewayState: string;
  clientState: string;
  profile: string;
}

const started = performance.now();
const { values: options } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
const missing = missingForLab();
if (missing.length > 0) {
  process.stderr.write(`the demo cannot run here; missing:\n${missing.map((line) => `  ${line}\n`).join('')}`);
  process.exitCode = 69;
} else {
  process.exitCode = await main();
}

async function main(): Promise<number> {
  try {
    const { result, evidence } = await demonstrate();
    process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : formatResult(result, evidence));
    const faults = faultsOf(result, evidence);
    for (const fault of faults) process.stderr.write(`${styleText('red', 'not shown')}: ${fault}\n`);
    return faults.length === 0 ? 0 : 1;
  } catch (error) {
    process.stderr.write(`${styleText('red', 'the demo failed')}: ${error instanceof Error ? error.message : error}\n`);
    return 1;
  }
}

async function demonstrate(): Promise<{ result: DemoResult; evidence: Evidence }> {
  await using rig = await Rig.open();
  say('three network namespaces: client — gateway — host behind it');
  const setup = await prepare(rig);
  const { client, gateway, behind } = setup.hosts;
  const before = { client: await client.snapshot(), gateway: await gateway.snapshot() };

  const inside = randomBytes(16);
  const outside = randomBytes(16);
  const file = await behind.start([
    process.execPath,
    FILE_PEER,
    'serve',
    INNER.host4,
    String(HTTP_PORT),
    String(FILE_BYTES),
    inside.toString('hex'),
  ]);
  const server = await runGateway(setup);
  await using capture = await client.capture('out0', { markers: [inside, outside] });
  await connect(setup);

  const tls = await tlsFacts(setup);
  const ping = { v4: await answers(client, INNER.host4), v6: await answers(client, INNER.host6) };
  say(
    `ping to the host behind the gateway: IPv4 ${ping.v4 ? 'answered' : 'lost'}, IPv6 ${ping.v6 ? 'answered' : 'lost'}`,
  );
  const rttMs = await roundTrips(client, INNER.host4);
  say(`round trip: p50 ${rttMs.p50.toFixed(2)} ms, p99 ${rttMs.p99.toFixed(2)} ms`);
  const download = await downloadFile(client, file);
  await sendMarkers(client, capture, inside, outside);
  const seen = { inside: capture.seen(inside), outside: capture.seen(outside) };
  const captured = await capture.stop();
  say(`capture outside: ${gigabytes(captured.bytes)} held, ${captured.dropped} packets missed by it`);

  say('disconnecting and stopping; then looking for what was left behind');
  await cli(client, 'client', 'down', '--state', setup.clientState);
  await cli(gateway, 'server', 'stop', '--state', setup.gatewayState);
  await settled(server.exited, 'the gateway to end');
  await file.stop();
  const leftBehind = [
    ...(await changes(client, before.client)).map((line) => `client: ${line}`),
    ...(await changes(gateway, before.gateway)).map((line) => `gateway: ${line}`),
    ...(await rig.close()).map((line) => `this machine: ${line}`),
  ];
  const result = { tls, ping, download, rttMs, markerSeenOutside: seen.inside, leftBehind };
  const seconds = (performance.now() - started) / 1000;
  return { result, evidence: { capture: captured, outsideMarkerSeen: seen.outside, seconds } };
}

/** Makes the three hosts, the gateway's state, a user and their profile. */
async function prepare(rig: Rig): Promise<Setup> {
  const hosts = {
    client: await rig.namespace('client'),
    gateway: await rig.namespace('gateway'),
    behind: await rig.namespace('host'),
  };
  await rig.link(
    { namespace: hosts.client, device: 'out0', addresses: [`${OUTER.client4}/24`, `${OUTER.client6}/64`] },
    { namespace: hosts.gateway, device: 'out0', addresses: [`${OUTER.gateway4}/24`, `${OUTER.gateway6}/64`] },
  );
  await rig.link(
    { namespace: hosts.gateway, device: 'lan0', addresses: [`${INNER.gateway4}/24`, `${INNER.gateway6}/64`] },
    { namespace: hosts.behind, device: 'lan0', addresses: [`${INNER.host4}/24`, `${INNER.host6}/64`] },
  );
  if (await answers(hosts.client, INNER.host4)) throw new LabError('the host is reached without a tunnel');
  const setup: Setup = {
    hosts,
    gatewayState: join(rig.folder, 'gateway'),
    clientState: join(rig.folder, 'client'),
    profile: join(rig.folder, 'alice.toml'),
  };
  const state = ['--state', setup.gatewayState];
  const listen = ['--name', OUTER.gateway4, '--listen', `${OUTER.gateway4}:${PORT}`];
  const networks = ['--pool', '10.88.0.0/24,fd88::/64', '--route', '192.0.2.0/24,2001:db8:2::/64'];
  await cli(hosts.gateway, 'server', 'init', ...state, ...listen, ...networks);
  await cli(hosts.gateway, 'user', 'add', 'alice', ...state);
  await cli(hosts.gateway, 'profile', 'alice', '--out', setup.profile, ...state);
  return setup;
}

async function runGateway(setup: Setup): Promise<BackgroundProcess> {
  const argv = ['server', 'run', '--state', setup.gatewayState];
  sayCommand('gateway', argv);
  return setup.hosts.gateway.start([COMMAND, ...argv], { ready: /^ready$/m });
}

async function connect(setup: Setup): Promise<void> {
  await cli(setup.hosts.client, 'client', 'up', setup.profile, '--state', setup.clientState);
}

async function tlsFacts(setup: Setup): Promise<DemoResult['tls']> {
  const { stdout } = await cli(setup.hosts.client, 'client', 'status', '--json', '--state', setup.clientState);
  const { tls } = JSON.parse(stdout) as { tls: DemoResult['tls'] | null };
  if (tls === null) throw new LabError('the client is not connected');
  say(`TLS: ${tls.protocol}, ${tls.cipher}, ${tls.group}`);
  return { protocol: tls.protocol, cipher: tls.cipher, group: tls.group };
}

async function answers(from: Namespace, address: string): Promise<boolean> {
  return (
    (await from.run(['ping', '-n', '-q', '-c', '3', '-i', '0.05', '-W', '1', address], { anyStatus: true })).status ===
    0
  );
}

async function roundTrips(from: Namespace, address: string): Promise<DemoResult['rttMs']> {
  const argv = ['ping', '-n', '-c', String(PINGS), '-i', String(PING_INTERVAL_S), '-W', '1', address];
  const { stdout } = await from.run(argv, { anyStatus: true });
  const times = [...stdout.matchAll(/ time=([\d.]+) ms/g)].map((match) => Number(match[1])).sort((a, b) => a - b);
  const at = (q: number) => times[Math.min(times.length - 1, Math.floor(times.length * q))];
  const [p50, p99] = [at(0.5), at(0.99)];
  if (p50 === undefined || p99 === undefined) throw new LabError('no ping was answered');
  return { p50, p99 };
}

async function downloadFile(client: Namespace, file: BackgroundProcess): Promise<DemoResult['download']> {
  await until('the host behind the gateway to serve its file', () => /^ready$/m.test(file.output), {
    timeoutMs: 30_000,
  });
  const expected = /^sha256 (\w+)$/m.exec(file.output)?.[1];
  const url = `http://${INNER.host4}:${HTTP_PORT}/`;
  say(`downloading ${gigabytes(FILE_BYTES)} from ${url}`);
  const fetching = await client.start([process.execPath, FILE_PEER, 'fetch', url]);
  let told = 0;
  const clock = setInterval(() => {
    const bytes = Number(/at (\d+)\s*$/.exec(fetching.output)?.[1] ?? 0);
    if (bytes > told) say(`  ${Math.round((bytes / FILE_BYTES) * 100)} %`);
    told = bytes;
  }, 1000);
  const status = await fetching.exited.finally(() => clearInterval(clock));
  if (status !== 0) throw new LabError(`the download failed:\n${fetching.output}`);
  const { bytes, sha256, seconds } = JSON.parse(/^\{.*\}$/m.exec(fetching.output)?.[0] ?? '') as FetchResult;
  const mbps = Math.round((bytes * 8) / seconds / 1e6);
  const sha256Equal = sha256 === expected;
  say(`downloaded ${gigabytes(bytes)} at ${mbps} Mbit/s; SHA-256 ${sha256Equal ? 'equal' : 'DIFFERS'}`);
  return { bytes, sha256Equal, mbps };
}

/** One marker through the tunnel, beside those in the file; then another outside it, which the capture must see. */
async function sendMarkers(client: Namespace, capture: Capture, inside: Buffer, outside: Buffer): Promise<void> {
  const send = (marker: Buffer, address: string) =>
    client.run(['ping', '-n', '-q', '-c', '3', '-i', '0.05', '-W', '1', '-p', marker.toString('hex'), address]);
  await send(inside, INNER.host4);
  await send(outside, OUTER.gateway4);
  // Sent last: once it has been seen, everything before it has been looked at.
  await until('the marker that was sent outside', () => capture.seen(outside), { timeoutMs: 20_000 }).catch(() => {});
}

/** How a host differs from before; what goes away by itself within a moment is not left behind. */
async function changes(host: Namespace, before: Snapshot): Promise<string[]> {
  let lines: string[] = [];
  const clean = async () => {
    lines = differences(before, await host.snapshot());
    return lines.length === 0;
  };
  await until('nothing to be left', clean, { timeoutMs: 2000, intervalMs: 200 }).catch(() => {});
  return lines;
}

async function settled(ending: Promise<unknown>, what: string): Promise<void> {
  let ended = false;
  void ending.finally(() => {
    ended = true;
  });
  await until(what, () => ended);
}

/** Runs our command line and shows that it does. */
async function cli(where: Namespace, ...words: string[]): Promise<RunResult> {
  sayCommand(where.name.split('-').at(-1) ?? '', words);
  return where.run([COMMAND, ...words]);
}

function sayCommand(where: string, words: readonly string[]): void {
  say(`${where} $ customvpn ${quote(words.map((word) => word.replace(/^.*customvpn-lab-[^/]*\//, '')))}`);
}

function say(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(5);
  process.stderr.write(`${styleText('dim', `${seconds} s`)}  ${text}\n`);
}

/** Everything that the demo is to show and did not. */
function faultsOf(result: DemoResult, evidence: Evidence): string[] {
  const { ping, download } = result;
  const claims: [boolean, string][] = [
    [ping.v4 && ping.v6, 'a ping through the tunnel was not answered'],
    [download.bytes === FILE_BYTES && download.sha256Equal, 'the file that arrived is not the file that was sent'],
    [!result.markerSeenOutside, 'what went through the tunnel was readable outside it'],
    [evidence.outsideMarkerSeen, 'the capture did not see what was sent outside the tunnel'],
    [evidence.capture.bytes >= FILE_BYTES, `the capture held only ${evidence.capture.bytes} bytes: it proves nothing`],
    [result.leftBehind.length === 0, `something was left behind: ${result.leftBehind.join('; ')}`],
  ];
  return claims.filter(([holds]) => !holds).map(([, fault]) => fault);
}

function formatResult(result: DemoResult, evidence: Evidence): string {
  const { tls, ping, download, rttMs } = result;
  const mark = (good: boolean, text: string) => `${good ? styleText('green', '✔') : styleText('red', '✖')} ${text}`;
  const capture = `${gigabytes(evidence.capture.bytes)} in ${evidence.capture.packets} packets`;
  const rows: [string, string][] = [
    ['TLS', mark(true, `${tls.protocol}, ${tls.cipher}, ${tls.group}`)],
    ['ping IPv4', mark(ping.v4, ping.v4 ? 'answered by the host behind the gateway' : 'no answer')],
    ['ping IPv6', mark(ping.v6, ping.v6 ? 'answered by the host behind the gateway' : 'no answer')],
    ['round trip', mark(true, `p50 ${rttMs.p50.toFixed(2)} ms, p99 ${rttMs.p99.toFixed(2)} ms`)],
    ['download', mark(download.bytes === FILE_BYTES, `${gigabytes(download.bytes)} at ${download.mbps} Mbit/s`)],
    ['SHA-256', mark(download.sha256Equal, download.sha256Equal ? 'equal at both ends' : 'differs')],
    ['capture outside', mark(evidence.capture.bytes >= FILE_BYTES, capture)],
    ['  marker in the tunnel', mark(!result.markerSeenOutside, result.markerSeenOutside ? 'SEEN OUTSIDE' : 'not seen')],
    [
      '  marker outside it',
      mark(evidence.outsideMarkerSeen, evidence.outsideMarkerSeen ? 'seen, as it must be' : 'not seen'),
    ],
    ['left behind', mark(result.leftBehind.length === 0, result.leftBehind.join('; ') || 'nothing')],
    ['took', `  ${evidence.seconds.toFixed(1)} s`],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return `\n${rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join('\n')}\n`;
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1024 ** 3).toFixed(2)} GiB`;
}
