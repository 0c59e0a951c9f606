/**
 * A worker that somebody has taken over: it says to auth whatever it likes, about another worker's sessions whose ids it is
 * even told. It gets nothing of them, and the gateway lives.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import type { VpnError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/log.ts';
import { nodePrimitives } from '../../src/base/primitives.ts';
import { VpnClient } from '../../src/client/client.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { parseProfile } from '../../src/control/profile.ts';
import { DialDesk } from '../../src/gateway/auth/dial-desk.ts';
import { AuthService } from '../../src/gateway/auth/service.ts';
import { WorkerLink } from '../../src/gateway/auth/worker-link.ts';
import { gatewayConfigSchema, resolveFiles } from '../../src/gateway/config.ts';
import { Dialler, HostDialNetwork } from '../../src/gateway/dialler.ts';
import { initGateway } from '../../src/gateway/init.ts';
import { workerToAuth } from '../../src/gateway/ipc/messages.ts';
import type { AttachVerdict, ResumeConfirmation, ResumeVerdict, SupervisorPort } from '../../src/gateway/ipc/ports.ts';
import { DetachedSupervisor } from '../../src/gateway/supervisor/detached.ts';
import { WorkerService } from '../../src/gateway/worker/service.ts';
import { MemoryTun } from '../../src/os/tun-memory.ts';
import { DescriptorSender, socketPair } from '../../src/os/unix-socket.ts';
import { attachKey, attachProof, hkdfExtract, resumeKey } from '../../src/protocol/keys.ts';
import { encodeMessage } from '../../src/protocol/messages.ts';
import type { ResumeEvidence } from '../../src/protocol/resume.ts';
import { until } from '../support/world.ts';

const HONEST = 0;
const HOSTILE = 1;
const options = { skip: process.platform === 'linux' ? false : 'needs Linux' };

/** A gateway with an honest worker that has a client, and the bare channel of a hostile one. */
class Siege implements AsyncDisposable {
  readonly undo = new AsyncDisposableStack();
  readonly placed: string[] = [];
  auth!: AuthService;
  worker!: WorkerService;
  client!: VpnClient;
  /** The whole id of the honest worker's session, which the hostile one could not know. */
  key = '';

  /** What auth says to resumes. */
  readonly verdicts: ResumeVerdict[] = [];

  /** S(0) of the client, which its worker has. */
  secret: Uint8Array = new Uint8Array(0);
  /** What the worker was granted, and the bytes it gave auth for S(1). */
  proposed: { mix: Uint8Array; session: Uint8Array; epoch: number; nonce: Uint8Array } | undefined;
  /** How often the application was asked whether a login or a connection is good, and what it says. */
  asked = 0;
  isAuthorized = true;
  /** Milliseconds that auth's clock is ahead. */
  aheadMs = 0;
  /** What auth says to the confirmation of resumes. */
  readonly confirmed: unknown[] = [];

