import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, exporterOf, primitives, utf8 } from '../../test/support/protocol.ts';
import {
  attachKey,
  attachProof,
  attachProofInput,
  deviceIdOf,
  deviceSignatureInput,
  exportKey,
  hkdfExpand,
  hkdfExtract,
  MAX_TRANSCRIPT_BYTES,
  nextSecret,
  parseDeviceSignatureInput,
  resumeKey,
  resumeProofInput,
  serverIdOf,
  sessionSecret,
  Transcript,
} from './keys.ts';

const fill = (length: number, byte: number) => new Uint8Array(length).fill(byte);
const hex = (text: string) => Uint8Array.fromHex(text);

const SIGNED = {
  purpose: 'enrol',
  serverName: 'vpn.example.com',
  serverId: fill(32, 1),
  exporterAuth: fill(32, 2),
  nonce: fill(32, 3),
  deviceId: fill(16, 4),
  transcript: fill(32, 5),
} as const;

test('REQ-KEY-001: the exporter is asked for 32 bytes with the full label and a context, empty if there is none', () => {
  const asked: [string, number][] = [];
  const exporter = (label: string, context: Uint8Array) => {
    asked.push([label, context.length]);
    return fill(32, 9);
  };
  exportKey(exporter, 'auth');
  exportKey(exporter, 'session', fill(32, 0));
  exportKey(exporter, 'datagram', fill(1, 0));
  assert.deepEqual(asked, [
    ['EXPORTER-customvpn-1-auth', 0],
    ['EXPORTER-customvpn-1-session', 32],
    ['EXPORTER-customvpn-1-datagram', 1],
  ]);
  assert.throws(() => exportKey(() => fill(16, 0), 'auth'), code('ERR_INVARIANT'));
});

