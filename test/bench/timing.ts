/**
 * The area `timing`: whether the time of a refusal tells a stranger which names there are.
 *
 * A wrong password for somebody beside one for nobody, through the whole verdict, in one process, where no network hides a
 * difference; each pair in random order. Once more where an outside source judges whom nobody here knows, and says no at
 * once. The figure is Welch's |t|. Beside it the same without the hash that stands in for nobody's: a measurement that did
 * not see that difference would prove nothing.
 */

import { createHash, generateKeyPairSync, randomBytes, randomInt, sign } from 'node:crypto';
import { systemClock } from '../../src/base/clock.ts';
import { Accounts } from '../../src/identity/accounts.ts';
import { Authenticator } from '../../src/identity/authenticator.ts';
import { EnrolmentTokens } from '../../src/identity/enrolment.ts';
import { ARGON2_PARAMETERS, hashPassword, Passwords, verifyPassword } from '../../src/identity/passwords.ts';
import { claimedUser } from '../../src/identity/steps/claimed-user.ts';
import { DeviceStep } from '../../src/identity/steps/device.ts';
import { type PasswordSources, PasswordStep } from '../../src/identity/steps/password.ts';
import type { LoginStep } from '../../src/identity/steps/step.ts';
import { deviceSignatureInput } from '../../src/protocol/keys.ts';
import { Audit } from '../../src/store/audit.ts';
import { openStore } from '../../src/store/store.ts';
import { describeMachine, type Report, rounded } from './report.ts';
import { median, welch } from './statistics.ts';

/** As many tries of each kind as a verdict needs. */
const TRIES = 500;
const WARM_UP = 20;
/** From here on the two kinds differ. */
const LIMIT = 4.5;
const SOMEBODY = 'ada';
const QUICK_PARAMETERS = { memory: 8192, passes: 1, parallelism: 1 };
const UNPROTECTED = 'without a hash for nobody';

/** Knows nobody, and takes no time to say so. */
const QUICK_SOURCE: PasswordSources = {
  forStrangers: 'quick',
  find: (name) => ({
    name,
    authenticate: async () => ({ kind: 'refused', reason: 'no such account' }),
    recheck: async () => ({ standing: 'unknown' }),
    close: async () => {},
  }),
  provision: async () => undefined,
};

/** Milliseconds of each try. */
interface Times {
  readonly somebody: number[];
  readonly nobody: number[];
}

/** Who judges the passwords of names that nobody has here. */
type Judge = 'nobody' | 'an outside source';

export async function measureTiming(
  quick: boolean,
  progress: (line: string) => void,
): Promise<{ report: Report; measured: boolean }> {
  const { somebody, nobody } = await measure(quick, 'nobody', false, progress);
  const control = Math.abs(welch(somebody, nobody) ?? Number.NaN);
  const results: Report['results'][number][] = [];
  for (const judge of ['nobody', 'an outside source'] as const) {
    results.push(await compare(quick, judge, control, progress));
  }
  return {
    measured: true,
    report: { machine: describeMachine(), versions: { node: process.version }, rounds: TRIES, results },
  };
}

/** @param control |t| without protection */
async function compare(
  quick: boolean,
  judge: Judge,
  control: number,
  progress: (line: string) => void,
): Promise<Report['results'][number]> {
  const { somebody, nobody } = await measure(quick, judge, true, progress);
  const t = Math.abs(welch(somebody, nobody) ?? Number.NaN);
  return {
    area: 'timing',
    name: `a wrong password for somebody beside one for nobody${judge === 'nobody' ? '' : `, whom ${judge} judges`}`,
    unit: '|t|',
    ours: rounded(t),
    spread: { low: null, high: null, ratios: [] },
    peers: { [UNPROTECTED]: rounded(control) },
    goal: `< ${LIMIT}, and more ${UNPROTECTED}`,
    met: t < LIMIT && control >= LIMIT,
  };
}

async function measure(
  quick: boolean,
  judge: Judge,
  isGuarded: boolean,
  progress: (line: string) => void,
): Promise<Times> {
  const store = await openStore(':memory:');
  try {
    const parts = { store, audit: new Audit(store, systemClock), clock: systemClock };
    const parameters = quick ? QUICK_PARAMETERS : ARGON2_PARAMETERS;
    const hasher = {
      parameters,
      hash: (password: string) => hashPassword(password, parameters),
      verify: verifyPassword,
    };
    const passwords = new Passwords({ ...parts, hasher });
    await new Accounts(parts).add(SOMEBODY);
    await passwords.set(SOMEBODY, 'correct horse battery staple');
    const password = new PasswordStep(store, passwords, () => (judge === 'nobody' ? undefined : QUICK_SOURCE));
    const hasty: LoginStep = {
      kind: 'password',
      examine: async (attempt) =>
        (await claimedUser(store, attempt)) === undefined
          ? { refusal: { code: 'rejected', reason: 'nobody' } }
          : await password.examine(attempt),
    };
    const steps = [new DeviceStep(store), isGuarded ? password : hasty];
    const authenticator = new Authenticator({
      ...parts,
      tokens: new EnrolmentTokens(parts),
      steps: { login: steps, enrol: steps },
    });
    authenticator.rules = { steps: ['password'], enrol: ['password'], groups: {} };
    const times: Times = { somebody: [], nobody: [] };
    for (let round = -WARM_UP; round < TRIES; round += 1) {
      const order = randomInt(2) === 0 ? (['somebody', 'nobody'] as const) : (['nobody', 'somebody'] as const);
      for (const who of order) {
        const ms = await refused(authenticator, who === 'somebody' ? SOMEBODY : `n${randomBytes(1).toString('hex')}`);
        if (round >= 0) times[who].push(ms);
      }
    }
    const middles = [times.somebody, times.nobody].map((list) => `${rounded(median(list) ?? Number.NaN)} ms`);
    progress(`${judge}, ${isGuarded ? 'as it is' : UNPROTECTED}: somebody ${middles[0]}, nobody ${middles[1]}`);
    return times;
  } finally {
    await store.close();
  }
}

/** Milliseconds until a stranger with a key of their own hears that the password is wrong. */
async function refused(authenticator: Authenticator, user: string): Promise<number> {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const encoded = Uint8Array.from(publicKey.export({ type: 'spki', format: 'der' }));
  const deviceId = Uint8Array.from(createHash('sha256').update(encoded).digest().subarray(0, 16));
  const serverId = new Uint8Array(32).fill(1);
  const peer = { binding: '0:1', remote: '192.0.2.1:4000', serverId };
  const nonce = authenticator.issueNonce(peer.binding);
  const signedBytes = deviceSignatureInput({
    purpose: 'enrol',
    serverName: 'vpn.example.org',
    serverId,
    exporterAuth: new Uint8Array(32).fill(2),
    nonce,
    deviceId,
    transcript: new Uint8Array(32).fill(3),
  });
  const evidence = {
    purpose: 'enrol' as const,
    user,
    deviceId,
    algorithm: 'ed25519' as const,
    publicKey: encoded,
    serverName: 'vpn.example.org',
    client: { name: 'laptop', version: '1', platform: 'linux' },
    nonce,
    signedBytes,
    signature: Uint8Array.from(sign(null, signedBytes, privateKey)),
    password: 'wrong horse battery staple',
    steps: ['device', 'password'] as const,
    attempt: 1,
  };
  const start = performance.now();
  const verdict = await authenticator.verify(evidence, peer);
  const ms = performance.now() - start;
  if (verdict.accepted || !('code' in verdict) || verdict.code !== 'rejected') throw new Error('not a plain refusal');
  return ms;
}
