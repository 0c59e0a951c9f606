// The one verdict on a login: what lets a device in, everything that does not, and what each side is told.

import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isServer, openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { deviceSignatureInput } from '../protocol/keys.ts';
import type { LoginEvidence } from '../protocol/login.ts';
import { Audit } from '../store/audit.ts';
import { Accounts } from './accounts.ts';
import { Authenticator } from './authenticator.ts';
import type { BackendVerdict, BrowserBackend } from './backends/backend.ts';
import { Bans } from './bans.ts';
import { Devices } from './devices.ts';
import { EnrolmentTokens } from './enrolment.ts';
import { DeviceStep } from './steps/device.ts';
import { type LoginProvider, OidcStep } from './steps/oidc.ts';
import type { Finding, LoginPeer, LoginStep } from './steps/step.ts';
import { TokenStep } from './steps/token.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'authenticator-'));
});
after(() => rm(folder, { recursive: true }));

const SERVER_ID = new Uint8Array(32).fill(0x5e);
const REJECTED = { accepted: false, code: 'rejected' };
const USED = { accepted: false, code: 'profile_used' };

async function setUp(path = ':memory:', plan?: (parts: { tokens: EnrolmentTokens }) => LoginStep[]) {
  const store = await openTestStore(path);
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const parts = { store, audit, clock };
  const tokens = new EnrolmentTokens(parts);
  const given = plan?.({ tokens });
  // A device that says nothing of anybody, where a test is about other steps.
  const steps = given?.some(({ kind }) => kind === 'device') === false ? [SILENT_DEVICE, ...given] : given;
  const authenticator = new Authenticator({
    ...parts,
    tokens,
    ...(steps === undefined ? {} : { steps: { login: steps, enrol: steps } }),
  });
  if (steps !== undefined) {
    const kinds = steps.map(({ kind }) => kind);
    authenticator.rules = { steps: kinds, enrol: kinds, groups: {} };
  }
  return { ...parts, tokens, authenticator, accounts: new Accounts(parts), devices: new Devices(parts) };
}
const OTHER_KINDS = ['password', 'totp'] as const;
const SILENT_DEVICE: LoginStep = { kind: 'device', examine: async () => ({}) };
type World = Awaited<ReturnType<typeof setUp>>;

class TestDevice {
  readonly algorithm: 'p256' | 'ed25519';
  readonly publicKey: Uint8Array;
  readonly #private: KeyObject;

  constructor(algorithm: 'p256' | 'ed25519' = 'p256') {
    const pair =
      algorithm === 'p256' ? generateKeyPairSync('ec', { namedCurve: 'P-256' }) : generateKeyPairSync('ed25519');
    this.algorithm = algorithm;
    this.publicKey = Uint8Array.from(pair.publicKey.export({ type: 'spki', format: 'der' }));
    this.#private = pair.privateKey;
  }

  get id(): Uint8Array {
    return Uint8Array.from(createHash('sha256').update(this.publicKey).digest().subarray(0, 16));
  }

  get hex(): string {
    return this.id.toHex();
  }

