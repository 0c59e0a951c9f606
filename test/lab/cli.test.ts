/** The command line as a person and a program meet it: statuses, help, JSON, messages, and no secret anywhere. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { chown, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from './command.ts';
import {
  BEHIND,
  type Client,
  Deployment,
  INNER,
  labOptions,
  OUTER,
  PORT,
  type ServerStatus,
  startPeer,
} from './deployment.ts';
import { processesOfRun, type RunResult, run } from './process.ts';

/** `nobody`, everywhere. */
const NOBODY = 65534;

const cli = (...words: string[]): Promise<RunResult> => run([COMMAND, ...words], { anyStatus: true });

/** The help of the program and of every command that it leads to, by their words. */
async function allHelps(): Promise<Map<string, RunResult>> {
  const helps = new Map<string, RunResult>();
  let level: string[][] = [[]];
  while (level.length > 0) {
    const below: string[][] = [];
    const waiting = level.values();
    // Each of them is a process of its own, and there are some seventy.
    const work = async (): Promise<void> => {
      for (const words of waiting) {
        const help = await cli(...words, '--help');
        helps.set(words.join(' '), help);
        const list = /\nCommands:\n((?: {2}.*\n)+)/.exec(help.stdout)?.[1] ?? '';
        const names = [...list.matchAll(/^ {2}([a-z][a-z-]*)/gm)].flatMap(([, name]) => name ?? []);
        below.push(...names.filter((name) => name !== 'help').map((name) => [...words, name]));
      }
    };
    await Promise.all(Array.from({ length: availableParallelism() }, work));
    level = below;
  }
  helps.delete('');
  return helps;
}

