/** Not one packet of the user's leaves outside the tunnel. Each test also shows that it would see one. */

import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { labOptions } from './deployment.ts';
import { LeakRig, NET, type Watch } from './leak-rig.ts';
import { until } from './process.ts';

const TOOLS = { nsenter: 'util-linux', unshare: 'util-linux' };

/** Everything that leaves must be the tunnel's. */
async function assertTight(watch: Watch, allowed: RegExp = /^$/): Promise<void> {
  const offenders = (await watch.offenders()).filter((line) => !allowed.test(line));
  assert.equal(offenders.length, 0, `these left outside the tunnel:\n${offenders.slice(0, 40).join('\n')}`);
}

/** The same watch, the same traffic, without the protection: now something has to be seen. */
async function assertSees(watch: Watch, lab: LeakRig): Promise<void> {
  await lab.unprotect();
  await watch.someOffender();
}

describe('nothing leaks from a full tunnel with the kill switch', labOptions(TOOLS), () => {
  let lab: LeakRig;

  before(async () => {
    lab = await LeakRig.open();
  });
  after(() => lab?.[Symbol.asyncDispose]());
  // What a test that failed has left must not fail the next one.
  afterEach(() => lab?.down());

  test('while it connects, while it is up, and until down', async () => {
    await using _user = await lab.userTraffic();
    await using early = await lab.watch();
    await early.someOffender();
    await lab.up('--kill-switch');
    await using watch = await lab.watch();
    assert.ok(await lab.reaches(NET.world4));
    assert.ok(await lab.reaches(NET.world6));
    assert.equal(await lab.reaches(NET.world4, '-I', 'out0'), false);
    assert.equal(await lab.reaches(NET.world6, '-I', 'out0'), false);
    await assertTight(watch);
    await lab.down();
    await watch.someOffender();
    assert.ok(await lab.reaches(NET.world4, '-I', 'out0'));
  });

  test('connections that were open before are cut, and say so to their programs', async () => {
    await using held4 = await lab.startChatter('holder', NET.world4, '7');
    await using held6 = await lab.startChatter('holder', NET.world6, '7');
    await lab.up('--kill-switch');
    await using watch = await lab.watch();
    for (const held of [held4, held6]) {
      await until('an old connection to be cut', () => !held.running);
      assert.match(held.output, /^cut (ECONNRESET|ECONNABORTED|EPIPE)$/m);
    }
    await assertTight(watch);
    await lab.down();
  });

  test('while the gateway is gone, comes back and is connected to again', async () => {
    await lab.up('--kill-switch');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    await lab.stateIs('waiting');
    await assertTight(watch);
    await lab.startGateway();
    await lab.stateIs('connected');
    assert.ok(await lab.reaches(NET.world4));
    await assertTight(watch);
    await assertSees(watch, lab);
    await lab.down();
  });

  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    test(`after ${signal}, while it is started again, and until down`, async () => {
      await lab.up('--kill-switch');
      await using _user = await lab.userTraffic();
      await using watch = await lab.watch();
      const { pid } = await lab.status();
      process.kill(pid, signal);
      await until('the client to be gone', async () => (await lab.ownRules('-4')).length === 0 || !isAlive(pid));
      await until('its device to be gone', async () => !(await lab.ip('link')).stdout.includes('cvpn0'));
      assert.equal(await lab.reaches(NET.world4), false);
      await assertTight(watch);
      const look = await lab.inside([...lab.commandOf('status', '--state', lab.state)]);
      assert.match(look.stderr, /kill switch is CLOSED.*client down opens it/);
      // Also by a start that does not ask for it: what is closed stays closed until `down`.
      await lab.up();
      assert.equal((await lab.status()).killSwitch, 'closed');
      assert.ok(await lab.reaches(NET.world4));
      await assertTight(watch);
      process.kill((await lab.status()).pid, 'SIGKILL');
      await until('its device to be gone', async () => !(await lab.ip('link')).stdout.includes('cvpn0'));
      await assertTight(watch);
      await lab.down();
      await watch.someOffender();
    });
  }

  test('while no name server answers: the last address of the gateway is dialled', async () => {
    await lab.up('--kill-switch');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    await lab.answerNames(false);
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    await lab.stateIs('waiting');
    await lab.startGateway();
    await lab.stateIs('connected');
    await lab.answerNames(true);
    assert.match(await lab.log(), /its last address is tried/);
    await assertTight(watch);
    await assertSees(watch, lab);
    await lab.down();
  });

  test('while the gateway names are asked for anew, by questions of its own and no others', async () => {
    await lab.up('--kill-switch');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    await using own = await lab.router.start(['tcpdump', '-i', 'cli0', '-l', '-nn', 'udp dst port 53'], {
      ready: /listening on/,
    });
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    await lab.startGateway();
    await lab.stateIs('connected');
    await until('a question for the gateway', () => own.output.includes('? vpn.test.'));
    await assertTight(watch);
    assert.doesNotMatch(own.output, /secret-/);
    await lab.down();
  });

  test('from boot: before the first start, and from then on', async () => {
    const closed = await lab.inside([...lab.commandOf('kill-switch', 'close'), lab.profile]);
    assert.equal(closed.status, 0, closed.stderr);
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    assert.equal(await lab.reaches(NET.world4), false);
    await assertTight(watch);
    await lab.up('--kill-switch');
    assert.ok(await lab.reaches(NET.world4));
    await assertTight(watch);
    await assertSees(watch, lab);
    await lab.down();
    const look = await lab.inside([...lab.commandOf('kill-switch', 'status'), lab.profile, '--json']);
    assert.deepEqual(JSON.parse(look.stdout), { closed: false });
  });

  test('a packet filter that flushes all tables does not open it for long', async () => {
    await lab.up('--kill-switch');
    await lab.client.run(['nft', 'flush', 'ruleset']);
    const { stdout: none } = await lab.client.run(['nft', 'list', 'tables']);
    assert.equal(none, '');
    await until(
      'it to be closed again',
      async () => (await lab.client.run(['nft', 'list', 'tables'])).stdout.includes('customvpn_closed_'),
      { timeoutMs: 30_000 },
    );
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    process.kill((await lab.status()).pid, 'SIGKILL');
    await until('its device to be gone', async () => !(await lab.ip('link')).stdout.includes('cvpn0'));
    await assertTight(watch);
    assert.match(await lab.log(), /closed again/);
    await lab.down();
    await watch.someOffender();
  });

  test('a start that comes to nothing opens it again, unless it was closed before', async () => {
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    const started = lab.inside([...lab.upArguments, '--kill-switch']);
    await until('it to be closed', async () => !(await lab.reaches(NET.router4)));
    await lab.down();
    assert.notEqual((await started).status, 0);
    assert.ok(await lab.reaches(NET.router4));
    await lab.startGateway();
  });

  test('a captive portal gets names and pages for so long, and nothing else', async () => {
    lab.server.signal('SIGKILL');
    await lab.server.exited;
    await using _user = await lab.userTraffic();
    const started = lab.inside([...lab.upArguments, '--kill-switch', '--portal', '8s']);
    const table = async () => (await lab.client.run(['nft', 'list', 'ruleset'])).stdout;
    await until('the portal to be open', async () => /tcp \. 80 timeout/.test(await table()), { timeoutMs: 30_000 });
    await using watch = await lab.watch();
    const isSeen = (what: RegExp) => async () => (await watch.offenders()).some((line) => what.test(line));
    await until('a page', isSeen(/203\.0\.113\.10\.80: /), { timeoutMs: 30_000 });
    await until('a name', isSeen(/192\.168\.50\.1\.53: /), { timeoutMs: 30_000 });
    await until('the portal to be closed', async () => !/tcp \. 80 timeout/.test(await table()), { timeoutMs: 30_000 });
    await assertTight(watch, /\.(53|80|8443): /);
    await using later = await lab.watch();
    await assertTight(later);
    await lab.startGateway();
    assert.equal((await started).status, 0);
    assert.match((await started).stderr, /WARNING.*OUTSIDE the tunnel/);
    await assertTight(later);
    await lab.down();
  });
});

