/** CustomVPN by its own command line, as an administrator and a user would run it; with super-packets or without. */

import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { COMMAND } from '../../lab/command.ts';
import { type BackgroundProcess, run } from '../../lab/process.ts';
import {
  type BenchNetwork,
  type CrowdNetwork,
  everybodyIsUp,
  firstPing,
  INNER_SERVER,
  OUTER_SERVER,
  type System,
  stopAll,
  type TunnelEnds,
} from '../system.ts';

const ROOT = join(import.meta.dirname, '../../..');
const LISTEN = `${OUTER_SERVER}:8443`;
const POOLS = '10.88.0.0/24,fd88::/64';
/** What the bench's traffic needs open on the gateway's own address: its input is closed otherwise. */
const SERVICES = Array.from({ length: 8 }, (_, index) => `${5201 + index}/tcp`);

export class CustomVpn implements System {
  readonly name: string;
  server: readonly BackgroundProcess[] = [];
  client: readonly BackgroundProcess[] = [];
  readonly #plain: boolean;
  #profile: string | undefined;

  readonly #prepared: (state: string) => Promise<void>;

  /** @param options.prepared adds to a gateway's state before its first start */
  constructor(options: { plain: boolean; prepared?: (state: string) => Promise<void> }) {
    this.#plain = options.plain;
    this.#prepared = options.prepared ?? (async () => {});
    this.name = options.plain ? 'customvpn-plain' : 'customvpn';
  }

  async missing(): Promise<undefined> {}

  async version(): Promise<string> {
    const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as { version: string };
    const commit = await run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], { anyStatus: true }).catch(
      () => undefined,
    );
    const suffix = commit?.status === 0 ? ` (${commit.stdout.trim()})` : '';
    return `${version}${suffix}, Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`;
  }

  async up(network: BenchNetwork): Promise<TunnelEnds> {
    const serverState = join(network.folder, 'gateway');
    if (this.#profile === undefined) {
      this.#profile = await prepare(serverState, network.folder);
      await this.#prepared(serverState);
    }
    await this.#startServer(serverState, network);
    const mode = this.#plain ? ['--plain'] : [];
    const state = ['--state', join(network.folder, 'client')];
    const since = performance.now();
    this.client = [
      await network.client.start([COMMAND, 'client', 'up', this.#profile, ...state, '--foreground', ...mode]),
    ];
    return { server: INNER_SERVER, firstPingMs: await firstPing(network, INNER_SERVER, since, this.client) };
  }

  /** Brings up the server and a client in each namespace. @returns the clients' addresses inside the tunnel */
  async upWith(network: CrowdNetwork): Promise<string[]> {
    const state = join(network.folder, 'gateway');
    this.#profile ??= await prepare(state, network.folder);
    await this.#startServer(state, network);
    const stateOf = (index: number): string[] => ['--state', join(network.folder, `client${index}`)];
    const clients: BackgroundProcess[] = [];
    for (const [index, client] of network.clients.entries()) {
      const profile = join(network.folder, `client${index}.profile`);
      if (!existsSync(profile)) await run([COMMAND, 'profile', 'bench', '--out', profile, '--state', state]);
      clients.push(await client.start([COMMAND, 'client', 'up', profile, ...stateOf(index), '--foreground']));
    }
    this.client = clients;
    await everybodyIsUp(network, clients);
    return await Promise.all(
      clients.map(async (_, index) => {
        const { stdout } = await run([COMMAND, 'client', 'status', ...stateOf(index), '--json']);
        const { addresses } = JSON.parse(stdout) as { addresses: string[] };
        return addresses.find((address) => address.includes('.')) ?? '';
      }),
    );
  }

  async restartServer(network: BenchNetwork): Promise<void> {
    await stopAll(...this.server);
    await this.#startServer(join(network.folder, 'gateway'), network);
  }

  async #startServer(state: string, network: Pick<BenchNetwork, 'server'>): Promise<void> {
    // One with thousands of sessions on record takes them up first.
    const patience = { ready: /^ready$/m, readyTimeoutMs: 60_000 };
    this.server = [await network.server.start([COMMAND, 'server', 'run', '--state', state], patience)];
  }

  /** Disconnects the client, whose process and session stay. */
  async park(network: BenchNetwork): Promise<void> {
    await network.client.run([COMMAND, 'client', 'down', '--keep', '--state', join(network.folder, 'client')]);
  }

  /** Has a parked client connect again, by the command line. @returns milliseconds to the first answered ping */
  async unpark(network: BenchNetwork): Promise<number> {
    const since = performance.now();
    const argv = [COMMAND, 'client', 'up', this.#profile ?? '', '--state', join(network.folder, 'client')];
    await network.client.run(argv);
    return await firstPing(network, INNER_SERVER, since, this.client);
  }

  async down(): Promise<void> {
    await stopAll(...this.client);
    await stopAll(...this.server);
    this.server = this.client = [];
  }
}

/** Makes a gateway's state, a user and a profile. @returns the profile's path */
async function prepare(state: string, folder: string): Promise<string> {
  const profile = join(folder, 'bench.profile');
  const where = ['--name', OUTER_SERVER, '--listen', LISTEN, '--pool', POOLS];
  await run([COMMAND, 'server', 'init', '--state', state, ...where]);
  await setServices(join(state, 'server.toml'), SERVICES);
  await run([COMMAND, 'user', 'add', 'bench', '--state', state]);
  await run([COMMAND, 'profile', 'bench', '--out', profile, '--state', state]);
  return profile;
}

/** Replaces the key, or puts it before the first table, where TOML takes it for a key of the whole file. */
async function setServices(path: string, services: readonly string[]): Promise<void> {
  const text = await readFile(path, 'utf8');
  const line = `services = ${JSON.stringify(services)}`;
  const key = /^services\s*=\s*\[[^\]]*\].*$/m;
  const changed = key.test(text) ? text.replace(key, line) : `${line}\n${text}`;
  await writeFile(path, changed);
}
