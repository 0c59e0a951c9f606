// What is recorded is told: in order, signed, again after a failure, and nobody waits for a target that does not take it.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collectLog } from '../../../test/support/log-lines.ts';
import { Receiver } from '../../../test/support/receiver.ts';
import { openTestStore } from '../../../test/support/store.ts';
import { until } from '../../../test/support/world.ts';
import { ManualClock } from '../../base/clock.ts';
import { Audit, type AuditEvent } from '../../store/audit.ts';
import { WebhookRecord } from '../../store/webhooks.ts';
import { gatewayConfigSchema } from '../config.ts';
import { readWebhookTargets, Webhooks } from './webhooks.ts';

const SECRET = 'correct horse battery staple';
const folder = await mkdtemp(join(tmpdir(), 'customvpn-webhooks-'));
const secretFile = join(folder, 'secret');
await writeFile(secretFile, SECRET, { mode: 0o600 });
after(() => rm(folder, { recursive: true, force: true }));

interface HookOptions {
  url: string;
  events?: string[];
  tries?: number;
  timeoutSeconds?: number;
  keepHours?: number;
}

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const record = new WebhookRecord(store);
  const { log, lines } = collectLog();
  const open = async (hooks: Record<string, HookOptions>, of = audit) => {
    const webhooks = Object.fromEntries(
      Object.entries(hooks).map(([name, hook]) => [name, { secretFile, insecure: true, ...hook }]),
    );
    const targets = await readWebhookTargets(gatewayConfigSchema.parse({ webhooks }));
    const opened = new Webhooks({ targets, audit: of, record, clock, log, settleMs: 0, lookMs: 1, delaysMs: [1] });
    await opened.start();
    return opened;
  };
  const happens = async (user: string, event: AuditEvent = 'login.accepted') => {
    await audit.append({ event, user });
    clock.advance(1);
  };
  return { store, clock, audit, record, lines, open, happens };
}

const usersOf = (receiver: Receiver) => receiver.bodies.map(({ data }) => (data as { user: string }).user);

test('events are told in order, signed, from the first that is recorded after the start; others are not', async () => {
  const { store, open, happens, clock } = await setUp();
  await using receiver = await Receiver.open();
  await happens('before');
  const hooks = await open({ siem: { url: `${receiver.url}/in?key=1`, events: ['login', 'user.added'] } });
  await happens('ada');
  await happens('bob', 'session.opened');
  await happens('eve', 'login.refused');
  await happens('joe', 'user.added');
  await happens('joe', 'user.disabled');
  await until(() => receiver.received.length === 3, 'three events');
  await until(async () => (await hooks.list())[0]?.waiting === 0, 'nothing to wait');
  assert.deepEqual(usersOf(receiver), ['ada', 'eve', 'joe']);
  const [{ path, headers, body } = { path: '', headers: {}, body: '' }] = receiver.received;
  assert.equal(path, '/in?key=1');
  const { type, timestamp, data } = JSON.parse(body) as { type: string; timestamp: string; data: { id: string } };
  assert.equal(type, 'login.accepted');
  assert.ok(Date.parse(timestamp) <= clock.wallNow());
  assert.equal(headers['webhook-id'], data.id);
  const signed = `${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`;
  const expected = createHmac('sha256', SECRET).update(signed).digest('base64');
  assert.equal(headers['webhook-signature'], `v1,${expected}`);
  const [state] = await hooks.list();
  assert.deepEqual(
    { state: state?.state, waiting: state?.waiting, dead: state?.dead, delivered: state?.delivered },
    { state: 'idle', waiting: 0, dead: 0, delivered: 3 },
  );
  await hooks.stop();
  await store.close();
});

