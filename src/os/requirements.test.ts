import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VpnError } from '../base/errors.ts';
import { findRequirements, type Machine, type Requirement } from './requirements.ts';

const FILES: Readonly<Record<string, string>> = {
  '/proc/self/status': 'Name:\tnode\nCapEff:\t000001ffffffffff\nCapBnd:\t0',
  '/proc/sys/net/ipv4/tcp_available_congestion_control': 'reno bbr cubic',
  '/proc/sys/net/ipv4/ip_forward': '0',
  '/proc/sys/net/ipv6/conf/all/forwarding': '0',
  '/proc/sys/net/ipv6/conf/all/disable_ipv6': '0',
  '/proc/self/limits': 'Limit  Soft  Hard\nMax open files            65536      65536      files',
};

/** A machine that has everything, but for what is changed. */
function machine(over: Partial<Machine> = {}, files: Record<string, string | undefined> = {}): Machine {
  const all: Record<string, string | undefined> = { ...FILES, ...files };
  return {
    platform: 'linux',
    nodeVersion: '26.10.0',
    read: async (path) => all[path],
    canWrite: async () => true,
    exists: async () => true,
    hasProgram: async () => true,
    run: async (program) => `${program} 1.0\n`,
    tryTun: async () => ({ uso: true }),
    landlockVersion: () => 7,
    foreignDrops: async () => [],
    ...over,
  };
}

async function lacking(over: Partial<Machine>, files: Record<string, string | undefined> = {}): Promise<Requirement[]> {
  return (await findRequirements(machine(over, files))).filter(({ ok }) => !ok);
}

test('a machine that has everything lacks nothing', async () => {
  const all = await findRequirements(machine());
  assert.deepEqual(
    all.filter(({ ok }) => !ok),
    [],
  );
  assert.equal(all.length, 15);
  assert.ok(all.every(({ mend }) => mend === undefined));
});

const fail = async (): Promise<never> => {
  throw new VpnError('ERR_HOST_APPLY', 'refused');
};

const CASES: [string, Partial<Machine>, Record<string, string | undefined>, string, boolean, RegExp][] = [
  ['an old Node.js', { nodeVersion: '20.19.2' }, {}, 'Node.js 26.10', true, /npm ci/],
  ['another system', { platform: 'darwin' }, {}, 'Linux', true, /Linux/],
  ['no tun', { exists: async () => false }, {}, '/dev/net/tun', true, /modprobe tun/],
  ['no right to tun', { canWrite: async (path) => path !== '/dev/net/tun' }, {}, '/dev/net/tun', true, /root/],
  ['a broken tun', { tryTun: fail }, {}, 'TUN device with super-packets', true, /modprobe tun/],
  ['an older kernel', { tryTun: async () => ({ uso: false }) }, {}, 'UDP super-packets', false, /6\.2/],
  ['no ip', { hasProgram: async (name) => name !== 'ip' }, {}, 'ip', true, /apt-get install iproute2/],
  ['a kernel without Landlock', { landlockVersion: () => 0 }, {}, 'Landlock (gateway)', false, /lsm=/],
  ['no nft', { hasProgram: async (name) => name !== 'nft' }, {}, 'nft', true, /apt-get install nftables/],
  [
    'a kernel without NAT',
    { run: async (program, args) => (args.includes('-c') ? await fail() : program) },
    {},
    'packet rules with connection tracking and NAT',
    true,
    /modprobe -a .*nft_masq/,
  ],
  [
    'a container with a read-only /proc/sys',
    { canWrite: async (path) => !path.startsWith('/proc/sys') },
    {},
    'forwarding (gateway)',
    false,
    /--sysctl net\.ipv4\.ip_forward=1/,
  ],
  [
    'no BBR',
    {},
    { '/proc/sys/net/ipv4/tcp_available_congestion_control': 'reno cubic' },
    'BBR congestion control',
    false,
    /modprobe tcp_bbr/,
  ],
  ['IPv6 switched off', {}, { '/proc/sys/net/ipv6/conf/all/disable_ipv6': '1' }, 'IPv6', false, /sysctl -w/],
  [
    'few files',
    {},
    { '/proc/self/limits': 'Max open files            1024      4096      files' },
    'open files',
    false,
    /ulimit/,
  ],
  [
    'another firewall',
    { foreignDrops: async () => [{ found: 'ufw drops', mend: 'ufw route allow in on cvpn0' }] },
    {},
    'other firewalls',
    false,
    /ufw route allow/,
  ],
];

for (const [what, over, files, name, required, mend] of CASES) {
  test(`${what}: one thing is missing, and its command is named`, async () => {
    const missing = await lacking(over, files);
    assert.deepEqual(
      missing.map((one) => [one.name, one.required]),
      [[name, required]],
    );
    assert.match(missing[0]?.mend ?? '', mend);
  });
}

test('without privilege what needs it is not tried', async () => {
  const untried = async (): Promise<never> => assert.fail('was tried');
  const status = { '/proc/self/status': 'CapEff:\t0000000000000000' };
  const all = await findRequirements(machine({ tryTun: untried, foreignDrops: untried }, status));
  assert.deepEqual(
    all.filter(({ ok }) => !ok).map(({ name }) => name),
    ['CAP_NET_ADMIN'],
  );
});

test('this machine can be looked at, whatever it is', async () => {
  for (const one of await findRequirements()) assert.ok(one.ok || one.mend !== undefined, one.name);
});
