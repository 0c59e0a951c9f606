import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  code,
  createDevice,
  exporterOf,
  json,
  primitives,
  split,
  type TestDevice,
  utf8,
} from '../../test/support/protocol.ts';
import { Feature, negotiateFeatures } from './features.ts';
import { encodeFrame, encodeGreeting, FrameType } from './frame.ts';
import { parseDeviceSignatureInput } from './keys.ts';
import {
  type Grant,
  LoginClient,
  type LoginClientOptions,
  type LoginClientOutput,
  type LoginEvidence,
  LoginServer,
  type LoginServerOutput,
  MAX_PROVIDER_PINGS,
  MAX_ROUNDS,
} from './login.ts';
import { decodeMessage, encodeMessage, REJECT_CODES, toBase64Url } from './messages.ts';

const SERVER_ID = new Uint8Array(32).fill(0x51);
const TOKEN = new Uint8Array(40).fill(0x70);
const GRANT: Grant = {
  session: new Uint8Array(16).fill(0x5e),
  worker: 2,
  user: 'zoë',
  absoluteSeconds: 86_400,
  idleSeconds: 0,
  graceSeconds: 300,
};
const NONCE = (byte: number) => new Uint8Array(32).fill(byte);
const AT_PROVIDER = {
  kind: 'oidc',
  url: 'https://sso.example.org/device?user_code=WDJB-MJHT',
  code: 'WDJB-MJHT',
  seconds: 600,
} as const;
const ENROL_STEPS = [{ kind: 'device' }, { kind: 'token' }] as const;

type Output = LoginServerOutput | LoginClientOutput;

/** The output, if it is of this kind. */
function expectKind<T extends Output, K extends T['kind']>(output: T, kind: K): Extract<T, { kind: K }> {
  assert.equal(output.kind, kind);
  return output as Extract<T, { kind: K }>;
}

function frameOf(output: Output): [number, Uint8Array] {
  assert.ok('frame' in output && output.frame !== undefined);
  return split(output.frame);
}

interface Ends {
  client: LoginClient;
  server: LoginServer;
  device: TestDevice;
}

function ends(
  changes: { connection?: string; client?: Partial<LoginClientOptions>; device?: TestDevice; server?: string[] } = {},
): Ends {
  const device = changes.device ?? createDevice();
  const connection = changes.connection ?? 'one';
  const foundation = { primitives, exporter: exporterOf(connection), serverId: SERVER_ID };
  return {
    device,
    server: new LoginServer({ ...foundation, features: changes.server ?? ['super', 'uso', 'attach'] }),
    client: new LoginClient({
      ...foundation,
      features: ['super', 'attach', 'later'],
      purpose: 'enrol',
      serverName: 'VPN.Example.com',
      serverVerified: true,
      device,
      client: { name: 'customvpn', version: '0.1.0', platform: 'linux' },
      ...changes.client,
    }),
  };
}

/** Drives both ends until the server asks for a verdict. */
function toEvidence(
  { client, server, device }: Ends,
  steps: Parameters<LoginServer['challenge']>[0]['steps'] = ENROL_STEPS,
): LoginEvidence {
  expectKind(server.receive(...frameOf(client.start(encodeGreeting()))), 'challenge');
  const asked = expectKind(client.receive(...frameOf(server.challenge({ nonce: NONCE(1), steps }))), 'answer');
  const answered = client.answer({
    signature: device.sign(asked.signedBytes),
    token: TOKEN,
    password: 'p',
    totp: '123456',
  });
  return expectKind(server.receive(...frameOf(answered)), 'verify').evidence;
}

test('REQ-LOGIN-001: an enrolment runs LOGIN, CHALLENGE, ANSWER, ACCEPT and both ends hold the same secret', () => {
  for (const algorithm of ['p256', 'ed25519'] as const) {
    const both = ends({ device: createDevice(algorithm) });
    const evidence = toEvidence(both);
    assert.equal(evidence.purpose, 'enrol');
    assert.deepEqual(evidence.deviceId, both.device.id);
    assert.deepEqual(evidence.publicKey, new Uint8Array(both.device.publicKey));
    assert.deepEqual(evidence.token, TOKEN);
    assert.deepEqual(evidence.steps, ['device', 'token']);
    assert.ok(both.device.verify(evidence.signedBytes, evidence.signature));
    const accepted = expectKind(both.server.accept(GRANT), 'accepted');
    const received = expectKind(both.client.receive(...split(accepted.frame)), 'accepted');
    assert.deepEqual(received.secret, accepted.secret);
    assert.equal(received.secret.length, 32);
    assert.deepEqual(received.accept.session, GRANT.session);
    assert.equal(received.accept.epoch, 0);
    assert.equal(received.accept.graceSeconds, 300);
    assert.ok(both.client.over && both.server.over);
  }
});

