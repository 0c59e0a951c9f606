// Profiles: what is written is read again, what is wrong is named, and the token stays out of sight.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { inspect } from 'node:util';
import fc from 'fast-check';
import { type ErrorCode, isVpnError } from '../base/errors.ts';
import { createLogger, Secret } from '../base/log.ts';
import {
  encodeToken,
  formatProfile,
  type NewProfile,
  newProfileId,
  parseProfile,
  readProfile,
  withoutToken,
  writeProfile,
} from './profile.ts';

/** A certificate whose private key is gone. */
const CA = `-----BEGIN CERTIFICATE-----
MIIBhDCCASmgAwIBAgIQZfGmrT8/PQuLMnEATklshTAKBggqhkjOPQQDAjAgMR4w
HAYDVQQDExVDdXN0b21WUE4gQ0EgMjQwOTFkYjUwHhcNMjYxMTIyMTg1OTUxWhcN
MzYxMTE5MTk1OTUxWjAgMR4wHAYDVQQDExVDdXN0b21WUE4gQ0EgMjQwOTFkYjUw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASQI5KrjBy7hhFHEfFkWHz77YE9NUbX
EHFGsdr3iO4BMkthg3/c5EtYZbD19nBwW4Zpv3czMRrBo8r2dpINVKTAo0UwQzAS
BgNVHRMBAf8ECDAGAQH/AgEAMA4GA1UdDwEB/wQEAwIBBjAdBgNVHQ4EFgQU2onx
O+eUyGKweaclb8/ler49WkQwCgYIKoZIzj0EAwIDSQAwRgIhANNkezNiwYt/wAfr
Vx3cn7EAJPsJ4QmnfSds5abSy7OdAiEA/ogVtmukxbpuB3RqLKA4hGe5x4dwEZvJ
EiAfM3Dl7Mk=
-----END CERTIFICATE-----
`;
const TOKEN = Uint8Array.from({ length: 40 }, (_, i) => i * 5 + 1);
const TOKEN_TEXT = encodeToken(TOKEN);

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'profile-'));
});
after(() => rm(folder, { recursive: true }));

const full: NewProfile = {
  version: 1,
  id: 'ab'.repeat(16),
  name: 'ada "at" home \\ é',
  user: 'ada',
  token: new Secret(TOKEN),
  verifyServer: true,
  pins: [`${'A'.repeat(43)}=`, `${'B'.repeat(43)}=`],
  certFile: 'certs/ada.pem',
  keyFile: 'certs/ada.key',
  ca: CA,
  server: { hosts: ['vpn.example.org', '2001:db8::1'], port: 443, name: 'vpn.example.org' },
  allow: { fullTunnel: false, maxRoutes: 10, dns: false, dnsDomains: ['corp.example'] },
  tunnel: {
    device: 'tun',
    mode: 'full',
    include: ['192.0.2.0/24', '2001:db8::/32'],
    exclude: ['10.0.0.0/8'],
    lan: true,
    overlap: 'stop',
    dns: ['9.9.9.9', '2620:fe::9'],
    killSwitch: 'always',
    networks: ['10.20.0.0/16'],
    channels: 3,
    compression: true,
  },
};
const minimal = `
version = 1
id = "${'0'.repeat(32)}"
name = "home"
[server]
hosts = ["vpn.example.org"]
port = 443
name = "vpn.example.org"
`;

/** A whole text with one line more before the first table. */
const withLine = (line: string) => minimal.replace('\n[server]', `\n${line}\n[server]`);

function refuses(text: string, code: ErrorCode, details: Record<string, unknown> = {}): void {
  assert.throws(
    () => parseProfile(text, 'p.toml'),
    (error) => {
      assert.ok(isVpnError(error, code), inspect(error));
      for (const [key, value] of Object.entries(details)) assert.equal(error.details[key], value, key);
      return true;
    },
  );
}

test('what is formatted is parsed again', () => {
  const parsed = parseProfile(formatProfile(full), 'p.toml');
  const { token, ca, ...rest } = parsed;
  const { token: _, ca: __, ...expected } = full;
  assert.deepEqual(rest, expected);
  assert.deepEqual(token?.reveal(), TOKEN);
  assert.equal(ca?.trim(), CA.trim());
});

