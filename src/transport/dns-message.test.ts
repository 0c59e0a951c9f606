// Questions and answers in bytes, as RFC 1035 has them, and what a hostile server may send.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type Answer, encodeQuery, isHostName, parseAnswer, type Question, RecordType } from './dns-message.ts';

const QUESTION: Question = { id: 0xabcd, name: 'vpn.Example.org', type: RecordType.a };
const NAME = [3, 0x76, 0x70, 0x6e, 7, 0x65, 0x78, 0x61, 0x6d, 0x70, 0x6c, 0x65, 3, 0x6f, 0x72, 0x67, 0];
const ASKED = [...NAME, 0, 1, 0, 1];
/** A pointer to the question's name. */
const SAME = [0xc0, 12];

interface Shape {
  id?: number[];
  flags?: number[];
  asked?: number[];
  records?: number[][];
}

function message({ id = [0xab, 0xcd], flags = [0x81, 0x80], asked = ASKED, records = [] }: Shape): Uint8Array {
  return Uint8Array.from([...id, ...flags, 0, 1, 0, records.length, 0, 0, 0, 0, ...asked, ...records.flat()]);
}

function record(name: number[], type: number, ttl: number, data: number[]): number[] {
  return [...name, 0, type, 0, 1, 0, 0, 0, ttl, 0, data.length, ...data];
}

const parse = (shape: Shape, question = QUESTION): Answer | undefined => parseAnswer(message(shape), question);

test('a query is a header, the name in labels, type and class', () => {
  const asked = ASKED.map((byte, at) => (at === 5 ? 0x45 : byte));
  assert.deepEqual([...encodeQuery(QUESTION)], [0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...asked]);
  assert.deepEqual(encodeQuery({ ...QUESTION, name: 'vpn.Example.org.' }), encodeQuery(QUESTION));
});

test('addresses come with their least time to live, through aliases and whatever else is there', () => {
  const alias = [1, 0x61, 0xc0, 16];
  assert.deepEqual(
    parse({
      records: [
        record(SAME, 5, 60, alias),
        record(alias, RecordType.a, 90, [192, 0, 2, 1]),
        record(alias, RecordType.a, 30, [192, 0, 2, 2]),
        record(alias, 16, 1, [1, 0x78]),
        record([1, 0x62, 0xc0, 16], RecordType.a, 1, [192, 0, 2, 3]),
      ],
    }),
    { kind: 'addresses', addresses: ['192.0.2.1', '192.0.2.2'], ttlSeconds: 30 },
  );
  const six = { ...QUESTION, type: RecordType.aaaa };
  const address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
  assert.deepEqual(parse({ asked: [...NAME, 0, 28, 0, 1], records: [record(SAME, 28, 5, address)] }, six), {
    kind: 'addresses',
    addresses: ['2001:db8::7'],
    ttlSeconds: 5,
  });
});

test('what is no address is told apart', () => {
  assert.deepEqual(parse({}), { kind: 'none' });
  assert.deepEqual(parse({ flags: [0x81, 0x83] }), { kind: 'none' });
  assert.deepEqual(parse({ flags: [0x81, 0x82] }), { kind: 'failed' });
  assert.deepEqual(parse({ flags: [0x81, 0x85] }), { kind: 'failed' });
  assert.deepEqual(parse({ flags: [0x83, 0x80] }), { kind: 'truncated' });
  const loop = [record(SAME, 5, 60, SAME)];
  assert.deepEqual(parse({ records: loop }), { kind: 'failed' });
});

test('an answer to another question is none', () => {
  const good = record(SAME, RecordType.a, 60, [192, 0, 2, 1]);
  for (const shape of [
    { id: [0xab, 0xce] },
    { flags: [0x01, 0x80] },
    { asked: [...NAME, 0, 28, 0, 1] },
    { asked: [3, 0x77, ...NAME.slice(2), 0, 1, 0, 1] },
  ]) {
    assert.equal(parse({ records: [good], ...shape }), undefined);
  }
  assert.equal(parse({ records: [good] })?.kind, 'addresses');
});

test('a message that is cut anywhere, or points forwards or at itself, is none', () => {
  const whole = message({ records: [record(SAME, RecordType.a, 60, [192, 0, 2, 1])] });
  for (let end = 0; end < whole.length; end++) assert.equal(parseAnswer(whole.subarray(0, end), QUESTION), undefined);
  assert.equal(parse({ records: [record([0xc0, 60], RecordType.a, 60, [192, 0, 2, 1])] }), undefined);
  assert.equal(parse({ asked: [0xc0, 12, 0, 1, 0, 1] }), undefined);
});

test('random bytes are never an error', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600 }), fc.boolean(), (bytes, isLikely) => {
      if (isLikely) bytes.set(message({}).subarray(0, Math.min(bytes.length, 33)));
      parseAnswer(bytes, QUESTION);
    }),
  );
});

test('names that can be asked for', () => {
  for (const name of ['vpn.example.org', 'vpn', 'a_b.example', 'xn--bcher-kva.example.'])
    assert.ok(isHostName(name), name);
  for (const name of ['', '.', 'a..b', 'a b', 'ä.example', `${'a'.repeat(64)}.org`, 'a.'.repeat(130)]) {
    assert.equal(isHostName(name), false, name);
  }
});
