// A gateway that bridges Ethernet, whole: what clients and the bridge say to each other, what they must not, and what a resume tells.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatMac } from '../../src/ip/ethernet-station.ts';
import { arpFrame, BROADCAST, ipFrame } from '../support/ethernet.ts';
import { udpPacket } from '../support/packets.ts';
import { addressOf, equal, Relay, type SimClient, until, World } from '../support/world.ts';

const HOST_MAC = '02:00:00:00:00:aa';
const HOST = '10.20.0.200';
const TAP = { kind: 'tap', superPackets: false } as const;

function open(config: { clientToClient?: boolean } = {}): Promise<World> {
  return World.open({ config: { device: 'tap', ...config }, tun: TAP, plain: false });
}

function macOf({ client }: SimClient): string {
  const mac = client.snapshot.config?.ethernet?.mac;
  assert.ok(mac !== undefined, 'CONFIG says the address of the client');
  return typeof mac === 'string' ? mac : formatMac(mac);
}

/** A frame of a client with its own addresses. */
function said(sim: SimClient, to: { mac: string; ip: string }, mark: number): Uint8Array {
  const packet = udpPacket({ source: addressOf(sim, 4), destination: to.ip, destinationPort: mark });
  return ipFrame(packet, { source: macOf(sim), destination: to.mac });
}

const toHost = { mac: HOST_MAC, ip: HOST };

async function atBridge(world: World, frame: Uint8Array): Promise<void> {
  await until(() => world.tun.written.some(({ bytes }) => equal(bytes, frame)), 'the frame at the bridge');
}

async function at(sim: SimClient, frame: Uint8Array): Promise<void> {
  await until(() => sim.host.tun.written.some(({ bytes }) => equal(bytes, frame)), `the frame at ${sim.user}`);
}

/** What has been sent before has been judged: a frame behind it has come out. */
async function settle(world: World, sim: SimClient, mark: number): Promise<void> {
  const frame = said(sim, toHost, mark);
  sim.host.tun.inject(frame);
  await atBridge(world, frame);
}

test('REQ-ETHERNET-003: frames go to the bridge and back as they are, and those for one client to no other', async () => {
  await using world = await open();
  const [ann, bob] = [await world.connected('ann', { tun: TAP }), await world.connected('bob', { tun: TAP })];
  assert.notEqual(macOf(ann), macOf(bob));
  const up = said(ann, toHost, 1);
  ann.host.tun.inject(up);
  await atBridge(world, up);
  const down = ipFrame(udpPacket({ source: HOST, destination: addressOf(ann, 4) }), {
    source: HOST_MAC,
    destination: macOf(ann),
  });
  const question = arpFrame({ source: HOST_MAC, destination: BROADCAST, sender: HOST, target: addressOf(bob, 4) });
  world.tun.inject(down);
  world.tun.inject(question);
  await at(ann, down);
  await at(ann, question);
  await at(bob, question);
  assert.ok(!bob.host.tun.written.some(({ bytes }) => equal(bytes, down)));
  assert.deepEqual(await world.drops(), {});
});

test("REQ-ETHERNET-004: a client that speaks with another's addresses is not heard, and each frame is counted under its reason", async () => {
  await using world = await open();
  const [ann, bob] = [await world.connected('ann', { tun: TAP }), await world.connected('bob', { tun: TAP })];
  const own = { source: macOf(ann), destination: HOST_MAC };
  const foreign = udpPacket({ source: addressOf(bob, 4), destination: HOST });
  const honest = udpPacket({ source: addressOf(ann, 4), destination: HOST });
  const spoofed = [
    ipFrame(honest, { source: macOf(bob), destination: HOST_MAC }),
    ipFrame(foreign, own),
    arpFrame({ source: macOf(ann), destination: BROADCAST, sender: addressOf(bob, 4), target: HOST }),
  ];
  for (const frame of spoofed) ann.host.tun.inject(frame);
  await settle(world, ann, 2);
  for (const frame of spoofed) assert.ok(!world.tun.written.some(({ bytes }) => equal(bytes, frame)));
  assert.deepEqual(await world.drops(), { mac_spoofed: 1, address_spoofed: 2 });
});

for (const clientToClient of [false, true]) {
  test(`REQ-ETHERNET-007: frames from client to client ${clientToClient ? 'go past the bridge where that is allowed' : 'go nowhere by default'}`, async () => {
    await using world = await open({ clientToClient });
    const [ann, bob] = [await world.connected('ann', { tun: TAP }), await world.connected('bob', { tun: TAP })];
    const frame = said(ann, { mac: macOf(bob), ip: addressOf(bob, 4) }, 3);
    ann.host.tun.inject(frame);
    if (clientToClient) await at(bob, frame);
    await settle(world, ann, 4);
    assert.ok(!world.tun.written.some(({ bytes }) => equal(bytes, frame)));
    assert.equal(bob.host.tun.written.length, clientToClient ? 1 : 0);
    assert.deepEqual(await world.drops(), clientToClient ? {} : { client_isolated: 1 });
  });
}

test('a client that comes back is announced to the segment, with the addresses that it had', async () => {
  await using world = await open();
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('ann', { tun: TAP, serverPort: relay.port });
  const before = [macOf(sim), addressOf(sim, 4), addressOf(sim, 6)];
  await settle(world, sim, 5);
  world.tun.written.length = 0;
  for (const connection of relay.connections) connection.cut();
  await until(() => sim.client.snapshot.resumes === 1, 'the resume');
  const gratuitous = arpFrame({
    source: macOf(sim),
    destination: BROADCAST,
    sender: addressOf(sim, 4),
    target: addressOf(sim, 4),
  });
  await until(
    () => world.tun.written.some(({ bytes }) => equal(bytes.subarray(0, 14), gratuitous.subarray(0, 14))),
    'its announcement by ARP',
  );
  assert.deepEqual([macOf(sim), addressOf(sim, 4), addressOf(sim, 6)], before);
  await settle(world, sim, 6);
});

test('REQ-ETHERNET-002: a client with a device of the other kind is refused, and is told which it needs', async () => {
  await using world = await open();
  const sim = await world.client('ann');
  await assert.rejects(sim.client.connect({ once: true }), { code: 'ERR_DEVICE_KIND' });
  await using routed = await World.open();
  const other = await routed.client('ann', { tun: TAP });
  await assert.rejects(other.client.connect({ once: true }), { code: 'ERR_DEVICE_KIND' });
});
