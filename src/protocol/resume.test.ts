import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, createDevice, exporterOf, primitives, split, utf8 } from '../../test/support/protocol.ts';
import { encodeFrame, encodeGreeting, FrameType } from './frame.ts';
import { hkdfExtract, nextSecret, parseDeviceSignatureInput, resumeKey } from './keys.ts';
import { LoginServer } from './login.ts';
import { decodeMessage, encodeMessage } from './messages.ts';
import { checkResumeDone, ResumeClient, type ResumeEvidence, ResumeServer } from './resume.ts';

const SECRET = new Uint8Array(32).fill(3);
const SESSION = new Uint8Array(16).fill(0x5e);
const TIMES = { worker: 1, absoluteSeconds: 60, idleSeconds: 0, graceSeconds: 300 };
const NONCE = new Uint8Array(32).fill(1);

function ends(connection = 'new', secret = SECRET) {
  const device = createDevice();
  const foundation = { primitives, exporter: exporterOf(connection), serverId: new Uint8Array(32).fill(2) };
  const client = new ResumeClient({
    ...foundation,
    features: ['attach', 'resume'],
    session: SESSION,
    epoch: 4,
    secret,
    serverName: 'VPN.example',
    device,
  });
  const start = client.start(encodeGreeting());
  assert.ok(start.kind === 'send');
  const opening = new LoginServer({ ...foundation, features: [] }).receive(...split(start.frame));
  assert.ok(opening.kind === 'resume');
  const server = new ResumeServer({ ...foundation, features: ['resume', 'attach', 'more'] }, opening.payload);
  return { client, server, device, start: start.frame };
}

type Ends = ReturnType<typeof ends>;

function toEvidence({ client, server, device }: Ends): { evidence: ResumeEvidence; frames: Uint8Array[] } {
  const challenge = server.challenge(NONCE);
  assert.ok(challenge.kind === 'send');
  const asked = client.receive(...split(challenge.frame));
  assert.ok(asked.kind === 'answer');
  const answer = client.answer(device.sign(asked.signedBytes));
  assert.ok(answer.kind === 'send');
  const verify = server.receive(...split(answer.frame));
  assert.ok(verify.kind === 'verify');
  return { evidence: verify.evidence, frames: [challenge.frame, answer.frame] };
}

test('REQ-RESUME-001: RESUME, CHALLENGE, ANSWER, RESUMED, RESUME_DONE ratchet the secret at both ends', () => {
  const both = ends();
  const { evidence, frames } = toEvidence(both);
  const key = resumeKey(primitives, SECRET);
  assert.deepEqual(primitives.hmacSha256(key, evidence.proofInput), evidence.proof);
  assert.ok(both.device.verify(evidence.signedBytes, evidence.signature));
  assert.equal(parseDeviceSignatureInput(evidence.signedBytes).purpose, 'resume');
  const done = both.server.accept({ ...TIMES, proof: primitives.hmacSha256(key, evidence.serverProofInput) });
  assert.ok(done.kind === 'resumed');
  const resumed = both.client.receive(...split(done.frame));
  assert.ok(resumed.kind === 'resumed');
  assert.equal(resumed.resumed.epoch, 5);
  assert.deepEqual(resumed.resumed.features, ['resume', 'attach']);

  const transcript = primitives.sha256(encodeGreeting(), both.start, ...frames, done.frame);
  assert.deepEqual(resumed.secret, nextSecret(primitives, key, exporterOf('new'), transcript));
  assert.deepEqual(hkdfExtract(primitives, key, done.mix), resumed.secret);
  const [type, payload] = split(resumed.frame);
  assert.equal(type, FrameType.resumeDone);
  checkResumeDone(primitives, resumeKey(primitives, resumed.secret), done.doneInput, payload);
  assert.throws(() => checkResumeDone(primitives, key, done.doneInput, payload), code('ERR_RESUME_PROOF'));
});

