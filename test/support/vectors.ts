/**
 * Writes docs/vectors.json: `node test/support/vectors.ts`.
 *
 * One whole session by the project's own code, with fixed keys, nonces and exporter values, so that another
 * implementation can check every byte. `src/protocol/vectors.test.ts` computes the same without that code.
 */

import { createPrivateKey, createPublicKey, sign } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { encodeGreeting } from '../../src/protocol/frame.ts';
import {
  attachKey,
  attachProof,
  attachProofInput,
  deviceIdOf,
  deviceSignatureInput,
  EXPORTER_LABEL_PREFIX,
  type Exporter,
  nextSecret,
  proxyKey,
  proxyProof,
  proxyProofInput,
  resumeKey,
  resumeProof,
  resumeProofInput,
  sessionSecret,
  Transcript,
} from '../../src/protocol/keys.ts';
import { encodeMessage, toBase64Url } from '../../src/protocol/messages.ts';
import { proxyCredential } from '../../src/protocol/proxy-binding.ts';
import { primitives } from './protocol.ts';

const fill = (length: number, byte: number) => new Uint8Array(length).fill(byte);

/** An exporter value for each label; those that depend on a transcript have one value per connection. */
function exporterFor(base: number): Exporter {
  const labels = ['auth', 'session', 'attach', 'resume', 'proxy'];
  return (label) => fill(32, base + labels.indexOf(label.slice(EXPORTER_LABEL_PREFIX.length)));
}

