/** Users, passwords and one-time codes as an administrator and a user meet them: the real command line, real tunnels. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { URI } from 'otpauth';
import { COMMAND } from './command.ts';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { type RunResult, run, until } from './process.ts';

const PASSWORD = 'correct horse battery staple';

describe('a gateway that asks for password and one-time code', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.configure((text) => `${text}\n[login]\nsteps = ["device", "password", "totp"]\n`);
    await deployment.run();
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const admin = (words: readonly string[], input?: string): Promise<RunResult> =>
    run([COMMAND, ...words, '--state', deployment.state], {
      anyStatus: true,
      ...(input === undefined ? {} : { input }),
    });

  const up = (input: string, ...flags: string[]): Promise<RunResult> =>
    client.namespace.run([COMMAND, 'client', 'up', client.profile, '--state', client.state, ...flags], {
      anyStatus: true,
      input,
    });

  let codeAt: (step: number) => string;

  test('an administrator makes the account: passwords come on standard input and are shown nowhere', async () => {
    const added = await admin(['user', 'add', client.user, '--group', 'staff', '--password-stdin'], 'short\n');
    assert.equal(added.status, 64);
    assert.match(added.stderr, /at least 10 characters/);
    assert.equal((await admin(['user', 'show', client.user])).status, 69, 'a refused password leaves no account');
    assert.equal((await admin(['user', 'add', client.user, '--group', 'staff'])).status, 0);
    const set = await admin(['user', 'passwd', client.user, '--stdin'], `${PASSWORD}\n`);
    assert.match(set.stdout, /^set the password of user0; 0 sessions ended/);
    const { stdout } = await admin(['user', 'totp', client.user]);
    const uri = /^otpauth:\S+$/m.exec(stdout)?.[0] ?? '';
    const app = URI.parse(uri);
    codeAt = (step) => app.generate({ timestamp: Date.now() + step * 30_000 } as never);
    assert.match(stdout, /█/);
    assert.equal(stdout.match(/^ {2}[a-z2-7]{4}(-[a-z2-7]{4}){3}$/gm)?.length, 10);
    const shown = await admin(['user', 'show', client.user]);
    assert.match(shown.stdout, /one-time codes +yes; 10 recovery codes left/);
    assert.ok(!shown.stdout.includes(app.secret.base32));
    await deployment.profile(client);
  });

  test('without anybody to ask `client up` says what to do, and a wrong answer is refused', async () => {
    const nobody = await up('');
    assert.equal(nobody.status, 77);
    assert.match(nobody.stderr, /--password-stdin.*ERR_AUTH_NEEDED/s);
    const half = await up(`${PASSWORD}\n`, '--password-stdin');
    assert.equal(half.status, 77);
    assert.match(half.stderr, /asks for a totp.*ERR_AUTH_NEEDED/s);
    const wrong = await up(`wrong horse battery\n${codeAt(0)}\n`, '--password-stdin');
    assert.equal(wrong.status, 77);
    assert.match(wrong.stderr, /ERR_AUTH_REJECTED/);
    for (const text of [nobody, half, wrong].flatMap(({ stdout, stderr }) => [stdout, stderr])) {
      assert.ok(!text.includes(PASSWORD));
    }
  });

  test('with both, in the background and in the foreground, packets flow; no process shows them in its arguments', async () => {
    const connected = await up(`${PASSWORD}\n${codeAt(0)}\n`, '--password-stdin');
    assert.equal(connected.status, 0, connected.stderr);
    assert.ok(await client.reaches(BEHIND.host4));
    const { stdout } = await run(['ps', 'axww', '-o', 'args=']);
    assert.ok(!stdout.includes(PASSWORD));
    assert.ok(!(await client.log()).includes(PASSWORD));
    await client.down();
    const used = await up(`${PASSWORD}\n${codeAt(0)}\n`, '--password-stdin');
    assert.equal(used.status, 77, 'the code has been used');
  });

  test('a person in a terminal is asked, sees nothing of the password, and is in', async () => {
    const argv = [COMMAND, 'client', 'up', client.profile, '--state', client.state];
    // script(1) makes a terminal; what is typed comes once the question is there.
    const script = ['script', '-qefc', `stty cols 100 rows 30; exec ${argv.join(' ')}`, '/dev/null'];
    await using terminal = await client.namespace.start(script, { ready: /Password/, isTyped: true });
    terminal.write(`${PASSWORD}\r`);
    await until('the next question', () => terminal.output.includes('One-time code'));
    terminal.write(`${codeAt(1)}\r`);
    assert.equal(await terminal.exited, 0, terminal.output);
    assert.ok(!terminal.output.includes(PASSWORD));
    assert.ok(await client.reaches(BEHIND.host4));
    // A new password ends what the old one opened, for good.
    const changed = await admin(['user', 'passwd', client.user, '--stdin'], 'another long password\n');
    assert.match(changed.stdout, /1 sessions ended/);
    assert.equal(await client.reaches(BEHIND.host4, '-c1', '-W1'), false);
  });
});
