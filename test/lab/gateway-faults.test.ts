/**
 * What a gateway does when its own machine fails it: no room on the disk, no descriptor left, a process killed in the middle of
 * something. Whoever has a session keeps it, whoever comes is told or waits, and afterwards all is as before.
 */

import assert from 'node:assert/strict';
import { closeSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { BEHIND, type Client, changesSince, Deployment, labOptions, PORT, peer, startPeer } from './deployment.ts';
import { type BackgroundProcess, residentBytes, until } from './process.ts';

const TOOLS = { ss: 'iproute2', prlimit: 'util-linux' };
const WITHIN = { timeoutMs: 60_000 };
const ECHO_PORT = '7001';
const CYCLE_PEER = [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  '--conditions=customvpn-source',
  join(import.meta.dirname, 'cycle-peer.ts'),
];

interface Part {
  readonly pid: number;
  readonly name: 'auth' | 'worker';
  /** Which worker it is. */
  readonly worker: number | undefined;
}

/** Auth and the workers that serve, without the spare one. */
function partsOf(supervisor: number): Part[] {
  const children = readFileSync(`/proc/${supervisor}/task/${supervisor}/children`, 'utf8').trim().split(' ');
  return children.map(Number).flatMap((pid) => {
    const command = commandOf(pid);
    const [, name, number] = /gateway\/(auth|worker)\/main\.[jt]s(?:[\0 ](\d+))?/.exec(command) ?? [];
    if (name !== 'auth' && name !== 'worker') return [];
    return [{ pid, name, worker: number === undefined ? undefined : Number(number) }];
  });
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}

function descriptorsOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`);
}

describe('a gateway whose machine fails it', labOptions(TOOLS), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;

  before(async () => {
    deployment = await Deployment.open({
      clients: 2,
      workers: 2,
      diskMegabytes: 24,
      settings: '[session]\nrekeySeconds = 2\n',
    });
    const [one, two] = deployment.clients;
    assert.ok(one !== undefined && two !== undefined);
    first = one;
    second = two;
    await deployment.run();
    for (const client of [first, second]) await deployment.enrol(client);
    await startPeer(deployment.behind, 'serve', ECHO_PORT, '::');
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const parts = () => partsOf(deployment.server.pid);
  const auth = () => parts().find(({ name }) => name === 'auth') ?? assert.fail('there is no auth');
  const workers = () => parts().filter(({ name }) => name === 'worker');
  const isSteady = () => workers().length === 2 && deployment.server.output.includes('a spare worker stands by');

  /** Processes of the gateway that have a connection with a client, with how many; `bytes`: that it has sent at least so many on each. */
  async function servers(client: Client, bytes = 0): Promise<Map<number, number>> {
    const filter = `( sport = :${PORT} and dst = ${client.outer.client4} )`;
    const { stdout } = await deployment.gateway.run(['ss', '-HtnpiO', 'state', 'established', filter]);
    const found = new Map<number, number>();
    for (const line of stdout.split('\n')) {
      const sent = Number(/bytes_sent:(\d+)/.exec(line)?.[1] ?? 0);
      if (line === '' || sent < bytes) continue;
      for (const pid of new Set([...line.matchAll(/pid=(\d+)/g)].map(([, text]) => Number(text)))) {
        found.set(pid, (found.get(pid) ?? 0) + 1);
      }
    }
    return found;
  }

  async function fill(): Promise<string> {
    const path = join(deployment.state, 'ballast');
    const fd = openSync(path, 'w');
    const block = Buffer.alloc(64 * 1024);
    for (let size = block.length; size >= 1; ) {
      try {
        writeSync(fd, block, 0, size);
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC');
        size = Math.floor(size / 2);
      }
    }
    closeSync(fd);
    return path;
  }

  test('a full disk: sessions go on, logins are refused and told why, and all is well when there is room again', async (t) => {
    const { addresses } = await first.up();
    const id = (await deployment.sessions)[0]?.id;
    const ballast = await fill();
    const refused = await second.upInForeground(/trying again|^error/m);
    t.diagnostic(refused.output.slice(-400));
    await refused.stop();
    t.diagnostic(deployment.server.output.slice(-1500));
    assert.match(deployment.server.output, /full/);
    assert.ok(await first.reaches(BEHIND.host4));
    assert.equal((await deployment.status).sessions, 1);
    rmSync(ballast);
    await second.up();
    assert.ok(await second.reaches(BEHIND.host4));
    assert.equal((await deployment.sessions).find(({ user }) => user === first.user)?.id, id);
    const status = await first.status();
    assert.deepEqual([status.addresses, status.reconnects], [addresses, 0]);
    await second.down();
    await first.down();
  });

  test('no descriptor left: sessions go on, whoever comes waits, and gets in when there are some again', async (t) => {
    const { addresses } = await first.up();
    const limits = workers().map(({ pid }) => {
      const [, soft = '', hard = ''] =
        /^Max open files\s+(\d+)\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/limits`, 'utf8')) ?? [];
      return { pid, was: `${soft}:${hard}` };
    });
    const limit = (pid: number, to: string) =>
      deployment.gateway.run(['prlimit', '--pid', String(pid), `--nofile=${to}`]);
    for (const { pid, was } of limits) {
      const highest = Math.max(...descriptorsOf(pid).map(Number));
      await limit(pid, `${highest + 1}:${was.split(':')[1]}`);
    }
    const coming = await second.upInForeground(/trying again|^error/m);
    t.diagnostic(coming.output.slice(-400));
    const cpuAt = workers().map(({ pid }) =>
      readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ').slice(11, 13),
    );
    await delay(3000);
    t.diagnostic(
      JSON.stringify([
        cpuAt,
        workers().map(({ pid }) => readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ').slice(11, 13)),
      ]),
    );
    assert.ok(await first.reaches(BEHIND.host4));
    t.diagnostic(deployment.server.output.slice(-1500));
    for (const { pid, was } of limits) await limit(pid, was);
    await until('the one who waits to get in', async () => /^up$/m.test(coming.output), WITHIN);
    assert.ok(await second.reaches(BEHIND.host4));
    await coming.stop();
    const status = await first.status();
    assert.deepEqual([status.addresses, status.reconnects], [addresses, 0]);
    assert.deepEqual(
      workers().map(({ pid }) => pid),
      limits.map(({ pid }) => pid),
      'nobody was replaced',
    );
    await first.down();
  });

  test('a worker killed in the middle of a login: the client gets in, and nothing of the first try is left', async () => {
    await until('a spare worker', async () => isSteady(), WITHIN);
    const { pid } = auth();
    // Whatever is asked of auth waits now.
    process.kill(pid, 'SIGSTOP');
    let coming: ReturnType<Client['up']>;
    let victims: number[] = [];
    try {
      coming = second.up();
      await until('the login', async () => {
        victims = [...(await servers(second, 1000)).keys()];
        return victims.length > 0;
      });
      for (const victim of victims) process.kill(victim, 'SIGKILL');
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    assert.equal(victims.length, 1);
    assert.equal((await coming).state, 'connected');
    assert.ok(await second.reaches(BEHIND.host4));
    const { sessions, waiting, pool } = await deployment.status;
    assert.deepEqual([sessions, waiting, pool[0]?.used], [1, 0, 1]);
    await second.down();
  });

  test('a worker killed while keys are changed, under load: the client is back, and not a byte is missing', async (t) => {
    await until('a spare worker', async () => isSteady(), WITHIN);
    const { addresses } = await first.up();
    const id = (await deployment.sessions)[0]?.id;
    const stream = peer<{ bytes: number; gapMs: number; same: boolean }>(
      first.namespace,
      'stream',
      BEHIND.host4,
      ECHO_PORT,
      '10',
    );
    await until('traffic', async () => (await first.status()).receivedBytes > 1e6);
    const { pid } = auth();
    process.kill(pid, 'SIGSTOP');
    try {
      // Control and data connection, and the one that cannot be changed to yet.
      let victim = 0;
      await until('a change', async () => {
        for (const [server, count] of await servers(first, 1000)) if (count > 2) victim = server;
        return victim > 0;
      });
      process.kill(victim, 'SIGKILL');
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    const { bytes, gapMs, same } = await stream;
    t.diagnostic(`${bytes} bytes, at most ${gapMs} ms without one`);
    assert.ok(same, 'what came back is what was sent');
    const status = await first.statusWhen('the client to be back', ({ state }) => state === 'connected');
    assert.deepEqual(status.addresses, addresses);
    assert.equal((await deployment.sessions)[0]?.id, id);
    await first.down();
  });

  test('one client that opens flows without end fills its own share of what the kernel tracks, and nobody is hurt', async () => {
    await first.up();
    await second.up();
    const talk = await startPeer(first.namespace, 'talk', BEHIND.host4, ECHO_PORT);
    const before = (await deployment.status).counters.drop_connections ?? 0;
    await peer(first.namespace, 'flows', BEHIND.host4, '20000', '6000');
    const dropped = ((await deployment.status).counters.drop_connections ?? 0) - before;
    assert.ok(dropped > 1000, `${dropped} flows beyond its share`);
    assert.ok(!(await first.reaches(BEHIND.host4)), 'nothing new for the one who has it all');
    talk.write('still there\n');
    await until('an answer on what was open before', async () => talk.output.includes('still there'));
    assert.ok(await second.reaches(BEHIND.host4), 'the other client');
    assert.ok((await peer<{ accepted: boolean }>(second.namespace, 'reach', BEHIND.host4, ECHO_PORT)).accepted);
    await talk.stop();
    await first.down();
    await second.down();
  });

  test('a thousand sessions that come and go leave nothing: no descriptor, device, route, rule, lease or memory', async (t) => {
    await until('a spare worker', async () => isSteady(), WITHIN);
    const startCycles = async (client: Client, ...features: string[]): Promise<BackgroundProcess> => {
      await deployment.profile(client);
      return await client.namespace.start([...CYCLE_PEER, client.profile, '100', ...features], {
        ready: /"cycles":100\b/,
        isTyped: true,
      });
    };
    // Those without super-packets have routes and elements of sets of their own.
    const peers = await Promise.all([startCycles(first, 'super', 'resume'), startCycles(second, 'resume')]);
    const pids = [deployment.server.pid, ...parts().map(({ pid }) => pid)];
    const isEmpty = async () => {
      const { sessions, pool } = await deployment.status;
      return sessions === 0 && pool[0]?.used === 0;
    };
    await until('the first ones to be gone', isEmpty);
    const host = await deployment.gateway.snapshot();
    const descriptors = pids.map((pid) => descriptorsOf(pid).length);
    const memory = residentBytes([deployment.server.pid]);
    const startedAt = performance.now();
    for (let cycles = 200; cycles <= 500; cycles += 100) {
      for (const one of peers) one.write('go on\n');
      for (const one of peers)
        await until('more cycles', async () => one.output.includes(`"cycles":${cycles}}`), WITHIN);
    }
    t.diagnostic(`800 cycles in ${Math.round(performance.now() - startedAt)} ms`);
    await until('the last ones to be gone', isEmpty);
    assert.deepEqual(await changesSince(host, deployment.gateway), []);
    await until('the descriptors to be closed', async () => {
      return pids.every((pid, at) => descriptorsOf(pid).length <= (descriptors[at] ?? 0));
    }).catch(() =>
      assert.deepEqual(
        pids.map((pid) => descriptorsOf(pid).length),
        descriptors,
      ),
    );
    const grown = residentBytes([deployment.server.pid]) - memory;
    t.diagnostic(`${Math.round(grown / 1024)} KiB more than after the first 200`);
    assert.deepEqual([deployment.server.pid, ...parts().map(({ pid }) => pid)], pids, 'nobody was replaced');
    // A session that is kept costs 60 KiB and more.
    assert.ok(grown < 800 * 40 * 1024, `${grown} bytes`);
    for (const one of peers) await one.stop();
  });
});
