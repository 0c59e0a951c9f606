// What needs no privilege; the changes themselves are made in test/lab/os-host.test.ts.

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { silentLogger } from '../base/log.ts';
import { hasProgram, runCommand } from './command.ts';
import { HostNetwork } from './host.ts';

const skip =
  process.platform !== 'linux'
    ? 'this machine does not run Linux'
    : (await hasProgram('ip'))
      ? false
      : 'iproute2 is missing';
const folder = mkdtempSync(join(tmpdir(), 'cvpn-host-'));
after(() => rmSync(folder, { recursive: true }));

test('a host that was not changed leaves no journal, and may be opened again', { skip }, async () => {
  const journalPath = join(folder, 'a', 'host.journal');
  const host = await HostNetwork.open({ journalPath, log: silentLogger });
  assert.equal(existsSync(journalPath), false);
  await host.applyAll([]);
  await assert.rejects(HostNetwork.open({ journalPath, log: silentLogger }), (error) =>
    isVpnError(error, 'ERR_ALREADY_RUNNING'),
  );
  await host.revert();
  await host.revert();
  assert.equal(existsSync(journalPath), false);
  await (await HostNetwork.open({ journalPath, log: silentLogger })).revert();
});

test('settings outside the network, and unknown ones and devices, are refused before anything is written', {
  skip,
}, async () => {
  const host = await HostNetwork.open({ journalPath: join(folder, 'b', 'host.journal'), log: silentLogger });
  for (const key of ['kernel.core_pattern', 'net/../kernel/hostname', 'net', 'net//ipv4', '/etc/passwd']) {
    await assert.rejects(
      host.apply({ kind: 'sysctl', key, value: '1' }),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
      key,
    );
  }
  await assert.rejects(host.apply({ kind: 'sysctl', key: 'net.ipv4.no_such_setting', value: '1' }), (error) =>
    isVpnError(error, 'ERR_HOST_APPLY'),
  );
  await assert.rejects(host.apply({ kind: 'link', device: 'nowhere0', up: true }), (error) =>
    isVpnError(error, 'ERR_HOST_APPLY'),
  );
  await host.revert();
});

test('a setting that is as wanted is not ours', { skip }, async () => {
  const journalPath = join(folder, 'c', 'host.journal');
  const host = await HostNetwork.open({ journalPath, log: silentLogger });
  const { readFileSync } = await import('node:fs');
  const value = readFileSync('/proc/sys/net/ipv4/ip_forward', 'utf8').trim();
  await host.apply({ kind: 'sysctl', key: 'net.ipv4.ip_forward', value });
  assert.doesNotMatch(readFileSync(journalPath, 'utf8'), /sysctl/);
  await host.revert();
});

test('a program that is missing is named with its package; one that fails with its own words', { skip }, async () => {
  await assert.rejects(runCommand('no-such-program', []), (error) => isVpnError(error, 'ERR_UNSUPPORTED'));
  await assert.rejects(
    runCommand('ip', ['nonsense']),
    (error) => isVpnError(error, 'ERR_HOST_APPLY') && /nonsense/.test(error.message) && error.details.status === 1,
  );
  assert.equal(await runCommand('cat', [], 'input'), 'input');
});
