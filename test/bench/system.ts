/**
 * What the bench knows of a VPN: it can be brought up between two namespaces, and its processes counted.
 *
 * Hides what every VPN is given alike: two namespaces of its own joined by one link, the same addresses, and the same
 * way to tell that it is up. One file in `systems/` per product.
 */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Impairment } from '../lab/impairment.ts';
import { type BackgroundProcess, LabError, run, until } from '../lab/process.ts';
import type { Namespace, Rig } from '../lab/rig.ts';

/** The outer addresses: documentation ranges, so that they can be no one's. */
export const OUTER_SERVER = '198.51.100.2';
export const OUTER_CLIENT = '198.51.100.1';
/** The addresses inside the tunnel where a product lets them be chosen. */
export const INNER_SERVER = '10.88.0.1';
export const INNER_CLIENT = '10.88.0.2';

/** The network that one system under test has for itself. */
export interface BenchNetwork {
  readonly rig: Rig;
  readonly server: Namespace;
  readonly client: Namespace;
  /** For configuration, keys and state; removed with the rig. */
  readonly folder: string;
}

/** A tunnel that answers. */
export interface TunnelEnds {
  /** The server's address inside the tunnel. */
  server: string;
  /** From the start of the client to the first answered ping. */
  firstPingMs: number;
}

/** A VPN, or the bare link, as the bench sees it. */
export interface System {
  readonly name: string;
  /** Why it cannot be measured on this machine; undefined when it can. */
  missing(): Promise<string | undefined>;
  /** What was measured: the program's own version. */
  version(): Promise<string>;
  /** Brings server and client up; may be called again after `down`. */
  up(network: BenchNetwork): Promise<TunnelEnds>;
  /** Ends the server's process and starts it again, with the client left to itself; resolves when the server listens. */
  restartServer?(network: BenchNetwork): Promise<void>;
  /** The processes of each side that carry the traffic, while it is up. */
  readonly server: readonly BackgroundProcess[];
  readonly client: readonly BackgroundProcess[];
  down(): Promise<void>;
}

/** A network whose two ends meet only in a router with little bandwidth. */
export interface BottleneckNetwork extends BenchNetwork {
  readonly router: Namespace;
  /** The router's devices by what leaves through them. */
  readonly devices: { readonly up: string; readonly down: string };
}

const ROUTER_SERVER_SIDE = '203.0.113.1';
const ROUTER_CLIENT_SIDE = '203.0.113.2';
/** Of a token bucket: what may go at once, and what may wait. */
const BOTTLENECK_BURST = '32kb';
const BOTTLENECK_LIMIT = '256kb';

/**
 * Makes a network for one system with a router in the middle, both of whose ways out are limited to `rate` (as `tc` takes
 * it). Nothing on it is larger than a packet of 1,500 bytes: no device cuts or joins segments.
 */
export async function openBottleneck(
  rig: Rig,
  label: string,
  congestion: string,
  rate: string,
): Promise<BottleneckNetwork> {
  const server = await rig.namespace(`${label}-s`);
  const router = await rig.namespace(`${label}-r`);
  const client = await rig.namespace(`${label}-c`);
  for (const [end, address, via, device] of [
    [server, OUTER_SERVER, ROUTER_SERVER_SIDE, 'rs0'],
    [client, OUTER_CLIENT, ROUTER_CLIENT_SIDE, 'rc0'],
  ] as const) {
    await rig.link(
      { namespace: end, device: 'out0', addresses: [`${address}/32`] },
      { namespace: router, device, addresses: [`${via}/32`] },
      { offloads: false },
    );
    await router.run(['ip', 'route', 'add', `${address}/32`, 'dev', device]);
    await end.run(['ip', 'route', 'add', `${via}/32`, 'dev', 'out0']);
    const other = address === OUTER_SERVER ? OUTER_CLIENT : OUTER_SERVER;
    await end.run(['ip', 'route', 'add', `${other}/32`, 'via', via, 'src', address]);
    const bucket = ['tbf', 'rate', rate, 'burst', BOTTLENECK_BURST, 'limit', BOTTLENECK_LIMIT];
    await router.run(['tc', 'qdisc', 'add', 'dev', device, 'root', ...bucket]);
    await end.setSysctl('net.ipv4.tcp_congestion_control', congestion);
  }
  await router.setSysctl('net.ipv4.ip_forward', '1');
  const folder = join(rig.folder, label);
  await mkdir(folder, { mode: 0o700 });
  return { rig, server, client, router, devices: { up: 'rs0', down: 'rc0' }, folder };
}

