/** Whom a client certificate names, and whom it does not. */

import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import { TestAuthority } from '../../../test/support/certificates.ts';
import { readHolder } from '../../transport/certificate-facts.ts';
import { type CertificateMapping, usersNamed } from './certificate.ts';
import type { ClientCertificate } from './step.ts';

const NOBODY = { commonNames: [], emails: [], uris: [], upns: [] };

function named(names: Partial<ClientCertificate['names']>, mapping: CertificateMapping): string[] {
  return usersNamed({ names: { ...NOBODY, ...names } }, mapping);
}

test('only names of the configured kind and form count, and letters count as they are', () => {
  const email: CertificateMapping = { user: 'email', pattern: '{user}@example.org' };
  assert.deepEqual(named({ emails: ['ada@example.org'] }, email), ['ada']);
  assert.deepEqual(named({ emails: ['ada@example.org', 'ada@elsewhere.org'] }, email), ['ada']);
  assert.deepEqual(named({ emails: ['ada@example.org', 'bob@example.org'] }, email), ['ada', 'bob']);
  assert.deepEqual(named({ commonNames: ['ada@example.org'], uris: ['ada@example.org'] }, email), []);
  for (const wrong of [
    'ada@example.org.evil.net',
    'ada@EXAMPLE.org',
    '@example.org',
    'ada\0@example.org',
    'a b@example.org',
    `${'x'.repeat(65)}@example.org`,
    'example.org',
  ]) {
    assert.deepEqual(named({ emails: [wrong] }, email), [], wrong);
  }
});

test('what stands before and after the user must not overlap', () => {
  const uri: CertificateMapping = { user: 'uri', pattern: 'urn:aa{user}aa' };
  assert.deepEqual(named({ uris: ['urn:aaa'] }, uri), []);
  assert.deepEqual(named({ uris: ['urn:aabaa'] }, uri), ['b']);
});

test('names have one form', () => {
  const mapping: CertificateMapping = { user: 'upn', pattern: '{user}' };
  assert.deepEqual(named({ upns: ['e\u0301va', '\u00e9va'] }, mapping), ['\u00e9va']);
});

test('names are read from the bytes: a common name that looks like another field is one name', async () => {
  const authority = await TestAuthority.create();
  const leaf = await authority.client('mallory\\, CN=ada', {
    alternatives: [
      { type: 'email', value: 'ada@example.org' },
      { type: 'url', value: 'urn:user:ada' },
      { type: 'upn', value: 'ada@corp' },
    ],
  });
  const holder = readHolder(new X509Certificate(leaf.cert).raw);
  assert.deepEqual(holder?.names, {
    commonNames: ['mallory, CN=ada'],
    emails: ['ada@example.org'],
    uris: ['urn:user:ada'],
    upns: ['ada@corp'],
  });
  assert.match(holder?.authority ?? '', /^[0-9a-f]{32}$/);
  assert.equal(readHolder(Uint8Array.of(0x30, 0x03, 1, 2, 3)), undefined);
});

test('a certificate with too many names, or one that is too long, names nobody, and is known all the same', async () => {
  const authority = await TestAuthority.create();
  const read = async (count: number, length: number) => {
    const alternatives = Array.from({ length: count - 1 }, (_, index) => {
      return { type: 'email' as const, value: `${String(index).padStart(length - 12, 'x')}@example.org` };
    });
    return readHolder(new X509Certificate((await authority.client('ada', { alternatives })).cert).raw);
  };
  const [good, many, long] = [await read(16, 256), await read(17, 20), await read(2, 257)];
  assert.equal(good?.names.emails.length, 15);
  for (const bad of [many, long]) {
    assert.deepEqual(bad?.names, { commonNames: [], emails: [], uris: [], upns: [] });
    assert.equal(bad?.authority, good?.authority);
  }
});

test('authorities of other names differ, and one is the same however often it is read', async () => {
  const [one, other] = [await TestAuthority.create('One'), await TestAuthority.create('Other')];
  const read = async (authority: TestAuthority) =>
    readHolder(new X509Certificate((await authority.client()).cert).raw)?.authority;
  assert.equal(await read(one), await read(one));
  assert.notEqual(await read(one), await read(other));
});
