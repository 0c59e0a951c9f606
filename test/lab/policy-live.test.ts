/** A policy file at a real gateway with real clients: what it allows and denies, and what a change does to those who are there. */

import assert from 'node:assert/strict';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, changesSince, Deployment, labOptions, peer, startPeer } from './deployment.ts';
import { until } from './process.ts';
import type { Snapshot } from './snapshot.ts';

const OPEN = '9001';
const SHUT = '9002';
const DRIP = '9003';
const DRIP_PEER = [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  join(import.meta.dirname, 'drip-peer.ts'),
];
/** A change takes effect within a second; what looks on may take its time. */
const WITHIN_MS = 20_000;

const STAFF = `
[[rules]]
name = "staff"
action = "allow"
from = ["group:staff"]
to = ["${BEHIND.host4}", "${BEHIND.host6}"]
services = ["tcp/${OPEN}", "icmp/echo"]
`;
const NOBODY_SHUT = `
[[rules]]
name = "shut"
action = "deny"
from = ["any"]
to = ["${BEHIND.host4}"]
services = ["tcp/${SHUT}"]
`;

describe('a policy in force', labOptions(), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;
  let clean: Snapshot;
  /** While this file is there, the real `nft` gets each transaction with one command more, which the kernel cannot carry out. */
  let broken: string;

  const write = (rules: string): Promise<void> =>
    writeFile(join(deployment.state, 'policy.toml'), `version = 1\n${rules}`);
  const reload = () => deployment.ask<{ applied: string[]; warnings: string[] }>('server', 'reload');
  const reaches = async (client: Client, address: string, port: string): Promise<boolean> =>
    (await peer<{ accepted: boolean }>(client.namespace, 'reach', address, port)).accepted;

  /** The table, without what counts and what runs out. */
  const table = async (): Promise<string[]> => {
    const { stdout } = await deployment.gateway.run(['nft', 'list', 'table', 'inet', 'customvpn']);
    return stdout.split('\n').filter((line) => !/\bpackets\b|\bexpires\b/.test(line));
  };
  /** The search path with a program in front that hands on to `nft`. */
  const searchPath = async (): Promise<string> => {
    const folder = join(deployment.rig.folder, 'programs');
    broken = join(deployment.rig.folder, 'broken');
    await mkdir(folder);
    const { stdout } = await deployment.gateway.run(['sh', '-c', 'command -v nft || echo /usr/sbin/nft']);
    const nft = stdout.trim();
    const more = "{ cat; echo 'add rule inet customvpn nowhere accept'; }";
    const text = `#!/bin/sh\n[ -e '${broken}' ] && [ "$1" = -f ] || exec ${nft} "$@"\n${more} | ${nft} "$@"\n`;
    await writeFile(join(folder, 'nft'), text, { mode: 0o755 });
    return `PATH=${folder}:${process.env.PATH}`;
  };

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 2 });
    const [one, two] = deployment.clients;
    assert.ok(one !== undefined && two !== undefined);
    first = one;
    second = two;
    await deployment.configure((text) => `policyFile = "../policy.toml"\n${text}\n[admin]\neditPolicy = true\n`);
    await deployment.configure((text) => text.replace('../policy.toml', join(deployment.state, 'policy.toml')));
    await write(NOBODY_SHUT + STAFF);
    await deployment.behind.start([...DRIP_PEER, 'serve', DRIP], { ready: /^ready$/m });
    for (const port of [OPEN, SHUT]) await startPeer(deployment.behind, 'serve', port, '::');
    clean = await deployment.gateway.snapshot();
    await deployment.run(['env', await searchPath()]);
    for (const client of [first, second]) await deployment.enrol(client);
    await deployment.ok(deployment.gateway, 'user', 'group', first.user, '--add', 'staff', '--state', deployment.state);
    await first.up();
    await second.up('--plain');
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  test('whoever a rule speaks of reaches what it says, over both versions, and nobody else reaches anything', async () => {
    for (const address of [BEHIND.host4, BEHIND.host6]) {
      assert.equal(await reaches(first, address, OPEN), true, address);
      assert.equal(await reaches(first, address, SHUT), false, address);
      assert.equal(await first.reaches(address), true, address);
      assert.equal(await reaches(second, address, OPEN), false, address);
      assert.equal(await second.reaches(address), false, address);
    }
  });

  test('each denied connection is shown with who, what and which rule', async () => {
    type Denial = {
      user: string;
      source: string;
      destination: string;
      port: number | null;
      protocol: string;
      rule: { name: string } | null;
    };
    const following = await deployment.gateway.start([
      ...[deployment.command, 'policy', 'denied', '--follow', '--state', deployment.state],
    ]);
    await reaches(first, BEHIND.host4, SHUT);
    await reaches(second, BEHIND.host6, OPEN);
    const wanted = [
      [first.user, BEHIND.host4, Number(SHUT), 'shut'],
      [second.user, BEHIND.host6, Number(OPEN), undefined],
    ];
    let shown: unknown[] = [];
    await until(
      'the denials',
      async () => {
        const denials = await deployment.ask<Denial[]>('policy', 'denied');
        shown = denials.map(({ user, destination, port, rule }) => [user, destination, port, rule?.name]);
        const texts = shown.map((one) => JSON.stringify(one));
        return wanted.every((one) => texts.includes(JSON.stringify(one)));
      },
      { timeoutMs: WITHIN_MS },
    ).catch((error: unknown) => assert.fail(`${error}: ${JSON.stringify(shown)}`));
    for (const [user, address, port, rule] of wanted) {
      const isTold = (line: string) =>
        [user, address, port, rule ?? ''].every((word) => line.includes(String(word))) && !line.includes('undefined');
      await until(`the line of ${address}`, async () => following.output.split('\n').some(isTold), {
        timeoutMs: WITHIN_MS,
      }).catch((error: unknown) => assert.fail(`${error}: ${following.output}`));
    }
    await following.stop();
  });

  test('a group gives access to a session that is there, and its loss cuts a running connection', async () => {
    const group = (...words: string[]) =>
      deployment.ok(deployment.gateway, 'user', 'group', second.user, ...words, '--state', deployment.state);
    await group('--add', 'staff');
    assert.equal(await reaches(second, BEHIND.host4, OPEN), true);
    const talk = await startPeer(second.namespace, 'talk', BEHIND.host4, OPEN);
    const other = await startPeer(first.namespace, 'talk', BEHIND.host4, OPEN);
    for (const [one, word] of [
      [talk, 'before'],
      [other, 'before'],
    ] as const) {
      one.write(`${word}\n`);
      await until('its answer', async () => one.output.includes(word), { timeoutMs: WITHIN_MS });
    }
    await group('--remove', 'staff');
    talk.write('after\n');
    other.write('after\n');
    // Whoever the change does not concern goes on.
    await until('the answer to who still may', async () => other.output.includes('after'), { timeoutMs: WITHIN_MS });
    assert.ok(!talk.output.includes('after'), talk.output);
    assert.equal(await reaches(second, BEHIND.host4, OPEN), false);
    await talk.stop();
    await other.stop();
  });

  test('where only the other end speaks, a lost right stops it all the same, and nobody else is disturbed', async () => {
    const group = (...words: string[]) =>
      deployment.ok(deployment.gateway, 'user', 'group', second.user, ...words, '--state', deployment.state);
    await write(NOBODY_SHUT + STAFF.replace(`"tcp/${OPEN}"`, `"tcp/${OPEN}", "udp/${DRIP}"`));
    await reload();
    await group('--add', 'staff');
    const listen = (client: Client) =>
      client.namespace.start([...DRIP_PEER, 'listen', BEHIND.host4, DRIP], { ready: /^ready$/m });
    const loser = await listen(second);
    const other = await listen(first);
    await group('--remove', 'staff');
    await until('silence', async () => loser.output.includes('silent'), { timeoutMs: WITHIN_MS });
    // A change of the file that is none for this client.
    const others = STAFF.replace('"staff"', '"others"').replace('group:staff', 'group:others');
    await write(NOBODY_SHUT + others + STAFF.replace(`"tcp/${OPEN}"`, `"tcp/${OPEN}", "udp/${DRIP}"`));
    await reload();
    assert.equal(await reaches(first, BEHIND.host4, OPEN), true);
    assert.ok(!other.output.includes('silent'), other.output);
    await loser.stop();
    await other.stop();
  });

  test('another policy file takes effect on live sessions, with new routes; one that is wrong, or whose tests fail, changes nothing', async () => {
    const settings = `\n[[settings]]\nfor = ["any"]\nroutes = ["192.0.2.0/25"]\n`;
    await write(`${STAFF.replace('group:staff', `user:${second.user}`)}${settings}`);
    const { warnings } = await reload();
    assert.match(warnings.join('\n'), new RegExp(`can reach nothing any more \\(${first.user}\\)`));
    assert.equal(await reaches(second, BEHIND.host4, OPEN), true);
    assert.equal(await reaches(first, BEHIND.host4, OPEN), false);
    await first.statusWhen('new routes', ({ routes }) => routes.join() === '192.0.2.0/25', WITHIN_MS);
    for (const [text, message] of [
      ['[[rules]]\naction = "allow"\nfrom = ["nobody"]\nto = ["any"]\n', /policy\.toml:4: expected any, user:NAME/],
      [
        `${STAFF}\n[tests]\nexpect = ["group:staff cannot reach ${BEHIND.host4}:${OPEN}/tcp"]\n`,
        /the test ".*" fails: staff in line/,
      ],
    ] as const) {
      await write(text);
      const refused = await deployment.cli(deployment.gateway, 'server', 'reload', '--state', deployment.state);
      assert.notEqual(refused.status, 0);
      assert.match(refused.stderr, message);
      assert.equal(await reaches(second, BEHIND.host4, OPEN), true);
      assert.equal(await reaches(first, BEHIND.host4, OPEN), false);
    }
    await write(NOBODY_SHUT + STAFF);
    await reload();
    assert.equal(await reaches(first, BEHIND.host4, OPEN), true);
  });

  test('a policy is put in force by a command, is the file from then on, and is rolled back', async () => {
    const other = join(deployment.state, 'other.toml');
    await writeFile(other, `version = 1\n${STAFF.replace('group:staff', `user:${second.user}`)}`);
    const ours = await readFile(join(deployment.state, 'policy.toml'), 'utf8');
    const { version } = await deployment.ask<{ version: number }>('policy', 'apply', other, '--note', 'for a test');
    assert.equal(await reaches(second, BEHIND.host4, OPEN), true);
    assert.equal(await reaches(first, BEHIND.host4, OPEN), false);
    assert.equal(await readFile(join(deployment.state, 'policy.toml'), 'utf8'), await readFile(other, 'utf8'));
    await writeFile(other, `version = 1\n${STAFF}\n[tests]\nexpect = ["group:staff cannot reach ${BEHIND.host4}"]\n`);
    const refused = await deployment.cli(deployment.gateway, 'policy', 'apply', other, '--state', deployment.state);
    assert.match(refused.stderr, /the test ".*" fails/);
    assert.equal(await reaches(first, BEHIND.host4, OPEN), false);
    await deployment.ok(deployment.gateway, 'policy', 'rollback', String(version - 1), '--state', deployment.state);
    assert.equal(await reaches(first, BEHIND.host4, OPEN), true);
    assert.equal(await readFile(join(deployment.state, 'policy.toml'), 'utf8'), ours);
  });

  test('a change that the kernel refuses half-way leaves the old rules, by reload and by command, and the operator is told', async () => {
    const changed = NOBODY_SHUT + STAFF.replace(`"tcp/${OPEN}"`, `"tcp/${OPEN}", "tcp/9009"`);
    const ours = await readFile(join(deployment.state, 'policy.toml'), 'utf8');
    const other = join(deployment.state, 'other.toml');
    await writeFile(other, `version = 1\n${changed}`);
    const talk = await startPeer(first.namespace, 'talk', BEHIND.host4, OPEN);
    const answered = async (word: string): Promise<void> => {
      talk.write(`${word}\n`);
      await until(`the answer to ${word}`, async () => talk.output.includes(word), { timeoutMs: WITHIN_MS });
    };
    await answered('before');
    const before = await table();
    await writeFile(broken, '');
    for (const words of [
      ['policy', 'apply', other],
      ['server', 'reload'],
    ]) {
      if (words.includes('reload')) await write(changed);
      const refused = await deployment.cli(deployment.gateway, ...words, '--state', deployment.state);
      assert.notEqual(refused.status, 0);
      assert.match(refused.stderr, /nft -f -: .*No such file or directory/);
      assert.deepEqual(await table(), before, 'not a rule, a set or a mark is another one');
      await answered(`after-${words[1]}`);
      if (words.includes('apply')) assert.equal(await readFile(join(deployment.state, 'policy.toml'), 'utf8'), ours);
    }
    await rm(broken);
    await reload();
    assert.match((await table()).join('\n'), /\b9009\b/);
    await answered('in-force');
    await talk.stop();
    await writeFile(join(deployment.state, 'policy.toml'), ours);
    await reload();
  });

  test('after auth and a worker were killed the policy holds as before', async () => {
    const { stdout } = await deployment.gateway.run(['pgrep', '-P', String((await deployment.status).pid)]);
    for (const pid of stdout.trim().split('\n').map(Number)) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended with another.
      }
    }
    await until(
      'the gateway to be back',
      async () =>
        (await deployment.cli(deployment.gateway, 'server', 'status', '--state', deployment.state)).status === 0,
      { timeoutMs: 60_000 },
    );
    await until('the first client to reach again', () => reaches(first, BEHIND.host4, OPEN), { timeoutMs: 60_000 });
    await second.statusWhen('the second client to be back', ({ state }) => state === 'connected', 60_000);
    assert.equal(await reaches(second, BEHIND.host4, OPEN), false);
    assert.equal(await reaches(first, BEHIND.host4, SHUT), false);
  });

  test('without a policy file routes say what is reached; and a killed gateway leaves nothing that its next life does not remove', async () => {
    await deployment.configure((text) => text.replace(/^policyFile.*\n/m, ''));
    await reload();
    assert.equal(await reaches(second, BEHIND.host4, SHUT), true);
    const { file } = await deployment.ask<{ file: string | null }>('policy', 'show');
    assert.equal(file, null);
    await deployment.stop();
    await deployment.configure((text) => `policyFile = "${join(deployment.state, 'policy.toml')}"\n${text}`);
    const server = await deployment.run();
    process.kill((await deployment.status).pid, 'SIGKILL');
    await server.exited;
    await deployment.run();
    await deployment.stop();
    assert.deepEqual(await changesSince(clean, deployment.gateway), []);
  });
});
