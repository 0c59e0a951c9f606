import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../base/errors.ts';
import {
  encodeDatagram,
  encodeReply,
  parseDatagram,
  parseGreeting,
  parseRequest,
  replyOf,
  SocksReply,
} from './socks5.ts';

test('REQ-STREAM-012: a request is taken when it is whole, wherever it is cut, and leaves what follows', () => {
  for (const [bytes, target] of [
    [[5, 1, 0, 1, 192, 0, 2, 1, 0, 80], { host: '192.0.2.1', port: 80 }],
    [[5, 1, 0, 3, 4, 0x61, 0x2e, 0x62, 0x63, 1, 0xbb], { host: 'a.bc', port: 443 }],
    [[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8, ...new Array<number>(11).fill(0), 1, 0, 53], { host: '2001:db8::1', port: 53 }],
  ] as const) {
    const whole = Uint8Array.from([...bytes, 9, 9]);
    for (let length = 1; length < bytes.length; length++) {
      assert.equal(parseRequest(whole.subarray(0, length)), undefined, `${length} of ${bytes.length} bytes`);
    }
    assert.deepEqual(parseRequest(whole), { value: { command: 'connect', target }, length: bytes.length });
  }
});

test('a greeting without a method that is here, other versions and addresses that are none', () => {
  assert.deepEqual(parseGreeting(Uint8Array.of(5, 2, 1, 2)), { value: false, length: 4 });
  assert.deepEqual(parseGreeting(Uint8Array.of(5, 2, 1, 0)), { value: true, length: 4 });
  assert.equal(parseGreeting(Uint8Array.of(5, 2, 0)), undefined);
  for (const version of [0, 4, 0x47]) {
    assert.throws(
      () => parseGreeting(Uint8Array.of(version, 1, 0)),
      (error) => isVpnError(error, 'ERR_MESSAGE_SYNTAX'),
    );
    assert.throws(
      () => parseRequest(Uint8Array.of(version, 1, 0)),
      (error) => isVpnError(error, 'ERR_MESSAGE_SYNTAX'),
    );
  }
  assert.equal(parseRequest(Uint8Array.of(5, 1, 0, 9, 0, 0))?.value.target, undefined);
  assert.equal(parseRequest(Uint8Array.of(5, 1, 0, 3, 2, 0x61, 0, 0, 80))?.value.target, undefined);
  assert.equal(parseRequest(Uint8Array.of(5, 7, 0, 1, 1, 2, 3, 4, 0, 80))?.value.command, undefined);
});

test('datagrams keep their target and payload; fragments and what is too short are none', () => {
  for (const host of ['192.0.2.1', '2001:db8::1', 'name.example']) {
    const datagram = { target: { host, port: 53 }, payload: Uint8Array.of(1, 2, 3) };
    assert.deepEqual(parseDatagram(encodeDatagram(datagram)), datagram);
  }
  assert.equal(parseDatagram(Uint8Array.of(0, 0, 1, 1, 192, 0, 2, 1, 0, 53, 1)), undefined);
  assert.equal(parseDatagram(Uint8Array.of(0, 0, 0, 1, 192, 0, 2)), undefined);
  assert.deepEqual([...encodeReply(SocksReply.refused)], [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
  assert.equal(replyOf('destination_ip_prohibited'), SocksReply.denied);
});

test('random bytes are parsed, wait for more or are refused by an error of ours', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      for (const parse of [parseGreeting, parseRequest, parseDatagram]) {
        try {
          parse(bytes);
        } catch (error) {
          assert.ok(isVpnError(error, 'ERR_MESSAGE_SYNTAX'));
        }
      }
    }),
  );
});
