import assert from 'node:assert/strict';
import { test } from 'node:test';
import { icmpPacket, optionsHeader, TcpFlag, tcpPacket, udpPacket } from '../../../test/support/packets.ts';
import { ManualClock } from '../../base/clock.ts';
import { formatIp, parseIp } from '../../ip/address.ts';
import { Denials, readFlow } from './denials.ts';
import type { LiveSession } from './live-session.ts';

const [client4, client6] = ['10.88.0.7', 'fd88::7'];
const session = { key: 'ab'.repeat(16), user: 'ada' } as unknown as LiveSession;

function open() {
  const clock = new ManualClock();
  const denials = new Denials({
    sessionAt: (address) => ([client4, client6].includes(formatIp(address)) ? session : undefined),
    judge: (_session, { port }) => ({ action: port === 443 ? 'allow' : 'deny', rule: undefined }),
    clock,
  });
  return { clock, denials };
}

const packet = (destinationPort: number, source: string = client4) =>
  udpPacket({ source, destination: '192.0.2.1', sourcePort: 9, destinationPort, payload: new Uint8Array(4) });

test('the head of a packet is read, behind extension headers too', () => {
  const payload = new Uint8Array(8);
  const six = { source: client6, destination: '2001:db8::1', payload };
  const tcp = tcpPacket({
    ...six,
    sourcePort: 1,
    destinationPort: 8443,
    flags: TcpFlag.syn,
    extensions: [optionsHeader(60)],
  });
  const read = readFlow(tcp);
  assert.deepEqual([read?.flow.protocol, read?.flow.port], [6, 8443]);
  assert.equal(formatIp(read?.source ?? parseIp('::')), client6);
  assert.equal(readFlow(icmpPacket({ ...six, sequence: 1 }))?.flow.isEcho, true);
});

test('whatever comes is no packet, or one of which the head is read: nothing throws', () => {
  const whole = packet(53);
  for (let length = 0; length <= whole.length; length++) readFlow(whole.subarray(0, length));
  for (let at = 0; at < whole.length; at++) {
    for (let value = 0; value < 256; value += 5) {
      const bytes = whole.slice();
      bytes[at] = value;
      readFlow(bytes);
    }
  }
});

test('the same again is counted; strangers, and what is allowed meanwhile, are not shown', () => {
  const { clock, denials } = open();
  for (const one of [packet(53), packet(53), packet(443), packet(53, '10.88.0.8')]) denials.packet(one);
  assert.deepEqual(
    denials.list({ limit: 10 }).map(({ id, user, source, port, count }) => [id, user, source, port, count]),
    [[2, 'ada', client4, 53, 2]],
  );
  clock.advance(11_000);
  denials.packet(packet(53));
  assert.equal(denials.list({ limit: 10 })[0]?.count, 1);
  assert.deepEqual(denials.list({ after: 3, limit: 10 }), []);
  assert.deepEqual(denials.list({ user: 'bob', limit: 10 }), []);
});

test('a flood is judged only so far, and what is kept is bounded', () => {
  const { clock, denials } = open();
  for (let port = 1; port < 10_000; port++) denials.packet(packet(port === 443 ? 1 : port));
  assert.equal(denials.list({ limit: 1000 }).length, 499);
  for (let second = 1; second < 10; second++) {
    clock.advance(1000);
    for (let port = 1; port < 600; port++) denials.packet(packet(second * 600 + port));
  }
  assert.equal(denials.list({ limit: 10_000 }).length, 1000);
});
