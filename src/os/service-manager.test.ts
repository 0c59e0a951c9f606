/** What a service manager hears: a real UNIX datagram socket at the other end. */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Receiver } from '../../test/support/datagrams.ts';
import { ServiceManager } from './service-manager.ts';

const skip = process.platform === 'linux' ? false : 'this machine does not run Linux';
let folder = '';
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'customvpn-notify-'));
});
after(() => rmSync(folder, { recursive: true }));

for (const [what, name] of [
  ['a path', () => join(folder, 'notify')],
  ['an abstract name', () => `@customvpn-test-${process.pid}`],
] as const) {
  test(`ready with its status on one line, and stopping, are told to ${what}`, { skip }, () => {
    using receiver = new Receiver(name());
    using manager = ServiceManager.fromEnvironment({ NOTIFY_SOCKET: name() });
    manager.ready('listening on\n[::]:443');
    assert.equal(receiver.take(), 'READY=1\nSTATUS=listening on [::]:443');
    manager.stopping();
    assert.equal(receiver.take(), 'STOPPING=1');
    assert.equal(receiver.take(), undefined);
  });
}

test('a watchdog is fed twice in its time, once the service is ready, and not after the end', { skip }, (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const name = `@customvpn-watchdog-${process.pid}`;
  using receiver = new Receiver(name);
  const manager = ServiceManager.fromEnvironment(
    { NOTIFY_SOCKET: name, WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7' },
    7,
  );
  t.mock.timers.tick(10_000);
  assert.equal(receiver.take(), undefined);
  manager.ready('up');
  receiver.take();
  t.mock.timers.tick(3000);
  assert.deepEqual([receiver.take(), receiver.take(), receiver.take()], ['WATCHDOG=1', 'WATCHDOG=1', undefined]);
  manager[Symbol.dispose]();
  t.mock.timers.tick(10_000);
  assert.equal(receiver.take(), undefined);
});

test('a watchdog of another process is left alone', { skip }, (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const name = `@customvpn-other-${process.pid}`;
  using receiver = new Receiver(name);
  using manager = ServiceManager.fromEnvironment(
    { NOTIFY_SOCKET: name, WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7' },
    8,
  );
  manager.ready('up');
  receiver.take();
  t.mock.timers.tick(10_000);
  assert.equal(receiver.take(), undefined);
});

test('children do not inherit what was meant for this process', () => {
  const env = { NOTIFY_SOCKET: '/run/x', WATCHDOG_USEC: '1', WATCHDOG_PID: '1', PATH: '/bin' };
  ServiceManager.fromEnvironment(env);
  assert.deepEqual(env, { PATH: '/bin' });
});

test('without a service manager, or with one that is gone or elsewhere, nothing happens', { skip }, () => {
  for (const NOTIFY_SOCKET of [undefined, '', '/nowhere/notify', 'relative', 'vsock:2:1', `/${'x'.repeat(200)}`]) {
    using manager = ServiceManager.fromEnvironment(NOTIFY_SOCKET === undefined ? {} : { NOTIFY_SOCKET });
    manager.ready('up');
    manager.stopping();
  }
});