test('REQ-RESUME-002: proof and signature hold on one connection, for one nonce and one secret', () => {
  const device = createDevice();
  const recorded = toEvidence(ends()).evidence;
  const elsewhere = toEvidence(ends('other')).evidence;
  const key = resumeKey(primitives, SECRET);
  assert.notDeepEqual(primitives.hmacSha256(key, elsewhere.proofInput), recorded.proof);
  assert.equal(device.verify(recorded.signedBytes, recorded.signature), false);
  const thief = toEvidence(ends('new', new Uint8Array(32).fill(9))).evidence;
  assert.notDeepEqual(primitives.hmacSha256(key, thief.proofInput), thief.proof);
});

test('REQ-RESUME-003: a client takes no RESUMED without the server’s proof, or of another epoch', () => {
  for (const wrong of ['proof', 'epoch', 'features'] as const) {
    const both = ends();
    const { evidence } = toEvidence(both);
    const good = primitives.hmacSha256(resumeKey(primitives, SECRET), evidence.serverProofInput);
    const resumed = {
      ...TIMES,
      epoch: wrong === 'epoch' ? 6 : 5,
      features: wrong === 'features' ? ['super'] : [],
      proof: wrong === 'proof' ? evidence.proof : good,
    };
    assert.throws(
      () => both.client.receive(...split(encodeMessage('resumed', resumed))),
      code(wrong === 'features' ? 'ERR_MESSAGE_FIELD' : 'ERR_RESUME_PROOF'),
    );
    assert.ok(both.client.over);
  }
});

test('REQ-RESUME-005: frames in the wrong state, of the server and of the client', () => {
  const close = split(encodeMessage('close', { reason: 'shutdown' }));
  const answer = [FrameType.answer, utf8('{"answers":[{"kind":"device","value":""}]}')] as const;
  assert.throws(() => ends().server.receive(...answer), code('ERR_FRAME_STATE'));
  const asked = ends().server;
  asked.challenge(NONCE);
  assert.throws(() => asked.receive(...answer), code('ERR_MESSAGE_FIELD'));
  assert.deepEqual(asked.accept({ ...TIMES, proof: NONCE }), { kind: 'nothing' });
  const verifying = ends();
  toEvidence(verifying);
  assert.throws(() => verifying.server.receive(...answer), code('ERR_FRAME_STATE'));
  assert.throws(() => ends().server.accept({ ...TIMES, proof: NONCE }), code('ERR_INVARIANT'));
  assert.deepEqual(ends().server.receive(...close), { kind: 'closed', reason: 'shutdown' });
  const refused = ends();
  const rejected = refused.server.reject('session_replaced');
  assert.ok(rejected.kind === 'rejected');
  const failed = refused.client.receive(...split(rejected.frame));
  assert.ok(failed.kind === 'failed' && failed.error.code === 'ERR_SESSION_REPLACED');
  assert.throws(() => ends().client.receive(FrameType.resumed, utf8('{}')), code('ERR_FRAME_STATE'));
  const wrongSteps = encodeMessage('challenge', { nonce: NONCE, steps: [{ kind: 'device' }], attempt: 1 });
  assert.throws(() => ends().client.receive(...split(wrongSteps)), code('ERR_MESSAGE_FIELD'));
});

test('REQ-RESUME-006: another version is refused', () => {
  const { start } = ends();
  const resume = { ...decodeMessage('resume', split(start)[1]), version: 2 };
  const foundation = { primitives, exporter: exporterOf('new'), serverId: NONCE, features: [] };
  const server = new ResumeServer(foundation, split(encodeMessage('resume', resume))[1]);
  const output = server.challenge(NONCE);
  assert.ok(output.kind === 'rejected' && output.code === 'version');
  assert.throws(
    () => new ResumeServer(foundation, encodeFrame(FrameType.resume, utf8('{}'))),
    code('ERR_MESSAGE_SYNTAX'),
  );
});
