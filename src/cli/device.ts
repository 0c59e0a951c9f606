/**
 * `customvpn device …`: the machines whose keys are enrolled.
 */

import { Command } from 'commander';
import type { CliHost } from './host.ts';
import { gatewayConfig, gatewayState, jsonOutput } from './options.ts';
import { formatAge, type OutputOptions, print, table } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
  config?: string;
}

export function deviceCommand(host: CliHost): Command {
  const command = new Command('device').description('the machines whose keys are enrolled');
  const verb = (usage: string, description: string) =>
    command
      .command(usage)
      .description(description)
      .addOption(gatewayState())
      .addOption(gatewayConfig())
      .addOption(jsonOutput());

  verb('list', 'all devices')
    .option('--user <name>', "only this user's")
    .action(async (options: StateOptions & { user?: string }) => {
      await using gateway = await host.openGateway(options);
      const devices = await gateway['device.list'](options.user === undefined ? {} : { user: options.user });
      print(devices, options, () =>
        devices.length === 0
          ? 'no devices yet; a profile enrols one when it is first used'
          : table(
              ['device', 'user', 'name', 'key', 'state', 'last seen'],
              devices.map((device) => [
                device.id,
                device.user,
                device.name,
                device.algorithm,
                device.state,
                device.lastSeenAt === null ? 'never' : `${formatAge(device.lastSeenAt)} ago`,
              ]),
            ),
      );
    });

  verb('approve', 'let a device in that waits for an operator')
    .argument('<id>')
    .action(async (id: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['device.approve']({ id }), options, () => `approved ${id}`);
    });

  verb('rename', 'give a device another name')
    .argument('<id>')
    .argument('<name>')
    .action(async (id: string, name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['device.rename']({ id, name }), options, (device) => `${device.id} is ${device.name}`);
    });

  verb('revoke', 'refuse a device for good and end its sessions now')
    .argument('<id>')
    .action(async (id: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['device.revoke']({ id }), options, ({ kicked }) => `revoked ${id}; ${kicked} sessions ended`);
    });

  return command;
}
