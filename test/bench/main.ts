/**
 * `npm run bench [-- AREA[/PART]] [--quick] [--json]`: measures this product beside its peers on this machine.
 *
 * The composition root of the bench. Exits 0 whatever it measured, 69 when it could not measure, 64 on wrong usage.
 * Progress goes to standard error, the report to standard output.
 */

import { parseArgs } from 'node:util';
import { missingForLab } from '../lab/rig.ts';
import { FULL_CLIENT_EFFORT, measureClient, QUICK_CLIENT_EFFORT } from './client.ts';
import { FULL_PROXY_EFFORT, measureProxy, QUICK_PROXY_EFFORT } from './client-proxy.ts';
import { FULL_BOTTLENECK_EFFORT, measureBottleneck, QUICK_BOTTLENECK_EFFORT } from './gateway/bottleneck.ts';
import { FULL_CROWD_EFFORT, measureCrowd, QUICK_CROWD_EFFORT } from './gateway/crowd.ts';
import { FULL_LOSS_EFFORT, measureLoss, QUICK_LOSS_EFFORT } from './gateway/loss.ts';
import { FULL_PACKET_EFFORT, measurePackets, QUICK_PACKET_EFFORT } from './gateway/packets.ts';
import {
  FULL_POPULATION_EFFORT,
  measureIdle,
  measureReconnect,
  QUICK_POPULATION_EFFORT,
} from './gateway/population.ts';
import { FULL_LOGIN_EFFORT, measureLogin, QUICK_LOGIN_EFFORT } from './login.ts';
import { FULL_OPERATIONS_EFFORT, measureOperations, QUICK_OPERATIONS_EFFORT } from './operations.ts';
import { FULL_POLICY_EFFORT, measurePolicy, QUICK_POLICY_EFFORT } from './policy.ts';
import { formatReport, type Report } from './report.ts';
import type { System } from './system.ts';
import { CustomVpn } from './systems/customvpn.ts';
import { Ocserv } from './systems/ocserv.ts';
import { OpenVpn } from './systems/openvpn.ts';
import { RawLink } from './systems/raw.ts';
import { WireguardGo } from './systems/wireguard-go.ts';
import { measureTiming } from './timing.ts';
import { FULL_TRAFFIC_EFFORT, measureTraffic, QUICK_TRAFFIC_EFFORT } from './traffic.ts';
import { FULL_EFFORT, measureTunnel, QUICK_EFFORT } from './tunnel.ts';

type Measure = (quick: boolean, progress: (line: string) => void) => Promise<{ report: Report; measured: boolean }>;

function gatewaySystems(): System[] {
  return [
    new CustomVpn({ plain: false }),
    new WireguardGo(),
    new OpenVpn('udp'),
    new OpenVpn('tcp'),
    new Ocserv('tls'),
    new RawLink(),
  ];
}

