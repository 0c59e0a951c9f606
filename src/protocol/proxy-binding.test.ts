import assert from 'node:assert/strict';
import { test } from 'node:test';
import { primitives } from '../../test/support/protocol.ts';
import { isVpnError } from '../base/errors.ts';
import type { Exporter } from './keys.ts';
import { answerProxyClaim, checkProxyAnswer, parseProxyCredential, proxyCredential } from './proxy-binding.ts';

const exporterOf =
  (byte: number): Exporter =>
  () =>
    new Uint8Array(32).fill(byte);
const binding = { session: new Uint8Array(16).fill(7), epoch: 3, key: new Uint8Array(32).fill(9) };

test('REQ-STREAM-003: both ends prove that they know the session, on this connection', () => {
  const exporter = exporterOf(1);
  const claim = parseProxyCredential(proxyCredential(primitives, binding, exporter));
  assert.ok(claim);
  assert.deepEqual([claim.session, claim.epoch], [binding.session, 3]);
  const answer = answerProxyClaim(primitives, binding, claim, exporter);
  assert.ok(answer);
  checkProxyAnswer(primitives, binding, answer, exporter);
  for (const [change, other] of [
    [{}, exporterOf(2)],
    [{ epoch: 4 }, exporter],
    [{ key: new Uint8Array(32) }, exporter],
    [{ session: new Uint8Array(16) }, exporter],
  ] as const) {
    assert.equal(answerProxyClaim(primitives, { ...binding, ...change }, claim, other), undefined);
    const isRefused = (error: unknown): boolean => isVpnError(error, 'ERR_ATTACH_PROOF');
    assert.throws(() => checkProxyAnswer(primitives, { ...binding, ...change }, answer, other), isRefused);
  }
  // A client's own proof is no answer.
  const proof = proxyCredential(primitives, binding, exporter).slice(-43);
  for (const text of [undefined, '', 'proof=', `proof=${proof}`, answer.slice(6)]) {
    assert.throws(() => checkProxyAnswer(primitives, binding, text, exporter), isVpnError);
  }
});

test('REQ-STREAM-003: what is no credential of this scheme is none', () => {
  const good = proxyCredential(primitives, binding, exporterOf(1));
  for (const text of [
    '',
    'CustomVPN',
    'CustomVPN ',
    'Basic YTpi',
    good.slice(0, -1),
    `${good}A`,
    `${good}==`,
    good.toLowerCase(),
  ]) {
    assert.equal(parseProxyCredential(text), undefined, text);
  }
});
