/**
 * `client proxy` beside `ssh -D`: what one and 64 streams carry, and when the first byte of a stream comes.
 *
 * Each has a host for itself, where proxy, far end and the program that fetches run, so that everything but the last leg is
 * loopback; what is fetched comes from another host over one link. Both run in turn, in the same minutes, warm. sshd has a
 * port, keys and a configuration of its own.
 */

import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { COMMAND } from '../lab/command.ts';
import { type BackgroundProcess, run } from '../lab/process.ts';
import { hasTool, Rig } from '../lab/rig.ts';
import type { Report } from './report.ts';
import { OURS, Survey } from './survey.ts';
import {
  type BenchNetwork,
  OUTER_CLIENT,
  OUTER_SERVER,
  openNetwork,
  type System,
  stopAll,
  type TunnelEnds,
} from './system.ts';
import { CustomVpn } from './systems/customvpn.ts';

export interface ProxyEffort {
  rounds: number;
  /** Of one stream, and of each of 64. */
  oneBytes: number;
  manyBytes: number;
  /** First bytes a round. */
  tries: number;
}

export const FULL_PROXY_EFFORT: ProxyEffort = { rounds: 12, oneBytes: 512e6, manyBytes: 8e6, tries: 300 };
export const QUICK_PROXY_EFFORT: ProxyEffort = { rounds: 3, oneBytes: 256e6, manyBytes: 4e6, tries: 100 };

const PEER = join(import.meta.dirname, 'stream-peer.ts');
const SSH = 'ssh -D';
const STREAMS = 64;
const SOURCE_PORT = 7000;
const PROXY_PORT = 1080;
const GATEWAY_PORT = 8443;
const SSH_PORT = 2222;

/** How much each is fetched at first, so that no code is cold. */
const WARM_UP_BYTES = 64e6;

abstract class ProxySystem implements System {
  abstract readonly name: string;
  server: readonly BackgroundProcess[] = [];
  client: readonly BackgroundProcess[] = [];

  abstract missing(): Promise<string | undefined>;
  abstract version(): Promise<string>;
  abstract up(network: BenchNetwork): Promise<TunnelEnds>;

  async down(): Promise<void> {
    await stopAll(...this.client);
    await stopAll(...this.server);
    this.server = this.client = [];
  }
}

class OwnProxy extends ProxySystem {
  readonly name = OURS;
  #profile: string | undefined;

  async missing(): Promise<undefined> {}

  async version(): Promise<string> {
    return await new CustomVpn({ plain: false }).version();
  }