test('REQ-LOGIN-001: a later login needs the device step only and sends no public key', () => {
  const both = ends({ client: { purpose: 'login', user: 'zoe\u0308' } });
  const evidence = toEvidence(both, [{ kind: 'device' }]);
  assert.equal(evidence.purpose, 'login');
  assert.equal(evidence.user, 'zo\u00eb');
  assert.equal(evidence.publicKey, undefined);
  assert.equal(evidence.token, undefined);
  assert.ok(both.device.verify(evidence.signedBytes, evidence.signature));
  assert.equal(parseDeviceSignatureInput(evidence.signedBytes).purpose, 'login');
});

test('REQ-SITE-001: networks that a client offers reach the verdict; who offers none says nothing of them', () => {
  const networks = ['10.20.0.0/16', 'fd00:20::/48'];
  assert.deepEqual(toEvidence(ends({ client: { networks } })).networks, networks);
  const none = ends({ client: { networks: [] } });
  const [, payload] = frameOf(none.client.start(encodeGreeting()));
  assert.ok(!new TextDecoder().decode(payload).includes('networks'));
  const many = { networks: Array.from({ length: 65 }, (_, at) => `10.${at}.0.0/16`) };
  assert.throws(() => ends({ client: many }).client.start(encodeGreeting()));
});

test('REQ-LOGIN-002: the device signs the server, the connection, the nonce, itself and the transcript', () => {
  const both = ends();
  const login = both.client.start(encodeGreeting());
  expectKind(both.server.receive(...frameOf(login)), 'challenge');
  const challenge = both.server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS });
  const asked = expectKind(both.client.receive(...frameOf(challenge)), 'answer');
  assert.ok('frame' in login && login.frame && 'frame' in challenge);
  assert.deepEqual(parseDeviceSignatureInput(asked.signedBytes), {
    purpose: 'enrol',
    serverName: 'vpn.example.com',
    serverId: SERVER_ID,
    exporterAuth: new Uint8Array(exporterOf('one')('EXPORTER-customvpn-1-auth', new Uint8Array(0))),
    nonce: NONCE(1),
    deviceId: both.device.id,
    transcript: new Uint8Array(primitives.sha256(encodeGreeting(), login.frame, challenge.frame)),
  });
});

test('REQ-LOGIN-003: S(0) covers the greeting and LOGIN, CHALLENGE, ANSWER and ACCEPT as sent', () => {
  const { client, server, device } = ends();
  const sent: Uint8Array[] = [encodeGreeting()];
  const pass = (output: Output): [number, Uint8Array] => {
    assert.ok('frame' in output && output.frame !== undefined);
    sent.push(output.frame);
    return split(output.frame);
  };
  server.receive(...pass(client.start(encodeGreeting())));
  const asked = expectKind(
    client.receive(...pass(server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS }))),
    'answer',
  );
  server.receive(...pass(client.answer({ signature: device.sign(asked.signedBytes), token: TOKEN })));
  const accepted = expectKind(server.accept(GRANT), 'accepted');
  pass(accepted);
  assert.deepEqual(accepted.secret, exporterOf('one')('EXPORTER-customvpn-1-session', primitives.sha256(...sent)));
});

test('REQ-LOGIN-003: any byte changed under way leaves the ends with different secrets or a bad signature', () => {
  const { client, server, device } = ends();
  const [type, payload] = frameOf(client.start(encodeGreeting()));
  const changed = utf8(new TextDecoder().decode(payload).replace('"super",', ''));
  assert.notEqual(changed.length, payload.length);
  expectKind(server.receive(type, changed), 'challenge');
  const asked = expectKind(
    client.receive(...frameOf(server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS }))),
    'answer',
  );
  const answer = client.answer({ signature: device.sign(asked.signedBytes), token: TOKEN });
  const { evidence } = expectKind(server.receive(...frameOf(answer)), 'verify');
  assert.equal(device.verify(evidence.signedBytes, evidence.signature), false);
});

