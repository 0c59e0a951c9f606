/**
 * What the bench knows of a VPN: it can be brought up between two namespaces, and its processes counted.
 *
 * Hides what every VPN is given alike: two namespaces of its own joined by one link, the same addresses, and the same
 * way to tell that it is up. One file in `systems/` per product.
 */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
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
  /** The processes of each side that carry the traffic, while it is up. */
  readonly server: readonly BackgroundProcess[];
  readonly client: readonly BackgroundProcess[];
  down(): Promise<void>;
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
