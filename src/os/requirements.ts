/**
 * What this machine has and lacks for a gateway or a client, each with the command that mends it.
 *
 * Hides where the facts are found. Each is found by trying, where trying leaves nothing behind: a device is opened and
 * closed, packet rules are checked and not applied. Nothing here throws for what is missing.
 */

import { constants } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import { toVpnError } from '../base/errors.ts';
import { hasProgram, runCommand } from './command.ts';
import { landlockVersion } from './landlock.ts';
import { findForeignDrops } from './nft.ts';
import { openTun } from './tun-linux.ts';

/** One thing that is needed. */
export interface Requirement {
  name: string;
  ok: boolean;
  /** Without it nothing works; a missing optional one costs a feature, or speed. */
  required: boolean;
  /** What there is, or what was missing. */
  found: string;
  /** The command that mends it, or what else to do. */
  mend?: string;
}

/** How facts are found; replaced by tests. */
export interface Machine {
  readonly platform: string;
  readonly nodeVersion: string;
  /** The content of a file, trimmed; undefined when it cannot be read. */
  read(path: string): Promise<string | undefined>;
  /** Whether a file can be read and written. */
  canWrite(path: string): Promise<boolean>;
  exists(path: string): Promise<boolean>;
  hasProgram(name: string): Promise<boolean>;
  /** Runs a program. @throws {VpnError} when it fails */
  run(program: string, args: readonly string[], input?: string): Promise<string>;
  /** Opens a device of the kind that the product uses and closes it again. @throws {VpnError} */
  tryTun(): Promise<{ uso: boolean }>;
  /** The version of Landlock that the kernel has; 0: none. */
  landlockVersion(): number;
  /** Other firewalls that drop our traffic, in words, with the command that mends it. @throws {VpnError} */
  foreignDrops(): Promise<{ found: string; mend: string }[]>;
}

const NODE_VERSION = [26, 10] as const;
const CAP_NET_ADMIN = 12n;
const OPEN_FILES = 4096;
/** The name that a gateway's device has unless it is configured. */
const DEFAULT_DEVICE = 'cvpn0';

/** What the packet rules are made of; checked by the kernel and not applied. */
const RULES_CHECK = `
add table inet customvpn_check
add set inet customvpn_check counted { type ipv4_addr; size 16; flags dynamic; }
add chain inet customvpn_check raw { type filter hook prerouting priority raw; }
add chain inet customvpn_check forward { type filter hook forward priority filter; }
add chain inet customvpn_check nat { type nat hook postrouting priority srcnat; }
add rule inet customvpn_check raw iifname vmap { "lo" : accept }
add rule inet customvpn_check forward ct direction reply ct mark 1 accept
add rule inet customvpn_check forward ct state new add @counted { ip saddr ct count over 8 } drop
add rule inet customvpn_check forward ct mark set 1
add rule inet customvpn_check nat masquerade fully-random
`;

/** Everything that the product needs of this machine, in the order in which it should be mended. */
export async function findRequirements(machine: Machine = thisMachine): Promise<Requirement[]> {
  const found = [node(machine), platform(machine)];
  if (machine.platform !== 'linux') return found;
  const privilege = await netAdmin(machine);
  const tun = await tunNode(machine);
  found.push(privilege, tun);
  if (privilege.ok && tun.ok) found.push(...(await tunDevice(machine)));
  const ip = await program(machine, 'ip', 'iproute2', ['-V']);
  const nft = await program(machine, 'nft', 'nftables', ['-v']);
  found.push(ip, nft);
  if (privilege.ok && nft.ok) found.push(await packetRules(machine));
  if (privilege.ok) found.push(await forwarding(machine));
  found.push(await bbr(machine), await ipv6(machine), await openFiles(machine), landlock(machine));
  if (privilege.ok && nft.ok) found.push(...(await firewalls(machine)));
  return found;
}

