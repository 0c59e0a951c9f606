// What is committed to the record is in the file, once, in order, whoever wrote it and whatever happens to the file.

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collectLog } from '../../../test/support/log-lines.ts';
import { openTestStore } from '../../../test/support/store.ts';
import { ManualClock } from '../../base/clock.ts';
import { Audit } from '../../store/audit.ts';
import { AuditFile } from './audit-file.ts';

const folder = await mkdtemp(join(tmpdir(), 'customvpn-audit-'));
after(() => rm(folder, { recursive: true, force: true }));
let worlds = 0;

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  worlds += 1;
  const path = join(folder, `audit-${worlds}.jsonl`);
  const { log, lines } = collectLog();
  const openFile = () => AuditFile.open({ audit, path, clock, log, format: ({ id, user }) => ({ id, user }) });
  const users = async () =>
    (await readFile(path, 'utf8'))
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { user: string }).user);
  const record = (user: string) => audit.append({ event: 'user.added', user });
  return { store, clock, audit, path, lines, openFile, users, record };
}

test('records are written once, in order, in a file of the owner alone; what was recorded before is not', async () => {
  const { store, clock, path, openFile, users, record } = await setUp();
  await record('before');
  const file = await openFile();
  for (const user of ['ada', 'bob', 'eve']) {
    await record(user);
    clock.advance(7000);
    await file.look();
    await file.look();
  }
  assert.deepEqual(await users(), ['ada', 'bob', 'eve']);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await record('last');
  await file.close();
  assert.deepEqual(await users(), ['ada', 'bob', 'eve', 'last']);
  await store.close();
});

test('a gateway that starts again writes what was recorded meanwhile, and nothing twice', async () => {
  const { store, clock, openFile, users, record } = await setUp();
  const first = await openFile();
  await record('ada');
  await record('bob');
  await first.close();
  await record('meanwhile');
  clock.advance(60_000);
  await record('later');
  const second = await openFile();
  await record('after');
  await second.close();
  assert.deepEqual(await users(), ['ada', 'bob', 'meanwhile', 'later', 'after']);
  await store.close();
});

test('more than a batch at once is written whole, and nothing is left out when the clock is set back', async () => {
  const { store, clock, audit, openFile, users, record } = await setUp();
  clock.advance(3_600_000);
  const first = await openFile();
  const many = Array.from({ length: 1100 }, (_, at) => `user ${at}`);
  await store.transaction(async (db) => {
    for (const user of many) await audit.append({ event: 'user.added', user }, db);
  });
  await first.look();
  assert.deepEqual(await users(), many);
  clock.setWall(clock.wallNow() - 3_000_000);
  await record('set back');
  await first.look();
  await first.look();
  await first.close();
  await record('meanwhile');
  const second = await openFile();
  await second.look();
  clock.advance(60_000);
  await record('later');
  await second.close();
  assert.deepEqual(await users(), [...many, 'set back', 'meanwhile', 'later']);
  await store.close();
});

test('one that is committed behind those after it is written, too', async () => {
  const { store, clock, audit, openFile, users, record } = await setUp();
  const file = await openFile();
  await record('first');
  const id = (await audit.list())[0]?.id ?? '';
  clock.advance(10);
  await record('second');
  await file.look();
  // Of another writer, whose transaction began before.
  const [row] = await store.db.selectFrom('audit').selectAll().where('id', '=', id).execute();
  const late = { ...row, id: `${id.slice(0, 20)}ffffffffffff`, user: 'late' };
  await store.db
    .insertInto('audit')
    .values(late as never)
    .execute();
  clock.advance(5000);
  await file.look();
  await file.look();
  assert.deepEqual(await users(), ['first', 'second', 'late']);
  await file.close();
  // Which is not the end of those that are written.
  const again = await openFile();
  await again.close();
  assert.deepEqual(await users(), ['first', 'second', 'late']);
  await store.close();
});

test('a record that is rolled back is not written', async () => {
  const { store, clock, openFile, users, record } = await setUp();
  const file = await openFile();
  const audit = new Audit(store, clock);
  await assert.rejects(
    store.transaction(async (db) => {
      await audit.append({ event: 'user.added', user: 'nobody' }, db);
      throw new Error('undo');
    }),
  );
  await record('ada');
  await file.close();
  assert.deepEqual(await users(), ['ada']);
  await store.close();
});

test('a file that is moved away is made anew; one that cannot be written is said once, and made up for', async () => {
  const { store, path, lines, openFile, users, record } = await setUp();
  const file = await openFile();
  await record('ada');
  await file.look();
  await rename(path, `${path}.1`);
  await record('bob');
  await file.look();
  assert.deepEqual(await users(), ['bob']);
  await rm(path);
  await mkdir(path);
  await record('eve');
  await file.look();
  await file.look();
  assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
  await rm(path, { recursive: true });
  await file.close();
  assert.deepEqual(await users(), ['eve']);
  await store.close();
});

test('a last line that was cut short stays alone, and what is recorded from now on follows', async () => {
  const { store, path, openFile, record } = await setUp();
  await writeFile(path, '{"user":"older"}\n{"id":"cut sho');
  await record('before');
  const file = await openFile();
  await record('ada');
  await file.close();
  const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
  assert.equal(lines.length, 3);
  assert.match(lines[2] ?? '', /"user":"ada"/);
  await store.close();
});
