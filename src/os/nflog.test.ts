import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loggedPackets } from './nflog.ts';

/** A message of nfnetlink_log with attributes. */
function message(type: number, attributes: readonly (readonly [type: number, payload: readonly number[]])[]): number[] {
  const body = attributes.flatMap(([kind, payload]) => {
    const length = 4 + payload.length;
    const padding = Array<number>((4 - (length & 3)) & 3).fill(0);
    return [length & 255, length >> 8, kind & 255, kind >> 8, ...payload, ...padding];
  });
  const length = 16 + 4 + body.length;
  return [length & 255, length >> 8, 0, 0, type & 255, type >> 8, ...Array<number>(10).fill(0), 2, 0, 0, 0, ...body];
}

const PACKET = 4 << 8;

test('the packets of a datagram are found behind other attributes, in order', () => {
  const bytes = Uint8Array.from([
    ...message(PACKET, [
      [1, [0, 0, 0, 0]],
      [9, [1, 2, 3]],
    ]),
    ...message(PACKET | 1, [[9, [9, 9]]]),
    ...message(PACKET, [[9, [4]]]),
    ...message(3, []),
  ]);
  assert.deepEqual(
    loggedPackets(bytes).map((packet) => [...packet]),
    [[1, 2, 3], [4]],
  );
});

test('what is cut off or lies about its length is skipped', () => {
  const whole = Uint8Array.from(message(PACKET, [[9, [1, 2, 3, 4]]]));
  for (let length = 0; length < whole.length; length++) assert.deepEqual(loggedPackets(whole.subarray(0, length)), []);
  for (let at = 0; at < whole.length; at++) {
    for (const value of [0, 1, 3, 255]) {
      const bytes = whole.slice();
      bytes[at] = value;
      for (const packet of loggedPackets(bytes)) assert.ok(packet.length <= 4);
    }
  }
});