  async up({ server, folder }: BenchNetwork): Promise<TunnelEnds> {
    const state = join(folder, 'gateway');
    if (this.#profile === undefined) {
      this.#profile = join(folder, 'bench.profile');
      const where = ['--name', '127.0.0.1', '--listen', `127.0.0.1:${GATEWAY_PORT}`, '--route', `${OUTER_CLIENT}/32`];
      await run([COMMAND, 'server', 'init', '--state', state, ...where]);
      await run([COMMAND, 'user', 'add', 'bench', '--state', state]);
      await run([COMMAND, 'profile', 'bench', '--out', this.#profile, '--state', state]);
    }
    this.server = [await server.start([COMMAND, 'server', 'run', '--state', state], { ready: /^ready$/m })];
    const argv = [COMMAND, 'client', 'proxy', this.#profile, '--state', join(folder, 'client')];
    this.client = [await server.start([...argv, '--socks', `127.0.0.1:${PROXY_PORT}`], { ready: /^ready$/m })];
    return { server: '127.0.0.1', firstPingMs: 0 };
  }
}

class SshProxy extends ProxySystem {
  readonly name = SSH;
  #hasMadeFolder = false;

  async missing(): Promise<string | undefined> {
    const lacking = ['/usr/sbin/sshd', 'ssh', 'ssh-keygen'].filter((tool) => !hasTool(tool.replace(/^.*\//, '')));
    return lacking.length === 0 ? undefined : `${lacking.join(', ')}: apt-get install openssh-server openssh-client`;
  }

  async version(): Promise<string> {
    return (await run(['ssh', '-V'])).stderr.trim();
  }

  override async down(): Promise<void> {
    await super.down();
    if (this.#hasMadeFolder) rmdirSync(SSHD_FOLDER);
    this.#hasMadeFolder = false;
  }

  async up({ server, folder }: BenchNetwork): Promise<TunnelEnds> {
    const at = (name: string) => join(folder, name);
    const config = at('sshd_config');
    for (const key of ['host_key', 'user_key']) {
      await run(['rm', '-f', at(key), at(`${key}.pub`)]);
      await run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', at(key)]);
    }
    await run(['cp', at('user_key.pub'), at('authorized_keys')]);
    const lines = [
      `ListenAddress 127.0.0.1:${SSH_PORT}`,
      `HostKey ${at('host_key')}`,
      `AuthorizedKeysFile ${at('authorized_keys')}`,
      `PidFile ${at('sshd.pid')}`,
      'PermitRootLogin prohibit-password',
      'StrictModes no',
      'UsePAM no',
      'UseDNS no',
    ];
    writeFileSync(config, `${lines.join('\n')}\n`);
    // Where it locks its unprivileged half in; empty.
    this.#hasMadeFolder ||= mkdirSync(SSHD_FOLDER, { recursive: true, mode: 0o755 }) !== undefined;
    this.server = [await server.start(['/usr/sbin/sshd', '-D', '-e', '-f', config], { ready: /Server listening/ })];
    const known = ['-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR'];
    const argv = [
      'ssh',
      '-F',
      'none',
      '-N',
      '-D',
      `127.0.0.1:${PROXY_PORT}`,
      '-p',
      String(SSH_PORT),
      '-i',
      at('user_key'),
    ];
    const listening = ['ss', '-Hltn', `sport = :${PROXY_PORT}`];
    this.client = [
      await server.start([...argv, ...known, 'root@127.0.0.1'], {
        ready: async () => (await server.run(listening)).stdout.trim() !== '',
      }),
    ];
    return { server: '127.0.0.1', firstPingMs: 0 };
  }
}

const SSHD_FOLDER = '/run/sshd';

/** Measures. @param progress gets one line at a time */
export async function measureProxy(
  { rounds, oneBytes, manyBytes, tries }: ProxyEffort,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  await using rig = await Rig.open();
  const survey = new Survey<BenchNetwork>(rig, rounds, progress);
  await survey.open([new OwnProxy(), new SshProxy()], (where, label) => openNetwork(where, label, 'bbr'));
  await survey.run(async ({ network, up, note }) => {
    await up();
    await using _source = await network.client.start([process.execPath, PEER, 'serve', String(SOURCE_PORT)], {
      ready: /listening/,
    });
    const peer = async <T>(...words: (string | number)[]): Promise<T> => {
      const [mode = '', ...rest] = words.map(String);
      const argv = [process.execPath, PEER, mode, String(PROXY_PORT), OUTER_CLIENT, String(SOURCE_PORT), ...rest];
      return JSON.parse((await network.server.run(argv, { timeoutMs: 120_000 })).stdout) as T;
    };
    await peer('fetch', 4, WARM_UP_BYTES / 4);
    await peer('first', tries);
    note('one', (await peer<{ bits: number }>('fetch', 1, oneBytes)).bits / 1e9, 'Gbit/s');
    note('many', (await peer<{ bits: number }>('fetch', STREAMS, manyBytes)).bits / 1e9, 'Gbit/s');
    const { ms } = await peer<{ ms: number[] }>('first', tries);
    note('first', middleOf(ms), 'ms');
  });
  for (const line of await rig.close()) progress(`left behind: ${line}`);
  const figure = (name: string, unit: string, key: string, relation: '≥' | '≤', factor: number) =>
    survey.result('client', { name, unit, key, goals: [{ peer: SSH, relation, factor }] });
  return survey.finish(
    [
      figure('proxy: one stream', 'Gbit/s', 'one', '≥', 0.8),
      figure(`proxy: ${STREAMS} streams`, 'Gbit/s', 'many', '≥', 1.3),
      figure('proxy: first byte, p50', 'ms', 'first', '≤', 1.3),
    ],
    { rig: `loopback, source at ${OUTER_CLIENT} behind ${OUTER_SERVER}` },
  );
}

function middleOf(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}
