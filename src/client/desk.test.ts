// The desk of a client in the background: news reach who waits, questions whoever is there, and nobody waits for nobody.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VpnError } from '../base/errors.ts';
import { Desk } from './desk.ts';

const password = [{ kind: 'password' }] as const;
const never = new AbortController().signal;

test('who waits hears at once how it came out, and who comes later, too', async () => {
  const desk = new Desk();
  const waiting = desk.next(20_000);
  desk.up();
  assert.deepEqual(await waiting, { kind: 'up' });
  assert.deepEqual(await desk.next(0), { kind: 'up' });
  desk.begin();
  assert.deepEqual(await desk.next(0), { kind: 'nothing' });
  desk.failed(new VpnError('ERR_AUTH_REJECTED', 'no'));
  assert.deepEqual(await desk.next(20_000), { kind: 'failed', code: 'ERR_AUTH_REJECTED', message: 'no' });
});

test('a question goes to one caller, and its answer to who asked; a late one is dropped', async () => {
  const desk = new Desk();
  const first = desk.next(20_000);
  const asked = desk.ask(password, never);
  const news = await first;
  assert.ok(news.kind === 'ask');
  assert.deepEqual(news.steps, password);
  assert.deepEqual(await desk.next(0), { kind: 'nothing' });
  desk.answer(news.id + 1, { password: 'of another' });
  desk.answer(news.id, { password: 'right' });
  assert.deepEqual(await asked, { password: 'right' });
  desk.answer(news.id, { password: 'late' });
});

test('a question that is declined, called off or met by nobody fails, and says what to do', async () => {
  let now = 0;
  const desk = new Desk(() => now);
  void desk.next(0);
  const declined = desk.ask(password, never);
  const news = await desk.next(20_000);
  assert.ok(news.kind === 'ask');
  desk.decline(news.id, new VpnError('ERR_AUTH_NEEDED', 'given up'));
  await assert.rejects(declined, { code: 'ERR_AUTH_NEEDED', message: 'given up' });
  const controller = new AbortController();
  const off = desk.ask(password, controller.signal);
  controller.abort();
  await assert.rejects(off, { code: 'ERR_CONNECT' });
  assert.ok(desk.isAttended);
  const nobody = desk.ask(password, never);
  now += 60_000;
  assert.ok(!desk.isAttended);
  await assert.rejects(nobody, (error: Error) => {
    assert.match(error.message, /a password.*customvpn client up/);
    return true;
  });
});
