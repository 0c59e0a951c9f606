/** Revocation lists: what is on them, and which are no lists. */

import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import { TestAuthority } from '../../test/support/certificates.ts';
import { readHolder } from './certificate-facts.ts';
import { isOnList, isSameCertificate, readRevocationLists } from './revocation.ts';

const one = await TestAuthority.create('One');
const other = await TestAuthority.create('Other');
const authorityOf = (authority: TestAuthority) => readHolder(new X509Certificate(authority.cert).raw)?.authority ?? '';

test('a certificate is told by its issuer and serial number together, however the number is written', async () => {
  const lists = await readRevocationLists((await one.crl(['0a1b'])) + (await other.crl([])), one.cert, Date.now());
  assert.equal(isOnList(lists, { authority: authorityOf(one), serial: '0A1B' }), true);
  assert.equal(isOnList(lists, { authority: authorityOf(one), serial: 'a1b' }), true);
  assert.equal(isOnList(lists, { authority: authorityOf(one), serial: 'a1c' }), false);
  assert.equal(isOnList(lists, { authority: authorityOf(other), serial: 'a1b' }), false);
  assert.equal(isOnList(lists, { authority: '', serial: 'a1b' }), true, 'an issuer that could not be told');
  assert.equal(isSameCertificate({ authority: 'x', serial: '0A' }, { authority: 'x', serial: 'a' }), true);
  assert.equal(isSameCertificate({ authority: 'x', serial: 'a' }, { authority: 'y', serial: 'a' }), false);
});

test('text without a list, a broken list, an expired one and one of another key are refused', async () => {
  const imposter = await TestAuthority.create('One');
  for (const [pem, why] of [
    ['', /found none/],
    [one.cert, /found none/],
    ['-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n', /cannot be read/],
    [await one.crl([], -1), /has expired/],
    [await imposter.crl([]), /not signed/],
  ] as const) {
    await assert.rejects(readRevocationLists(pem, one.cert, Date.now()), { code: 'ERR_CERT_FILE', message: why });
  }
});
