/**
 * What thousands of sessions cost a gateway: memory and processor time while they do nothing, the same after each has carried
 * something, and how long it takes until all are back that were cut off at once.
 *
 * The clients are small (`population-peer.ts`), and a bare `node:tls` server with as many connections stands beside the
 * gateway in the same run. Sessions come from many addresses, as clients do, and every limit of the gateway stands. Memory is what the server's processes hold more than with the first few connections, garbage not yet
 * collected included: what a process needs to begin with is no matter of how many there are.
 */

import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { COMMAND } from '../../lab/command.ts';
import { type BackgroundProcess, cpuSeconds, LabError, residentBytes, run, until } from '../../lab/process.ts';
import { type Namespace, Rig } from '../../lab/rig.ts';
import { measureRoundTrips } from '../measure.ts';
import type { Outcome } from '../population-peer.ts';
import { describeMachine, type Report, type Result, rounded } from '../report.ts';
import { type BenchNetwork, INNER_SERVER, OUTER_SERVER, openNetwork } from '../system.ts';

export interface PopulationEffort {
  /** Sessions that do nothing. */
  idle: number;
  /** Seconds over which their processor time is taken. */
  idleSeconds: number;
  /** Sessions that come back at once. */
  storm: number;
}

export const FULL_POPULATION_EFFORT: PopulationEffort = { idle: 10_000, idleSeconds: 60, storm: 5000 };
export const QUICK_POPULATION_EFFORT: PopulationEffort = { idle: 1000, idleSeconds: 30, storm: 500 };

const ROOT = join(import.meta.dirname, '../../..');
const PEER = [process.execPath, '--conditions=customvpn-source', join(ROOT, 'test/bench/population-peer.ts')];
const BARE = 'node:tls';
const [PORT, BARE_PORT] = [8443, 9443];
const CARRIED_BYTES = 1_000_000;
/** After which what a session has carried must not show. */
const COOLING_MS = 60_000;
/** After its last login, until a gateway is at rest. */
const REST_MS = 5000;
const PINGS = 400;
/** What one counts for that is not answered while all come back. */
const LOST_MS = 1000;
/** Connections that a server has before its memory is looked at. */
const FIRST = 200;
/** Where sessions come from. */
const SOURCES = Array.from({ length: 200 }, (_, index) => `198.51.100.${index + 10}`);

/** What one server holds and uses. */
interface Cost {
  bytesPerConnection: number;
  /** Part of one processor, while nothing is carried. */
  busy: number;
  bytesAfterCarrying: number;
}

/** Opens so many connections, those of sessions by the devices from `first` on. */
type Opener = (count: number, first: number) => Promise<BackgroundProcess>;

/** Measures what sessions cost. @param progress gets one line at a time */
export async function measureIdle(
  effort: PopulationEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  return await measured(effort, progress, (bench) => bench.idle());
}

/** Measures how sessions come back. @param progress gets one line at a time */
export async function measureReconnect(
  effort: PopulationEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  return await measured(effort, progress, (bench) => bench.storm());
}

