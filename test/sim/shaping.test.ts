// Rates and quotas of a policy file, whole stack: what arrives at the other end keeps the rate, both ways; a quota that is used
// up is told to the client and carries nothing; DSCP and ECN cross as they are.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { FLAG_PARTIAL_CHECKSUM, GsoType } from '../../src/ip/super-packet.ts';
import { tcpPacket, udpPacket } from '../support/packets.ts';
import { addressOf, equal, type SimClient, until, World } from '../support/world.ts';

const LIMIT = { timeout: 120_000 };
const MSS = 1400;
const PARTIAL = { flags: FLAG_PARTIAL_CHECKSUM, gsoType: GsoType.tcp4, gsoSize: MSS };

class Stage implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'customvpn-shaping-'));
  readonly file = join(this.#folder, 'policy.toml');
  #world: World | undefined;

  get world(): World {
    assert.ok(this.#world !== undefined);
    return this.#world;
  }

  write(text: string): void {
    writeFileSync(this.file, `version = 1\n${text}`);
  }

  async open(text: string): Promise<void> {
    this.write(text);
    this.#world = await World.open({ config: { policyFile: this.file } });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#world?.[Symbol.asyncDispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

interface Arrival {
  readonly at: number;
  /** Of the packets that a kernel makes of it. */
  readonly bytes: number;
}

/** Bytes of a written packet as it is on a network. */
function wireBytes({
  bytes,
  offload,
}: {
  bytes: Uint8Array;
  offload: { gsoSize: number; headerLength: number };
}): number {
  if (offload.gsoSize === 0) return bytes.length;
  const segments = Math.ceil((bytes.length - offload.headerLength) / offload.gsoSize);
  return bytes.length + (segments - 1) * offload.headerLength;
}

/** No window has more than burst + rate × t. What came is seen later than it was sent, never earlier. */
function checkRate(arrivals: readonly Arrival[], bytesPerSecond: number, burstBytes: number): void {
  for (const [first, { at }] of arrivals.entries()) {
    let sum = 0;
    for (const { at: until, bytes } of arrivals.slice(first)) {
      if (until - at > 2000) break;
      sum += bytes;
      // A busy machine delays what was sent in the 200 ms before.
      const allowed = burstBytes + (bytesPerSecond * (until - at + 200)) / 1000;
      assert.ok(sum <= allowed, `${sum} bytes within ${until - at} ms`);
    }
  }
}

function bigPacket(sim: SimClient, direction: 'down' | 'up', sequence: number, port = 5001): Uint8Array {
  const own = addressOf(sim, 4);
  const [source, destination] = direction === 'down' ? ['192.0.2.80', own] : [own, '192.0.2.80'];
  return tcpPacket({ source, destination, sequence, sourcePort: port, payload: 45 * MSS, partial: true });
}

for (const direction of ['down', 'up'] as const) {
  test(
    `a user's rate holds at the other end, ${direction}: all of it and no more, small packets soon`,
    LIMIT,
    async () => {
      await using stage = new Stage();
      await stage.open(`[[settings]]\nfor = ["user:alice"]\n${direction}Mbit = 4\nburstKiB = 32\n`);
      const { world } = stage;
      const sim = await world.connected('alice');
      const source = direction === 'down' ? world.tun : sim.host.tun;
      const target = direction === 'down' ? sim.host.tun : world.tun;
      const arrivals: Arrival[] = [];
      const smallAt: number[] = [];
      target.onWritten = (packet) => {
        const at = performance.now();
        if (packet.bytes[9] === 17) smallAt.push(at);
        else arrivals.push({ at, bytes: wireBytes(packet) });
      };
      let sequence = 0;
      const started = performance.now();
      const own = addressOf(sim, 4);
      const [from, to] = direction === 'down' ? ['192.0.2.80', own] : [own, '192.0.2.80'];
      const asked: number[] = [];
      while (performance.now() - started < 3000) {
        // More than the rate takes: some of it is lost, as with any full queue.
        source.inject(bigPacket(sim, direction, sequence), PARTIAL);
        sequence += 45 * MSS;
        asked.push(performance.now());
        source.inject(udpPacket({ source: from, destination: to, payload: 60, sourcePort: 7000 }));
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      const elapsed = performance.now() - started;
      const total = arrivals.reduce((sum, { bytes }) => sum + bytes, 0);
      checkRate(arrivals, 500_000, 32 * 1024);
      assert.ok(total <= (500_000 * elapsed) / 1000 + 32 * 1024 + 3000, `${total} bytes in ${elapsed} ms`);
      assert.ok(total >= (500_000 * elapsed * 0.7) / 1000, `${total} bytes in ${elapsed} ms`);
      // Behind two seconds of backlog they would come late; here they pass it.
      assert.ok(smallAt.length >= asked.length * 0.8, `${smallAt.length} of ${asked.length} small packets`);
      assert.deepEqual(
        Object.keys(await world.drops()).filter((name) => name === 'quota'),
        [],
      );
    },
  );
}

test(
  'a quota that is used up: the client is told, nothing is carried, and another policy opens it again',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const policy = (gib: number) => `[[settings]]\nfor = ["any"]\nquotaDayGiB = ${gib}\noverQuota = "refuse"\n`;
    // 100 kB.
    await stage.open(policy(0.0001));
    const { world } = stage;
    const sim = await world.connected('alice');
    for (let count = 0; count < 3; count++) world.tun.inject(bigPacket(sim, 'down', count * 45 * MSS), PARTIAL);
    const notice = await until(
      () => sim.client.snapshot.config?.notices.find((text) => text.includes('is used up')),
      'the client is told',
    );
    assert.match(notice, /^the quota of 0\.0001 GiB of this day is used up: nothing is carried until .*T00:00:00Z$/);
    const before = sim.host.tun.written.length;
    const packet = udpPacket({ source: '192.0.2.80', destination: addressOf(sim, 4), payload: 100 });
    world.tun.inject(packet);
    sim.host.tun.inject(udpPacket({ source: addressOf(sim, 4), destination: '192.0.2.80', payload: 100 }));
    await until(async () => ((await world.drops()).quota ?? 0) >= 2, 'both are dropped and counted');
    assert.equal(sim.host.tun.written.length, before);
    assert.equal(sim.client.snapshot.state, 'connected', 'it stays connected');
    const rows = () => world.rows('select account, period, bytes from usage order by period');
    await until(() => rows().length === 2, 'it is on record');
    assert.ok(rows().every(({ account, bytes }) => account === 'alice' && Number(bytes) > 100_000));

    stage.write(policy(10));
    await world.server.reload();
    await until(() => sim.client.snapshot.config?.notices.length === 0, 'the client is told that it is over');
    world.tun.inject(packet);
    await until(() => sim.host.tun.written.some(({ bytes }) => equal(bytes, packet)), 'packets cross again');
  },
);

test('a quota holds over a restart of the gateway', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open('[[settings]]\nfor = ["any"]\nquotaDayGiB = 0.0001\noverQuota = "refuse"\n');
  const { world } = stage;
  const sim = await world.connected('alice');
  for (let count = 0; count < 3; count++) world.tun.inject(bigPacket(sim, 'down', count * 45 * MSS), PARTIAL);
  await until(() => (sim.client.snapshot.config?.notices.length ?? 0) > 0, 'the client is told');
  await world.server.stop();
  await world.restart({ policyFile: stage.file });
  await until(() => sim.client.snapshot.state === 'connected' && world.server.sessions.length === 1, 'it is back');
  await until(() => (sim.client.snapshot.config?.notices.length ?? 0) > 0, 'and is told again');
  world.tun.inject(udpPacket({ source: '192.0.2.80', destination: addressOf(sim, 4), payload: 100 }));
  await until(async () => ((await world.drops()).quota ?? 0) >= 1, 'nothing is carried');
});

test('DSCP and ECN cross in both directions as they are, whatever class a packet has', LIMIT, async () => {
  await using stage = new Stage();
  await stage.open(
    '[[settings]]\nfor = ["any"]\ndownMbit = 100\nupMbit = 100\n[[classes]]\nclass = "bulk"\nservices = ["udp/53"]\n',
  );
  const { world } = stage;
  const sim = await world.connected('alice');
  for (const version of [4, 6] as const) {
    const own = addressOf(sim, version);
    const far = version === 4 ? '192.0.2.80' : '2001:db8::80';
    for (const trafficClass of [0, 1, 2, 3, 0xb8, 0xba, 0x20, 0x04, 0xff]) {
      const down = udpPacket({ version, source: far, destination: own, payload: 50, trafficClass });
      const up = udpPacket({ version, source: own, destination: far, payload: 51, trafficClass });
      world.tun.inject(down);
      sim.host.tun.inject(up);
      await until(() => sim.host.tun.written.some(({ bytes }) => equal(bytes, down)), `down ${trafficClass}`);
      await until(() => world.tun.written.some(({ bytes }) => equal(bytes, up)), `up ${trafficClass}`);
    }
  }
});
