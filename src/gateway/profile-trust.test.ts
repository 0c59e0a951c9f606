import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { TestAuthority, type TestLeaf } from '../../test/support/certificates.ts';
import { spkiPin } from '../identity/pki.ts';
import { type OwnTrust, profileTrust } from './profile-trust.ts';

describe('what a profile trusts', () => {
  let built: TestAuthority;
  let outside: TestAuthority;
  let own: OwnTrust;
  let ours: TestLeaf;
  let theirs: TestLeaf;

  before(async () => {
    built = await TestAuthority.create('Built in');
    outside = await TestAuthority.create('Outside');
    ours = await built.server({ names: ['vpn.example.org'] });
    theirs = await outside.server({ names: ['vpn.example.org'] });
    own = { caPem: built.cert, pins: async () => ({ ca: built.pin, leaf: ours.pin, backup: 'backup' }) };
  });

  test('the built-in authority, when it has signed what is in force', async () => {
    assert.deepEqual(await profileTrust('ca', ours.cert, undefined, own), { ca: built.cert, pins: [built.pin] });
    const { pins } = await profileTrust('leaf', ours.cert, undefined, own);
    assert.deepEqual(pins, [ours.pin, 'backup']);
  });

  test('no authority of ours, when a public one has signed it: its root is pinned', async () => {
    const trust = await profileTrust('ca', theirs.cert, undefined, own, [built.cert, outside.cert]);
    assert.deepEqual(trust, { pins: [outside.pin] });
  });

  test("an operator's own authority, named or at the end of the chain", async () => {
    const wanted = { ca: outside.cert.trim(), pins: [outside.pin] };
    const chained = await profileTrust('ca', `${theirs.cert}${outside.cert}`, undefined, own, []);
    assert.deepEqual({ ...chained, ca: chained.ca?.trim() }, wanted);
    const named = await profileTrust('ca', theirs.cert, outside.cert, undefined, []);
    assert.deepEqual({ ...named, ca: named.ca?.trim() }, wanted);
  });

  test('the key itself, when nobody knows who has signed it', async () => {
    assert.deepEqual(await profileTrust('ca', theirs.cert, undefined, own, []), { pins: [spkiPin(theirs.cert)] });
  });
});
