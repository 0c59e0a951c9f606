/**
 * `customvpn client import | profiles | remove | logs | unit`: profiles under a name, and what belongs to each.
 */

import { watch } from 'node:fs';
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import type { Command } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { Profile } from '../control/profile.ts';
import { findProfile, profileIdAt } from '../control/profile-place.ts';
import type { ClientFacts, CliHost } from './host.ts';
import { clientState, jsonOutput, stateHint } from './options.ts';
import { dim, good, type OutputOptions, print, table, warning } from './output.ts';
import { readStandardInput } from './secrets.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

/** What is kept of a profile is found by this. @throws {VpnError} ERR_CONFIG_* */
export async function idOf(state: string, profile: string): Promise<string> {
  return (await profileIdAt(await findProfile(state, profile))).slice(0, 16);
}

export function addProfileCommands(command: Command, host: CliHost): void {
  command
    .command('import')
    .description('keep a profile under a name, from a file, a link in a file, or standard input')
    .argument('<file>', 'a profile or a file with its link; - reads either from standard input')
    .option('--name <name>', 'how commands will know it; default: as it is called')
    .addOption(clientState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn client import alice.toml --name work\n  customvpn client import -        (then paste the link)',
    )
    .action(async (file: string, options: StateOptions & { name?: string }) => {
      const profile = await readImport(file);
      const { importProfile } = await import('../control/profile-store.ts');
      const stored = await importProfile(options.state, profile, options.name);
      const left = profile.tokenExpires === undefined ? 0 : Date.parse(profile.tokenExpires) - Date.now();
      const until = profile.token === undefined ? '' : expiryWords(profile.tokenExpires, left);
      print({ name: stored.name, file: stored.path, server: profile.server.name }, options, ({ name }) =>
        [
          `imported "${name}", for ${profile.server.name}${until}`,
          `\nNext:\n  customvpn client up ${name}${stateHint(options.state)}`,
        ].join('\n'),
      );
    });

  command
    .command('profiles')
    .description('imported profiles, and which of them are connected')
    .addOption(clientState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      const facts = await host.clientFacts(options.state);
      const { listProfiles } = await import('../control/profile-store.ts');
      const rows = (await listProfiles(options.state)).map(({ name, path, profile }) =>
        rowOf(name, path, profile, facts.get(profile.id.slice(0, 16))),
      );
      print(rows, options, (all) =>
        all.length === 0
          ? `none has been imported; see: customvpn client import --help`
          : table(
              ['name', 'server', 'user', 'device', 'state'],
              all.map(({ name, server, user, device, running }) => [
                name,
                server,
                user ?? '',
                device,
                running ? good('running') : dim('down'),
              ]),
            ),
      );
    });

  command
    .command('remove')
    .description("forget an imported profile and its device's key")
    .argument('<name>')
    .addOption(clientState())
    .action(async (name: string, options: StateOptions) => {
      const id = await idOf(options.state, name);
      const facts = (await host.clientFacts(options.state)).get(id);
      if (facts?.isRunning === true) {
        const down = `customvpn client down ${name}${stateHint(options.state)}`;
        throw new VpnError('ERR_CONFLICT', `"${name}" is connected; disconnect it first: ${down}`);
      }
      const { removeProfile } = await import('../control/profile-store.ts');
      const { profile } = await removeProfile(options.state, name);
      await host.forgetClient(options.state, id);
      const device = facts?.isEnrolled === true ? '; the gateway still lists this device: have it revoked there' : '';
      process.stdout.write(`removed "${name}", for ${profile.server.name}${device}\n`);
    });

  command
    .command('logs')
    .description('the log of a client in the background')
    .argument('[profile]', 'default: the only one there is')
    .option('--follow', 'go on with what comes')
    .option('--lines <n>', 'how many lines from its end', '100')
    .addOption(clientState())
    .addHelpText('after', '\nExample:\n  customvpn client logs work --follow')
    .action(async (profile: string | undefined, options: StateOptions & { follow?: boolean; lines: string }) => {
      const lines = Number(options.lines);
      if (!Number.isInteger(lines) || lines < 0 || lines > 100_000) {
        throw new VpnError('ERR_USAGE', `expected --lines from 0 to 100000, got "${options.lines}"`);
      }
      await showLog(await logOf(host, options.state, profile), lines, options.follow === true);
    });

  command
    .command('unit')
    .description('print a systemd unit that connects an imported profile from boot on')
    .addOption(clientState())
    .addHelpText(
      'after',
      '\nExample:\n  customvpn client unit > /etc/systemd/system/customvpn-client@.service\n  systemctl enable --now customvpn-client@work',
    )
    .action(async (options: StateOptions) => {
      process.stdout.write(await host.clientUnit(options.state));
    });
}

