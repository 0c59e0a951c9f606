/**
 * The area `login`: how many logins a gateway takes and what one costs, beside a bare TLS handshake in the same run; and that
 * passwords, which are dear to check by design, delay neither other logins nor packets.
 *
 * One gateway with data inline, so that a login is one TLS connection, and a bare `node:tls` server with the same certificate
 * and settings in the same namespace, each on the first processor; the load comes from another namespace and, where there are
 * any, the other processors. Rounds are in ABBA order. A client of either costs more than its server, so that on a small
 * machine the rate by the clock is the clients': the goal is on what one processor of the server could do, were it busy all
 * the time. Then a gateway that asks some users for passwords: round trips of a live session and the rate of token logins,
 * idle and under a storm of passwords.
 */

import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { COMMAND } from '../lab/command.ts';
import { type BackgroundProcess, cpuSeconds, run } from '../lab/process.ts';
import { Rig } from '../lab/rig.ts';
import type { LoadResult } from './login-peer.ts';
import { measureRoundTrips } from './measure.ts';
import { describeMachine, type Report, type Result, rounded, summarise } from './report.ts';
import { formatGoal, type Goal, judge, median, pairedRatios, quantile } from './statistics.ts';
import { type BenchNetwork, INNER_SERVER, OUTER_SERVER, openNetwork } from './system.ts';

const ROOT = join(import.meta.dirname, '../..');
const PEER = [process.execPath, '--conditions=customvpn-source', join(ROOT, 'test/bench/login-peer.ts')];
const PORT = 8443;
const BARE_PORT = 9443;
const BARE = 'node:tls';
const IDLE = 'idle';
const PASSWORD = 'correct horse battery staple';
/** At a time: enough to keep the server busy, few enough for one client process. */
const PARALLEL = 16;
const STORM_PARALLEL = 16;
/** A round's: enough that p99 is not one of them. */
const PINGS = 1000;
/** Of the servers, while rates are measured; the load has the others. */
const SERVER_PROCESSOR = 0;

const hasSeveral = availableParallelism() > 1;
const ON_ONE_PROCESSOR = hasSeveral ? ['taskset', '-c', String(SERVER_PROCESSOR)] : [];
const ON_THE_OTHERS = hasSeveral ? ['taskset', '-c', `${SERVER_PROCESSOR + 1}-${availableParallelism() - 1}`] : [];

export interface LoginEffort {
  pairs: number;
  seconds: number;
}
export const FULL_LOGIN_EFFORT: LoginEffort = { pairs: 12, seconds: 5 };
export const QUICK_LOGIN_EFFORT: LoginEffort = { pairs: 4, seconds: 3 };

/** What one load found. */
interface Sample {
  perSecond: number;
  cpuMs: number;
  /** Part of one processor. */
  busy: number;
}

/** Round trips of one round, milliseconds. */
type Trips = Awaited<ReturnType<typeof measureRoundTrips>>;

