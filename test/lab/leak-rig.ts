/**
 * A client, a router that it is behind, a gateway, and the world; and a watch on the router for what leaves the client outside
 * its tunnel.
 *
 * Hides addresses, name servers and the filter that says what may leave. The world is reached by the router, and through
 * the tunnel by the gateway, so that a packet that leaks would arrive.
 */

import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Target, USER_PORTS } from './chatter.ts';
import { COMMAND } from './command.ts';
import { type BackgroundProcess, LabError, type RunResult, until } from './process.ts';
import { type Namespace, Rig } from './rig.ts';

const CHATTER = join(import.meta.dirname, 'chatter.ts');
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
export const PORT = 8443;
/** The name by which the client knows its gateway; only the router's name server has it. */
export const GATEWAY_NAME = 'vpn.test';

export const NET = {
  client4: '192.168.50.2',
  client6: '2001:db8:50::2',
  router4: '192.168.50.1',
  router6: '2001:db8:50::1',
  gateway4: '198.51.100.2',
  gateway6: '2001:db8:1::2',
  world4: '203.0.113.10',
  world6: '2001:db8:3::10',
  inner4: '10.88.0.1',
} as const;

/** What a user's programs send: to the world, to name servers, to the local network, and to the gateway's own address. */
export const USER_TRAFFIC: readonly Target[] = [
  { kind: 'udp', address: NET.world4, port: 9 },
  { kind: 'udp', address: NET.world6, port: 9 },
  { kind: 'tcp', address: NET.world4, port: 80 },
  { kind: 'tcp', address: NET.world6, port: 80 },
  { kind: 'dns', address: NET.router4, port: 53 },
  { kind: 'dns', address: NET.world4, port: 53 },
  { kind: 'udp', address: NET.router4, port: 9 },
  { kind: 'udp', address: NET.router6, port: 9 },
  { kind: 'udp', address: NET.gateway4, port: 9 },
  { kind: 'tcp', address: NET.gateway4, port: PORT },
  { kind: 'tcp', address: NET.gateway6, port: PORT },
];

/** What may leave the client: its own connections, neighbours and routers, DHCP; its own questions are told by their name. */
const MAY_LEAVE = [
  '(arp and dst net 192.168.50.0/24)',
  `(tcp and dst port ${PORT} and (dst host ${NET.gateway4} or dst host ${NET.gateway6}) and not src portrange ${USER_PORTS.first}-${USER_PORTS.last})`,
  '(icmp6 and ip6[40] >= 133 and ip6[40] <= 136)',
  '(ip6 and ip6[6] = 0)',
  '(udp and src port 68 and dst port 67)',
].join(' or ');
const OWN_QUESTION = new RegExp(`\\b(A|AAAA)\\? ${GATEWAY_NAME.replace('.', '\\.')}\\.`);
/** Comes from the router: when it has been seen, so has everything before it. */
const MARK_PORT = 64_999;

/** A watch on what leaves the client. */
export class Watch implements AsyncDisposable {
  readonly #router: Namespace;
  readonly #dump: BackgroundProcess;
  #marks = 0;

  constructor(router: Namespace, dump: BackgroundProcess) {
    this.#router = router;
    this.#dump = dump;
  }

  static async start(router: Namespace): Promise<Watch> {
    const own = `(udp and dst port ${MARK_PORT} and src host ${NET.router4})`;
    const leaving = `(ether src ${await macBehind(router)} and not (${MAY_LEAVE}))`;
    const argv = ['tcpdump', '-i', 'cli0', '-l', '-nn', '-tt', '--immediate-mode', '-s', '200', `${own} or ${leaving}`];
    return new Watch(router, await router.start(argv, { ready: /listening on/ }));
  }

  /** The packets that left and should not have, a line each, up to now. */
  async offenders(): Promise<string[]> {
    this.#marks += 1;
    const marks = () => this.#dump.output.split('\n').filter((line) => line.includes(`.${MARK_PORT}: `)).length;
    const before = marks();
    await this.#router.run([...NODE, '-e', SEND_MARK, NET.client4, String(MARK_PORT)]);
    await until('the watch to have seen everything', () => marks() > before);
    return this.#dump.output
      .split('\n')
      .filter((line) => / (IP6?|ARP,) /.test(line) && !line.includes(`.${MARK_PORT}: `) && !OWN_QUESTION.test(line));
  }

