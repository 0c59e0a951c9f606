/**
 * A gateway of several processes: who they are and what they cannot do, sessions that move between workers, and what is left
 * of a tunnel when one of them is killed.
 */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { BEHIND, type Client, Deployment, INNER, labOptions, peer, startPeer } from './deployment.ts';
import { until } from './process.ts';

interface GatewayProcess {
  readonly pid: number;
  readonly part: string;
  /** Which worker it is. */
  readonly worker: number | undefined;
}

/** The children of a gateway's supervisor, in the order in which they were started. */
async function childrenOf(pid: number): Promise<GatewayProcess[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
  const found: GatewayProcess[] = [];
  for (const child of text.trim().split(' ').map(Number)) {
    const command = await readFile(`/proc/${child}/cmdline`, 'utf8').catch(() => '');
    const [, part, number = ''] = /gateway\/(auth|worker)\/main\.[jt]s(?:[\0 ](\d+))?/.exec(command) ?? [];
    if (part !== undefined) found.push({ pid: child, part, worker: number === '' ? undefined : Number(number) });
  }
  return found;
}

/** A field of the status of every thread of a process, each value once. */
async function statusOf(pid: number, field: string): Promise<string[]> {
  const tasks = await readdir(`/proc/${pid}/task`);
  const texts = await Promise.all(tasks.map((task) => readFile(`/proc/${pid}/task/${task}/status`, 'utf8')));
  return [...new Set(texts.map((text) => new RegExp(`^${field}:[ \\t]*(.*)$`, 'm').exec(text)?.[1]?.trim() ?? ''))];
}