/** @throws {VpnError} ERR_USAGE, ERR_CONFIG_* */
async function readImport(file: string): Promise<Profile> {
  const [{ decodeProfileLink, isProfileLink }, { parseProfile, readProfile }] = await Promise.all([
    import('../control/profile-link.ts'),
    import('../control/profile.ts'),
  ]);
  if (isProfileLink(file)) {
    throw new VpnError(
      'ERR_USAGE',
      'a link holds a secret, and other users see the arguments of commands; run: customvpn client import - and paste it there',
    );
  }
  if (file !== '-') {
    const start = await readFile(file, { encoding: 'utf8' }).catch(() => '');
    return isProfileLink(start) ? decodeProfileLink(start) : await readProfile(file);
  }
  const text = await readStandardInput('Paste the profile or its link, then Ctrl-D:');
  return isProfileLink(text) ? decodeProfileLink(text) : parseProfile(text, 'standard input');
}

function expiryWords(expires: string | undefined, leftMs: number): string {
  if (expires === undefined) return '';
  if (leftMs > 0) return `; it enrols one device until ${expires}`;
  return `\n${warning('its one-time token has expired')} on ${expires}: ask for a new profile, unless this device is enrolled`;
}

function rowOf(name: string, file: string, profile: Profile, facts: ClientFacts | undefined) {
  const { server, user, token, tokenExpires } = profile;
  const isExpired = tokenExpires !== undefined && Date.parse(tokenExpires) < Date.now();
  return {
    name,
    server: `${server.name}:${server.port}`,
    user: user ?? null,
    device:
      facts?.isEnrolled === true
        ? 'enrolled'
        : token === undefined
          ? 'new'
          : isExpired
            ? 'token expired'
            : 'new, has a token',
    running: facts?.isRunning ?? false,
    lastEnd: facts?.end ?? null,
    file,
  };
}

async function logOf(host: CliHost, state: string, profile: string | undefined): Promise<string> {
  const facts = await host.clientFacts(state);
  if (profile !== undefined) {
    const found = facts.get(await idOf(state, profile));
    if (found !== undefined) return found.log;
  } else {
    const all = [...facts.values()];
    const running = all.filter(({ isRunning }) => isRunning);
    const [only, another] = running.length > 0 ? running : all;
    if (only !== undefined && another === undefined) return only.log;
    if (another !== undefined) throw new VpnError('ERR_USAGE', 'there are several logs; name a profile');
  }
  throw new VpnError('ERR_NOT_FOUND', `no client has run with the state directory ${state}`);
}

const CHUNK_BYTES = 64 * 1024;

async function showLog(path: string, lines: number, follow: boolean): Promise<void> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    throw new VpnError(
      'ERR_NOT_FOUND',
      `there is no log at ${path}; a client that systemd runs has it in the journal: journalctl -u customvpn-client@NAME`,
      { cause },
    );
  }
  try {
    const { size } = await file.stat();
    const text = await readEnd(file, size, lines);
    process.stdout.write(text);
    if (follow) await followLog(file, path, size);
  } finally {
    await file.close();
  }
}

/** The last lines, read from the end so that a long log costs no more than what is shown. */
async function readEnd(file: FileHandle, size: number, lines: number): Promise<string> {
  const parts: Buffer[] = [];
  let newlines = 0;
  for (let end = size; end > 0 && newlines <= lines; ) {
    const length = Math.min(CHUNK_BYTES, end);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, end - length);
    const part = buffer.subarray(0, bytesRead);
    parts.unshift(part);
    for (const byte of part) newlines += byte === 10 ? 1 : 0;
    end -= length;
  }
  const all = Buffer.concat(parts).toString('utf8').split('\n');
  const tail = all.at(-1) === '' ? all.slice(0, -1) : all;
  const shown = lines === 0 ? [] : tail.slice(-lines);
  return shown.map((line) => `${line}\n`).join('');
}

async function followLog(file: FileHandle, path: string, from: number): Promise<void> {
  let at = from;
  const show = async (): Promise<void> => {
    const { size } = await file.stat();
    // It has been emptied, its old lines moved.
    if (size < at) at = 0;
    while (at < size) {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(CHUNK_BYTES), 0, CHUNK_BYTES, at);
      if (bytesRead === 0) break;
      process.stdout.write(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
  };
  const events = watch(dirname(path));
  await show();
  let showing = Promise.resolve();
  events.on('change', (_kind, name) => {
    if (name === basename(path)) showing = showing.then(show);
  });
  await new Promise((resolve) => process.once('SIGINT', resolve).once('SIGTERM', resolve));
  events.close();
  await showing;
}
