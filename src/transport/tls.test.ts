/** What is read from a TLS session, which credentials are refused, and what failures mean. */

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { TestAuthority } from '../../test/support/certificates.ts';
import { type ErrorCode, isVpnError } from '../base/errors.ts';
import {
  chooseProtocol,
  clientTlsOptions,
  hasExtendedMasterSecret,
  negotiatedGroup,
  serverTlsOptions,
  translateTlsError,
  tunnelProtocols,
} from './tls.ts';

/** Sessions of OpenSSL 3.5, shortened: version, suite, empty ids, then [13] flags and [19] group where present. */
const HEAD = '0201010202030404021302040004 00'.replaceAll(' ', '');

function session(...fields: string[]): Buffer {
  const body = Buffer.from(HEAD + fields.join(''), 'hex');
  return Buffer.concat([Buffer.from([0x30, 0x82, body.length >> 8, body.length & 0xff]), body]);
}

test('the extended master secret is read from the session flags', () => {
  assert.equal(hasExtendedMasterSecret(session('ad03020101')), true);
  assert.equal(hasExtendedMasterSecret(session('ad03020103')), true);
  assert.equal(hasExtendedMasterSecret(session('ad03020102')), false);
  assert.equal(hasExtendedMasterSecret(session()), false);
  assert.equal(hasExtendedMasterSecret(session('b30302011d')), false);
  // A value 1 that stands under another tag, or within another field, is not the flag.
  assert.equal(hasExtendedMasterSecret(session('a103020101')), false);
  assert.equal(hasExtendedMasterSecret(session('a4070405ad03020101')), false);
});

test('the group is read from the session', () => {
  assert.equal(negotiatedGroup(session('ad03020101', 'b304020211ec')), 'X25519MLKEM768');
  assert.equal(negotiatedGroup(session('b30302011d')), 'X25519');
  assert.equal(negotiatedGroup(session('b304020201ff')), '0x01ff');
  assert.equal(negotiatedGroup(session()), 'unknown');
});

test('a broken session proves nothing and never throws', () => {
  const whole = session('ad03020101', 'b304020211ec');
  for (let end = 0; end < whole.length; end++) {
    assert.equal(hasExtendedMasterSecret(whole.subarray(0, end)), false);
    assert.equal(negotiatedGroup(whole.subarray(0, end)), 'unknown');
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      hasExtendedMasterSecret(bytes);
      negotiatedGroup(bytes);
    }),
  );
});

test('a tunnel is preferred to the front door, and a foreign protocol is refused', () => {
  assert.equal(chooseProtocol(['h2', 'http/1.1', 'customvpn/1']), 'customvpn/1');
  assert.equal(chooseProtocol(tunnelProtocols(3)), 'customvpn/1+3');
  assert.equal(chooseProtocol(['h2', 'http/1.1']), 'http/1.1');
  assert.equal(chooseProtocol(['http/1.1', 'h2'], { isProxy: true }), 'h2');
  for (const foreign of ['h2', 'customvpn/2', 'customvpn/1+', 'customvpn/1+1234', 'customvpn/1x', 'CUSTOMVPN/1']) {
    assert.equal(chooseProtocol([foreign]), undefined, foreign);
  }
});

function throwsCode(run: () => unknown, code: ErrorCode): void {
  assert.throws(run, (error) => isVpnError(error, code));
}

test('credentials that cannot work are refused with the code that says why', async () => {
  const authority = await TestAuthority.create();
  const { cert, key } = await authority.server();
  const other = await authority.server();
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ type: 'pkcs8', format: 'pem' });
  const ca = authority.cert;
  const server = (credentials: Parameters<typeof serverTlsOptions>[0]) => serverTlsOptions(credentials, true, '1.3');

  const crl = await authority.crl([]);
  assert.doesNotThrow(() => server({ cert, key, ca, crl }));
  throwsCode(() => server({ cert, key: other.key, ca }), 'ERR_CERT_KEY_MISMATCH');
  throwsCode(() => server({ cert, key: rsa.toString(), ca }), 'ERR_CERT_KEY_MISMATCH');
  throwsCode(() => server({ cert: 'nothing', key, ca }), 'ERR_CERT_FILE');
  throwsCode(() => server({ cert, key: 'nothing', ca }), 'ERR_CERT_FILE');
  throwsCode(() => server({ cert, key, ca: 'nothing' }), 'ERR_CERT_FILE');
  throwsCode(() => server({ cert, key, ca: ca.replace(/^MI../m, 'AAAA') }), 'ERR_CERT_FILE');
  throwsCode(() => server({ cert, key, ca, crl: 'nothing' }), 'ERR_CERT_FILE');
  throwsCode(() => server({ cert, key }), 'ERR_CONFIG_VALUE');

  throwsCode(() => clientTlsOptions({ ca, cert }, true, '1.3'), 'ERR_CERT_FILE');
  throwsCode(() => clientTlsOptions({ ca, cert, key: other.key }, true, '1.3'), 'ERR_CERT_KEY_MISMATCH');
  throwsCode(() => clientTlsOptions({ ca: '' }, true, '1.3'), 'ERR_CERT_FILE');
});

test('only AEAD suites and forward secrecy, AES-128 first', () => {
  const { ciphers = '' } = clientTlsOptions({}, true, '1.2');
  const names = ciphers.split(':');
  assert.equal(names[0], 'TLS_AES_128_GCM_SHA256');
  for (const name of names) assert.match(name, /^(TLS|ECDHE-(ECDSA|RSA))[-_].*(GCM|POLY1305)/);
  assert.doesNotMatch(clientTlsOptions({}, true, '1.3').ciphers ?? '', /ECDHE/);
});

test('what is not in the table of failures keeps the code of its stage', () => {
  const error = Object.assign(new Error('bad record'), { code: 'ERR_SSL_BAD_RECORD_TYPE' });
  assert.equal(translateTlsError(error, 'ERR_TLS_HANDSHAKE').code, 'ERR_TLS_HANDSHAKE');
  assert.equal(translateTlsError(error, 'ERR_PEER_GONE').code, 'ERR_PEER_GONE');
  assert.equal(translateTlsError(new Error('x'), 'ERR_PEER_GONE').code, 'ERR_PEER_GONE');
  const name = Object.assign(new Error('x'), { code: 'constructor' });
  assert.equal(translateTlsError(name, 'ERR_PEER_GONE').code, 'ERR_PEER_GONE');
});