test('REQ-LOGIN-004: an answer recorded on one connection proves nothing on another', () => {
  const device = createDevice();
  const first = ends({ device });
  const start = frameOf(first.client.start(encodeGreeting()));
  first.server.receive(...start);
  const challenge = { nonce: NONCE(1), steps: ENROL_STEPS };
  const asked = expectKind(first.client.receive(...frameOf(first.server.challenge(challenge))), 'answer');
  const answer = frameOf(first.client.answer({ signature: device.sign(asked.signedBytes), token: TOKEN }));
  const replays: [string, Uint8Array][] = [
    ['two', NONCE(1)],
    ['one', NONCE(2)],
  ];
  for (const [connection, nonce] of replays) {
    const { server } = ends({ device, connection });
    server.receive(...start);
    server.challenge({ ...challenge, nonce });
    const { evidence } = expectKind(server.receive(...answer), 'verify');
    assert.equal(device.verify(evidence.signedBytes, evidence.signature), false);
  }
});

test('REQ-LOGIN-005: several rounds, each with a fresh nonce and signature over all that was said', () => {
  const both = ends();
  const first = toEvidence(both);
  const again = both.server.challenge({
    nonce: NONCE(2),
    steps: [{ kind: 'device' }, { kind: 'totp', prompt: 'Code' }],
  });
  const asked = expectKind(both.client.receive(...frameOf(again)), 'answer');
  assert.equal(asked.attempt, 2);
  assert.deepEqual(asked.steps, [{ kind: 'device' }, { kind: 'totp', prompt: 'Code' }]);
  const answer = both.client.answer({ signature: both.device.sign(asked.signedBytes), totp: '654321' });
  const { evidence } = expectKind(both.server.receive(...frameOf(answer)), 'verify');
  assert.equal(evidence.attempt, 2);
  assert.equal(evidence.totp, '654321');
  assert.equal(evidence.token, undefined);
  assert.notDeepEqual(evidence.signedBytes, first.signedBytes);
  assert.ok(both.device.verify(evidence.signedBytes, evidence.signature));
  const accepted = expectKind(both.server.accept(GRANT), 'accepted');
  assert.deepEqual(expectKind(both.client.receive(...split(accepted.frame)), 'accepted').secret, accepted.secret);
});

test('REQ-LOGIN-005: no login has more than 8 rounds', () => {
  const both = ends();
  toEvidence(both);
  for (let round = 2; round <= MAX_ROUNDS; round++) {
    const again = both.server.challenge({ nonce: NONCE(round), steps: ENROL_STEPS });
    const asked = expectKind(both.client.receive(...frameOf(again)), 'answer');
    both.server.receive(
      ...frameOf(both.client.answer({ signature: both.device.sign(asked.signedBytes), token: TOKEN })),
    );
  }
  expectKind(both.server.challenge({ nonce: NONCE(99), steps: ENROL_STEPS }), 'rejected');
  assert.ok(both.server.over);
});

const SERVER_FRAMES: [string, number, Uint8Array][] = (() => {
  const { client } = ends();
  const [, login] = frameOf(client.start(encodeGreeting()));
  const answers = {
    answers: [
      { kind: 'device', value: toBase64Url(new Uint8Array(64)) },
      { kind: 'token', value: toBase64Url(TOKEN) },
    ],
  };
  const attach = encodeMessage('attach', {
    session: GRANT.session,
    epoch: 0,
    slot: 0,
    generation: 0,
    flags: 0,
    proof: NONCE(0),
  });
  const resume = encodeMessage('resume', {
    version: 1,
    session: GRANT.session,
    epoch: 0,
    deviceId: GRANT.session,
    serverName: 'a',
    features: [],
  });
  return [
    ['login', FrameType.login, login],
    ['answer', FrameType.answer, json(answers)],
    ['attach', ...split(attach)],
    ['resume', ...split(resume)],
    ['ping', FrameType.ping, utf8('x')],
    ['pong', FrameType.pong, utf8('x')],
    ['packet', FrameType.packet, utf8('x')],
    ['accept', FrameType.accept, utf8('{}')],
    ['resumeDone', FrameType.resumeDone, utf8('{}')],
  ];
})();

/** Servers in each state, and what is legal there. */
const SERVER_STATES: [string, string, (both: Ends) => void][] = [
  ['opening', 'login attach resume ping', () => {}],
  ['challenging', '', ({ client, server }) => void server.receive(...frameOf(client.start(encodeGreeting())))],
  [
    'answering',
    'answer',
    ({ client, server }) => {
      server.receive(...frameOf(client.start(encodeGreeting())));
      server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS });
    },
  ],
  ['verifying', '', (both) => void toEvidence(both)],
  [
    'accepted',
    '',
    (both) => {
      toEvidence(both);
      both.server.accept(GRANT);
    },
  ],
  ['rejected', '', ({ server }) => void server.reject('rejected')],
  ['handed', '', ({ server }) => void server.receive(...frame('attach'))],
];