/** All vectors, bytes as hex. */
export function computeVectors() {
  const seed = fill(32, 0x42);
  const privateKey = createPrivateKey({
    key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]),
    format: 'der',
    type: 'pkcs8',
  });
  const publicKey = new Uint8Array(createPublicKey(privateKey).export({ type: 'spki', format: 'der' }));
  const deviceId = deviceIdOf(primitives, publicKey);
  const serverId = fill(32, 0x51);
  const session = fill(16, 0x5e);
  const serverName = 'vpn.example.com';
  const token = Uint8Array.from({ length: 40 }, (_, i) => i);
  const signed = (bytes: Uint8Array) => new Uint8Array(sign(null, bytes, privateKey));

  const exporter = exporterFor(0xa0);
  const transcript = new Transcript(primitives);
  const greeting = encodeGreeting();
  const login = encodeMessage('login', {
    version: 1,
    device: { id: deviceId, algorithm: 'ed25519', publicKey },
    purpose: 'enrol',
    serverName,
    features: ['super', 'attach'],
    client: { name: 'customvpn', version: '0.1.0', platform: 'linux' },
  });
  const nonce = fill(32, 0x4e);
  const challenge = encodeMessage('challenge', { nonce, steps: [{ kind: 'device' }, { kind: 'token' }], attempt: 1 });
  transcript.add(greeting, login, challenge);
  const asked = transcript.digest();
  const signedBytes = deviceSignatureInput({
    purpose: 'enrol',
    serverName,
    serverId,
    exporterAuth: fill(32, 0xa0),
    nonce,
    deviceId,
    transcript: asked,
  });
  const signature = signed(signedBytes);
  const answer = encodeMessage('answer', {
    answers: [
      { kind: 'device', value: toBase64Url(signature) },
      { kind: 'token', value: toBase64Url(token) },
    ],
  });
  const accept = encodeMessage('accept', {
    session,
    epoch: 0,
    worker: 0,
    features: ['super', 'attach'],
    user: 'zoë',
    deviceId,
    absoluteSeconds: 86_400,
    idleSeconds: 0,
    graceSeconds: 300,
  });
  transcript.add(answer, accept);
  const through = transcript.digest();
  const secret0 = sessionSecret(exporter, through);
  const kAttach = attachKey(primitives, secret0);
  const kResume = resumeKey(primitives, secret0);

  const dataExporter = exporterFor(0xb0);
  const facts = { session, epoch: 0, slot: 0, generation: 0, flags: 0 };

  const proxyExporter = exporterFor(0xd0);
  const kProxy = proxyKey(primitives, secret0);

  const newExporter = exporterFor(0xc0);
  const resumeNonce = fill(32, 0x4f);
  const resumeTranscript = new Transcript(primitives);
  const resume = encodeMessage('resume', {
    version: 1,
    session,
    epoch: 0,
    deviceId,
    serverName,
    features: ['super', 'attach'],
  });
  const resumeChallenge = encodeMessage('challenge', {
    nonce: resumeNonce,
    steps: [{ kind: 'resume' }, { kind: 'device' }],
    attempt: 1,
  });
  resumeTranscript.add(greeting, resume, resumeChallenge);
  const resumeFacts = { session, epoch: 0, nonce: resumeNonce, transcript: resumeTranscript.digest() };
  const resumeSignedBytes = deviceSignatureInput({
    purpose: 'resume',
    serverName,
    serverId,
    exporterAuth: fill(32, 0xc0),
    nonce: resumeNonce,
    deviceId,
    transcript: resumeFacts.transcript,
  });
  const clientProof = resumeProof(primitives, kResume, 'client resume', resumeFacts, newExporter);
  const resumeSignature = signed(resumeSignedBytes);
  const resumeAnswer = encodeMessage('answer', {
    answers: [
      { kind: 'resume', value: toBase64Url(clientProof) },
      { kind: 'device', value: toBase64Url(resumeSignature) },
    ],
  });
  resumeTranscript.add(resumeAnswer);
  const answeredFacts = { ...resumeFacts, transcript: resumeTranscript.digest() };
  const serverProof = resumeProof(primitives, kResume, 'server resume', answeredFacts, newExporter);
  const resumed = encodeMessage('resumed', {
    epoch: 1,
    worker: 0,
    features: ['super', 'attach'],
    absoluteSeconds: 80_000,
    idleSeconds: 0,
    graceSeconds: 300,
    proof: serverProof,
  });
  resumeTranscript.add(resumed);
  const doneFacts = { session, epoch: 1, nonce: resumeNonce, transcript: resumeTranscript.digest() };
  const secret1 = nextSecret(primitives, kResume, newExporter, doneFacts.transcript);
  const kResume1 = resumeKey(primitives, secret1);

  return hex({
    device: { seed, publicKey, deviceId },
    serverId,
    serverName,
    login: {
      exporterAuth: fill(32, 0xa0),
      exporterSession: fill(32, 0xa1),
      greeting,
      login,
      challenge,
      transcriptThroughChallenge: asked,
      signedBytes,
      signature,
      answer,
      accept,
      transcriptThroughAccept: through,
      secret: secret0,
      attachKey: kAttach,
      resumeKey: kResume,
    },
    attach: {
      exporterAttach: fill(32, 0xb2),
      session,
      epoch: 0,
      slot: 0,
      generation: 0,
      flags: 0,
      clientProofInput: attachProofInput('client', facts, dataExporter),
      clientProof: attachProof(primitives, kAttach, 'client', facts, dataExporter),
      serverProofInput: attachProofInput('server', facts, dataExporter),
      serverProof: attachProof(primitives, kAttach, 'server', facts, dataExporter),
    },
    proxy: {
      exporterProxy: fill(32, 0xd4),
      session,
      epoch: 0,
      key: kProxy,
      clientProofInput: proxyProofInput('client', { session, epoch: 0 }, proxyExporter),
      clientProof: proxyProof(primitives, kProxy, 'client', { session, epoch: 0 }, proxyExporter),
      serverProof: proxyProof(primitives, kProxy, 'server', { session, epoch: 0 }, proxyExporter),
      credential: proxyCredential(primitives, { session, epoch: 0, key: kProxy }, proxyExporter),
    },
    resume: {
      exporterAuth: fill(32, 0xc0),
      exporterSession: fill(32, 0xc1),
      exporterResume: fill(32, 0xc3),
      nonce: resumeNonce,
      resume,
      challenge: resumeChallenge,
      transcriptThroughChallenge: resumeFacts.transcript,
      signedBytes: resumeSignedBytes,
      signature: resumeSignature,
      clientProofInput: resumeProofInput('client resume', resumeFacts, newExporter),
      clientProof,
      answer: resumeAnswer,
      transcriptThroughAnswer: answeredFacts.transcript,
      serverProofInput: resumeProofInput('server resume', answeredFacts, newExporter),
      serverProof,
      resumed,
      transcriptThroughResumed: doneFacts.transcript,
      secret: secret1,
      resumeKey: kResume1,
      doneProofInput: resumeProofInput('client resume done', doneFacts, newExporter),
      doneProof: resumeProof(primitives, kResume1, 'client resume done', doneFacts, newExporter),
    },
    frames: {
      ping: encodeMessageLess(0x07, fill(2, 0x61)),
      close: encodeMessage('close', { reason: 'replaced' }),
      switch: encodeMessage('switch', { slot: 1, generation: 2 }),
      drain: encodeMessage('drain', { seconds: 900 }),
      moved: encodeMessage('moved', { worker: 3 }),
      // A gratuitous ARP request of 192.0.2.9.
      ethernet: encodeMessageLess(
        0x23,
        Uint8Array.fromHex(
          'ffffffffffff02c5c000020908060001080006040001' + '02c5c0000209c0000209' + '000000000000c0000209',
        ),
      ),
    },
    // Made once: another version of zstd may make other bytes of the same.
    compressed: {
      frame: Uint8Array.fromHex(
        '240000312000014828b52ffd0000250100e8450001484242400040112b090a080002c00002509c400035013485a7610100a1a8c009',
      ),
      expanded: Uint8Array.fromHex(
        '20000148450001484242400040112b090a080002c00002509c400035013485a7' + '61'.repeat(300),
      ),
    },
  });
}

function encodeMessageLess(type: number, payload: Uint8Array): Uint8Array {
  return Uint8Array.of(type, 0, 0, payload.length, ...payload);
}

type Hex<T> = T extends Uint8Array ? string : T extends object ? { [K in keyof T]: Hex<T[K]> } : T;

function hex<T>(value: T): Hex<T>;
function hex(value: unknown): unknown {
  if (value instanceof Uint8Array) return value.toHex();
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, hex(inner)]));
}

if (import.meta.main) {
  const file = new URL('../../docs/vectors.json', import.meta.url);
  await writeFile(file, `${JSON.stringify(computeVectors(), null, 2)}\n`);
}
