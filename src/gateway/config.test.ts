/** The configuration table, its example and its documentation say the same. */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseConfig } from '../base/config.ts';
import { isVpnError } from '../base/errors.ts';
import { gatewayConfigSchema, RELOADABLE_KEYS, resolveFiles } from './config.ts';

const root = join(import.meta.dirname, '..', '..');
const documentation = await readFile(join(root, 'docs', 'configuration.md'), 'utf8');
const example = await readFile(join(root, 'config', 'server.example.toml'), 'utf8');
const defaults = parseConfig('', gatewayConfigSchema, 'nothing');

/** `a` or `a.b` for every key that there is. */
function keysOf(value: object, prefix = ''): string[] {
  return Object.entries(value).flatMap(([key, inner]) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? keysOf(inner, `${prefix}${key}.`)
      : [`${prefix}${key}`],
  );
}

const schemaKeys = Object.entries(gatewayConfigSchema.shape).flatMap(([key]) => {
  const value: unknown = Reflect.get(defaults, key);
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? keysOf(value, `${key}.`) : [key];
});

function documentedDefault(key: string): string | undefined {
  const row = documentation.split('\n').find((line) => line.split('|')[1]?.trim() === `\`${key}\``);
  return row?.split('|')[2]?.trim();
}

test('the example configuration parses and shows every key', () => {
  const parsed = parseConfig(example, gatewayConfigSchema, 'config/server.example.toml');
  assert.deepEqual(keysOf(parsed).sort(), [...schemaKeys].sort());
});

test('every key is documented with its true default', () => {
  for (const key of schemaKeys) {
    const value = key.split('.').reduce<unknown>((inner, part) => Reflect.get(Object(inner), part), defaults);
    const expected = value === undefined ? '–' : `\`${JSON.stringify(value)}\``;
    assert.equal(documentedDefault(key), expected, key);
  }
});

const MINIMAL_BACKENDS = {
  ldap: 'kind = "ldap"\nurls = ["ldaps://a.example"]\ncaFile = "ca.pem"\nbaseDn = "dc=a"\n',
  oidc: 'kind = "oidc"\nissuer = "https://id.example"\nclientId = "vpn"\n',
  radius: 'kind = "radius"\nservers = ["192.0.2.1"]\nsecretFile = "secret"\n',
} as const;

for (const [kind, text] of Object.entries(MINIMAL_BACKENDS)) {
  test(`every key of a back end of kind ${kind} is documented with its true default`, () => {
    const option = gatewayConfigSchema.shape.backends
      .unwrap()
      .valueType.options.find((candidate) => candidate.shape.kind.value === kind);
    assert.ok(option !== undefined);
    const parsed = parseConfig(`[backends.x]\n${text}`, gatewayConfigSchema, 'x').backends.x ?? {};
    const section = documentation.split(`### \`kind = "${kind}"\``)[1]?.split('\n## ')[0]?.split('\n### ')[0] ?? '';
    const rows = new Map(
      section.split('\n').map((line) => [line.split('|')[1]?.trim(), line.split('|')[2]?.trim()] as const),
    );
    const given = [...text.matchAll(/^(\w+) =/gm)].map((match) => match[1]);
    for (const key of Object.keys(option.shape)) {
      if (key === 'kind') continue;
      const value: unknown = given.includes(key) ? undefined : Reflect.get(parsed, key);
      const expected = value === undefined ? '–' : `\`${JSON.stringify(value)}\``;
      assert.equal(rows.get(`\`${key}\``), expected, key);
    }
    const documented = [...rows.keys()].flatMap((key) => /^`(\w+)`$/.exec(key ?? '')?.[1] ?? []);
    assert.deepEqual([...documented, 'kind'].sort(), Object.keys(option.shape).sort());
  });
}

test('every key of a webhook is documented with its true default', () => {
  const text = '[webhooks.x]\nurl = "https://a.example"\nsecretFile = "secret"\n';
  const parsed = parseConfig(text, gatewayConfigSchema, 'x').webhooks.x ?? {};
  const keys = Object.keys(gatewayConfigSchema.shape.webhooks.unwrap().valueType.shape);
  for (const key of keys) {
    const value: unknown = text.includes(`\n${key} =`) ? undefined : Reflect.get(parsed, key);
    const expected = value === undefined ? '–' : `\`${JSON.stringify(value)}\``;
    assert.equal(documentedDefault(`webhooks.NAME.${key}`), expected, key);
  }
  const documented = [...documentation.matchAll(/`webhooks\.NAME\.(\w+)`/g)].map(([, key]) => key);
  assert.deepEqual([...documented].sort(), keys.sort());
});

