// What an operator reads of the record, in a terminal.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { lineOf } from './audit.ts';

test('what strangers have written moves no cursor, hides no line and turns nothing around', () => {
  const line = lineOf({
    id: '0',
    at: '2026-11-26T20:00:00.000Z',
    event: 'login.refused',
    user: 'eve\u001b[2J\u202eadmin',
    device: null,
    source: '192.0.2.6:6',
    reason: 'no such\nuser',
    detail: { name: '\u009b2Jx' },
  });
  assert.ok(!/[\n\u009b\u202e]/.test(line), JSON.stringify(line));
  assert.ok(!line.includes('\u001b[2J'), JSON.stringify(line));
  assert.match(line, /eve\ufffd\[2J\ufffdadmin/);
  assert.match(line, /no such\ufffduser/);
});