  sign(bytes: Uint8Array): Uint8Array {
    return this.algorithm === 'p256'
      ? sign('sha256', bytes, { key: this.#private, dsaEncoding: 'ieee-p1363' })
      : sign(null, bytes, this.#private);
  }
}

let connections = 0;
const peerOf = (remote = '192.0.2.1:4000'): LoginPeer => ({
  binding: `0:${connections++}`,
  remote,
  serverId: SERVER_ID,
});

/** What a worker hands over for an honest client; `change` makes it a dishonest one. */
function evidenceOf(
  world: World,
  device: TestDevice,
  peer: LoginPeer,
  options: {
    token?: Uint8Array;
    user?: string;
    nonce?: Uint8Array;
    change?: Partial<LoginEvidence>;
    signs?: object;
  } = {},
): LoginEvidence {
  const purpose = options.token === undefined ? 'login' : 'enrol';
  const nonce = options.nonce ?? world.authenticator.issueNonce(peer.binding);
  const signedBytes = deviceSignatureInput({
    purpose,
    serverName: 'vpn.example.org',
    serverId: SERVER_ID,
    exporterAuth: new Uint8Array(32).fill(1),
    nonce,
    deviceId: device.id,
    transcript: new Uint8Array(32).fill(2),
    ...options.signs,
  });
  return {
    purpose,
    deviceId: device.id,
    algorithm: device.algorithm,
    ...(purpose === 'enrol' ? { publicKey: device.publicKey } : {}),
    serverName: 'vpn.example.org',
    client: { name: 'laptop', version: '1', platform: 'linux' },
    nonce,
    signedBytes,
    signature: device.sign(signedBytes),
    steps: world.authenticator.firstSteps({ purpose }).map(({ kind }) => kind),
    attempt: 1,
    ...(options.user === undefined ? {} : { user: options.user }),
    ...(options.token === undefined ? {} : { token: options.token }),
    ...options.change,
  };
}

function attempt(
  world: World,
  device: TestDevice,
  options: Parameters<typeof evidenceOf>[3] & { remote?: string } = {},
) {
  const peer = peerOf(options.remote);
  return world.authenticator.verify(evidenceOf(world, device, peer, options), peer);
}

async function issue(world: World, user: string, options = {}): Promise<Uint8Array> {
  return (await world.tokens.issue(user, options)).token.reveal();
}

const lastReason = async (world: World) => (await world.audit.list()).at(-1)?.reason ?? '';

for (const algorithm of ['p256', 'ed25519'] as const) {
  test(`REQ-DEVICE-005: a ${algorithm} device enrols with a token and logs in with its key alone`, async () => {
    const world = await setUp();
    await world.accounts.add('ada', { groups: ['staff', 'admin'] });
    const device = new TestDevice(algorithm);
    const token = await issue(world, 'ada');
    const accepted = { accepted: true, user: 'ada', groups: ['admin', 'staff'], deviceId: device.hex };
    assert.deepEqual(await attempt(world, device, { token, user: 'ada' }), {
      ...accepted,
      firstLogin: true,
      steps: ['device', 'token'],
    });
    assert.equal((await world.devices.show(device.hex)).state, 'enrolling');
    assert.deepEqual(await attempt(world, device), {
      ...accepted,
      firstLogin: false,
      steps: ['device'],
    });
    const stored = await world.devices.show(device.hex);
    assert.deepEqual(stored, {
      id: device.hex,
      user: 'ada',
      name: 'laptop',
      algorithm,
      state: 'active',
      createdAt: world.clock.wallNow(),
      lastSeenAt: world.clock.wallNow(),
    });
    assert.deepEqual(
      (await world.audit.list({ user: 'ada' })).map(({ event }) => event),
      ['user.added', 'token.issued', 'device.enrolled', 'login.accepted', 'login.accepted'],
    );
    await world.store.close();
  });
}

test('the steps depend on the purpose alone', async () => {
  const { authenticator, store } = await setUp();
  assert.deepEqual(authenticator.firstSteps({ purpose: 'login' }), [{ kind: 'device' }]);
  assert.deepEqual(authenticator.firstSteps({ purpose: 'enrol' }), [{ kind: 'device' }, { kind: 'token' }]);
  await store.close();
});

test('a lost ACCEPT locks nobody out: the same key may repeat its token until it has logged in', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  const token = await issue(world, 'ada');
  for (let i = 0; i < 3; i++) assert.equal((await attempt(world, device, { token })).accepted, true);
  // Not even the token's end stands in the way of a device that has it already.
  world.clock.advance(80 * 3_600_000);
  assert.equal((await attempt(world, device, { token })).accepted, true);
  assert.equal((await attempt(world, device)).accepted, true);
  assert.deepEqual(await attempt(world, device, { token }), USED);
  assert.equal((await attempt(world, device)).accepted, true);
  await world.store.close();
});

test('a second device with the same profile hears profile_used, and the record names both sources', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const [first, second] = [new TestDevice(), new TestDevice()];
  const token = await issue(world, 'ada');
  await attempt(world, first, { token, remote: '192.0.2.1:1111' });
  assert.deepEqual(await attempt(world, second, { token, remote: '198.51.100.9:2222' }), USED);
  const [row, ...more] = await world.audit.list({ event: 'token.reused' });
  assert.deepEqual(more, []);
  assert.equal(row?.user, 'ada');
  assert.equal(row?.source, '198.51.100.9:2222');
  assert.deepEqual(row?.detail, {
    purpose: 'enrol',
    steps: 'device,token',
    token: Buffer.from(token).toString('hex', 0, 8),
    firstDevice: first.hex,
    firstSource: '192.0.2.1:1111',
    secondDevice: second.hex,
    secondSource: '198.51.100.9:2222',
  });
  assert.equal((await world.devices.list()).length, 1);
  await world.store.close();
});

for (const gateways of [1, 2]) {
  test(`of enrolments racing for one token through ${gateways} gateway(s), exactly one device gets in`, async () => {
    const path = join(folder, `race-${gateways}.db`);
    const world = await setUp(path);
    const other = gateways === 1 ? world : await setUp(path);
    await world.accounts.add('ada');
    for (let round = 0; round < 5; round++) {
      const token = await issue(world, 'ada');
      const devices = Array.from({ length: 6 }, () => new TestDevice());
      const verdicts = await Promise.all(
        devices.map((device, i) => attempt(i % 2 === 0 ? world : other, device, { token, remote: `192.0.2.${i}:1` })),
      );
      const [winner, ...more] = devices.filter((_, i) => verdicts[i]?.accepted === true);
      assert.ok(winner);
      assert.equal(more.length, 0);
      assert.deepEqual(
        verdicts.filter((verdict) => !verdict.accepted),
        Array(5).fill(USED),
      );
      const known = await world.devices.list('ada');
      assert.equal(known.length, round + 1);
      assert.ok(known.some(({ id }) => id === winner.hex));
      const id = Buffer.from(token).toString('hex', 0, 8);
      const reused = (await world.audit.list({ event: 'token.reused' })).filter(({ detail }) => detail?.token === id);
      assert.equal(reused.length, 5);
      for (const { detail, source } of reused) {
        assert.equal(detail?.firstDevice, winner.hex);
        assert.equal(detail?.firstSource, `192.0.2.${devices.indexOf(winner)}:1`);
        assert.equal(detail?.secondSource, source);
      }
    }
    await world.store.close();
    if (gateways === 2) await other.store.close();
  });
}

test('a token is refused after its time, and only its holder hears why', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  world.clock.advance(72 * 3_600_000 - 1);
  const wrong = Uint8Array.from(token);
  wrong[39] = (wrong[39] ?? 0) ^ 1;
  assert.deepEqual(await attempt(world, new TestDevice(), { token: wrong }), REJECTED);
  world.clock.advance(1);
  const device = new TestDevice();
  assert.deepEqual(await attempt(world, device, { token }), { accepted: false, code: 'token_expired' });
  assert.deepEqual(await attempt(world, device, { token: wrong }), REJECTED);
  assert.deepEqual(await attempt(world, device, { token, change: { signature: new Uint8Array(64) } }), REJECTED);
  assert.deepEqual(await world.devices.list(), []);
  await world.store.close();
});

