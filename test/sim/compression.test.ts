// Compression, whole stack: only where policy and client both ask for it, in both directions, over reconnects; and what a client
// that lies about lengths gets.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { FLAG_PARTIAL_CHECKSUM, GsoType } from '../../src/ip/super-packet.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import { concat, tcpPacket, udpPacket } from '../support/packets.ts';
import { addressOf, equal, type RawClient, until, World } from '../support/world.ts';

const LIMIT = { timeout: 120_000 };
const TEXT = Buffer.from('The quick brown fox jumps over the lazy dog. '.repeat(1400));
const SUPER = { flags: FLAG_PARTIAL_CHECKSUM, gsoType: GsoType.tcp4, gsoSize: 1400 };

class Stage implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'customvpn-compression-'));
  readonly file = join(this.#folder, 'policy.toml');
  #world: World | undefined;

  get world(): World {
    assert.ok(this.#world !== undefined);
    return this.#world;
  }

  /** With a policy that lets alice compress, and nobody else. */
  async open(): Promise<void> {
    writeFileSync(this.file, 'version = 1\n[[settings]]\nfor = ["user:alice"]\ncompression = true\n');
    this.#world = await World.open({ config: { policyFile: this.file, data: { mode: 'inline' } } });
  }

  /** A raw client of a user, logged in. */
  async raw(
    user: string,
    features: readonly string[],
  ): Promise<{ raw: RawClient; features: readonly string[]; own: string }> {
    const profile = await this.world.profile(user);
    const raw = await this.world.raw();
    const token = profile.token;
    assert.ok(token !== undefined);
    const { accept } = await raw.login({ token: token.reveal(), features });
    const own = this.world.server.sessions.findLast((session) => session.user === user)?.addresses[0];
    assert.ok(own !== undefined);
    return { raw, features: accept.features, own };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#world?.[Symbol.asyncDispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

test('REQ-ZSTD-006: it is agreed on only where the policy allows it and the client asks for it', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open();
  const all = ['super', 'zstd'];
  assert.deepEqual((await stage.raw('alice', all)).features.toSorted(), ['super', 'zstd']);
  assert.deepEqual((await stage.raw('alice', ['super'])).features, ['super']);
  assert.deepEqual((await stage.raw('bob', all)).features, ['super'], 'the policy does not speak of bob');
});

test('packets of both ends cross as they were, also after a resume; on the wire they are shorter', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open();
  const { world } = stage;
  const sim = await world.connected('alice', { compression: true });
  const own = addressOf(sim, 4);
  const cross = async (round: number) => {
    const sequence = round * 100_000;
    const down = tcpPacket({ source: '192.0.2.80', destination: own, sequence, payload: TEXT, partial: true });
    const up = tcpPacket({ source: own, destination: '192.0.2.80', sequence, payload: TEXT, partial: true });
    world.tun.inject(down, SUPER);
    sim.host.tun.inject(up, SUPER);
    await until(() => sim.host.tun.written.some(({ bytes }) => equal(bytes, down)), 'a super-packet down');
    await until(() => world.tun.written.some(({ bytes }) => equal(bytes, up)), 'a super-packet up');
  };
  await cross(1);
  await world.server.stop();
  await world.restart({ policyFile: stage.file, data: { mode: 'inline' } });
  await until(() => sim.client.snapshot.state === 'connected' && world.server.sessions.length === 1, 'it is back');
  await cross(2);
  assert.deepEqual(await world.drops(), {});

  const { raw, own: address } = await stage.raw('alice', ['super', 'zstd']);
  world.tun.inject(tcpPacket({ source: '192.0.2.80', destination: address, payload: TEXT, partial: true }), SUPER);
  const payload = await raw.next(FrameType.compressed);
  assert.ok(payload.length < TEXT.length / 10, `${payload.length} bytes for ${TEXT.length}`);
  const plain = await stage.raw('bob', ['super', 'zstd']);
  world.tun.inject(tcpPacket({ source: '192.0.2.80', destination: plain.own, payload: TEXT, partial: true }), SUPER);
  assert.ok((await plain.raw.next(FrameType.super)).length > TEXT.length);
});

test(
  'a client that was not let have it, one that lies about the length, and a bomb: dropped and counted, no more',
  LIMIT,
  async () => {
    await using stage = new Stage();
    await stage.open();
    const { world } = stage;
    const claim = (length: number, body: Uint8Array) =>
      concat(Uint8Array.of(FrameType.packet, length >>> 16, length >>> 8, length), body);
    const { raw, own } = await stage.raw('alice', ['super', 'zstd']);
    const packet = udpPacket({ source: own, destination: '192.0.2.80', payload: TEXT.subarray(0, 1000) });
    const bomb = zstdCompressSync(Buffer.alloc(50 * 1024 * 1024));
    raw.send(FrameType.compressed, claim(65_575, bomb));
    raw.send(FrameType.compressed, claim(100, zstdCompressSync(packet)));
    raw.send(FrameType.compressed, claim(100, Buffer.from('no zstd frame')));
    raw.send(FrameType.compressed, claim(packet.length, zstdCompressSync(packet)));
    await until(() => world.tun.written.some(({ bytes }) => equal(bytes, packet)), 'an honest one crosses');
    // What is in it is checked like any other.
    const spoofed = udpPacket({ source: '10.20.0.250', destination: '192.0.2.80', payload: TEXT.subarray(0, 1000) });
    raw.send(FrameType.compressed, claim(spoofed.length, zstdCompressSync(spoofed)));
    const other = await stage.raw('bob', ['super', 'zstd']);
    other.raw.send(FrameType.compressed, claim(packet.length, zstdCompressSync(packet)));
    await until(async () => {
      const drops = await world.drops();
      return drops.compressed === 3 && drops.source_not_leased === 1 && drops.not_negotiated === 1;
    }, 'the others are counted');
    assert.equal(raw.isClosed || other.raw.isClosed, false);
  },
);
