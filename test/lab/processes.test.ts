/** The processes of a gateway that runs: the filter of every thread, what they have open, and how they end. Needs root. */

import assert from 'node:assert/strict';
import { chmodSync, existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from './command.ts';
import { type Client, Deployment, labOptions } from './deployment.ts';
import { until } from './process.ts';

const WORKERS = 2;
/** `nobody`, everywhere, and somebody whom no machine has. */
const VIEWER = 65534;
const STRANGER = 60_123;

interface GatewayProcess {
  readonly pid: number;
  readonly part: 'auth' | 'hasher' | 'worker';
}

describe('the processes of a gateway', labOptions({ setpriv: 'util-linux' }), () => {
  let deployment: Deployment;
  let client: Client;
  let processes: GatewayProcess[];

  before(async () => {
    deployment = await Deployment.open({ workers: WORKERS });
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    await deployment.configure((text) => `${text}\n[control]\nviewers = ["${VIEWER}"]\n`);
    // A folder of the rig is nobody's else.
    for (const folder of [deployment.rig.folder, deployment.state]) chmodSync(folder, 0o711);
    await deployment.run();
    await deployment.enrol(client);
    // A password has to be hashed, or there is no hasher.
    const add = ['user', 'add', 'bob', '--password-stdin', '--state', deployment.state];
    await deployment.gateway.run([COMMAND, ...add], { input: 'correct horse battery\n' });
    await client.up();
    processes = descendants(deployment.server.pid).flatMap((pid) => {
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      const part = /gateway\/auth\/main/.test(command)
        ? 'auth'
        : /hasher-child/.test(command)
          ? 'hasher'
          : /gateway\/worker\/main/.test(command)
            ? 'worker'
            : undefined;
      return part === undefined ? [] : [{ pid, part }];
    });
  });
  after(async () => await deployment?.[Symbol.asyncDispose]());

  const of = (part: GatewayProcess['part']) => processes.filter((each) => each.part === part).map(({ pid }) => pid);

  test('every thread of auth, its hasher and the workers has the filter of its kind, behind that of its starter', () => {
    assert.deepEqual(processes.map(({ part }) => part).sort(), ['auth', 'hasher', 'worker', 'worker']);
    const filters = { auth: '2', hasher: '3', worker: '2' };
    for (const { pid, part } of processes) {
      assert.deepEqual(fieldOfThreads(pid, 'Seccomp_filters'), [filters[part]], `${part} ${pid}`);
    }
    const [auth = 0] = of('auth');
    const [hasher = 0] = of('hasher');
    for (const name of ['Uid', 'Gid', 'Groups', 'NoNewPrivs', 'CapEff', 'CapPrm', 'CapAmb']) {
      assert.deepEqual(fieldOfThreads(hasher, name), fieldOfThreads(auth, name), name);
    }
  });

  test('who calls at the control socket is decided by the kernel: a named user looks and changes nothing, a stranger not even that', async (t) => {
    const as = (uid: number, ...words: string[]) =>
      deployment.gateway.run(
        ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups', COMMAND, ...words],
        { anyStatus: true, env: { HOME: '/' } },
      );
    if ((await as(VIEWER, '--version')).status !== 0) {
      t.skip('this checkout cannot be read by other users');
      return;
    }
    const status = ['server', 'status', '--json', '--state', deployment.state];
    const seen = await as(VIEWER, ...status);
    assert.equal(seen.status, 0, seen.stderr);
    assert.equal((JSON.parse(seen.stdout) as { sessions: number }).sessions, 1);
    const kick = await as(VIEWER, 'user', 'disable', client.user, '--state', deployment.state);
    assert.match(kick.stderr, /needs the role operator; you are viewer/);
    const refused = await as(STRANGER, ...status);
    assert.match(refused.stderr, /has no role here/);
    assert.equal((await deployment.status).sessions, 1);
  });

  test('a worker has its sockets and devices open, and no file; nobody has an io_uring', () => {
    for (const pid of of('worker')) {
      const open = openOf(pid);
      const devices = open.filter((target) => target === '/dev/net/tun');
      assert.equal(devices.length, 2);
      const others = open.filter((target) => !/^(socket|pipe|anon_inode):|^\/dev\/(net\/tun|null)$/.test(target));
      assert.deepEqual(others, [], `worker ${pid}`);
    }
    for (const { pid, part } of processes) {
      assert.deepEqual(
        openOf(pid).filter((target) => /io_uring/.test(target)),
        [],
        `${part} ${pid}`,
      );
    }
    for (const pid of [...of('auth'), ...of('hasher')]) {
      assert.deepEqual(
        openOf(pid).filter((target) => /tun/.test(target)),
        [],
      );
    }
  });

  test('the hasher is at the lowest priority and has no file of the gateway open', () => {
    const [hasher = 0] = of('hasher');
    assert.equal(readFileSync(`/proc/${hasher}/stat`, 'utf8').split(') ')[1]?.split(' ')[16], '19');
    assert.deepEqual(
      openOf(hasher).filter((target) => target.includes(deployment.state)),
      [],
    );
  });

  test('when the supervisor is killed, all of them end', async () => {
    deployment.server.signal('SIGKILL');
    await until('all processes to end', () => processes.every(({ pid }) => !existsSync(`/proc/${pid}`)));
  });
});

function descendants(root: number): number[] {
  const children = readdirSync(`/proc/${root}/task`).flatMap((task) =>
    readFileSync(`/proc/${root}/task/${task}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number),
  );
  return children.flatMap((child) => [child, ...descendants(child)]);
}

/** The values of a field of `/proc/PID/status` that the threads of a process have, each once. */
function fieldOfThreads(pid: number, name: string): string[] {
  const values = readdirSync(`/proc/${pid}/task`).map((task) => {
    const status = readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8');
    return new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(status)?.[1]?.trim() ?? 'missing';
  });
  return [...new Set(values)];
}

function openOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
}