test('exactly the keys that a reload applies are marked so', () => {
  const marked = documentation.split('\n').filter((line) => line.startsWith('| `') && line.includes('_reload_'));
  const keys = marked.map((line) => line.split('`')[1]?.split('.')[0]);
  assert.deepEqual([...new Set(keys)].sort(), [...RELOADABLE_KEYS].sort());
  // All of a table or none of it.
  for (const line of documentation.split('\n')) {
    const key = /^\| `(\w+)\.\w/.exec(line)?.[1];
    const isReloadable = RELOADABLE_KEYS.some((reloadable) => reloadable === key);
    if (key !== undefined) assert.equal(line.includes('_reload_'), isReloadable, line);
  }
});

test('an unknown key is refused with its name and line', () => {
  assert.throws(() => parseConfig('port = 443\nprot = 1\n', gatewayConfigSchema, 'x.toml'), {
    code: 'ERR_CONFIG_KEY',
    message: /x\.toml:2: unknown key "prot"/,
  });
});

test('a fault in one table is not looked for in another', () => {
  for (const [text, line] of [
    [`[backends.x]\n${MINIMAL_BACKENDS.ldap.replace('caFile = "ca.pem"\n', '')}`, 2],
    [`[backends.x]\n${MINIMAL_BACKENDS.ldap}timeoutSeconds = 0\n[login]\n`, 7],
    ['[backends.x]\nkind = "pam"\n', 3],
    [`[backends.x]\n${MINIMAL_BACKENDS.radius}caFile = "x"\n`, 6],
  ] as const) {
    assert.throws(() => parseConfig(`caFile = "a"\n${text}`, gatewayConfigSchema, 'x.toml'), {
      message: new RegExp(`^x\\.toml:${line}: `),
    });
  }
});

for (const [text, key] of [
  ['port = 70000', 'port'],
  ['mtu = 1000', 'mtu'],
  ['pool = ["10.0.0.0"]', 'pool'],
  ['services = ["http"]', 'services'],
  ['device = "a very long name"', 'device'],
  ['minVersion = "1.1"', 'minVersion'],
  ['requireClientAuth = "maybe"', 'requireClientAuth'],
  ['[session]\nidleSeconds = -1', 'session.idleSeconds'],
  // What clients would refuse, or a message cannot say, is refused here.
  ['[session]\nabsoluteSeconds = 3600.5', 'session.absoluteSeconds'],
  ['[session]\npingSeconds = 40', 'session.deadSeconds'],
  ['dnsDomains = ["Example.org"]', 'dnsDomains'],
  ['[login]\nrecheckSeconds = 1', 'login.recheckSeconds'],
  ['[backends.x]\nkind = "pam"', 'backends.x.kind'],
  // A password that crosses the network readable needs the operator's word for it.
  [`[backends.x]\n${MINIMAL_BACKENDS.ldap.replace('caFile = "ca.pem"\n', '')}`, 'backends.x.caFile'],
  [`[backends.x]\n${MINIMAL_BACKENDS.ldap.replace('ldaps:', 'ldap:')}startTls = false`, 'backends.x.startTls'],
  [`[backends.x]\n${MINIMAL_BACKENDS.ldap}filter = "(uid=alice)"`, 'backends.x.filter'],
  [`[backends.x]\n${MINIMAL_BACKENDS.ldap}bindDn = "cn=vpn"`, 'backends.x.bindPasswordFile'],
  [`[backends.x]\n${MINIMAL_BACKENDS.oidc.replace('https:', 'http:')}insecure = true`, 'backends.x.issuer'],
  [`[backends.x]\n${MINIMAL_BACKENDS.oidc}scopes = ["email"]`, 'backends.x.scopes'],
  [`[backends.x]\n${MINIMAL_BACKENDS.radius.replace('192.0.2.1', 'radius.example')}`, 'backends.x.servers'],
  [`[backends.x]\n${MINIMAL_BACKENDS.radius.replace('192.0.2.1', '192.0.2.1:70000')}`, 'backends.x.servers'],
] as const) {
  test(`a bad value is refused by name: ${text.replace('\n', ' ')}`, () => {
    assert.throws(
      () => parseConfig(text, gatewayConfigSchema, 'x.toml'),
      (error: Error & { code?: string }) => {
        assert.equal(error.code, 'ERR_CONFIG_VALUE');
        assert.match(error.message, new RegExp(`x\\.toml:\\d: ${key.replaceAll('.', '\\.')}`));
        return true;
      },
    );
  });
}

test('file names are resolved against the folder of the configuration', () => {
  const resolved = resolveFiles({ ...defaults, caFile: '/etc/ca.pem' }, '/srv/vpn');
  assert.equal(resolved.certFile, '/srv/vpn/certs/server.pem');
  assert.equal(resolved.caFile, '/etc/ca.pem');
  assert.equal(resolved.crlFile, undefined);
  const { backends } = parseConfig(`[backends.x]\n${MINIMAL_BACKENDS.radius}`, gatewayConfigSchema, 'x');
  assert.partialDeepStrictEqual(resolveFiles({ ...defaults, backends }, '/srv/vpn').backends, {
    x: { secretFile: '/srv/vpn/secret', servers: ['192.0.2.1'] },
  });
});

test('the address of a store carries no password, and no message repeats one', () => {
  for (const text of ['url = "postgres://vpn:secret-word@db/x"', 'url = "mysql://db/x"', 'passwordFile = "only"']) {
    assert.throws(
      () => parseConfig(`[store]\n${text}\n`, gatewayConfigSchema, 'x'),
      (error) => isVpnError(error, 'ERR_CONFIG_VALUE') && !error.message.includes('secret-word'),
      text,
    );
  }
  const url = 'postgres://vpn@db.example/x';
  const text = `[store]\nurl = "${url}"\npasswordFile = "secrets/store"\ncaFile = "ca.pem"\n`;
  const { store } = resolveFiles(parseConfig(text, gatewayConfigSchema, 'x'), '/state');
  assert.deepEqual(store, { url, passwordFile: '/state/secrets/store', caFile: '/state/ca.pem' });
});
