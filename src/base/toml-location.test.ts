import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TomlLocations } from './toml-location.ts';

const TEXT = `version = 1
text = """
rules = 3
"""

[networks]
office = ["10.0.0.0/8",
  "not an address"]
"quoted key".inner = 2

[[rules]]
action = "allow"
when = { days = ["mon", "tue"], from = "08:00" }

[[rules]]
action = "deny"
`;

test('every value is found where it stands: in tables, arrays of tables, inline tables, arrays over several lines', () => {
  const locations = new TomlLocations(TEXT);
  for (const [path, line, column] of [
    [['version'], 1, 1],
    [['text'], 2, 1],
    [['networks'], 6, 1],
    [['networks', 'office'], 7, 1],
    [['networks', 'office', 1], 8, 3],
    [['networks', 'quoted key', 'inner'], 9, 14],
    [['rules', 0], 11, 1],
    [['rules', 0, 'when', 'days', 1], 13, 25],
    [['rules', 1, 'action'], 16, 1],
  ] as const) {
    assert.deepEqual(locations.of(path), { line, column }, JSON.stringify(path));
  }
});

test('what is missing is where it should have been', () => {
  const locations = new TomlLocations(TEXT);
  assert.deepEqual(locations.of(['rules', 1, 'to']), { line: 15, column: 1 });
  assert.deepEqual(locations.of(['settings', 0]), { line: 1, column: 1 });
  assert.deepEqual(locations.of([]), { line: 1, column: 1 });
});

test('names that mean something to an object are names like others', () => {
  const locations = new TomlLocations('[a]\n__proto__.x = 2\nconstructor = 1\n');
  assert.equal(locations.of(['a', '__proto__', 'x']).line, 2);
  assert.equal(locations.of(['a', 'constructor']).line, 3);
  assert.equal(Reflect.get({}, 'x'), undefined);
});

test('of a text that is no TOML everything is in its first line', () => {
  assert.deepEqual(new TomlLocations('a = [1,\nb').of(['a']), { line: 1, column: 1 });
});