/** Measures. @param progress gets one line at a time */
export async function measureLogin(
  effort: LoginEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const machine = describeMachine();
  await using rig = await Rig.open();
  const network = await openNetwork(rig, 'login', 'reno');
  const bench = new LoginBench(network, effort, progress);
  const results = [...(await bench.rates()), ...(await bench.storm())];
  const left = await rig.close();
  for (const line of left) progress(`left behind: ${line}`);
  const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as { version: string };
  const versions = { customvpn: version, [BARE]: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}` };
  return { report: { machine, versions, rounds: effort.pairs, results }, measured: true };
}

class LoginBench {
  readonly #network: BenchNetwork;
  readonly #effort: LoginEffort;
  readonly #progress: (line: string) => void;
  readonly #state: string;
  readonly #keys: string;
  readonly #people: string;
  #token = '';
  #profile = '';

  constructor(network: BenchNetwork, effort: LoginEffort, progress: (line: string) => void) {
    this.#network = network;
    this.#effort = effort;
    this.#progress = progress;
    this.#state = join(network.folder, 'gateway');
    this.#keys = join(network.folder, 'keys');
    this.#people = join(network.folder, 'people');
  }

  /** Logins by token and device beside bare handshakes. */
  async rates(): Promise<Result[]> {
    const { server } = this.#network;
    await this.#prepare();
    await using gateway = await this.#start(ON_ONE_PROCESSOR);
    await this.#enrol('bench', this.#keys);
    const files = ['server.pem', 'server.key'].map((file) => join(this.#state, 'certs', file));
    await using bare = await server.start(
      [...ON_ONE_PROCESSOR, ...PEER, 'serve-tls', OUTER_SERVER, String(BARE_PORT), ...files],
      {
        ready: /^ready$/m,
      },
    );
    const ours: Sample[] = [];
    const theirs: Sample[] = [];
    // Cold code is not what a gateway runs.
    for (let round = 0; round < 2; round += 1) {
      await this.#logins(gateway);
      await this.#handshakes(bare);
    }
    for (let pair = 0; pair < this.#effort.pairs; pair += 1) {
      const turns = [
        async () => void ours.push(await this.#logins(gateway)),
        async () => void theirs.push(await this.#handshakes(bare)),
      ];
      if (pair % 2 === 1) turns.reverse();
      for (const turn of turns) await turn();
      const [own, other] = [ours[pair], theirs[pair]];
      this.#progress(`pair ${pair + 1}/${this.#effort.pairs}: ${describe('logins', own)} | ${describe(BARE, other)}`);
    }
    const goal: Goal = { peer: BARE, relation: '≥', factor: 0.6 };
    const cost: Goal = { peer: BARE, relation: '≤', factor: 1.67 };
    const perProcessor = ({ cpuMs }: Sample): number => 1000 / cpuMs;
    return [
      result('logins by token and device, of one processor', '1/s', BARE, ours, theirs, perProcessor, goal),
      result('server cpu per login', 'ms', BARE, ours, theirs, ({ cpuMs }) => cpuMs, cost),
      result('logins by the clock', '1/s', BARE, ours, theirs, ({ perSecond }) => perSecond),
      result('server busy meanwhile', '%', BARE, ours, theirs, ({ busy }) => busy * 100),
    ];
  }

  /** Round trips of a live session and token logins, idle and while many people send passwords. */
  async storm(): Promise<Result[]> {
    const { client } = this.#network;
    await this.#configure(
      '\n[login]\nsteps = ["device", "token"]\n[login.groups.people]\nsteps = ["device", "password"]\n',
    );
    await using gateway = await this.#start();
    await this.#enrol('person', this.#people, { BENCH_PASSWORD: PASSWORD });
    const [state, profile] = [join(this.#network.folder, 'live'), await this.#newProfile('person', 'live')];
    await client.run([COMMAND, 'client', 'up', profile, '--state', state, '--password-stdin'], {
      input: `${PASSWORD}\n`,
    });
    const calm: Sample[] = [];
    const stormy: Sample[] = [];
    const calmTrips: Trips[] = [];
    const stormyTrips: Trips[] = [];
    const trip = async (into: Trips[]): Promise<void> =>
      void into.push(await measureRoundTrips(client, INNER_SERVER, PINGS));
    for (let pair = 0; pair < Math.max(3, this.#effort.pairs); pair += 1) {
      const peaceful = async (): Promise<void> => {
        await trip(calmTrips);
        calm.push(await this.#logins(gateway));
      };
      const attacked = async (): Promise<void> => {
        // Longer than what is measured beside it, which ends it.
        const words = ['logins', this.#people, this.#profile, '600', String(STORM_PARALLEL)];
        await using _storm = await client.start([...PEER, ...words], {
          env: { BENCH_PASSWORD: PASSWORD },
          ready: /^ready$/m,
        });
        await trip(stormyTrips);
        stormy.push(await this.#logins(gateway));
      };
      const turns = pair % 2 === 1 ? [attacked, peaceful] : [peaceful, attacked];
      for (const turn of turns) await turn();
      const trips = [calmTrips[pair], stormyTrips[pair]].map((one) =>
        one === undefined ? '–' : `${rounded(one.p50)}, ${rounded(one.p99)}`,
      );
      this.#progress(
        `storm ${pair + 1}: round trip p50, p99 ${trips.join(' → ')} ms; ${describe('calm', calm[pair])} | ${describe('storm', stormy[pair])}`,
      );
    }
    await client.run([COMMAND, 'client', 'down', '--state', state]);
    const tripGoal: Goal = { peer: IDLE, relation: '≤', factor: 2 };
    return [
      result('round trip p99 in a password storm', 'ms', IDLE, stormyTrips, calmTrips, ({ p99 }) => p99, tripGoal),
      result('round trip p50 in a password storm', 'ms', IDLE, stormyTrips, calmTrips, ({ p50 }) => p50),
      result('logins by token in a password storm', '1/s', IDLE, stormy, calm, ({ perSecond }) => perSecond),
    ];
  }

  async #prepare(): Promise<void> {
    const where = ['--name', OUTER_SERVER, '--listen', `${OUTER_SERVER}:${PORT}`, '--pool', '10.88.0.0/16'];
    await run([COMMAND, 'server', 'init', '--state', this.#state, ...where]);
    await this.#configure('\n[login]\nsteps = ["device", "token"]\n');
    await run([COMMAND, 'user', 'add', 'bench', '--state', this.#state]);
    await run([COMMAND, 'user', 'add', 'person', '--group', 'people', '--password-stdin', '--state', this.#state], {
      input: `${PASSWORD}\n`,
    });
    const issue = ['user', 'token', 'bench', '--name', 'bench', '--json', '--state', this.#state];
    this.#token = (JSON.parse((await run([COMMAND, ...issue])).stdout) as { token: string }).token;
    for (const folder of [this.#keys, this.#people]) await mkdir(folder, { mode: 0o700 });
  }

  /** What `init` wrote, with data inline, room for the devices, and these tables. */
  async #configure(tables: string): Promise<void> {
    const file = join(this.#state, 'server.toml');
    const text = (await readFile(file, 'utf8')).split('\n[data]')[0] ?? '';
    await writeFile(file, `${text}\n[data]\nmode = "inline"\n[accounts]\ndevicesPerUser = 100\n${tables}`);
  }

  #start(where: readonly string[] = []): Promise<BackgroundProcess> {
    return this.#network.server.start([...where, COMMAND, 'server', 'run', '--state', this.#state], {
      ready: /^ready$/m,
    });
  }

  async #newProfile(user: string, name: string): Promise<string> {
    const file = join(this.#network.folder, `${user}-${name}.toml`);
    await run([COMMAND, 'profile', user, '--out', file, '--state', this.#state]);
    return file;
  }

  /** Enrols as many devices as there are logins at a time. */
  async #enrol(user: string, keys: string, env: Record<string, string> = {}): Promise<void> {
    const files: string[] = [];
    for (let index = 0; index < PARALLEL; index += 1) files.push(await this.#newProfile(user, String(index)));
    await this.#network.client.run([...PEER, 'enrol', keys, ...files], { env });
    this.#profile = files[0] ?? '';
    const made = (await readdir(keys)).length;
    this.#progress(`${made} devices of ${user} are enrolled`);
  }

  async #logins(server: BackgroundProcess): Promise<Sample> {
    const words = ['logins', this.#keys, this.#profile, String(this.#effort.seconds), String(PARALLEL)];
    return await this.#load(server, words, { BENCH_TOKEN: this.#token });
  }

  async #handshakes(server: BackgroundProcess): Promise<Sample> {
    const ca = join(this.#state, 'certs/ca.pem');
    const words = ['tls', OUTER_SERVER, String(BARE_PORT), ca, String(this.#effort.seconds), String(PARALLEL)];
    return await this.#load(server, words);
  }

  async #load(server: BackgroundProcess, words: string[], env: Record<string, string> = {}): Promise<Sample> {
    const before = cpuSeconds([server.pid]);
    const argv = [...ON_THE_OTHERS, ...PEER, ...words];
    const { stdout } = await this.#network.client.run(argv, { env, timeoutMs: 120_000 });
    const used = cpuSeconds([server.pid]) - before;
    const { count, failed, seconds } = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as LoadResult;
    if (failed > 0) this.#progress(`${failed} of ${count + failed} failed`);
    return { perSecond: count / seconds, cpuMs: (used * 1000) / count, busy: used / seconds };
  }
}

function describe(name: string, sample: Sample | undefined): string {
  if (sample === undefined) return `${name} –`;
  const { perSecond, cpuMs, busy } = sample;
  return `${name} ${rounded(perSecond)}/s ${rounded(cpuMs)} ms, ${Math.round(busy * 100)} % busy`;
}

function result<T>(
  name: string,
  unit: string,
  peer: string,
  ours: readonly T[],
  theirs: readonly T[],
  value: (sample: T) => number,
  goal?: Goal,
): Result {
  const [own, other] = [ours.map(value), theirs.map(value)];
  const [low, high] = [quantile(own, 0), quantile(own, 1)].map((bound) =>
    bound === undefined ? null : rounded(bound),
  );
  const ratios = goal === undefined ? [] : [summarise(judge(pairedRatios(own, other), goal), formatGoal(goal))];
  const medians = [median(own), median(other)].map((middle) => (middle === undefined ? null : rounded(middle)));
  return {
    area: 'login',
    name,
    unit,
    ours: medians[0] ?? null,
    spread: { low: low ?? null, high: high ?? null, ratios },
    peers: { [peer]: medians[1] ?? null },
    goal: goal === undefined ? null : formatGoal(goal),
    met: ratios.length > 0 && ratios.every(({ verdict }) => verdict === 'met'),
  };
}
