import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEFAULT_LOGIN_RULES, firstSteps, type LoginRules, stepsFor, stepsForNobody } from './login-rules.ts';

const RULES: LoginRules = {
  steps: ['device'],
  enrol: ['token'],
  groups: {
    staff: { steps: ['totp', 'password', 'device'] },
    robots: { steps: ['token'] },
    guests: { steps: ['password'] },
  },
};

test('without rules a key logs in, and a token brings it', () => {
  assert.deepEqual(firstSteps(DEFAULT_LOGIN_RULES, 'login'), ['device']);
  assert.deepEqual(firstSteps(DEFAULT_LOGIN_RULES, 'enrol'), ['device', 'token']);
  assert.deepEqual(stepsFor(DEFAULT_LOGIN_RULES, 'login', ['staff']), ['device']);
});

test('a user passes the steps of all their groups, or the general ones; the device first, each once, in one order', () => {
  assert.deepEqual(stepsFor(RULES, 'login', []), ['device']);
  assert.deepEqual(stepsFor(RULES, 'login', ['elsewhere']), ['device']);
  assert.deepEqual(stepsFor(RULES, 'login', ['staff']), ['device', 'password', 'totp']);
  assert.deepEqual(stepsFor(RULES, 'login', ['guests', 'staff', 'robots']), ['device', 'token', 'password', 'totp']);
  // A name from Object.prototype is no group.
  assert.deepEqual(stepsFor(RULES, 'login', ['constructor', '__proto__']), ['device']);
});

test('whoever enrols passes the steps of their logins too; a token of a machine is not the token of a profile', () => {
  assert.deepEqual(stepsFor(RULES, 'enrol', []), ['device', 'token']);
  assert.deepEqual(stepsFor(RULES, 'enrol', ['staff']), ['device', 'token', 'password', 'totp']);
  const byPassword: LoginRules = { steps: ['token'], enrol: ['password'], groups: {} };
  assert.deepEqual(stepsFor(byPassword, 'enrol', []), ['device', 'password']);
});

test('REQ-LOGIN-024: the first round asks the same of everybody; one round is enough where all are asked the same', () => {
  assert.deepEqual(firstSteps(RULES, 'login'), ['device']);
  assert.deepEqual(firstSteps(RULES, 'enrol'), ['device', 'token']);
  const same: LoginRules = {
    steps: ['password'],
    enrol: ['token'],
    groups: { staff: { steps: ['device', 'password'] } },
  };
  assert.deepEqual(firstSteps(same, 'login'), ['device', 'password']);
  assert.deepEqual(firstSteps(same, 'enrol'), ['device', 'token', 'password']);
});

test('REQ-LOGIN-027: nobody is sent to a provider in the first round, nor asked then what would have to be typed twice', () => {
  const rules: LoginRules = { steps: ['oidc'], enrol: ['oidc'], groups: {} };
  assert.deepEqual(firstSteps(rules, 'login'), ['device']);
  assert.deepEqual(firstSteps(rules, 'enrol'), ['device']);
  assert.deepEqual(stepsFor(rules, 'enrol', []), ['device', 'oidc']);
  const both: LoginRules = {
    steps: ['device'],
    enrol: ['token', 'totp'],
    groups: { staff: { steps: ['oidc', 'password'] } },
  };
  assert.deepEqual(firstSteps(both, 'login'), ['device']);
  assert.deepEqual(firstSteps(both, 'enrol'), ['device', 'token']);
  assert.deepEqual(stepsFor(both, 'login', ['staff']), ['device', 'password', 'oidc']);
});

test('REQ-LOGIN-024: nobody has a list, too: always the same, each of those that users have', () => {
  const lists = Array.from({ length: 100 }, (_, choice) => stepsForNobody(RULES, 'login', choice).join());
  assert.deepEqual(new Set(lists), new Set(['device', 'device,password,totp', 'device,token', 'device,password']));
  assert.equal(stepsForNobody(RULES, 'login', 7).join(), stepsForNobody(RULES, 'login', 7).join());
});
