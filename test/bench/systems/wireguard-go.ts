/**
 * wireguard-go, the newest build that Debian has: the one with TUN and UDP offloads.
 *
 * Hides where it comes from. This Debian's own package is too old, so the newest is taken out of a later suite of the
 * same archive that the machine is configured with, checked by the archive's signatures, and kept in a cache folder; it
 * is never installed.
 */

import { mkdir, mkdtemp, readdir, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type BackgroundProcess, LabError, run } from '../../lab/process.ts';
import { hasTool, type Namespace } from '../../lab/rig.ts';
import {
  type BenchNetwork,
  type CrowdNetwork,
  everybodyIsUp,
  firstPing,
  INNER_CLIENT,
  INNER_SERVER,
  OUTER_SERVER,
  type System,
  stopAll,
  type TunnelEnds,
} from '../system.ts';

const CACHE = join(import.meta.dirname, '../../../.cache/wireguard-go');
const SOCKETS = '/run/wireguard';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
/** Newest first wins by version; `sid` last so that a machine behind a partial mirror still finds one. */
const SUITES = ['trixie', 'sid'];
/** 1,500 less what WireGuard adds over IPv6, as `wg-quick` sets it. */
const TUNNEL_MTU = 1420;

export class WireguardGo implements System {
  readonly name = 'wireguard-go';
  server: readonly BackgroundProcess[] = [];
  client: readonly BackgroundProcess[] = [];
  #program: { path: string; version: string } | undefined;
  #keys: { server: KeyPair; client: KeyPair } | undefined;

  async missing(): Promise<string | undefined> {
    if (!hasTool('wg')) return 'wg is not installed (wireguard-tools)';
    try {
      this.#program = await findProgram();
      return undefined;
    } catch (error) {
      return `it could not be fetched: ${error instanceof Error ? error.message : String(error)}`;
    }
  }

  async version(): Promise<string> {
    return (this.#program ?? (await findProgram())).version;
  }

  async up(network: BenchNetwork): Promise<TunnelEnds> {
    const { path } = this.#program ?? (await findProgram());
    this.#keys ??= {
      server: await makeKeys(network.folder, 'server'),
      client: await makeKeys(network.folder, 'client'),
    };
    const { server, client } = this.#keys;
    // Its control socket lies in a folder shared by all namespaces, under the device's name.
    const [serverDevice, clientDevice] = [`wgs${process.pid}`, `wgc${process.pid}`];
    const env = { WG_PROCESS_FOREGROUND: '1', LOG_LEVEL: 'error' };
    this.server = [
      await network.server.start([path, '-f', serverDevice], {
        env,
        ready: answers(network.server, serverDevice),
      }),
    ];
    const listen = ['listen-port', '51820', 'private-key', server.file];
    await network.server.run([
      'wg',
      'set',
      serverDevice,
      ...listen,
      'peer',
      client.publicKey,
      'allowed-ips',
      `${INNER_CLIENT}/32`,
    ]);
    await configure(network.server, serverDevice, INNER_SERVER);
    const since = performance.now();
    this.client = [
      await network.client.start([path, '-f', clientDevice], { env, ready: answers(network.client, clientDevice) }),
    ];
    const peer = ['peer', server.publicKey, 'allowed-ips', `${INNER_SERVER}/32`, 'endpoint', `${OUTER_SERVER}:51820`];
    await network.client.run(['wg', 'set', clientDevice, 'private-key', client.file, ...peer]);
    await configure(network.client, clientDevice, INNER_CLIENT);
    return { server: INNER_SERVER, firstPingMs: await firstPing(network, INNER_SERVER, since, this.client) };
  }

  /** Brings up the server and a client in each namespace. @returns the clients' addresses inside the tunnel */
  async upWith(network: CrowdNetwork): Promise<string[]> {
    const { path } = this.#program ?? (await findProgram());
    const env = { WG_PROCESS_FOREGROUND: '1', LOG_LEVEL: 'error' };
    const start = (namespace: Namespace, device: string): Promise<BackgroundProcess> =>
      namespace.start([path, '-f', device], { env, ready: answers(namespace, device) });
    const serverDevice = `wgs${process.pid}`;
    const keys = await makeKeys(network.folder, 'server');
    this.server = [await start(network.server, serverDevice)];
    await network.server.run(['wg', 'set', serverDevice, 'listen-port', '51820', 'private-key', keys.file]);
    await configure(network.server, serverDevice, INNER_SERVER);
    const addresses: string[] = [];
    const clients: BackgroundProcess[] = [];
    for (const [index, client] of network.clients.entries()) {
      const device = `wgc${process.pid}n${index}`;
      const address = `10.88.0.${index + 2}`;
      const own = await makeKeys(network.folder, `client${index}`);
      clients.push(await start(client, device));
      await network.server.run(['wg', 'set', serverDevice, 'peer', own.publicKey, 'allowed-ips', `${address}/32`]);
      const peer = ['peer', keys.publicKey, 'allowed-ips', `${INNER_SERVER}/32`, 'endpoint', `${OUTER_SERVER}:51820`];
      await client.run(['wg', 'set', device, 'private-key', own.file, ...peer]);
      await configure(client, device, address);
      addresses.push(address);
    }
    this.client = clients;
    await everybodyIsUp(network, clients);
    return addresses;
  }

