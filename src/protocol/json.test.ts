import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { code, utf8 } from '../../test/support/protocol.ts';
import { isVpnError } from '../base/errors.ts';
import { MAX_DEPTH, parseJson } from './json.ts';

function plain(text: string): unknown {
  return JSON.parse(JSON.stringify(parseJson(utf8(text))));
}

function refused(...texts: string[]): void {
  for (const text of texts) assert.throws(() => parseJson(utf8(text)), code('ERR_MESSAGE_SYNTAX'), text);
}

test('REQ-JSON-001: a payload is one JSON object', () => {
  const text = '{"a":1,"b":[true,false,null,"x\\u00e9\\"\\\\\\/"],"c":{"d":-7},"e":[],"f":{}}';
  assert.deepEqual(plain(text), JSON.parse(text));
  assert.deepEqual(plain(' \t\r\n{ "a" : [ 1 , 2 ] } \n'), { a: [1, 2] });
  refused(
    '',
    ' ',
    '[]',
    '1',
    '"x"',
    'null',
    '{',
    '{"a"',
    '{"a":',
    '{"a":1',
    '{"a":1,',
    '{"a":1,}',
    '{"a":[1,]}',
    '{,}',
  );
  refused(
    '{"a" 1}',
    "{'a':1}",
    '{a:1}',
    '{"a":1}x',
    '{"a":1}{}',
    '{"a":tru}',
    '{"a":undefined}',
    '{"a":"x}',
    '{"a":[1',
  );
});

test('REQ-JSON-001: a text cut off at any byte is refused', () => {
  const text = '{"a":{"b":["x\\u0041",12,true,null]}}';
  for (let length = 0; length < text.length; length++) refused(text.slice(0, length));
});

test('REQ-JSON-002: it is valid UTF-8 without a byte order mark', () => {
  for (const bytes of ['7b2261223a22ff227d', '7b2261223a22c3227d', '7b2261223a22eda080227d', '7b2261223a22c0af227d']) {
    assert.throws(() => parseJson(Uint8Array.fromHex(bytes)), code('ERR_MESSAGE_SYNTAX'));
  }
  refused('\ufeff{}');
});

test('REQ-JSON-003: no name comes twice, and none is __proto__', () => {
  refused('{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '{"x":{"b":1,"b":1}}', '{"__proto__":{}}', '{"\\u005f_proto__":1}');
  const value = parseJson(utf8('{"constructor":1,"toString":2}'));
  assert.equal(Object.getPrototypeOf(value), null);
  assert.equal(value.hasOwnProperty, undefined);
});

test('REQ-JSON-004: text is in normal form C', () => {
  assert.deepEqual(plain('{"a":"\u00e9"}'), { a: '\u00e9' });
  refused('{"a":"e\u0301"}', '{"a":"e\\u0301"}', '{"e\u0301":1}');
});

test('REQ-JSON-005: no control, bidirectional-control or lone surrogate character, however written', () => {
  const forbidden = [0x00, 0x0a, 0x1f, 0x7f, 0x85, 0x9f, 0x61c, 0x200e, 0x200f, 0x2028, 0x202a, 0x202e, 0x2066, 0x2069];
  for (const point of [...forbidden, 0xfeff]) {
    refused(`{"a":"x${String.fromCharCode(point)}"}`, `{"a":"\\u${point.toString(16).padStart(4, '0')}"}`);
    refused(`{"\\u${point.toString(16).padStart(4, '0')}":1}`);
  }
  refused(
    '{"a":"\\ud800"}',
    '{"a":"\\udc00\\ud800"}',
    '{"a":"\\n"}',
    '{"a":"\\x41"}',
    '{"a":"\\u00g0"}',
    '{"a":"\\u+041"}',
  );
  assert.deepEqual(plain('{"a":"\\ud83d\\ude00"}'), { a: '😀' });
});

test('REQ-JSON-006: numbers are integers within 2^53', () => {
  assert.deepEqual(plain('{"a":[0,-1,9007199254740991,-9007199254740991]}'), { a: [0, -1, 2 ** 53 - 1, 1 - 2 ** 53] });
  refused(
    '{"a":9007199254740992}',
    '{"a":1.5}',
    '{"a":1e3}',
    '{"a":01}',
    '{"a":-0}',
    '{"a":+1}',
    '{"a":.5}',
    '{"a":-}',
  );
  refused('{"a":1.}', '{"a":0x10}', '{"a":NaN}', '{"a":Infinity}');
});

test('REQ-JSON-007: at most 8 levels', () => {
  const nested = (levels: number) => `{"a":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)}}`;
  assert.equal(MAX_DEPTH, 8);
  parseJson(utf8(nested(8)));
  refused(nested(9), `${'{"a":'.repeat(9)}1${'}'.repeat(9)}`, `{"a":${'['.repeat(100_000)}`);
});

test('REQ-JSON-008: a name that starts with "!" must be understood; none is', () => {
  for (const text of ['{"!x":1}', '{"a":{"!":1}}', '{"a":[{"!b":null}]}', '{"\\u0021c":1}']) {
    assert.throws(() => parseJson(utf8(text)), code('ERR_MESSAGE_FIELD'));
  }
  assert.deepEqual(plain('{"x!":1}'), { 'x!': 1 });
});

test('what JSON.stringify writes of safe values is read as JSON.parse reads it', () => {
  const text = fc.string({ unit: 'grapheme', maxLength: 8 }).map((value) =>
    value
      .normalize('NFC')
      .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}!]/gu, '')
      .normalize('NFC'),
  );
  const value = fc.letrec((tie) => ({
    leaf: fc.oneof(text, fc.maxSafeInteger(), fc.boolean(), fc.constant(null)),
    node: fc.oneof(
      { depthSize: 'small', maxDepth: 4 },
      tie('leaf'),
      fc.array(tie('node'), { maxLength: 4 }),
      fc.dictionary(
        text.filter((name) => name !== '__proto__'),
        tie('node'),
        { maxKeys: 4, noNullPrototype: true },
      ),
    ),
  })).node;
  fc.assert(
    fc.property(value, (inner) => {
      const written = JSON.stringify({ inner });
      // A minus zero and a normal form broken by joining are not written by any encoder here.
      fc.pre(!written.includes('-0') && written.normalize('NFC') === written);
      assert.deepEqual(plain(written), JSON.parse(written));
    }),
  );
});

test('no bytes make the reader throw anything but a VpnError', () => {
  const input = fc.oneof(
    fc.uint8Array({ maxLength: 80 }),
    fc.string({ maxLength: 80 }).map(utf8),
    fc.json().map(utf8),
    fc
      .array(fc.constantFrom('{', '}', '[', ']', '"', ':', ',', 'a', '1', '\\', 'u', '!'), { maxLength: 40 })
      .map((parts) => utf8(parts.join(''))),
  );
  fc.assert(
    fc.property(input, (bytes) => {
      try {
        parseJson(bytes);
      } catch (error) {
        assert.ok(isVpnError(error, 'ERR_MESSAGE_SYNTAX', 'ERR_MESSAGE_FIELD'));
      }
    }),
    { numRuns: 400 },
  );
});
