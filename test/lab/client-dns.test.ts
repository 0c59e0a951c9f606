/** Names are asked inside the tunnel while it is up, and the machine's name servers come back, whatever ends it. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { labOptions } from './deployment.ts';
import { LeakRig, NET } from './leak-rig.ts';
import { until } from './process.ts';

const TOOLS = { nsenter: 'util-linux', unshare: 'util-linux', getent: 'libc-bin' };
const INSIDE_NAME = 'inside.corp.test';
const INSIDE_ADDRESS = '192.0.2.77';

describe('name servers in resolv.conf', labOptions(TOOLS), () => {
  let lab: LeakRig;
  let original: string;

  before(async () => {
    lab = await LeakRig.open();
    original = await lab.resolvConf();
    await lab.startOnGateway('names', '53', JSON.stringify({ [INSIDE_NAME]: [INSIDE_ADDRESS] }), NET.inner4);
  });
  after(() => lab?.[Symbol.asyncDispose]());
  afterEach(async () => {
    await lab?.down();
    await writeFile(join(lab.etc, 'resolv.conf'), original);
  });

  const lookUp = async (name: string): Promise<string> => {
    const { stdout } = await lab.inside(['getent', 'ahostsv4', name]);
    return stdout.split(/\s/)[0] ?? '';
  };

  /** A resolver gives up after some seconds, which a busy machine may need. */
  const finds = (name: string, address: string): Promise<void> =>
    until(`${name} to be found`, async () => (await lookUp(name)) === address, { timeoutMs: 60_000 });

  test("are the tunnel's while it is up, and the machine's after down", async () => {
    assert.equal(await lookUp(INSIDE_NAME), '');
    await lab.up('--full');
    assert.match(await lab.resolvConf(), new RegExp(`^nameserver ${NET.inner4}$`, 'm'));
    assert.doesNotMatch(await lab.resolvConf(), new RegExp(NET.router4));
    await finds(INSIDE_NAME, INSIDE_ADDRESS);
    const { dns } = await lab.status();
    assert.deepEqual(dns, { servers: [NET.inner4], domains: [], all: true, keeper: 'resolv.conf' });
    await lab.down();
    assert.equal(await lab.resolvConf(), original);
  });

  for (const mend of ['down', 'the next up and its down'] as const) {
    test(`come back after kill -9 and ${mend}`, async () => {
      await lab.up('--full');
      process.kill((await lab.status()).pid, 'SIGKILL');
      await until('the device to be gone', async () => !(await lab.ip('link')).stdout.includes('cvpn0'));
      assert.notEqual(await lab.resolvConf(), original);
      if (mend !== 'down') {
        await lab.up('--full');
        await finds(INSIDE_NAME, INSIDE_ADDRESS);
      }
      await lab.down();
      assert.equal(await lab.resolvConf(), original);
    });
  }

  test('that somebody else has written meanwhile stay, and that is said', async () => {
    await lab.up('--full');
    const theirs = 'nameserver 192.0.2.53\n';
    await lab.inside(['sh', '-c', `echo 'nameserver 192.0.2.53' > /etc/resolv.conf`]);
    await lab.down();
    assert.equal(await lab.resolvConf(), theirs);
    assert.match(await lab.log(), /theirs stay/);
  });

  test('are left alone where the profile says so', async () => {
    const profile = await readFile(lab.profile, 'utf8');
    await writeFile(lab.profile, profile.replace(/^dns = true$/m, 'dns = false'));
    await lab.up('--full');
    assert.equal(await lab.resolvConf(), original);
    const refused = JSON.stringify((await lab.status()).refused);
    assert.match(refused, /dns\.servers.*allows no name servers/);
    await lab.down();
    await writeFile(lab.profile, profile);
  });
});

/** Where systemd-resolved is: installed, or unpacked, because to install it takes over this machine's own name service. */
const RESOLVED_ROOT = process.env.CUSTOMVPN_LAB_RESOLVED ?? '/';
const RESOLVED = join(RESOLVED_ROOT, 'lib/systemd/systemd-resolved');

