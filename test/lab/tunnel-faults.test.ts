/**
 * What becomes of a tunnel when the way outside is bad, ends, or forgets; each case says what it measured.
 *
 * A TCP connection inside runs through most of them: bytes that arrive changed, twice or not at all fail the test.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, type TestContext, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions, PORT, peer, startPeer } from './deployment.ts';
import { Impairment, type ImpairmentOptions } from './impairment.ts';
import { until } from './process.ts';

const ECHO_PORT = '7007';
const BYTES = 1024 * 1024;
/** Timers of the configuration: short, so that the tests are. */
const PING_SECONDS = 2;
const DEAD_SECONDS = 6;
const TOOLS = { ethtool: 'ethtool', ss: 'iproute2', nft: 'nftables' };

interface TcpResult {
  sent: { bytes: number; sha256: string };
  returned: { bytes: number; sha256: string };
}

/** A process and all that it has started, and they. */
function family(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return [pid, ...(children === '' ? [] : children.split(' ').flatMap((child) => family(Number(child))))];
}

describe('faults on the way', labOptions(TOOLS), () => {
  let deployment: Deployment;
  let client: Client;
  let cable: Impairment;

  before(async () => {
    deployment = await Deployment.open({
      settings: `[session]\npingSeconds = ${PING_SECONDS}\ndeadSeconds = ${DEAD_SECONDS}\n`,
    });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    const { client4, client6, gateway4, gateway6 } = client.outer;
    await client.namespace.run(['ip', 'link', 'delete', 'out0']);
    cable = await Impairment.open(deployment.rig, 'cable', [
      { namespace: client.namespace, device: 'out0', addresses: [`${client4}/24`, `${client6}/64`] },
      { namespace: deployment.gateway, device: 'out0', addresses: [`${gateway4}/24`, `${gateway6}/64`] },
    ]);
    await deployment.run();
    await deployment.enrol(client);
    await startPeer(deployment.behind, 'serve', ECHO_PORT, BEHIND.host4);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  async function transfer(): Promise<number> {
    const startedAt = performance.now();
    const { sent, returned } = await peer<TcpResult>(client.namespace, 'tcp', BEHIND.host4, ECHO_PORT, String(BYTES));
    assert.deepEqual(returned, sent);
    assert.equal(sent.bytes, BYTES);
    return performance.now() - startedAt;
  }

  async function sessionId(): Promise<string> {
    const [session] = await deployment.sessions;
    assert.ok(session !== undefined, 'there is a session');
    return session.id;
  }

  /** Sends a megabyte through a TCP connection and back while something happens on the way; says how long it took. */
  async function through(t: TestContext, what: string, happens: () => Promise<void>): Promise<void> {
    const id = await sessionId();
    const startedAt = performance.now();
    const moving = transfer();
    await happens();
    await moving;
    t.diagnostic(`${what}: 1 MiB there and back in ${Math.round(performance.now() - startedAt)} ms`);
    assert.equal(await sessionId(), id, 'the session is the one it was');
  }

  const ways: readonly [what: string, way: ImpairmentOptions][] = [
    ['1 % loss', { delayMs: 5, loss: 0.01 }],
    ['5 % loss', { delayMs: 5, loss: 0.05 }],
    ['20 % loss', { delayMs: 5, loss: 0.2 }],
    ['50 ms each way', { delayMs: 50 }],
    ['200 ms each way', { delayMs: 200 }],
    ['jitter of 20 ms', { delayMs: 30, jitterMs: 20 }],
    ['a tenth of the packets 5 ms late', { delayMs: 5, reorder: 0.1 }],
    ['a tenth of the packets twice', { delayMs: 5, duplicate: 0.1 }],
  ];
  for (const [what, way] of ways) {
    test(`${what}: a login, and a megabyte there and back, without a second session`, {
      timeout: 300_000,
    }, async (t) => {
      await cable.set(way);
      const upAt = performance.now();
      await client.up();
      t.diagnostic(`connected in ${Math.round(performance.now() - upAt)} ms`);
      await through(t, what, async () => {});
      assert.equal((await client.status()).reconnects, 0);
      await cable.set({});
      await client.down();
    });
  }

  test('a black hole: both ends give up in time, and the session goes on where it was when the way is back', async (t) => {
    await cable.set({});
    const { addresses } = await client.up();
    await through(t, 'with the hole in it', async () => {
      const id = await sessionId();
      const closedAt = performance.now();
      await cable.set({ isBlackHole: true });
      await client.statusWhen('the client to notice', ({ state }) => state !== 'connected', 30_000);
      const clientMs = performance.now() - closedAt;
      await until('the gateway to notice', async () => (await deployment.status).waiting === 1, { timeoutMs: 30_000 });
      const gatewayMs = performance.now() - closedAt;
      t.diagnostic(`noticed after ${Math.round(clientMs)} and ${Math.round(gatewayMs)} ms`);
      assert.equal(await sessionId(), id);
      await cable.set({});
      const openedAt = performance.now();
      await client.statusWhen('the client to be back', ({ state }) => state === 'connected', 60_000);
      t.diagnostic(`back ${Math.round(performance.now() - openedAt)} ms after the way`);
    });
    assert.deepEqual((await client.status()).addresses, addresses);
    await client.down();
  });

  test('a black hole that is shorter than patience is not felt but as a delay', async (t) => {
    await client.up();
    await through(t, 'with 2 s of hole in it', async () => {
      await cable.set({ isBlackHole: true });
      await new Promise((resolve) => setTimeout(resolve, 2000));
      await cable.set({});
    });
    assert.equal((await client.status()).reconnects, 0);
    await client.down();
  });

  test('RST in the middle of a transfer: the session is resumed, and the transfer ends', async (t) => {
    const { addresses } = await client.up();
    await cable.set({ delayMs: 20 });
    await through(t, 'with a reset of every connection', async () => {
      await until('the transfer to begin', async () => (await client.status()).receivedBytes > 10_000);
      const rule = `tcp sport ${PORT} counter reject with tcp reset`;
      const table = `table inet faults { chain in { type filter hook input priority -10; ${rule}; }; }`;
      await client.namespace.run(['nft', table]);
      await client.statusWhen('the loss', ({ state }) => state !== 'connected');
      await client.namespace.run(['nft', 'delete', 'table', 'inet', 'faults']);
      const { reconnects } = await client.statusWhen('the return', ({ state }) => state === 'connected');
      assert.ok(reconnects > 0);
    });
    assert.deepEqual((await client.status()).addresses, addresses);
    await cable.set({});
    await client.down();
  });

  test('a firewall on the way that forgets idle connections does not forget this one, for it is kept alive', async (t) => {
    // As strict as they come: what it does not remember, and does not begin with SYN, is dropped without a word.
    const forgetMs = 2.5 * PING_SECONDS * 1000;
    await deployment.gateway.setSysctl('net.netfilter.nf_conntrack_tcp_loose', '0');
    await deployment.gateway.setSysctl('net.netfilter.nf_conntrack_tcp_timeout_established', String(forgetMs / 1000));
    const table =
      `table inet firewall { chain in { type filter hook input priority -10; tcp dport ${PORT} ct state new,established accept; ` +
      `tcp dport ${PORT} counter drop; }; }`;
    await deployment.gateway.run(['nft', table]);
    const { addresses } = await client.up();
    const id = await sessionId();
    await new Promise((resolve) => setTimeout(resolve, 4 * forgetMs));
    assert.ok(await client.reaches(BEHIND.host4), 'the way is still there');
    const { stdout } = await deployment.gateway.run(['nft', 'list', 'table', 'inet', 'firewall']);
    assert.match(stdout, /packets 0 bytes 0 drop/, 'nothing was forgotten');
    t.diagnostic(`idle for ${(4 * forgetMs) / 1000} s beside a memory of ${forgetMs / 1000} s`);
    assert.equal(await sessionId(), id);
    const status = await client.status();
    assert.deepEqual([status.reconnects, status.addresses], [0, addresses]);

    // All of it, at once: the connections are half open at either end, and nobody is told.
    const { stdout: before } = await deployment.gateway.run([
      'ss',
      '-Htn',
      'state',
      'established',
      `( sport = :${PORT} )`,
    ]);
    await deployment.gateway.run(['nft', `add chain inet firewall early { type filter hook input priority -20; }`]);
    await deployment.gateway.run([
      'nft',
      `add rule inet firewall early tcp dport ${PORT} ct state established counter drop`,
    ]);
    await client.statusWhen('the client to notice', ({ state }) => state !== 'connected', 30_000);
    await deployment.gateway.run(['nft', 'delete', 'table', 'inet', 'firewall']);
    await client.statusWhen('the return', ({ state }) => state === 'connected', 30_000);
    assert.equal(await sessionId(), id, 'resumed beside connections that the gateway holds for good');
    assert.ok(before.trim().length > 0);
    const own = async () => {
      const { stdout: now } = await deployment.gateway.run([
        'ss',
        '-Htn',
        'state',
        'established',
        `( sport = :${PORT} )`,
      ]);
      return now.trim().split('\n').length === 2;
    };
    await until('the half-open connections to go', own, { timeoutMs: 30_000 });
    await client.down();
  });

  for (const stopped of ['client', 'gateway'] as const) {
    test(`a ${stopped} that stands still for longer than patience finds its session again`, async (t) => {
      const { addresses, pid } = await client.up();
      const targets = family(stopped === 'client' ? pid : (await deployment.status).pid);
      await through(t, 'with the pause in it', async () => {
        await until('the transfer to begin', async () => (await client.status()).receivedBytes > 10_000);
        for (const target of targets) process.kill(target, 'SIGSTOP');
        try {
          if (stopped === 'client') {
            const isWaiting = async () => (await deployment.status).waiting === 1;
            await until('the gateway to notice', isWaiting, { timeoutMs: 30_000 });
          } else await client.statusWhen('the client to notice', ({ state }) => state !== 'connected', 30_000);
        } finally {
          for (const target of targets) process.kill(target, 'SIGCONT');
        }
        const wokenAt = performance.now();
        await client.statusWhen(
          'the return',
          ({ state, reconnects }) => state === 'connected' && reconnects > 0,
          60_000,
        );
        t.diagnostic(`back ${Math.round(performance.now() - wokenAt)} ms after it was woken`);
      });
      assert.deepEqual((await client.status()).addresses, addresses);
      await client.down();
    });
  }
});