test('a wrong, short, long, empty or missing token is rejected', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  const bad = [
    randomBytes(40),
    new Uint8Array(0),
    token.subarray(0, 39),
    Uint8Array.of(...token, 0),
    Uint8Array.of(...token.subarray(0, 8), ...randomBytes(32)),
  ];
  for (const wrong of bad) assert.deepEqual(await attempt(world, new TestDevice(), { token: wrong }), REJECTED);
  const peer = peerOf();
  const { token: _, ...without } = evidenceOf(world, new TestDevice(), peer, { token });
  assert.deepEqual(await world.authenticator.verify(without, peer), REJECTED);
  assert.equal((await attempt(world, new TestDevice(), { token })).accepted, true);
  await world.store.close();
});

test('a failed enrolment leaves the token unused', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  assert.deepEqual(
    await attempt(world, new TestDevice(), { token, change: { signature: new Uint8Array(64) } }),
    REJECTED,
  );
  assert.deepEqual(await attempt(world, new TestDevice(), { token, user: 'bob' }), REJECTED);
  await world.accounts.disable('ada');
  assert.deepEqual(await attempt(world, new TestDevice(), { token }), REJECTED);
  await world.accounts.enable('ada');
  assert.equal((await attempt(world, new TestDevice(), { token })).accepted, true);
  await world.store.close();
});

test('a device that waits for approval hears so, keeps its token, and gets in once approved', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  const token = await issue(world, 'ada', { approve: true });
  const pending = { accepted: false, code: 'approval_pending' };
  assert.deepEqual(await attempt(world, device, { token }), pending);
  assert.equal((await world.devices.show(device.hex)).state, 'pending');
  assert.deepEqual(await attempt(world, device, { token }), pending);
  assert.deepEqual(await attempt(world, device), pending);
  assert.deepEqual(await attempt(world, device, { change: { signature: new Uint8Array(64) } }), REJECTED);
  assert.deepEqual(await attempt(world, new TestDevice(), { token }), USED);
  await world.devices.approve(device.hex.toUpperCase());
  assert.equal((await attempt(world, device, { token })).accepted, true);
  assert.equal((await attempt(world, device)).accepted, true);
  await world.store.close();
});

test('REQ-NONCE-001: a nonce is good once, on its own connection, for 60 seconds', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  assert.equal((await attempt(world, device, { token: await issue(world, 'ada') })).accepted, true);

  const peer = peerOf();
  const evidence = evidenceOf(world, device, peer);
  assert.equal((await world.authenticator.verify(evidence, peer)).accepted, true);
  assert.deepEqual(await world.authenticator.verify(evidence, peer), REJECTED, 'a replay');

  const other = peerOf();
  world.authenticator.issueNonce(other.binding);
  const stolen = evidenceOf(world, device, peerOf());
  assert.deepEqual(await world.authenticator.verify(stolen, other), REJECTED, 'a nonce of another connection');

  const late = peerOf();
  const old = evidenceOf(world, device, late);
  world.clock.advance(60_000);
  assert.deepEqual(await world.authenticator.verify(old, late), REJECTED, 'an old nonce');

  const early = peerOf();
  const inTime = evidenceOf(world, device, early);
  world.clock.advance(59_999);
  assert.equal((await world.authenticator.verify(inTime, early)).accepted, true);

  assert.deepEqual(await attempt(world, device, { nonce: new Uint8Array(32) }), REJECTED, 'a nonce never made');
  await world.store.close();
});

test('a worker cannot pass an old signature off under a fresh nonce, nor a signature over anything else', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  await attempt(world, device, { token: await issue(world, 'ada') });
  const reasons: string[] = [];
  const check = async (options: Parameters<typeof evidenceOf>[3]) => {
    assert.deepEqual(await attempt(world, device, options), REJECTED);
    reasons.push(await lastReason(world));
  };
  await check({ signs: { nonce: new Uint8Array(32).fill(3) } });
  await check({ signs: { purpose: 'resume' } });
  await check({ signs: { deviceId: new Uint8Array(16) } });
  await check({ signs: { serverName: 'other.example.org' } });
  await check({ signs: { serverId: new Uint8Array(32) } });
  const free = new TextEncoder().encode('anything at all');
  await check({ change: { signedBytes: free, signature: device.sign(free) } });
  assert.equal(new Set(reasons).size, 6);
  for (const reason of reasons) assert.doesNotMatch(reason, /device signature is wrong|unknown/);
  await world.store.close();
});

test('every changed bit of a signature is refused', async () => {
  for (const algorithm of ['p256', 'ed25519'] as const) {
    const world = await setUp();
    await world.accounts.add('ada');
    const device = new TestDevice(algorithm);
    await attempt(world, device, { token: await issue(world, 'ada') });
    for (let bit = 0; bit < 512; bit += 37) {
      const peer = peerOf();
      const evidence = evidenceOf(world, device, peer);
      const signature = Uint8Array.from(evidence.signature);
      signature[bit >> 3] = (signature[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      assert.deepEqual(await world.authenticator.verify({ ...evidence, signature }, peer), REJECTED);
    }
    for (const length of [0, 1, 63, 65, 200]) {
      assert.deepEqual(await attempt(world, device, { change: { signature: new Uint8Array(length) } }), REJECTED);
    }
    await world.store.close();
  }
});

test('a device has one algorithm', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice('p256');
  await attempt(world, device, { token: await issue(world, 'ada') });
  assert.deepEqual(await attempt(world, device, { change: { algorithm: 'ed25519' } }), REJECTED);
  assert.equal(await lastReason(world), 'the device has another algorithm');
  await world.store.close();
});

test('a public key in any other encoding, curve or kind does not enrol', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  const honest = new TestDevice();
  const der = (key: KeyObject) => Uint8Array.from(key.export({ type: 'spki', format: 'der' }));
  const offCurve = Uint8Array.from(honest.publicKey);
  offCurve[90] = (offCurve[90] ?? 0) ^ 1;
  const hybrid = Uint8Array.from(honest.publicKey);
  hybrid[26] = 6 | ((hybrid[90] ?? 0) & 1);
  const keys = [
    hybrid,
    der(generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey),
    der(generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey),
    der(generateKeyPairSync('ed25519').publicKey),
    Uint8Array.of(...honest.publicKey, 0),
    honest.publicKey.subarray(0, 90),
    offCurve,
    new Uint8Array(91),
  ];
  for (const publicKey of keys) {
    const device = Object.assign(new TestDevice(), { publicKey, sign: (bytes: Uint8Array) => honest.sign(bytes) });
    assert.deepEqual(await attempt(world, device, { token }), REJECTED);
  }
  assert.deepEqual(await world.devices.list(), []);
  await world.store.close();
});

