import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ERROR_CODES, type ErrorCode, VpnError } from '../base/errors.ts';
import { Backoff, FIRST_DELAY_MS, MAX_DELAY_MS, SLOW_DELAY_MS, STABLE_AFTER_MS } from './backoff.ts';
import { CLOSE_REASONS, REJECT_CODES } from './messages.ts';
import { closeReasonOf, recoveryAfterClose, recoveryAfterError, rejectCodeOf, rejectError } from './reasons.ts';

const error = (code: ErrorCode) => new VpnError(code, 'x');

test('REQ-CLOSE-001: a reject code becomes an error and the same code again', () => {
  for (const code of REJECT_CODES) {
    const expected = code === 'shutting_down' ? 'rejected' : code;
    assert.equal(rejectCodeOf(rejectError(code)), expected);
  }
  assert.equal(rejectCodeOf(error('ERR_STORE')), 'rejected');
  assert.doesNotMatch(rejectError('rejected').message, /says/);
});

test('REQ-CLOSE-002: the reason that CLOSE gives', () => {
  assert.equal(closeReasonOf(undefined), 'peer_disconnect');
  assert.equal(closeReasonOf(error('ERR_FRAME_STATE')), 'protocol_error');
  assert.equal(closeReasonOf(error('ERR_MESSAGE_FIELD')), 'protocol_error');
  assert.equal(closeReasonOf(error('ERR_PEER_GONE')), 'dead_peer');
  assert.equal(closeReasonOf(error('ERR_SESSION_REPLACED')), 'replaced');
  assert.equal(closeReasonOf(error('ERR_INVARIANT')), 'shutdown');
});

test('REQ-RETRY-001: a client comes back only where that can help', () => {
  const judged = ERROR_CODES.map(error).filter(({ kind }) => ['protocol', 'auth', 'transport'].includes(kind));
  const retried = judged.filter((failure) => recoveryAfterError(failure) === 'retry').map(({ code }) => code);
  assert.deepEqual(retried.toSorted(), [
    'ERR_ATTACH_PROOF',
    'ERR_BACKEND',
    'ERR_CAPTIVE_PORTAL',
    'ERR_CONNECT',
    'ERR_CONNECT_TIMEOUT',
    'ERR_FRAME_TRUNCATED',
    'ERR_NAME_LOOKUP',
    'ERR_PEER_GONE',
    'ERR_PROXY',
    'ERR_RESUME_PROOF',
    'ERR_SESSION_UNKNOWN',
    'ERR_STAGE_TIMEOUT',
    'ERR_TLS_HANDSHAKE',
  ]);
  for (const failure of ERROR_CODES.map(error)) {
    if (failure.kind === 'resource') assert.equal(recoveryAfterError(failure), 'retry', failure.code);
    const never = failure.code.startsWith('ERR_CERT_') || ['config', 'system', 'internal'].includes(failure.kind);
    if (never) assert.equal(recoveryAfterError(failure), 'final', failure.code);
  }
  for (const code of [
    'ERR_TLS_VERSION',
    'ERR_TLS_ALPN',
    'ERR_TLS_MASTER_SECRET',
    'ERR_TLS_INTERCEPTED',
    'ERR_UPGRADE',
  ] as const) {
    assert.equal(recoveryAfterError(error(code)), 'final');
  }
  assert.equal(recoveryAfterError(error('ERR_NOT_TLS')), 'slow');
  assert.equal(recoveryAfterError(error('ERR_PROXY_AUTH')), 'final', 'accounts are locked for wrong passwords');
  assert.equal(recoveryAfterError(error('ERR_AUTH_APPROVAL_PENDING')), 'slow');
  assert.equal(recoveryAfterError(error('ERR_MESSAGE_SYNTAX')), 'slow');
  assert.equal(recoveryAfterError(error('ERR_PROTOCOL_VERSION')), 'final');
  assert.equal(recoveryAfterError(error('ERR_SESSION_REPLACED')), 'final');
});

test('REQ-RETRY-002: after replaced, admin, revoked and idle_timeout a client does not come back', () => {
  const final = CLOSE_REASONS.filter((reason) => recoveryAfterClose(reason) === 'final');
  assert.deepEqual(final.toSorted(), ['admin', 'idle_timeout', 'replaced', 'revoked']);
  const retried = CLOSE_REASONS.filter((reason) => recoveryAfterClose(reason) === 'retry');
  assert.deepEqual(retried.toSorted(), ['dead_peer', 'peer_disconnect', 'session_timeout', 'shutdown']);
});

test('REQ-RETRY-003: waits double up to 30 s, each spread over its upper half', () => {
  const [least, most] = [new Backoff(), new Backoff()];
  for (let attempt = 0; attempt < 40; attempt++) {
    const ceiling = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt);
    assert.equal(least.next(0), ceiling / 2);
    assert.ok(Math.abs(most.next(0.999_999_9) - ceiling) < 1);
  }
  assert.equal(MAX_DELAY_MS, 30_000);
  const unreached = new Backoff();
  const waits = Array.from({ length: 301 }, () => unreached.next(0, true));
  assert.deepEqual(waits.slice(0, 5), [125, 250, 500, 1000, 1000]);
  assert.equal(waits[299], 1000);
  assert.equal(waits[300], MAX_DELAY_MS / 2);
  assert.equal(least.slow(0), SLOW_DELAY_MS / 2);
});

test('REQ-RETRY-004: only a session that lived a while starts the waits anew', () => {
  const backoff = new Backoff();
  backoff.next(0);
  backoff.next(0);
  backoff.ended(STABLE_AFTER_MS - 1);
  assert.equal(backoff.next(0), FIRST_DELAY_MS * 2);
  backoff.ended(STABLE_AFTER_MS);
  assert.equal(backoff.next(0), FIRST_DELAY_MS / 2);
});