test('REQ-KEY-002: the transcript is SHA-256 over everything added, as it was when it was added', () => {
  const transcript = new Transcript(primitives);
  const part = Buffer.from('bc');
  transcript.add(utf8('a'), part);
  part.fill(0);
  assert.equal(transcript.digest().toHex(), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
  transcript.add(utf8('d'));
  assert.deepEqual(transcript.digest(), primitives.sha256(utf8('abcd')));
  const full = new Transcript(primitives);
  full.add(fill(MAX_TRANSCRIPT_BYTES, 0));
  assert.throws(() => full.add(fill(1, 0)), code('ERR_FRAME_TOO_LONG'));
});

test('REQ-KEY-003: HKDF is that of RFC 5869, test case 1', () => {
  const key = hkdfExtract(primitives, hex('000102030405060708090a0b0c'), fill(22, 0x0b));
  assert.equal(key.toHex(), '077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5');
  assert.equal(
    hkdfExpand(primitives, key, hex('f0f1f2f3f4f5f6f7f8f9'), 42).toHex(),
    '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
  );
});

test('REQ-KEY-003: HKDF is that of RFC 5869, test cases 2 and 3', () => {
  const range = (from: number, to: number) => Uint8Array.from({ length: to - from + 1 }, (_, i) => from + i);
  const key = hkdfExtract(primitives, range(0x60, 0xaf), range(0x00, 0x4f));
  assert.equal(key.toHex(), '06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244');
  assert.equal(
    hkdfExpand(primitives, key, range(0xb0, 0xff), 82).toHex(),
    'b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09' +
      'da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87',
  );
  const third = hkdfExtract(primitives, fill(0, 0), fill(22, 0x0b));
  assert.equal(
    hkdfExpand(primitives, third, fill(0, 0), 42).toHex(),
    '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8',
  );
  assert.equal(hkdfExpand(primitives, third, fill(0, 0), 255 * 32).length, 8_160);
  assert.throws(() => hkdfExpand(primitives, third, fill(0, 0), 8_161), code('ERR_INVARIANT'));
});

test('REQ-KEY-004: S(0) is the exporter with the transcript through ACCEPT', () => {
  const transcript = fill(32, 6);
  assert.deepEqual(
    sessionSecret(exporterOf('a'), transcript),
    exporterOf('a')('EXPORTER-customvpn-1-session', transcript),
  );
});

test('REQ-KEY-005: S(n+1) mixes K_resume(n) with the new connection; neither alone gives it', () => {
  const transcript = fill(32, 6);
  const secret = fill(32, 7);
  const next = nextSecret(primitives, secret, exporterOf('b'), transcript);
  assert.deepEqual(next, primitives.hmacSha256(secret, sessionSecret(exporterOf('b'), transcript)));
  assert.notDeepEqual(next, nextSecret(primitives, fill(32, 8), exporterOf('b'), transcript));
  assert.notDeepEqual(next, nextSecret(primitives, secret, exporterOf('c'), transcript));
});

test('REQ-KEY-006: K_attach and K_resume are HKDF-Expand with their labels', () => {
  const secret = fill(32, 7);
  assert.deepEqual(attachKey(primitives, secret), primitives.hmacSha256(secret, utf8('customvpn/1 attach'), hex('01')));
  assert.deepEqual(resumeKey(primitives, secret), primitives.hmacSha256(secret, utf8('customvpn/1 resume'), hex('01')));
});

test('REQ-DEVICE-001: a device is named by the first 16 bytes of SHA-256 of its public key', () => {
  assert.equal(deviceIdOf(primitives, utf8('abc')).toHex(), 'ba7816bf8f01cfea414140de5dae2223');
});

test('REQ-DEVICE-002: the server is named by SHA-256 of the public key of its leaf', () => {
  assert.deepEqual(serverIdOf(primitives, utf8('abc')), primitives.sha256(utf8('abc')));
});

test('REQ-DEVICE-003: the bytes that a device signs', () => {
  const expected = [
    '20'.repeat(64),
    '637573746f6d76706e2f312064657669636520636c69656e74',
    '00',
    '03',
    '0f',
    '76706e2e6578616d706c652e636f6d',
    '01'.repeat(32),
    '02'.repeat(32),
    '03'.repeat(32),
    '04'.repeat(16),
    '05'.repeat(32),
  ].join('');
  assert.equal(deviceSignatureInput(SIGNED).toHex(), expected);
  const at = 64 + 25 + 1;
  assert.equal(deviceSignatureInput({ ...SIGNED, purpose: 'login' })[at], 1);
  assert.equal(deviceSignatureInput({ ...SIGNED, purpose: 'resume' })[at], 2);
  assert.throws(() => deviceSignatureInput({ ...SIGNED, nonce: fill(31, 0) }), code('ERR_INVARIANT'));
  assert.throws(() => deviceSignatureInput({ ...SIGNED, serverName: '' }), code('ERR_INVARIANT'));
  assert.throws(() => deviceSignatureInput({ ...SIGNED, serverName: 'x'.repeat(256) }), code('ERR_INVARIANT'));
});

test('REQ-DEVICE-004: what was signed is taken apart again, and nothing else is', () => {
  const bytes = deviceSignatureInput(SIGNED);
  assert.deepEqual(parseDeviceSignatureInput(bytes), SIGNED);
  const wrong = [bytes.subarray(1), bytes.subarray(0, -1), Uint8Array.of(...bytes, 0), new Uint8Array(0)];
  for (const [at, value] of [
    [0, 0],
    [70, 0],
    [90, 0],
    [90, 4],
    [91, 14],
    [91, 0],
    [92, 0xff],
  ] as const) {
    const changed = bytes.slice();
    changed[at] = value;
    wrong.push(changed);
  }
  for (const input of wrong) assert.throws(() => parseDeviceSignatureInput(input), code('ERR_MESSAGE_SYNTAX'));
});

test('REQ-PROOF-001: the bytes of an attach proof, and its key', () => {
  const facts = { session: fill(16, 0xaa), epoch: 0x01020304, slot: 5, generation: 0xfffffffe, flags: 6 };
  const exported = exporterOf('c')('EXPORTER-customvpn-1-attach', facts.session).toHex();
  const rest = `00${'aa'.repeat(16)}0102030405fffffffe${exported}06`;
  assert.equal(attachProofInput('client', facts, exporterOf('c')).toHex(), utf8('client attach').toHex() + rest);
  assert.equal(attachProofInput('server', facts, exporterOf('c')).toHex(), utf8('server attach').toHex() + rest);
  assert.deepEqual(
    attachProof(primitives, fill(32, 1), 'server', facts, exporterOf('c')),
    primitives.hmacSha256(fill(32, 1), attachProofInput('server', facts, exporterOf('c'))),
  );
});

test('REQ-PROOF-002: the bytes of a resume proof', () => {
  const facts = { session: fill(16, 0xaa), epoch: 2, nonce: fill(32, 0xbb), transcript: fill(32, 0xcc) };
  const exported = exporterOf('c')('EXPORTER-customvpn-1-resume', facts.session).toHex();
  for (const kind of ['client resume', 'server resume', 'client resume done'] as const) {
    assert.equal(
      resumeProofInput(kind, facts, exporterOf('c')).toHex(),
      `${utf8(kind).toHex()}00${'aa'.repeat(16)}00000002${'bb'.repeat(32)}${exported}${'cc'.repeat(32)}`,
    );
  }
});