test('a worker cannot enrol a key under the id of another', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  const [device, other] = [new TestDevice(), new TestDevice()];
  const change = { publicKey: other.publicKey };
  const peer = peerOf();
  const evidence = evidenceOf(world, device, peer, { token, change });
  const signature = other.sign(evidence.signedBytes);
  assert.deepEqual(await world.authenticator.verify({ ...evidence, signature }, peer), REJECTED);
  assert.deepEqual(await world.devices.list(), []);
  await world.store.close();
});

test('unknown, wrong, revoked, disabled, expired and deleted all hear the same; the record knows the difference', async () => {
  const world = await setUp();
  const reasons: string[] = [];
  const enrolled = async (user: string, options = {}) => {
    await world.accounts.add(user, options);
    const device = new TestDevice();
    assert.equal((await attempt(world, device, { token: await issue(world, user) })).accepted, true);
    return device;
  };
  const check = async (device: TestDevice, options = {}) => {
    assert.deepEqual(await attempt(world, device, options), REJECTED);
    reasons.push(await lastReason(world));
  };
  await check(new TestDevice());

  const ada = await enrolled('ada');
  await check(ada, { change: { signature: new Uint8Array(64) } });
  await check(ada, { user: 'bob' });
  await world.devices.revoke(ada.hex);
  await check(ada);

  const bob = await enrolled('bob');
  await world.accounts.disable('bob');
  await check(bob);
  await world.accounts.enable('bob');
  assert.equal((await attempt(world, bob)).accepted, true);

  const carol = await enrolled('carol', { expiresAt: world.clock.wallNow() + 5000 });
  world.clock.advance(5000);
  await check(carol);

  await world.accounts.delete('bob');
  await check(bob);
  assert.deepEqual(reasons, [
    'the device is unknown or its key is none',
    'the device signature is wrong',
    "the name is not that of the steps' user",
    'the device is revoked',
    'the user is disabled',
    'the account has expired',
    'the device is unknown or its key is none',
  ]);
  await world.store.close();
});

test('a revoked key stays revoked whatever token comes with it', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  await attempt(world, device, { token: await issue(world, 'ada') });
  await world.devices.revoke(device.hex);
  const token = await issue(world, 'ada');
  assert.deepEqual(await attempt(world, device, { token }), REJECTED);
  await assert.rejects(world.devices.approve(device.hex), { code: 'ERR_CONFLICT' });
  assert.equal((await attempt(world, new TestDevice(), { token })).accepted, true, 'the token was not used up');
  await world.store.close();
});

test("a device cannot be enrolled for a second user, and that user's token stays unused", async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  await world.accounts.add('bob');
  const device = new TestDevice();
  await attempt(world, device, { token: await issue(world, 'ada') });
  const token = await issue(world, 'bob');
  assert.deepEqual(await attempt(world, device, { token }), REJECTED);
  assert.equal((await world.devices.show(device.hex)).user, 'ada');
  assert.equal((await attempt(world, new TestDevice(), { token })).accepted, true);
  await world.store.close();
});

test('a known device may enrol again for its own user with a fresh profile', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const device = new TestDevice();
  await attempt(world, device, { token: await issue(world, 'ada') });
  await attempt(world, device);
  assert.equal((await attempt(world, device, { token: await issue(world, 'ada') })).accepted, true);
  assert.equal((await world.devices.list()).length, 1);
  await world.store.close();
});

test('what one step would spend stays when another refuses, also at the last moment', async () => {
  const spent: string[] = [];
  const subject = { id: '', name: 'ada' };
  const step = (kind: 'password' | 'totp', refuses: boolean): LoginStep => ({
    kind,
    examine: async () => ({
      subject,
      spend: async (db) => {
        await db.updateTable('users').set({ expires_at: 1 }).execute();
        spent.push(kind);
        return refuses ? { code: 'rejected', reason: `${kind} was used meanwhile` } : undefined;
      },
    }),
  });
  const world = await setUp(':memory:', () => [step('password', false), step('totp', true)]);
  subject.id = (await world.accounts.add('ada')).id;
  assert.deepEqual(await attempt(world, new TestDevice()), REJECTED);
  assert.deepEqual(spent, ['password', 'totp']);
  assert.equal((await world.accounts.show('ada')).expiresAt, undefined);
  assert.equal(await lastReason(world), 'totp was used meanwhile');
  await world.store.close();
});

test('a reason that would tell something is told only when nothing else is wrong, in whatever order', async () => {
  const expired = { code: 'token_expired', reason: 'too old' } as const;
  const wrong = { code: 'rejected', reason: 'wrong' } as const;
  for (const [refusals, code] of [
    [[expired, wrong], 'rejected'],
    [[wrong, expired], 'rejected'],
    [[expired], 'token_expired'],
  ] as const) {
    const world = await setUp(':memory:', () =>
      refusals.map((refusal, index) => ({ kind: OTHER_KINDS[index] ?? 'totp', examine: async () => ({ refusal }) })),
    );
    assert.deepEqual(await attempt(world, new TestDevice()), { accepted: false, code });
    assert.equal(await lastReason(world), refusals.map(({ reason }) => reason).join('; '));
    await world.store.close();
  }
});

