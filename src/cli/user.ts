/**
 * `customvpn user …`: who may log in.
 */

import { Command } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { AccessTokenInfo, PasskeyInfo, UserInfo } from '../control/operations.ts';
import type { CliHost } from './host.ts';
import { gatewayConfig, gatewayState, instant, jsonOutput, list, stateHint } from './options.ts';
import { bad, facts, formatAge, good, type OutputOptions, print, table } from './output.ts';
import { drawQr, newPassword } from './secrets.ts';

interface StateOptions extends OutputOptions {
  state: string;
  config?: string;
}

export function userCommand(host: CliHost): Command {
  const command = new Command('user').description('who may log in');
  const verb = (usage: string, description: string) =>
    command
      .command(usage)
      .description(description)
      .addOption(gatewayState())
      .addOption(gatewayConfig())
      .addOption(jsonOutput());

  verb('add', 'add a user')
    .argument('<name>')
    .option('--group <name,…>', 'groups the user is in', list)
    .option('--expires <when>', 'no login from then on: a date, an instant or a time from now such as 30d', instant)
    .option('--password-stdin', 'set the password that standard input has on its first line')
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn user add alice --group staff,admins\n  customvpn user add guest --expires 7d',
    )
    .action(async (name: string, options: StateOptions & AddOptions) => {
      const password = options.passwordStdin === true ? await newPassword(true) : undefined;
      await using gateway = await host.openGateway(options);
      const added = await gateway['user.add']({
        name,
        groups: options.group ?? [],
        ...(options.expires === undefined ? {} : { expiresAt: options.expires }),
        ...(password === undefined ? {} : { password }),
      });
      print(added, options, (user) =>
        [
          `added ${user.name}`,
          '',
          'Next:',
          `  customvpn profile ${user.name}${stateHint(options.state, options.config)} --out ${user.name}.toml`,
        ].join('\n'),
      );
    });

  verb('list', 'all users').action(async (options: StateOptions) => {
    await using gateway = await host.openGateway(options);
    print(await gateway['user.list']({}), options, (users) =>
      users.length === 0 ? 'no users; add one with: customvpn user add NAME' : table(HEADING, users.map(row)),
    );
  });

  verb('show', 'one user and their devices')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['user.show']({ name }), options, (user) =>
        [
          facts([
            ['name', user.name],
            ['groups', user.groups.join(', ') || 'none'],
            ['state', stateOf(user)],
            ['since', user.createdAt],
            ['expires', user.expiresAt ?? undefined],
            ['comes from', user.source ?? undefined],
            ['password', user.passwordSetAt === null ? 'none' : `set ${formatAge(user.passwordSetAt)} ago`],
            ['one-time codes', user.totp ? `yes; ${user.recoveryCodesLeft} recovery codes left` : 'none'],
          ]),
          '',
          table(
            ['device', 'name', 'state', 'last seen'],
            user.devices.map((device) => [
              device.id,
              device.name,
              device.state,
              device.lastSeenAt === null ? 'never' : `${formatAge(device.lastSeenAt)} ago`,
            ]),
          ),
          ...(user.passkeys.length === 0 ? [] : ['', passkeyTable(user.passkeys)]),
          ...(user.tokens.length === 0 ? [] : ['', tokenTable(user.tokens)]),
        ].join('\n'),
      );
    });

  verb('disable', 'refuse a user and end their sessions now')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(
        await gateway['user.disable']({ name }),
        options,
        ({ kicked }) => `disabled ${name}; ${kicked} sessions ended`,
      );
    });

  verb('enable', 'let a disabled user in again')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['user.enable']({ name }), options, () => `enabled ${name}`);
    });

  verb('unlock', 'forget the failed logins with a name, and those of the devices of its user')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['user.unlock']({ name }), options, ({ unlocked }) =>
        unlocked ? `unlocked ${name}` : `nothing was held against ${name}; see: customvpn server bans`,
      );
    });

  verb('delete', 'remove a user, their devices and tokens, and end their sessions now')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(
        await gateway['user.delete']({ name }),
        options,
        ({ kicked }) => `deleted ${name}; ${kicked} sessions ended`,
      );
    });

  verb('passwd', "set a user's password; sessions that the old one opened end now")
    .argument('<name>')
    .option('--stdin', 'read it from the first line of standard input')
    .option('--remove', 'take the password away')
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn user passwd alice\n  pass show vpn/alice | customvpn user passwd alice --stdin',
    )
    .action(async (name: string, options: StateOptions & { stdin?: boolean; remove?: boolean }) => {
      const password = options.remove === true ? null : await newPassword(options.stdin ?? false);
      await using gateway = await host.openGateway(options);
      const done = password === null ? 'took the password away from' : 'set the password of';
      print(
        await gateway['user.password']({ name, password }),
        options,
        ({ kicked }) => `${done} ${name}; ${kicked} sessions ended`,
      );
    });

  verb('totp', "make a secret for a user's authenticator app, and recovery codes; earlier ones are void")
    .argument('<name>')
    .option('--remove', 'take secret and recovery codes away')
    .addHelpText('after', '\nExample:\n  customvpn user totp alice')
    .action(async (name: string, options: StateOptions & { remove?: boolean }) => {
      await using gateway = await host.openGateway(options);
      if (options.remove === true) {
        print(await gateway['user.totpRemove']({ name }), options, ({ removed, kicked }) =>
          removed
            ? `took the second factor away from ${name}; ${kicked} sessions ended`
            : `${name} has no second factor`,
        );
        return;
      }
      const made = await gateway['user.totp']({ name });
      const drawing = options.json === true ? '' : await drawQr(made.uri);
      print(made, options, ({ uri, recoveryCodes }) =>
        [
          'Scan this with an authenticator app, or give it the address below:',
          '',
          drawing,
          '',
          uri,
          '',
          codesText(recoveryCodes),
        ].join('\n'),
      );
    });

  verb('recovery', 'make new recovery codes; the old ones are void')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['user.recovery']({ name }), options, ({ recoveryCodes }) => codesText(recoveryCodes));
    });

  verb('group', 'put a user into groups or take them out')
    .argument('<name>')
    .option('--add <group,…>', 'groups to add', list)
    .option('--remove <group,…>', 'groups to remove', list)
    .addHelpText('after', '\nExample:\n  customvpn user group alice --add admins --remove guests')
    .action(async (name: string, options: StateOptions & { add?: string[]; remove?: string[] }) => {
      const { add = [], remove = [] } = options;
      if (add.length + remove.length === 0) throw new VpnError('ERR_USAGE', 'expected --add or --remove with groups');
      await using gateway = await host.openGateway(options);
      print(
        await gateway['user.regroup']({ name, add, remove }),
        options,
        ({ groups, kicked }) => `${name} is in: ${groups.join(', ') || 'no group'}; ${kicked} sessions ended`,
      );
    });

  verb('expire', 'say when an account ends')
    .argument('<name>')
    .argument('<when>', 'a date, an instant, a time from now such as 30d, or "never"')
    .addHelpText('after', '\nExamples:\n  customvpn user expire bob 2030-06-30\n  customvpn user expire bob never')
    .action(async (name: string, when: string, options: StateOptions) => {
      const expiresAt = when === 'never' ? null : instant(when);
      await using gateway = await host.openGateway(options);
      print(
        await gateway['user.expire']({ name, expiresAt }),
        options,
        ({ kicked }) => `${name} expires: ${expiresAt ?? 'never'}; ${kicked} sessions ended`,
      );
    });

  verb('passkeys', 'list or remove passkeys for the admin page, which people make there')
    .argument('[name]', "whose; default: everybody's")
    .option('--remove <id>', 'let nobody in by this passkey any more, and end what its owner has open')
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn user passkeys alice\n  customvpn user passkeys --remove 0123456789abcdef0123456789abcdef',
    )
    .action(async (name: string | undefined, { remove, ...options }: StateOptions & { remove?: string }) => {
      await using gateway = await host.openGateway(options);
      if (remove !== undefined) {
        print(await gateway['passkey.remove']({ id: remove }), options, ({ user }) => `removed a passkey of ${user}`);
        return;
      }
      print(await gateway['passkey.list'](name === undefined ? {} : { user: name }), options, (passkeys) =>
        passkeys.length === 0
          ? 'no passkeys; people make them at the admin page, under Settings'
          : passkeyTable(passkeys),
      );
    });

  verb('token', 'make, list or revoke tokens that stand for a user, for machines')
    .argument('[name]', 'the user')
    .option('--name <label>', 'what the token is for; makes one')
    .option('--scope <scope,…>', 'what it opens: tunnel, proxy, api', list)
    .option('--expires <when>', 'a date, an instant or a time from now such as 90d', instant)
    .option('--revoke <id>', 'refuse a token from now on and end the sessions it opened')
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn user token robot --name "nightly backup" --expires 365d\n  customvpn user token robot\n  customvpn user token --revoke 0123456789abcdef',
    )
    .action(async (name: string | undefined, options: StateOptions & TokenOptions) => {
      await using gateway = await host.openGateway(options);
      if (options.revoke !== undefined) {
        const id = options.revoke;
        print(
          await gateway['token.revoke']({ id }),
          options,
          ({ kicked }) => `revoked ${id}; ${kicked} sessions ended`,
        );
      } else if (options.name === undefined) {
        print(await gateway['token.list'](name === undefined ? {} : { user: name }), options, (tokens) =>
          tokens.length === 0
            ? 'no tokens; make one with: customvpn user token USER --name PURPOSE'
            : tokenTable(tokens),
        );
      } else {
        if (name === undefined) throw new VpnError('ERR_USAGE', 'expected the user whose token it shall be');
        const issued = await gateway['token.issue']({
          user: name,
          name: options.name,
          scopes: scopesOf(options.scope ?? ['tunnel']),
          ...(options.expires === undefined ? {} : { expiresAt: options.expires }),
        });
        print(issued, options, ({ token }) => `${token}\n\nThis is the only time that it is shown.`);
      }
    });

  return command;
}

