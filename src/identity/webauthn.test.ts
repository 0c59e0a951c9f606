/** Passkeys: what is taken for one, and each single thing that is not. */

import assert from 'node:assert/strict';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { SoftPasskey } from '../../test/support/authenticator.ts';
import { checkNewPasskey, checkPasskeyUse } from './webauthn.ts';

const challenge = randomBytes(32);
const asked = { challenge, origin: 'https://vpn.example:8443', host: 'vpn.example' };
const scene = { ...asked, challenge: challenge.toString('base64url') };

test('a passkey of each kind is made and used', () => {
  for (const kind of ['p256', 'ed25519', 'rsa'] as const) {
    const passkey = new SoftPasskey(kind);
    const made = passkey.made(scene);
    assert.deepEqual(checkNewPasskey(made, asked), { id: Uint8Array.from(passkey.id), count: 0 }, kind);
    passkey.count = 7;
    assert.equal(checkPasskeyUse(passkey.used(scene), passkey.publicKey, asked), 7, kind);
  }
});

const WRONG: readonly (readonly [string, object, RegExp])[] = [
  ['another challenge', { challenge: randomBytes(32).toString('base64url') }, /another question/],
  ['no challenge', { challenge: '' }, /another question/],
  ['another page', { origin: 'https://vpn.example' }, /another page/],
  ['another host', { host: 'example' }, /another host/],
  ['another purpose', { type: 'payment.get' }, /another purpose/],
  ['a frame of another page', { crossOrigin: true }, /frame/],
  ['nobody there', { flags: 0x04 }, /nobody was present/],
  ['a user who was not verified', { flags: 0x01 }, /has not verified/],
];
for (const [what, change, message] of WRONG) {
  test(`${what} is refused, at the making and at the use`, () => {
    const passkey = new SoftPasskey();
    const other = { ...scene, ...change };
    assert.throws(() => checkPasskeyUse(passkey.used(other), passkey.publicKey, asked), {
      code: 'ERR_BAD_REQUEST',
      message,
    });
    const flags = 'flags' in other ? { flags: Number(other.flags) | 0x40 } : {};
    assert.throws(() => checkNewPasskey(passkey.made({ ...other, ...flags }), asked), {
      code: 'ERR_BAD_REQUEST',
      message,
    });
  });
}

test("another passkey's signature, and one of other data, is refused", () => {
  const [passkey, other] = [new SoftPasskey(), new SoftPasskey()];
  const used = passkey.used(scene);
  const refused = { code: 'ERR_BAD_REQUEST', message: /signature/ };
  assert.throws(() => checkPasskeyUse(used, other.publicKey, asked), refused);
  const counted = Buffer.from(used.authenticatorData);
  counted.writeUInt32BE(9, 33);
  assert.throws(() => checkPasskeyUse({ ...used, authenticatorData: counted }, passkey.publicKey, asked), refused);
});

test('what ends too soon, and keys that are none or weak, are refused, whatever they are', () => {
  const passkey = new SoftPasskey();
  const made = passkey.made(scene);
  for (let length = 0; length < made.authenticatorData.length - 1; length++) {
    const authenticatorData = made.authenticatorData.subarray(0, length);
    assert.throws(() => checkNewPasskey({ ...made, authenticatorData }, asked), { code: 'ERR_BAD_REQUEST' });
  }
  const weak = generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey.export({ type: 'spki', format: 'der' });
  const otherCurve = generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey;
  for (const publicKey of [
    weak,
    otherCurve.export({ type: 'spki', format: 'der' }),
    randomBytes(91),
    Buffer.alloc(0),
  ]) {
    assert.throws(() => checkNewPasskey({ ...made, publicKey }, asked), { code: 'ERR_BAD_REQUEST' });
  }
  for (const clientData of ['', 'null', '[]', '\xff', '7']) {
    assert.throws(() => checkNewPasskey({ ...made, clientData: Buffer.from(clientData, 'latin1') }, asked), {
      code: 'ERR_BAD_REQUEST',
    });
  }
});