test('steps that stand for different users let nobody in', async () => {
  const world = await setUp(':memory:', () =>
    ['ada', 'bob'].map((name, index) => ({
      kind: OTHER_KINDS[index] ?? 'totp',
      examine: async () => ({ subject: { id: name, name } }),
    })),
  );
  assert.deepEqual(await attempt(world, new TestDevice()), REJECTED);
  assert.equal(await lastReason(world), 'the steps stand for different users');
  await world.store.close();
});

test('a plan without steps, or whose steps stand for nobody, lets nobody in', async () => {
  for (const plan of [[], [{ kind: 'password' as const, examine: async () => ({}) }]]) {
    const world = await setUp(':memory:', () => plan);
    await world.accounts.add('ada');
    assert.deepEqual(await attempt(world, new TestDevice(), { user: 'ada' }), REJECTED);
    await world.store.close();
  }
});

test('a flood of refusals is recorded in part and counted in whole, and hides no proven event', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const token = await issue(world, 'ada');
  await attempt(world, new TestDevice(), { token });
  const stranger = new TestDevice();
  for (let i = 0; i < 400; i++) await attempt(world, stranger);
  assert.equal((await world.audit.list({ event: 'login.refused' })).length, 200);
  assert.deepEqual(await attempt(world, new TestDevice(), { token }), USED);
  assert.equal((await world.audit.list({ event: 'token.reused' })).length, 1);
  world.clock.advance(1000);
  await attempt(world, stranger);
  const last = (await world.audit.list({ event: 'login.refused' })).at(-1);
  assert.equal(last?.detail?.unrecorded, 200);
  await world.store.close();
});

test('refused certificates are recorded in part and counted in whole, and hide no refused login', async () => {
  const world = await setUp();
  const refused = { remote: '192.0.2.6:6', code: 'ERR_CERT_UNTRUSTED', reason: 'of nobody that we trust' };
  const certificate = { name: 'eve', issuer: 'CN=Elsewhere', serial: '4a' };
  for (let i = 0; i < 300; i++) await world.authenticator.recordRefusedCertificate({ ...refused, certificate });
  const records = await world.audit.list({ event: 'certificate.refused' });
  assert.equal(records.length, 200);
  const { reason, remote: source, code } = refused;
  assert.deepEqual(records.map(({ source, reason, detail }) => ({ source, reason, detail })).at(-1), {
    source,
    reason,
    detail: { code, ...certificate },
  });
  await attempt(world, new TestDevice());
  assert.equal((await world.audit.list({ event: 'login.refused' })).length, 1);
  world.clock.advance(1000);
  await world.authenticator.recordRefusedCertificate(refused);
  const last = (await world.audit.list({ event: 'certificate.refused' })).at(-1);
  assert.deepEqual(last?.detail, { code, unrecorded: 100 });
  await world.store.close();
});

const noFile = isServer && 'the store of this run is no file';

test('no secret reaches the store, the record or an error', { skip: noFile }, async () => {
  const path = join(folder, 'secrets.db');
  const world = await setUp(path);
  await world.accounts.add('ada');
  const issued = await world.tokens.issue('ada');
  const token = issued.token.reveal();
  assert.doesNotMatch(JSON.stringify(issued), new RegExp(Buffer.from(token).toString('base64url').slice(12, 30)));
  await attempt(world, new TestDevice(), { token });
  await attempt(world, new TestDevice(), { token });
  await world.store.close();
  const bytes = await readFile(path);
  const secret = Buffer.from(token).subarray(8);
  assert.equal(bytes.includes(secret), false);
  for (const encoding of ['hex', 'base64', 'base64url'] as const) {
    assert.equal(bytes.includes(secret.toString(encoding).slice(4, 24)), false);
  }
});

test('when the store fails there is no verdict', async () => {
  const world = await setUp();
  const peer = peerOf();
  const evidence = evidenceOf(world, new TestDevice(), peer);
  await world.store.db.schema.dropTable('audit').execute();
  await assert.rejects(world.authenticator.verify(evidence, peer), { code: 'ERR_STORE' });
  await world.store.close();
});

// ── users who are asked different steps ──

/** Two plans: staff prove a password as well. The password is right when it is `right`. */
async function setUpRounds() {
  const world = await setUp();
  const { store, audit, clock, tokens, accounts } = world;
  const password: LoginStep = {
    kind: 'password',
    examine: async ({ evidence }) => {
      const name = evidence.user;
      const user = (await accounts.list()).find((account) => account.name === name);
      return user !== undefined && evidence.password === 'right'
        ? { subject: { id: user.id, name: user.name } }
        : { refusal: { code: 'rejected', reason: 'the password is wrong' } };
    },
  };
  const device = new DeviceStep(store);
  const authenticator = new Authenticator({
    store,
    audit,
    clock,
    tokens,
    steps: { login: [device, password], enrol: [device, password, new TokenStep(tokens)] },
    serverKey: new Uint8Array(32),
  });
  authenticator.rules = {
    steps: ['device'],
    enrol: ['device', 'token'],
    groups: { staff: { steps: ['device', 'password'] } },
  };
  const rounds = { ...world, authenticator };
  await accounts.add('ada', { groups: ['staff'] });
  await accounts.add('bob');
  const enrolled = async (name: string): Promise<TestDevice> => {
    const made = new TestDevice();
    // As it was before there were rules.
    await attempt(world, made, { token: await issue(world, name) });
    assert.equal((await attempt(world, made)).accepted, true);
    return made;
  };
  return { ...rounds, ada: await enrolled('ada'), bob: await enrolled('bob') };
}

