/**
 * `server bundle`: what somebody needs who is asked why a gateway does not do what it should, without what they must not see.
 */

import { mkdir, readdir, readFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { toVpnError, VpnError } from '../src/base/errors.ts';
import { writePrivateFile } from '../src/base/private-file.ts';
import { Redactor } from '../src/base/redact.ts';
import type { BundleResult, GatewaySource } from '../src/cli/host.ts';
import { readGatewayConfig, statePaths } from '../src/gateway/layout.ts';
import { isWithinAny } from '../src/gateway/networks.ts';
import { runCommand } from '../src/os/command.ts';
import { findRequirements } from '../src/os/requirements.ts';
import { openGateway } from './gateway.ts';
import { presentConfigFileOf } from './gateway-source.ts';

const LOG_LINES = 5000;
const LOG_BYTES = 4 * 1024 * 1024;
const DAY_MS = 86_400_000;
const SECRET_FILE_BYTES = 64 * 1024;
const KEPT = isWithinAny([
  '10.0.0.0/8',
  '172.16.0.0/12',
  '192.168.0.0/16',
  '127.0.0.0/8',
  '0.0.0.0/8',
  'fc00::/7',
  'fe80::/10',
  '::/127',
]);

const README = `What a gateway is and does, for whoever is asked for help. Look through it before you give it away.

Taken out by rule: private keys, passwords, tokens and other secrets, by what they are called, by what they look like and by what
the files of secrets hold; names of users, which are user-1, user-2, the same everywhere; addresses that are not private, which are
address-1, address-2. Not in it at all: the store, keys, profiles, and the lines of the audit record.
`;

/** Writes the files into `folder`, which must not be there. @throws {VpnError} ERR_CONFLICT, ERR_CONFIG_FILE, ERR_PRIVILEGE */
export async function bundle(
  source: GatewaySource,
  folder: string,
  log: string | undefined,
  version: string,
): Promise<BundleResult> {
  await mkdir(folder, { mode: 0o700 }).catch((cause: NodeJS.ErrnoException) => {
    const why = cause.code === 'EEXIST' ? 'it is there already' : String(cause.code);
    throw new VpnError('ERR_CONFLICT', `cannot make the folder ${folder}: ${why}; name another`, { cause });
  });
  const configFile = await presentConfigFileOf(source);
  const names = new Set<string>();
  const parts = new Map<string, string>([['README.txt', README]]);
  const missing: string[] = [];
  const add = async (name: string, gather: () => Promise<string>): Promise<void> => {
    try {
      parts.set(name, await gather());
    } catch (error) {
      missing.push(name);
      parts.set(name, `not there: ${toVpnError(error).message}\n`);
    }
  };
  const command = (program: string, ...args: string[]) => runCommand(program, args);

  await add('configuration.toml', () => readFile(configFile, 'utf8'));
  await add('machine.json', async () => {
    const system = await readFile('/etc/os-release', 'utf8').catch(() => '');
    return json({
      customvpn: version,
      node: process.version,
      kernel: release(),
      arch: process.arch,
      system: system.split('\n')[0],
    });
  });
  await add('requirements.json', async () => json(await findRequirements()));
  await using gateway = await openGateway(source);
  await add('users.json', async () => {
    const users = await gateway['user.list']({});
    for (const { name } of users) names.add(name);
    return json(
      users.map(({ groups, disabled, expiresAt, source: from, devices }) => ({
        groups,
        disabled,
        expiresAt,
        from,
        devices,
      })),
    );
  });
  await add('status.json', async () => json(await gateway['server.status']({})));
  await add('sessions.json', async () => json(await gateway['session.list']({})));
  await add('audit-counts.json', async () => {
    const since = new Date(Date.now() - DAY_MS).toISOString();
    const records = await gateway['audit.list']({ since, limit: 10_000 });
    const counts: Record<string, number> = {};
    for (const { event, reason, user } of records) {
      if (user !== null) names.add(user);
      const key = reason === null ? event : `${event}: ${reason}`;
      counts[key] = (counts[key] ?? 0) + 1;
    }
    return json(counts);
  });
  await add('links.txt', () => command('ip', '-s', 'link'));
  await add('addresses.txt', () => command('ip', '-br', 'address'));
  await add(
    'routes.txt',
    async () => `${await command('ip', 'rule')}\n${await command('ip', 'route', 'show', 'table', 'all')}`,
  );
  await add('packet-rules.txt', () => command('nft', 'list', 'table', 'inet', 'customvpn'));
  await add('log.txt', async () =>
    log === undefined
      ? await command('journalctl', '--unit=customvpn', '--no-pager', `--lines=${LOG_LINES}`)
      : (await readFile(log, 'utf8')).slice(-LOG_BYTES),
  );

  const redactor = new Redactor({ secrets: await secretsOf(source.state, configFile), names, isKept: KEPT });
  for (const [name, text] of parts)
    await writePrivateFile(join(folder, name), name === 'README.txt' ? text : redactor.text(text));
  return { folder, files: [...parts.keys()], missing };
}

function json(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}

/** What the files of secrets hold: of the state directory, and those that the configuration names. */
async function secretsOf(state: string, configFile: string): Promise<Set<string>> {
  const files = [statePaths(state).masterKey];
  const certs = statePaths(state).certs;
  for (const name of await readdir(certs, { recursive: true }).catch(() => [])) {
    if (name.endsWith('.key')) files.push(join(certs, name));
  }
  const config = await readGatewayConfig(configFile).catch(() => undefined);
  const find = (value: unknown, key: string): void => {
    if (typeof value === 'string' && /(?:secret|password)file$/i.test(key)) files.push(value);
    else if (typeof value === 'object' && value !== null)
      for (const [name, part] of Object.entries(value)) find(part, name);
  };
  find(config, '');
  const secrets = new Set<string>(config?.camouflage === undefined ? [] : [config.camouflage]);
  for (const file of files) {
    const bytes = await readFile(file).catch(() => undefined);
    if (bytes === undefined || bytes.length > SECRET_FILE_BYTES) continue;
    for (const line of bytes.toString('utf8').split('\n')) if (!line.startsWith('-----')) secrets.add(line.trim());
    for (const form of ['hex', 'base64', 'base64url', 'latin1'] as const) secrets.add(bytes.toString(form).trim());
  }
  return secrets;
}