function frame(name: string): [number, Uint8Array] {
  const found = SERVER_FRAMES.find(([known]) => known === name);
  assert.ok(found);
  return [found[1], found[2]];
}

test('REQ-LOGIN-006: every frame in every wrong state of the server is ERR_FRAME_STATE, and ends the login', () => {
  for (const [state, legal, prepare] of SERVER_STATES) {
    for (const [name, type, payload] of SERVER_FRAMES) {
      if (legal.split(' ').includes(name)) continue;
      const both = ends();
      prepare(both);
      assert.throws(() => both.server.receive(type, payload), code('ERR_FRAME_STATE'), `${name} while ${state}`);
      assert.ok(both.server.over);
      assert.deepEqual(both.server.accept(GRANT), { kind: 'nothing' });
    }
  }
});

test('REQ-LOGIN-006: a second hello is ERR_FRAME_STATE', () => {
  const { server } = ends();
  server.receive(...frame('login'));
  assert.throws(() => server.receive(...frame('login')), code('ERR_FRAME_STATE'));
});

test('REQ-LOGIN-007: frames pipelined while auth is asked are ERR_FRAME_STATE, and its late answer opens nothing', () => {
  const both = ends();
  toEvidence(both);
  assert.throws(() => both.server.receive(...frame('answer')), code('ERR_FRAME_STATE'));
  assert.deepEqual(both.server.accept(GRANT), { kind: 'nothing' });
  assert.deepEqual(both.server.reject('rejected'), { kind: 'nothing' });
  const early = ends();
  early.server.receive(...frameOf(early.client.start(encodeGreeting())));
  assert.throws(() => early.server.receive(...frame('answer')), code('ERR_FRAME_STATE'));
  assert.deepEqual(early.server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS }), { kind: 'nothing' });
});

test('REQ-LOGIN-008: CLOSE ends a login in any state, and nothing is accepted after it', () => {
  for (const [state, , prepare] of SERVER_STATES.slice(0, 4)) {
    const both = ends();
    prepare(both);
    const [type, payload] = split(encodeMessage('close', { reason: 'peer_disconnect' }));
    assert.deepEqual(both.server.receive(type, payload), { kind: 'closed', reason: 'peer_disconnect' }, state);
    assert.deepEqual(both.server.accept(GRANT), { kind: 'nothing' });
  }
});

test('REQ-LOGIN-009: there is no way to ACCEPT without evidence', () => {
  for (const [state, , prepare] of SERVER_STATES.slice(0, 3)) {
    const both = ends();
    prepare(both);
    assert.throws(() => both.server.accept(GRANT), code('ERR_INVARIANT'), state);
  }
  const { server } = ends();
  assert.throws(() => server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS }), code('ERR_INVARIANT'));
  server.receive(...frame('login'));
  assert.throws(() => server.challenge({ nonce: NONCE(1), steps: [{ kind: 'token' }] }), code('ERR_INVARIANT'));
});

test('REQ-LOGIN-010: an ANSWER answers every step, once and in order, in its form', () => {
  const device = { kind: 'device', value: toBase64Url(new Uint8Array(64)) };
  const token = { kind: 'token', value: toBase64Url(TOKEN) };
  const wrong = [
    [device],
    [token, device],
    [device, token, token],
    [device, device],
    [device, { kind: 'password', value: 'x' }],
    [{ kind: 'device', value: toBase64Url(new Uint8Array(63)) }, token],
    [{ kind: 'device', value: '' }, token],
    [device, { kind: 'token', value: toBase64Url(new Uint8Array(41)) }],
    [device, { kind: 'token', value: 'no base64url!' }],
  ];
  for (const answers of wrong) {
    const { server } = ends();
    server.receive(...frame('login'));
    server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS });
    assert.throws(() => server.receive(FrameType.answer, json({ answers })), code('ERR_MESSAGE_FIELD'));
  }
  for (const value of ['12345', '123456789', 'abcdef', '12345a']) {
    const { server } = ends();
    server.receive(...frame('login'));
    server.challenge({ nonce: NONCE(1), steps: [{ kind: 'device' }, { kind: 'totp' }] });
    assert.throws(
      () => server.receive(FrameType.answer, json({ answers: [device, { kind: 'totp', value }] })),
      code('ERR_MESSAGE_FIELD'),
    );
  }
});

test('REQ-LOGIN-011: an enrolment brings a public key, and a device id is that of its key', () => {
  const login = decodeMessage('login', frame('login')[1]);
  const cases = [
    { ...login, device: { id: login.device.id, algorithm: login.device.algorithm } },
    { ...login, device: { ...login.device, id: GRANT.session } },
    { ...login, purpose: 'login' as const, device: { ...login.device, id: GRANT.session } },
  ];
  for (const changed of cases) {
    const { server } = ends();
    assert.throws(() => server.receive(...split(encodeMessage('login', changed))), code('ERR_MESSAGE_FIELD'));
    assert.ok(server.over);
  }
});

