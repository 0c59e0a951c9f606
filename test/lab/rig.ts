/**
 * A lab of network namespaces on one machine, for tests, the bench and the demo.
 *
 * Hides how namespaces, links and the processes in them are made, and sees to it that all of it goes: at the end of the
 * scope (`await using`), on a signal, when the program is ended by `process.exit`, and, after a `kill -9`, at the next
 * run. Names are unique to the run, so that several labs live on one machine. It knows nothing of VPNs.
 */

import { execFileSync } from 'node:child_process';
import { accessSync, constants, readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { Capture, type CaptureOptions } from './capture.ts';
import {
  type BackgroundOptions,
  BackgroundProcess,
  LabError,
  processesOfRun,
  quote,
  RUN_VARIABLE,
  type RunOptions,
  type RunResult,
  run,
} from './process.ts';
import { differences, type Snapshot, takeHostSnapshot, takeNetworkSnapshot } from './snapshot.ts';

/** `customvpn-lab-`, the process that owns it, and what it is for. */
const NAMESPACE_NAME = /^cvlab(\d+)-/;
const FOLDER_NAME = /^customvpn-lab-(\d+)-/;
const ENDING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** One end of a link. */
export interface LinkEnd {
  namespace: Namespace;
  /** At most 15 characters. */
  device: string;
  /** With prefix length, both families. */
  addresses?: readonly string[];
}

export interface LinkOptions {
  mtu?: number;
  /** Off: packets on the link are what a cable would carry; loss, delay and packet counts then mean something. */
  offloads?: boolean;
}

/** The programs that the rig itself needs, and the Debian packages that bring them. */
const RIG_TOOLS = { ip: 'iproute2', nft: 'nftables', tcpdump: 'tcpdump', ping: 'iputils-ping' };

/**
 * What this machine lacks to run a lab, one line each, with what mends it; empty when nothing is missing.
 *
 * @param tools further programs → the Debian packages that bring them
 */
export function missingForLab(tools: Readonly<Record<string, string>> = {}): string[] {
  const missing: string[] = [];
  if (process.platform !== 'linux') return [`network namespaces: they need Linux, this is ${process.platform}`];
  if (process.getuid?.() !== 0) missing.push('root: network namespaces and TUN devices need it; run this with sudo');
  if (!isThere('/dev/net/tun', constants.R_OK | constants.W_OK)) {
    missing.push('/dev/net/tun: `modprobe tun`; in a container, add `--device /dev/net/tun --cap-add NET_ADMIN`');
  }
  for (const [tool, packageName] of Object.entries({ ...RIG_TOOLS, ...tools })) {
    if (!hasTool(tool)) missing.push(`${tool}: \`apt-get install ${packageName}\``);
  }
  return missing;
}

/** Whether a program is on the path of an administrator. */
export function hasTool(tool: string): boolean {
  const folders = `${process.env.PATH ?? ''}${delimiter}/usr/sbin${delimiter}/sbin`.split(delimiter);
  return folders.some((folder) => isThere(join(folder, tool), constants.X_OK));
}

/** A network namespace of a rig. */
export class Namespace {
  readonly name: string;
  readonly #rig: Rig;

  /** Made by `Rig.namespace`. */
  constructor(rig: Rig, name: string) {
    this.#rig = rig;
    this.name = name;
  }

  /** The words in front of a command that make it run in here. */
  get prefix(): readonly string[] {
    return ['ip', 'netns', 'exec', this.name];
  }

  /** Runs a command to its end. @throws {LabError} as `run` does */
  run(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return run([...this.prefix, ...argv], { ...options, env: { ...this.#rig.environment, ...options.env } });
  }

  /** Starts a process that the rig stops at its end, if nobody has before. @throws {LabError} as `start` does */
  start(argv: readonly string[], options: BackgroundOptions = {}): Promise<BackgroundProcess> {
    return this.#rig.start([...this.prefix, ...argv], options);
  }

  /** Watches one of its devices. */
  capture(device: string, options: CaptureOptions = {}): Promise<Capture> {
    return Capture.start(this.prefix, device, options);
  }

  snapshot(): Promise<Snapshot> {
    return takeNetworkSnapshot(this.name);
  }

  /** Sets a kernel parameter of this namespace, such as `net.ipv4.ip_forward`. */
  async setSysctl(name: string, value: string): Promise<void> {
    await this.run(['sysctl', '-qw', `${name}=${value}`]);
  }
}

/** A lab. Open it with `await using`. */
export class Rig implements AsyncDisposable {
  /** Names this run. */
  readonly id: string;
  /** A folder for state, keys and logs; removed at the end. */
  readonly folder: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly #prefix: string;
  readonly #before: Snapshot;
  readonly #namespaces: string[] = [];
  readonly #processes = new Set<BackgroundProcess>();
  readonly #onSignal: (signal: NodeJS.Signals) => void;
  readonly #onExit: () => void;
  #closing: Promise<string[]> | undefined;

  private constructor(prefix: string, folder: string, before: Snapshot) {
    this.id = prefix;
    this.#prefix = prefix;
    this.folder = folder;
    this.#before = before;
    this.environment = { [RUN_VARIABLE]: this.id };
    this.#onSignal = (signal) => {
      process.stderr.write(`\n${signal}: removing the lab …\n`);
      const status = 128 + (signal === 'SIGINT' ? 2 : signal === 'SIGHUP' ? 1 : 15);
      void this.close().finally(() => process.exit(status));
    };
    this.#onExit = () => this.#removeNow();
    for (const signal of ENDING_SIGNALS) process.once(signal, this.#onSignal);
    process.once('exit', this.#onExit);
  }

  /** Opens a lab, after removing what a killed run of the same kind has left. */
  static async open(): Promise<Rig> {
    await sweep();
    rigs += 1;
    const prefix = `cvlab${process.pid}-${rigs === 1 ? '' : `${rigs}-`}`;
    const before = await takeHostSnapshot(prefix);
    const folder = await mkdtemp(join(tmpdir(), `customvpn-lab-${process.pid}-`));
    return new Rig(prefix, folder, before);
  }

  /** Makes a network namespace, loopback up, without duplicate address detection, so that addresses serve at once. */
  async namespace(label: string): Promise<Namespace> {
    const name = `${this.#prefix}${label}`;
    this.#namespaces.push(name);
    await run(['ip', 'netns', 'add', name]);
    const namespace = new Namespace(this, name);
    await namespace.setSysctl('net.ipv6.conf.default.accept_dad', '0');
    await run(['ip', '-n', name, 'link', 'set', 'lo', 'up']);
    return namespace;
  }

  /** Joins two namespaces by a pair of Ethernet devices, up and addressed. */
  async link(a: LinkEnd, b: LinkEnd, options: LinkOptions = {}): Promise<void> {
    const peer = ['peer', 'name', b.device, 'netns', b.namespace.name];
    await run(['ip', 'link', 'add', a.device, 'netns', a.namespace.name, 'type', 'veth', ...peer]);
    for (const { namespace, device, addresses = [] } of [a, b]) {
      const lines = [`link set ${device} mtu ${options.mtu ?? 1500} up`];
      for (const address of addresses) lines.push(`address add ${address} dev ${device}`);
      await run(['ip', '-n', namespace.name, '-batch', '-'], { input: `${lines.join('\n')}\n` });
      if (options.offloads === false) {
        const off = ['tso', 'gso', 'gro', 'tx-udp-segmentation'].flatMap((feature) => [feature, 'off']);
        await namespace.run(['ethtool', '-K', device, ...off]);
      }
    }
  }

  /** Makes a folder of this run a small disk of its own, which can be filled. @returns its path */
  async disk(name: string, megabytes: number): Promise<string> {
    const path = join(this.folder, name);
    await mkdir(path);
    await run(['mount', '-t', 'tmpfs', '-o', `size=${megabytes}m,mode=700`, 'customvpn-lab', path]);
    return path;
  }

  /** Starts a process on the host itself. */
  async start(argv: readonly string[], options: BackgroundOptions = {}): Promise<BackgroundProcess> {
    const env = { ...this.environment, ...options.env };
    const started = await BackgroundProcess.start(argv, { ...options, env });
    this.#processes.add(started);
    void started.exited.catch(() => {}).finally(() => this.#processes.delete(started));
    return started;
  }

  /**
   * Removes everything. Idempotent.
   *
   * @returns what was left behind: processes that had to be found and ended, and how the host differs from before
   */
  close(): Promise<string[]> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<string[]> {
    const left: string[] = [];
    await Promise.all([...this.#processes].map((started) => started.stop()));
    for (const [pid, command] of processesOfRun(this.id)) {
      left.push(`+ process ${pid} = ${command}`);
      kill(pid);
    }
    for (const name of this.#namespaces) {
      const pids = (await run(['ip', 'netns', 'pids', name], { anyStatus: true })).stdout.split('\n').filter(Boolean);
      for (const pid of pids) {
        left.push(`+ process ${pid} in ${name}`);
        kill(Number(pid));
      }
      const removed = await run(['ip', 'netns', 'delete', name], { anyStatus: true });
      if (removed.status !== 0) left.push(`+ namespace ${name}: ${removed.stderr.trim()}`);
    }
    unmountIn(this.folder);
    await rm(this.folder, { recursive: true, force: true });
    for (const signal of ENDING_SIGNALS) process.removeListener(signal, this.#onSignal);
    process.removeListener('exit', this.#onExit);
    const others = (line: string) => !/^[+-] namespace /.test(line) || line.includes(this.#prefix);
    return [...left, ...differences(this.#before, await takeHostSnapshot(this.id)).filter(others)];
  }

  /** The last resort, when no promise is waited for any more. */
  #removeNow(): void {
    for (const started of this.#processes) started.signal('SIGKILL');
    for (const pid of processesOfRun(this.id).keys()) kill(pid);
    for (const name of this.#namespaces) quietly(['ip', 'netns', 'delete', name]);
    unmountIn(this.folder);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

let rigs = 0;

/** Removes namespaces and folders whose owner is gone. */
async function sweep(): Promise<void> {
  for (const name of entries('/run/netns')) {
    if (!isOrphan(NAMESPACE_NAME.exec(name)?.[1])) continue;
    const { stdout } = await run(['ip', 'netns', 'pids', name], { anyStatus: true });
    for (const pid of stdout.split('\n').filter(Boolean)) kill(Number(pid));
    await run(['ip', 'netns', 'delete', name], { anyStatus: true });
  }
  for (const name of entries(tmpdir())) {
    if (!isOrphan(FOLDER_NAME.exec(name)?.[1])) continue;
    unmountIn(join(tmpdir(), name));
    await rm(join(tmpdir(), name), { recursive: true, force: true });
  }
}

/** Takes away the disks in a folder, whoever still has a file of theirs open. */
function unmountIn(folder: string): void {
  const points = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .flatMap((line) => line.split(' ')[1] ?? []);
  for (const point of points) if (point.startsWith(`${folder}/`)) quietly(['umount', '--lazy', point]);
}

function isOrphan(pid: string | undefined): boolean {
  return pid !== undefined && !isThere(`/proc/${pid}`, constants.F_OK);
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function isThere(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH')
      throw new LabError(`cannot end process ${pid}`, { cause: error });
  }
}

function quietly(argv: readonly [string, ...string[]]): void {
  try {
    execFileSync(argv[0], argv.slice(1), { stdio: 'ignore' });
  } catch {
    process.stderr.write(`left behind: ${quote(argv)} failed\n`);
  }
}