/** A second round of a login: all steps again. */
const secondRound = (steps: LoginEvidence['steps'], password?: string) => ({
  change: { steps, attempt: 2, ...(password === undefined ? {} : { password }) },
});
const ASKED = { accepted: false, ask: [{ kind: 'device' }, { kind: 'password' }] };

test('REQ-LOGIN-024: the second round asks what the proven user is asked; whoever is asked no more is in after the first', async () => {
  const world = await setUpRounds();
  assert.deepEqual(world.authenticator.firstSteps({ purpose: 'login' }), [{ kind: 'device' }]);
  assert.equal((await attempt(world, world.bob)).accepted, true);
  assert.deepEqual(await attempt(world, world.ada), ASKED);
  const verdict = await attempt(world, world.ada, { user: 'ada', ...secondRound(['device', 'password'], 'right') });
  assert.ok(verdict.accepted);
  assert.deepEqual([verdict.user, verdict.steps], ['ada', ['device', 'password']]);
  await world.store.close();
});

test('REQ-LOGIN-023: only the last round counts, with every step of that user: a worker that leaves one out gets nothing', async () => {
  const world = await setUpRounds();
  for (const forged of [
    secondRound(['device']),
    secondRound(['password'], 'right'),
    secondRound([]),
    secondRound(['device', 'device'], 'right'),
    secondRound(['password', 'device'], 'right'),
    secondRound(['device', 'password', 'totp'], 'right'),
  ]) {
    assert.deepEqual(await attempt(world, world.ada, forged), REJECTED);
  }
  assert.deepEqual(await attempt(world, world.ada, secondRound(['device', 'password'], 'wrong')), REJECTED);
  // The other user's password does not stand for this device.
  const foreign = { user: 'bob', ...secondRound(['device', 'password'], 'right') };
  assert.deepEqual(await attempt(world, world.ada, foreign), REJECTED);
  await world.store.close();
});

test('REQ-LOGIN-024: a device that does not exist, is revoked or signs wrongly is asked like one that exists, always the same', async () => {
  const world = await setUpRounds();
  const outcomes = new Map<string, number>();
  for (let i = 0; i < 40; i++) {
    const stranger = new TestDevice();
    const first = JSON.stringify(await attempt(world, stranger));
    assert.equal(JSON.stringify(await attempt(world, stranger)), first, 'the same stranger is asked the same');
    outcomes.set(first, (outcomes.get(first) ?? 0) + 1);
  }
  assert.deepEqual([...outcomes.keys()].sort(), [JSON.stringify(REJECTED), JSON.stringify(ASKED)].sort());
  // Whoever is asked for the password hears the verdict after it, right or wrong.
  const stranger = new TestDevice();
  for (const guess of ['right', 'wrong']) {
    const verdict = await attempt(world, stranger, { user: 'ada', ...secondRound(['device', 'password'], guess) });
    assert.deepEqual(verdict, REJECTED);
  }
  await world.store.close();
});

test('an enrolment passes the steps of the user, too, and binds nothing before', async () => {
  const world = await setUpRounds();
  const token = await issue(world, 'ada');
  const fresh = new TestDevice();
  const all = ['device', 'token', 'password'] as const;
  assert.deepEqual(await attempt(world, fresh, { token }), { accepted: false, ask: all.map((kind) => ({ kind })) });
  assert.deepEqual(await attempt(world, fresh, { user: 'ada', token, ...secondRound([...all], 'wrong') }), REJECTED);
  assert.equal((await world.devices.list('ada')).length, 1);
  assert.equal((await attempt(world, fresh, { user: 'ada', token, ...secondRound([...all], 'right') })).accepted, true);
  assert.equal((await world.devices.list('ada')).length, 2);
  await world.store.close();
});

test('whether a session would be opened today: steps, groups and account count', async () => {
  const world = await setUpRounds();
  const { authenticator, accounts } = world;
  assert.equal(await authenticator.stillSuffices('ada', ['device', 'password']), true);
  assert.equal(await authenticator.stillSuffices('ada', ['device']), false);
  assert.equal(await authenticator.stillSuffices('bob', ['device']), true);
  await accounts.regroup('bob', { add: ['staff'], remove: [] });
  assert.equal(await authenticator.stillSuffices('bob', ['device']), false);
  await accounts.delete('bob');
  assert.equal(await authenticator.stillSuffices('bob', ['device', 'password']), false);
  await world.store.close();
});

test('a user has a bounded number of devices; a revoked one makes room', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const enrol = async () => attempt(world, new TestDevice(), { token: await issue(world, 'ada') });
  for (let i = 0; i < 10; i++) assert.equal((await enrol()).accepted, true);
  const token = await issue(world, 'ada');
  const eleventh = new TestDevice();
  assert.deepEqual(await attempt(world, eleventh, { token }), { accepted: false, code: 'too_many_devices' });
  const [first] = await world.devices.list('ada');
  await world.devices.revoke(first?.id ?? '');
  assert.equal((await attempt(world, eleventh, { token })).accepted, true, 'the token was not used up');
  await world.store.close();
});

// ── a provider, and questions of a source ──

