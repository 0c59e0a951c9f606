// What the routing socket says: each kind of message, several in one datagram, and datagrams that are cut off.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { interfaceIndex, parseChanges } from './netlink.ts';

const RTM_NEWLINK = 16;
const RTM_DELADDR = 21;
const RTM_NEWROUTE = 24;
const NLMSG_DONE = 3;

/** A message with its header; `body` follows it. */
function message(type: number, body: readonly number[]): number[] {
  const length = 16 + body.length;
  const padding = new Array<number>((4 - (length % 4)) % 4).fill(0);
  return [...u32(length), type & 0xff, type >> 8, 0, 0, ...u32(0), ...u32(0), ...body, ...padding];
}

function u32(value: number): number[] {
  return [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24];
}

const link = (index: number) => message(RTM_NEWLINK, [0, 0, 1, 0, ...u32(index), ...u32(0), ...u32(0)]);
const address = (index: number) => message(RTM_DELADDR, [2, 24, 0, 0, ...u32(index)]);
/** With a destination of five bytes in front of its interface, so that the padding counts. */
const route = (index: number, flags = 0) =>
  message(RTM_NEWROUTE, [
    2,
    24,
    0,
    0,
    254,
    3,
    0,
    1,
    ...u32(flags),
    9,
    0,
    1,
    0,
    1,
    2,
    3,
    4,
    5,
    0,
    0,
    0,
    8,
    0,
    4,
    0,
    ...u32(index),
  ]);

test('links, addresses and routes are told with their interface, all that a datagram holds', () => {
  const bytes = Uint8Array.from([...link(2), ...address(3), ...route(4), ...link(70_000)]);
  assert.deepEqual(parseChanges(bytes), [
    { kind: 'link', index: 2 },
    { kind: 'address', index: 3 },
    { kind: 'route', index: 4 },
    { kind: 'link', index: 70_000 },
  ]);
});

test('cached routes and other messages are no changes', () => {
  assert.deepEqual(parseChanges(Uint8Array.from([...route(4, 0x200), ...message(NLMSG_DONE, [0, 0, 0, 0])])), []);
});

test('a route without an interface has index 0', () => {
  const bytes = Uint8Array.from(message(RTM_NEWROUTE, [2, 24, 0, 0, 254, 3, 0, 6, ...u32(0)]));
  assert.deepEqual(parseChanges(bytes), [{ kind: 'route', index: 0 }]);
});

test('a datagram that is cut off anywhere gives what is whole in it', () => {
  const whole = [...link(2), ...route(4), ...address(3)];
  for (let length = 0; length < whole.length; length++) {
    const found = parseChanges(Uint8Array.from(whole.slice(0, length)));
    assert.ok(found.length < 3, String(length));
    assert.deepEqual(
      found,
      [
        { kind: 'link', index: 2 },
        { kind: 'route', index: 4 },
      ].slice(0, found.length),
    );
  }
  assert.deepEqual(parseChanges(Uint8Array.from([0, 0, 0, 0, ...link(2)])), [], 'a length of 0 is no endless loop');
});

test('interfaces have numbers', { skip: process.platform === 'linux' ? false : 'needs Linux' }, () => {
  assert.ok(interfaceIndex('lo') > 0);
  assert.equal(interfaceIndex('no-such-device'), 0);
});
