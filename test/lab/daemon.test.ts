/** The client in the background: started, talked to, watched and ended by other commands, one profile or several. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Receiver } from '../support/datagrams.ts';
import { COMMAND } from './command.ts';
import { BEHIND, type Client, type ClientStatus, Deployment, labOptions } from './deployment.ts';
import type { BackgroundProcess, RunResult } from './process.ts';
import { until } from './process.ts';

describe('a client in the background', labOptions({ setpriv: 'util-linux' }), () => {
  let deployment: Deployment;
  let client: Client;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.run();
    await deployment.enrol(client);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const cli = (...words: string[]): Promise<RunResult> =>
    deployment.cli(client.namespace, 'client', ...words, '--state', client.state);

  async function ok(...words: string[]): Promise<string> {
    const { status, stdout, stderr } = await cli(...words);
    assert.equal(status, 0, `${words.join(' ')}: ${stderr}`);
    return stdout;
  }

  /** Whether a process watches files: before that it could miss what comes. */
  const isWatching = async (pid: number): Promise<boolean> =>
    (await client.namespace.run(['ls', '-l', `/proc/${pid}/fd`], { anyStatus: true })).stdout.includes('inotify');

  const json = async <T>(...words: string[]): Promise<T> => JSON.parse(await ok(...words, '--json')) as T;

  test('an imported profile is known by its name, and listed with what became of its token', async () => {
    assert.match(await ok('import', client.profile, '--name', 'work'), /imported "work".*enrols one device until/s);
    const [row] = await json<{ name: string; device: string; running: boolean }[]>('profiles');
    assert.deepEqual(
      { ...row, server: '', file: '' },
      {
        name: 'work',
        server: '',
        user: null,
        device: 'new, has a token',
        running: false,
        lastEnd: null,
        file: '',
      },
    );
    const unknown = await cli('up', 'wrok');
    assert.equal(unknown.status, 78);
    assert.match(unknown.stderr, /imported are: work.*ERR_CONFIG_FILE/s);
  });

  test('`up` returns when traffic flows; again it says that it does already, and changes nothing', async () => {
    const first = await json<ClientStatus & { name: string }>('up', 'work');
    assert.equal(first.state, 'connected');
    assert.equal(first.name, 'work');
    assert.ok(await client.reaches(BEHIND.host4));
    const again = await cli('up', 'work', '--json');
    assert.equal(again.status, 0);
    assert.match(again.stderr, /connected already/);
    assert.equal((JSON.parse(again.stdout) as ClientStatus).pid, first.pid);
    const rows = await json<{ device: string; running: boolean }[]>('profiles');
    assert.deepEqual(
      rows.map(({ device, running }) => [device, running]),
      [['enrolled', true]],
    );
  });

  test('`status` says who, where, how long and how far, once or again and again', async () => {
    const text = await ok('status', 'work');
    for (const word of ['profile', 'state', 'server', 'addresses', 'routes', 'traffic'])
      assert.match(text, new RegExp(word));
    const argv = [COMMAND, 'client', 'status', '--watch', '--json', '--state', client.state];
    const watching = await client.namespace.start(argv, { ready: () => true });
    await until('three looks', () => watching.output.split('\n').length > 3);
    await client.reaches(BEHIND.host4);
    await watching.stop();
    const looks = watching.output
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as ClientStatus[]);
    assert.ok(looks.every(([only]) => only?.state === 'connected'));
  });

  test('`logs` shows the end of the log, and with --follow what comes', async () => {
    assert.match(await ok('logs', 'work'), /connected/);
    assert.equal((await ok('logs', '--lines', '1')).trim().split('\n').length, 1);
    const argv = [COMMAND, 'client', 'logs', 'work', '--follow', '--lines', '0', '--state', client.state];
    const following: BackgroundProcess = await client.namespace.start(argv, { ready: () => true });
    await until('the log to be watched', () => isWatching(following.pid));
    await deployment.ask('server', 'kick', (await deployment.sessions)[0]?.id ?? 'none');
    await until('the last line', () => /has ended/.test(following.output));
    assert.equal(await following.stop(), 0);
    client.forget();
  });

  test('why a client ended by itself is told by the next `status` and in the list', async () => {
    await until('its end', async () => (await cli('status')).status === 69);
    const { stderr } = await cli('status', 'work');
    assert.match(stderr, /the last one ended .* ago: .*admin.*connect with: customvpn client up work/s);
    const [row] = await json<{ lastEnd: { code: string } | null }[]>('profiles');
    assert.equal(row?.lastEnd?.code, 'ERR_PEER_GONE');
    await ok('up', 'work');
  });

  test('`down --keep` puts the machine back and keeps the session: the next `up` logs nobody in', async () => {
    const before = await json<ClientStatus>('status');
    const { logins } = (await deployment.status).counters;
    assert.match(await ok('down', 'work', '--keep'), /kept/);
    const parked = await json<ClientStatus>('status');
    assert.equal(parked.state, 'down');
    assert.equal(parked.pid, before.pid);
    assert.equal((await client.namespace.run(['ip', 'link', 'show', 'type', 'tun'])).stdout, '');
    await until('the gateway to wait', async () => (await deployment.status).waiting === 1);
    const back = await json<ClientStatus>('up', 'work');
    assert.equal(back.state, 'connected');
    assert.deepEqual(back.addresses, before.addresses);
    assert.equal(back.pid, before.pid);
    assert.ok(await client.reaches(BEHIND.host6));
    assert.equal((await deployment.status).counters.logins, logins);
    assert.equal((await deployment.status).waiting, 0);
  });

  test('a second profile whose networks clash is told so, and the first is left alone', async () => {
    await deployment.ok(deployment.gateway, 'user', 'add', 'second', '--state', deployment.state);
    const link = await deployment.ok(deployment.gateway, 'profile', 'second', '--link', '--state', deployment.state);
    const text = await client.namespace.run([COMMAND, 'client', 'import', '-', '--state', client.state], {
      input: link.stdout,
    });
    assert.match(text.stdout, /imported "second"/);
    const drawn = await deployment.ok(
      deployment.gateway,
      'profile',
      'second',
      '--qr',
      '--link',
      '--state',
      deployment.state,
    );
    assert.match(drawn.stderr, /(?:[▀▄█ ]{60,}\n){20,}/u);
    assert.match(drawn.stdout, /^customvpn:1\.[A-Za-z0-9_-]+\n$/);
    const clash = await cli('up', 'second');
    assert.equal(clash.status, 69, clash.stderr);
    assert.match(
      clash.stderr,
      /"work" is connected and has 192\.0\.2\.0\/24.*customvpn client down work.*ERR_CONFLICT/s,
    );
    assert.ok(await client.reaches(BEHIND.host4));
    assert.equal((await json<ClientStatus[]>('status', '--all')).length, 1);
  });

  test('removing a connected profile is refused; after `down` it is forgotten with its key', async () => {
    const refused = await cli('remove', 'work');
    assert.equal(refused.status, 69);
    assert.match(refused.stderr, /disconnect it first: customvpn client down work/);
    await ok('down', 'work');
    assert.match(await ok('remove', 'work'), /still lists this device/);
    assert.deepEqual(
      (await json<{ name: string }[]>('profiles')).map(({ name }) => name),
      ['second'],
    );
    client.forget();
  });

  test('a profile whose token another machine has used says so and how to go on', async () => {
    const used = join(deployment.rig.folder, 'used.toml');
    await writeFile(used, await readFile(client.profile, 'utf8'), { mode: 0o600 });
    const refused = await cli('up', used);
    assert.equal(refused.status, 77, refused.stderr);
    assert.match(refused.stderr, /already enrolled another device; ask for a new one.*ERR_AUTH_PROFILE_USED/s);
  });

  test('as a service it has only the rights of its unit, and tells systemd when it works', async () => {
    const unit = await ok('unit');
    assert.match(unit, /^ExecStart=\S*\/bin\/customvpn client up %i --foreground --state \S+$/m);
    const capabilities = (/^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1] ?? '').toLowerCase().split(' ');
    const only = capabilities.map((name) => `+${name.replace(/^cap_/, '')}`).join();
    const socket = join(deployment.rig.folder, 'notify');
    using manager = new Receiver(socket);
    const rights = ['setpriv', `--bounding-set=-all,${only}`, '--inh-caps=-all', '--no-new-privs'];
    const argv = ['env', `NOTIFY_SOCKET=${socket}`, ...rights, COMMAND, 'client', 'up', 'second', '--foreground'];
    const service = await client.namespace.start([...argv, '--state', client.state], { ready: /^up$/m });
    const said: string[] = [];
    await until('what it tells', () => {
      said.push(...[manager.take()].flatMap((text) => text ?? []));
      return said.some((text) => text === 'STATUS=connected');
    });
    assert.match(said[0] ?? '', /^READY=1\n/);
    assert.ok(await client.reaches(BEHIND.host4));
    assert.equal((await cli('down', 'second')).status, 0);
    assert.equal(await service.exited, 0);
  });
});