/** A provider whose word the test gives. */
function fakeProvider() {
  const said: PromiseWithResolvers<BackendVerdict>[] = [];
  const signals: AbortSignal[] = [];
  let begun = 0;
  const backend: BrowserBackend = {
    name: 'sso',
    begin: async () => {
      begun += 1;
      return {
        url: 'https://sso.example.org/device',
        code: 'WDJB-MJHT',
        expiresAt: 1e15,
        finish: async (signal) => {
          const answer = Promise.withResolvers<BackendVerdict>();
          const callOff = () => answer.resolve({ kind: 'unavailable', reason: 'called off' });
          signal.addEventListener('abort', callOff, { once: true });
          signals.push(signal);
          said.push(answer);
          return await answer.promise;
        },
      };
    },
    recheck: async () => ({ standing: 'good' }),
    close: async () => {},
  };
  return {
    backend,
    signals,
    get begun() {
      return begun;
    },
    get waiting() {
      return said.length;
    },
    say: (verdict: BackendVerdict) => said.shift()?.resolve(verdict),
  };
}

async function setUpProvider() {
  const world = await setUp();
  const { store, audit, clock, tokens, accounts } = world;
  const provider = fakeProvider();
  const provision: LoginProvider['provision'] = (name, source, groups) => accounts.provision(name, source, groups);
  const step = new OidcStep(() => ({ backend: provider.backend, seconds: 600, provision }), clock);
  const device = new DeviceStep(store);
  const authenticator = new Authenticator({
    store,
    audit,
    clock,
    tokens,
    bans: await Bans.open({ store, audit, clock, sourceOf: (address) => address }),
    steps: { login: [device, step], enrol: [device, new TokenStep(tokens), step] },
  });
  authenticator.rules = { steps: ['oidc'], enrol: ['oidc'], groups: {} };
  return { ...world, authenticator, provider, step };
}

const SENT_THERE = {
  accepted: false,
  ask: [{ kind: 'device' }, { kind: 'oidc', url: 'https://sso.example.org/device', code: 'WDJB-MJHT', seconds: 600 }],
};

/** Both rounds on one connection; resolves when the provider is asked for its word. */
async function toProvider(
  world: Awaited<ReturnType<typeof setUpProvider>>,
  device: TestDevice,
  purpose: 'enrol' | 'login',
) {
  const peer = peerOf();
  const asks = (change: Partial<LoginEvidence>) => {
    const enrol = purpose === 'enrol' ? { publicKey: device.publicKey } : {};
    return evidenceOf(world, device, peer, { signs: { purpose }, change: { purpose, ...enrol, ...change } });
  };
  assert.deepEqual(await world.authenticator.verify(asks({ steps: ['device'], attempt: 1 }), peer), SENT_THERE);
  const asked = world.provider.waiting;
  const verdict = world.authenticator.verify(asks({ steps: ['device', 'oidc'], attempt: 2 }), peer);
  const deadline = performance.now() + 10_000;
  while (world.provider.waiting === asked) {
    assert.ok(performance.now() < deadline, 'the provider was not asked');
    await new Promise((resolve) => setImmediate(resolve));
  }
  return { peer, verdict };
}

test('REQ-LOGIN-025: whom the provider names is enrolled, and logs in later with the same device and account only', async () => {
  const world = await setUpProvider();
  const { provider } = world;
  const device = new TestDevice();
  const first = await toProvider(world, device, 'enrol');
  provider.say({ kind: 'accepted', user: 'ada', groups: ['staff'] });
  const enrolled = await first.verdict;
  assert.ok(enrolled.accepted);
  assert.deepEqual([enrolled.user, enrolled.groups, enrolled.steps], ['ada', ['staff'], ['device', 'oidc']]);
  const second = await toProvider(world, device, 'login');
  provider.say({ kind: 'accepted', user: 'ada', groups: [] });
  assert.equal((await second.verdict).accepted, true);
  for (const [said, expected] of [
    [{ kind: 'accepted', user: 'bob', groups: [] }, REJECTED],
    [{ kind: 'refused', reason: 'the person said no' }, REJECTED],
    [
      { kind: 'unavailable', reason: 'no answer' },
      { accepted: false, code: 'unavailable' },
    ],
  ] as const) {
    const { verdict } = await toProvider(world, device, 'login');
    provider.say(said);
    assert.deepEqual(await verdict, expected);
  }
  assert.equal(world.step.waiting, 0);
  // Nothing is waited for that no round of this connection began.
  const peer = peerOf();
  const forged = evidenceOf(world, device, peer, { change: { steps: ['device', 'oidc'], attempt: 2 } });
  assert.deepEqual(await world.authenticator.verify(forged, peer), REJECTED);
  await world.store.close();
});

test('REQ-LOGIN-027: a device that is unknown, revoked or signs wrongly is refused before anybody is sent to a provider', async () => {
  const world = await setUpProvider();
  const device = new TestDevice();
  const { verdict } = await toProvider(world, device, 'enrol');
  world.provider.say({ kind: 'accepted', user: 'ada', groups: undefined });
  assert.equal((await verdict).accepted, true);
  const begun = world.provider.begun;
  const signature = new Uint8Array(64);
  assert.deepEqual(await attempt(world, new TestDevice()), REJECTED);
  assert.deepEqual(await attempt(world, device, { change: { signature } }), REJECTED);
  assert.deepEqual(await attempt(world, device, { user: 'bob' }), REJECTED);
  assert.equal(world.provider.begun, begun);
  await world.store.close();
});

test('REQ-LOGIN-026: a login whose connection is gone is called off, and whatever the provider says then opens nothing', async () => {
  const world = await setUpProvider();
  const { peer, verdict } = await toProvider(world, new TestDevice(), 'enrol');
  assert.equal(world.step.waiting, 1);
  world.authenticator.forget(peer.binding);
  assert.equal(world.provider.signals.at(-1)?.aborted, true);
  assert.deepEqual(await verdict, REJECTED);
  assert.equal(world.step.waiting, 0);
  assert.deepEqual(await world.accounts.list(), []);
  await world.store.close();
});

