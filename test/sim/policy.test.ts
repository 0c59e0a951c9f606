/** The verbs of a policy file, as a person runs them. */

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { runProgram } from '../support/process.ts';

const ROOT = new URL('../..', import.meta.url).pathname;
const PROGRAM = join(ROOT, 'bin/customvpn');
// No test asks a name server.
const EXAMPLE = readFileSync(join(ROOT, 'config/policy.example.toml'), 'utf8').replace('db.example.org', '10.1.2.9');
const folder = mkdtempSync(join(tmpdir(), 'customvpn-policy-'));
after(() => rmSync(folder, { recursive: true }));

/** The line of the example that says this, counted from 1, or that of the rule before it. */
function lineOf(text: string, ofRule = false): number {
  const lines = EXAMPLE.split('\n');
  const at = lines.findIndex((line) => line.includes(text));
  return !ofRule ? at + 1 : lines.lastIndexOf('[[rules]]', at) + 1;
}

/** Runs a verb on the example with a change. */
async function policy(verb: string, change: readonly [string, string] = ['', ''], ...more: string[]) {
  const file = join(folder, 'policy.toml');
  writeFileSync(file, EXAMPLE.replace(...change));
  const { status, stdout, stderr } = await runProgram(PROGRAM, ['policy', verb, file, ...more]);
  return { status, stdout: stdout.replaceAll(`${folder}/`, ''), stderr };
}

test('the example is good, and its tests hold', async () => {
  const check = await policy('check');
  assert.deepEqual([check.status, check.stderr], [0, '']);
  assert.equal(check.stdout, 'good  6 rules, 7 tests; try its tests: customvpn policy test policy.toml\n');
  const trial = await policy('test', ['', ''], '--state', folder, '--json');
  assert.equal(trial.status, 0);
  const { good, outcomes } = JSON.parse(trial.stdout);
  assert.deepEqual([good, outcomes.length], [true, 7]);
});

test('errors and warnings name file, line and column; only errors fail', async () => {
  const bad = await policy('check', ['"group:everyone"]', '"everyone"]']);
  assert.equal(bad.status, 78);
  assert.match(bad.stdout, /^policy\.toml:\d+:9: error: expected any, user:NAME or group:NAME, found "everyone"\n$/);
  const shadowed = await policy('check', ['to = ["databases"]\nrequire', 'to = ["databases"]\n#']);
  assert.equal(shadowed.status, 0);
  const twice = await policy('check', ['to = ["office"]', 'to = ["10.1.2.7"]']);
  assert.equal(twice.status, 0);
  const [office, nobody] = [lineOf('name = "the office"', true), lineOf('name = "nobody else"', true)];
  const expected = `policy.toml:${office}:1: warning: the office is never reached: nobody else in line ${nobody} denies all of it before`;
  assert.equal(twice.stdout.split('\n')[0], expected);
});

test('a test that fails says why, and the command fails', async () => {
  const trial = await policy('test', ['group:staff cannot reach', 'group:staff can reach'], '--state', folder);
  assert.equal(trial.status, 78);
  const [line, nobody] = [lineOf('group:staff cannot'), lineOf('name = "nobody else"', true)];
  const expected = `failed  ${line}: group:staff can reach 10.1.2.3: nobody else in line ${nobody} denies it\n`;
  assert.ok(trial.stdout.includes(expected), trial.stdout);
  assert.match(trial.stdout, /^7 tests, 1 failed$/m);
});

test('a policy with errors is not tried', async () => {
  const { status, stderr } = await policy('test', ['version = 1', 'version = 9'], '--state', folder);
  assert.equal(status, 78);
  assert.match(stderr, /policy\.toml:3: version: .*see all with: customvpn policy check/);
});

test('users have the groups of the gateway', async () => {
  const state = join(folder, 'gw');
  const run = (...args: string[]) => runProgram(PROGRAM, [...args, '--state', state]);
  await run('server', 'init', '--name', 'vpn.example.org', '--pool', '10.1.9.0/24');
  await run('user', 'add', 'carl', '--group', 'staff');
  const change = ['expect = [', 'expect = ["carl can reach 10.1.4.4:443", "carl cannot reach 10.1.9.9",'] as const;
  const { outcomes } = JSON.parse((await policy('test', change, '--state', state, '--json')).stdout);
  assert.deepEqual(
    outcomes.filter(({ passed }: { passed: boolean }) => !passed).map(({ text }: { text: string }) => text),
    // What was a network of the example is the pool of this gateway.
    ['group:contractors can reach 10.1.9.9:443/tcp at 2026-03-02T09:00Z'],
  );
});

test('the schema is one that editors read', async () => {
  const { status, stdout } = await runProgram(PROGRAM, ['policy', 'schema']);
  assert.equal(status, 0);
  const { $schema, title, properties } = JSON.parse(stdout);
  assert.match($schema, /json-schema\.org/);
  assert.equal(title, 'CustomVPN policy');
  assert.deepEqual(Object.keys(properties), [
    'version',
    'groups',
    'networks',
    'services',
    'rules',
    'settings',
    'sites',
    'addresses',
    'groupLimits',
    'classes',
    'tests',
  ]);
});
