import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fragmentHeader, placed, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import type { Channel } from './channel.ts';
import { BUCKETS, FlowSpread } from './flow-spread.ts';

const OFFSET = 16;
/** Only told apart, never called. */
const CHANNELS = [{}, {}, {}, {}] as unknown as [Channel, Channel, Channel, Channel];

function spreadOver(count: number, key: [number, number] = [1, 2]): FlowSpread {
  const spread = new FlowSpread(key);
  for (let slot = 0; slot < count; slot++) spread.set(slot, CHANNELS[slot]);
  return spread;
}

function flow(port: number): Uint8Array {
  return placed(udpPacket({ source: '10.0.0.2', destination: '192.0.2.1', sourcePort: port, payload: 10 }), OFFSET);
}

function pick(spread: FlowSpread, bytes: Uint8Array): Channel | undefined {
  return spread.pick(bytes, OFFSET, bytes.length - OFFSET);
}

const PORTS = Array.from({ length: 1000 }, (_, index) => 10_000 + index);

test('REQ-SPREAD-001: all packets of a flow go to one channel, and flows are spread over all', () => {
  const spread = spreadOver(4);
  const counts = new Map<Channel | undefined, number>();
  for (const port of PORTS) {
    const channel = pick(spread, flow(port));
    for (const payload of [0, 1, 1400]) {
      const other = placed(
        udpPacket({ source: '10.0.0.2', destination: '192.0.2.1', sourcePort: port, payload }),
        OFFSET,
      );
      assert.equal(pick(spread, other), channel);
    }
    counts.set(channel, (counts.get(channel) ?? 0) + 1);
  }
  for (const channel of CHANNELS) assert.ok((counts.get(channel) ?? 0) > 150, 'no channel is left out');
});

test('REQ-SPREAD-001: the hash is keyed: another session spreads the same flows otherwise', () => {
  const [one, other] = [spreadOver(2, [1, 2]), spreadOver(2, [3, 4])];
  const differ = PORTS.filter((port) => pick(one, flow(port)) !== pick(other, flow(port)));
  assert.ok(differ.length > 400 && differ.length < 600, `${differ.length} of 1000`);
  const own = [new FlowSpread(), new FlowSpread()] as const;
  for (const spread of own) for (const slot of [0, 1]) spread.set(slot, CHANNELS[slot]);
  assert.ok(
    PORTS.some((port) => pick(own[0], flow(port)) !== pick(own[1], flow(port))),
    'a key of its own each',
  );
});

test('REQ-SPREAD-002: fragments, and what has no ports, go by addresses and protocol alone', () => {
  const spread = spreadOver(4);
  const fragments = PORTS.slice(0, 50).map((port) =>
    placed(
      udpPacket({
        source: '10.0.0.2',
        destination: '192.0.2.1',
        sourcePort: port,
        payload: 10,
        fragment: { more: true },
      }),
      OFFSET,
    ),
  );
  assert.equal(new Set(fragments.map((bytes) => pick(spread, bytes))).size, 1);
  const six = PORTS.slice(0, 50).map((port) =>
    placed(
      udpPacket({
        version: 6,
        source: 'fd00::2',
        destination: '2001:db8::1',
        sourcePort: port,
        payload: 10,
        extensions: [fragmentHeader()],
      }),
      OFFSET,
    ),
  );
  assert.equal(new Set(six.map((bytes) => pick(spread, bytes))).size, 1);
});

test('REQ-SPREAD-003: a lost slot gives its own buckets away, and no other bucket moves', () => {
  const spread = spreadOver(4);
  for (const port of PORTS) pick(spread, flow(port));
  const before = Array.from({ length: BUCKETS }, (_, bucket) => spread.slotOf(bucket));
  spread.set(2, undefined);
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    if (before[bucket] === 2) assert.notEqual(spread.slotOf(bucket), 2);
    else assert.equal(spread.slotOf(bucket), before[bucket]);
  }
  assert.ok(before.filter((slot) => slot === 2).length > 30);
});

test('REQ-SPREAD-003: a slot that comes back takes the buckets that are quiet, and those in use only once they pause', () => {
  const spread = spreadOver(2);
  const ports = PORTS.filter((port) => pick(spread, flow(port)) === CHANNELS[1]);
  const [busy = 0, quiet = 0] = ports;
  spread.set(1, undefined);
  assert.equal(pick(spread, flow(busy)), CHANNELS[0]);
  spread.set(1, CHANNELS[3]);
  for (let tick = 0; tick < 10; tick++) {
    assert.equal(pick(spread, flow(busy)), CHANNELS[0], 'what waits there would be overtaken');
    spread.handleTick();
  }
  assert.equal(pick(spread, flow(quiet)), CHANNELS[3]);
  spread.handleTick();
  spread.handleTick();
  assert.equal(pick(spread, flow(busy)), CHANNELS[3]);
});

test('the second channel of a session that was not used yet has its share at once', () => {
  const spread = spreadOver(2);
  assert.equal(new Set(PORTS.map((port) => pick(spread, flow(port)))).size, 2);
  const used = spreadOver(1);
  pick(used, flow(1));
  used.set(1, CHANNELS[1]);
  assert.equal(new Set(PORTS.map((port) => pick(used, flow(port)))).size, 1, 'nobody knows which flows have begun');
});

test('a channel that takes the place of another in its slot moves no flow, and without any nothing is picked', () => {
  const spread = spreadOver(2);
  const [port = 0] = PORTS.filter((each) => pick(spread, flow(each)) === CHANNELS[1]);
  spread.set(1, CHANNELS[2]);
  assert.equal(pick(spread, flow(port)), CHANNELS[2]);
  assert.equal(spread.count, 2);
  for (const slot of [0, 1]) spread.set(slot, undefined);
  assert.equal(pick(spread, flow(port)), undefined);
  assert.equal(spread.count, 0);
  const tcp = placed(tcpPacket({ source: '10.0.0.2', payload: 1 }), OFFSET);
  assert.equal(pick(spreadOver(1), tcp), CHANNELS[0]);
});