describe('a captive portal in the way of a tunnel that was there before', labOptions(TOOLS), () => {
  for (const flags of [['--kill-switch'], ['--full']] as const) {
    test(`gets names and pages, and nothing else, until the tunnel is back (${flags[0]})`, async () => {
      await using lab = await LeakRig.open();
      const original = await lab.resolvConf();
      await lab.up(...flags);
      lab.server.signal('SIGKILL');
      await lab.server.exited;
      await lab.stateIs('waiting');
      const { status, stderr } = await lab.inside([...lab.upArguments, '--portal', '10m']);
      assert.equal(status, 0, stderr);
      assert.equal((await lab.status()).killSwitch, 'portal');
      assert.equal(await lab.resolvConf(), original, 'the names of the hotspot are asked at the hotspot');
      await using _user = await lab.userTraffic();
      await using watch = await lab.watch();
      const isSeen = (what: RegExp) => async () => (await watch.offenders()).some((line) => what.test(line));
      await until('a page', isSeen(/> 203\.0\.113\.10\.80: /), { timeoutMs: 30_000 });
      await until('a name', isSeen(/> 192\.168\.50\.1\.53: /), { timeoutMs: 30_000 });
      await assertTight(watch, /\.(53|80|8443): /);
      await lab.startGateway();
      await lab.stateIs('connected');
      await using later = await lab.watch();
      assert.ok(await lab.reaches(NET.world4));
      await assertTight(later);
      assert.notEqual(await lab.resolvConf(), original);
      assert.equal((await lab.status()).killSwitch, flags[0] === '--kill-switch' ? 'closed' : 'open');
      await lab.down();
    });
  }
});

