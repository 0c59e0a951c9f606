import assert from 'node:assert/strict';
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { Journal } from './journal.ts';

const skip = process.platform === 'linux' ? false : 'this machine does not run Linux';
const folder = mkdtempSync(join(tmpdir(), 'cvpn-journal-'));
after(() => rmSync(folder, { recursive: true }));

let count = 0;
const newPath = (): string => {
  count += 1;
  return join(folder, `run${count}`, 'host.journal');
};
const values = (journal: Journal): unknown[] => journal.entries.map(({ value }) => value);

test('entries survive their writer, in order, without those that were undone', { skip }, async () => {
  const path = newPath();
  const first = await Journal.open(path);
  await first.append(['a', 'b']);
  await first.append([{ c: 3 }]);
  await first.markUndone([2]);
  await first.close();
  assert.equal(statSync(path).mode & 0o777, 0o600);
  const second = await Journal.open(path);
  assert.deepEqual(values(second), ['a', { c: 3 }]);
  await second.append(['d']);
  await second.close();
  const third = await Journal.open(path);
  assert.deepEqual(values(third), ['a', { c: 3 }, 'd']);
  await third.markUndone(third.entries.map(({ number }) => number));
  await third.close();
  assert.equal(existsSync(path), false);
});

test('an entry is on disk when the promise of writing it resolves', { skip }, async () => {
  const path = newPath();
  const journal = await Journal.open(path);
  await journal.append(['before the deed']);
  assert.match(readFileSync(path, 'utf8'), /before the deed"}\n$/);
  await journal.close();
});

test('a journal torn at any byte keeps every whole entry, and takes more', { skip }, async () => {
  const path = newPath();
  const journal = await Journal.open(path);
  await journal.append(['first', 'second']);
  await journal.close();
  const whole = readFileSync(path, 'utf8');
  const [header = '', line = ''] = whole.split('\n');
  for (let length = 0; length <= whole.length; length += 1) {
    writeFileSync(path, whole);
    truncateSync(path, length);
    const torn = await Journal.open(path);
    const kept = values(torn);
    // The line feed is not part of an entry: without it the entry is whole.
    if (length >= header.length + 1 + line.length) assert.equal(kept[0], 'first', `torn at ${length}`);
    else assert.deepEqual(kept, [], `torn at ${length}`);
    await torn.append(['later']);
    await torn.close();
    const again = await Journal.open(path);
    assert.equal(values(again).at(-1), 'later', `torn at ${length}`);
    await again.close();
    rmSync(path);
  }
});

test('only one may hold a journal, and a closed one is free', { skip }, async () => {
  const path = newPath();
  const journal = await Journal.open(path);
  await assert.rejects(Journal.open(path), (error) => isVpnError(error, 'ERR_ALREADY_RUNNING'));
  await journal.close();
  const next = await Journal.open(path);
  await next.close();
});

test('a journal without a header of ours is foreign: its entries are not ours to undo', { skip }, async () => {
  const path = newPath();
  await (await Journal.open(path)).close();
  writeFileSync(path, '{"number":1,"undo":"x"}\n', { mode: 0o600 });
  const journal = await Journal.open(path);
  assert.deepEqual(values(journal), []);
  assert.equal(journal.foreignEntries, 1);
  await journal.close();
});

test('a link in the place of the file is not followed', { skip }, async () => {
  const path = newPath();
  await (await Journal.open(path)).close();
  const target = `${path}.target`;
  appendFileSync(target, 'untouched');
  symlinkSync(target, path);
  await assert.rejects(
    Journal.open(path),
    (error) => isVpnError(error, 'ERR_SYSCALL') && error.details.errno === 'ELOOP',
  );
  assert.equal(readFileSync(target, 'utf8'), 'untouched');
});

test("another user's file is not believed", {
  skip: skip || (process.getuid?.() === 0 ? false : 'needs root'),
}, async () => {
  const { chownSync } = await import('node:fs');
  const path = newPath();
  await (await Journal.open(path)).close();
  writeFileSync(path, '{}\n');
  chownSync(path, 65534, 65534);
  await assert.rejects(Journal.open(path), (error) => isVpnError(error, 'ERR_HOST_APPLY'));
});