test('what is left out takes its default', () => {
  const { token: _, verifyServer: __, pins: ___, allow: ____, tunnel: _____, ...draft } = full;
  for (const text of [minimal, formatProfile(draft)]) {
    const profile = parseProfile(text, 'p.toml');
    assert.equal(profile.verifyServer, true);
    assert.deepEqual(profile.pins, []);
    assert.deepEqual(profile.allow, { fullTunnel: true, maxRoutes: 1000, dns: true });
    assert.deepEqual(profile.tunnel, {
      device: 'tun',
      mode: 'auto',
      include: [],
      exclude: [],
      lan: false,
      overlap: 'auto',
      dns: [],
      killSwitch: 'off',
      networks: [],
      compression: false,
    });
    assert.equal(profile.token, undefined);
  }
});

test('any name survives', () => {
  const name = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 });
  fc.assert(
    fc.property(name, (value) => {
      fc.pre(value.length <= 128 && /^[^\p{Cc}\p{Bidi_Control}]+$/u.test(value) && value.isWellFormed());
      assert.equal(parseProfile(formatProfile({ ...full, name: value }), 'p.toml').name, value);
    }),
  );
});

test('random text never throws anything but a VpnError', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 300 }), (text) => {
      try {
        parseProfile(`${minimal}${text}`, 'p.toml');
      } catch (error) {
        assert.ok(isVpnError(error), inspect(error));
      }
    }),
  );
});

test('each mistake has its code and names its key', () => {
  refuses('version = ', 'ERR_CONFIG_SYNTAX', { line: 1 });
  refuses(withLine('colour = "red"'), 'ERR_CONFIG_KEY', { key: 'colour', line: 5 });
  refuses(minimal.replace('version = 1', 'version = 2'), 'ERR_CONFIG_VALUE', { key: 'version' });
  refuses(minimal.replace(/name = "home"\n/, ''), 'ERR_CONFIG_VALUE', { key: 'name' });
  refuses(minimal.replace('"home"', '"a\\u0007b"'), 'ERR_CONFIG_VALUE', { key: 'name' });
  refuses(minimal.replace('443', '0'), 'ERR_CONFIG_VALUE', { key: 'server.port' });
  refuses(minimal.replace('443', '65536'), 'ERR_CONFIG_VALUE', { key: 'server.port' });
  refuses(minimal.replace('["vpn.example.org"]', '[]'), 'ERR_CONFIG_VALUE', { key: 'server.hosts' });
  refuses(minimal.replace('["vpn.example.org"]', '["a b"]'), 'ERR_CONFIG_VALUE', { key: 'server.hosts.0' });
  refuses(minimal.replace('0'.repeat(32), '../../etc'), 'ERR_CONFIG_VALUE', { key: 'id' });
  refuses(withLine('pins = ["short"]'), 'ERR_CONFIG_VALUE', { key: 'pins.0' });
  refuses(withLine('ca = "not PEM"'), 'ERR_CONFIG_VALUE', { key: 'ca' });
  refuses(withLine(`ca = """${CA.replace('MIIB', 'MIIC')}"""`), 'ERR_CONFIG_VALUE', { key: 'ca' });
  refuses(withLine('certFile = "a.pem"'), 'ERR_CONFIG_VALUE', { key: 'keyFile' });
  refuses(`${minimal}[allow]\nmaxRoutes = 1001\n`, 'ERR_CONFIG_VALUE', { key: 'allow.maxRoutes' });
  for (const [line, key] of [
    ['mode = "half"', 'mode'],
    ['include = ["192.0.2.0"]', 'include.0'],
    ['include = ["0.0.0.0/0"]', 'include.0'],
    ['exclude = ["10.0.0.0/8", "::/0"]', 'exclude.1'],
    ['dns = ["dns.example"]', 'dns.0'],
    ['lan = "yes"', 'lan'],
    ['overlap = "both"', 'overlap'],
    ['killSwitch = true', 'killSwitch'],
    ['mode = "split"\nkillSwitch = "on"', 'killSwitch'],
    ['channels = 0', 'channels'],
    ['channels = 17', 'channels'],
  ]) {
    refuses(`${minimal}[tunnel]\n${line}\n`, 'ERR_CONFIG_VALUE', { key: `tunnel.${key}` });
  }
  refuses(' '.repeat(300_000), 'ERR_CONFIG_VALUE');
});

