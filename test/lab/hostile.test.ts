/**
 * A worker that has been taken over, in a gateway that runs: with every message of its own, with its devices and with the
 * socket that it shares it gets nothing of another worker's client, and the gateway lives. Needs root.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { type BackgroundProcess, until } from './process.ts';

const OUTSIDE = new URL('./hostile-outside.ts', import.meta.url).pathname;
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];

const LONG = { timeoutMs: 120_000 };

/** What is said of each. */
const FOUND_OUT = {
  flood: /more than 6000 frames a second/,
  'mid-frame': /it has closed its channel to auth/,
} as const;

describe('a hostile worker', labOptions({ setpriv: 'util-linux' }), () => {
  let deployment: Deployment;
  let gateway: BackgroundProcess;
  let victim: Client;
  let other: Client;
  let attacks: string;
  let victimSession: { key: string; address: string };

  before(async () => {
    deployment = await Deployment.open({ clients: 2 });
    const [first, second] = deployment.clients;
    assert.ok(first && second);
    [victim, other] = [first, second];
    attacks = join(deployment.rig.folder, 'attacks');
    gateway = await deployment.gateway.start([...NODE, OUTSIDE, deployment.state, attacks], {
      ready: /^ready$/m,
      readyTimeoutMs: 60_000,
    });
    await deployment.enrol(victim);
    await deployment.enrol(other);
    victimSession = await connectTo(victim, 0);
  });
  after(async () => {
    if (process.env.CUSTOMVPN_LAB_LOGS !== undefined) process.stderr.write(gateway?.output ?? '');
    await deployment?.[Symbol.asyncDispose]();
  });

  /** The client's session on record. */
  function sessionOf(client: Client): { id: string; worker: number; lease4: string } | undefined {
    using store = new DatabaseSync(join(deployment.state, 'store.sqlite'), { readOnly: true });
    const [row] = store
      .prepare(
        `SELECT sessions.id, sessions.worker, sessions.lease4 FROM sessions JOIN users ON users.id = sessions.user_id
         WHERE users.name = ? AND sessions.detached_at IS NULL ORDER BY opened_at DESC`,
      )
      .all(client.user) as { id: string; worker: number; lease4: string }[];
    return row;
  }

  /** Connects once: whether its session is at that worker, and its data connection has come to the other one and been given. */
  async function isGivenTo(worker: number): Promise<boolean> {
    const given = async () => (await deployment.status).counters.handedOver ?? 0;
    const before = await given();
    await other.up();
    await other.statusWhen('its data connections', ({ channels }) => channels > 0);
    const isGiven = sessionOf(other)?.worker === worker && (await given()) > before;
    await other.down();
    return isGiven;
  }

  /** Comes again until the kernel has given it to the worker wanted. */
  async function connectTo(client: Client, worker: number): Promise<{ key: string; address: string }> {
    for (let tries = 0; tries < 40; tries += 1) {
      await client.up();
      const row = sessionOf(client);
      if (row?.worker === worker) return { key: row.id, address: row.lease4 };
      await client.down();
    }
    return assert.fail(`${client.user} never came to worker ${worker}`);
  }

  /** The second worker: whoever came last in its place, or else the younger of the two. */
  function pidOfSecond(): number {
    const last = [...gateway.output.matchAll(/a worker has been replaced worker=1 pid=(\d+)/g)].at(-1)?.[1];
    if (last !== undefined) return Number(last);
    const list = readFileSync(`/proc/${gateway.pid}/task/${gateway.pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .map(Number);
    return list.filter((pid) => /worker\/main/.test(commandOf(pid)))[1] ?? assert.fail('there is no second worker');
  }

  /** Ends the second worker and waits for what comes in its place: the first of these, and the next after that. */
  async function replaceBy(...names: string[]): Promise<void> {
    const lines = names.map((attack) => `${attack} ${victimSession.key} ${victimSession.address} ${BEHIND.host4}`);
    await writeFile(attacks, lines.join('\n'));
    const from = gateway.output.length;
    process.kill(pidOfSecond(), 'SIGKILL');
    await until(
      `a worker that does ${names[0]}`,
      () => gateway.output.slice(from).includes('a worker has been replaced'),
      {
        timeoutMs: 60_000,
      },
    );
  }

  async function said(attack: string): Promise<unknown> {
    const line = new RegExp(`^hostile ${attack} (.*)$`, 'm');
    await until(`the report of ${attack}`, () => line.test(gateway.output), { timeoutMs: 90_000 });
    return JSON.parse(line.exec(gateway.output)?.[1] ?? '');
  }

  async function checkVictim(): Promise<void> {
    assert.equal(await victim.reaches(BEHIND.host4), true, "the other worker's client lost its way");
    const { state } = await victim.status();
    assert.equal(state, 'connected');
    using store = new DatabaseSync(join(deployment.state, 'store.sqlite'), { readOnly: true });
    const [row] = store.prepare('SELECT worker, epoch, detached_at FROM sessions WHERE id = ?').all(victimSession.key);
    assert.deepEqual({ ...row }, { worker: 0, epoch: 0, detached_at: null });
    const session = (await deployment.sessions).find(({ user }) => user === victim.user);
    assert.ok(session && session.receivedBytes < 1e9, "the hostile worker's count");
  }

  test("gets nothing of another's session by any message, of its packets, or of the devices", async () => {
    const word = Buffer.from('a hostile worker spoke');
    await using capture = await deployment.behind.capture('lan0', { filter: 'icmp', markers: [word] });
    const before = (await deployment.status).counters;
    await replaceBy('liar');
    const {
      said: answers,
      given,
      spoke,
      spoilt,
    } = (await said('liar')) as {
      said: Record<string, unknown>;
      given: number;
      spoke: { written: number; stolen: string[] };
      spoilt: Record<string, string>;
    };
    assert.deepEqual(answers, {
      waiting: [],
      waitingFar: [],
      establish: 'ERR_SESSION_UNKNOWN',
      attach: { accepted: false, movedTo: 0 },
      resume: { accepted: false, code: 'session_unknown' },
      proposeResume: 'ERR_SESSION_REPLACED',
      confirmResume: 'ERR_SESSION_REPLACED',
      challenge: 'string',
      verify: { accepted: false, code: 'rejected', message: '' },
      detach: {},
      end: {},
    });
    assert.ok(given > 100, `${given} descriptors`);
    assert.equal(spoke.written, 100);
    assert.deepEqual(spoke.stolen, []);
    // What the other worker's client says afterwards comes behind it.
    assert.equal(await victim.reaches(BEHIND.host4), true);
    await until('the client to be seen behind', () => capture.facts.packets > 0);
    await capture.stop();
    assert.equal(capture.seen(word), false);
    const after = await deployment.status;
    assert.match(after.warnings.join('\n'), /worker 1 does not answer/);
    assert.equal((after.counters.rule_drop_source ?? 0) - (before.rule_drop_source ?? 0), 100);
    for (const use of ['listen', 'to', 'from', 'dialled']) assert.equal(spoilt[`shutdown ${use}`], 'done', use);
    const device = Object.entries(spoilt).filter(([name]) => /^(TUN|SIOC|steer)/.test(name));
    assert.equal(device.length, 15);
    assert.deepEqual(
      device.filter(([, result]) => result !== 'EPERM'),
      [],
    );
    await checkVictim();
  });

  test('and what it has spoilt serves again when our own program takes its place', async () => {
    await replaceBy('none');
    const session = await connectTo(other, 1);
    assert.notEqual(session.address, victimSession.address);
    assert.equal(await other.reaches(BEHIND.host4), true);
    // One that waits for the next packet hears nothing else.
    assert.doesNotMatch((await deployment.status).warnings.join('\n'), /does not answer/);
    await other.down();
    // The ways between the two, which the former one has shut down, are new ones.
    for (const worker of [1, 0]) await until(`a connection given to worker ${worker}`, () => isGivenTo(worker), LONG);
    await checkVictim();
  });

  test('is found out and replaced, whether it says too much or nothing', async () => {
    await replaceBy(...Object.keys(FOUND_OUT));
    for (const [attack, why] of Object.entries(FOUND_OUT)) {
      await until(`${attack} to be found out`, () => why.test(gateway.output), { timeoutMs: 90_000 });
      await checkVictim();
    }
    await until('our own in its place', () => commandOf(pidOfSecond()).includes('worker/main'), { timeoutMs: 90_000 });
    assert.equal((await deployment.status).sessions, 1);
  });

  test('one that ends again and again is given up, and everybody is served by the other', async () => {
    await until(
      'the worker to be given up',
      () => {
        const pid = pidOfSecond();
        if (commandOf(pid) !== '') process.kill(pid, 'SIGKILL');
        return /is given up/.test(gateway.output);
      },
      { timeoutMs: 120_000, intervalMs: 200 },
    );
    await other.up();
    assert.equal(await other.reaches(BEHIND.host4), true);
    await checkVictim();
  });

  test('and the gateway stops as it does', async () => {
    await deployment.ok(deployment.gateway, 'server', 'stop', '--state', deployment.state);
    assert.equal(await gateway.exited, 0);
  });
});

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return '';
  }
}