  async down(): Promise<void> {
    await stopAll(...this.client, ...this.server);
    this.server = this.client = [];
    // It leaves the folder of its sockets behind; one that is in use, or was never made, stays as it is.
    await rmdir(SOCKETS).catch(() => {});
  }
}

interface KeyPair {
  file: string;
  publicKey: string;
}

async function makeKeys(folder: string, name: string): Promise<KeyPair> {
  const file = join(folder, `${name}.key`);
  const { stdout: privateKey } = await run(['wg', 'genkey']);
  await writeFile(file, privateKey, { mode: 0o600 });
  const { stdout } = await run(['wg', 'pubkey'], { input: privateKey });
  return { file, publicKey: stdout.trim() };
}

/** Whether the process that makes `device` takes orders. */
function answers(namespace: Namespace, device: string): () => Promise<boolean> {
  return async () => (await namespace.run(['wg', 'show', device], { anyStatus: true })).status === 0;
}

async function configure(namespace: Namespace, device: string, address: string): Promise<void> {
  await namespace.run(['ip', 'address', 'add', `${address}/24`, 'dev', device]);
  await namespace.run(['ip', 'link', 'set', device, 'up', 'mtu', String(TUNNEL_MTU)]);
}

async function findProgram(): Promise<{ path: string; version: string }> {
  return (await cached()) ?? (await fetchNewest());
}

/** A program in the cache; its folder's name is its version. */
async function cached(): Promise<{ path: string; version: string } | undefined> {
  const versions = await readdir(CACHE).catch(() => []);
  const version = versions.filter((name) => /^\d/.test(name)).at(-1);
  return version === undefined ? undefined : { path: join(CACHE, version, 'wireguard-go'), version };
}

/** @throws {LabError} when there is no archive, it cannot be reached, or a signature is wrong */
async function fetchNewest(): Promise<{ path: string; version: string }> {
  const archive = await debianArchive();
  await mkdir(CACHE, { recursive: true });
  const folder = await mkdtemp(join(CACHE, 'fetch-'));
  try {
    for (const part of ['lists/partial', 'cache/archives/partial', 'unpacked']) {
      await mkdir(join(folder, part), { recursive: true });
    }
    const sources = SUITES.map((suite) => `deb [signed-by=${KEYRING}] ${archive} ${suite} main\n`).join('');
    await writeFile(join(folder, 'sources.list'), sources);
    const settings = {
      'Dir::Etc::sourcelist': join(folder, 'sources.list'),
      'Dir::Etc::sourceparts': '/dev/null',
      'Dir::State::lists': join(folder, 'lists'),
      'Dir::Cache': join(folder, 'cache'),
      'APT::Sandbox::User': 'root',
      'Acquire::Languages': 'none',
    };
    const options = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
    await run(['apt-get', ...options, '-qq', 'update'], { timeoutMs: 180_000 });
    const plan = (await run(['apt-get', ...options, '--print-uris', 'download', 'wireguard-go'])).stdout;
    const version = /wireguard-go_([^_\s]+)_/.exec(plan)?.[1];
    if (version === undefined) throw new LabError(`no package named wireguard-go in ${SUITES.join(', ')}`);
    await run(
      ['sh', '-c', 'cd "$1" && shift && exec apt-get "$@" -qq download wireguard-go', 'sh', folder, ...options],
      {
        timeoutMs: 180_000,
      },
    );
    const file = (await readdir(folder)).find((name) => name.endsWith('.deb'));
    if (file === undefined) throw new LabError('apt-get downloaded nothing');
    await run(['dpkg', '-x', join(folder, file), join(folder, 'unpacked')]);
    const home = join(CACHE, decodeURIComponent(version));
    await mkdir(home, { recursive: true });
    await rename(join(folder, 'unpacked/usr/bin/wireguard-go'), join(home, 'wireguard-go'));
    return { path: join(home, 'wireguard-go'), version: decodeURIComponent(version) };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The address of the Debian archive that this machine uses, whichever mirror that is. */
async function debianArchive(): Promise<string> {
  const format = '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)';
  const { stdout } = await run(['apt-get', 'indextargets', '--format', format, 'Identifier: Packages']);
  for (const line of stdout.split('\n')) {
    const [origin, label, component, address] = line.split('|');
    if (origin === 'Debian' && label === 'Debian' && component === 'main' && address !== undefined) return address;
  }
  throw new LabError('the apt sources of this machine name no Debian archive');
}