test('REQ-LOGIN-012: another version is answered with REJECT version', () => {
  const login = { ...decodeMessage('login', frame('login')[1]), version: 2 };
  const { server, client } = ends();
  client.start(encodeGreeting());
  const rejected = expectKind(server.receive(...split(encodeMessage('login', login))), 'rejected');
  assert.equal(rejected.code, 'version');
  const failed = expectKind(client.receive(...split(rejected.frame)), 'failed');
  assert.equal(failed.error.code, 'ERR_PROTOCOL_VERSION');
});

test('REQ-ETHERNET-002: who bridges Ethernet takes no client that does not, and the other way round', () => {
  const login = decodeMessage('login', frame('login')[1]);
  const bridging = { ...login, features: [...login.features, Feature.ethernet] };
  const routes = ends();
  const refused = expectKind(routes.server.receive(...split(encodeMessage('login', bridging))), 'rejected');
  assert.equal(refused.code, 'device_kind');
  const { client } = ends();
  client.start(encodeGreeting());
  const failed = expectKind(client.receive(...split(refused.frame)), 'failed');
  assert.equal(failed.error.code, 'ERR_DEVICE_KIND');
  assert.match(failed.error.message, /leave out device = "tap"/);

  const bridges = ends({ server: [Feature.ethernet] });
  const other = expectKind(bridges.server.receive(...split(encodeMessage('login', login))), 'rejected');
  assert.equal(other.code, 'device_kind');
});

test('REQ-LOGIN-013: before LOGIN at most 4 PINGs are answered, with their own payload', () => {
  const { server } = ends();
  for (let i = 0; i < 4; i++) {
    const { frame: pong } = expectKind(server.receive(FrameType.ping, utf8(`echo ${i}`)), 'send');
    assert.deepEqual(pong, encodeFrame(FrameType.pong, utf8(`echo ${i}`)));
  }
  assert.throws(() => server.receive(FrameType.ping, utf8('x')), code('ERR_FRAME_STATE'));
  const pinged = ends();
  pinged.server.receive(FrameType.ping, utf8('not in the transcript'));
  const evidence = toEvidence(pinged);
  assert.ok(pinged.device.verify(evidence.signedBytes, evidence.signature));
});

test('REQ-LOGIN-014: every reject code reaches the client as its own error, before and after an answer', () => {
  const expected = [
    'ERR_AUTH_REJECTED',
    'ERR_AUTH_PROFILE_USED',
    'ERR_AUTH_TOKEN_EXPIRED',
    'ERR_AUTH_APPROVAL_PENDING',
    'ERR_POOL_EXHAUSTED',
    'ERR_TOO_MANY_SESSIONS',
    'ERR_SESSION_UNKNOWN',
    'ERR_SESSION_REPLACED',
    'ERR_PROTOCOL_VERSION',
    'ERR_PEER_GONE',
    'ERR_AUTH_TOO_MANY_DEVICES',
    'ERR_BUSY',
    'ERR_BACKEND',
    'ERR_CERT_REQUIRED',
    'ERR_CERT_UNTRUSTED',
    'ERR_CERT_EXPIRED',
    'ERR_CERT_NOT_YET_VALID',
    'ERR_CERT_REVOKED',
    'ERR_DEVICE_KIND',
  ];
  for (const [index, rejectCode] of REJECT_CODES.entries()) {
    const both = ends();
    if (index % 2 === 0) toEvidence(both);
    else both.client.start(encodeGreeting());
    const rejected = expectKind(both.server.reject(rejectCode, 'ask the office'), 'rejected');
    const failed = expectKind(both.client.receive(...split(rejected.frame)), 'failed');
    assert.equal(failed.error.code, expected[index]);
    assert.equal(failed.code, rejectCode);
    assert.match(failed.error.message, /ask the office/);
    assert.ok(both.client.over);
  }
});

test('REQ-LOGIN-015: attach and resume as the first frame are handed on, and may be refused', () => {
  const { server } = ends();
  assert.deepEqual(expectKind(server.receive(...frame('attach')), 'attach').message.session, GRANT.session);
  expectKind(server.reject('session_unknown'), 'rejected');
  const other = ends().server;
  assert.deepEqual(expectKind(other.receive(...frame('resume')), 'resume').payload, frame('resume')[1]);
  expectKind(other.reject('session_unknown'), 'rejected');
});

