// A client whose gateway gets the change of a connection wrong: SWITCH that is missing, wrong, or said twice.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { VpnClient } from '../../src/client/client.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { decodeMessage, encodeMessage } from '../../src/protocol/messages.ts';
import { CONTROL_SLOT, SWITCH_TIMEOUT_MS } from '../../src/protocol/rekey.ts';
import { type DataEnd, FakeGateway, OWN } from '../support/fake-gateway.ts';
import { icmpPacket } from '../support/packets.ts';
import { type SimHost, until } from '../support/world.ts';

const WORN_MS = 4_000_000;
const SEQUENCE_AT = 27;

interface Changing extends AsyncDisposable {
  gateway: FakeGateway;
  client: VpnClient;
  host: SimHost;
  clock: ManualClock;
  old: DataEnd;
  next: DataEnd;
}

/** A client that has just attached another connection in place of the one it had, and has said so. */
async function changing(): Promise<Changing> {
  const clock = new ManualClock();
  // Without `resume` the control connection stays as it is.
  const gateway = await FakeGateway.open({ features: ['attach', 'rekey', 'resume'], clock });
  const { client, host } = gateway.client();
  await client.connect({ once: true });
  clock.advance(WORN_MS);
  const next = await until(() => gateway.data[1], 'another connection');
  const [old] = gateway.data;
  assert.ok(old);
  const said = await until(() => old.frames.find(({ type }) => type === FrameType.switch), 'the SWITCH of the client');
  assert.deepEqual(decodeMessage('switch', said.payload), { slot: 0, generation: 1 });
  const end = async () => {
    await client.disconnect();
    await gateway[Symbol.asyncDispose]();
  };
  return { gateway, client, host, clock, old, next, [Symbol.asyncDispose]: end };
}

function send({ channel }: DataEnd, sequence: number): void {
  const frame = encodeFrame(FrameType.packet, icmpPacket({ source: '192.0.2.1', destination: OWN, sequence }));
  channel.sendData(frame, 0, frame.length);
}

function switchTo({ channel }: DataEnd, slot: number, generation: number): void {
  channel.sendControl(encodeMessage('switch', { slot, generation }));
}

function numbers({ tun }: SimHost): (number | undefined)[] {
  return tun.written.map(({ bytes }) => bytes[SEQUENCE_AT]);
}

test('REQ-REKEY-003: a client reads the new connection only after SWITCH has come on the old one', async () => {
  await using changed = await changing();
  const { host, old, next, client } = changed;
  send(next, 3);
  send(old, 1);
  send(old, 2);
  await until(() => host.tun.written.length === 2, 'what came on the old one');
  switchTo(old, 0, 1);
  await until(() => host.tun.written.length === 3, 'what waits on the new one');
  assert.deepEqual(numbers(host), [1, 2, 3]);
  assert.deepEqual([client.snapshot.rekeys, client.snapshot.rekeyGaps], [1, 0]);
});

test('REQ-REKEY-004: where SWITCH does not come a client goes on after 5 s, and counts a gap', async () => {
  await using changed = await changing();
  const { host, old, next, client, clock } = changed;
  send(next, 2);
  send(old, 1);
  await until(() => host.tun.written.length === 1, 'the old one is read');
  clock.advance(SWITCH_TIMEOUT_MS);
  await until(() => host.tun.written.length === 2, 'the new one');
  assert.deepEqual(numbers(host), [1, 2]);
  assert.equal(client.snapshot.rekeyGaps, 1);
  assert.equal(client.snapshot.state, 'connected');
});

const wrong: readonly [what: string, slot: number, generation: number][] = [
  ['for another slot', 1, 1],
  ['for the control connection', CONTROL_SLOT, 1],
  ['of the present generation', 0, 0],
  ['of a generation too far', 0, 2],
];
for (const [what, slot, generation] of wrong) {
  test(`REQ-REKEY-005: a client ends a connection that brings a SWITCH ${what}, and goes on with the other`, async () => {
    await using changed = await changing();
    const { host, old, next, client } = changed;
    switchTo(old, slot, generation);
    const close = await until(() => old.frames.find(({ type }) => type === FrameType.close), 'its CLOSE');
    assert.equal(decodeMessage('close', close.payload).reason, 'protocol_error');
    send(next, 1);
    await until(() => host.tun.written.length === 1, 'a packet on the new one');
    assert.equal(client.snapshot.rekeyGaps, 1);
    assert.equal(client.snapshot.state, 'connected');
  });
}

test('REQ-REKEY-005: data after SWITCH is not taken, and a second SWITCH ends only the connection it comes on', async () => {
  const clock = new ManualClock();
  await using gateway = await FakeGateway.open({ features: ['attach', 'rekey', 'resume'], clock });
  const { client, host } = gateway.client();
  await client.connect({ once: true });
  for (const after of [(end: DataEnd) => send(end, 9), (end: DataEnd) => switchTo(end, 0, end.generation + 1)]) {
    const end = gateway.data.at(-1);
    assert.ok(end);
    switchTo(end, 0, end.generation + 1);
    after(end);
    const count = gateway.data.length;
    const close = await until(() => end.frames.find(({ type }) => type === FrameType.close), 'its CLOSE');
    assert.equal(decodeMessage('close', close.payload).reason, 'protocol_error');
    clock.advance(60_000);
    const next = await until(() => gateway.data[count], 'another connection');
    assert.equal(next.generation, end.generation + 2, 'one that was lost is not changed but replaced');
  }
  assert.deepEqual(host.tun.written, []);
  assert.equal(client.snapshot.state, 'connected');
  assert.equal(client.snapshot.reconnects, 0);
  await client.disconnect();
});