describe('nothing leaks from a full tunnel by way of routes', labOptions(TOOLS), () => {
  let lab: LeakRig;

  before(async () => {
    lab = await LeakRig.open();
  });
  after(() => lab?.[Symbol.asyncDispose]());
  // What a test that failed has left must not fail the next one.
  afterEach(() => lab?.down());

  test('to routes from a DHCP server, however narrow (TunnelVision)', async (t) => {
    const rogue = [`${NET.world4}/32`, '203.0.113.0/25', '128.0.0.0/1', `${NET.inner4}/32`];
    const add = async (prefix: string) => {
      await lab.ip('route', 'add', prefix, 'via', NET.router4, 'dev', 'out0', 'proto', 'dhcp');
      t.after(() => lab.client.run(['ip', 'route', 'delete', prefix, 'via', NET.router4], { anyStatus: true }));
    };
    for (const prefix of rogue.slice(0, 2)) await add(prefix);
    await lab.up('--full');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    for (const prefix of rogue.slice(2)) await add(prefix);
    assert.ok(await lab.reaches(NET.world4));
    await assertTight(watch);
    assert.match(JSON.stringify((await lab.status()).notes), /203\.0\.113\.10\/32 on out0 is overruled/);
    // As is usual elsewhere: the main table goes first with all but its default route.
    await lab.ip('rule', 'add', 'priority', '100', 'lookup', 'main', 'suppress_prefixlength', '0');
    t.after(() => lab.client.run(['ip', 'rule', 'delete', 'priority', '100'], { anyStatus: true }));
    await watch.someOffender();
    await lab.down();
  });

  test("to the gateway's own address, but for the client's own sockets (TunnelCrack)", async () => {
    await lab.up('--full');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    // What the gateway itself is asked there it does not answer; it must come to it by the tunnel all the same.
    assert.ok(await lab.reaches(NET.world4));
    await assertTight(watch);
    const { device } = await lab.status();
    const exempt = ['throw', `${NET.gateway4}/32`, 'table', String(17_238_000 + Number(device.replace('cvpn', '')))];
    await lab.ip('route', 'add', ...exempt);
    await watch.someOffender();
    await lab.ip('route', 'delete', ...exempt);
    await lab.down();
  });

  test('to networks that claim to be local (TunnelCrack)', async (t) => {
    // The local network's router takes everything that is said to be local.
    await lab.router.setSysctl('net.ipv4.conf.cli0.proxy_arp', '1');
    t.after(() => lab.router.setSysctl('net.ipv4.conf.cli0.proxy_arp', '0'));
    await lab.ip('address', 'add', '203.0.113.200/24', 'dev', 'out0');
    t.after(() => lab.client.run(['ip', 'address', 'delete', '203.0.113.200/24', 'dev', 'out0'], { anyStatus: true }));
    await lab.up('--full', '--lan');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    assert.ok(await lab.reaches(NET.world4));
    // The private one is reachable: that was asked for.
    await assertTight(watch, /> 192\.168\.50\.1[.:]/);
    assert.ok(await lab.reaches(NET.router4));
    await lab.ip('rule', 'add', 'priority', '100', 'to', '203.0.113.0/24', 'lookup', 'main');
    t.after(() => lab.client.run(['ip', 'rule', 'delete', 'priority', '100'], { anyStatus: true }));
    await until('a leak', async () => (await watch.offenders()).some((line) => line.includes('> 203.0.113.10.')));
    await lab.down();
  });

  test('to a router that appears and offers IPv6', async () => {
    await lab.up('--full');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    await using _router = await lab.startOnRouter('advertise', 'cli0', '2001:db8:66::');
    await until('an address from the advertisement', async () =>
      (await lab.ip('-6', 'address', 'show', 'dev', 'out0')).stdout.includes('2001:db8:66:'),
    );
    assert.ok(await lab.reaches(NET.world6));
    await assertTight(watch);
    await lab.client.run(['ip', '-6', 'rule', 'delete', 'priority', String((await lab.ownRules('-6'))[0]?.priority)]);
    await until('a leak', async () => (await watch.offenders()).some((line) => line.includes(' IP6 ')));
    await lab.down();
  });

  test('while the machine has another address', async (t) => {
    await lab.up('--full');
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    t.after(async () => {
      await lab.ip('-4', 'address', 'flush', 'dev', 'out0');
      await lab.ip('address', 'add', `${NET.client4}/24`, 'dev', 'out0');
      await lab.ip('route', 'replace', 'default', 'via', NET.router4);
    });
    await lab.ip('-4', 'address', 'flush', 'dev', 'out0');
    await lab.ip('address', 'add', '192.168.50.77/24', 'dev', 'out0');
    await lab.ip('route', 'replace', 'default', 'via', NET.router4);
    await until('the client to be back', () => lab.reaches(NET.world4), { timeoutMs: 30_000 });
    await lab.stateIs('connected');
    await assertTight(watch);
    await assertSees(watch, lab);
    await lab.down();
  });

  test('connections that were open before are cut at once', async () => {
    await using held = await lab.startChatter('holder', NET.world4, '7');
    await lab.up('--full');
    await until('the old connection to be cut', () => !held.running);
    assert.match(held.output, /^cut (ECONNRESET|ECONNABORTED|EPIPE)$/m);
    await lab.down();
  });

  test('strict checks of the reverse path do not cut the tunnel', async (t) => {
    for (const name of ['all', 'out0']) await lab.client.setSysctl(`net.ipv4.conf.${name}.rp_filter`, '1');
    t.after(async () => {
      for (const name of ['all', 'out0']) await lab.client.setSysctl(`net.ipv4.conf.${name}.rp_filter`, '0');
    });
    await lab.up('--full');
    // The router has to ask anew who has the client's address.
    await lab.router.run(['ip', 'neighbour', 'delete', NET.client4, 'dev', 'cli0']);
    assert.ok(await lab.reaches(NET.world4));
    await lab.down();
  });
});