test('REQ-LOGIN-016: every frame in every wrong state of the client is ERR_FRAME_STATE', () => {
  const challenge = split(encodeMessage('challenge', { nonce: NONCE(1), steps: [...ENROL_STEPS], attempt: 1 }));
  const accept = split(encodeMessage('accept', { ...GRANT, epoch: 0, features: [], deviceId: GRANT.session }));
  const others: [number, Uint8Array][] = [
    [FrameType.pong, utf8('x')],
    [FrameType.attached, utf8('{}')],
    [FrameType.config, utf8('{}')],
    [FrameType.login, utf8('{}')],
  ];
  const states: [string, [number, Uint8Array][], (both: Ends) => void][] = [
    ['idle', [challenge, accept, ...others], () => {}],
    ['opening', [accept, ...others], ({ client }) => void client.start(encodeGreeting())],
    [
      'asked',
      [challenge, accept, ...others],
      ({ client }) => {
        client.start(encodeGreeting());
        client.receive(...challenge);
      },
    ],
    ['answered', others, (both) => void toEvidence(both)],
    [
      'over',
      [challenge, accept, ...others],
      ({ client }) => {
        client.start(encodeGreeting());
        client.stop();
      },
    ],
  ];
  for (const [state, frames, prepare] of states) {
    for (const [type, payload] of frames) {
      const both = ends();
      prepare(both);
      assert.throws(() => both.client.receive(type, payload), code('ERR_FRAME_STATE'), `${type} while ${state}`);
      assert.ok(both.client.over);
      assert.deepEqual(both.client.answer({ signature: NONCE(1) }), { kind: 'nothing' });
    }
  }
});

test('REQ-LOGIN-017: an ACCEPT for another device, of another epoch, or with features not offered is refused', () => {
  for (const change of [{ deviceId: GRANT.session }, { epoch: 1 }, { features: ['uso'] }]) {
    const both = ends();
    toEvidence(both);
    const accept = { ...GRANT, epoch: 0, features: ['super'], deviceId: both.device.id, ...change };
    assert.throws(() => both.client.receive(...split(encodeMessage('accept', accept))), code('ERR_MESSAGE_FIELD'));
  }
});

test('REQ-LOGIN-018: a CHALLENGE counts up, asks for the device first and never repeats a nonce', () => {
  const wrong = [
    { nonce: NONCE(2), steps: [...ENROL_STEPS], attempt: 1 },
    { nonce: NONCE(2), steps: [...ENROL_STEPS], attempt: 3 },
    { nonce: NONCE(1), steps: [...ENROL_STEPS], attempt: 2 },
    { nonce: NONCE(2), steps: [{ kind: 'token' }], attempt: 2 },
  ];
  for (const challenge of wrong) {
    const both = ends();
    toEvidence(both);
    assert.throws(
      () => both.client.receive(...split(encodeMessage('challenge', challenge))),
      code('ERR_MESSAGE_FIELD'),
    );
  }
});

test('REQ-LOGIN-019: a step that the client does not know ends the login before anything is answered', () => {
  const { client } = ends();
  client.start(encodeGreeting());
  const challenge = { nonce: NONCE(1), steps: [{ kind: 'device' }, { kind: 'retina' }], attempt: 1 };
  const failed = expectKind(client.receive(...split(encodeMessage('challenge', challenge))), 'failed');
  assert.equal(failed.error.code, 'ERR_AUTH_REJECTED');
  assert.equal(failed.frame?.[0], FrameType.close);
});

test('REQ-LOGIN-020: a client that does not verify the server sends it no token, password or code', () => {
  for (const kind of ['token', 'password', 'totp', 'oidc', 'ask'] as const) {
    const { client } = ends({ client: { serverVerified: false } });
    client.start(encodeGreeting());
    const details = kind === 'oidc' ? AT_PROVIDER : kind === 'ask' ? { kind, prompt: 'Code' } : { kind };
    const challenge = { nonce: NONCE(1), steps: [{ kind: 'device' }, details], attempt: 1 };
    const failed = expectKind(client.receive(...split(encodeMessage('challenge', challenge))), 'failed');
    assert.equal(failed.error.code, 'ERR_CERT_UNTRUSTED');
    assert.deepEqual(client.answer({ signature: NONCE(1), token: TOKEN }), { kind: 'nothing' });
  }
  const both = ends({ client: { serverVerified: false, purpose: 'login' } });
  toEvidence(both, [{ kind: 'device' }]);
});

