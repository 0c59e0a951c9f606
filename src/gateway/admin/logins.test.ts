/** Sessions of the admin page, and links that make an administrator. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AdminLogins } from './logins.ts';

function rig() {
  const time = { now: 1_000_000 };
  const clock = { now: () => time.now, wallNow: () => time.now } as never;
  return { time, logins: new AdminLogins({ clock, idleSeconds: 60, absoluteSeconds: 300 }) };
}

test('a session lasts while it is used, and no longer than its time', () => {
  const { time, logins } = rig();
  const { secret, session } = logins.open('alice', 'viewer', '127.0.0.1:1');
  for (let at = 0; at < 290_000; at += 50_000) {
    assert.equal(logins.find(secret, { isUse: true }), session, `after ${at} ms`);
    time.now += 50_000;
  }
  assert.equal(logins.find(secret, { isUse: true }), undefined);
  assert.equal(session.ended.signal.aborted, true);
});

test('what looks by itself does not keep a session', () => {
  const { time, logins } = rig();
  const { secret } = logins.open('alice', 'viewer', '127.0.0.1:1');
  time.now += 40_000;
  assert.notEqual(logins.find(secret, { isUse: false }), undefined);
  time.now += 30_000;
  assert.equal(logins.find(secret, { isUse: false }), undefined);
});

test('each login is another session, and one user has not too many', () => {
  const { logins } = rig();
  const opened = Array.from({ length: 12 }, () => logins.open('alice', 'viewer', '127.0.0.1:1'));
  assert.equal(new Set(opened.flatMap(({ secret, session }) => [secret, session.csrf])).size, 24);
  const live = opened.filter(({ secret }) => logins.find(secret, { isUse: true }) !== undefined);
  assert.deepEqual(live, opened.slice(2));
});

test('the sessions of a user end together, those of others stay', () => {
  const { logins } = rig();
  const alice = logins.open('alice', 'operator', '127.0.0.1:1');
  const bob = logins.open('bob', 'operator', '127.0.0.1:2');
  logins.endUser('alice');
  assert.equal(logins.find(alice.secret, { isUse: true }), undefined);
  assert.equal(logins.find(bob.secret, { isUse: true }), bob.session);
});

test('no secret, an empty one and a public id open nothing', () => {
  const { logins } = rig();
  const { session } = logins.open('alice', 'administrator', '127.0.0.1:1');
  for (const secret of [undefined, '', session.id, session.csrf]) {
    assert.equal(logins.find(secret, { isUse: true }), undefined);
  }
});

test('a link is good once, within an hour', () => {
  const { time, logins } = rig();
  const { secret } = logins.makeLink();
  assert.equal(logins.link(secret).account, undefined);
  assert.equal(logins.useLink(secret), true);
  assert.equal(logins.useLink(secret), false);
  assert.throws(() => logins.link(secret), { code: 'ERR_AUTH_REJECTED' });
  const late = logins.makeLink().secret;
  time.now += 3_600_000;
  assert.throws(() => logins.link(late), { code: 'ERR_AUTH_REJECTED' });
  assert.throws(() => logins.link('guess'), { code: 'ERR_AUTH_REJECTED' });
});
