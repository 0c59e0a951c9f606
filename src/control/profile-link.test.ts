// A profile as a link: what comes back is what went in, and whatever is damaged is refused without a word of it.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { TestAuthority } from '../../test/support/certificates.ts';
import { isVpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import { encodeToken, formatProfile, newProfileId, type Profile, parseProfile } from './profile.ts';
import { decodeProfileLink, encodeProfileLink, isProfileLink } from './profile-link.ts';

const pin = randomBytes(32).toString('base64');
const token = randomBytes(40);

function profile(change: Partial<Profile> = {}): Profile {
  const text = formatProfile({
    version: 1,
    id: newProfileId(),
    name: 'alice',
    token: new Secret<Uint8Array>(token),
    tokenExpires: '2030-01-01T00:00:00.000Z',
    pins: [pin],
    ca: CA,
    server: { hosts: ['vpn.example.org', '192.0.2.1'], port: 443, name: 'vpn.example.org' },
    ...change,
  });
  return parseProfile(text, 'test');
}

const CA = (await TestAuthority.create()).cert;

test('a link holds the whole profile, in a line that a QR code can hold', () => {
  const given = profile();
  const link = encodeProfileLink(given);
  assert.ok(isProfileLink(`  ${link}\n`));
  assert.ok(link.length < 1200, `${link.length} characters`);
  const read = decodeProfileLink(`\n${link} \n`);
  assert.equal(formatProfile(read), formatProfile(given));
  assert.equal(encodeToken(read.token?.reveal() ?? new Uint8Array()), encodeToken(token));
});

test('profiles without a CA, and with two, come back as they were', () => {
  for (const ca of [undefined, `${CA.trim()}\n${CA.trim()}`]) {
    const { ca: _, ...rest } = profile();
    const given = { ...rest, ...(ca === undefined ? {} : { ca }) };
    assert.equal(formatProfile(decodeProfileLink(encodeProfileLink(given))), formatProfile(given));
  }
});

test('a link that is cut off, changed or of another kind is refused, and no error repeats it', () => {
  const link = encodeProfileLink(profile());
  const bomb = `customvpn:1.${deflateRawSync(Buffer.alloc(4 << 20)).toString('base64url')}`;
  const wrong = [
    link.slice(0, -20),
    link.slice(0, 40),
    `${link.slice(0, 100)} ${link.slice(100)}`,
    'customvpn:1.',
    'customvpn:2.AAAA',
    'https://vpn.example.org/',
    bomb,
  ];
  assert.throws(() => decodeProfileLink(bomb), { code: 'ERR_CONFIG_SYNTAX' }, 'nothing large is made of little');
  for (const text of wrong) {
    assert.throws(
      () => decodeProfileLink(text),
      (error: unknown) => {
        assert.ok(isVpnError(error, 'ERR_CONFIG_SYNTAX', 'ERR_CONFIG_VALUE', 'ERR_CONFIG_KEY'));
        assert.ok(!error.message.includes(link.slice(20, 60)));
        return true;
      },
      text.slice(0, 30),
    );
  }
  assert.ok(!isProfileLink('version = 1'));
});
