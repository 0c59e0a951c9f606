// docs/protocol.md and the tests are held together: every requirement is named by the title of a test, and no test names
// a requirement that is not there.
import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { test } from 'node:test';

/**
 * Requirements that the tests of other rooms have to name and do not name yet. Who names one removes it here: a test
 * below fails as long as a named one is listed.
 */
const AWAITED: Readonly<Record<string, readonly string[]>> = {};

const ROOT = new URL('../../', import.meta.url);
const ID = /REQ-[A-Z]+-\d{3}/g;
const TITLE =
  /\b(?:test|it|describe|suite)(?:\.\w+)?\(\s*(?:'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`)/g;

/** Requirement → a test file that names it in a title. */
async function named(): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const path of glob(['src/**/*.test.ts', 'test/**/*.test.ts'], { cwd: ROOT })) {
    const text = await readFile(new URL(path, ROOT), 'utf8');
    for (const [, single, double, template] of text.matchAll(TITLE)) {
      for (const [id] of (single ?? double ?? template ?? '').matchAll(ID)) found.set(id, path);
    }
  }
  return found;
}

const specification = await readFile(new URL('docs/protocol.md', ROOT), 'utf8');
const required = Array.from(specification.matchAll(/^- \*\*(REQ-[A-Z]+-\d{3})\*\*/gm), ([, id = '']) => id);
const tested = await named();

test('every requirement is stated once, and numbers have no gaps', () => {
  assert.ok(required.length > 100);
  assert.deepEqual(required, [...new Set(required)], 'a requirement is stated twice');
  const counts = new Map<string, number>();
  for (const id of required) counts.set(id.slice(0, -4), (counts.get(id.slice(0, -4)) ?? 0) + 1);
  for (const [area, count] of counts) {
    const last = `${area}-${String(count).padStart(3, '0')}`;
    assert.ok(required.includes(last), `${area}: ${count} requirements, but no ${last}`);
  }
});

test('every requirement is named by the title of a test', () => {
  const awaited = new Set(Object.values(AWAITED).flat());
  const missing = required.filter((id) => !tested.has(id) && !awaited.has(id));
  assert.deepEqual(missing, [], 'docs/protocol.md has requirements that no test under src/ or test/ names');
});

test('every test names requirements that exist, in titles and in the text around them', () => {
  const unknown = Array.from(tested, ([id, path]) => `${id} in ${path}`).filter(
    (line) => !required.includes(line.slice(0, line.indexOf(' '))),
  );
  assert.deepEqual(unknown, []);
  for (const [mention] of specification.matchAll(ID)) assert.ok(required.includes(mention), mention);
});

test('requirements that are still awaited from other rooms', (t) => {
  for (const [room, ids] of Object.entries(AWAITED)) {
    assert.deepEqual(
      ids.filter((id) => !required.includes(id)),
      [],
      `${room}: not in docs/protocol.md`,
    );
    assert.deepEqual(
      ids.filter((id) => tested.has(id)),
      [],
      `${room}: named by a test now; remove from AWAITED`,
    );
    if (ids.length > 0) t.diagnostic(`${room} has yet to name ${ids.join(', ')}`);
  }
});
