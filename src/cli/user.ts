/**
 * `customvpn user …`: who may log in.
 */

import { Command } from 'commander';
import type { UserInfo } from '../control/operations.ts';
import type { CliHost } from './host.ts';
import { gatewayState, jsonOutput, list, stateHint } from './options.ts';
import { bad, facts, formatAge, good, type OutputOptions, print, table } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

export function userCommand(host: CliHost): Command {
  const command = new Command('user').description('who may log in');
  const verb = (usage: string, description: string) =>
    command.command(usage).description(description).addOption(gatewayState()).addOption(jsonOutput());

  verb('add', 'add a user')
    .argument('<name>')
    .option('--group <name,…>', 'groups the user is in', list)
    .addHelpText('after', '\nExample:\n  customvpn user add alice --group staff,admins')
    .action(async (name: string, options: StateOptions & { group?: string[] }) => {
      await using gateway = await host.openGateway(options.state);
      print(await gateway['user.add']({ name, groups: options.group ?? [] }), options, (user) =>
        [
          `added ${user.name}`,
          '',
          'Next:',
          `  customvpn profile ${user.name}${stateHint(options.state)} --out ${user.name}.toml`,
        ].join('\n'),
      );
    });

  verb('list', 'all users').action(async (options: StateOptions) => {
    await using gateway = await host.openGateway(options.state);
    print(await gateway['user.list']({}), options, (users) =>
      users.length === 0 ? 'no users; add one with: customvpn user add NAME' : table(HEADING, users.map(row)),
    );
  });

  verb('show', 'one user and their devices')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(await gateway['user.show']({ name }), options, (user) =>
        [
          facts([
            ['name', user.name],
            ['groups', user.groups.join(', ') || 'none'],
            ['state', user.disabled ? bad('disabled') : good('enabled')],
            ['since', user.createdAt],
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
        ].join('\n'),
      );
    });

  verb('disable', 'refuse a user and end their sessions now')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(
        await gateway['user.disable']({ name }),
        options,
        ({ kicked }) => `disabled ${name}; ${kicked} sessions ended`,
      );
    });

  verb('enable', 'let a disabled user in again')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(await gateway['user.enable']({ name }), options, () => `enabled ${name}`);
    });

  verb('delete', 'remove a user, their devices and tokens, and end their sessions now')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(
        await gateway['user.delete']({ name }),
        options,
        ({ kicked }) => `deleted ${name}; ${kicked} sessions ended`,
      );
    });

  return command;
}

const HEADING = ['user', 'groups', 'state', 'devices', 'since'];

function row(user: UserInfo): string[] {
  return [
    user.name,
    user.groups.join(' ') || '-',
    user.disabled ? bad('disabled') : good('enabled'),
    String(user.devices),
    `${formatAge(user.createdAt)} ago`,
  ];
}
