/** `client exec`: a command reaches the network through the tunnel or not at all, and nothing else on its machine changes. */

import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { labOptions } from './deployment.ts';
import { LeakRig, NET, type Watch } from './leak-rig.ts';
import { type BackgroundProcess, processesOfRun, type RunResult, until } from './process.ts';
import { differences, type Snapshot } from './snapshot.ts';

const TOOLS = {
  nsenter: 'util-linux',
  unshare: 'util-linux',
  setpriv: 'util-linux',
  getent: 'libc-bin',
  curl: 'curl',
  script: 'bsdutils',
};
const INSIDE_NAME = 'inside.corp.test';
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const WEB = `require('node:http').createServer((q, r) => r.end('hello from the world')).listen(8080, '::', () => console.log('ready'))`;

describe('a command of client exec', labOptions(TOOLS), () => {
  let lab: LeakRig;
  let other: string;
  let namespaces: readonly string[];
  let machine: Snapshot;
  let mounts: readonly string[];

  before(async () => {
    lab = await LeakRig.open();
    await lab.startOnGateway('names', '53', JSON.stringify({ [INSIDE_NAME]: [NET.world4] }), NET.inner4);
    await lab.world.start([...NODE, '-e', WEB], { ready: /^ready$/m });
    other = await lab.secondProfile('other');
    namespaces = namedNamespaces();
    machine = await lab.client.snapshot();
    mounts = await mountsOfMachine();
  });
  after(() => lab?.[Symbol.asyncDispose]());
  // Whatever a test has done, the machine is as it was: routes, rules, devices, packet filter, settings, mounts, name servers.
  afterEach(async () => {
    await lab?.down();
    await assertUntouched();
  });

  const words = (...command: string[]): string[] => [
    ...lab.commandOf('exec', '--state', lab.state, lab.profile, '--'),
    ...command,
  ];
  const exec = (...command: string[]): Promise<RunResult> => lab.inside(words(...command), { timeoutMs: 120_000 });
  const start = (script: string, ready: RegExp): Promise<BackgroundProcess> =>
    lab.startInside(words('sh', '-c', script), ready);
  /** Namespaces with names are mounts, too: those are other labs'. */
  const mountsOfMachine = async (): Promise<string[]> => {
    const { stdout } = await lab.inside(['cat', '/proc/self/mounts']);
    return stdout.split('\n').filter((line) => !/ \/run\/netns\/\S+ /.test(line));
  };
  /** Those of this lab, and what could be a name of ours: others have theirs. */
  const namedNamespaces = (): string[] =>
    readdirSync('/run/netns').filter((name) => name.startsWith(lab.rig.id) || /^(customvpn|cvpn)/.test(name));
  /** What left that should not; the machine's answer to the watch's own mark may. */
  const leaks = async (watch: Watch): Promise<string[]> =>
    (await watch.offenders()).filter((line) => !/udp port 64999 unreachable/.test(line));
  const lookUp = async (): Promise<string> => (await lab.inside(['getent', 'ahostsv4', INSIDE_NAME])).stdout;
  /** The processes of commands, and of clients, in no matter which namespace. */
  const clientPid = async (): Promise<number> => (await lab.status()).pid;

  async function assertUntouched(): Promise<void> {
    assert.deepEqual(differences(machine, await lab.client.snapshot()), []);
    assert.deepEqual(await mountsOfMachine(), mounts);
    assert.deepEqual(namedNamespaces(), namespaces);
    assert.match(await lab.resolvConf(), /^# the machine's own\nnameserver 192\.168\.50\.1\noptions edns0\n$/);
  }

  /** Right after the last command nothing is left, not only some time later. */
  async function assertNobodyIsLeft(): Promise<void> {
    const { status, stderr } = await lab.inside(lab.commandOf('status', '--state', lab.state));
    assert.equal(status, 69, stderr);
    assert.deepEqual(
      [...processesOfRun(lab.rig.id).values()].filter((command) => / --enclosed/.test(command)),
      [],
    );
  }

  test('ends with its own status, its signal as 128 and the number, and 127 or 126 when it cannot be started', async () => {
    assert.equal((await exec('true')).status, 0);
    assert.equal((await exec('sh', '-c', 'exit 7')).status, 7);
    assert.equal((await exec('sh', '-c', 'kill -TERM $$')).status, 128 + 15);
    const unknown = await exec('no-such-command');
    assert.equal(unknown.status, 127);
    assert.match(unknown.stderr, /there is no command "no-such-command"/);
    assert.equal((await exec('/etc/passwd')).status, 126);
    await assertNobodyIsLeft();
  });

  test('has its standard streams, and arguments as they were typed', async () => {
    const typed = await lab.client.run([...lab.insideWords, ...words('sh', '-c', 'cat; echo told >&2', '--', '-x')], {
      input: 'one\ntwo\n',
    });
    assert.equal(typed.stdout, 'one\ntwo\n');
    assert.equal(typed.stderr, 'told\n');
    const shown = await exec('printf', '%s|', '--json', '-l', 'a b', '$HOME', '--', '');
    assert.equal(shown.stdout, '--json|-l|a b|$HOME|--||');
  });

  test('has the tunnel, and nothing else, as its network', async () => {
    await using watch = await lab.watch();
    const { stdout } = await exec('ip', '-j', 'address');
    const devices = JSON.parse(stdout) as { ifname: string; addr_info: { local: string }[] }[];
    assert.deepEqual(
      devices.map(({ ifname }) => ifname),
      ['lo', 'cvpn0'],
    );
    assert.match(devices[1]?.addr_info.map(({ local }) => local).join() ?? '', /^10\.88\.0\.\d+,fd88::[0-9a-f]+$/);
    for (const address of [NET.world4, NET.world6]) {
      const host = address.includes(':') ? `[${address}]` : address;
      const seen = await exec('curl', '-sS', '--max-time', '60', `http://${host}:8080/`);
      assert.equal(seen.stdout, 'hello from the world', seen.stderr);
    }
    // The router is reached, too, but by way of the gateway.
    assert.equal((await exec('ping', '-c1', '-W20', NET.router4)).status, 0);
    assert.deepEqual(await leaks(watch), []);
    await lab.inside(['ping', '-c1', '-W20', NET.world4]);
    await watch.someOffender();
  });

  test("looks names up at the tunnel's name servers, and the machine does not", async () => {
    const asked = 'cat /etc/resolv.conf; getent ahostsv4 inside.corp.test';
    const { stdout } = await exec('sh', '-c', asked);
    assert.match(stdout, /^nameserver 10\.88\.0\.1$/m);
    assert.doesNotMatch(stdout, /192\.168\.50\.1/);
    assert.match(stdout, new RegExp(`^${NET.world4} `, 'm'));
    assert.equal(await lookUp(), '');
  });

  test('asks no service of the machine for names, whatever nsswitch.conf says and whoever replaces resolv.conf', async () => {
    const change =
      'cp /etc/nsswitch.conf /etc/nsswitch.before; sed -i "s/^hosts:.*/hosts: files resolve [!UNAVAIL=return] mdns4 dns/" /etc/nsswitch.conf';
    await lab.inside(['sh', '-c', change]);
    await using running = await start('grep hosts /etc/nsswitch.conf; echo go; sleep 600', /go/);
    assert.match(running.output, /^hosts: files dns$/m);
    // As a DHCP client does it: by another file, which takes a mount on the old one away.
    await lab.inside(['sh', '-c', 'cp /etc/resolv.conf /etc/new && mv /etc/new /etc/resolv.conf']);
    const pid = await childOf(running.pid);
    await until('the name servers to be the tunnel’s again', async () => {
      const { stdout } = await lab.client.run(['nsenter', '-t', String(pid), '-m', 'cat', '/etc/resolv.conf']);
      return stdout.includes('nameserver 10.88.0.1');
    });
    await running.stop();
    await lab.inside(['mv', '/etc/nsswitch.before', '/etc/nsswitch.conf']);
  });

  test('shares tunnel and addresses with others of its profile; the last one takes them away', async () => {
    const script = 'ip -4 -br address show cvpn0; readlink /proc/self/ns/net; echo go; read line';
    await using first = await lab.typeInside(words('sh', '-c', script));
    await until('the first', () => /^go$/m.test(first.output));
    const pid = await clientPid();
    const others = await Promise.all(
      Array.from({ length: 3 }, () => exec('sh', '-c', script.replace('read line', ':'))),
    );
    for (const { stdout, status, stderr } of others) {
      assert.equal(status, 0, stderr);
      assert.equal(stdout, first.output);
    }
    assert.equal(await clientPid(), pid);
    const { namespace } = (await lab.status()) as unknown as { namespace: { commands: number } };
    assert.equal(namespace.commands, 1);
    first.write('\n');
    assert.equal(await first.exited, 0);
    await assertNobodyIsLeft();
  });

  test('several that start at once find each other', async () => {
    const found = await Promise.all(
      Array.from({ length: 4 }, () => exec('sh', '-c', 'readlink /proc/self/ns/net; sleep 3')),
    );
    for (const { status, stderr } of found) assert.equal(status, 0, stderr);
    assert.equal(new Set(found.map(({ stdout }) => stdout)).size, 1);
    await assertNobodyIsLeft();
  });

  test('gets signals that are sent to what was started, and ends with it', async () => {
    for (const [signal, status] of [
      ['SIGTERM', 33],
      ['SIGINT', 44],
      ['SIGHUP', 55],
    ] as const) {
      const script = `trap 'exit 33' TERM; trap 'exit 44' INT; trap 'exit 55' HUP; echo go; while :; do sleep 0.1; done`;
      const running = await start(script, /go/);
      running.signal(signal);
      assert.equal(await running.exited, status, signal);
    }
    const running = await start('echo go; exec sleep 600', /go/);
    const pid = await childOf(running.pid);
    const client = await clientPid();
    running.signal('SIGKILL');
    await until('the command to be gone', () => !isAlive(pid));
    await until('its client to be gone', () => !isAlive(client));
    await assertNobodyIsLeft();
  });

  test('has the rights that were asked for, none of our descriptors and nothing of our environment', async () => {
    const look = 'id -un; id -G; grep -E "^Cap(Prm|Eff|Inh)" /proc/self/status; ls /proc/self/fd; env';
    const argv = [
      ...lab.commandOf('exec', '--as', 'nobody', '--state', lab.state, lab.profile, '--'),
      'sh',
      '-c',
      look,
    ];
    // Held open by what starts it, as some shells do.
    const { stdout, stderr } = await lab.inside([
      'bash',
      '-c',
      'exec 9</etc/passwd 251</etc/passwd; exec "$@"',
      'bash',
      ...argv,
    ]);
    const [name, groups, ...rest] = stdout.split('\n');
    assert.equal(name, 'nobody', stderr);
    assert.equal(groups, '65534');
    assert.deepEqual(
      rest.slice(0, 3),
      ['CapInh', 'CapPrm', 'CapEff'].map((set) => `${set}:\t0000000000000000`),
    );
    // 3 is that of `ls`.
    assert.deepEqual(rest.slice(3, 7), ['0', '1', '2', '3']);
    assert.doesNotMatch(stdout, /CUSTOMVPN_START|^SUDO_|^HOME=\/root$/m);
    const called = await lab.inside(['env', 'SUDO_UID=65534', ...words('id', '-u')]);
    assert.equal(called.stdout, '65534\n');
    const root = [...lab.commandOf('exec', '--as', 'root', '--state', lab.state, lab.profile, '--'), 'id', '-u'];
    assert.equal((await lab.inside(['env', 'SUDO_UID=65534', ...root])).stdout, '0\n');
    const nobody = await lab.inside([...lab.commandOf('exec', '--as', 'no-such-user', lab.profile), '--', 'true']);
    assert.equal(nobody.status, 64);
  });

  test('has the terminal, and gets each of its interrupts once', async () => {
    const script = join(lab.rig.folder, 'interrupts.mjs');
    await writeFile(
      script,
      `process.on('SIGINT', () => console.log('interrupted')); setInterval(() => {}, 1000);
       console.log([process.stdin.isTTY, process.stdout.isTTY, "go"].join(" "));`,
    );
    const typed = words(process.execPath, script).join(' ');
    await using terminal = await lab.typeInside(['script', '-qefc', typed, '/dev/null']);
    await until('the command', () => /^true true go\s*$/m.test(terminal.output));
    const interrupts = (): number => (terminal.output.match(/interrupted/g) ?? []).length;
    for (const count of [1, 2, 3]) {
      terminal.write('\u0003');
      await until(`interrupt ${count}`, () => interrupts() >= count);
    }
    assert.equal(interrupts(), 3);
  });

  const CHATTER = [
    ...NODE,
    join(import.meta.dirname, 'chatter.ts'),
    'chatter',
    JSON.stringify([
      { kind: 'udp', address: NET.world4, port: 9 },
      { kind: 'udp', address: NET.world6, port: 9 },
      { kind: 'tcp', address: NET.world4, port: 80 },
      { kind: 'dns', address: NET.router4, port: 53 },
      { kind: 'udp', address: NET.router4, port: 9 },
      { kind: 'tcp', address: NET.gateway4, port: 8443 },
    ]),
  ];

  test('sends nothing outside the tunnel while the gateway is gone, and goes on when it is back', async () => {
    await using watch = await lab.watch();
    await using talking = await lab.startInside(words(...CHATTER), /^ready$/m);
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    await lab.stateIs('waiting');
    assert.notEqual(
      await exec('curl', '-sS', '--max-time', '3', `http://${NET.world4}:8080/`).then(({ stdout }) => stdout),
      'hello from the world',
    );
    assert.deepEqual(await leaks(watch), []);
    await lab.startGateway();
    await lab.stateIs('connected');
    const { stdout } = await exec('curl', '-sS', '--max-time', '60', `http://${NET.world4}:8080/`);
    assert.equal(stdout, 'hello from the world');
    assert.deepEqual(await leaks(watch), []);
    assert.ok(talking.running);
    await talking.stop();
    // The same programs where nothing holds them back are seen.
    await using _free = await lab.startInside(CHATTER, /^ready$/m);
    await watch.someOffender();
  });

  test('has no network when its client is killed, and leaves none to the machine; the next one starts anew', async () => {
    await using watch = await lab.watch();
    await using talking = await lab.startInside(words(...CHATTER), /^ready$/m);
    const pid = await clientPid();
    process.kill(pid, 'SIGKILL');
    await until('the client to be gone', () => !isAlive(pid));
    await until('that to be said', () => /has no network any more/.test(talking.output));
    assert.ok(talking.running);
    await assertUntouched();
    assert.equal(
      (await exec('curl', '-sS', '--max-time', '60', `http://${NET.world4}:8080/`)).stdout,
      'hello from the world',
    );
    await talking.stop();
    assert.deepEqual(await leaks(watch), []);
  });

  test('runs beside the machine’s tunnel of another profile, and does not share one with its own', async () => {
    const up = await lab.inside([...lab.commandOf('up', other, '--state', lab.state, '--full', '--kill-switch')]);
    assert.equal(up.status, 0, up.stderr);
    const before = await lab.client.snapshot();
    const own = await exec('ip', '-4', '-br', 'address', 'show', 'cvpn0');
    assert.match(own.stdout, /10\.88\.0\.\d+/, own.stderr);
    const here = await lab.client.run(['ip', '-4', '-br', 'address', 'show', 'cvpn0']);
    assert.match(here.stdout, /10\.88\.0\.\d+/);
    assert.notEqual(own.stdout, here.stdout);
    assert.deepEqual(differences(before, await lab.client.snapshot()), []);
    const same = await lab.inside([...lab.commandOf('exec', other, '--state', lab.state), '--', 'true']);
    assert.equal(same.status, 69);
    assert.match(same.stderr, /connected for this whole machine.*client down/s);
    await lab.down();
    await using running = await start('echo go; sleep 600', /go/);
    const { status, stderr } = await lab.inside([...lab.upArguments]);
    assert.equal(status, 69);
    assert.match(stderr, /used by 1 command of client exec/);
    await running.stop();
  });
});

async function childOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
  const [child] = text.trim().split(' ').map(Number).toReversed();
  assert.ok(child !== undefined && child > 0);
  return child;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
