/** Runs inside a namespace for `os-host.test.ts`: `SCENARIO JOURNAL [KILL-AT]`; prints what happened as JSON. */

import { readFile } from 'node:fs/promises';
import { isVpnError } from '../../src/base/errors.ts';
import { type Logger, silentLogger } from '../../src/base/log.ts';
import { runCommand } from '../../src/os/command.ts';
import { type HostChange, HostNetwork } from '../../src/os/host.ts';
import { RouteBatch } from '../../src/os/route-batch.ts';
import { openTun } from '../../src/os/tun-linux.ts';

const [scenario = '', journalPath = '', killAt = '0'] = process.argv.slice(2);

export const CHANGES: HostChange[] = [
  { kind: 'nft', table: { family: 'inet', name: 'hosttest' }, body: 'chain c { }' },
  { kind: 'link', device: 'out0', mtu: 1400, queueLength: 333, addressGeneration: 'none' },
  { kind: 'link', device: 'down0', up: true },
  { kind: 'address', device: 'out0', address: '192.0.2.7/24' },
  { kind: 'address', device: 'out0', address: '2001:db8:7::1' },
  { kind: 'address', device: 'out0', address: '198.51.100.1/24' },
  { kind: 'sysctl', key: 'net.ipv4.ip_forward', value: '1' },
  { kind: 'forwarding6' },
  { kind: 'sysctl', key: 'net.ipv4.conf.all.rp_filter', value: '0' },
  { kind: 'route', prefix: '203.0.113.0/24', device: 'out0', via: '198.51.100.2' },
  { kind: 'route', prefix: '203.0.114.0/24', device: 'out0', via: '198.51.100.2' },
  { kind: 'route', prefix: '0.0.0.0/1', device: 'out0', scope: 'global', table: 4242, metric: 7 },
  { kind: 'route', prefix: '2001:db8:9::/48', device: 'out0' },
  { kind: 'route', type: 'throw', prefix: '198.18.0.0/15', table: 4242 },
  { kind: 'route', type: 'unreachable', prefix: '2001:db8:a::/48', table: 4242 },
  { kind: 'rule', family: 4, priority: 4242, notMark: 7, table: 4242 },
  { kind: 'rule', family: 6, priority: 4242, to: '2001:db8:b::/48', table: 'main', suppressLength: 47 },
  {
    kind: 'rule',
    family: 4,
    priority: 4241,
    ports: { protocol: 'udp', source: 68, destination: 67 },
    table: 'main',
  },
];

/** Counts the steps that the host's log tells of, and dies at the one that is wanted, as if the power of the program failed. */
function countingLogger(): { log: Logger; steps: () => number } {
  let steps = 0;
  const log: Logger = {
    ...silentLogger,
    debug: () => {
      steps += 1;
      if (steps === Number(killAt)) process.kill(process.pid, 'SIGKILL');
    },
    child: () => log,
  };
  return { log, steps: () => steps };
}

async function codeOf(action: () => Promise<unknown>): Promise<string> {
  try {
    await action();
    return 'none';
  } catch (error) {
    return isVpnError(error) ? error.code : String(error);
  }
}

