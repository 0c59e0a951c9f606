// What the supervisor takes of what auth says of a policy. Auth is not believed.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isVpnError } from '../../base/errors.ts';
import { parseIp } from '../../ip/address.ts';
import { MAX_KEPT_POLICY } from '../../store/policy-versions.ts';
import { SupervisorLink } from '../auth/supervisor-link.ts';
import { MAX_EDITED_POLICY, MAX_OFFERED_POLICY } from '../ipc/messages.ts';
import { policyDigest } from '../policy-files.ts';
import { PolicyStage } from './policy-stage.ts';

const RULE = '[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["192.0.2.0/24"]\n';
const session = (number = 0) => ({ lease: { v4: parseIp('10.0.0.2') }, class: number, peers: [] });
const refused = (call: () => unknown) => assert.throws(call, (error) => isVpnError(error, 'ERR_INVARIANT'));

test('rules come from the file that was read, and what is said of another file is refused', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-stage-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'policy.toml');
  const stage = new PolicyStage();
  assert.deepEqual(await stage.read(undefined), { text: null, revision: 0 });
  refused(() => stage.take(0));
  writeFileSync(file, `version = 1\n${RULE}`);
  const { revision: first } = await stage.read(file);
  stage.add({ hosts: [{ name: 'a.example', addresses: [parseIp('192.0.2.9')] }] });
  stage.add({ classes: [[0], []], sessions: [session(), session(1)] });
  refused(() => stage.add({ classes: [[0]], sessions: [session(1)] }));
  const taken = stage.take(first);
  assert.equal(taken?.policy.rules.length, 1);
  assert.deepEqual([...(taken?.hosts.keys() ?? [])], ['a.example']);
  assert.deepEqual(
    taken?.sessions.map(({ access }) => access.rules),
    [[0], []],
  );
  // It counts when the kernel has it.
  refused(() => stage.admitted(first, { classes: [[0]], sessions: [session()] }));
  stage.entered(first);
  assert.equal(stage.admitted(first, { classes: [[0]], sessions: [session()] }).length, 1);
  // Another file has been read, and was not put in force: the first one still counts, and what was staged is used up.
  writeFileSync(file, `version = 1\n${RULE}${RULE}`);
  const { revision: second } = await stage.read(file);
  refused(() => stage.admitted(second, { classes: [[0]], sessions: [session()] }));
  assert.equal(stage.take(first)?.policy.rules.length, 1);
  assert.deepEqual(stage.take(second)?.sessions, []);
  refused(() => stage.take(second + 1));
  // A file that is none can be read, and not be put in force.
  writeFileSync(file, 'rules = 7');
  const { revision: third, text } = await stage.read(file);
  assert.equal(text, 'rules = 7');
  refused(() => stage.take(third));
  assert.equal(stage.take(null), undefined);
});

test('a text that an operator has written counts as a file does, within its length, and goes into the file in its place', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-stage-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'policy.toml');
  const [old, written] = [`version = 1\n${RULE}`, `version = 1\n${RULE}${RULE}`];
  writeFileSync(file, old);
  const stage = new PolicyStage();
  const { revision: first } = await stage.read(file);
  stage.take(first);
  stage.entered(first);
  refused(() => {
    for (let part = 0; part * 8192 <= MAX_OFFERED_POLICY; part++) stage.offer('#'.repeat(8192));
  });
  stage.offer(written.slice(0, 20));
  stage.offer(written.slice(20));
  const { revision: second } = stage.readOffered(policyDigest(written));
  await assert.rejects(stage.save(second + 1, file, policyDigest(old)), { code: 'ERR_INVARIANT' });
  await assert.rejects(stage.save(second, undefined, policyDigest(old)), { code: 'ERR_INVARIANT' });
  await stage.save(second, file, policyDigest(old));
  assert.equal(readFileSync(file, 'utf8'), written);
  assert.equal(stage.take(second)?.policy.rules.length, 2);
  // It could not be put in force: the one that is goes back.
  await stage.save(first, file, policyDigest(written));
  assert.equal(readFileSync(file, 'utf8'), old);
});

test('a policy that is in force gives way to the one before it, though another was read meanwhile', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-stage-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'policy.toml');
  const texts = [1, 2, 3, 4].map((rules) => `version = 1\n${RULE.repeat(rules)}`);
  const stage = new PolicyStage();
  const read = async (at: number) => {
    writeFileSync(file, texts[at] ?? '');
    return (await stage.read(file)).revision;
  };
  const enter = (revision: number) => {
    assert.equal(stage.take(revision)?.policy.rules.length, revision);
    stage.entered(revision);
  };
  enter(await read(0));
  enter(await read(1));
  await read(2);
  // Twice is as once: what was before stays known.
  enter(2);
  await stage.save(1, file, policyDigest(texts[2] ?? ''));
  assert.equal(readFileSync(file, 'utf8'), texts[0]);
  enter(1);
  // No further back.
  enter(2);
  enter(await read(3));
  refused(() => stage.take(1));
});

test('parts of two texts that come together are none, and what one auth has staged is not for the next', async () => {
  const stage = new PolicyStage();
  const [one, other] = [`version = 1\n${RULE}`, `version = 1\n${RULE}${RULE}`];
  stage.offer(one.slice(0, 30));
  stage.offer(other);
  refused(() => stage.readOffered(policyDigest(other)));
  stage.offer(one);
  const { revision } = stage.readOffered(policyDigest(one));
  stage.offer(other.slice(0, 5));
  stage.add({ hosts: [{ name: 'a.example', addresses: [parseIp('192.0.2.9')] }] });
  stage.add({ classes: [[0]], sessions: [session()] });
  stage.clear();
  const taken = stage.take(revision);
  assert.deepEqual([taken?.hosts.size, taken?.sessions.length], [0, 0]);
  stage.offer(other);
  assert.equal(stage.readOffered(policyDigest(other)).revision, revision + 1);
});

test('a text comes over in parts as it was, as long as one may be that is put in force again, wherever it is cut', async () => {
  const stage = new PolicyStage();
  let parts = 0;
  const channel = {
    tell: (_: 'policyPart', { text }: { text: string }) => {
      parts += 1;
      // As JSON on its way.
      stage.offer(JSON.parse(JSON.stringify(text)));
    },
    call: async (_: 'offerPolicy', { digest }: { digest: string }) => stage.readOffered(digest),
  };
  const link = new SupervisorLink(() => channel as never);
  // A character of two units is cut in two at every other part.
  const text = `version = 1\n${RULE}# ${'x😀'.repeat(300_000)}\n`;
  await link.offerPolicy(text);
  assert.ok(parts > 100);
  await link.offerPolicy(`version = 1\n${RULE}${RULE}`);
  assert.equal(stage.take(2)?.policy.rules.length, 2);
});

test('whatever is kept as a version can be offered again', () => {
  assert.ok(MAX_KEPT_POLICY <= MAX_OFFERED_POLICY);
  assert.ok(MAX_EDITED_POLICY <= MAX_OFFERED_POLICY);
});