  /** Waits until something has left: that the watch sees and the traffic flows. */
  async someOffender(): Promise<void> {
    await until('a packet that leaves outside the tunnel', async () => (await this.offenders()).length > 0, {
      timeoutMs: 30_000,
      intervalMs: 100,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dump.stop();
  }
}

const SEND_MARK = `
const [address, port] = process.argv.slice(1);
const socket = require('node:dgram').createSocket('udp4');
socket.send('mark', Number(port), address, () => socket.close());
`;

async function macBehind(router: Namespace): Promise<string> {
  // The neighbour at the other end of the cable.
  await router.run(['ping', '-c1', '-W2', NET.client4], { anyStatus: true });
  const { stdout } = await router.run(['ip', '-j', 'neighbour', 'show', NET.client4, 'dev', 'cli0']);
  const [entry] = JSON.parse(stdout) as { lladdr?: string }[];
  if (entry?.lladdr === undefined) throw new LabError('the router does not know its client');
  // Marks must get out also when the client has another address.
  const fixed = ['lladdr', entry.lladdr, 'dev', 'cli0', 'nud', 'permanent'];
  await router.run(['ip', 'neighbour', 'replace', NET.client4, ...fixed]);
  return entry.lladdr;
}

export interface LeakRigOptions {
  /** What the gateway pushes; default everything. */
  routes?: readonly string[];
  /** Lines of `[tunnel]` in the client's profile. */
  tunnel?: string;
  /** Default both families. */
  pool?: string;
  /** Lines of the gateway's configuration, in front of its tables. */
  settings?: string;
}

export class LeakRig implements AsyncDisposable {
  readonly rig: Rig;
  readonly client: Namespace;
  readonly router: Namespace;
  readonly gateway: Namespace;
  readonly world: Namespace;
  readonly profile: string;
  readonly state: string;
  /** The folder in which the client's own /etc differs from the machine's. */
  readonly etc: string;
  readonly #gatewayState: string;
  #server: BackgroundProcess | undefined;
  #names: BackgroundProcess | undefined;
  #inside: readonly string[] = [];

  private constructor(rig: Rig, places: Record<'client' | 'router' | 'gateway' | 'world', Namespace>) {
    this.rig = rig;
    this.client = places.client;
    this.router = places.router;
    this.gateway = places.gateway;
    this.world = places.world;
    this.profile = join(rig.folder, 'user.toml');
    this.state = join(rig.folder, 'client');
    this.etc = join(rig.folder, 'etc');
    this.#gatewayState = join(rig.folder, 'gateway');
  }

  static async open(options: LeakRigOptions = {}): Promise<LeakRig> {
    const rig = await Rig.open();
    try {
      const [client, router, gateway, world] = [
        await rig.namespace('client'),
        await rig.namespace('router'),
        await rig.namespace('gateway'),
        await rig.namespace('world'),
      ];
      await rig.link(
        { namespace: client, device: 'out0', addresses: [`${NET.client4}/24`, `${NET.client6}/64`] },
        { namespace: router, device: 'cli0', addresses: [`${NET.router4}/24`, `${NET.router6}/64`] },
      );
      await rig.link(
        { namespace: router, device: 'gw0', addresses: ['198.51.100.1/24', '2001:db8:1::1/64'] },
        { namespace: gateway, device: 'out0', addresses: [`${NET.gateway4}/24`, `${NET.gateway6}/64`] },
      );
      await rig.link(
        { namespace: router, device: 'wan0', addresses: ['203.0.113.1/24', '2001:db8:3::1/64'] },
        { namespace: world, device: 'wan0', addresses: [`${NET.world4}/24`, `${NET.world6}/64`] },
      );
      // The user's alone: the client's own connections must not be taken for them.
      await client.setSysctl('net.ipv4.ip_local_reserved_ports', `${USER_PORTS.first}-${USER_PORTS.last}`);
      for (const name of ['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding']) await router.setSysctl(name, '1');
      const defaults: [Namespace, string, string][] = [
        [client, NET.router4, NET.router6],
        [gateway, '198.51.100.1', '2001:db8:1::1'],
        [world, '203.0.113.1', '2001:db8:3::1'],
      ];
      for (const [where, via4, via6] of defaults) {
        await where.run(['ip', 'route', 'add', 'default', 'via', via4]);
        await where.run(['ip', '-6', 'route', 'add', 'default', 'via', via6]);
      }
      const made = new LeakRig(rig, { client, router, gateway, world });
      await made.#prepare(options);
      return made;
    } catch (error) {
      await rig.close();
      throw error;
    }
  }

  async #prepare({
    routes = ['0.0.0.0/0', '::/0'],
    tunnel = '',
    pool = '10.88.0.0/24,fd88::/64',
    settings = '',
  }: LeakRigOptions): Promise<void> {
    await this.#furnishClient();
    this.#names = await this.router.start(
      this.#program('names', '53', JSON.stringify({ [GATEWAY_NAME]: [NET.gateway4] })),
      {
        ready: /^ready$/m,
        isTyped: true,
      },
    );
    for (const port of ['80', '7']) await this.world.start(this.#program('listen', port), { ready: /^ready$/m });
    const state = ['--state', this.#gatewayState];
    await this.gateway.run([
      ...[COMMAND, 'server', 'init', ...state, '--name', GATEWAY_NAME, '--listen', `[::]:${PORT}`],
      ...['--pool', pool, '--route', routes.join(','), '--dns', NET.inner4],
    ]);
    const file = join(this.#gatewayState, 'server.toml');
    const session = '[session]\npingSeconds = 1\ndeadSeconds = 3\n';
    const text = (await readFile(file, 'utf8')).replace(/^services = .*$/m, 'services = ["53/udp"]');
    await writeFile(file, `${text}\n${settings}\n${session}`);
    await this.startGateway();
    await this.gateway.run([COMMAND, 'user', 'add', 'user', ...state]);
    const { stdout } = await this.gateway.run([COMMAND, 'profile', 'user', ...state]);
    await writeFile(this.profile, `${stdout}${tunnel === '' ? '' : `\n[tunnel]\n${tunnel}\n`}`, { mode: 0o600 });
  }

  /** A mount namespace whose /etc is a layer of its own: what is written there is the client's alone. */
  async #furnishClient(): Promise<void> {
    const [upper, work] = [this.etc, join(this.rig.folder, 'work')];
    await mkdir(upper, { recursive: true });
    await mkdir(work, { recursive: true });
    await writeFile(join(upper, 'resolv.conf'), `# the machine's own\nnameserver ${NET.router4}\noptions edns0\n`);
    const mount = `mount -t overlay overlay -o lowerdir=/etc,upperdir=${upper},workdir=${work} /etc`;
    // As on most machines, mounts are shared with the namespaces that are made of this one; not with that of the machine itself.
    const share = 'mount --make-rshared /';
    const script = `${share} && { umount -l /etc/resolv.conf 2>/dev/null; ${mount}; } && echo ready && exec sleep infinity`;
    const started = await this.client.start(['unshare', '-m', '--propagation', 'private', 'sh', '-c', script], {
      ready: /^ready$/m,
    });
    this.#inside = ['nsenter', '-t', String(started.pid), '-m', '-n', '--'];
  }

  /** The words in front of a command that make it one of the client's. */
  get insideWords(): readonly string[] {
    return this.#inside;
  }

  /** A profile for another user. Returns its path. */
  async secondProfile(user: string): Promise<string> {
    const state = ['--state', this.#gatewayState];
    await this.gateway.run([COMMAND, 'user', 'add', user, ...state]);
    const { stdout } = await this.gateway.run([COMMAND, 'profile', user, ...state]);
    const path = join(this.rig.folder, `${user}.toml`);
    await writeFile(path, stdout, { mode: 0o600 });
    return path;
  }

  /** Runs a command as one of the client's. Any status is fine. */
  inside(argv: readonly string[], options: { timeoutMs?: number } = {}): Promise<RunResult> {
    return this.client.run([...this.#inside, ...argv], { anyStatus: true, ...options });
  }

  startInside(argv: readonly string[], ready = /^up$/m): Promise<BackgroundProcess> {
    return this.client.start([...this.#inside, ...argv], { ready });
  }

  /** One of the client's commands that is typed to. */
  typeInside(argv: readonly string[]): Promise<BackgroundProcess> {
    return this.client.start([...this.#inside, ...argv], { isTyped: true });
  }

  #program(...words: string[]): string[] {
    return [...NODE, CHATTER, ...words];
  }

  /** One of the programs of `chatter.ts`, on the client's side. */
  startChatter(...words: string[]): Promise<BackgroundProcess> {
    return this.client.start(this.#program(...words), { ready: /^ready$/m });
  }

  startOnRouter(...words: string[]): Promise<BackgroundProcess> {
    return this.router.start(this.#program(...words), { ready: /^ready$/m });
  }

  startOnGateway(...words: string[]): Promise<BackgroundProcess> {
    return this.gateway.start(this.#program(...words), { ready: /^ready$/m });
  }

  userTraffic(more: readonly Target[] = []): Promise<BackgroundProcess> {
    return this.startChatter('chatter', JSON.stringify([...USER_TRAFFIC, ...more]));
  }

  watch(): Promise<Watch> {
    return Watch.start(this.router);
  }

  async startGateway(): Promise<void> {
    const argv = [COMMAND, 'server', 'run', '--state', this.#gatewayState];
    this.#server = await this.gateway.start(argv, { ready: /^ready$/m });
  }

  get server(): BackgroundProcess {
    if (this.#server === undefined) throw new LabError('there is no gateway');
    return this.#server;
  }

  /** The router's name server answers no more, or again. */
  async answerNames(answers: boolean): Promise<void> {
    this.#names?.write(answers ? 'answer\n' : 'silent\n');
    const said = answers ? 'now answering' : 'now silent';
    await until(said, () => this.#names?.output.trim().endsWith(said) === true);
  }

  get upArguments(): readonly string[] {
    return [COMMAND, 'client', 'up', this.profile, '--state', this.state];
  }

  /** A verb of `customvpn client`. */
  commandOf(...words: string[]): string[] {
    return [COMMAND, 'client', ...words];
  }

  /** @throws {LabError} when it does not come up */
  async up(...flags: string[]): Promise<void> {
    const { status, stderr } = await this.inside([...this.upArguments, ...flags]);
    if (status !== 0) throw new LabError(`client up: status ${status}\n${stderr}\n${await this.log()}`);
  }

  async down(): Promise<RunResult> {
    return await this.inside([COMMAND, 'client', 'down', '--state', this.state]);
  }

  async status(): Promise<Record<string, unknown> & { pid: number; state: string; device: string }> {
    const { stdout } = await this.inside([COMMAND, 'client', 'status', '--json', '--state', this.state]);
    return JSON.parse(stdout) as Record<string, unknown> & { pid: number; state: string; device: string };
  }

  async stateIs(wanted: string): Promise<void> {
    await until(`the client to be ${wanted}`, async () => (await this.status()).state === wanted, {
      timeoutMs: 30_000,
    });
  }

  /** Whether an address answers the client's pings. */
  async reaches(address: string, ...flags: string[]): Promise<boolean> {
    const argv = ['ping', '-n', '-q', '-c', '3', '-i', '0.1', '-W', '2', ...flags, address];
    return (await this.client.run(argv, { anyStatus: true })).status === 0;
  }

  /** Takes every protection away, as if there had never been one; the client does not notice. */
  async unprotect(): Promise<void> {
    const { stdout } = await this.client.run(['nft', 'list', 'tables']);
    for (const [, table = ''] of stdout.matchAll(/^table (inet customvpn_closed_\w+)$/gm)) {
      await this.client.run(['nft', 'delete', 'table', ...table.split(' ')]);
    }
    for (const family of ['-4', '-6']) {
      for (const { priority } of await this.ownRules(family)) {
        await this.client.run(['ip', family, 'rule', 'delete', 'priority', String(priority)]);
      }
    }
  }

  async ownRules(family: string): Promise<{ priority: number }[]> {
    const { stdout } = await this.client.run(['ip', family, '-j', 'rule', 'show']);
    const rules = JSON.parse(stdout) as { priority: number }[];
    return rules.filter(({ priority }) => priority >= 4200 && priority < 4800);
  }

  /** A command in the client's network, such as one of a DHCP client or a user who moves. */
  ip(...words: string[]): Promise<RunResult> {
    return this.client.run(['ip', ...words]);
  }

  async log(): Promise<string> {
    const folders = await readdir(this.state).catch(() => []);
    const logs = folders.map((folder) => readFile(join(this.state, folder, 'client.log'), 'utf8').catch(() => ''));
    return (await Promise.all(logs)).join('');
  }

  resolvConf(): Promise<string> {
    return readFile(join(this.etc, 'resolv.conf'), 'utf8');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (process.env.CUSTOMVPN_LAB_LOGS !== undefined) {
      process.stderr.write(`${this.#server?.output ?? ''}\n${await this.log()}\n`);
    }
    await this.rig.close();
  }
}