describe('a gateway without IPv6', labOptions(TOOLS), () => {
  test('has IPv6 blocked at once in a full tunnel, not leaked', async () => {
    await using lab = await LeakRig.open({ pool: '10.88.0.0/24', routes: ['0.0.0.0/0'] });
    await lab.up();
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    assert.ok(await lab.reaches(NET.world4));
    const refused = await lab.client.run(['ping', '-n', '-c1', '-W5', NET.world6], { anyStatus: true });
    assert.notEqual(refused.status, 0);
    assert.match(`${refused.stdout}${refused.stderr}`, /prohibited|Permission denied|not permitted|unreachable/i);
    await assertTight(watch);
    assert.match(JSON.stringify((await lab.status()).notes), /IPv6 is blocked/);
    await lab.client.run(['ip', '-6', 'rule', 'delete', 'priority', String((await lab.ownRules('-6'))[0]?.priority)]);
    await until('a leak', async () => (await watch.offenders()).some((line) => line.includes(' IP6 ')));
    await lab.down();
  });
});

describe('a split tunnel', labOptions(TOOLS), () => {
  test("lets only other networks' traffic out, whatever routes the local network hands out", async () => {
    const pushed = ['203.0.113.0/24', '2001:db8:3::/64', '198.51.100.0/24'];
    await using lab = await LeakRig.open({ routes: pushed });
    await lab.up();
    await using _user = await lab.userTraffic();
    await using watch = await lab.watch();
    await lab.ip('route', 'add', `${NET.world4}/32`, 'via', NET.router4, 'dev', 'out0', 'proto', 'dhcp');
    assert.ok(await lab.reaches(NET.world4));
    // The gateway's own address lies in a pushed network: the user's packets to it are in the tunnel, ours are not.
    assert.deepEqual((await lab.status()).routes, pushed);
    const inside = /> (203\.0\.113\.|2001:db8:3::|198\.51\.100\.)/;
    const others = (await watch.offenders()).filter((line) => inside.test(line));
    assert.deepEqual(others, [], others.join('\n'));
    await until('traffic to the local network, which is meant to leave', async () =>
      (await watch.offenders()).some((line) => line.includes(`> ${NET.router4}.9: `)),
    );
    await lab.unprotect();
    await until('a leak', async () => (await watch.offenders()).some((line) => inside.test(line)));
    await lab.down();
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