  /**
   * @param bend what the worker of the client makes of a resume before it asks auth; with it, the client resumes every 2 s
   * @param forge what it makes of the confirmation
   */
  static async open(
    bend?: (evidence: ResumeEvidence) => ResumeEvidence,
    forge?: (siege: Siege, confirmation: ResumeConfirmation) => ResumeConfirmation,
  ): Promise<Siege> {
    const siege = new Siege();
    const dir = mkdtempSync(join(tmpdir(), 'customvpn-siege-'));
    siege.undo.defer(() => rmSync(dir, { recursive: true }));
    await initGateway(dir, { names: ['localhost'], pool: ['10.20.0.0/24'] });
    const parsed = gatewayConfigSchema.parse({
      address: '127.0.0.1',
      port: 0,
      names: ['localhost'],
      pool: ['10.20.0.0/24'],
      data: { channels: 2 },
      ...(bend === undefined ? {} : { session: { rekeySeconds: 2 } }),
    });
    const config = resolveFiles(parsed, dir);
    const log = silentLogger;
    const keys: string[] = [];
    siege.auth = await AuthService.open({
      config,
      workers: 2,
      stateDir: dir,
      events: { started: ({ key }) => void keys.push(key), ended: () => {} },
      authorize: () => {
        siege.asked += 1;
        return siege.isAuthorized;
      },
      clock: { ...systemClock, now: () => systemClock.now() + siege.aheadMs },
      log,
    });
    siege.undo.defer(() => siege.auth.close());
    const tun = new MemoryTun({ name: 'gw0', mtu: 1500 });
    const supervisor = DetachedSupervisor.open({ config, devices: { primary: tun } });
    siege.undo.defer(() => supervisor.close());
    const watched: SupervisorPort = {
      place: async (_lease, worker) => void siege.placed.push(`to ${worker}`),
      unplace: async () => void siege.placed.push('home'),
      update: async () => {},
      takeBack: async () => {},
      reloaded: () => {},
      enforce: async () => {},
      admit: async () => {},
      dismiss: async () => {},
      report: async () => ({ counters: {}, warnings: [] }),
    };
    await siege.auth.begin({ supervisor: watched, port: supervisor.port, useCredentials: async () => {} });
    const gate = siege.auth.gateOf(HONEST);
    const resume = gate.resume.bind(gate);
    let evidenced: ResumeEvidence | undefined;
    gate.resume = async (evidence, about) => {
      evidenced = evidence;
      const verdict = await resume(bend?.(evidence) ?? evidence, about);
      siege.verdicts.push(verdict);
      return verdict;
    };
    const establish = gate.establish.bind(gate);
    gate.establish = async (session, secret, features) => {
      siege.secret = secret.slice();
      await establish(session, secret, features);
    };
    const propose = gate.proposeResume.bind(gate);
    gate.proposeResume = async (granted, mix) => {
      if (evidenced !== undefined) siege.proposed = { ...evidenced, mix: mix.slice() };
      await propose(granted, mix);
    };
    const confirm = gate.confirmResume.bind(gate);
    gate.confirmResume = async (confirmation, about) => {
      try {
        const resumed = await confirm(forge?.(siege, confirmation) ?? confirmation, about);
        siege.confirmed.push('confirmed');
        return resumed;
      } catch (error) {
        siege.confirmed.push(Reflect.get(error as Error, 'code'));
        throw error;
      }
    };
    siege.worker = new WorkerService({
      config,
      auth: gate,
      devices: supervisor.devices,
      clock: systemClock,
      log,
    });
    siege.auth.connect(HONEST, siege.worker);
    await siege.worker.start(supervisor.takeListenSocket(), siege.auth.credentials);
    siege.undo.defer(() => siege.worker.stop('shutdown'));
    await siege.auth.administration['user.add']({ name: 'alice' });
    const { profile } = await siege.auth.administration['profile.create']({ user: 'alice' });
    const { ca = '', pins, token } = parseProfile(profile, 'profile');
    siege.client = new VpnClient({
      serverHost: '127.0.0.1',
      serverPort: supervisor.port,
      serverName: 'localhost',
      ca,
      pins,
      deviceKey: DeviceKey.generate(),
      dataChannels: 1,
      ...(token === undefined ? {} : { token: token.reveal() }),
      log,
    });
    siege.undo.defer(() => siege.client.disconnect());
    await siege.client.connect({ once: true });
    siege.key = await until(() => keys[0], 'the session');
    siege.placed.length = 0;
    return siege;
  }

  /** The hostile worker's end, and what auth says when it has had enough. */
  attack(): { socket: Socket; answers: unknown[]; cut: Promise<VpnError | undefined> } {
    const [near, far] = socketPair('stream');
    const cut = Promise.withResolvers<VpnError | undefined>();
    const waiting = () => this.auth.sessionsOf(HOSTILE);
    const dialler = new Dialler({
      network: new HostDialNetwork(),
      userOf: (key) => this.auth.userOf(key, HOSTILE),
      config: () => this.auth.config,
    });
    const desk = new DialDesk(dialler, new DescriptorSender(-1));
    const proxies = this.auth.proxyGateOf(HOSTILE);
    const link = new WorkerLink(near, this.auth.gateOf(HOSTILE), proxies, desk, waiting, (error) => {
      void this.auth.disconnect(HOSTILE);
      cut.resolve(error);
    });
    this.auth.connect(HOSTILE, link);
    const socket = new Socket({ fd: far });
    socket.on('error', () => {});
    const answers: unknown[] = [];
    let buffer = Buffer.alloc(0);
    socket.on('data', (chunk) => {
      buffer = Buffer.concat([buffer, Buffer.from(chunk)]);
      while (buffer.length >= 4 && buffer.length >= 4 + buffer.readUInt32BE()) {
        const end = 4 + buffer.readUInt32BE();
        answers.push(JSON.parse(buffer.toString('utf8', 4, end)));
        buffer = buffer.subarray(end);
      }
    });
    this.undo.defer(() => void socket.destroy());
    return { socket, answers, cut: cut.promise };
  }