test('a token needs a pin and a verified server', () => {
  const pins = `pins = ["${'A'.repeat(43)}="]`;
  const token = `token = "${TOKEN_TEXT}"`;
  refuses(withLine(token), 'ERR_CONFIG_VALUE', { key: 'pins' });
  refuses(withLine(`${token}\n${pins}\nverifyServer = false`), 'ERR_CONFIG_VALUE', { key: 'verifyServer' });
  assert.ok(parseProfile(withLine(`${token}\n${pins}`), 'p.toml').token);
  assert.equal(parseProfile(withLine('verifyServer = false'), 'p.toml').verifyServer, false);
});

test('a token of the wrong length, alphabet or form is refused', () => {
  const pins = `pins = ["${'A'.repeat(43)}="]`;
  const wrong = [
    '',
    TOKEN_TEXT.slice(1),
    `${TOKEN_TEXT}A`,
    `${TOKEN_TEXT}==`,
    TOKEN_TEXT.replace(/.$/, '+'),
    TOKEN_TEXT.replace(/.$/, '_'),
  ];
  for (const text of wrong) refuses(withLine(`token = "${text}"\n${pins}`), 'ERR_CONFIG_VALUE', { key: 'token' });
});

test('neither errors, nor logs, nor an inspected profile show the token', () => {
  const secret = TOKEN_TEXT.slice(8, 30);
  const lines: string[] = [];
  const log = createLogger({ format: 'json', sink: { write: (line) => void lines.push(line) } });
  const broken = [
    `token = "${TOKEN_TEXT}\n${minimal}`,
    `token = "${TOKEN_TEXT}" "\n${minimal}`,
    `${TOKEN_TEXT}\n${minimal}`,
    withLine(`token = "${TOKEN_TEXT}x"`),
    withLine(`token = "${TOKEN_TEXT}"`),
    withLine(`tokens = "${TOKEN_TEXT}"`),
  ];
  for (const text of broken) {
    assert.throws(
      () => parseProfile(text, 'p.toml'),
      (error) => {
        log.error('failed', { error });
        lines.push(inspect(error, { depth: 9 }), JSON.stringify(error));
        return isVpnError(error);
      },
    );
  }
  const profile = parseProfile(formatProfile(full), 'p.toml');
  log.info('profile', { profile });
  lines.push(inspect(profile, { depth: 9 }), JSON.stringify(profile), String(profile.token));
  assert.ok(lines.length > 15);
  for (const line of lines) assert.equal(line.includes(secret), false, line);
});

test('a profile is written with mode 0600, read again, and loses its token after enrolment', async () => {
  const path = join(folder, 'ada.toml');
  await writeFile(path, '', { mode: 0o644 });
  await writeProfile(path, full);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  const profile = await readProfile(path);
  assert.deepEqual(profile.token?.reveal(), TOKEN);
  await writeProfile(path, withoutToken(profile));
  const again = await readProfile(path);
  const { token: _, ...rest } = profile;
  assert.deepEqual(again, rest);
  assert.equal((await readFile(path, 'utf8')).includes(TOKEN_TEXT), false);
  await assert.rejects(writeProfile(path, full, { when: 'create' }), { code: 'ERR_CONFLICT' });
});

test('a file that is missing, a folder or too large has its code', async () => {
  await assert.rejects(readProfile(join(folder, 'absent.toml')), { code: 'ERR_CONFIG_FILE' });
  await assert.rejects(readProfile(folder), { code: 'ERR_CONFIG_FILE' });
  const large = join(folder, 'large.toml');
  await writeFile(large, `${minimal}#${'x'.repeat(300_000)}`);
  await assert.rejects(readProfile(large), { code: 'ERR_CONFIG_VALUE' });
});

test('profile ids are 128 random bits', () => {
  assert.match(newProfileId(), /^[0-9a-f]{32}$/);
  assert.notEqual(newProfileId(), newProfileId());
});