describe('without a gateway', () => {
  test('the help of every command ends with 0, says what it does and how it is called', async () => {
    const helps = await allHelps();
    assert.ok(helps.size > 30, `only ${helps.size} commands were found`);
    for (const [name, { status, stdout, stderr }] of helps) {
      assert.equal(status, 0, name);
      assert.equal(stderr, '', name);
      assert.ok(stdout.startsWith(`Usage: customvpn ${name}`), stdout);
      // The description is the paragraph after the usage.
      assert.match(stdout, /^Usage: .*\n\n[A-Za-z'].{8,}/, name);
    }
  });

  test('who stops reading, as `head` does, makes a command end without a word', async () => {
    const { stderr } = await run(['sh', '-c', '"$0" server --help | :', COMMAND], { anyStatus: true });
    assert.equal(stderr, '');
  });

  test('a backup is made and restored by one command each, and nothing is replaced by mistake', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'cvpn-backup-'));
    try {
      const at = ['--state', join(folder, 'gateway')];
      const copy = join(folder, 'copy.sqlite');
      assert.equal((await cli('server', 'init', '--name', '192.0.2.1', ...at)).status, 0);
      assert.equal((await cli('user', 'add', 'ada', ...at)).status, 0);
      const made = await cli('server', 'backup', copy, '--json', ...at);
      assert.equal(made.status, 0, made.stderr);
      assert.equal(JSON.parse(made.stdout).users, 1);
      assert.equal((await cli('user', 'add', 'bob', ...at)).status, 0);
      for (const verb of ['backup', 'restore']) {
        const refused = await cli('server', verb, copy, ...at);
        assert.equal(refused.status, 69);
        assert.match(refused.stderr, /add --force.*ERR_CONFLICT/s);
      }
      const restored = await cli('server', 'restore', copy, '--force', ...at);
      assert.equal(restored.status, 0, restored.stderr);
      assert.match(restored.stdout, /restored from .*\n.*users +1\n/);
      assert.equal((await cli('user', 'show', 'ada', ...at)).status, 0);
      assert.equal((await cli('user', 'show', 'bob', ...at)).status, 69);
      await writeFile(copy, 'no database');
      assert.equal((await cli('server', 'restore', copy, '--force', ...at)).status, 71);
      assert.equal((await cli('user', 'show', 'ada', ...at)).status, 0);

      // A store that was lost is not one without users.
      const store = join(folder, 'gateway', 'store.sqlite');
      await cli('server', 'backup', copy, '--force', ...at);
      await rm(store);
      for (const words of [
        ['user', 'list'],
        ['server', 'run'],
      ]) {
        const refused = await cli(...words, ...at);
        assert.equal(refused.status, 71, refused.stdout);
        assert.match(refused.stderr, /store\.sqlite is gone.*customvpn server restore.*ERR_STORE/s);
      }
      assert.equal((await cli('server', 'restore', copy, ...at)).status, 0);
      assert.equal((await cli('user', 'show', 'ada', ...at)).status, 0);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test('the program without a verb, or with a noun alone, shows help as wrong usage', async () => {
    for (const words of [[], ['server'], ['client']]) {
      const { status, stdout, stderr } = await cli(...words);
      assert.equal(status, 64);
      assert.match(stdout + stderr, /Usage: customvpn/);
    }
  });

  test('a mistyped command is answered with the right one', async () => {
    for (const [wrong, right] of [
      [['sever'], 'server'],
      [['server', 'stauts'], 'status'],
      [['client', 'don'], 'down'],
      [['user', 'lst'], 'list'],
    ] as const) {
      const { status, stderr } = await cli(...wrong);
      assert.equal(status, 64, wrong.join(' '));
      assert.match(stderr, new RegExp(`Did you mean ${right}\\?`));
    }
  });

  test('every kind of failure has its status of sysexits(3)', async () => {
    const nowhere = '/nonexistent/customvpn';
    const cases: [number, string, string[]][] = [
      [64, 'unknown option', ['server', 'run', '--colour']],
      [64, '--name <host,…>', ['server', 'init']],
      [64, "missing required argument 'profile'", ['client', 'up']],
      [64, 'ERR_USAGE', ['client', 'probe', 'host:0']],
      [64, 'ERR_USAGE', ['profile', 'alice', '--hours', '0']],
      [64, 'Allowed choices', ['profile', 'alice', '--pin', 'none']],
      [69, 'ERR_NOT_RUNNING', ['client', 'status', '--state', nowhere]],
      [69, 'ERR_NOT_RUNNING', ['client', 'down', '--state', nowhere]],
      [69, 'ERR_CONNECT', ['client', 'probe', '127.0.0.1:1']],
      [69, 'ERR_NAME_LOOKUP', ['client', 'probe', 'no-such-host.invalid']],
      [78, 'ERR_CONFIG_FILE', ['user', 'list', '--state', nowhere]],
      [78, 'ERR_CONFIG_FILE', ['server', 'run', '--state', nowhere]],
      [78, 'ERR_CONFIG_FILE', ['client', 'up', '/nonexistent/alice.toml', '--state', nowhere]],
    ];
    const results = await Promise.all(cases.map(([, , words]) => cli(...words)));
    for (const [index, [status, said, words]] of cases.entries()) {
      const result = results[index];
      assert.ok(result !== undefined);
      assert.equal(result.status, status, `${words.join(' ')}: ${result.stderr}`);
      assert.ok(result.stderr.includes(said), `${words.join(' ')}: ${result.stderr}`);
      assert.equal(result.stdout, '', words.join(' '));
      assert.doesNotMatch(result.stderr, /^\s+at /m, 'a stack is for internal errors');
    }
  });

  test('the version is that of the package', async () => {
    const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8'));
    assert.equal((await cli('--version')).stdout, `${version}\n`);
  });
});

describe('with a gateway', labOptions({ setpriv: 'util-linux' }), () => {
  let deployment: Deployment;
  let client: Client;
  /** All that any command or daemon here has said, but for the profile, whose purpose is to hold the token. */
  let said = '';
  let token = '';

  before(async () => {
    deployment = await Deployment.open({ settings: '[log]\nlevel = "debug"\n' });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.enrol(client);
    token = /^token = "([^"]+)"/m.exec(await readFile(client.profile, 'utf8'))?.[1] ?? '';
    assert.ok(token.length > 40);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  async function gateway(...words: string[]): Promise<RunResult> {
    const result = await deployment.cli(deployment.gateway, ...words, '--state', deployment.state);
    said += result.stdout + result.stderr;
    return result;
  }

  async function withConfig<T>(change: (text: string) => string, action: () => Promise<T>): Promise<T> {
    const text = await readFile(deployment.configFile, 'utf8');
    const changed = change(text);
    assert.notEqual(changed, text);
    await writeFile(deployment.configFile, changed);
    try {
      return await action();
    } finally {
      await writeFile(deployment.configFile, text);
    }
  }

  test('`server run --check` names file and line of what is wrong, and `server run` says the same', async () => {
    const good = await gateway('server', 'run', '--check');
    assert.equal(good.status, 0, good.stderr);
    assert.match(good.stdout, /server\.toml is good/);

    const keyOf = (file: string) => join(deployment.state, 'certs', file);
    await writeFile(keyOf('broken.pem'), 'no certificate\n');
    const cases: [string, string, RegExp][] = [
      ['names = [', 'ERR_CONFIG_SYNTAX', /server\.toml:\d+:\d+: /],
      ['colour = "red"', 'ERR_CONFIG_KEY', /server\.toml:\d+: unknown key "colour"/],
      ['mtu = 100', 'ERR_CONFIG_VALUE', /server\.toml:\d+: mtu: /],
      ['minVersion = "1.1"', 'ERR_CONFIG_VALUE', /server\.toml:\d+: minVersion: /],
      ['clientToClient = "no"', 'ERR_CONFIG_VALUE', /server\.toml:\d+: clientToClient: /],
      ['device = "much-too-long-a-name"', 'ERR_CONFIG_VALUE', /server\.toml:\d+: device: /],
    ];
    for (const [line, code, message] of cases) {
      // First, so that its line is known.
      const change = (text: string) => `${line}\n${text}`;
      const [checked, started] = await withConfig(change, async () => [
        await gateway('server', 'run', '--check'),
        await gateway('server', 'run'),
      ]);
      for (const result of [checked, started]) {
        assert.equal(result?.status, 78, `${line}: ${result?.stderr}`);
        assert.match(result?.stderr ?? '', message);
        assert.ok(result?.stderr.includes(`(${code})`), result?.stderr);
      }
      if (code !== 'ERR_CONFIG_SYNTAX') assert.match(checked?.stderr ?? '', /server\.toml:1: /);
    }
    const replaced: [RegExp, string, string, RegExp][] = [
      [/^pool = .*$/m, 'pool = ["10.1.0.0/24", "10.2.0.0/24"]', 'ERR_CONFIG_VALUE', /pool/],
      [/^certFile = .*$/m, 'certFile = "certs/none.pem"', 'ERR_CERT_FILE', /none\.pem/],
      [/^certFile = .*$/m, 'certFile = "certs/broken.pem"', 'ERR_CERT_FILE', /broken\.pem/],
      [/^keyFile = .*$/m, 'keyFile = "certs/ca.key"', 'ERR_CERT_KEY_MISMATCH', /private key does not belong/],
    ];
    for (const [key, line, code, message] of replaced) {
      const checked = await withConfig(
        (text) => text.replace(key, line),
        () => gateway('server', 'run', '--check'),
      );
      assert.equal(checked.status, 78, `${line}: ${checked.stderr}`);
      assert.ok(checked.stderr.includes(`(${code})`), checked.stderr);
      assert.match(checked.stderr, message);
    }
  });

  test('an unprivileged run says what is missing', async (t) => {
    const own = join(deployment.rig.folder, 'nobody');
    await mkdir(own);
    await chown(own, NOBODY, NOBODY);
    await run(['chmod', '755', deployment.rig.folder]);
    const user = ['setpriv', '--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups'];
    const asNobody = (...words: string[]) =>
      deployment.gateway.run([...user, COMMAND, ...words], { anyStatus: true, env: { HOME: own } });
    if ((await asNobody('--version')).status !== 0) {
      t.skip('this checkout cannot be read by other users');
      return;
    }
    const made = await asNobody(
      'server',
      'init',
      '--state',
      join(own, 'gw'),
      '--name',
      'localhost',
      '--listen',
      '[::]:1',
    );
    assert.equal(made.status, 0, made.stderr);
    const server = await asNobody('server', 'run', '--state', join(own, 'gw'));
    assert.equal(server.status, 77, server.stderr);
    assert.match(server.stderr, /root|CAP_NET|sudo/);
    const profile = join(own, 'alice.toml');
    await writeFile(profile, await readFile(client.profile));
    await chown(profile, NOBODY, NOBODY);
    const connected = await asNobody('client', 'up', profile, '--state', join(own, 'client'), '--foreground');
    assert.equal(connected.status, 77, connected.stderr);
    assert.match(connected.stderr, /root|CAP_NET|sudo/);
    for (const words of [
      ['user', 'list', '--state', deployment.state],
      ['server', 'status', '--state', deployment.state],
      ['client', 'down', '--state', client.state],
    ]) {
      const { status, stderr } = await asNobody(...words);
      assert.notEqual(status, 0);
      assert.notEqual(status, 70, `${words.join(' ')}: ${stderr}`);
      assert.match(stderr, /\(ERR_/);
    }
    const doctor = await asNobody('doctor', '--json');
    assert.equal(doctor.status, 69);
    const lacking = (JSON.parse(doctor.stdout) as { ok: boolean; mend?: string }[]).filter(({ ok }) => !ok);
    assert.ok(lacking.length > 0 && lacking.every(({ mend }) => (mend ?? '').length > 0), doctor.stdout);
    said += server.stderr + connected.stderr + doctor.stdout;
  });

  test('a port that is taken is named', async () => {
    const taken = await startPeer(deployment.gateway, 'serve', String(PORT), '::');
    const failed = await gateway('server', 'run');
    assert.equal(failed.status, 71);
    assert.match(failed.stderr, /8443.*\(ERR_PORT_TAKEN\)/);
    await taken.stop();
  });

  test('a gateway that ran with another configuration is found by that one while it does not run', async () => {
    const other = join(deployment.state, 'other.toml');
    const text = await readFile(deployment.configFile, 'utf8');
    await writeFile(other, text.replace(/^names = .*$/m, 'names = ["other.example.org"]'));
    const nameIn = async (...words: string[]) => {
      const made = await deployment.cli(
        deployment.gateway,
        'profile',
        '--shared',
        '--state',
        deployment.state,
        ...words,
      );
      assert.equal(made.status, 0, made.stderr);
      return made.stdout.includes('other.example.org');
    };
    assert.deepEqual([await nameIn(), await nameIn('--config', other)], [false, true]);
    const started = await deployment.gateway.start(
      [COMMAND, 'server', 'run', '--state', deployment.state, '--config', other],
      { ready: /^ready$/m },
    );
    assert.equal(await nameIn('--config', deployment.configFile), true, 'one that runs has its own');
    const { pid } = await deployment.ask<ServerStatus>('server', 'status');
    const processes = (await run(['pgrep', '--parent', String(pid)])).stdout.trim().split('\n');
    assert.ok(processes.length >= 2, processes.join());
    assert.equal((await gateway('server', 'stop')).status, 0);
    // One that has ended may wait to be collected.
    const left = await run(['ps', '-o', 'pid=,stat=,args=', '-p', processes.join(',')], { anyStatus: true });
    assert.doesNotMatch(left.stdout, /^ *\d+ +[^Z ]/m, 'some run when the gateway is said to be stopped');
    assert.equal(await started.exited, 0);
    assert.deepEqual([await nameIn(), await nameIn('--config', deployment.configFile)], [true, false]);
    await rm(other);
    const gone = await gateway('user', 'list');
    assert.equal(gone.status, 78);
    assert.match(gone.stderr, /other\.toml.*\(ERR_CONFIG_FILE\)/s);
  });

  describe('that runs', () => {
    before(async () => {
      // Without --config it is the one of the state directory again.
      await deployment.run();
      assert.equal((await gateway('user', 'list')).status, 0);
      await client.up();
    });

    test('a second run with the same state directory is refused', async () => {
      const second = await gateway('server', 'run');
      assert.equal(second.status, 69);
      assert.match(second.stderr, /ERR_ALREADY_RUNNING/);
      assert.ok(second.stderr.includes(`--state ${deployment.state}`), second.stderr);
      assert.ok(await client.reaches(INNER.gateway4));
    });

    test('a second client with the same profile is refused in the foreground', async () => {
      const argv = ['client', 'up', client.profile, '--foreground', '--state', client.state];
      const second = await deployment.cli(client.namespace, ...argv);
      assert.equal(second.status, 69);
      assert.match(second.stderr, /ERR_ALREADY_RUNNING/);
      assert.ok(await client.reaches(BEHIND.host4));
    });

    test('`--json` prints exactly one JSON document, on standard output', async () => {
      const state = ['--state', deployment.state];
      const commands: string[][] = [
        ['server', 'status', ...state],
        ['server', 'sessions', ...state],
        ['server', 'reload', ...state],
        ['user', 'add', 'bob', ...state],
        ['user', 'list', ...state],
        ['user', 'show', 'bob', ...state],
        ['user', 'disable', 'bob', ...state],
        ['user', 'enable', 'bob', ...state],
        ['user', 'delete', 'bob', ...state],
        ['device', 'list', ...state],
        ['pki', 'show', ...state],
        ['pki', 'issue', 'bob', ...state],
        ['pki', 'renew', ...state],
        ['client', 'probe', `${OUTER[0].gateway4}:${PORT}`],
        ['doctor'],
      ];
      for (const words of commands) {
        const where = words[0] === 'client' ? client.namespace : deployment.gateway;
        const { status, stdout, stderr } = await deployment.cli(where, ...words, '--json');
        said += stdout + stderr;
        assert.equal(status, 0, `${words.join(' ')}: ${stderr}`);
        assert.doesNotThrow(() => JSON.parse(stdout), `${words.join(' ')}: ${stdout}`);
        assert.equal(stderr, '', words.join(' '));
      }
      const missing = await gateway('user', 'show', 'nobody', '--json');
      assert.equal(missing.status, 69);
      assert.equal(missing.stdout, '');
      assert.match(missing.stderr, /ERR_NOT_FOUND/);
    });

    test('without `--json` everything is said in words', async () => {
      for (const words of [['status'], ['sessions']]) {
        const { status, stdout } = await gateway('server', ...words);
        assert.equal(status, 0);
        assert.throws(() => JSON.parse(stdout));
      }
      const { stdout } = await deployment.ok(client.namespace, 'client', 'status', '--state', client.state);
      said += stdout;
      assert.match(stdout, /connected/);
      assert.match(stdout, /TLSv1\.3/);
      assert.match(stdout, /\(super-packets\)/);
      const probed = await deployment.ok(client.namespace, 'client', 'probe', `[${OUTER[0].gateway6}]:${PORT}`);
      said += probed.stdout;
      assert.match(probed.stdout, /OK VPN-HELLO 1/);
      assert.match(probed.stdout, /X25519MLKEM768/);
    });

    test('while there is no session, the status does not say what its device carries', async () => {
      await deployment.stop();
      await client.statusWhen('the client to notice', ({ state }) => state !== 'connected');
      const { stdout: text } = await deployment.ok(client.namespace, 'client', 'status', '--state', client.state);
      assert.match(text, /cvpn0/);
      assert.doesNotMatch(text, /\(plain\)|\(super-packets\)/);
    });
  });

  test('no secret is in an argument, an environment, an output or a log', async () => {
    const bodyOf = async (file: string): Promise<string> =>
      (await readFile(file, 'utf8')).split('\n').find((line) => /^[A-Za-z0-9+/=]{30,}$/.test(line)) ?? '';
    const [deviceKey = ''] = (await run(['find', client.state, '-name', 'device.key'])).stdout.split('\n');
    const master = await readFile(join(deployment.state, 'master.key'));
    const secrets = [
      token,
      Buffer.from(token, 'base64url').toString('hex'),
      await bodyOf(join(deployment.state, 'certs/server.key')),
      await bodyOf(join(deployment.state, 'certs/ca.key')),
      await bodyOf(deviceKey),
      master.toString('hex'),
      master.toString('base64'),
      master.toString('utf8').trim(),
      'PRIVATE KEY',
    ];
    assert.ok(secrets.every((secret) => secret.length >= 11));
    const arguments_ = [...processesOfRun(deployment.rig.id)].map(
      ([pid, command]) => `${command}\n${readFileSync(`/proc/${pid}/environ`, 'latin1')}`,
    );
    const log = await client.log();
    const everything = [said, deployment.server.output, log, ...arguments_].join('\n');
    assert.match(deployment.server.output, /debug/);
    assert.match(log, /connected/);
    assert.ok(arguments_.length > 0);
    for (const secret of secrets) assert.ok(!everything.includes(secret), `${secret.slice(0, 6)}… is there`);
    assert.doesNotMatch(await readFile(client.profile, 'utf8'), /^token/m);
    // What is secret is nobody else's to read.
    const files = await run(['find', deployment.state, client.state, '-type', 'f', '-perm', '/077']);
    const open = files.stdout.split('\n').filter((file) => /\.key$|sqlite|profile|\.toml$|journal/.test(file));
    assert.deepEqual(open, []);
  });
});