describe('a gateway of several processes', labOptions(), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;

  const workers = async () => (await childrenOf(deployment.server.pid)).filter(({ part }) => part === 'worker');
  /** The process of the worker that owns a client's session: the one whose device its address is routed to. */
  const ownerOf = async (client: Client): Promise<GatewayProcess> => {
    const [address = ''] = (await client.status()).addresses;
    const { stdout } = await deployment.gateway.run(['ip', '-j', 'route', 'get', address]);
    const [{ dev = '' } = {}] = JSON.parse(stdout) as { dev?: string }[];
    const number = Number(/^cvpn0(?:-(\d+))?p?$/.exec(dev)?.[1] ?? 0);
    const owner = (await workers()).find(({ worker }) => worker === number);
    assert.ok(owner, `no worker has ${dev}`);
    return owner;
  };

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 2 });
    const [one, two] = deployment.clients;
    assert.ok(one && two);
    first = one;
    second = two;
    await deployment.run();
    await deployment.enrol(first);
    await deployment.enrol(second);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  test('auth and workers are users of their own, without a capability or the way to one, on every thread', async () => {
    const children = await childrenOf(deployment.server.pid);
    assert.deepEqual(children.map(({ part }) => part).sort(), ['auth', 'worker', 'worker']);
    for (const { pid, part } of children) {
      const uid = part === 'auth' ? 60_978 : 60_979;
      assert.deepEqual(await statusOf(pid, 'Uid'), [Array(4).fill(uid).join('\t')], part);
      assert.deepEqual(await statusOf(pid, 'Gid'), [Array(4).fill(uid).join('\t')], part);
      assert.deepEqual(await statusOf(pid, 'Groups'), [''], part);
      for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) {
        assert.deepEqual(await statusOf(pid, set), ['0000000000000000'], `${part} ${set}`);
      }
      assert.deepEqual(await statusOf(pid, 'NoNewPrivs'), ['1'], part);
      assert.deepEqual(await statusOf(pid, 'Seccomp'), ['2'], part);
      if (part === 'worker') assert.deepEqual(await statusOf(pid, 'CapBnd'), ['0000000000000000']);
    }
  });

  test('the host speaks to clients from its own address in the pools, whichever worker they are at', async () => {
    for (const [family, own, pool] of [
      ['-4', INNER.gateway4, '10.88.'],
      ['-6', INNER.gateway6, 'fd88:'],
    ] as const) {
      const { stdout } = await deployment.gateway.run(['ip', '-j', family, 'route', 'show']);
      const routes = (JSON.parse(stdout) as { dst: string; dev: string; prefsrc?: string }[]).filter(({ dst, dev }) => {
        return dst.startsWith(pool) && dst.includes('/') && dev.startsWith('cvpn0');
      });
      assert.ok(
        routes.some(({ dev }) => dev !== 'cvpn0'),
        stdout,
      );
      const sources = routes.filter(({ dst }) => dst !== own).map(({ prefsrc }) => prefsrc);
      assert.deepEqual([...new Set(sources)], [own], stdout);
    }
  });

  test('data connections reach the worker that owns the session, whoever accepts them', async () => {
    await first.up();
    await second.up();
    for (const client of [first, second]) {
      await client.statusWhen('its data connections', ({ channels }) => channels > 0);
      assert.ok(await client.reaches(BEHIND.host4));
      assert.ok(await client.reaches(BEHIND.host6));
    }
    // Each of several clients has several connections: it would be a wonder if none had come to the wrong worker.
    await until('a connection to be handed over', async () => {
      await second.down();
      await second.up();
      await second.statusWhen('its data connections', ({ channels }) => channels > 0);
      return ((await deployment.status).counters.handedOver ?? 0) > 0;
    });
  });

  test('a worker is killed under a download: its client is back at once, with its addresses and the download alive', async (t) => {
    const server = await startPeer(deployment.behind, 'serve', '7001');
    const before = await first.status();
    const other = await second.status();
    const download = peer<{ bytes: number; gapMs: number; same: boolean }>(
      first.namespace,
      'stream',
      BEHIND.host4,
      '7001',
      '10',
    );
    await until('the download to run', async () => (await first.status()).receivedBytes > before.receivedBytes + 1e6);
    const spares = () => [...deployment.server.output.matchAll(/a spare worker stands by .*pid=(\d+)/g)];
    await until('a spare worker', () => spares().length > 0, { timeoutMs: 60_000 });
    const victim = await ownerOf(first);
    process.kill(victim.pid, 'SIGKILL');
    const { bytes, gapMs, same } = await download;
    const now = await first.statusWhen('the client to be back', ({ state }) => state === 'connected');
    t.diagnostic(`${bytes} bytes, at most ${gapMs} ms without one`);
    assert.ok(same, 'what came back is what was sent');
    assert.deepEqual(now.addresses, before.addresses);
    assert.equal(now.pid, before.pid);
    await until('another worker in its place', async () => {
      const all = await workers();
      return all.length === 2 && all.every(({ pid }) => pid !== victim.pid);
    });
    // The one that stood by, which had nothing left to load.
    const [, spare] = spares()[0] ?? [];
    assert.equal((await workers()).find(({ worker }) => worker === victim.worker)?.pid, Number(spare));
    await until('another spare one', () => spares().length > 1, { timeoutMs: 60_000 });
    if ((await ownerOf(second)).pid !== victim.pid && other.reconnects === (await second.status()).reconnects) {
      assert.ok(await second.reaches(BEHIND.host4), 'the other client');
    }
    await server.stop();
  });

  test('a worker that hangs is replaced: its client is back, with its addresses', async () => {
    const before = await first.status();
    const victim = await ownerOf(first);
    process.kill(victim.pid, 'SIGSTOP');
    await until('another in its place', async () => !existsSync(`/proc/${victim.pid}`), { timeoutMs: 60_000 });
    assert.match(deployment.server.output, /a worker has ended; .*no sign of life for 9 s/);
    const now = await first.statusWhen(
      'the client to be back',
      ({ state, reconnects }) => state === 'connected' && reconnects > before.reconnects,
      60_000,
    );
    assert.deepEqual(now.addresses, before.addresses);
    await until('the way through', () => first.reaches(BEHIND.host4), { timeoutMs: 60_000 });
  });

  test('nothing is replaced when all of the gateway stood still', async () => {
    const before = await childrenOf(deployment.server.pid);
    const all = [deployment.server.pid, ...before.map(({ pid }) => pid)];
    for (const pid of all) process.kill(pid, 'SIGSTOP');
    // Longer than one that hangs alone is waited for.
    await delay(15_000);
    for (const pid of all) process.kill(pid, 'SIGCONT');
    await until('the gateway to answer', async () => (await deployment.status).warnings.length >= 0, {
      timeoutMs: 60_000,
    });
    await until('the way through', () => first.reaches(BEHIND.host4), { timeoutMs: 60_000 });
    assert.deepEqual(await childrenOf(deployment.server.pid), before);
  });

  test('auth that hangs is replaced: everybody is back with sessions and addresses', async () => {
    const before = [await first.status(), await second.status()];
    const auth = (await childrenOf(deployment.server.pid)).find(({ part }) => part === 'auth');
    assert.ok(auth);
    process.kill(auth.pid, 'SIGSTOP');
    await until('its end', async () => !existsSync(`/proc/${auth.pid}`), { timeoutMs: 60_000 });
    for (const [index, client] of [first, second].entries()) {
      const now = await client.statusWhen(
        'the client to be back',
        ({ state, reconnects }) => state === 'connected' && reconnects > (before[index]?.reconnects ?? 0),
        60_000,
      );
      assert.deepEqual(now.addresses, before[index]?.addresses);
      await until('the way through', () => client.reaches(BEHIND.host4), { timeoutMs: 60_000 });
    }
  });

  test('auth is killed: everybody is back with sessions and addresses', async () => {
    const before = [await first.status(), await second.status()];
    const auth = (await childrenOf(deployment.server.pid)).find(({ part }) => part === 'auth');
    assert.ok(auth);
    process.kill(auth.pid, 'SIGKILL');
    await until('all processes anew', async () => {
      const children = await childrenOf(deployment.server.pid);
      return children.length === 3 && children.every(({ pid }) => pid !== auth.pid);
    });
    for (const [index, client] of [first, second].entries()) {
      const now = await client.statusWhen(
        'the client to be back',
        ({ state, reconnects }) => state === 'connected' && reconnects > (before[index]?.reconnects ?? 0),
        60_000,
      );
      assert.deepEqual(now.addresses, before[index]?.addresses);
      await until('the way through', () => client.reaches(BEHIND.host4));
    }
  });

  test('workers are replaced one after the other under a download, which goes on', async (t) => {
    const server = await startPeer(deployment.behind, 'serve', '7002');
    const before = await first.status();
    const former = await workers();
    const stream = peer<{ bytes: number; gapMs: number; same: boolean }>(
      first.namespace,
      'stream',
      BEHIND.host4,
      '7002',
      '12',
    );
    await until('traffic', async () => (await first.status()).receivedBytes > before.receivedBytes + 1e6);
    assert.deepEqual(await deployment.ask('server', 'replace-workers'), { replaced: 2 });
    const now = await workers();
    assert.equal(now.length, 2);
    for (const { pid } of now) assert.ok(!former.some((one) => one.pid === pid), 'an old process');
    const { bytes, gapMs, same } = await stream;
    t.diagnostic(`${bytes} bytes, at most ${gapMs} ms without one`);
    assert.ok(same, 'what came back is what was sent');
    const after = await first.statusWhen('the client to be back', ({ state }) => state === 'connected');
    assert.deepEqual(after.addresses, before.addresses);
    await server.stop();
  });

  test('a worker that ends again and again is given up; clients go on at the other', async () => {
    const before = await first.status();
    const isGivenUp = () => deployment.server.output.includes('is given up');
    // The one that is started anew has the highest number of a process.
    for (let end = 0; !isGivenUp() && end < 12; end++) {
      const all = await workers();
      const last = all.toSorted((a, b) => a.pid - b.pid).at(-1);
      if (last !== undefined && all.length === 2) process.kill(last.pid, 'SIGKILL');
      await until(
        'another, or none',
        async () => {
          const now = await workers();
          return isGivenUp() || (now.length === 2 && now.every(({ pid }) => pid !== last?.pid));
        },
        { timeoutMs: 60_000 },
      );
    }
    assert.ok(isGivenUp(), deployment.server.output.slice(-2000));
    assert.equal((await workers()).length, 1);
    const now = await first.statusWhen('the client to be back', ({ state }) => state === 'connected', 60_000);
    assert.deepEqual(now.addresses, before.addresses);
    await until('the way through', () => first.reaches(BEHIND.host4), { timeoutMs: 60_000 });
    assert.deepEqual(
      (await second.statusWhen('the other', ({ state }) => state === 'connected', 60_000)).state,
      'connected',
    );
  });

  test('when auth ends after that, one worker starts with it, and not the one that was given up', async () => {
    const children = await childrenOf(deployment.server.pid);
    const auth = children.find(({ part }) => part === 'auth');
    assert.ok(auth);
    process.kill(auth.pid, 'SIGKILL');
    await until(
      'another auth',
      async () => {
        const now = await childrenOf(deployment.server.pid);
        const isNew = now.some(({ pid, part }) => part === 'auth' && pid !== auth.pid);
        return isNew && deployment.server.output.split('all processes have been started again').length === 4;
      },
      { timeoutMs: 60_000 },
    );
    assert.equal((await workers()).length, 1);
    for (const client of [first, second]) {
      await client.statusWhen('the client to be back', ({ state }) => state === 'connected', 60_000);
      await until('the way through', () => client.reaches(BEHIND.host4), { timeoutMs: 60_000 });
    }
  });

  test('a gateway that is drained lets nobody new in, and stops when the last has gone', async () => {
    await second.down();
    const drained = await deployment.ask<{ sessions: number }>('server', 'drain', '--deadline', '10m', '--no-wait');
    assert.equal(drained.sessions, 1);
    const refused = await second.upInForeground(/shutting down|takes nobody new|^error/m);
    assert.match(refused.output, /shutting down|takes nobody new/);
    await refused.stop();
    assert.ok(await first.reaches(BEHIND.host4), 'who was there before');
    // Whoever is auth next goes on with it.
    const auth = (await childrenOf(deployment.server.pid)).find(({ part }) => part === 'auth');
    assert.ok(auth);
    process.kill(auth.pid, 'SIGKILL');
    const starts = () => deployment.server.output.split('all processes have been started again').length;
    const before = starts();
    await until('another auth', async () => starts() > before, { timeoutMs: 60_000 });
    assert.ok((await deployment.status).warnings.some((warning) => warning.includes('the gateway is drained')));
    await first.statusWhen('the client to be back', ({ state }) => state === 'connected', 60_000);
    await until('the way through', () => first.reaches(BEHIND.host4), { timeoutMs: 60_000 });
    const children = await childrenOf(deployment.server.pid);
    await first.down();
    assert.equal(await deployment.server.exited, 0);
    await checkNothingLeft(deployment, children);
  });
});

/** Nothing of a run is there any more. */
async function checkNothingLeft(deployment: Deployment, children: readonly GatewayProcess[]): Promise<void> {
  for (const { pid, part } of children) await assert.rejects(readFile(`/proc/${pid}/status`), part);
  const links = (await deployment.gateway.run(['ip', '-o', 'link'])).stdout;
  assert.doesNotMatch(links, /cvpn/);
  assert.deepEqual(await readdir(`${deployment.state}/run`), []);
  const files = await readdir(deployment.state);
  assert.deepEqual(
    files.filter((name) => /-(wal|shm)$/.test(name)),
    [],
  );
}