test('REQ-LOGIN-021: passwords travel in normal form C, certificates need no value', () => {
  const both = ends();
  both.server.receive(...frameOf(both.client.start(encodeGreeting())));
  const steps = [{ kind: 'device' }, { kind: 'password' }, { kind: 'certificate' }] as const;
  const asked = expectKind(
    both.client.receive(...frameOf(both.server.challenge({ nonce: NONCE(1), steps }))),
    'answer',
  );
  const answer = both.client.answer({ signature: both.device.sign(asked.signedBytes), password: 'cafe\u0301' });
  assert.equal(expectKind(both.server.receive(...frameOf(answer)), 'verify').evidence.password, 'caf\u00e9');
});

test('REQ-LOGIN-025: a login at a provider brings an address, a code and a time, and is answered with nothing', () => {
  const both = ends();
  both.server.receive(...frameOf(both.client.start(encodeGreeting())));
  const steps = [{ kind: 'device' }, AT_PROVIDER] as const;
  const asked = expectKind(
    both.client.receive(...frameOf(both.server.challenge({ nonce: NONCE(1), steps }))),
    'answer',
  );
  assert.deepEqual(asked.steps, steps);
  const { evidence } = expectKind(
    both.server.receive(...frameOf(both.client.answer({ signature: both.device.sign(asked.signedBytes) }))),
    'verify',
  );
  assert.deepEqual(evidence.steps, ['device', 'oidc']);
  expectKind(both.client.receive(...frameOf(both.server.accept(GRANT))), 'accepted');
  for (const missing of ['url', 'code', 'seconds'] as const) {
    const { [missing]: _, ...rest } = AT_PROVIDER;
    const { client } = ends();
    client.start(encodeGreeting());
    const challenge = encodeMessage('challenge', { nonce: NONCE(1), steps: [{ kind: 'device' }, rest], attempt: 1 });
    assert.throws(() => client.receive(...split(challenge)), code('ERR_MESSAGE_FIELD'), missing);
  }
  const { server } = ends();
  server.receive(...frame('login'));
  server.challenge({ nonce: NONCE(1), steps });
  const answers = [
    { kind: 'device', value: toBase64Url(new Uint8Array(64)) },
    { kind: 'oidc', value: 'done' },
  ];
  assert.throws(() => server.receive(FrameType.answer, json({ answers })), code('ERR_MESSAGE_FIELD'));
});

test('REQ-LOGIN-026: while the user is at a provider, and only then, the client pings and the server answers', () => {
  const both = ends();
  assert.deepEqual(both.client.ping(), { kind: 'nothing' });
  toEvidence(both, [{ kind: 'device' }, AT_PROVIDER]);
  assert.ok(both.client.isAtProvider);
  const ping = both.client.ping();
  assert.deepEqual(both.client.receive(...frameOf(both.server.receive(...frameOf(ping)))), { kind: 'nothing' });
  // A PONG that nobody asked for is as wrong as ever.
  assert.throws(() => both.client.receive(FrameType.pong, utf8('')), code('ERR_FRAME_STATE'));

  const many = ends();
  toEvidence(many, [{ kind: 'device' }, AT_PROVIDER]);
  for (let i = 0; i < MAX_PROVIDER_PINGS; i++) {
    assert.deepEqual(frameOf(many.server.receive(FrameType.ping, utf8('x'))), [FrameType.pong, utf8('x')]);
  }
  assert.throws(() => many.server.receive(FrameType.ping, utf8('x')), code('ERR_FRAME_STATE'));

  // Beside PINGs nothing is taken, and the session's secret is that of the transcript without them.
  const other = ends();
  toEvidence(other, [{ kind: 'device' }, AT_PROVIDER]);
  other.server.receive(FrameType.ping, utf8('x'));
  const accepted = expectKind(other.server.accept(GRANT), 'accepted');
  const received = expectKind(other.client.receive(...split(accepted.frame)), 'accepted');
  assert.deepEqual(received.secret, accepted.secret);
  const pipelined = ends();
  toEvidence(pipelined, [{ kind: 'device' }, AT_PROVIDER]);
  assert.throws(() => pipelined.server.receive(...frame('answer')), code('ERR_FRAME_STATE'));
  // A later round that asks for something else ends it.
  const later = ends();
  toEvidence(later, [{ kind: 'device' }, AT_PROVIDER]);
  later.server.challenge({ nonce: NONCE(2), steps: [{ kind: 'device' }] });
  assert.throws(() => later.server.receive(FrameType.ping, utf8('x')), code('ERR_FRAME_STATE'));
});