test('strangers share a rate and a number of logins at the provider, and known devices are not kept from it', async () => {
  const world = await setUpProvider();
  const known = new TestDevice();
  const { verdict } = await toProvider(world, known, 'enrol');
  world.provider.say({ kind: 'accepted', user: 'ada', groups: undefined });
  await verdict;
  const stranger = () => {
    const device = new TestDevice();
    const peer = peerOf();
    const change = { purpose: 'enrol', publicKey: device.publicKey, steps: ['device'], attempt: 1 } as const;
    return world.authenticator.verify(evidenceOf(world, device, peer, { signs: { purpose: 'enrol' }, change }), peer);
  };
  for (let i = 1; i < 60; i++) assert.deepEqual(await stranger(), SENT_THERE, String(i));
  assert.deepEqual(await stranger(), { accepted: false, code: 'busy' });
  assert.deepEqual(await attempt(world, known), SENT_THERE);
  world.clock.advance(2000);
  assert.deepEqual([await stranger(), await stranger()], [SENT_THERE, SENT_THERE]);
  assert.deepEqual(await stranger(), { accepted: false, code: 'busy' });
  while (world.step.waiting < 129) {
    world.clock.advance(1000);
    assert.deepEqual(await stranger(), SENT_THERE);
  }
  world.clock.advance(60_000);
  assert.deepEqual(await stranger(), { accepted: false, code: 'busy' });
  assert.deepEqual(await attempt(world, known), SENT_THERE);
  await world.store.close();
});

/** A source that asks until it has heard `enough`, and a second factor that is spent with the verdict. */
async function setUpQuestions(isFactorRight = true) {
  const spent: string[] = [];
  const world = await setUp();
  const { store, audit, clock, tokens, accounts } = world;
  const ask = (count: number): Finding => ({
    question: {
      prompt: `Question ${count}`,
      echo: count % 2 === 0,
      answer: async (text) => {
        if (text === 'more') return ask(count + 1);
        if (text !== 'enough') return { refusal: { code: 'rejected', reason: 'a wrong answer' } };
        const [user] = await accounts.list();
        return { subject: { id: user?.id ?? '', name: user?.name ?? '' } };
      },
    },
  });
  const password: LoginStep = { kind: 'password', examine: async () => ask(1) };
  const totp: LoginStep = {
    kind: 'totp',
    examine: async () => ({
      ...(isFactorRight ? {} : { refusal: { code: 'rejected', reason: 'a wrong code' } as const }),
      spend: async () => {
        spent.push('totp');
        return undefined;
      },
    }),
  };
  const device = new DeviceStep(store);
  const steps = [device, new TokenStep(tokens)];
  await accounts.add('ada');
  const key = new TestDevice();
  await attempt(world, key, { token: await issue(world, 'ada') });
  const authenticator = new Authenticator({
    store,
    audit,
    clock,
    tokens,
    steps: { login: [device, password, totp], enrol: steps },
  });
  authenticator.rules = { steps: ['password', 'totp'], enrol: ['token'], groups: {} };
  return { ...world, authenticator, key, spent };
}

const question = (count: number) => ({
  accepted: false,
  ask: [{ kind: 'device' }, { kind: 'ask', prompt: `Question ${count}`, echo: count % 2 === 0 }],
});

test('REQ-LOGIN-028: a source asks on, the answers decide, and what else was proven is spent with the verdict only', async () => {
  const world = await setUpQuestions();
  const peer = peerOf();
  const say = (ask: string, round: number, change: Partial<LoginEvidence> = {}, at = peer) =>
    world.authenticator.verify(
      evidenceOf(world, world.key, at, { change: { steps: ['device', 'ask'], attempt: round, ask, ...change } }),
      at,
    );
  const open = (at = peer) => world.authenticator.verify(evidenceOf(world, world.key, at), at);
  assert.deepEqual(await open(), question(1));
  assert.deepEqual(await say('more', 2), question(2));
  assert.deepEqual(world.spent, []);
  const verdict = await say('enough', 3);
  assert.ok(verdict.accepted);
  assert.deepEqual([verdict.user, verdict.steps, world.spent], ['ada', ['device', 'password', 'totp'], ['totp']]);
  // An answer counts once, on its connection, for its device, with a right signature.
  assert.deepEqual(await say('enough', 4), REJECTED);
  assert.deepEqual(await open(), question(1));
  assert.deepEqual(await say('enough', 2, {}, peerOf()), REJECTED);
  for (const change of [{ signature: new Uint8Array(64) }, { user: 'bob' }, { steps: ['ask'] as const }, { ask: '' }]) {
    const other = peerOf();
    assert.deepEqual(await open(other), question(1));
    assert.deepEqual(await say('enough', 2, change, other), REJECTED);
  }
  const gone = peerOf();
  assert.deepEqual(await open(gone), question(1));
  world.authenticator.forget(gone.binding);
  assert.deepEqual(await say('enough', 2, {}, gone), REJECTED);
  assert.deepEqual(world.spent, ['totp']);
  await world.store.close();
});

test('REQ-LOGIN-028: a source has at most 4 questions in one login, and none where something else was wrong', async () => {
  const world = await setUpQuestions();
  const peer = peerOf();
  assert.deepEqual(await world.authenticator.verify(evidenceOf(world, world.key, peer), peer), question(1));
  const more = (round: number) =>
    world.authenticator.verify(
      evidenceOf(world, world.key, peer, { change: { steps: ['device', 'ask'], attempt: round, ask: 'more' } }),
      peer,
    );
  for (let count = 2; count <= 4; count++) assert.deepEqual(await more(count), question(count));
  assert.deepEqual(await more(5), REJECTED);
  await world.store.close();
  // Otherwise the question would tell that the password is right.
  const wrong = await setUpQuestions(false);
  assert.deepEqual(await attempt(wrong, wrong.key), REJECTED);
  await wrong.store.close();
});
