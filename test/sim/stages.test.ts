// How long a client may take in each stage of a login, whether it is silent or sends a byte now and then.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { encodeMessage } from '../../src/protocol/messages.ts';
import { json } from '../support/protocol.ts';
import { type RawClient, World } from '../support/world.ts';

const HELLO = 4;
const STEP = 8;
const LOGIN = 12;
const ANSWER = 16;

function hello(purpose: 'login' | 'enrol'): Uint8Array {
  const { id, algorithm, publicKey } = DeviceKey.generate();
  return encodeMessage('login', {
    version: 1,
    user: 'alice',
    device: { id, algorithm, ...(purpose === 'enrol' ? { publicKey } : {}) },
    purpose,
    serverName: 'localhost',
    features: [],
    client: { name: 'raw', version: '0', platform: 'test' },
  });
}

const ANSWERS = encodeFrame(FrameType.answer, json({ answers: [{ kind: 'device', value: 'A'.repeat(86) }] }));

test('REQ-STAGE-001: each stage has its deadline, and bytes, PINGs and other stages do not put it off: ERR_STAGE_TIMEOUT', async () => {
  const clock = new ManualClock(Date.now());
  const limits = { helloSeconds: HELLO, stepSeconds: STEP, loginSeconds: LOGIN, answerSeconds: ANSWER };
  await using world = await World.open({ clock, config: { limits, login: { enrol: ['device', 'password'] } } });
  const stage = async (first?: Uint8Array): Promise<RawClient> => {
    const raw = await (await world.raw()).greeted();
    if (first !== undefined) {
      raw.write(first);
      await raw.next(FrameType.challenge);
    }
    return raw;
  };
  const silentAtHello = await stage();
  const drippingAtHello = await stage();
  const pingingAtHello = await stage();
  const silentAtStep = await stage(hello('login'));
  const drippingAtStep = await stage(hello('login'));
  const typing = await stage(hello('enrol'));
  const all = [silentAtHello, drippingAtHello, pingingAtHello, silentAtStep, drippingAtStep, typing];
  const login = hello('login');
  let seconds = 0;
  /** Time goes on to just behind this second; who drips sends a byte in each. */
  const passTo = async (end: number): Promise<void> => {
    for (; seconds < end; seconds++) {
      clock.advance(1000);
      if (!drippingAtHello.isClosed) drippingAtHello.write(login.subarray(seconds, seconds + 1));
      if (!drippingAtStep.isClosed) drippingAtStep.write(ANSWERS.subarray(seconds, seconds + 1));
      if (!pingingAtHello.isClosed && seconds < 4) {
        pingingAtHello.send(FrameType.ping, new Uint8Array(0));
        await pingingAtHello.next(FrameType.pong);
      }
    }
    clock.advance(1);
  };
  const endTogether = async (...ended: RawClient[]): Promise<void> => {
    for (const raw of ended) {
      assert.equal((await raw.message('close')).reason, 'dead_peer');
      await raw.closed();
    }
    assert.deepEqual(
      all.filter((raw) => raw.isClosed),
      all.filter((raw) => closed.has(raw) || ended.includes(raw)),
    );
    for (const raw of ended) closed.add(raw);
    assert.equal((await world.status()).counters.refused_err_stage_timeout, closed.size);
  };
  const closed = new Set<RawClient>();
  await passTo(HELLO);
  await endTogether(silentAtHello, drippingAtHello, pingingAtHello);
  await passTo(STEP);
  await endTogether(silentAtStep, drippingAtStep);
  await passTo(STEP + ANSWER);
  await endTogether(typing);
  assert.equal(world.withCode('ERR_STAGE_TIMEOUT').length, all.length);
});