function node({ nodeVersion }: Machine): Requirement {
  const [major = 0, minor = 0] = nodeVersion.split('.').map(Number);
  const ok = major === NODE_VERSION[0] && minor >= NODE_VERSION[1];
  return {
    name: 'Node.js 26.10',
    ok,
    required: true,
    found: nodeVersion,
    ...(ok ? {} : { mend: 'run it with bin/customvpn, which brings its own Node.js: npm ci && bin/customvpn doctor' }),
  };
}

function platform({ platform }: Machine): Requirement {
  const ok = platform === 'linux';
  const mend = 'run gateways and tunnel clients on Linux';
  return { name: 'Linux', ok, required: true, found: platform, ...(ok ? {} : { mend }) };
}

async function netAdmin(machine: Machine): Promise<Requirement> {
  const status = (await machine.read('/proc/self/status')) ?? '';
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  const ok = ((effective >> CAP_NET_ADMIN) & 1n) === 1n;
  return {
    name: 'CAP_NET_ADMIN',
    ok,
    required: true,
    found: ok ? 'yes' : 'no',
    ...(ok ? {} : { mend: 'run as root: sudo customvpn …; in a container: --cap-add NET_ADMIN' }),
  };
}

async function tunNode(machine: Machine): Promise<Requirement> {
  const path = '/dev/net/tun';
  const there = await machine.exists(path);
  const ok = there && (await machine.canWrite(path));
  return {
    name: path,
    ok,
    required: true,
    found: ok ? 'yes' : there ? 'not allowed' : 'missing',
    ...(ok ? {} : { mend: there ? 'run as root' : 'modprobe tun; in a container: --device /dev/net/tun' }),
  };
}

async function tunDevice(machine: Machine): Promise<Requirement[]> {
  try {
    const { uso } = await machine.tryTun();
    return [
      { name: 'TUN device with super-packets', ok: true, required: true, found: 'opened and closed one' },
      {
        name: 'UDP super-packets',
        ok: uso,
        required: false,
        found: uso ? 'yes' : 'the kernel has none: UDP is carried packet by packet',
        ...(uso
          ? {}
          : { mend: 'use Linux 6.2 or later; on Debian 12: apt-get install -t bookworm-backports linux-image-amd64' }),
      },
    ];
  } catch (error) {
    const { message } = toVpnError(error);
    const mend = 'modprobe tun; in a container: --device /dev/net/tun --cap-add NET_ADMIN';
    return [{ name: 'TUN device with super-packets', ok: false, required: true, found: message, mend }];
  }
}

async function program(machine: Machine, name: string, pkg: string, version: string[]): Promise<Requirement> {
  if (!(await machine.hasProgram(name))) {
    return { name, ok: false, required: true, found: 'missing', mend: `apt-get install ${pkg}` };
  }
  const text = await machine.run(name, version).catch(() => 'yes');
  return { name, ok: true, required: true, found: text.trim().split('\n')[0] ?? 'yes' };
}

async function packetRules(machine: Machine): Promise<Requirement> {
  const name = 'packet rules with connection tracking and NAT';
  try {
    await machine.run('nft', ['-c', '-f', '-'], RULES_CHECK);
    return { name, ok: true, required: true, found: 'accepted by the kernel' };
  } catch (error) {
    const mend = 'modprobe -a nf_tables nft_ct nft_chain_nat nft_masq nft_connlimit';
    return { name, ok: false, required: true, found: toVpnError(error).message, mend };
  }
}

async function forwarding(machine: Machine): Promise<Requirement> {
  const paths = ['/proc/sys/net/ipv4/ip_forward', '/proc/sys/net/ipv6/conf/all/forwarding'];
  const states = await Promise.all(
    paths.map(async (path) => {
      const value = await machine.read(path);
      return value === undefined || value === '1' || (await machine.canWrite(path));
    }),
  );
  const ok = states.every(Boolean);
  return {
    name: 'forwarding (gateway)',
    ok,
    required: false,
    found: ok ? 'is on, or can be switched on' : '/proc/sys is read-only',
    ...(ok
      ? {}
      : { mend: 'start the container with --sysctl net.ipv4.ip_forward=1 --sysctl net.ipv6.conf.all.forwarding=1' }),
  };
}

