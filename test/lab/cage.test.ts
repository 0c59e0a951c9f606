/**
 * A process in its cage, in a real kernel: what every one of its threads may do, what it tries in vain, and what it still
 * does well. Each attempt is also made without a cage, where it succeeds. Needs root.
 */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { labOptions } from './deployment.ts';
import { until } from './process.ts';
import { Rig } from './rig.ts';

const NODE = [process.execPath, '--disable-warning=ExperimentalWarning'];
const OUTSIDE = new URL('./cage-outside.ts', import.meta.url).pathname;
const options = labOptions({ setpriv: 'util-linux' });
const NONE = '0000000000000000';
const WORKING = { timer: true, threadPool: 32, packed: true, stack: true, memory: 200 };
const GREETING = 'hello through the cage';

interface Seen {
  ready: { ready?: boolean; filtered?: boolean; failed?: { code: string; message: string } };
  served: string;
  works: unknown;
  threads: Record<string, string[]>;
  attempts: Record<string, string>;
  stillServed: string;
  stillWorks: unknown;
  wayOut: string;
  warnings: string[];
  errors: string;
}

async function scenario(name: string): Promise<unknown> {
  await using rig = await Rig.open();
  const namespace = await rig.namespace('cage');
  const { stdout } = await namespace.run([...NODE, OUTSIDE, name], { anyStatus: true });
  return JSON.parse(stdout);
}

/** All that was tried and was not refused as it should be. */
function doneBy({ attempts }: Seen, expected = 'EPERM'): string[] {
  return Object.entries(attempts).flatMap(([name, result]) => {
    // What a C library falls back from.
    return result === (name === 'clone3' ? 'ENOSYS' : expected) ? [] : [`${name}: ${result}`];
  });
}

test(
  'every thread of a worker is held, nothing that it tries succeeds, and it serves all the while',
  options,
  async () => {
    const seen = (await scenario('worker')) as Seen;
    assert.deepEqual(seen.ready, { ready: true, filtered: true });
    const { Threads: [count = '0'] = [], ...threads } = seen.threads;
    assert.ok(Number(count) > 4, `${count} threads`);
    assert.deepEqual(threads, {
      Uid: ['65534 65534 65534 65534'],
      Gid: ['65534 65534 65534 65534'],
      Groups: [''],
      NoNewPrivs: ['1'],
      Seccomp: ['2'],
      // The launcher's and its own: one alone would be the launcher's.
      Seccomp_filters: ['2'],
      CapInh: [NONE],
      CapPrm: [NONE],
      CapEff: [NONE],
      CapBnd: [NONE],
      CapAmb: [NONE],
    });
    assert.ok(Object.keys(seen.attempts).length > 25);
    assert.deepEqual(doneBy(seen), []);
    assert.deepEqual([seen.served, seen.stillServed], [GREETING, GREETING]);
    assert.deepEqual([seen.works, seen.stillWorks], [WORKING, WORKING]);
    assert.equal(seen.wayOut, 'EPERM', 'a listening socket made a connection by sending');
    assert.match(seen.errors, /a line on standard error/);
    assert.deepEqual(seen.warnings, []);
  },
);

test('a hasher is held like a worker', options, async () => {
  const seen = (await scenario('hasher')) as Seen;
  assert.deepEqual(seen.ready, { ready: true, filtered: true });
  assert.deepEqual(doneBy(seen), []);
  assert.deepEqual([seen.works, seen.stillWorks], [WORKING, WORKING]);
});

test('auth opens files, dials and starts programs as its user, and does nothing else', options, async () => {
  const seen = (await scenario('auth')) as Seen;
  const { attempts } = seen;
  for (const name of ['write a file', 'spawn', 'connect', 'datagram socket'])
    assert.equal(attempts[name], 'done', name);
  assert.deepEqual([attempts['read secret 0'], attempts['read secret 1']], ['EACCES', 'EACCES']);
  const device = Object.entries(attempts).filter(([name]) => name.startsWith('TUN'));
  assert.ok(device.length > 5);
  assert.deepEqual(new Set(device.map(([, result]) => result)), new Set(['EPERM']));
  if (process.arch === 'x64') {
    for (const name of [
      'ptrace',
      'mount',
      'unshare',
      'setns',
      'bpf',
      'process_vm_readv',
      'memfd_create',
      'io_uring_setup',
    ]) {
      assert.equal(attempts[name], 'EPERM', name);
    }
  }
  assert.deepEqual([seen.works, seen.stillWorks], [WORKING, WORKING]);
  assert.equal(seen.served, GREETING);
});

