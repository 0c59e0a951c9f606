/**
 * What a policy costs, in a namespace: reads one of so many rules, selects the rules of 5,000 sessions in 100 groups, compiles
 * them and puts them into the kernel, as a gateway does; then one more client, and checks of streams. Prints JSON.
 *
 *   node policy-peer.ts RULES
 */

import { execFileSync } from 'node:child_process';
import { AccessTable } from '../../src/gateway/supervisor/access-table.ts';
import { GATEWAY_TABLE, gatewayRuleset, POLICY_VERDICTS } from '../../src/gateway/supervisor/ruleset.ts';
import { parseIp, parsePrefix } from '../../src/ip/address.ts';
import { replaceTable } from '../../src/os/nft.ts';
import { NftShell } from '../../src/os/nft-shell.ts';
import { decide } from '../../src/policy/access.ts';
import { withAddresses } from '../../src/policy/kernel-rules.ts';
import { readPolicy } from '../../src/policy/policy.ts';
import { Selector } from '../../src/policy/selector.ts';
import { benchPolicy, GROUPS } from './policy-text.ts';

const SESSIONS = 5000;
const CLIENTS = 200;
const CHECKS = 20_000;

const count = Number(process.argv[2]);
const text = benchPolicy(count);
const figures: Record<string, number> = {};

async function timed<T>(name: string, work: () => T | Promise<T>): Promise<T> {
  const since = performance.now();
  const result = await work();
  figures[name] = performance.now() - since;
  return result;
}

const policy = await timed('read', () => {
  const read = readPolicy(text);
  if (read.policy === undefined) throw new Error(JSON.stringify(read.problems[0]));
  return read.policy;
});
const selector = new Selector(policy);
const holderOf = (at: number) => ({ user: `user${at}`, groups: [`g${at % GROUPS}`], hasCertificate: false });
const leaseOf = (at: number) => ({
  v4: parseIp(`10.88.${at >> 8}.${at & 255}`),
  v6: parseIp(`fd88::${at.toString(16)}`),
});
const now = Date.now();
const admitted = await timed('select', () =>
  Array.from({ length: SESSIONS }, (_, at) => {
    const { numbers: rules, peers } = selector.select(holderOf(at), now);
    return { lease: leaseOf(at + 2), access: { rules, peers } };
  }),
);
let mark = 0;
const [table, body] = await timed('compile', () => {
  const made = new AccessTable({
    table: `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`,
    rules: withAddresses(policy.rules, () => []),
    ...POLICY_VERDICTS,
    clients: { 4: 'pool4', 6: 'pool6' },
    admitted,
    nextMark: () => ++mark,
  });
  const pools = { pool4: parsePrefix('10.88.0.0/16'), pool6: parsePrefix('fd88::/64') };
  const gateways = { gateway4: parseIp('10.88.0.1'), gateway6: parseIp('fd88::1') };
  const device = { name: 'cvpn0', kind: 'super', blocks: [pools.pool4, pools.pool6], hosts: [] } as const;
  const rules = gatewayRuleset({
    ...pools,
    ...gateways,
    devices: [device],
    allowed: [],
    clientToClient: false,
    services: [],
    listenPorts: [443],
    masquerade4: true,
    masquerade6: true,
    generation: 1,
    connectionsPerAddress: 4096,
    access: made.lines(),
  });
  return [made, rules] as const;
});
await timed('apply', () => replaceTable(GATEWAY_TABLE, body));
await timed('replace', () => replaceTable(GATEWAY_TABLE, body));

const shell = new NftShell();
const times: number[] = [];
for (let at = 0; at < CLIENTS; at++) {
  const { numbers: rules, peers } = selector.select(holderOf(at), now);
  const lease = leaseOf(SESSIONS + 10 + at);
  const since = performance.now();
  await shell.run(table.admit([{ lease, access: { rules, peers } }]).commands);
  times.push(performance.now() - since);
}
await shell.close();
figures.admit = times.toSorted((a, b) => a - b)[CLIENTS >> 1] ?? Number.NaN;

const surroundings = { addressesOf: () => [], isOfClients: () => false, holderOf: () => undefined };
const flows = Array.from({ length: 256 }, (_, at) => ({
  destination: parseIp(`10.${at}.${(at * 7) & 255}.9`),
  protocol: 6,
  port: at % 2 === 0 ? 443 : 25,
}));
const check = (checks: number): void => {
  for (let at = 0; at < checks; at++) {
    const flow = flows[at & 255];
    if (flow !== undefined) decide(policy, selector.select(holderOf(at % SESSIONS), now).rules, flow, surroundings);
  }
};
check(CHECKS / 10);
await timed('checks', () => check(CHECKS));
figures.check = ((figures.checks ?? Number.NaN) * 1000) / CHECKS;
figures.classes = table.classes;
figures.textKiB = body.length / 1024;
execFileSync('nft', ['delete', 'table', GATEWAY_TABLE.family, GATEWAY_TABLE.name]);
process.stdout.write(`${JSON.stringify(figures)}\n`);
