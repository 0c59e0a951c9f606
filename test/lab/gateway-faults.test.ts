/**
 * What a gateway does when its own machine fails it: no room on the disk, a process killed in the middle of something, a client that
 * wants all of what the kernel keeps track of. Whoever has a session keeps it, whoever comes is told or waits, and afterwards all is as before.
 */

import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions, PORT, peer, startPeer } from './deployment.ts';
import { until } from './process.ts';

const TOOLS = { ss: 'iproute2' };
const WITHIN = { timeoutMs: 60_000 };
const ECHO_PORT = '7001';

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

  test('a full disk: sessions go on, logins are refused and told why, and all is well when there is room again', async () => {
    const { addresses } = await first.up();
    const id = (await deployment.sessions)[0]?.id;
    const ballast = await fill();
    const refused = await second.upInForeground(/trying again|^error/m);
    await refused.stop();
    assert.match(deployment.server.output, /ERR_STORE.*the disk is full/);
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
    const before = (await deployment.status).counters.rule_drop_connections ?? 0;
    await peer(first.namespace, 'flows', BEHIND.host4, '20000', '6000');
    const dropped = ((await deployment.status).counters.rule_drop_connections ?? 0) - before;
    assert.ok(dropped > 1000, `${dropped} flows beyond its share`);
    assert.ok(!(await first.reaches(BEHIND.host4)), 'nothing new for the one who has it all');
    talk.write('still there\n');
    await until('an answer on what was open before', async () => talk.output.includes('still there'), WITHIN);
    assert.ok(await second.reaches(BEHIND.host4), 'the other client');
    assert.ok((await peer<{ accepted: boolean }>(second.namespace, 'reach', BEHIND.host4, ECHO_PORT)).accepted);
    await talk.stop();
    await first.down();
    await second.down();
  });
});