test('a clock that is set back, also while nothing runs, hides nothing from a webhook', async () => {
  const { store, clock, open, happens } = await setUp();
  await using receiver = await Receiver.open();
  const hooks = await open({ siem: { url: receiver.url } });
  clock.advance(3_600_000);
  await happens('ada');
  await until(() => receiver.received.length === 1, 'the first');
  clock.setWall(clock.wallNow() - 3_000_000);
  await happens('bob');
  await until(() => receiver.received.length === 2, 'the one behind it');
  await until(async () => (await hooks.list())[0]?.delivered === 2, 'both to count');
  await hooks.stop();
  clock.setWall(clock.wallNow() - 1_000_000);
  const again = await Audit.open(store, clock);
  await again.append({ event: 'login.accepted', user: 'eve' });
  clock.advance(1);
  const next = await open({ siem: { url: receiver.url } }, again);
  await until(() => receiver.received.length === 3, 'the one of the next start');
  assert.deepEqual(usersOf(receiver), ['ada', 'bob', 'eve']);
  await next.stop();
  await store.close();
});

test('what is refused comes again until it is taken, with the same id, and the next one after it', async () => {
  const { store, open, happens, lines } = await setUp();
  await using receiver = await Receiver.open();
  receiver.answer = () => [503, 302, 500, 204][receiver.received.length - 1] ?? 204;
  const hooks = await open({ siem: { url: receiver.url } });
  await happens('ada');
  await happens('bob');
  await until(() => receiver.received.length === 5, 'four tries and the next');
  assert.deepEqual(usersOf(receiver), ['ada', 'ada', 'ada', 'ada', 'bob']);
  assert.equal(new Set(receiver.received.slice(0, 4).map(({ headers }) => headers['webhook-id'])).size, 1);
  await until(async () => (await hooks.list())[0]?.delivered === 2, 'both to count');
  const said = lines.filter(({ webhook }) => webhook === 'siem').map(({ msg }) => msg);
  assert.deepEqual(said, ['the webhook does not take events; they wait', 'the webhook answers again']);
  assert.ok(!JSON.stringify(lines).includes(SECRET));
  await hooks.stop();
  await store.close();
});

test('what is refused too often is put aside and shown, and told again when somebody asks', async () => {
  const { store, open, happens } = await setUp();
  await using receiver = await Receiver.open();
  let isBroken = true;
  receiver.answer = ({ body }) => (isBroken && body.includes('ada') ? 500 : 204);
  const hooks = await open({ siem: { url: receiver.url, tries: 3 } });
  await happens('ada');
  await happens('bob');
  await until(() => receiver.received.length === 4, 'three tries and the next');
  const [dead, ...more] = await hooks.dead(undefined, 10);
  assert.deepEqual(more, []);
  assert.equal(dead?.record?.user, 'ada');
  assert.equal(dead?.letter.tries, 3);
  assert.equal(dead?.letter.why, 'the server answered 500');
  assert.equal(await hooks.retry('siem', undefined), 1);
  await until(async () => (await hooks.dead('siem', 10))[0]?.letter.tries === 4, 'another try');
  isBroken = false;
  assert.equal(await hooks.retry(undefined, dead?.letter.record.slice(0, 30)), 1);
  await until(async () => (await hooks.dead(undefined, 10)).length === 0, 'nothing to be left');
  await assert.rejects(hooks.retry('siem', 'abc'), { code: 'ERR_NOT_FOUND' });
  await assert.rejects(hooks.retry('nobody', undefined), { code: 'ERR_NOT_FOUND' });
  await hooks.stop();
  await store.close();
});

test('a target that hangs delays neither the record nor another target, and is given up in its time', async () => {
  const { store, open, happens, record } = await setUp();
  await using hanging = await Receiver.open();
  await using receiver = await Receiver.open();
  hanging.answer = () => 'hang';
  const hooks = await open({
    hangs: { url: hanging.url, timeoutSeconds: 60 },
    short: { url: hanging.url, timeoutSeconds: 1, tries: 1, events: ['user'] },
    works: { url: receiver.url },
  });
  for (let i = 0; i < 50; i++) await happens(`user${i}`);
  await until(() => receiver.received.length === 50, 'fifty events');
  assert.equal((await hooks.list()).find(({ name }) => name === 'hangs')?.waiting, 50);
  await happens('ada', 'user.added');
  await until(async () => (await hooks.dead('short', 1)).length === 1, 'one to be put aside');
  assert.match((await hooks.dead('short', 1))[0]?.letter.why ?? '', /no answer within 1 s/);
  // A stop waits for nobody.
  await hooks.stop();
  assert.equal((await hooks.dead('hangs', 1)).length, 0);
  assert.notEqual(await record.progress('hangs'), undefined);
  await store.close();
});

