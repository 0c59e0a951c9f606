/** OpenVPN in user space, over UDP or TCP: AES-128-GCM, large socket buffers, peer fingerprints instead of a PKI. */

import { type BackgroundProcess, run } from '../../lab/process.ts';
import { hasTool } from '../../lab/rig.ts';
import {
  type BenchNetwork,
  firstLine,
  firstPing,
  INNER_CLIENT,
  INNER_SERVER,
  makeCertificate,
  OUTER_SERVER,
  type System,
  stopAll,
  type TunnelEnds,
} from '../system.ts';

/** With the kernel's data channel off: it is user-space VPNs that are compared. */
const TUNING = ['--cipher', 'AES-128-GCM', '--data-ciphers', 'AES-128-GCM', '--auth', 'none', '--disable-dco'];
const BUFFERS = ['--sndbuf', '1048576', '--rcvbuf', '1048576'];

export class OpenVpn implements System {
  readonly name: string;
  server: readonly BackgroundProcess[] = [];
  client: readonly BackgroundProcess[] = [];
  readonly #transport: 'udp' | 'tcp';
  readonly #options: readonly string[];
  #certificate: { cert: string; key: string; fingerprint: string } | undefined;

  /** @param options further words for both ends */
  constructor(transport: 'udp' | 'tcp', options: readonly string[] = []) {
    this.#transport = transport;
    this.#options = options;
    this.name = `openvpn-${transport}`;
  }

  async missing(): Promise<string | undefined> {
    return hasTool('openvpn') ? undefined : 'openvpn is not installed';
  }

  version(): Promise<string> {
    return firstLine('openvpn', '--version');
  }

  async up(network: BenchNetwork): Promise<TunnelEnds> {
    await this.#startServer(network);
    const common = await this.#commonWords(network);
    const clientProtocol = this.#transport === 'udp' ? 'udp' : 'tcp-client';
    const dial = ['--proto', clientProtocol, '--remote', OUTER_SERVER, '--nobind', '--tls-client'];
    const since = performance.now();
    this.client = [await network.client.start([...common, ...dial, '--ifconfig', INNER_CLIENT, INNER_SERVER])];
    return { server: INNER_SERVER, firstPingMs: await firstPing(network, INNER_SERVER, since, this.client) };
  }

  async restartServer(network: BenchNetwork): Promise<void> {
    await stopAll(...this.server);
    await this.#startServer(network);
  }

  async #commonWords(network: BenchNetwork): Promise<string[]> {
    this.#certificate ??= await makeFingerprinted(network.folder);
    const { cert, key, fingerprint } = this.#certificate;
    const identity = ['--cert', cert, '--key', key, '--peer-fingerprint', fingerprint];
    const words = ['openvpn', '--dev', 'tun0', '--port', '1194', '--verb', '3', ...identity, ...TUNING, ...BUFFERS];
    return [...words, ...this.#options];
  }

  async #startServer(network: BenchNetwork): Promise<void> {
    const serverProtocol = this.#transport === 'udp' ? 'udp' : 'tcp-server';
    const listen = ['--proto', serverProtocol, '--local', OUTER_SERVER, '--tls-server', '--dh', 'none'];
    const argv = [...(await this.#commonWords(network)), ...listen, '--ifconfig', INNER_SERVER, INNER_CLIENT];
    const ready = /link local \(bound\)|Listening for incoming TCP connection/;
    this.server = [await network.server.start(argv, { ready })];
  }

  async down(): Promise<void> {
    await stopAll(...this.client, ...this.server);
    this.server = this.client = [];
  }
}

async function makeFingerprinted(folder: string): Promise<{ cert: string; key: string; fingerprint: string }> {
  const files = await makeCertificate(folder);
  const { stdout } = await run(['openssl', 'x509', '-in', files.cert, '-noout', '-fingerprint', '-sha256']);
  return { ...files, fingerprint: stdout.trim().split('=')[1] ?? '' };
}