const scenarios: Record<string, () => Promise<unknown>> = {
  async run() {
    const { log, steps } = countingLogger();
    const host = await HostNetwork.open({ journalPath, log });
    await host.applyAll(CHANGES);
    await host.revert();
    return steps();
  },

  /** Says at each step what the kernel has, and whether something was ever missing between two steps. */
  async become() {
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    const at = (address: string): HostChange => ({ kind: 'address', device: 'out0', address });
    const rules = (name: string): HostChange => ({
      kind: 'nft',
      table: { family: 'inet', name: 'hosttest' },
      body: `chain ${name} { }`,
    });
    const mtu = (value: number): HostChange => ({ kind: 'link', device: 'out0', mtu: value });
    const has = async (): Promise<string> => {
      const addresses = await runCommand('ip', ['-o', '-4', 'address', 'show', 'dev', 'out0']);
      const link = await runCommand('ip', ['-o', 'link', 'show', 'dev', 'out0']);
      const table = await runCommand('nft', ['list', 'table', 'inet', 'hosttest']).catch(() => '');
      return [
        ...addresses.matchAll(/inet (192\.0\.2\.\d+)/g),
        ...link.matchAll(/(mtu \d+)/g),
        ...table.matchAll(/chain (\w+)/g),
      ]
        .map(([, found]) => found)
        .join(' ');
    };
    const seen: string[] = [];
    await host.become([at('192.0.2.7/32'), mtu(1400), rules('one')]);
    seen.push(await has());
    await host.become([at('192.0.2.7/32'), at('192.0.2.8/32'), mtu(1300), rules('two')]);
    seen.push(await has());
    const failed = await codeOf(() =>
      host.become([at('192.0.2.9/32'), mtu(1290), rules('three }'), at('192.0.2.8/32')]),
    );
    seen.push(`${failed} ${await has()}`);
    await host.become([at('192.0.2.8/32'), mtu(1400), rules('two')]);
    seen.push(await has());
    await host.revert();
    seen.push(await has());
    return seen;
  },

  /** Says at each step what is forwarded, and the MTU, which stays until the end. */
  async forwarding() {
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    const forward: HostChange = { kind: 'sysctl', key: 'net/ipv4/conf/out0/forwarding', value: '1' };
    const mtu: HostChange = { kind: 'link', device: 'out0', mtu: 1400 };
    const has = async (): Promise<string> => {
      const values = await Promise.all(
        ['ipv4/conf/out0', 'ipv6/conf/all', 'ipv6/conf/out0'].map((key) =>
          readFile(`/proc/sys/net/${key}/forwarding`, 'utf8'),
        ),
      );
      const [link = ''] = /mtu \d+/.exec(await runCommand('ip', ['-o', 'link', 'show', 'dev', 'out0'])) ?? [];
      return [...values.map((value) => value.trim()), link].join(' ');
    };
    const seen = [await has()];
    for (const changes of [[mtu, forward, { kind: 'forwarding6' } as const], [mtu, forward], []]) {
      await host.become(changes);
      seen.push(await has());
    }
    await host.revert();
    return [...seen, await has()];
  },

  async apply() {
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    for (const change of CHANGES) await host.apply(change);
    return 'applied';
  },

  async recover() {
    const warnings: string[] = [];
    const log: Logger = { ...silentLogger, warn: (message) => warnings.push(message), child: () => log };
    await HostNetwork.open({ journalPath, log });
    return warnings.length;
  },

  async failing() {
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    const unknownDevice = await codeOf(() => host.apply({ kind: 'address', device: 'nowhere0', address: '192.0.2.9' }));
    const badRoute = await codeOf(() =>
      host.applyAll([
        { kind: 'address', device: 'out0', address: '192.0.2.9' },
        { kind: 'route', prefix: '203.0.115.0/24', device: 'out0', via: '10.99.99.99' },
      ]),
    );
    const badRules = await codeOf(() =>
      host.apply({ kind: 'nft', table: { family: 'inet', name: 'hosttest' }, body: 'nonsense' }),
    );
    const held = await codeOf(() => HostNetwork.open({ journalPath, log: silentLogger }));
    await host.revert();
    await host.revert();
    return { unknownDevice, badRoute, badRules, held };
  },

  async device() {
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    const tun = openTun({ name: 'cvh0', superPackets: true, mtu: 1400 });
    await host.applyAll([
      { kind: 'link', device: 'cvh0', up: true },
      { kind: 'address', device: 'cvh0', address: '10.8.0.1/16' },
      { kind: 'route', prefix: '10.9.0.0/16', device: 'cvh0' },
    ]);
    await tun.close();
    await host.revert();
    return 'reverted';
  },

  async routes() {
    const tun = openTun({ name: 'cvh0', superPackets: true, mtu: 1400 });
    const host = await HostNetwork.open({ journalPath, log: silentLogger });
    await host.apply({ kind: 'link', device: 'cvh0', up: true });
    const routes = await RouteBatch.open({ log: silentLogger });
    const prefix = (index: number): string => `10.8.${index >> 8}.${index & 255}/32`;
    const indexes = Array.from({ length: 2000 }, (_, index) => index);
    await Promise.all(indexes.map((index) => routes.add({ prefix: prefix(index), device: 'cvh0' })));
    const added = await count();
    await routes.add({ prefix: prefix(0), device: 'cvh0' });
    const mixed = await Promise.allSettled([
      routes.add({ prefix: 'fd00:8::5/128', device: 'cvh0' }),
      routes.add({ prefix: '10.9.0.1/32', device: 'nowhere0' }),
      routes.remove({ prefix: '10.77.0.1/32', device: 'cvh0' }),
      routes.add({ prefix: '10.9.0.2/32', device: 'cvh0' }),
      routes.remove({ prefix: '10.9.0.2/32', device: 'cvh0' }),
    ]);
    const injected = await codeOf(() => routes.add({ prefix: '10.9.0.3/32\nlink delete lo', device: 'cvh0' }));
    await Promise.all(indexes.slice(1).map((index) => routes.remove({ prefix: prefix(index), device: 'cvh0' })));
    const left = await count();
    await Promise.all([routes.close(), routes.close()]);
    const late = await codeOf(() => routes.add({ prefix: prefix(1), device: 'cvh0' }));
    await tun.close();
    await host.revert();
    return { added, mixed: mixed.map(({ status }) => status), injected, left, late };
  },
};

async function count(): Promise<number> {
  const { runCommand } = await import('../../src/os/command.ts');
  const text = await runCommand('ip', ['-j', '-4', 'route', 'show', 'dev', 'cvh0']);
  return text.trim() === '' ? 0 : (JSON.parse(text) as unknown[]).length;
}

const action = scenarios[scenario];
if (action === undefined) throw new Error(`no scenario ${scenario}`);
process.stdout.write(`${JSON.stringify(await action())}\n`);
