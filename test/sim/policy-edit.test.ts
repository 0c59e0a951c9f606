// The policy, changed by operators at a running gateway: what is put in force, what is refused and changes nothing, and the way back.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Office } from '../support/office.ts';

const LIMIT = { timeout: 60_000 };
const policy = (to: string, tests = '') =>
  `version = 1\n[[rules]]\nname = "staff"\naction = "allow"\nfrom = ["group:staff"]\nto = ["${to}"]\n${tests}`;
const FIRST = policy('192.0.2.0/24');
const SECOND = policy('198.51.100.0/24');
/** Its own test says that what it allows is not. */
const CONTRADICTORY = policy('203.0.113.0/24', '[tests]\nexpect = ["group:staff cannot reach 203.0.113.7"]\n');

class Desk implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'customvpn-policy-'));
  readonly file = join(this.folder, 'policy.toml');
  #office: Office | undefined;

  static async open(admin: { editPolicy?: boolean } = {}): Promise<Desk> {
    const desk = new Desk();
    writeFileSync(desk.file, FIRST);
    desk.#office = await Office.open({ config: { policyFile: desk.file, admin } });
    return desk;
  }

  get office(): Office {
    assert.ok(this.#office !== undefined);
    return this.#office;
  }

  get text(): string {
    return readFileSync(this.file, 'utf8');
  }

  /** What is in force, as the gateway judges it. */
  async inForce(): Promise<string[]> {
    await this.office.api['user.add']({ name: 'carol', groups: ['staff'] }).catch(() => {});
    await this.office.world.server.reload();
    const { user } = await this.office.api['policy.show']({ user: 'carol' });
    return user?.[0]?.rules.flatMap(({ to }) => to) ?? [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#office?.[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true });
  }
}

test(
  'an administrator puts a policy in force, and one that was before; each is kept, and on record',
  LIMIT,
  async () => {
    await using desk = await Desk.open();
    const browser = await desk.office.as('administrator');
    const current = await browser.call('policy.text');
    assert.equal(current.body.isEditable, true);
    const done = await browser.call(
      'policy.apply',
      { text: SECOND, note: 'they moved' },
      { 'if-match': current.headers.etag ?? '' },
    );
    assert.equal(done.status, 200, done.text);
    assert.deepEqual(done.body, { version: 2, warnings: [] });
    assert.equal(desk.text, SECOND);
    assert.equal((await desk.office.api['policy.text']({})).text, SECOND);
    assert.deepEqual(await desk.inForce(), ['198.51.100.0/24']);
    const history = (await browser.call('policy.history')).body as Record<string, unknown>[];
    assert.deepEqual(
      history.map(({ version, by, note, isInForce }) => [version, by, note, isInForce]),
      [
        [2, 'administrator', 'they moved', true],
        [1, null, '', false],
      ],
    );
    assert.equal((await browser.call('policy.version', { version: 1 })).body.text, FIRST);
    const back = await browser.call('policy.rollback', { version: 1 });
    assert.deepEqual(back.body, { version: 3, warnings: [] });
    assert.equal(desk.text, FIRST);
    assert.deepEqual(await desk.inForce(), ['192.0.2.0/24']);
    const acts = await desk.office.api['audit.list']({ event: 'operator.acted' });
    assert.deepEqual(
      acts.map(({ detail }) => [detail.operation, detail.by]),
      [
        ['policy.apply', 'administrator'],
        ['policy.rollback', 'administrator'],
      ],
    );
    const changes = await desk.office.api['audit.list']({ event: 'policy.changed' });
    assert.equal(changes.filter(({ detail }) => detail.by === 'administrator').length, 2);
  },
);

test(
  'a policy that is wrong, or whose tests fail, is refused, and file and gateway stay as they are',
  LIMIT,
  async () => {
    await using desk = await Desk.open();
    const browser = await desk.office.as('administrator');
    for (const [text, message] of [
      [CONTRADICTORY, /the test "group:staff cannot reach 203\.0\.113\.7" fails/],
      ['version = 1\n[[rules]]\naction = "perhaps"\n', /policy\.toml:2: /],
      ['', /policy\.toml:1: /],
    ] as const) {
      const refused = await browser.call('policy.apply', { text });
      assert.equal(refused.status, 400, refused.text);
      assert.match(refused.body.message, message);
    }
    assert.equal((await browser.call('policy.rollback', { version: 7 })).status, 404);
    assert.equal((await browser.call('policy.apply', { text: 'x'.repeat(400_001) })).status, 400);
    assert.equal(desk.text, FIRST);
    assert.deepEqual(await desk.inForce(), ['192.0.2.0/24']);
    assert.equal((await browser.call('policy.history')).body.length, 1);
  },
);

test('a version whose own tests fail today is not put in force again', LIMIT, async () => {
  await using desk = await Desk.open();
  const { api } = desk.office;
  await api['user.add']({ name: 'erin', groups: ['staff'] });
  const tested = policy('192.0.2.0/24', '[tests]\nexpect = ["erin can reach 192.0.2.7"]\n');
  await api['policy.apply']({ text: tested });
  await api['policy.apply']({ text: SECOND });
  await api['user.regroup']({ name: 'erin', remove: ['staff'] });
  await assert.rejects(api['policy.rollback']({ version: 2 }), { code: 'ERR_CONFIG_VALUE' });
  assert.equal(desk.text, SECOND);
});

test('of two who change what they read at once the second is told', LIMIT, async () => {
  await using desk = await Desk.open();
  const [ada, bea] = [await desk.office.as('administrator', 'ada'), await desk.office.as('administrator', 'bea')];
  const tag = (await ada.call('policy.text')).headers.etag ?? '';
  const replies = await Promise.all([
    ada.call('policy.apply', { text: SECOND }, { 'if-match': tag }),
    bea.call('policy.apply', { text: policy('203.0.113.0/24') }, { 'if-match': tag }),
  ]);
  assert.deepEqual(replies.map(({ status }) => status).sort(), [200, 412]);
  assert.equal((await ada.call('policy.history')).body.length, 2);
});

test('what somebody has written into the file meanwhile is not overwritten before it was read', LIMIT, async () => {
  await using desk = await Desk.open();
  const { api } = desk.office;
  const theirs = policy('203.0.113.0/24');
  writeFileSync(desk.file, theirs);
  await assert.rejects(api['policy.apply']({ text: SECOND }), { code: 'ERR_CONFLICT' });
  assert.equal(desk.text, theirs);
  await desk.office.world.server.reload();
  await api['policy.apply']({ text: SECOND });
  assert.equal(desk.text, SECOND);
  assert.deepEqual(
    (await api['policy.history']({})).map(({ by }) => by),
    ['the command line', null, null],
  );
});

test('where the configuration forbids it nobody changes the policy', LIMIT, async () => {
  await using desk = await Desk.open({ editPolicy: false });
  const browser = await desk.office.as('administrator');
  assert.equal((await browser.call('policy.text')).body.isEditable, false);
  assert.equal((await browser.call('policy.apply', { text: SECOND })).status, 403);
  assert.equal((await browser.call('policy.rollback', { version: 1 })).status, 403);
  assert.equal(desk.text, FIRST);
});

test('a gateway without a policy file says what to do', LIMIT, async () => {
  await using office = await Office.open();
  await assert.rejects(office.api['policy.apply']({ text: FIRST }), /policyFile/);
  assert.deepEqual(await office.api['policy.history']({}), []);
});
