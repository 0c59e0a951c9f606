// What fails at any step of a change leaves file, kernel and record as they were; what is in force is not called a failure.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError, VpnError } from '../../base/errors.ts';
import { readPolicy } from '../../policy/policy.ts';
import { Selector } from '../../policy/selector.ts';
import type { PolicyVersions } from '../../store/policy-versions.ts';
import { gatewayConfigSchema } from '../config.ts';
import { policyDigest } from '../policy-files.ts';
import type { ReadyPolicy } from './access-desk.ts';
import { PolicyChanges } from './policy-changes.ts';

const text = (network: string) => `version = 1\n[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["${network}"]\n`;
const FIRST = text('192.0.2.0/24');
const SECOND = text('198.51.100.0/24');
const FAILURE = new VpnError('ERR_STORE', 'the disk is full');

function ready(of: string): ReadyPolicy {
  const policy = readPolicy(of).policy ?? assert.fail('that is no policy');
  const names = { found: new Map() } as unknown as ReadyPolicy['names'];
  return { file: 'policy.toml', digest: policyDigest(of), text: of, selector: new Selector(policy), names };
}

/** A gateway whose steps fail where a test says so; a step that is asked a second time is an undo. */
function open(fails: Partial<Record<string, Error>> = {}, kept: Record<number, string> = {}) {
  const first = ready(FIRST);
  const gateway = { file: FIRST, inForce: first, offered: 0, versions: [FIRST] };
  const calls = new Map<string, number>();
  const step = (name: string) => {
    const count = (calls.get(name) ?? 0) + 1;
    calls.set(name, count);
    const error = fails[count === 1 ? name : `${name} again`];
    if (error !== undefined) throw error;
  };
  const changes = new PolicyChanges({
    access: {
      get inForce() {
        return { ...gateway.inForce, since: 0 };
      },
      readText: async (of) => ready(of),
    },
    files: {
      offerPolicy: async () => {
        gateway.offered += 1;
      },
      savePolicy: async (policy, replaces) => {
        step('save');
        assert.equal(replaces, policyDigest(gateway.file));
        gateway.file = policy.text;
      },
    },
    versions: {
      keep: async ({ text: of }: { text: string }) => {
        step('keep');
        return gateway.versions.push(of);
      },
      show: async (version: number) => ({ text: kept[version] ?? '' }),
    } as unknown as PolicyVersions,
    config: () => gatewayConfigSchema.parse({ admin: { editPolicy: true } }),
    ask: async () => step('ask'),
    enforce: async (policy) => {
      step('enforce');
      gateway.inForce = policy;
      return [];
    },
    changed: async () => {
      step('changed');
      return ['somebody can reach nothing any more'];
    },
  });
  return { gateway, changes };
}

test('a text goes into the file, into force and on record', async () => {
  const { gateway, changes } = open();
  assert.deepEqual(await changes.apply(SECOND), { version: 2, warnings: ['somebody can reach nothing any more'] });
  assert.deepEqual([gateway.file, gateway.inForce.text, gateway.versions], [SECOND, SECOND, [FIRST, SECOND]]);
});

for (const step of ['ask', 'save', 'enforce', 'keep']) {
  test(`when the step "${step}" fails, file and kernel are as they were, and its error is told`, async () => {
    const { gateway, changes } = open({ [step]: FAILURE });
    await assert.rejects(changes.apply(SECOND), FAILURE);
    assert.deepEqual([gateway.file, gateway.inForce.text, gateway.versions], [FIRST, FIRST, [FIRST]]);
    // The next one is not held up by it.
    assert.equal((await changes.apply(SECOND)).version, 2);
  });
}

test('of two undos that are due each is tried, and what cannot be undone is told with what to do', async () => {
  const stuck = new VpnError('ERR_HOST_APPLY', 'nft says no');
  const { gateway, changes } = open({ keep: FAILURE, 'save again': stuck });
  await assert.rejects(changes.apply(SECOND), (error) => {
    assert.ok(isVpnError(error, 'ERR_STORE'));
    assert.match(error.message, /the disk is full.*could not be put back \(nft says no\).*customvpn server reload/);
    assert.equal(error.cause, FAILURE);
    return true;
  });
  assert.equal(gateway.inForce.text, FIRST, 'the kernel has the former one');
  const { gateway: other, changes: both } = open({ keep: FAILURE, 'enforce again': stuck });
  await assert.rejects(both.apply(SECOND), /nft says no/);
  assert.equal(other.file, FIRST, 'the file has the former one');
});

test('what fails behind a change is a warning: the policy is in force', async () => {
  const { gateway, changes } = open({ changed: FAILURE });
  const { version, warnings } = await changes.apply(SECOND);
  assert.equal(version, 2);
  assert.match(warnings.join(), /is in force, as version 2, but .*the disk is full/);
  assert.equal(gateway.inForce.text, SECOND);
});

test('a text that is too long is refused before anything is offered; one as long that was kept is put in force again', async () => {
  const long = `${SECOND}# ${'x'.repeat(400_000)}\n`;
  const tooLong = `${SECOND}# ${'x'.repeat(1_000_000)}\n`;
  const { gateway, changes } = open({}, { 7: long, 8: tooLong });
  const refused = (error: unknown) => {
    assert.ok(isVpnError(error, 'ERR_CONFIG_VALUE'));
    assert.match(error.message, /expected a policy of at most \d+ characters, got \d+; put it into policy\.toml/);
    return true;
  };
  await assert.rejects(changes.apply(long), refused);
  await assert.rejects(changes.rollBack(8), refused);
  assert.equal(gateway.offered, 0);
  assert.equal((await changes.rollBack(7)).version, 2);
  assert.equal(gateway.file, long);
});