/** Areas by name, each of one or more parts: `gateway` is all of an area, `gateway/loss` one part. */
const AREAS: Readonly<Record<string, Readonly<Record<string, Measure>>>> = {
  tunnel: {
    flow: (quick, progress) =>
      measureTunnel(
        [
          new CustomVpn({ plain: false }),
          new WireguardGo(),
          new CustomVpn({ plain: true }),
          new OpenVpn('udp'),
          new OpenVpn('tcp'),
          new Ocserv('tls'),
          new Ocserv('dtls'),
          new RawLink(),
        ],
        quick ? QUICK_EFFORT : FULL_EFFORT,
        progress,
      ),
  },
  gateway: {
    bottleneck: (quick, progress) =>
      measureBottleneck(gatewaySystems(), quick ? QUICK_BOTTLENECK_EFFORT : FULL_BOTTLENECK_EFFORT, progress),
    loss: (quick, progress) => measureLoss(gatewaySystems(), quick ? QUICK_LOSS_EFFORT : FULL_LOSS_EFFORT, progress),
    packets: (quick, progress) =>
      measurePackets(gatewaySystems(), quick ? QUICK_PACKET_EFFORT : FULL_PACKET_EFFORT, progress),
    crowd: (quick, progress) => measureCrowd(quick ? QUICK_CROWD_EFFORT : FULL_CROWD_EFFORT, progress),
    idle: (quick, progress) => measureIdle(quick ? QUICK_POPULATION_EFFORT : FULL_POPULATION_EFFORT, progress),
    reconnect: (quick, progress) =>
      measureReconnect(quick ? QUICK_POPULATION_EFFORT : FULL_POPULATION_EFFORT, progress),
  },
  client: {
    recovery: (quick, progress) =>
      measureClient(
        {
          ours: new CustomVpn({ plain: false }),
          // As somebody would set them who wants them to come back soon.
          peers: [
            new WireguardGo(),
            new OpenVpn('udp', ['--keepalive', '1', '3', '--float', '--persist-tun', '--connect-retry', '1', '2']),
            new OpenVpn('tcp', ['--keepalive', '1', '3', '--persist-tun', '--connect-retry', '1', '2']),
            new Ocserv('tls', ['--force-dpd=1', '--reconnect-timeout=60']),
          ],
        },
        quick ? QUICK_CLIENT_EFFORT : FULL_CLIENT_EFFORT,
        progress,
      ),
    proxy: (quick, progress) => measureProxy(quick ? QUICK_PROXY_EFFORT : FULL_PROXY_EFFORT, progress),
  },
  login: { rate: (quick, progress) => measureLogin(quick ? QUICK_LOGIN_EFFORT : FULL_LOGIN_EFFORT, progress) },
  operations: {
    watched: (quick, progress) => measureOperations(quick ? QUICK_OPERATIONS_EFFORT : FULL_OPERATIONS_EFFORT, progress),
  },
  policy: {
    cost: (quick, progress) => measurePolicy(quick ? QUICK_POLICY_EFFORT : FULL_POLICY_EFFORT, progress),
    traffic: (quick, progress) => measureTraffic(quick ? QUICK_TRAFFIC_EFFORT : FULL_TRAFFIC_EFFORT, progress),
  },
  timing: { refusals: measureTiming },
};

const USAGE = `usage: npm run bench [-- AREA[/PART]…] [--quick] [--json]; areas: ${Object.keys(AREAS).join(', ')}; or one part of an area: ${partNames().join(', ')}\n`;
const TOOLS = {
  iperf3: 'iperf3',
  ss: 'iproute2',
  openssl: 'openssl',
  ethtool: 'ethtool',
  tc: 'iproute2',
  taskset: 'util-linux',
  tcpdump: 'tcpdump',
};

process.exitCode = await main(process.argv.slice(2));

async function main(argv: string[]): Promise<number> {
  let options: ReturnType<typeof parse>;
  try {
    options = parse(argv);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${USAGE}`);
    return 64;
  }
  const { values, positionals } = options;
  const names = positionals.length === 0 ? Object.keys(AREAS) : positionals;
  const unknown = names.find((name) => measuresOf(name).length === 0);
  if (unknown !== undefined) {
    process.stderr.write(`unknown area ${unknown}\n${USAGE}`);
    return 64;
  }
  const lacking = missingForLab(TOOLS);
  if (lacking.length > 0) {
    process.stderr.write(`cannot measure here; missing:\n${lacking.map((line) => `  ${line}\n`).join('')}`);
    return 69;
  }
  const progress = (line: string) => void process.stderr.write(`${line}\n`);
  let whole: Report | undefined;
  let measured = true;
  for (const measure of names.flatMap(measuresOf)) {
    const part = await measure(values.quick, progress);
    measured &&= part.measured;
    whole = whole === undefined ? part.report : join(whole, part.report);
  }
  if (whole === undefined) return 69;
  process.stdout.write(values.json ? `${JSON.stringify(whole, null, 2)}\n` : formatReport(whole));
  return measured ? 0 : 69;
}

function partNames(): string[] {
  return Object.entries(AREAS).flatMap(([area, parts]) => Object.keys(parts).map((part) => `${area}/${part}`));
}

/** What a name on the command line stands for; nothing when it is unknown. */
function measuresOf(name: string): Measure[] {
  const [area = '', part] = name.split('/');
  const parts = AREAS[area] ?? {};
  return Object.entries(parts).flatMap(([key, measure]) => (part === undefined || part === key ? [measure] : []));
}

function parse(argv: string[]) {
  return parseArgs({
    args: argv,
    allowPositionals: true,
    options: { quick: { type: 'boolean', default: false }, json: { type: 'boolean', default: false } },
  });
}

function join(one: Report, other: Report): Report {
  return {
    machine: { ...other.machine, ...one.machine },
    versions: { ...one.versions, ...other.versions },
    rounds: Math.max(one.rounds, other.rounds),
    results: [...one.results, ...other.results],
  };
}
