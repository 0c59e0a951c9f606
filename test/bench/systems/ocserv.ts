/** ocserv with the stock `openconnect` client: data over TLS only, or over DTLS beside it. */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type BackgroundProcess, run, until } from '../../lab/process.ts';
import { hasTool } from '../../lab/rig.ts';
import {
  type BenchNetwork,
  firstLine,
  firstPing,
  INNER_SERVER,
  makeCertificate,
  OUTER_SERVER,
  type System,
  stopAll,
  type TunnelEnds,
} from '../system.ts';

const PORT = 4443;
const PASSWORD = 'bench';
/** What `openconnect` runs to configure the device; it passes what it was told in the environment. */
const CLIENT_SCRIPT = `#!/bin/sh
[ "$reason" = connect ] || exit 0
ip address add "$INTERNAL_IP4_ADDRESS/32" peer ${INNER_SERVER} dev "$TUNDEV"
ip link set "$TUNDEV" up mtu "$INTERNAL_IP4_MTU"
`;

export class Ocserv implements System {
  readonly name: string;
  server: readonly BackgroundProcess[] = [];
  client: readonly BackgroundProcess[] = [];
  readonly #transport: 'tls' | 'dtls';
  readonly #options: readonly string[];
  #pin: string | undefined;

  /** @param options further words for the client */
  constructor(transport: 'tls' | 'dtls', options: readonly string[] = []) {
    this.#transport = transport;
    this.#options = options;
    this.name = `ocserv-${transport}`;
  }

  async missing(): Promise<string | undefined> {
    const absent = ['ocserv', 'ocpasswd', 'openconnect'].filter((tool) => !hasTool(tool));
    return absent.length === 0 ? undefined : `not installed: ${absent.join(', ')}`;
  }

  async version(): Promise<string> {
    return `${await firstLine('ocserv', '--version')}, ${await firstLine('openconnect', '--version')}`;
  }

  async up(network: BenchNetwork): Promise<TunnelEnds> {
    this.#pin ??= await prepare(network.folder);
    await this.#startServer(network);
    const words = ['--user=bench', '--passwd-on-stdin', '--servercert', this.#pin, '--interface', 'tun0'];
    const script = ['--script', join(network.folder, 'client.sh')];
    const mode = this.#transport === 'tls' ? ['--no-dtls'] : [];
    const argv = ['openconnect', ...words, ...script, ...mode, ...this.#options, `https://${OUTER_SERVER}:${PORT}`];
    const since = performance.now();
    const client = await network.client.start(argv, { input: `${PASSWORD}\n`, stopSignal: 'SIGINT' });
    this.client = [client];
    const firstPingMs = await firstPing(network, INNER_SERVER, since, this.client);
    // The tunnel works over TLS first: what is measured must be what the name says.
    if (this.#transport === 'dtls') await until('DTLS', () => /Established DTLS connection/.test(client.output));
    return { server: INNER_SERVER, firstPingMs };
  }

  async restartServer(network: BenchNetwork): Promise<void> {
    await stopAll(...this.server);
    await this.#startServer(network);
  }

  async #startServer(network: BenchNetwork): Promise<void> {
    const server = await network.server.start(['ocserv', '-f', '-c', join(network.folder, 'ocserv.conf')], {
      ready: async () => (await network.server.run(['ss', '-Hltn', `sport = :${PORT}`])).stdout !== '',
    });
    this.server = [server];
  }

  async down(): Promise<void> {
    await stopAll(...this.client);
    await stopAll(...this.server);
    this.server = this.client = [];
  }
}

/** Writes what both ends need. @returns the pin by which the client knows the server */
async function prepare(folder: string): Promise<string> {
  const { cert, key } = await makeCertificate(folder);
  const passwords = join(folder, 'passwords');
  await run(['ocpasswd', '-c', passwords, 'bench'], { input: `${PASSWORD}\n${PASSWORD}\n` });
  const settings = {
    auth: `"plain[passwd=${passwords}]"`,
    'tcp-port': PORT,
    'udp-port': PORT,
    'listen-host': OUTER_SERVER,
    'socket-file': join(folder, 'socket'),
    'server-cert': cert,
    'server-key': key,
    'isolate-workers': false,
    'max-clients': 16,
    keepalive: 32400,
    dpd: 90,
    'tls-priorities': '"NORMAL:%SERVER_PRECEDENCE:-VERS-TLS1.0:-VERS-TLS1.1"',
    'auth-timeout': 240,
    'use-occtl': false,
    device: 'vpns',
    'ipv4-network': '10.88.0.0',
    'ipv4-netmask': '255.255.255.0',
  };
  const lines = Object.entries(settings).map(([name, value]) => `${name} = ${value}\n`);
  await writeFile(join(folder, 'ocserv.conf'), lines.join(''), { mode: 0o600 });
  await writeFile(join(folder, 'client.sh'), CLIENT_SCRIPT, { mode: 0o700 });
  const pinOf =
    'openssl x509 -in "$1" -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64';
  const { stdout } = await run(['sh', '-c', pinOf, 'sh', cert]);
  return `pin-sha256:${stdout.trim()}`;
}