test('after a start it goes on where it was, and puts aside what has become too old', async () => {
  const { store, clock, open, happens } = await setUp();
  await using receiver = await Receiver.open();
  const first = await open({ siem: { url: receiver.url, keepHours: 1 } });
  await happens('ada');
  await until(async () => (await first.list())[0]?.delivered === 1, 'the first');
  await first.stop();
  await happens('old');
  clock.advance(2 * 3_600_000);
  await happens('meanwhile');
  const second = await open({ siem: { url: receiver.url, keepHours: 1 } });
  await until(() => receiver.received.length === 2, 'the one that came meanwhile');
  assert.deepEqual(usersOf(receiver), ['ada', 'meanwhile']);
  await until(async () => (await second.dead('siem', 10)).length > 0, 'the old one to be put aside');
  assert.deepEqual(
    (await second.dead('siem', 10)).map(({ letter, record }) => [record?.user, letter.why]),
    [['old', 'older than 1 h']],
  );
  await second.stop();
  await store.close();
});

test('of dead letters the newest thousand are kept', async () => {
  const { store, record } = await setUp();
  const id = (n: number) => String(n).padStart(32, '0');
  const letters = Array.from({ length: 1500 }, (_, n) => ({ webhook: 'a', record: id(n), at: n, tries: 1, why: 'x' }));
  await record.bury([...letters, { webhook: 'b', record: id(0), at: 0, tries: 1, why: 'x' }]);
  assert.deepEqual(
    await record.countDead(),
    new Map([
      ['a', 1000],
      ['b', 1],
    ]),
  );
  assert.equal((await record.dead('a', 1))[0]?.record, id(1499));
  assert.equal((await record.dead('a', 1000)).at(-1)?.record, id(500));
  await store.close();
});

test('a test says what the target answers, and one that answers for ever or not at all is cut off', async () => {
  const { store, open } = await setUp();
  await using receiver = await Receiver.open();
  const hooks = await open({
    siem: { url: receiver.url, timeoutSeconds: 60 },
    short: { url: receiver.url, timeoutSeconds: 1 },
  });
  assert.partialDeepStrictEqual(await hooks.test('siem'), { status: 204, error: undefined });
  assert.equal(receiver.bodies[0]?.type, 'webhook.test');
  receiver.answer = () => ({ status: 200, body: 'x'.repeat(10_000_000) });
  assert.partialDeepStrictEqual(await hooks.test('siem'), { status: 200, error: undefined });
  receiver.answer = () => ({ status: 307, headers: { location: '/elsewhere' } });
  assert.partialDeepStrictEqual(await hooks.test('siem'), { status: 307, error: 'the server answered 307' });
  assert.ok(!receiver.received.some(({ path }) => path === '/elsewhere'));
  receiver.answer = () => 'hang';
  assert.match((await hooks.test('short')).error ?? '', /no answer within 1 s/);
  await assert.rejects(hooks.test('nobody'), { code: 'ERR_NOT_FOUND' });
  await hooks.stop();
  await store.close();
});

test('a webhook is https, and has its secret in a file of the owner alone', async () => {
  const parse = (hook: object) => gatewayConfigSchema.safeParse({ webhooks: { siem: { secretFile, ...hook } } });
  assert.equal(parse({ url: 'https://siem.example.org/x' }).success, true);
  assert.equal(parse({ url: 'http://siem.example.org/x' }).success, false);
  assert.equal(parse({ url: 'http://siem.example.org/x', insecure: true }).success, true);
  assert.equal(parse({ url: 'https://user:password@siem.example.org/x' }).success, false);
  assert.equal(parse({ url: 'file:///etc/passwd', insecure: true }).success, false);
  const open = join(folder, 'open');
  await writeFile(open, SECRET, { mode: 0o644 });
  const config = gatewayConfigSchema.parse({ webhooks: { a: { url: 'https://a.example', secretFile: open } } });
  await assert.rejects(readWebhookTargets(config), { code: 'ERR_CONFIG_FILE' });
});