  /** The honest worker's client still has what it had. */
  async check(): Promise<void> {
    assert.equal(this.client.snapshot.state, 'connected');
    assert.deepEqual(
      this.worker.sessions.map(({ user, waiting }) => ({ user, waiting })),
      [{ user: 'alice', waiting: false }],
    );
    assert.deepEqual(this.auth.sessionsOf(HOSTILE), []);
    assert.deepEqual(this.placed, []);
    const user = await this.auth.administration['user.show']({ name: 'alice' });
    assert.equal(user.disabled, false);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.undo.disposeAsync();
  }
}

function frame(value: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(value));
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  return Buffer.concat([head, body]);
}

const bytes = (length: number, fill = 7): string => Buffer.alloc(length, fill).toString('base64');
const peer = { binding: '1', remote: '192.0.2.66:6666', serverId: bytes(32) };
const times = { absoluteSeconds: 1, idleSeconds: 1, graceSeconds: 1 };

/** Everything that a worker can say, about a session that is not its own. */
function everything(key: string): Record<keyof typeof workerToAuth, unknown> {
  const id = Buffer.from(key, 'hex').toString('base64');
  const client = { name: 'evil', version: '1', platform: 'x' };
  const device = { deviceId: bytes(16), algorithm: 'p256', serverName: 'localhost', client, attempt: 1 };
  const resume = { key, attempt: 1, grant: { proof: bytes(32), worker: HOSTILE, ...times } };
  const signed = { serverName: 'localhost', nonce: bytes(32), signature: bytes(64), signedBytes: bytes(200) };
  return {
    challenge: { request: { purpose: 'login', user: 'alice', ...device }, peer },
    verify: { evidence: { purpose: 'login', user: 'alice', ...device, ...signed, steps: ['device'] }, peer },
    forget: { binding: '1' },
    certificateRefused: { refused: { remote: peer.remote, code: 'ERR_CERT_REVOKED', reason: 'no reason' } },
    establish: { session: key, secret: bytes(32), features: ['attach', 'resume'] },
    attach: {
      request: {
        message: { session: id, epoch: 0, slot: 0, generation: 9, flags: 0, proof: bytes(32) },
        exported: bytes(32),
      },
      peer,
    },
    challengeResume: { peer },
    resume: {
      evidence: {
        session: id,
        epoch: 0,
        deviceId: bytes(16),
        ...signed,
        proof: bytes(32),
        proofInput: bytes(130),
        serverProofInput: bytes(130),
        rekey: false,
      },
      peer,
    },
    proposeResume: { resume, mix: bytes(32) },
    confirmResume: { confirmation: { key, attempt: 1, doneInput: bytes(130), payload: bytes(40) }, peer },
    started: { session: key, remote: '192.0.2.66:1' },
    traffic: {
      session: key,
      traffic: { receivedBytes: 1e15, receivedPackets: 1e12, sentBytes: 1e15, sentPackets: 1e12 },
    },
    usage: {
      reports: [{ kind: 'user', name: 'alice', downBytes: 1e15, upBytes: 1e15, downWaits: true, upWaits: true }],
      isFirst: true,
    },
    detach: { session: key, reason: 'admin' },
    end: { session: key, reason: 'admin' },
    waiting: { after: 0 },
    proxyBind: {
      proof: { claim: { session: id, epoch: 0, proof: bytes(32) }, exported: bytes(32) },
      remote: '192.0.2.66:1',
    },
    proxyLogin: { user: 'alice', token: bytes(40), remote: '192.0.2.66:1' },
    proxyTraffic: { key, traffic: { streams: 1e9, sentBytes: 1e15, receivedBytes: 1e15 } },
    proxyRelease: { key },
    dial: { id: key, key, kind: 'tcp', target: { host: '192.0.2.66', port: 80 } },
    isAllowed: { key, kind: 'tcp', address: '192.0.2.66', port: 80 },
  };
}