async function measured(
  effort: PopulationEffort,
  progress: (line: string) => void,
  measure: (bench: PopulationBench) => Promise<Result[]>,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using rig = await Rig.open();
  const network = await openNetwork(rig, 'many', 'bbr');
  for (const source of SOURCES) await network.client.run(['ip', 'addr', 'add', `${source}/24`, 'dev', 'out0']);
  const results = await measure(new PopulationBench(network, effort, progress));
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as { version: string };
  const versions = { customvpn: version, [BARE]: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}` };
  return { report: { machine, versions, rounds: 1, results }, measured: true };
}

class PopulationBench {
  readonly #network: BenchNetwork;
  readonly #effort: PopulationEffort;
  readonly #progress: (line: string) => void;
  readonly #state: string;
  readonly #keys: string;
  readonly #profile: string;

  constructor(network: BenchNetwork, effort: PopulationEffort, progress: (line: string) => void) {
    this.#network = network;
    this.#effort = effort;
    this.#progress = progress;
    this.#state = join(network.folder, 'gateway');
    this.#keys = join(network.folder, 'keys');
    this.#profile = join(network.folder, 'bench.profile');
  }

  async idle(): Promise<Result[]> {
    await this.#prepare();
    const { idle: count } = this.#effort;
    let theirs: Cost;
    {
      await using bare = await this.#startBare();
      theirs = await this.#cost(BARE, bare, (number) => this.#holdTls(number));
    }
    await using gateway = await this.#startGateway();
    const ours = await this.#cost('customvpn', gateway, (number, first) => this.#hold(number, first));
    const kib = (bytes: number): number => bytes / 1024;
    return [
      this.#result(`memory of an idle session, of ${count}`, 'KiB', kib(ours.bytesPerConnection), {
        [BARE]: kib(theirs.bytesPerConnection),
        most: 64,
      }),
      this.#result(`processor time of ${count} idle sessions`, '% of one', ours.busy * 100, {
        [BARE]: theirs.busy * 100,
        most: 10 * (count / FULL_POPULATION_EFFORT.idle),
      }),
      this.#result('memory of a session that has carried 1 MB a minute ago', 'KiB', kib(ours.bytesAfterCarrying), {
        [BARE]: kib(theirs.bytesAfterCarrying),
        most: 80,
      }),
    ];
  }

  /** All are cut off at once and come back at once, while a client of another device is there and pings. */
  async storm(): Promise<Result[]> {
    await this.#prepare();
    const { storm: count } = this.#effort;
    const { client } = this.#network;
    let bareSeconds: number;
    {
      await using _bare = await this.#startBare();
      await using holder = await this.#holdTls(count);
      bareSeconds = (await this.#command(holder, 'reconnect')).seconds;
    }
    await using _gateway = await this.#startGateway();
    const live = join(this.#network.folder, 'live');
    await using holder = await this.#hold(count, 0);
    await client.run([COMMAND, 'client', 'up', await this.#makeProfile('live', `${live}.profile`), '--state', live]);
    const calm = await measureRoundTrips(client, INNER_SERVER, PINGS);
    const coming = this.#command(holder, 'reconnect');
    void coming.catch(() => {});
    const stormy = await this.#tripsUntil(coming, client);
    const back = await coming;
    await client.run([COMMAND, 'client', 'down', '--state', live]);
    this.#progress(
      `storm of ${count}: ${rounded(back.seconds)} s (bare ${rounded(bareSeconds)} s), ${back.failed} refused, round trip p99 ${rounded(calm.p99)} → ${rounded(stormy)} ms`,
    );
    return [
      this.#result(`until the last of ${count} is back that were cut off at once`, 's', back.seconds, {
        [BARE]: bareSeconds,
      }),
      this.#result(`refused, of ${count} that come back at once`, 'sessions', back.failed, { most: 0 }),
      this.#result('round trip p99 of a live session meanwhile', 'ms', stormy, { idle: calm.p99, most: 3 * calm.p99 }),
    ];
  }

  /** The worst p99 of runs of pings, until the others are back. */
  async #tripsUntil(coming: Promise<unknown>, client: Namespace): Promise<number> {
    let isOver = false;
    void coming.then(
      () => (isOver = true),
      () => (isOver = true),
    );
    let worst = 0;
    do worst = Math.max(worst, (await measureRoundTrips(client, INNER_SERVER, PINGS, { lostMs: LOST_MS })).p99);
    while (!isOver);
    return worst;
  }

  async #cost(name: string, server: BackgroundProcess, open: Opener): Promise<Cost> {
    const { idle, idleSeconds } = this.#effort;
    await using _first = await open(FIRST, 0);
    await delay(REST_MS);
    const before = residentBytes([server.pid]);
    await using holder = await open(idle, FIRST);
    const held = await this.#outcome(holder, 'hold');
    const perConnection = (): number => (residentBytes([server.pid]) - before) / held.count;
    await delay(REST_MS);
    const used = cpuSeconds([server.pid]);
    await delay(idleSeconds * 1000);
    const busy = (cpuSeconds([server.pid]) - used) / idleSeconds;
    const bytesPerConnection = perConnection();
    await this.#command(holder, `carry ${CARRIED_BYTES / 2}`);
    const bytesAtOnce = perConnection();
    await delay(COOLING_MS);
    const bytesAfterCarrying = perConnection();
    const inKib = (bytes: number): string => `${rounded(bytes / 1024)} KiB`;
    this.#progress(
      `${name}: ${held.count} connections, ${inKib(bytesPerConnection)} each, ${rounded(busy * 100)} % of a processor; after 1 MB ${inKib(bytesAtOnce)}, a minute later ${inKib(bytesAfterCarrying)}`,
    );
    return { bytesPerConnection, busy, bytesAfterCarrying };
  }

  #hold(count: number, first: number): Promise<BackgroundProcess> {
    return this.#startHolder(['hold', this.#profile, this.#keys, String(count), String(first), ...SOURCES]);
  }

  #holdTls(count: number): Promise<BackgroundProcess> {
    const ca = join(this.#state, 'certs/ca.pem');
    return this.#startHolder(['hold-tls', OUTER_SERVER, String(BARE_PORT), ca, String(count)]);
  }

  /** Starts one and waits until all its connections stand. */
  async #startHolder(words: readonly string[]): Promise<BackgroundProcess> {
    const holder = await this.#network.client.start([...PEER, ...words], { isTyped: true });
    const { failed, error, seconds, count } = await this.#outcome(holder, 'hold');
    if (failed > 0) throw new LabError(`${failed} connections could not be opened: ${error}`);
    this.#progress(`${words[0]}: ${count} in ${rounded(seconds)} s`);
    return holder;
  }

  async #command(holder: BackgroundProcess, line: string): Promise<Outcome> {
    const said = holder.output.length;
    holder.write(`${line}\n`);
    const outcome = await this.#outcome(holder, line.split(' ')[0] ?? '', said);
    if (outcome.failed > 0) this.#progress(`${line}: ${outcome.failed} failed: ${outcome.error}`);
    return outcome;
  }

  async #outcome(holder: BackgroundProcess, done: string, from = 0): Promise<Outcome> {
    const pattern = new RegExp(`^\\{"done":"${done}".*\\}$`, 'm');
    const found = (): string | undefined => pattern.exec(holder.output.slice(from))?.[0];
    await until(
      `the outcome of ${done}`,
      () => {
        if (!holder.running) throw new LabError(`the clients ended:\n${holder.output.slice(-2000)}`);
        return found() !== undefined;
      },
      { timeoutMs: 600_000, intervalMs: 100 },
    );
    return JSON.parse(found() ?? '{}') as Outcome;
  }

  #startGateway(): Promise<BackgroundProcess> {
    return this.#network.server.start([COMMAND, 'server', 'run', '--state', this.#state], { ready: /^ready$/m });
  }

  #startBare(): Promise<BackgroundProcess> {
    const files = ['server.pem', 'server.key'].map((file) => join(this.#state, 'certs', file));
    return this.#network.server.start([...PEER, 'serve-tls', OUTER_SERVER, String(BARE_PORT), ...files], {
      ready: /^ready$/m,
    });
  }

  async #makeProfile(user: string, file: string): Promise<string> {
    await run([COMMAND, 'profile', user, '--out', file, '--state', this.#state]);
    return file;
  }

  async #prepare(): Promise<void> {
    const count = Math.max(this.#effort.idle + FIRST, this.#effort.storm);
    const where = ['--name', OUTER_SERVER, '--listen', `${OUTER_SERVER}:${PORT}`, '--pool', '10.88.0.0/16'];
    await run([COMMAND, 'server', 'init', '--state', this.#state, ...where]);
    const file = join(this.#state, 'server.toml');
    const text = (await readFile(file, 'utf8')).split('\n[data]')[0] ?? '';
    const tables = [
      '[data]\nmode = "inline"',
      `[limits]\nsessions = ${count + 10}`,
      '[session]\npingSeconds = 25\ndeadSeconds = 80',
      '[login]\nsteps = ["device"]',
    ];
    await writeFile(file, `${text}\n${tables.join('\n')}\n`);
    await run([COMMAND, 'user', 'add', 'bench', '--state', this.#state]);
    await run([COMMAND, 'user', 'add', 'live', '--state', this.#state]);
    await this.#makeProfile('bench', this.#profile);
    await mkdir(this.#keys, { mode: 0o700 });
    await run([...PEER, 'enrol', this.#state, this.#keys, 'bench', String(count)], { timeoutMs: 300_000 });
    this.#progress(`${count} devices are enrolled`);
  }

  /** A figure of one run, judged by a bound of its own. */
  #result(name: string, unit: string, value: number, { most, ...peers }: Record<string, number>): Result {
    return {
      area: 'gateway',
      name,
      unit,
      ours: rounded(value),
      spread: { low: rounded(value), high: rounded(value), ratios: [] },
      peers: Object.fromEntries(Object.entries(peers).map(([peer, theirs]) => [peer, rounded(theirs)])),
      goal: most === undefined ? null : `≤ ${rounded(most)} ${unit}`,
      met: most !== undefined && value <= most,
    };
  }
}
