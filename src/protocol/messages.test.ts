import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, json, split, utf8 } from '../../test/support/protocol.ts';
import { FrameType } from './frame.ts';
import {
  CLOSE_REASONS,
  decodeMessage,
  encodeMessage,
  fromBase64Url,
  type MessageName,
  type Messages,
  REJECT_CODES,
  toBase64Url,
} from './messages.ts';

const bytes = (length: number, fill = 7) => new Uint8Array(length).fill(fill);
const b64 = (length: number, fill = 7) => toBase64Url(bytes(length, fill));

const SAMPLES: Messages = {
  login: {
    version: 1,
    user: 'zoë',
    device: { id: bytes(16), algorithm: 'p256', publicKey: bytes(91) },
    purpose: 'enrol',
    serverName: 'vpn.example.com',
    features: ['super', 'attach'],
    client: { name: 'customvpn', version: '0.1.0', platform: 'linux' },
  },
  challenge: { nonce: bytes(32), steps: [{ kind: 'device' }, { kind: 'token', prompt: 'Token' }], attempt: 1 },
  answer: { answers: [{ kind: 'device', value: b64(64) }] },
  accept: {
    session: bytes(16),
    epoch: 0,
    worker: 3,
    features: ['super'],
    user: 'zoë',
    deviceId: bytes(16),
    absoluteSeconds: 86_400,
    idleSeconds: 0,
    graceSeconds: 300,
  },
  reject: { code: 'profile_used', message: '' },
  config: {
    revision: 1,
    addresses: { v4: { address: '10.9.0.2', gateway: '10.9.0.1' } },
    routes: ['10.0.0.0/8'],
    dns: { servers: ['10.9.0.1'], domains: ['corp.example'] },
    mtu: 1400,
    ping: { intervalSeconds: 20, deadSeconds: 60 },
    data: { mode: 'attached', channels: 1 },
    transports: [],
    pins: [],
  },
  close: { reason: 'replaced', message: 'moved' },
  attach: { session: bytes(16), epoch: 1, slot: 0, generation: 4_294_967_295, flags: 0, proof: bytes(32) },
  attached: { slot: 0, generation: 0, flags: 0, proof: bytes(32) },
  moved: { worker: 255 },
  resume: {
    version: 1,
    session: bytes(16),
    epoch: 2,
    deviceId: bytes(16),
    serverName: '2001:db8::1',
    features: [],
  },
  resumed: {
    epoch: 3,
    worker: 0,
    features: [],
    absoluteSeconds: 0,
    idleSeconds: 0,
    graceSeconds: 0,
    proof: bytes(32),
  },
  resumeDone: { proof: bytes(32) },
  switch: { slot: 1, generation: 2 },
  drain: { seconds: 900 },
};
const NAMES: MessageName[] = [
  'login',
  'challenge',
  'answer',
  'accept',
  'reject',
  'config',
  'close',
  'attach',
  'attached',
  'moved',
  'resume',
  'resumed',
  'resumeDone',
  'switch',
  'drain',
];

/** The sample as the JSON value it travels as. */
function wire(name: MessageName): Record<string, unknown> {
  return JSON.parse(new TextDecoder().decode(split(encodeMessage(name, SAMPLES[name]))[1]));
}

test('REQ-MESSAGE-001: every message is a frame of its type and is read back as it was', () => {
  for (const name of NAMES) {
    const [type, payload] = split(encodeMessage(name, SAMPLES[name]));
    assert.equal(type, FrameType[name]);
    assert.deepEqual(decodeMessage(name, payload), SAMPLES[name]);
  }
});

test('REQ-MESSAGE-002: a field that this version does not know is ignored, at every level', () => {
  for (const name of NAMES) {
    const value = { ...wire(name), later: { any: ['thing'] } };
    assert.deepEqual(decodeMessage(name, json(value)), SAMPLES[name]);
  }
  const { device, ...login } = wire('login');
  const read = decodeMessage('login', json({ ...login, device: Object.assign({ tpm: true }, device) }));
  assert.deepEqual(read, SAMPLES.login);
});

test('REQ-MESSAGE-002: one whose name starts with "!" is refused', () => {
  for (const name of NAMES) {
    assert.throws(() => decodeMessage(name, json({ ...wire(name), '!later': 1 })), code('ERR_MESSAGE_FIELD'));
  }
});

test('REQ-MESSAGE-003: a missing or mistyped field is ERR_MESSAGE_FIELD and is named', () => {
  const optional = new Set(['login.user', 'close.message']);
  for (const name of NAMES) {
    for (const field of Object.keys(wire(name))) {
      const { [field]: _removed, ...rest } = wire(name);
      if (!optional.has(`${name}.${field}`)) {
        assert.throws(
          () => decodeMessage(name, json(rest)),
          (error) => code('ERR_MESSAGE_FIELD')(error) && error.details.field === field,
        );
      }
      assert.throws(() => decodeMessage(name, json({ ...rest, [field]: null })), code('ERR_MESSAGE_FIELD'));
      assert.throws(() => decodeMessage(name, json({ ...rest, [field]: true })), code('ERR_MESSAGE_FIELD'));
    }
  }
  assert.throws(() => decodeMessage('switch', utf8('{"slot":1')), code('ERR_MESSAGE_SYNTAX'));
});