test("a hostile worker says everything there is about another's session, and gets nothing of it", options, async () => {
  await using siege = await Siege.open();
  const { socket, answers, cut } = siege.attack();
  const said = Object.entries(everything(siege.key));
  assert.deepEqual(said.map(([name]) => name).sort(), Object.keys(workerToAuth).sort());
  const calls = said.filter(([name]) => 'output' in workerToAuth[name as keyof typeof workerToAuth]);
  for (const [id, [name, input]] of said.entries()) {
    socket.write(frame(calls.some(([call]) => call === name) ? { call: name, id, input } : { tell: name, input }));
  }
  await until(() => answers.filter((answer) => 'answer' in Object(answer)).length === calls.length, 'all answers');
  const answerTo = (name: string): Record<string, unknown> => {
    const id = said.findIndex(([call]) => call === name);
    return answers.find((answer) => Object(answer).answer === id) as Record<string, unknown>;
  };
  // It may ask for a nonce, and hears who else has the session; all that changes something is refused.
  assert.deepEqual(Object(answerTo('verify').output).code, 'rejected');
  assert.deepEqual(Object(answerTo('establish').error).code, 'ERR_SESSION_UNKNOWN');
  assert.deepEqual(answerTo('attach').output, { accepted: false, movedTo: HONEST });
  assert.equal(Object(answerTo('resume').output).accepted, false);
  assert.ok(answerTo('proposeResume').error !== undefined);
  assert.ok(answerTo('confirmResume').error !== undefined);
  assert.deepEqual(answerTo('waiting').output, []);
  assert.deepEqual(answerTo('dial').output, { refused: 'http_request_denied' });
  assert.deepEqual(answerTo('isAllowed').output, { isAllowed: false });
  for (const name of ['proxyBind', 'proxyLogin']) assert.deepEqual(answerTo(name).output, { grant: null });
  await siege.check();
  socket.destroy();
  assert.equal(await cut, undefined);
  await siege.check();
});

for (const [what, bad] of [
  ['huge counts', { tell: 'traffic', input: { session: '0'.repeat(32), traffic: { receivedBytes: 1e300 } } }],
  ['a session id of another shape', { tell: 'started', input: { session: '../../store', remote: '' } }],
  ["another's connection", { tell: 'forget', input: { binding: '0/1' } }],
  ['a message for another process', { call: 'readConfig', id: 1, input: {} }],
  ['what only the other end says', { tell: 'close', input: { session: '0'.repeat(32), reason: 'admin' } }],
] as const) {
  test(`a hostile worker is cut off for ${what}`, options, async () => {
    await using siege = await Siege.open();
    const { socket, cut } = siege.attack();
    socket.write(frame(bad));
    assert.equal((await cut)?.code, 'ERR_MESSAGE_FIELD');
    await siege.check();
  });
}

test('a hostile worker that says 10,000 things a second for long is cut off', options, async () => {
  await using siege = await Siege.open();
  const { socket, cut } = siege.attack();
  const word = frame({ tell: 'forget', input: { binding: '1' } });
  const many = Buffer.concat(Array.from({ length: 1000 }, () => word));
  let isCut = false;
  void cut.then(() => {
    isCut = true;
  });
  while (!isCut) await new Promise((resolve) => socket.write(many, resolve));
  assert.match((await cut)?.message ?? '', /frames a second/);
  await siege.check();
});

test('a hostile worker that closes in the middle of a frame costs nobody else anything', options, async () => {
  await using siege = await Siege.open();
  const { socket, cut } = siege.attack();
  socket.end(frame({ tell: 'started', input: { session: siege.key, remote: 'x' } }).subarray(0, 9));
  assert.equal(await cut, undefined);
  await siege.check();
});

/** A copy with one byte changed. */
function spoilt(bytes: Uint8Array, at: number): Uint8Array {
  const copy = bytes.slice();
  copy[at] = (copy[at] ?? 0) ^ 1;
  return copy;
}

const KIND = 'server resume\0'.length;
for (const [what, accepted, bend] of [
  ['nothing changed: it is accepted', true, (evidence) => evidence],
  [
    "what the client's own proof is over",
    false,
    (evidence) => ({ ...evidence, serverProofInput: evidence.proofInput }),
  ],
  ['another kind of proof', false, (evidence) => withServerInput(evidence, (input) => spoilt(input, 0))],
  ['another session', false, (evidence) => withServerInput(evidence, (input) => spoilt(input, KIND))],
  ['another epoch', false, (evidence) => withServerInput(evidence, (input) => spoilt(input, KIND + 16 + 3))],
  ['another nonce', false, (evidence) => withServerInput(evidence, (input) => spoilt(input, KIND + 16 + 4))],
  ['more than a proof', false, (evidence) => withServerInput(evidence, (input) => new Uint8Array([...input, 0]))],
] as const satisfies readonly [string, boolean, (evidence: ResumeEvidence) => ResumeEvidence][]) {
  test(
    `REQ-RESUME-002: a worker that has its client's proof gets no proof of auth over bytes of its own choice: ${what}`,
    options,
    async () => {
      await using siege = await Siege.open(bend);
      const verdict = await until(() => siege.verdicts[0], 'a resume', 20_000);
      assert.equal(verdict.accepted, accepted);
      if (!verdict.accepted) assert.equal(verdict.code, 'session_unknown');
    },
  );
}

