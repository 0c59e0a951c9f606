/**
 * 5,000 connections that are silent or say one byte a second, from one source and from 250: they are held by the caps and
 * end at their deadline, while logins go on. Real sockets on loopback; no privileges.
 *
 * Gateway and client of the logins share this process. What it waits for a processor is not counted, and a machine on which
 * logins are slow without a flood may be slow with it: so a busy machine fails nothing, and a quiet one is held to a second.
 */

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import type { DeviceKey } from '../../src/client/device-key.ts';
import { waitedForProcessorMs } from '../support/processor.ts';
import { exchange, until, World } from '../support/world.ts';

const PEER = new URL('./flood-peer.ts', import.meta.url).pathname;
const CONNECTIONS = 5_000;
const MANY = 250;
const IN_FLIGHT = 512;
/** Of one source; see the listener. */
const IN_FLIGHT_PER_SOURCE = 64;
const HANDSHAKE_SECONDS = 4;
const LOGIN_MS = 1_000;
/** How much slower a login may be than the slowest without a flood, on a machine where that is more than a second. */
const SLOWER = 5;
const LOGINS = 20;
/** Status reads files: asked for after each login it would be what delays the next. */
const SAMPLE_MS = 200;

const skip = process.platform === 'linux' ? false : 'all of 127.0.0.0/8 is local on Linux only';

class Flood implements AsyncDisposable {
  /** What it says once every connection has been tried. */
  report: { tried: number; open: number } | undefined;
  readonly #child: ChildProcess;

  constructor(port: number, sources: number, manner: 'silent' | 'drip') {
    const argv = [PEER, String(port), String(CONNECTIONS), String(sources), manner];
    this.#child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', ...argv], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let text = '';
    this.#child.stdout?.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (text.endsWith('\n')) this.report = JSON.parse(text);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const gone = once(this.#child, 'exit');
    this.#child.stdin?.end();
    await gone;
  }
}

/** Milliseconds of one login, connection included, without what this process waited for a processor. */
async function timedLogin(world: World, device: DeviceKey): Promise<number> {
  const [began, waited] = [performance.now(), waitedForProcessorMs()];
  const raw = await world.raw();
  await raw.login({ device });
  const took = performance.now() - began - (waitedForProcessorMs() - waited);
  raw.socket.destroy();
  return took;
}

for (const manner of ['silent', 'drip'] as const) {
  for (const sources of [1, MANY]) {
    const what = manner === 'silent' ? 'silent connections' : 'handshakes of one byte a second';
    test(`${CONNECTIONS} ${what} from ${sources === 1 ? 'one source' : `${sources} sources`}: bounded, ended, and a login takes under a second`, {
      skip,
      timeout: 60_000,
    }, async (t) => {
      await using world = await World.open({
        config: { limits: { handshakesInFlight: IN_FLIGHT, handshakeSeconds: HANDSHAKE_SECONDS } },
      });
      const good = await world.connected('bob');
      const { token } = await world.profile('alice');
      const { device } = await (await world.raw()).login({ token: token?.reveal() });
      const cap = sources === 1 ? IN_FLIGHT_PER_SOURCE : IN_FLIGHT;
      const counters = async () => (await world.status()).counters;
      const calm: number[] = [];
      while (calm.length < LOGINS) calm.push(await timedLogin(world, device));
      const bound = Math.max(LOGIN_MS, SLOWER * Math.max(...calm));
      await using flood = new Flood(world.port, sources, manner);
      await until(async () => ((await counters()).handshakes ?? 0) >= cap / 2, 'the flood to begin', 20_000);
      const times: number[] = [];
      let most = 0;
      let sampled = 0;
      while (flood.report === undefined || times.length < LOGINS) {
        times.push(await timedLogin(world, device));
        if (performance.now() - sampled < SAMPLE_MS) continue;
        most = Math.max(most, (await counters()).handshakes ?? 0);
        sampled = performance.now();
      }
      world.keepSessions();
      times.sort((a, b) => a - b);
      const [median = 0, slowest = 0] = [times[times.length >> 1], times.at(-1)];
      t.diagnostic(
        `${times.length} logins, half of them within ${Math.round(median)} ms, the slowest ${Math.round(slowest)} ms (without the flood ${Math.round(Math.max(...calm))} ms), at most ${most} handshakes in flight`,
      );
      assert.equal(flood.report.tried, CONNECTIONS);
      assert.ok(slowest < bound, `a login took ${Math.round(slowest)} ms, ${Math.round(bound)} ms are allowed`);
      // The login's own handshake is one of those that are counted.
      assert.ok(most <= cap + 1, `${most} handshakes in flight`);
      const { refusedSource = 0, refusedHandshakes = 0 } = await counters();
      if (sources === 1)
        assert.ok(refusedSource >= CONNECTIONS / 2, `${refusedSource} refused by the cap of the source`);
      else assert.ok(refusedHandshakes >= CONNECTIONS / 2, `${refusedHandshakes} displaced`);
      await exchange(world, good);
      await until(
        async () => (await counters()).handshakes === 0,
        'every handshake to end at its deadline',
        (HANDSHAKE_SECONDS + 5) * 1_000,
      );
      assert.ok(world.withCode('ERR_STAGE_TIMEOUT').length > 0);
      const lines = world.lines.filter(({ component }) => component === 'listener').length;
      assert.ok(lines < 100, `${lines} lines of the flood in the log`);
      await exchange(world, good);
    });
  }
}
