// A policy file and the streams of the proxy: what it allows, what a change, a group or an hour does to streams that are open,
// and what of it an operator sees. The network behind the gateway is of this process; everything else is real.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { ManualClock } from '../../src/base/clock.ts';
import { formatPrefix } from '../../src/ip/address.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { until, World } from '../support/world.ts';

const LIMIT = { timeout: 60_000 };
const SERVER = '192.0.2.1:7';
const rule = (name: string, from: string, to: string, more = '') =>
  `\n[[rules]]\nname = "${name}"\naction = "allow"\nfrom = ["${from}"]\nto = ["${to}"]\n${more}`;

class Stage implements AsyncDisposable {
  readonly network = new TargetNetwork();
  readonly clock = new ManualClock(Date.UTC(2026, 2, 2, 9, 30));
  readonly #folder = mkdtempSync(join(tmpdir(), 'customvpn-policy-'));
  readonly file = join(this.#folder, 'policy.toml');
  #world: World | undefined;
  #session: ClientHttp2Session | undefined;
  #authorization = '';

  get world(): World {
    assert.ok(this.#world !== undefined);
    return this.#world;
  }

  write(rules: string): void {
    writeFileSync(this.file, `version = 1\n${rules}`);
  }

  async open(rules: string): Promise<void> {
    this.write(rules);
    await this.network.serve('192.0.2.1', 7, (socket) => void socket.pipe(socket));
    const { network, clock } = this;
    const config = { routes: ['198.51.100.0/24'], policyFile: this.file };
    this.#world = await World.open({ network, clock, tun: 'none', config });
    const { token } = await this.world.accessToken('alice');
    this.#authorization = `Basic ${Buffer.from(`alice:${token}`).toString('base64')}`;
    const socket = connectTls({
      host: '127.0.0.1',
      port: this.world.port,
      ca: this.world.ca,
      servername: 'localhost',
      ALPNProtocols: ['h2'],
    });
    this.#session = connectHttp2('https://localhost', { createConnection: () => socket });
    this.#session.on('error', () => {});
  }

  /** Opens a stream; what it is answered. */
  async ask(authority: string): Promise<{ status: number; stream: ClientHttp2Stream }> {
    assert.ok(this.#session !== undefined);
    const headers = { ':method': 'CONNECT', ':authority': authority, 'proxy-authorization': this.#authorization };
    const stream = this.#session.request(headers, { endStream: false });
    stream.on('error', () => {});
    const { promise, resolve } = Promise.withResolvers<number>();
    stream.once('response', (answer) => resolve(Number(answer[':status'])));
    return { status: await promise, stream };
  }

  reload(): Promise<{ applied: string[]; warnings: string[] }> {
    return this.world.server.reload();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#session?.destroy();
    await this.#world?.[Symbol.asyncDispose]();
    await this.network[Symbol.asyncDispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

async function gone(stream: ClientHttp2Stream): Promise<void> {
  stream.resume();
  await until(() => stream.closed, 'the stream ends');
}

test(
  'a stream goes where the policy says, whatever routes say; what is denied is seen with its rule',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const deny = '\n[[rules]]\nname = "not there"\naction = "deny"\nfrom = ["any"]\nto = ["192.0.2.9"]\n';
    stage.network.names.set('echo.example', ['192.0.2.1']);
    await stage.open(deny + rule('echo', 'user:alice', 'echo.example', 'services = ["tcp/7"]\n'));
    assert.equal((await stage.ask(SERVER)).status, 200);
    for (const authority of ['192.0.2.1:8', '192.0.2.9:7', '198.51.100.1:7']) {
      assert.equal((await stage.ask(authority)).status, 403, authority);
    }
    const api = stage.world.server.api(async () => stage.world.config({}));
    const denials = await api['policy.denied']({});
    assert.deepEqual(
      denials.map(({ kind, user, destination, port, protocol, rule: by }) => [
        kind,
        user,
        destination,
        port,
        protocol,
        by,
      ]),
      [
        ['stream', 'alice', '192.0.2.1', 8, 'tcp', null],
        ['stream', 'alice', '192.0.2.9', 7, 'tcp', { name: 'not there', line: 3 }],
        ['stream', 'alice', '198.51.100.1', 7, 'tcp', null],
      ],
    );
    const { hosts, user } = await api['policy.show']({ user: 'alice' });
    assert.deepEqual(hosts, [{ name: 'echo.example', addresses: ['192.0.2.1'] }]);
    assert.deepEqual(
      user?.[0]?.rules.map(({ name }) => name),
      ['not there', 'echo'],
    );
  },
);

test(
  'a change of the file, of a group, and the end of an hour close the streams that are not allowed any more',
  LIMIT,
  async () => {
    await using stage = new Stage();
    await stage.open(rule('echo', 'user:alice', '192.0.2.0/24'));
    const { stream: first } = await stage.ask(SERVER);
    stage.write(rule('staff', 'group:staff', '192.0.2.0/24'));
    await stage.reload();
    await gone(first);
    assert.equal((await stage.ask(SERVER)).status, 403);

    const { administration } = stage.world.server;
    await administration['user.regroup']({ name: 'alice', add: ['staff'] });
    const { status, stream: second } = await stage.ask(SERVER);
    assert.equal(status, 200);
    await administration['user.regroup']({ name: 'alice', remove: ['staff'] });
    await gone(second);

    const when = 'when = { from = "08:00", to = "10:00" }\n';
    stage.write(rule('mornings', 'any', '192.0.2.0/24', when));
    await stage.reload();
    const { status: morning, stream: third } = await stage.ask(SERVER);
    assert.equal(morning, 200);
    stage.clock.advance(31 * 60_000);
    await gone(third);
    assert.equal((await stage.ask(SERVER)).status, 403);
  },
);

test(
  'a file that is wrong, or whose own tests fail, is refused: at a start, and at a reload with the old one kept',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const good = rule('echo', 'any', '192.0.2.1');
    const failing = `${good}\n[tests]\nexpect = ["alice cannot reach 192.0.2.1:7/tcp"]\n`;
    await assert.rejects(
      stage.open('[[rules]]\nname = "x"\naction = "allow"\nfrom = ["x"]\nto = ["any"]\n'),
      /policy\.toml:5: expected any/,
    );
    await assert.rejects(
      stage.open(failing),
      /policy\.toml:10: the test "alice cannot reach .*" fails: echo in line 3 allows it/,
    );
    await stage.open(good);
    stage.write(failing);
    await assert.rejects(stage.reload(), /the test/);
    stage.write('rules = 7');
    await assert.rejects(stage.reload(), /policy\.toml:2: rules: /);
    rmSync(stage.file);
    await assert.rejects(stage.reload(), /policyFile: cannot read .*ENOENT/);
    assert.equal((await stage.ask(SERVER)).status, 200);
    assert.equal((await stage.ask('192.0.2.2:7')).status, 403);
  },
);

test(
  'a name that changes is followed, one that is gone keeps its last addresses, and one of thousands the first of them',
  LIMIT,
  async (t) => {
    t.mock.timers.enable({ apis: ['setInterval'] });
    await using stage = new Stage();
    const { names } = stage.network;
    names.set('moving.example', ['192.0.2.9']);
    names.set(
      'many.example',
      Array.from({ length: 3000 }, (_, i) => `10.1.${i >> 8}.${i & 255}`),
    );
    await stage.open(rule('name', 'any', 'moving.example') + rule('many', 'any', 'many.example'));
    const api = stage.world.server.api(async () => stage.world.config({}));
    const found = async () =>
      new Map((await api['policy.show']({})).hosts.map(({ name, addresses }) => [name, addresses]));
    assert.equal((await found()).get('many.example')?.length, 256);
    assert.equal((await stage.ask(SERVER)).status, 403);
    names.set('moving.example', ['192.0.2.1']);
    t.mock.timers.tick(60_000);
    await until(async () => (await found()).get('moving.example')?.[0] === '192.0.2.1', 'the new address');
    assert.equal((await stage.ask(SERVER)).status, 200);
    names.delete('moving.example');
    t.mock.timers.tick(60_000);
    assert.equal((await stage.ask(SERVER)).status, 200);
    await stage.reload();
    assert.deepEqual((await found()).get('moving.example'), ['192.0.2.1']);
  },
);

test('settings say what a client is told, and a change is pushed', LIMIT, async () => {
  await using stage = new Stage();
  const settings = (routes: string, more = '') =>
    `\n[[settings]]\nfor = ["user:alice"]\nroutes = ["${routes}"]\ndns = ["10.20.0.1"]\n${more}`;
  await stage.open(settings('192.0.2.0/25', 'idleSeconds = 600\n'));
  const { client } = await stage.world.connected('alice');
  await until(() => client.snapshot.config?.routes.map(formatPrefix).join() === '192.0.2.0/25', 'its routes');
  stage.write(settings('192.0.2.128/25'));
  await stage.reload();
  await until(() => client.snapshot.config?.routes.map(formatPrefix).join() === '192.0.2.128/25', 'the next routes');
});