test('REQ-LOGIN-028: a question has a text, and its answer travels in normal form C', () => {
  const both = ends();
  both.server.receive(...frameOf(both.client.start(encodeGreeting())));
  const steps = [{ kind: 'device' }, { kind: 'ask', prompt: 'Code from the token:', echo: true }] as const;
  const asked = expectKind(
    both.client.receive(...frameOf(both.server.challenge({ nonce: NONCE(1), steps }))),
    'answer',
  );
  assert.deepEqual(asked.steps, steps);
  const answer = both.client.answer({ signature: both.device.sign(asked.signedBytes), ask: 'cafe\u0301' });
  assert.equal(expectKind(both.server.receive(...frameOf(answer)), 'verify').evidence.ask, 'caf\u00e9');
  const { client } = ends();
  client.start(encodeGreeting());
  const mute = encodeMessage('challenge', {
    nonce: NONCE(1),
    steps: [{ kind: 'device' }, { kind: 'ask' }],
    attempt: 1,
  });
  assert.throws(() => client.receive(...split(mute)), code('ERR_MESSAGE_FIELD'));
});

test('the client gives up with CLOSE; an answer that is missing is the shell’s mistake', () => {
  const { client } = ends();
  client.start(encodeGreeting());
  client.receive(...split(encodeMessage('challenge', { nonce: NONCE(1), steps: [...ENROL_STEPS], attempt: 1 })));
  assert.throws(() => client.answer({ signature: new Uint8Array(64) }), code('ERR_INVARIANT'));
  assert.equal(expectKind(client.giveUp(), 'failed').frame?.[0], FrameType.close);
  assert.deepEqual(client.giveUp(), { kind: 'nothing' });
});

test('the client understands CLOSE and refuses another greeting', () => {
  const { client } = ends();
  client.start(encodeGreeting());
  const close = split(encodeMessage('close', { reason: 'shutdown', message: 'back soon' }));
  assert.deepEqual(client.receive(...close), { kind: 'closed', reason: 'shutdown', message: 'back soon' });
  const other = ends().client;
  assert.throws(() => other.start(utf8('OK VPN-HELLO 7\r\n')), code('ERR_PROTOCOL_VERSION'));
  assert.ok(other.over);
});

test('REQ-FEATURE-001: what both have is used, in any combination of old and new ends', () => {
  const old = ['attach'];
  const now = ['super', 'uso', 'attach', 'resume'];
  const later = ['super', 'uso', 'attach', 'resume', 'later', 'even.later-2'];
  const matrix: [string[], string[], string[]][] = [
    [old, old, ['attach']],
    [old, now, ['attach']],
    [now, old, ['attach']],
    [now, now, now],
    [now, later, now],
    [later, now, now],
    [[], now, []],
    [now, [], []],
  ];
  for (const [offered, supported, expected] of matrix) {
    assert.deepEqual(negotiateFeatures(offered, supported), expected);
    const both = ends({ client: { features: offered }, server: supported });
    toEvidence(both);
    const accepted = expectKind(both.server.accept(GRANT), 'accepted');
    const received = expectKind(both.client.receive(...split(accepted.frame)), 'accepted');
    assert.deepEqual(received.accept.features, expected);
    assert.deepEqual(received.secret, accepted.secret);
  }
});

test('REQ-FEATURE-002: uso means nothing without super', () => {
  assert.deepEqual(negotiateFeatures(['uso', 'attach'], ['super', 'uso', 'attach']), ['attach']);
  assert.deepEqual(negotiateFeatures(['uso', 'super', 'super'], ['super', 'super', 'uso']), [
    Feature.superPackets,
    'uso',
  ]);
});

test('REQ-FEATURE-003: fields that a newer end adds to any login message change nothing but the transcript', () => {
  const { client, server, device } = ends();
  const add = ([type, payload]: [number, Uint8Array]): [number, Uint8Array] => [
    type,
    utf8(new TextDecoder().decode(payload).replace(/}$/, ',"later":{"any":[1,"thing"]}}')),
  ];
  // Both ends see the same changed bytes only where the sender made them: here the server's frames are changed for both.
  expectKind(server.receive(...add(frameOf(client.start(encodeGreeting())))), 'challenge');
  const asked = expectKind(
    client.receive(...add(frameOf(server.challenge({ nonce: NONCE(1), steps: ENROL_STEPS })))),
    'answer',
  );
  const answer = add(frameOf(client.answer({ signature: device.sign(asked.signedBytes), token: TOKEN })));
  expectKind(server.receive(...answer), 'verify');
  const accepted = expectKind(server.accept(GRANT), 'accepted');
  expectKind(client.receive(...add(split(accepted.frame))), 'accepted');
});