function withServerInput(evidence: ResumeEvidence, change: (input: Uint8Array) => Uint8Array): ResumeEvidence {
  return { ...evidence, serverProofInput: change(evidence.serverProofInput) };
}

for (const [what, change] of [
  [
    'what confirmed the resume before it',
    (input) => Buffer.from(`client resume done${input.toString('latin1', 13)}`, 'latin1'),
  ],
  ['another nonce', (input) => spoilt(input, 'client resume\0'.length + 16 + 4)],
] as const satisfies readonly [string, (input: Buffer) => Uint8Array][]) {
  test(
    `REQ-RESUME-002: a resume is proven by a proof about this very resume and no other, however good its MAC: ${what}`,
    options,
    async () => {
      const held: { secret?: () => Uint8Array } = {};
      await using siege = await Siege.open((evidence) => {
        const proofInput = change(Buffer.from(evidence.proofInput));
        const key = resumeKey(nodePrimitives, held.secret?.() ?? evidence.nonce);
        return { ...evidence, proofInput, proof: nodePrimitives.hmacSha256(key, proofInput) };
      });
      held.secret = () => siege.secret;
      const verdict = await until(() => siege.verdicts[0], 'a resume', 20_000);
      assert.deepEqual(verdict, { accepted: false, code: 'session_unknown' });
    },
  );
}

const DONE = 'client resume done\0';

/** The confirmation with a proof of the new secret over other bytes: its MAC is right, for whoever may have got one over those. */
function provenOver(siege: Siege, confirmation: ResumeConfirmation, input: Uint8Array): ResumeConfirmation {
  const next = hkdfExtract(
    nodePrimitives,
    resumeKey(nodePrimitives, siege.secret),
    siege.proposed?.mix ?? siege.secret,
  );
  const proof = nodePrimitives.hmacSha256(resumeKey(nodePrimitives, next), input);
  return { ...confirmation, doneInput: input, payload: encodeMessage('resumeDone', { proof }).subarray(4) };
}

for (const [what, expected, change] of [
  ['the bytes that it is about: it is confirmed', 'confirmed', (input) => input],
  [
    'another kind of proof',
    'ERR_RESUME_PROOF',
    (input) => Buffer.from(input.toHex().replace('20646f6e6500', '00'), 'hex'),
  ],
  ['another session', 'ERR_RESUME_PROOF', (input) => spoilt(input, DONE.length)],
  ['another epoch', 'ERR_RESUME_PROOF', (input) => spoilt(input, DONE.length + 16 + 3)],
  ['another nonce', 'ERR_RESUME_PROOF', (input) => spoilt(input, DONE.length + 16 + 4)],
  ['more than a proof', 'ERR_RESUME_PROOF', (input) => new Uint8Array([...input, 0])],
] as const satisfies readonly [string, string, (input: Uint8Array) => Uint8Array][]) {
  test(
    `REQ-RESUME-004: a resume is confirmed by a proof about this very resume and no other: ${what}`,
    options,
    async () => {
      await using siege = await Siege.open(
        (evidence) => evidence,
        (besieged, confirmation) => provenOver(besieged, confirmation, change(confirmation.doneInput)),
      );
      assert.equal(await until(() => siege.confirmed[0], 'a resume', 20_000), expected);
    },
  );
}

test('a connection of a slot that had none is judged, unless the session has just been', options, async () => {
  await using siege = await Siege.open();
  const { asked } = siege;
  const attach = async (slot: number): Promise<AttachVerdict> => {
    const exported = new Uint8Array(32).fill(slot);
    const facts = { session: Buffer.from(siege.key, 'hex'), epoch: 0, slot, generation: 0, flags: 0 };
    const proof = attachProof(nodePrimitives, attachKey(nodePrimitives, siege.secret), 'client', facts, () => exported);
    const about = { binding: '1', remote: '192.0.2.1:1', serverId: new Uint8Array(32) };
    return await siege.auth.gateOf(HONEST).attach({ message: { ...facts, proof }, exported }, about);
  };
  siege.isAuthorized = false;
  siege.aheadMs = 60_000;
  assert.deepEqual(await attach(1), { accepted: false, code: 'rejected' });
  assert.equal(siege.asked, asked + 1);
  await until(() => siege.worker.sessions.length === 0, 'the end of the session');
});

test('right after a login the first connection of a slot is not judged once more', options, async () => {
  await using siege = await Siege.open();
  await until(() => siege.client.snapshot.channels > 0, 'the data connection');
  // One for the login, and none for that.
  assert.equal(siege.asked, 1);
});
