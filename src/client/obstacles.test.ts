// What gives a portal away, and whose certificate means what.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ErrorCode, VpnError } from '../base/errors.ts';
import { nameObstacle, portalIn } from './obstacles.ts';

const HOSTS = ['vpn.example.org', '192.0.2.1'];
const head = (status: number, location?: string) =>
  `HTTP/1.1 ${status} X\r\nServer: y\r\n${location === undefined ? '' : `Location: ${location}\r\n`}\r\n`;

test('a portal says so, or sends people to another host; a web server sends them to itself', () => {
  assert.equal(portalIn(head(302, 'http://login.hotel.test/?to=x'), HOSTS), 'http://login.hotel.test/?to=x');
  assert.equal(portalIn(head(307, 'https://10.0.0.1:8443/'), HOSTS), 'https://10.0.0.1:8443/');
  assert.equal(portalIn(head(511), HOSTS), 'http://vpn.example.org/');
  assert.equal(portalIn(head(511, 'https://login.hotel.test/'), HOSTS), 'https://login.hotel.test/');
  for (const other of [
    head(301, 'https://vpn.example.org/'),
    head(301, 'https://VPN.example.org:8443/x'),
    head(302, 'https://www.vpn.example.org/'),
    head(302, '/relative'),
    head(302, 'javascript:alert(1)'),
    head(302, `http://x/${'y'.repeat(600)}`),
    head(302),
    head(200, 'http://login.hotel.test/'),
    head(404),
    'SSH-2.0-x',
    '',
  ]) {
    assert.equal(portalIn(other, HOSTS), undefined, other);
  }
});

const target = {
  hosts: ['192.0.2.1'],
  serverName: 'vpn.example.org',
  hasAuthority: true,
  // Nobody is there to be asked.
  lookup: async () => [],
};
const wrong = (code: ErrorCode, issuer: string) =>
  new VpnError(code, 'x', { details: { issuer, subject: 'CN=vpn.example.org' } });
const named = (error: VpnError, change = {}) => nameObstacle(error, { ...target, hosts: ['nobody.test'], ...change });

test('a certificate by a stranger is an interception, one by another gateway an old profile', async () => {
  const read = await named(wrong('ERR_CERT_UNTRUSTED', 'O=Corp, CN=Corp Inspection CA'));
  assert.equal(read.code, 'ERR_TLS_INTERCEPTED');
  assert.match(read.message, /signed by "O=Corp, CN=Corp Inspection CA"/);
  const other = await named(wrong('ERR_CERT_PIN', 'CN=CustomVPN CA 0a1b2c3d'));
  assert.equal(other.code, 'ERR_CERT_PIN');
  assert.match(other.message, /not the one of this profile.*ask for a new profile/s);
});

test('what tells nothing about who is in between stays as it is', async () => {
  for (const error of [
    wrong('ERR_CERT_EXPIRED', 'CN=x'),
    new VpnError('ERR_NAME_LOOKUP', 'x'),
    new VpnError('ERR_AUTH_REJECTED', 'x'),
    new VpnError('ERR_CONNECT', 'x'),
  ]) {
    assert.equal(await named(error), error);
  }
  const known = wrong('ERR_CERT_UNTRUSTED', 'CN=x');
  assert.equal(await named(known, { hasAuthority: false }), known, "the system's authorities are not the gateway's");
});
