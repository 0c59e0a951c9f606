/**
 * `customvpn client exec`: one command whose only way out is the tunnel.
 */

import { Command, Option } from 'commander';
import type { CliHost } from './host.ts';
import { clientState } from './options.ts';
import { askInTerminal, isInteractive, showLogins } from './secrets.ts';

const NO_TERMINAL =
  "standard input is the command's, so run this in a terminal, or first, in one, a command that stays: customvpn client exec PROFILE -- sleep infinity; others share its login";

interface ExecOptions {
  state: string;
  as?: string;
  user?: string;
  full?: boolean;
  split?: boolean;
}

export function clientExecCommand(host: CliHost): Command {
  return new Command('exec')
    .description('run one command whose only way out is the tunnel; nothing else on this machine changes')
    .argument('<profile>', 'a file made by `customvpn profile`, or the name of an imported profile')
    .argument('<command...>', 'the command and its arguments, after --')
    .addOption(clientState())
    .option('--as <user>', "run the command with this user's rights (default: whoever called sudo, else who runs this)")
    .option('--user <name>', "log in as this user instead of the profile's")
    .addOption(new Option('--full', 'all of its traffic goes to the gateway').conflicts('split'))
    .option('--split', "only the gateway's networks can be reached")
    .addHelpText(
      'after',
      `
Standard streams, terminal and signals are the command's; the status is its own, and 128 + N after signal N (127: there is no such
command, 126: it cannot be started). While one command runs, others of the same profile share its tunnel and addresses; the last
one ends it. When the tunnel is down, the command reaches nothing.

Examples:
  sudo customvpn client exec alice.toml -- curl http://intranet.example/
  sudo customvpn client exec work -- bash
  sudo customvpn client exec work --as alice -- firefox --no-remote`,
    )
    .action(async (profile: string, command: string[], options: ExecOptions) => {
      const { state, as, user, full, split } = options;
      process.exitCode = await host.execInTunnel({
        profile,
        state,
        command,
        answer: isInteractive() ? askInTerminal : showLogins(NO_TERMINAL),
        ...(as === undefined ? {} : { as }),
        ...(user === undefined ? {} : { user }),
        ...(full === true ? { tunnel: { mode: 'full' } } : split === true ? { tunnel: { mode: 'split' } } : {}),
      });
    });
}
