import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  CLIENTS,
  HOSTS,
  isAllowed,
  type ModelFlow,
  type ModelPolicy,
  modelFlow,
  modelPolicy,
  POOLS,
  textOf,
} from '../../test/support/policy-model.ts';
import { formatIp, parseIp, parsePrefix, prefixContains } from '../ip/address.ts';
import { decide, type Holder, rulesFor, type Surroundings } from './access.ts';
import { readPolicy } from './policy.ts';

const NOW = Date.UTC(2026, 2, 2, 9);

const holders: readonly Holder[] = CLIENTS.map(({ user, groups, hasCertificate, mfaMinutes }) => ({
  user,
  groups,
  hasCertificate,
  mfaAt: mfaMinutes === undefined ? undefined : NOW - mfaMinutes * 60_000,
}));

const pools = POOLS.map(parsePrefix);
const surroundings: Surroundings = {
  addressesOf: (host) => (HOSTS[host] ?? []).map(parseIp),
  isOfClients: (address) => pools.some((pool) => prefixContains(pool, address)),
  holderOf: (address) =>
    holders[CLIENTS.findIndex(({ address4, address6 }) => [address4, address6].includes(formatIp(address)))],
};

function judge(model: ModelPolicy): (flow: ModelFlow) => boolean {
  const { policy, problems } = readPolicy(textOf(model));
  assert.ok(policy !== undefined, JSON.stringify(problems));
  const lists = holders.map((holder) => rulesFor(policy, holder, NOW));
  return ({ client, destination, ...transport }) =>
    decide(policy, lists[client] ?? [], { destination: parseIp(destination), ...transport }, surroundings).action ===
    'allow';
}

test('whatever the policy and the flow, the decision is that of an evaluator that reads the file word by word', () => {
  let allowed = 0;
  let judgements = 0;
  fc.assert(
    fc.property(modelPolicy, fc.array(modelFlow, { minLength: 20, maxLength: 20 }), (policy, flows) => {
      const judged = judge(policy);
      for (const flow of flows) {
        const expected = isAllowed(policy, flow);
        assert.equal(judged(flow), expected, JSON.stringify(flow));
        judgements += 1;
        if (expected) allowed += 1;
      }
    }),
    { numRuns: 200 },
  );
  // A model that denies everything would prove nothing.
  assert.ok(allowed > judgements / 20, `${allowed} of ${judgements} allowed`);
});

test('no rule, no way: an empty policy denies everything, and says that no rule did', () => {
  const { policy } = readPolicy('version = 1\n');
  assert.ok(policy !== undefined);
  const flow = { destination: parseIp('192.0.2.1'), protocol: 6, port: 443 };
  assert.deepEqual(decide(policy, [], flow, surroundings), { action: 'deny', rule: undefined });
});

test('a second factor that grows old, and hours that pass, take a rule out of force', () => {
  const { policy } = readPolicy(`
version = 1
[[rules]]
action = "allow"
from = ["any"]
to = ["any"]
require = { mfaMinutes = 30 }
[[rules]]
action = "allow"
from = ["any"]
to = ["any"]
when = { days = ["mon"], from = "08:00", to = "10:00" }
`);
  assert.ok(policy !== undefined);
  const holder = { user: 'ada', groups: [], hasCertificate: false, mfaAt: NOW };
  const inForce = (minutes: number) => rulesFor(policy, holder, NOW + minutes * 60_000).map(({ index }) => index);
  assert.deepEqual(inForce(30), [0, 1]);
  assert.deepEqual(inForce(31), [1]);
  assert.deepEqual(inForce(60), []);
});

test('a port that cannot be told is met only by rules that name no port', () => {
  const { policy } = readPolicy(`
version = 1
[[rules]]
action = "deny"
from = ["any"]
to = ["any"]
services = ["tcp/22"]
[[rules]]
action = "allow"
from = ["any"]
to = ["any"]
services = ["tcp"]
`);
  assert.ok(policy !== undefined);
  const holder = { user: 'ada', groups: [], hasCertificate: false };
  const flow = { destination: parseIp('192.0.2.1'), protocol: 6 };
  assert.equal(decide(policy, rulesFor(policy, holder, NOW), flow, surroundings).rule, undefined);
});
