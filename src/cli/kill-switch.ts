/**
 * `customvpn client kill-switch …`: look at the kill switch of a profile, work it while no client runs, close it from boot.
 */

import { Command } from 'commander';
import type { CliHost } from './host.ts';
import { clientState, jsonOutput } from './options.ts';
import { good, type OutputOptions, print, warning } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

const PROFILE = 'a file made by `customvpn profile`, or the name of an imported profile';
const ACTIONS = {
  status: ['look', 'whether it is closed'],
  close: ['close', 'nothing leaves this machine outside the tunnel from now on'],
  open: ['open', 'everything leaves as if there were no tunnel'],
} as const;

export function killSwitchCommand(host: CliHost): Command {
  const command = new Command('kill-switch').description('the kill switch of a profile: look, close, open; from boot');
  for (const [verb, [action, description]] of Object.entries(ACTIONS)) {
    command
      .command(verb)
      .description(description)
      .argument('<profile>', PROFILE)
      .addOption(clientState())
      .addOption(jsonOutput())
      .action(async (profile: string, options: StateOptions) => {
        const closed = await host.killSwitch(options.state, profile, action);
        print({ closed }, options, () =>
          closed ? `${good('closed')}: nothing leaves outside the tunnel` : warning('open'),
        );
      });
  }
  command
    .command('unit')
    .description('print a systemd unit that closes it before there is a network')
    .argument('<profile>', PROFILE)
    .addOption(clientState())
    .addHelpText(
      'after',
      '\nExample:\n  customvpn client kill-switch unit work > /etc/systemd/system/customvpn-kill-switch.service\n  systemctl enable --now customvpn-kill-switch',
    )
    .action(async (profile: string, options: StateOptions) => {
      process.stdout.write(await host.killSwitchUnit(options.state, profile));
    });
  return command;
}
