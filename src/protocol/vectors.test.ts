// docs/vectors.json is what another implementation is checked against. Here every value is computed again with
// node:crypto and the specification's byte layouts alone, and then compared with what the project's own code makes.
import assert from 'node:assert/strict';
import { createHash, createHmac, createPublicKey, hkdfSync, verify } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { computeVectors } from '../../test/support/vectors.ts';

const vectors: ReturnType<typeof computeVectors> = JSON.parse(
  await readFile(new URL('../../docs/vectors.json', import.meta.url), 'utf8'),
);
const { device, login, attach, proxy, resume } = vectors;

const ascii = (text: string) => Buffer.from(text, 'latin1').toString('hex');
const sha256 = (...parts: string[]) =>
  createHash('sha256')
    .update(Buffer.from(parts.join(''), 'hex'))
    .digest('hex');
const hmac = (key: string, input: string) =>
  createHmac('sha256', Buffer.from(key, 'hex')).update(Buffer.from(input, 'hex')).digest('hex');
/** HKDF-Expand alone: RFC 5869 with one block is HMAC(key, info ‖ 0x01). */
const expand = (key: string, info: string) => hmac(key, `${ascii(info)}01`);
const signs = (bytes: string, signature: string) => {
  const key = createPublicKey({ key: Buffer.from(device.publicKey, 'hex'), format: 'der', type: 'spki' });
  return verify(null, Buffer.from(bytes, 'hex'), key, Buffer.from(signature, 'hex'));
};
const signedBytes = (purpose: string, exporterAuth: string, nonce: string, transcript: string) =>
  [
    '20'.repeat(64),
    ascii('customvpn/1 device client'),
    '00',
    purpose,
    '0f',
    ascii(vectors.serverName),
    vectors.serverId,
    exporterAuth,
    nonce,
    device.deviceId,
    transcript,
  ].join('');

test('REQ-VECTOR-001: the code makes the vectors of docs/vectors.json', () => {
  assert.deepEqual(vectors, JSON.parse(JSON.stringify(computeVectors())));
});

test('REQ-VECTOR-001: device id, transcript, signature and S(0) of the vectors', () => {
  assert.equal(device.deviceId, sha256(device.publicKey).slice(0, 32));
  assert.equal(login.greeting, ascii('OK VPN-HELLO 1\r\n'));
  assert.equal(login.transcriptThroughChallenge, sha256(login.greeting, login.login, login.challenge));
  assert.equal(
    login.signedBytes,
    signedBytes('03', login.exporterAuth, '4e'.repeat(32), login.transcriptThroughChallenge),
  );
  assert.ok(signs(login.signedBytes, login.signature));
  const whole = [login.greeting, login.login, login.challenge, login.answer, login.accept];
  assert.equal(login.transcriptThroughAccept, sha256(...whole));
  assert.equal(login.secret, login.exporterSession);
  assert.equal(login.attachKey, expand(login.secret, 'customvpn/1 attach'));
  assert.equal(login.resumeKey, expand(login.secret, 'customvpn/1 resume'));
});

test('REQ-VECTOR-001: attach proofs of the vectors', () => {
  for (const [role, input, proof] of [
    ['client', attach.clientProofInput, attach.clientProof],
    ['server', attach.serverProofInput, attach.serverProof],
  ] as const) {
    const expected = [
      ascii(`${role} attach`),
      '00',
      attach.session,
      '00000000',
      '00',
      '00000000',
      attach.exporterAttach,
      '00',
    ];
    assert.equal(input, expected.join(''));
    assert.equal(proof, hmac(login.attachKey, input));
  }
});

test('REQ-VECTOR-001: the proofs of an HTTP/2 connection of the vectors', () => {
  const input = (role: string) =>
    [ascii(`${role} proxy`), '00', proxy.session, '00000000', proxy.exporterProxy].join('');
  assert.equal(proxy.key, expand(login.secret, 'customvpn/1 proxy'));
  assert.equal(proxy.clientProofInput, input('client'));
  assert.equal(proxy.clientProof, hmac(proxy.key, input('client')));
  assert.equal(proxy.serverProof, hmac(proxy.key, input('server')));
  const bytes = Buffer.from(`${proxy.session}00000000${proxy.clientProof}`, 'hex');
  assert.equal(proxy.credential, `CustomVPN ${bytes.toString('base64url')}`);
});

test('REQ-VECTOR-001: resume proofs and S(1) of the vectors', () => {
  const input = (kind: string, epoch: string, transcript: string) =>
    [ascii(kind), '00', attach.session, epoch, resume.nonce, resume.exporterResume, transcript].join('');
  assert.equal(resume.transcriptThroughChallenge, sha256(login.greeting, resume.resume, resume.challenge));
  assert.equal(
    resume.signedBytes,
    signedBytes('02', resume.exporterAuth, resume.nonce, resume.transcriptThroughChallenge),
  );
  assert.ok(signs(resume.signedBytes, resume.signature));
  assert.equal(resume.clientProofInput, input('client resume', '00000000', resume.transcriptThroughChallenge));
  assert.equal(resume.clientProof, hmac(login.resumeKey, resume.clientProofInput));
  assert.equal(resume.transcriptThroughAnswer, sha256(login.greeting, resume.resume, resume.challenge, resume.answer));
  assert.equal(resume.serverProofInput, input('server resume', '00000000', resume.transcriptThroughAnswer));
  assert.equal(resume.serverProof, hmac(login.resumeKey, resume.serverProofInput));
  const whole = [login.greeting, resume.resume, resume.challenge, resume.answer, resume.resumed];
  assert.equal(resume.transcriptThroughResumed, sha256(...whole));
  assert.equal(resume.secret, hmac(login.resumeKey, resume.exporterSession));
  assert.equal(resume.resumeKey, expand(resume.secret, 'customvpn/1 resume'));
  assert.equal(resume.doneProofInput, input('client resume done', '00000001', resume.transcriptThroughResumed));
  assert.equal(resume.doneProof, hmac(resume.resumeKey, resume.doneProofInput));
});

test('the one-block HKDF-Expand used here is that of node:crypto', () => {
  const key = Buffer.from(hkdfSync('sha256', 'ikm', 'salt', 'info', 32)).toString('hex');
  assert.equal(key, hmac(hmac(ascii('salt'), ascii('ikm')), `${ascii('info')}01`));
});