interface AddOptions {
  group?: string[];
  expires?: string;
  passwordStdin?: boolean;
}

interface TokenOptions {
  name?: string;
  scope?: string[];
  expires?: string;
  revoke?: string;
}

const SCOPES = ['tunnel', 'proxy', 'api'] as const;

function scopesOf(words: readonly string[]): (typeof SCOPES)[number][] {
  return words.map((word) => {
    const scope = SCOPES.find((known) => known === word);
    if (scope !== undefined) return scope;
    throw new VpnError('ERR_USAGE', `expected the scopes ${SCOPES.join(', ')}, got "${word}"`);
  });
}

function codesText(codes: readonly string[]): string {
  return [
    'Recovery codes, each good once in place of a code of the app. Keep them apart from the telephone:',
    '',
    ...codes.map((code) => `  ${code.match(/.{4}/g)?.join('-') ?? code}`),
    '',
    'This is the only time that they are shown.',
  ].join('\n');
}

function passkeyTable(passkeys: readonly PasskeyInfo[]): string {
  return table(
    ['passkey', 'user', 'called', 'for', 'last used'],
    passkeys.map(({ id, user, name, host, lastUsedAt }) => [
      id,
      user,
      name,
      host,
      lastUsedAt === null ? 'never' : `${formatAge(lastUsedAt)} ago`,
    ]),
  );
}

function tokenTable(tokens: readonly AccessTokenInfo[]): string {
  return table(
    ['token', 'user', 'for', 'scopes', 'state', 'last used'],
    tokens.map((token) => [
      token.id,
      token.user,
      token.name,
      token.scopes.join(' '),
      token.revokedAt !== null
        ? bad('revoked')
        : token.expiresAt !== null && Date.parse(token.expiresAt) <= Date.now()
          ? bad('expired')
          : good(token.expiresAt === null ? 'good' : `until ${token.expiresAt.slice(0, 10)}`),
      token.lastUsedAt === null ? 'never' : `${formatAge(token.lastUsedAt)} ago`,
    ]),
  );
}

function stateOf(user: Pick<UserInfo, 'disabled' | 'expiresAt'>): string {
  if (user.disabled) return bad('disabled');
  const isExpired = user.expiresAt !== null && Date.parse(user.expiresAt) <= Date.now();
  return isExpired ? bad('expired') : good('enabled');
}

const HEADING = ['user', 'groups', 'state', 'devices', 'since'];

function row(user: UserInfo): string[] {
  return [
    user.name,
    user.groups.join(' ') || '-',
    stateOf(user),
    String(user.devices),
    `${formatAge(user.createdAt)} ago`,
  ];
}
