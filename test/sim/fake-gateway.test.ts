// A client against a gateway that answers as it likes: what ours never does, but another one may.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPrefix } from '../../src/ip/address.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { encodeMessage } from '../../src/protocol/messages.ts';
import { FakeGateway, type Manners, OWN } from '../support/fake-gateway.ts';
import { icmpPacket } from '../support/packets.ts';
import { equal, until } from '../support/world.ts';

test('REQ-ATTACH-006: after two MOVED a client sends its data inline, having tried the workers it was told', async () => {
  let worker = 6;
  await using gateway = await FakeGateway.open({ attach: () => encodeMessage('moved', { worker: ++worker }) });
  const { client, host } = gateway.client();
  await client.connect({ once: true });
  assert.deepEqual(gateway.protocols, ['customvpn/1', 'customvpn/1+0', 'customvpn/1+7']);
  assert.equal(client.snapshot.channels, 0);
  const up = icmpPacket({ source: OWN, destination: '192.0.2.1' });
  host.tun.inject(up);
  await until(() => gateway.packets.some((packet) => equal(packet, up)), 'a packet on the control connection');
  const down = encodeFrame(FrameType.packet, icmpPacket({ source: '192.0.2.1', destination: OWN }));
  gateway.control?.sendData(down, 0, down.length);
  await until(() => host.tun.written.length === 1, 'a packet back');
  await client.disconnect();
});

test('REQ-PACKET-002: a client drops packets that are not for it, and counts them', async () => {
  await using gateway = await FakeGateway.open({ config: { data: { mode: 'inline', channels: 0 } } });
  const { client, host } = gateway.client();
  await client.connect({ once: true });
  for (const destination of ['10.9.0.3', '127.0.0.1', 'fd00::1']) {
    const source = destination.includes(':') ? 'fd00::2' : '192.0.2.1';
    const frame = encodeFrame(FrameType.packet, icmpPacket({ source, destination }));
    gateway.control?.sendData(frame, 0, frame.length);
  }
  const own = encodeFrame(FrameType.packet, icmpPacket({ source: '192.0.2.1', destination: OWN }));
  gateway.control?.sendData(own, 0, own.length);
  await until(() => host.tun.written.length === 1, 'the one that is for it');
  assert.deepEqual(client.snapshot.drops, { source_not_leased: 3 });
  await client.disconnect();
});

test('a client uses what a gateway pushes as far as it is sane, and says what it left out', async () => {
  await using gateway = await FakeGateway.open({
    config: {
      routes: [
        '192.0.2.0/24',
        '127.0.0.0/8',
        '169.254.0.0/16',
        'fe80::/10',
        '224.0.0.0/4',
        '0.0.0.0/1',
        '2001:db8::/32',
        'x',
      ],
      mtu: 65_000,
      ping: { intervalSeconds: 0, deadSeconds: 0 },
      data: { mode: 'inline', channels: 0 },
    },
  });
  const { client } = gateway.client();
  await client.connect({ once: true });
  const { config, refused } = client.snapshot;
  assert.deepEqual(config?.routes.map(formatPrefix), ['192.0.2.0/24']);
  assert.equal(config?.mtu, 1280);
  assert.deepEqual(config?.ping, { intervalMs: 20_000, deadMs: 60_000 });
  assert.equal(refused.length, 9);
  await client.disconnect();
});

const rude: readonly [what: string, manners: Manners, code: string][] = [
  ['another greeting', { greeting: Buffer.from('SSH-2.0-OpenSSH_9.2\r\n') }, 'ERR_GREETING'],
  ['another version', { greeting: Buffer.from('OK VPN-HELLO 2\r\n') }, 'ERR_PROTOCOL_VERSION'],
  ['a greeting without an end', { greeting: new Uint8Array(80).fill(0x4f) }, 'ERR_GREETING'],
  ['a PONG in place of CONFIG', { afterAccept: encodeFrame(FrameType.pong, new Uint8Array(0)) }, 'ERR_FRAME_STATE'],
  [
    'a frame that only a client sends',
    { afterAccept: encodeFrame(FrameType.login, new Uint8Array(1)) },
    'ERR_FRAME_STATE',
  ],
  ['a CONFIG that is no JSON', { afterAccept: encodeFrame(FrameType.config, Buffer.from('{')) }, 'ERR_MESSAGE_SYNTAX'],
  ['a CLOSE in place of CONFIG', { afterAccept: encodeMessage('close', { reason: 'shutdown' }) }, 'ERR_PEER_GONE'],
  ['a final CLOSE', { afterAccept: encodeMessage('close', { reason: 'replaced' }) }, 'ERR_SESSION_REPLACED'],
  [
    'an ATTACHED without a proof of the session',
    {
      attach: () => encodeMessage('attached', { slot: 0, generation: 0, flags: 0, proof: new Uint8Array(32) }),
    },
    'ERR_ATTACH_PROOF',
  ],
  [
    'a CHALLENGE to an ATTACH',
    { attach: () => encodeFrame(FrameType.challenge, Buffer.from('{}')) },
    'ERR_FRAME_STATE',
  ],
  [
    'a REJECT of the ATTACH',
    { attach: () => encodeMessage('reject', { code: 'rejected', message: '' }) },
    'ERR_AUTH_REJECTED',
  ],
];
for (const [what, manners, code] of rude) {
  test(`a gateway that sends ${what}: ${code}`, async () => {
    await using gateway = await FakeGateway.open(manners);
    const { client, host } = gateway.client();
    await assert.rejects(client.connect({ once: true }), { code });
    await client.stopped;
    assert.equal(host.isClosed, true);
  });
}
