/**
 * A gateway, a host behind it and clients before it, each in a network namespace, all worked by the real command line.
 *
 * Hides addresses, state directories and how the commands are started. Addresses are those for documentation, which can
 * be no one's. Knows no more of the product than its command line says: what it prints, and what it leaves on the hosts.
 */

import { readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';

import { COMMAND } from './command.ts';
import { type BackgroundProcess, LabError, type RunResult, until } from './process.ts';
import { missingForLab, type Namespace, Rig } from './rig.ts';
import { differences, type Snapshot } from './snapshot.ts';

export const PEER = join(import.meta.dirname, 'traffic-peer.ts');
export const PORT = 8443;

/** The side of the gateway where clients are; client number 0 and 1 have links of their own. */
export const OUTER = [
  { client4: '198.51.100.1', gateway4: '198.51.100.2', client6: '2001:db8:1::1', gateway6: '2001:db8:1::2' },
  { client4: '198.51.101.1', gateway4: '198.51.101.2', client6: '2001:db8:3::1', gateway6: '2001:db8:3::2' },
] as const;
/** The side where the host is. */
export const BEHIND = {
  gateway4: '192.0.2.1',
  host4: '192.0.2.2',
  nobody4: '192.0.2.77',
  gateway6: '2001:db8:2::1',
  host6: '2001:db8:2::2',
  nobody6: '2001:db8:2::77',
  /** Addresses of the same host that no route leads to. */
  closed4: '203.0.113.1',
  closed6: '2001:db8:ffff::1',
} as const;
/** The gateway's own addresses inside. */
export const INNER = { gateway4: '10.88.0.1', gateway6: 'fd88::1' } as const;
export const ROUTES = ['192.0.2.0/24', '2001:db8:2::/64'] as const;

/** For `test(…, options, …)`: skipped with a reason where this machine cannot run a lab. */
export function labOptions(tools: Readonly<Record<string, string>> = {}): { skip: string | false } {
  return { skip: missingForLab(tools).join('; ') || false };
}

/** What `client status --json` prints, as far as tests look at it. */
export interface ClientStatus {
  pid: number;
  state: string;
  server: string;
  device: string | null;
  addresses: string[];
  routes: string[];
  refused: { item: string; why: string }[];
  tls: { protocol: string; cipher: string; group: string } | null;
  superPackets: boolean;
  sentBytes: number;
  receivedBytes: number;
  channels: number;
  reconnects: number;
  rekeys: number;
  rekeyGaps: number;
  lastError: { code: string; message: string } | null;
}

/** What `server status --json` prints, as far as tests look at it. */
export interface ServerStatus {
  pid: number;
  sessions: number;
  waiting: number;
  pool: { prefix: string; used: number; size: string }[];
  devices: { name: string; superPackets: boolean; udpSegmentation: boolean; mtu: number }[];
  certificates: { role: string; name: string; serial: string; file: string }[];
  counters: Record<string, number>;
  drops: Record<string, number>;
  warnings: string[];
}

export interface SessionRow {
  id: string;
  user: string;
  device: string;
  addresses: string[];
  superPackets: boolean;
  receivedBytes: number;
  sentBytes: number;
}

export interface DeploymentOptions {
  /** How many clients, at most 2; default 1. */
  clients?: number;
  /** How many workers the gateway has; default: as many as the machine has cores. */
  workers?: number;
  routes?: readonly string[];
  /** Lines for the end of the configuration: keys first, then tables. */
  settings?: string;
  /** The gateway's state is on a disk of its own, so large. */
  diskMegabytes?: number;
  /** What is installed in place of this checkout: the path of a program. */
  command?: string;
}

/** A gateway with what is around it. Open it with `await using`; the gateway itself is started by `run`. */
export class Deployment implements AsyncDisposable {
  readonly rig: Rig;
  readonly gateway: Namespace;
  readonly behind: Namespace;
  readonly clients: readonly Client[];
  readonly state: string;
  readonly configFile: string;
  /** The command line by which all of it is worked. */
  readonly command: string;
  #server: BackgroundProcess | undefined;

  private constructor(rig: Rig, gateway: Namespace, behind: Namespace, clients: readonly Namespace[], command: string) {
    this.rig = rig;
    this.command = command;
    this.gateway = gateway;
    this.behind = behind;
    this.state = join(rig.folder, 'gateway');
    this.configFile = join(this.state, 'server.toml');
    this.clients = clients.map((namespace, number) => new Client(this, namespace, number));
  }

  static async open(options: DeploymentOptions = {}): Promise<Deployment> {
    const rig = await Rig.open();
    try {
      const gateway = await rig.namespace('gateway');
      const behind = await rig.namespace('behind');
      await rig.link(
        { namespace: gateway, device: 'lan0', addresses: [`${BEHIND.gateway4}/24`, `${BEHIND.gateway6}/64`] },
        { namespace: behind, device: 'lan0', addresses: [`${BEHIND.host4}/24`, `${BEHIND.host6}/64`] },
      );
      await behind.run(['ip', 'address', 'add', `${BEHIND.closed4}/32`, 'dev', 'lo']);
      await behind.run(['ip', 'address', 'add', `${BEHIND.closed6}/128`, 'dev', 'lo']);
      await gateway.run(['ip', 'route', 'add', `${BEHIND.closed4}/32`, 'via', BEHIND.host4]);
      await gateway.run(['ip', '-6', 'route', 'add', `${BEHIND.closed6}/128`, 'via', BEHIND.host6]);
      const clients: Namespace[] = [];
      for (const [number, outer] of OUTER.slice(0, options.clients ?? 1).entries()) {
        const client = await rig.namespace(`client${number}`);
        await rig.link(
          { namespace: client, device: 'out0', addresses: [`${outer.client4}/24`, `${outer.client6}/64`] },
          { namespace: gateway, device: `out${number}`, addresses: [`${outer.gateway4}/24`, `${outer.gateway6}/64`] },
        );
        clients.push(client);
      }
      const deployment = new Deployment(rig, gateway, behind, clients, options.command ?? COMMAND);
      if (options.diskMegabytes !== undefined) await rig.disk(basename(deployment.state), options.diskMegabytes);
      await deployment.#init(options);
      return deployment;
    } catch (error) {
      await rig.close();
      throw error;
    }
  }

  async #init({ routes = ROUTES, settings = '', workers }: DeploymentOptions): Promise<void> {
    const names = OUTER.flatMap(({ gateway4, gateway6 }) => [gateway4, gateway6]).join(',');
    const init = ['server', 'init', '--state', this.state, '--name', names, '--listen', `[::]:${PORT}`];
    await this.ok(this.gateway, ...init, '--pool', '10.88.0.0/24,fd88::/64', '--route', routes.join(','));
    const first = workers === undefined ? '' : `workers = ${workers}\n`;
    await this.configure((text) => `${first}${text}${settings}`);
  }

  /** Changes the configuration file. */
  async configure(change: (text: string) => string): Promise<void> {
    await writeFile(this.configFile, change(await readFile(this.configFile, 'utf8')));
  }

  /** Runs our command line somewhere; any status is fine. */
  cli(where: Namespace, ...words: string[]): Promise<RunResult> {
    return where.run([this.command, ...words], { anyStatus: true, timeoutMs: PEER_MS });
  }

  /** Runs our command line somewhere. @throws {LabError} on a status other than 0 */
  ok(where: Namespace, ...words: string[]): Promise<RunResult> {
    return where.run([this.command, ...words], { timeoutMs: PEER_MS });
  }

  /** An operation of the gateway, in its JSON. */
  async ask<T>(...words: string[]): Promise<T> {
    return JSON.parse((await this.ok(this.gateway, ...words, '--json', '--state', this.state)).stdout) as T;
  }

  /** Starts the gateway, by means of another program where one is given; resolves when clients can connect. */
  async run(by: readonly string[] = []): Promise<BackgroundProcess> {
    const argv = [...by, this.command, 'server', 'run', '--state', this.state];
    // A machine that is busy with other things takes its time.
    this.#server = await this.gateway.start(argv, { ready: /^ready$/m, readyTimeoutMs: 60_000 });
    return this.#server;
  }

  /** The gateway that `run` started last. */
  get server(): BackgroundProcess {
    if (this.#server === undefined) throw new LabError('the gateway has not been started');
    return this.#server;
  }

  /** Ends the gateway by the command line. */
  async stop(): Promise<number> {
    await this.ok(this.gateway, 'server', 'stop', '--state', this.state);
    return await this.server.exited;
  }

  async enrol(client: Client): Promise<void> {
    await this.ok(this.gateway, 'user', 'add', client.user, '--state', this.state);
    await this.profile(client);
  }

  /** Makes a profile for a client's user that names only the addresses on that client's link. */
  async profile(client: Client): Promise<void> {
    const made = await this.ok(this.gateway, 'profile', client.user, '--state', this.state);
    await writeFile(client.profile, made.stdout, { mode: 0o600 });
    await client.dialOver(4);
  }

  get status(): Promise<ServerStatus> {
    return this.ask<ServerStatus>('server', 'status');
  }

  get sessions(): Promise<SessionRow[]> {
    return this.ask<SessionRow[]>('server', 'sessions');
  }

  /** How many bytes a kind of device of the gateway has carried, both ways, in all workers; by the name in the first one. */
  async deviceBytes(device: string): Promise<number> {
    const { stdout } = await this.gateway.run(['ip', '-j', 'link', 'show', 'type', 'tun']);
    const [, base, plain] = /^(.*?)(p?)$/.exec(device) ?? [];
    const ofKind = new RegExp(`^${base}(-[0-9]+)?${plain}$`);
    const names = (JSON.parse(stdout) as { ifname: string }[]).map(({ ifname }) => ifname);
    const counters = await Promise.all(
      names.filter((name) => ofKind.test(name)).map((name) => deviceCounters(this.gateway, name)),
    );
    return counters.reduce((sum, { rx, tx }) => sum + rx.bytes + tx.bytes, 0);
  }

  /** Removes everything. Returns what was left behind on this machine, as `Rig.close` does. */
  async close(): Promise<string[]> {
    const logs = await Promise.all(this.clients.map((client) => client.log()));
    const left = await this.rig.close();
    // Whoever looks for a failure wants to read what the processes said.
    if (process.env.CUSTOMVPN_LAB_LOGS !== undefined) {
      process.stderr.write(`${this.#server?.output ?? ''}\n${logs.join('\n')}\n${left.join('\n')}\n`);
    }
    return left;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** A client's host with its profile and state. */
export class Client {
  readonly namespace: Namespace;
  readonly outer: (typeof OUTER)[number];
  readonly user: string;
  readonly profile: string;
  readonly state: string;
  readonly #deployment: Deployment;
  #isUp = false;

  constructor(deployment: Deployment, namespace: Namespace, number: number) {
    const outer = OUTER[number];
    if (outer === undefined) throw new LabError(`there are no addresses for client ${number}`);
    this.#deployment = deployment;
    this.namespace = namespace;
    this.outer = outer;
    this.user = `user${number}`;
    this.profile = join(deployment.rig.folder, `${this.user}.toml`);
    this.state = join(deployment.rig.folder, `client${number}`);
  }

  /** Makes the profile dial the gateway over IPv4 or IPv6. */
  async dialOver(version: 4 | 6): Promise<void> {
    const host = version === 4 ? this.outer.gateway4 : this.outer.gateway6;
    const text = await readFile(this.profile, 'utf8');
    const changed = text
      .replace(/^hosts = .*$/m, `hosts = [ "${host}" ]`)
      .replace(/^name = "(198|2001).*$/m, `name = "${host}"`);
    if (!changed.includes(`hosts = [ "${host}" ]`) || !changed.includes(`name = "${host}"`)) {
      throw new LabError(`the profile is not as expected:\n${text.replace(/^token.*$/m, 'token = …')}`);
    }
    await writeFile(this.profile, changed);
  }

  /** Connects in the background, after ending what a test that failed has left. */
  async up(...flags: string[]): Promise<ClientStatus> {
    if (this.#isUp) await this.down();
    this.#isUp = true;
    const argv = ['client', 'up', this.profile, '--state', this.state, '--json', ...flags];
    return JSON.parse((await this.#deployment.ok(this.namespace, ...argv)).stdout) as ClientStatus;
  }

  /** Connects in the foreground, where its status and output can be seen; resolves when it says `ready`. */
  async upInForeground(ready = /^up$/m): Promise<BackgroundProcess> {
    const argv = [this.#deployment.command, 'client', 'up', this.profile, '--state', this.state, '--foreground'];
    return await this.namespace.start(argv, { ready });
  }

  /** Its process was ended by other means than `down`. */
  forget(): void {
    this.#isUp = false;
  }

  down(...flags: string[]): Promise<RunResult> {
    this.#isUp = false;
    return this.#deployment.ok(this.namespace, 'client', 'down', '--state', this.state, ...flags);
  }

  async status(): Promise<ClientStatus> {
    const argv = ['client', 'status', '--json', '--state', this.state];
    return JSON.parse((await this.#deployment.ok(this.namespace, ...argv)).stdout) as ClientStatus;
  }

  /** Waits until its status is as wanted, and returns it. */
  async statusWhen(what: string, wanted: (status: ClientStatus) => boolean, timeoutMs = 20_000): Promise<ClientStatus> {
    let last: ClientStatus | undefined;
    try {
      await until(
        what,
        async () => {
          last = await this.status();
          return wanted(last);
        },
        { timeoutMs },
      );
    } catch (cause) {
      throw new LabError(`${cause instanceof Error ? cause.message : cause}; last: ${JSON.stringify(last)}`, { cause });
    }
    if (last === undefined) throw new LabError('no status');
    return last;
  }

  /** Whether an address answers a ping within a second, a few times. */
  async reaches(address: string, ...flags: string[]): Promise<boolean> {
    return (await this.ping(address, '-q', '-c', '3', '-i', '0.1', '-W', '1', ...flags)).status === 0;
  }

  ping(address: string, ...flags: string[]): Promise<RunResult> {
    return this.namespace.run(['ping', '-n', ...flags, address], { anyStatus: true });
  }

  /** The log of its clients in the background. */
  async log(): Promise<string> {
    const folders = await readdir(this.state).catch(() => []);
    const logs = folders.map((folder) => readFile(join(this.state, folder, 'client.log'), 'utf8').catch(() => ''));
    return (await Promise.all(logs)).join('');
  }
}

interface Traffic {
  bytes: number;
  packets: number;
}

/** What has passed a device, as the kernel counts it: a super-packet is one packet. */
export async function deviceCounters(where: Namespace, device: string): Promise<{ rx: Traffic; tx: Traffic }> {
  const { stdout } = await where.run(['ip', '-j', '-s', 'link', 'show', 'dev', device]);
  const [link] = JSON.parse(stdout) as { stats64: { rx: Traffic; tx: Traffic } }[];
  if (link === undefined) throw new LabError(`there is no device ${device}`);
  return link.stats64;
}

/** How a host differs from before; what goes away by itself within a moment is not left behind. */
export async function changesSince(before: Snapshot, where: Namespace): Promise<string[]> {
  let lines: string[] = [];
  const isClean = async () => {
    lines = differences(before, await where.snapshot());
    return lines.length === 0;
  };
  await until('nothing to be left', isClean, { timeoutMs: 3000, intervalMs: 100 }).catch(() => {});
  return lines;
}

/** Runs one of the programs of `traffic-peer.ts` to its end and returns what it found. */
export async function peer<T>(where: Namespace, ...words: string[]): Promise<T> {
  const { stdout } = await where.run([process.execPath, ...PEER_FLAGS, PEER, ...words], { timeoutMs: PEER_MS });
  return JSON.parse(stdout) as T;
}

/** Starts one that runs until it is stopped. */
export function startPeer(where: Namespace, ...words: string[]): Promise<BackgroundProcess> {
  return where.start([process.execPath, ...PEER_FLAGS, PEER, ...words], { ready: /^ready$/m, isTyped: true });
}

/** Where a fifth of the packets is lost, a login or a megabyte may take its time. */
const PEER_MS = 150_000;
const PEER_FLAGS = ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