test('without a cage a user without rights could do all of that', options, async () => {
  const { attempts, wayOut, ready } = (await scenario('free')) as Seen;
  assert.deepEqual(ready, { ready: true, filtered: false });
  const names = [
    'read /etc/passwd',
    'write a file',
    'open /dev/net/tun',
    'import a module',
    'spawn',
    'connect',
    'datagram socket',
    'socket',
    'netlink socket',
    'TUNSETPERSIST',
    'TUNSETPERSIST with high bits',
    'TUNSETOFFLOAD',
    'TUNSETSNDBUF',
    'TUNSETOWNER',
    'fcntl F_SETOWN',
    'SO_ATTACH_REUSEPORT_CBPF',
  ];
  for (const name of names) assert.equal(attempts[name], 'done', name);
  assert.equal(attempts.io_uring_setup ?? 'ENOSYS', 'ENOSYS', 'the launcher refuses rings to whatever it starts');
  assert.notEqual(wayOut, 'EPERM');
});

test('without setpriv a child gives up by itself all but its bounding set, which is said', options, async () => {
  const seen = (await scenario('no-setpriv')) as Seen;
  const { Threads: _count, Uid: _uid, Gid: _gid, CapBnd: _kept, ...held } = seen.threads;
  assert.deepEqual(held, {
    NoNewPrivs: ['1'],
    Seccomp: ['2'],
    // The launcher's and its own: one alone would be the launcher's.
    Seccomp_filters: ['2'],
    CapPrm: [NONE],
    CapEff: [NONE],
    CapInh: [NONE],
    CapAmb: [NONE],
    Groups: [''],
  });
  assert.deepEqual(doneBy(seen), []);
  assert.match(seen.warnings.join('\n'), /no setpriv/);
});

test('a process with an io_uring, which no filter sees, is not taken in', options, async () => {
  const { failed } = (await scenario('own-ring')) as Seen['ready'];
  assert.equal(failed?.code, 'ERR_INVARIANT');
  assert.match(failed?.message ?? '', /io_uring/);
});

test('a process with privileges is not taken in', options, async () => {
  const { failed } = (await scenario('privileged')) as Seen['ready'];
  assert.equal(failed?.code, 'ERR_INVARIANT');
  assert.match(failed?.message ?? '', /started with capabilities/);
});

test(
  'a confined program reaches the files named and no others, on every thread, and starts nothing but itself',
  options,
  async () => {
    const expected = {
      'write its state': 'done',
      'use a database': 'done',
      'read an open secret elsewhere': 'EACCES',
      'read it on the thread pool': 'EACCES',
      'write elsewhere': 'EACCES',
      'read /etc/passwd': 'EACCES',
      'read a process': 'EACCES',
      'start a shell': 'EACCES',
      'start Node': 'done',
      'signal its parent': 'EPERM',
      'look a name up': 'done',
      'hash a password': 'done',
      'see its memory': 'done',
      'use what it inherited': 'done',
    };
    const names = Object.keys(expected).filter((name) => name !== 'signal its parent');
    assert.deepEqual(await scenario('unconfined'), {
      ...Object.fromEntries(names.map((name) => [name, 'done'])),
      'signal its parent': 'EPERM',
    });
    assert.deepEqual(await scenario('confined'), expected);
  },
);

test(
  'auth, as the gateway starts it, reaches what it needs and nothing else, before and after it changes its user',
  options,
  async () => {
    const { failed, asRoot, inCage } = (await scenario('auth-files')) as Record<string, unknown>;
    assert.equal(failed, 'it does not run');
    const refused = {
      'the home of root': 'EACCES',
      'a key that it does not need': 'EACCES',
      'a file that all may read': 'EACCES',
      'a folder that all may write': 'EACCES',
      'another process': 'EACCES',
      'a shell': 'EACCES',
    };
    assert.deepEqual(asRoot, {
      'its own folder': 'done',
      'the store': 'done',
      'the configuration, to write': 'done',
      'a secret that the configuration names': 'done',
      'names of hosts': 'done',
      ...refused,
    });
    assert.deepEqual(inCage, {
      'its own folder': 'done',
      'the store': 'EACCES',
      'the configuration, to write': 'EACCES',
      'a secret that the configuration names': 'EACCES',
      'names of hosts': 'done',
      ...refused,
    });
  },
);

test('a program that its user cannot reach is named before it is started', options, async () => {
  assert.deepEqual(await scenario('unreachable'), { code: 'ERR_PRIVILEGE', names: true });
});

test('a child ends with the process that started it, whatever state either is in', options, async () => {
  const pid = await scenario('orphan');
  assert.equal(typeof pid, 'number');
  await until('the orphan to end', () => !existsSync(`/proc/${pid}`));
});