async function bbr(machine: Machine): Promise<Requirement> {
  const name = 'BBR congestion control';
  const folder = '/proc/sys/net/ipv4';
  const available = (await machine.read(`${folder}/tcp_available_congestion_control`))?.split(' ') ?? [];
  if (available.includes('bbr')) return { name, ok: true, required: false, found: 'yes' };
  return {
    name,
    ok: false,
    required: false,
    found: `missing; there are: ${available.join(', ')}. Lossy networks will be slow`,
    mend: 'modprobe tcp_bbr && echo tcp_bbr > /etc/modules-load.d/tcp_bbr.conf',
  };
}

async function ipv6(machine: Machine): Promise<Requirement> {
  const disabled = await machine.read('/proc/sys/net/ipv6/conf/all/disable_ipv6');
  const ok = disabled === '0';
  return {
    name: 'IPv6',
    ok,
    required: false,
    found: ok ? 'yes' : disabled === undefined ? 'not in this kernel' : 'switched off',
    ...(ok ? {} : { mend: disabled === undefined ? 'modprobe ipv6' : 'sysctl -w net.ipv6.conf.all.disable_ipv6=0' }),
  };
}

function landlock(machine: Machine): Requirement {
  const version = machine.landlockVersion();
  const ok = version > 0;
  return {
    name: 'Landlock (gateway)',
    ok,
    required: false,
    found: ok
      ? `version ${version}`
      : 'missing: a process that holds accounts is kept from other files by its user alone',
    ...(ok ? {} : { mend: 'use Linux 5.13 or later, and name landlock in the kernel parameter lsm=' }),
  };
}

async function openFiles(machine: Machine): Promise<Requirement> {
  const limits = (await machine.read('/proc/self/limits')) ?? '';
  const text = /^Max open files\s+(\S+)/m.exec(limits)?.[1] ?? '0';
  const ok = text === 'unlimited' || Number(text) >= OPEN_FILES;
  return {
    name: 'open files',
    ok,
    required: false,
    found: `${text}; two for each connection are needed`,
    ...(ok ? {} : { mend: 'ulimit -n 65536; in a systemd unit: LimitNOFILE=65536' }),
  };
}

async function firewalls(machine: Machine): Promise<Requirement[]> {
  const name = 'other firewalls';
  try {
    const drops = await machine.foreignDrops();
    if (drops.length === 0) return [{ name, ok: true, required: false, found: 'none drops our traffic' }];
    return drops.map(({ found, mend }) => ({ name, ok: false, required: false, found, mend }));
  } catch (error) {
    return [{ name, ok: false, required: false, found: toVpnError(error).message, mend: 'nft list ruleset' }];
  }
}

/** The machine that this process runs on. */
const thisMachine: Machine = {
  platform: process.platform,
  nodeVersion: process.versions.node,
  read: (path) =>
    readFile(path, 'utf8').then(
      (text) => text.trim(),
      () => undefined,
    ),
  canWrite: (path) => isAccessible(path, constants.R_OK | constants.W_OK),
  exists: (path) => isAccessible(path, constants.F_OK),
  hasProgram,
  run: runCommand,
  async tryTun() {
    const tun = openTun({ name: 'cvpndoctor%d', superPackets: true, mtu: 1400 });
    await tun.close();
    return { uso: tun.uso };
  },
  landlockVersion,
  async foreignDrops() {
    const drops = await findForeignDrops({
      own: { family: 'inet', name: 'customvpn' },
      devices: [DEFAULT_DEVICE],
      listen: [],
    });
    return drops.map(({ owner, table, chain, advice }) => ({
      found: `${owner === 'other' ? 'a firewall' : owner} drops what clients send (table ${table}, chain ${chain})`,
      mend: advice.join(' && '),
    }));
  },
};

async function isAccessible(path: string, mode: number): Promise<boolean> {
  return await access(path, mode).then(
    () => true,
    () => false,
  );
}