test('REQ-MESSAGE-004: limits of fields hold exactly', () => {
  const cases: [MessageName, string, unknown, unknown][] = [
    ['login', 'user', 'x'.repeat(128), 'x'.repeat(129)],
    ['login', 'version', 0xffff, 0x10000],
    ['login', 'features', Array.from({ length: 64 }, (_, i) => `f${i}`), Array.from({ length: 65 }, (_, i) => `f${i}`)],
    ['login', 'features', ['x'.repeat(32)], ['x'.repeat(33)]],
    ['login', 'features', ['a', 'b'], ['a', 'a']],
    ['login', 'serverName', 'a'.repeat(255), 'a'.repeat(256)],
    ['login', 'serverName', '::1', 'Vpn.example'],
    ['login', 'serverName', '192.0.2.1', 'vpn example'],
    ['challenge', 'nonce', b64(32), b64(31)],
    ['challenge', 'nonce', b64(32), b64(33)],
    ['challenge', 'steps', Array(8).fill({ kind: 'device' }), Array(9).fill({ kind: 'device' })],
    ['challenge', 'steps', [{ kind: 'later_step' }], []],
    ['challenge', 'attempt', 8, 9],
    ...(
      [
        ['prompt', 'x'.repeat(256), 'x'.repeat(257)],
        ['prompt', 'x', ''],
        ['echo', false, 'no'],
        ['url', `https://${'x'.repeat(1016)}`, `https://${'x'.repeat(1017)}`],
        ['url', 'http://127.0.0.1:1/device?user_code=A', 'javascript:alert(1)'],
        ['url', 'https://example.org/', 'https://example.org/ and'],
        ['url', 'https://example.org/', 'https://ex\u00e4mple.org/'],
        ['code', 'A-1'.padEnd(64, '-'), 'A-1'.padEnd(65, '-')],
        ['code', 'WDJB MJHT', '\u0410'],
        ['seconds', 3600, 3601],
        ['seconds', 1, 0],
      ] as const
    ).map(([field, good, bad]): [MessageName, string, unknown, unknown] => [
      'challenge',
      'steps',
      [{ kind: 'oidc', [field]: good }],
      [{ kind: 'oidc', [field]: bad }],
    ]),
    [
      'answer',
      'answers',
      [{ kind: 'password', value: 'x'.repeat(4096) }],
      [{ kind: 'password', value: 'x'.repeat(4097) }],
    ],
    ['accept', 'session', b64(16), b64(17)],
    ['accept', 'worker', 255, 256],
    ['accept', 'graceSeconds', 0xffffffff, 0x100000000],
    ['reject', 'message', 'x'.repeat(512), 'x'.repeat(513)],
    ['config', 'routes', Array(4096).fill('10.0.0.0/8'), Array(4097).fill('10.0.0.0/8')],
    ['config', 'mtu', 0xffff, 0x10000],
    ['attach', 'slot', 255, 256],
    ['attach', 'generation', 0xffffffff, -1],
    ['attach', 'proof', b64(32), b64(16)],
  ];
  for (const [name, field, good, bad] of cases) {
    decodeMessage(name, json({ ...wire(name), [field]: good }));
    assert.throws(
      () => decodeMessage(name, json({ ...wire(name), [field]: bad })),
      code('ERR_MESSAGE_FIELD'),
      `${name}.${field}`,
    );
  }
});

test('REQ-MESSAGE-005: bytes are canonical base64url without padding', () => {
  assert.equal(toBase64Url(Uint8Array.of(0xfb, 0xff)), '-_8');
  assert.deepEqual(fromBase64Url('-_8'), Uint8Array.of(0xfb, 0xff));
  assert.deepEqual(fromBase64Url(''), new Uint8Array(0));
  for (const text of ['-_8=', '-_9', '+/8', '-_8 ', 'A', '-_8\n']) assert.equal(fromBase64Url(text), undefined);
  const proof = `${b64(32).slice(0, -1)}d`;
  assert.throws(() => decodeMessage('resumeDone', json({ proof })), code('ERR_MESSAGE_FIELD'));
  assert.throws(() => decodeMessage('resumeDone', json({ proof: `${b64(32)}=` })), code('ERR_MESSAGE_FIELD'));
});

test('REQ-MESSAGE-006: a reject code or close reason that a newer peer has added reads as the general one', () => {
  for (const known of REJECT_CODES) {
    assert.equal(decodeMessage('reject', json({ code: known, message: '' })).code, known);
  }
  for (const reason of CLOSE_REASONS) assert.equal(decodeMessage('close', json({ reason })).reason, reason);
  assert.equal(decodeMessage('reject', json({ code: 'later', message: '' })).code, 'rejected');
  assert.equal(decodeMessage('close', json({ reason: 'later' })).reason, 'peer_disconnect');
  const config = { ...wire('config'), data: { mode: 'quic', channels: 0 } };
  assert.equal(decodeMessage('config', json(config)).data.mode, 'inline');
});

test('a value that its own schema refuses is never sent', () => {
  assert.throws(() => encodeMessage('moved', { worker: 256 }), code('ERR_INVARIANT'));
  assert.throws(() => encodeMessage('resumeDone', { proof: bytes(31) }), code('ERR_INVARIANT'));
});