/** Makes a network for one system. @param congestion of every TCP connection that does not choose for itself */
export async function openNetwork(rig: Rig, label: string, congestion: string): Promise<BenchNetwork> {
  const server = await rig.namespace(`${label}-s`);
  const client = await rig.namespace(`${label}-c`);
  await rig.link(
    { namespace: server, device: 'out0', addresses: [`${OUTER_SERVER}/24`] },
    { namespace: client, device: 'out0', addresses: [`${OUTER_CLIENT}/24`] },
  );
  for (const namespace of [server, client]) {
    await namespace.setSysctl('net.ipv4.tcp_congestion_control', congestion);
  }
  const folder = join(rig.folder, label);
  await mkdir(folder, { mode: 0o700 });
  return { rig, server, client, folder };
}

/** A network whose two ends are joined by a bad cable. */
export interface CableNetwork extends BenchNetwork {
  readonly cable: Impairment;
}

/** Makes a network for one system over a cable, which is good until it is told otherwise. */
export async function openCable(rig: Rig, label: string, congestion: string): Promise<CableNetwork> {
  const server = await rig.namespace(`${label}-s`);
  const client = await rig.namespace(`${label}-c`);
  const cable = await Impairment.open(rig, `${label}-x`, [
    { namespace: client, device: 'out0', addresses: [`${OUTER_CLIENT}/24`] },
    { namespace: server, device: 'out0', addresses: [`${OUTER_SERVER}/24`] },
  ]);
  for (const namespace of [server, client]) {
    await namespace.setSysctl('net.ipv4.tcp_congestion_control', congestion);
  }
  const folder = join(rig.folder, label);
  await mkdir(folder, { mode: 0o700 });
  return { rig, server, client, cable, folder };
}

/** Milliseconds until `address` answers a ping from the client, from `since` (`performance.now()`). */
export async function firstPing(
  network: BenchNetwork,
  address: string,
  since: number,
  client: readonly BackgroundProcess[],
): Promise<number> {
  const argv = ['ping', '-n', '-q', '-c', '1', '-W', '0.1', address];
  await until(
    `an answer from ${address}`,
    async () => {
      for (const process of client) {
        if (!process.running) throw new LabError(`${process.argv.join(' ')} ended:\n${process.output.slice(-2000)}`);
      }
      return (await network.client.run(argv, { anyStatus: true })).status === 0;
    },
    { timeoutMs: 30_000, intervalMs: 10 },
  );
  return performance.now() - since;
}

/** The namespaces of one system that several clients use. */
export interface CrowdNetwork {
  readonly rig: Rig;
  readonly server: Namespace;
  readonly clients: readonly Namespace[];
  readonly folder: string;
}

/** Waits until each of them reaches the server. */
export async function everybodyIsUp(network: CrowdNetwork, processes: readonly BackgroundProcess[]): Promise<void> {
  for (const [index, client] of network.clients.entries()) {
    await until(
      `client ${index}`,
      async () => {
        const process = processes[index];
        if (process?.running !== true) throw new LabError(`client ${index} ended:\n${process?.output.slice(-2000)}`);
        const argv = ['ping', '-n', '-q', '-c', '1', '-W', '0.2', INNER_SERVER];
        return (await client.run(argv, { anyStatus: true })).status === 0;
      },
      { timeoutMs: 30_000, intervalMs: 50 },
    );
  }
}

/** Stops processes side by side. */
export async function stopAll(...processes: readonly BackgroundProcess[]): Promise<void> {
  await Promise.all(processes.map((process) => process.stop()));
}

/** The first line of what a program says of itself, on either stream. */
export async function firstLine(...argv: string[]): Promise<string> {
  const { stdout, stderr } = await run(argv, { anyStatus: true });
  return (stdout.trim() || stderr.trim()).split('\n')[0] ?? '';
}

/** A self-signed P-256 certificate for the outer address, for the systems that bring no PKI; made once a network. */
export async function makeCertificate(folder: string): Promise<{ cert: string; key: string }> {
  const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const names = ['-subj', '/CN=server', '-addext', `subjectAltName=DNS:server,IP:${OUTER_SERVER}`];
  await run(['openssl', 'req', '-x509', ...curve, '-keyout', key, '-out', cert, '-days', '30', ...names]);
  return { cert, key };
}
