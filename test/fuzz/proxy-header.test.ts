/**
 * Random bytes, and PROXY headers with random changes: the parser throws nothing but ERR_PROXY_HEADER, never asks for more
 * than its bound, names nothing but addresses, and answers alike however the bytes are cut.
 */

import assert from 'node:assert/strict';
import { isIP } from 'node:net';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../../src/base/errors.ts';
import { MAX_BINARY_BYTES, type ProxyHeader, parseProxyHeader } from '../../src/transport/proxy-header.ts';
import { binaryHeader } from '../support/proxy-header.ts';

const RUNS = Number(process.env.FUZZ_RUNS ?? 3_000);

const textHeader = fc
  .oneof(
    fc.tuple(fc.constant('TCP4'), fc.ipV4(), fc.ipV4(), fc.nat(70_000), fc.nat(70_000)),
    fc.tuple(fc.constant('TCP6'), fc.ipV6(), fc.ipV6(), fc.nat(70_000), fc.nat(70_000)),
    fc.tuple(fc.constant('UNKNOWN'), fc.string({ maxLength: 100 })),
  )
  .map((parts) => Buffer.from(`PROXY ${parts.join(' ')}\r\n`, 'latin1'));
const binary = fc
  .tuple(
    fc.constantFrom(0x20, 0x21, 0x22, 0x11),
    fc.constantFrom(0x00, 0x11, 0x21, 0x31, 0x12, 0xff),
    fc.uint8Array({ maxLength: 400 }),
  )
  .map((parts) => Buffer.from(binaryHeader(...parts)));
const input = fc
  .tuple(
    fc.oneof(
      textHeader,
      binary,
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
    ),
    fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }),
    fc.uint8Array({ maxLength: 3_000 }),
  )
  .map(([header, changes, rest]) => {
    const bytes = Buffer.concat([header, rest]);
    for (const [at, value] of changes) if (header.length > 0) bytes[at % header.length] = value;
    return bytes;
  });

type Outcome = ProxyHeader | 'more' | 'refused';

function outcomeOf(bytes: Uint8Array): Outcome {
  try {
    return parseProxyHeader(bytes) ?? 'more';
  } catch (error) {
    assert.ok(isVpnError(error) && error.code === 'ERR_PROXY_HEADER', String(error));
    return 'refused';
  }
}

test('whatever a proxy sends, its header is read, refused or waited for within the bound', () => {
  fc.assert(
    fc.property(input, fc.nat(), (bytes, cut) => {
      const outcome = outcomeOf(bytes);
      if (outcome === 'more') assert.ok(bytes.length < MAX_BINARY_BYTES);
      if (typeof outcome === 'object') {
        assert.ok(outcome.length > 0 && outcome.length <= Math.min(bytes.length, MAX_BINARY_BYTES));
        if (outcome.client !== undefined) {
          assert.notEqual(isIP(outcome.client.address), 0);
          assert.ok(outcome.client.port >= 0 && outcome.client.port <= 65_535);
        }
        assert.deepEqual(outcomeOf(bytes.subarray(0, outcome.length)), outcome, 'nothing behind it counts');
        assert.equal(outcomeOf(bytes.subarray(0, cut % outcome.length)), 'more', 'it is not read before its end');
      }
      // A refusal stands whatever follows; what was waited for may become anything.
      const earlier = outcomeOf(bytes.subarray(0, cut % (bytes.length + 1)));
      if (earlier !== 'more') assert.deepEqual(outcome, earlier);
    }),
    { numRuns: RUNS },
  );
});