function resolvedOptions(): { skip: string | false } {
  const { skip } = labOptions({ ...TOOLS, 'dbus-daemon': 'dbus-daemon', busctl: 'systemd' });
  if (skip !== false || existsSync(RESOLVED)) return { skip };
  return {
    skip:
      'systemd-resolved is not here, and to install it takes over this machine’s name service; unpack it instead: ' +
      'apt-get download systemd-resolved && dpkg -x systemd-resolved_*.deb FOLDER, and set CUSTOMVPN_LAB_RESOLVED=FOLDER',
  };
}

const BUS = `<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`;

describe('name servers in systemd-resolved', resolvedOptions(), () => {
  let lab: LeakRig;
  const path = `PATH=${join(RESOLVED_ROOT, 'usr/bin')}:${process.env.PATH ?? ''}`;
  const inside = (...words: string[]) => lab.inside(['env', path, ...words]);

  before(async () => {
    lab = await LeakRig.open({ routes: ['203.0.113.0/24'], settings: 'dnsDomains = ["corp.test"]' });
    await lab.startOnGateway(
      'names',
      '53',
      JSON.stringify({ [INSIDE_NAME]: [INSIDE_ADDRESS], 'other.test': ['192.0.2.1'] }),
      NET.inner4,
    );
    await lab.inside(['sh', '-c', 'mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/systemd']);
    await writeFile(join(lab.etc, 'bus.conf'), BUS);
    const passwd = await readFile('/etc/passwd', 'utf8');
    await writeFile(join(lab.etc, 'passwd'), `${passwd}systemd-resolve:x:64993:64993::/:/usr/sbin/nologin\n`);
    await lab.startInside(
      ['dbus-daemon', '--nofork', '--nopidfile', '--print-address=1', '--config-file=/etc/bus.conf'],
      /unix:/,
    );
    await lab.inside(['sh', '-c', 'ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf']);
    await lab.startInside(['env', path, 'SYSTEMD_LOG_TARGET=console', RESOLVED], /./);
    await until('systemd-resolved to be there', async () => (await inside('resolvectl', 'status')).status === 0);
    await inside('resolvectl', 'dns', 'out0', NET.router4);
    await inside('resolvectl', 'default-route', 'out0', 'yes');
  });
  after(() => lab?.[Symbol.asyncDispose]());
  afterEach(async () => {
    await inside(...lab.commandOf('down', '--state', lab.state));
  });

  const query = async (name: string): Promise<string> => {
    const { stdout, stderr } = await inside('resolvectl', 'query', '--legend=no', '-4', name);
    return `${stdout}${stderr}`;
  };

  const finds = (name: string, answer: RegExp): Promise<void> =>
    until(`${name} to be found`, async () => answer.test(await query(name)), { timeoutMs: 60_000 });

  test('are asked for the pushed domains only in a split tunnel, and forgotten after', async () => {
    const { status, stderr } = await inside(...lab.upArguments);
    assert.equal(status, 0, stderr);
    const { dns, device } = await lab.status();
    assert.deepEqual(dns, { servers: [NET.inner4], domains: ['corp.test'], all: false, keeper: 'systemd-resolved' });
    assert.match((await inside('resolvectl', 'domain', device)).stdout, /: corp\.test$/m);
    await finds(INSIDE_NAME, /192\.0\.2\.77/);
    // The router's server knows it not, and the tunnel's is not asked.
    assert.doesNotMatch(await query('other.test'), /192\.0\.2\.1\b/);
    await finds('vpn.test', /198\.51\.100\.2/);
    await inside(...lab.commandOf('down', '--state', lab.state));
    assert.doesNotMatch(await query(INSIDE_NAME), /192\.0\.2\.77/);
  });

  test('are asked for everything in a full tunnel, and go with a client that is killed', async () => {
    const { status, stderr } = await inside(...lab.upArguments, '--full');
    assert.equal(status, 0, stderr);
    await finds('other.test', /192\.0\.2\.1\b/);
    assert.doesNotMatch(await query('vpn.test'), /198\.51\.100\.2/);
    process.kill((await lab.status()).pid, 'SIGKILL');
    await until('the machine’s own server to be asked again', async () =>
      /198\.51\.100\.2/.test(await query('vpn.test')),
    );
  });
});
