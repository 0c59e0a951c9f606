/** The systemd unit: what systemd itself says of it. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { clientUnit, gatewayUnit, killSwitchUnit } from './systemd-unit.ts';

const hasSystemd = spawnSync('systemd-analyze', ['--version']).status === 0;
const skip = hasSystemd ? false : 'this machine has no systemd-analyze (Debian package systemd)';

let folder = '';
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'customvpn-unit-'));
});
after(() => rmSync(folder, { recursive: true }));

function analyze(text: string, ...words: string[]): { status: number | null; output: string } {
  const file = join(folder, 'customvpn.service');
  writeFileSync(file, text);
  const { status, stdout, stderr } = spawnSync('systemd-analyze', [...words, file], { encoding: 'utf8' });
  return { status, output: `${stdout}${stderr}` };
}

test("systemd finds nothing wrong with the clients' unit", { skip }, () => {
  const program = join(folder, 'client program');
  writeFileSync(program, '#!/bin/sh\n');
  chmodSync(program, 0o755);
  const { status, output } = analyze(clientUnit({ program, state: folder }), 'verify');
  assert.equal(status, 0, output);
  assert.equal(output, '');
});

test("a clients' unit runs the profile that its instance is named after, and knows which failures are final", () => {
  const unit = clientUnit({ program: '/opt/100%/customvpn', state: '/var/lib/a b' });
  assert.match(unit, /^ExecStart=\/opt\/100%%\/customvpn client up %i --foreground --state "\/var\/lib\/a b"$/m);
  assert.match(unit, /^RestartPreventExitStatus=64 77 78$/m);
  assert.match(unit, /^CapabilityBoundingSet=CAP_NET_ADMIN$/m);
});

test('systemd finds nothing wrong with the unit of a kill switch', { skip }, () => {
  const program = join(folder, 'customvpn');
  writeFileSync(program, '#!/bin/sh\n');
  chmodSync(program, 0o755);
  const { status, output } = analyze(killSwitchUnit({ program, profile: join(folder, 'a b.toml') }), 'verify');
  assert.equal(status, 0, output);
  assert.deepEqual(
    output.split('\n').filter((line) => line.includes('customvpn')),
    [],
  );
});

test('a kill switch is closed before any network, after what may flush its table, and stays closed when stopped', () => {
  const unit = killSwitchUnit({ program: '/opt/customvpn', profile: '/etc/a b.toml' });
  assert.match(unit, /^Before=network-pre\.target$/m);
  assert.match(unit, /^Wants=network-pre\.target$/m);
  assert.match(unit, /^After=.*\bnftables\.service\b/m);
  assert.match(unit, /^DefaultDependencies=no$/m);
  assert.match(unit, /^ExecStart=\/opt\/customvpn client kill-switch close "\/etc\/a b\.toml"$/m);
  assert.doesNotMatch(unit, /^ExecStop/m);
});

test('systemd finds nothing wrong with the unit', { skip }, () => {
  const program = join(folder, 'customvpn');
  writeFileSync(program, '#!/bin/sh\n');
  chmodSync(program, 0o755);
  const { output } = analyze(
    gatewayUnit({ program, state: '/var/lib/customvpn', config: '/etc/customvpn.toml' }),
    'verify',
  );
  const about = output.split('\n').filter((line) => line.includes('customvpn'));
  assert.deepEqual(about, []);
});

test('systemd counts the gateway among the services that are little exposed', { skip }, () => {
  const text = gatewayUnit({ program: '/usr/bin/customvpn', state: '/var/lib/customvpn' });
  const { status, output } = analyze(text, 'security', '--offline=true', '--threshold=40');
  assert.equal(status, 0, output);
});

test('paths with blanks, quotes, specifiers and variables are one word each', () => {
  const text = gatewayUnit({ program: '/opt/a b/customvpn', state: '/var/l"b/50%/$HOME\\x' });
  assert.match(text, /^ExecStart="\/opt\/a b\/customvpn" server run --state "\/var\/l\\"b\/50%%\/\$\$HOME\\\\x"$/m);
  assert.match(text, /^ReadWritePaths="\/var\/l\\"b\/50%%\/\$HOME\\\\x"$/m);
});
