/**
 * The command line: `customvpn NOUN VERB`.
 *
 * Assembles the verbs of this folder into one program. Wrong usage ends with status 64; every other failure is reported
 * by `reportError` with the status of its kind.
 */

import { Command, CommanderError } from 'commander';
import { auditCommand } from './audit.ts';
import { clientCommand } from './client.ts';
import { deviceCommand } from './device.ts';
import { doctorCommand } from './doctor.ts';
import type { CliHost } from './host.ts';
import { reportError } from './output.ts';
import { pkiCommand } from './pki.ts';
import { policyCommand } from './policy.ts';
import { profileCommand } from './profile.ts';
import { serverCommand } from './server.ts';
import { completionsCommand, manualCommand } from './shell.ts';
import { userCommand } from './user.ts';
import { webhookCommand } from './webhook.ts';

const USAGE_STATUS = 64;

/** The whole program; `host` does what the verbs ask for. */
export function createProgram(host: CliHost, version: string): Command {
  const program = new Command('customvpn')
    .description('A VPN gateway and client: IP packets through TLS on one port.')
    .version(version)
    .showHelpAfterError('(add --help for the options)')
    .configureHelp({ sortSubcommands: false, showGlobalOptions: false })
    .addHelpText(
      'after',
      `
A gateway and its first client:
  customvpn server init --name vpn.example.org --route 10.20.0.0/16
  customvpn user add alice
  customvpn profile alice --out alice.toml
  customvpn server run
  customvpn client up alice.toml        (on the client, after copying alice.toml there)

What this machine lacks:
  customvpn doctor`,
    );
  for (const command of [
    serverCommand(host),
    userCommand(host),
    deviceCommand(host),
    profileCommand(host),
    policyCommand(host),
    pkiCommand(host),
    auditCommand(host),
    webhookCommand(host),
    clientCommand(host),
    doctorCommand(host),
    completionsCommand(program),
    manualCommand(program, version),
  ]) {
    program.addCommand(command);
  }
  for (const command of allCommands(program)) command.exitOverride();
  return program;
}

/** Runs the command line and returns the status to exit with. */
export async function runProgram(host: CliHost, version: string, argv: readonly string[]): Promise<number> {
  try {
    await createProgram(host, version).parseAsync([...argv], { from: 'user' });
    return process.exitCode === undefined ? 0 : Number(process.exitCode);
  } catch (error) {
    if (error instanceof CommanderError)
      return error.exitCode === 0 || error.code === 'commander.help' ? helpStatus(error) : USAGE_STATUS;
    return reportError(error);
  }
}

/** Help that was asked for is a success; help printed because a verb is missing is wrong usage. */
function helpStatus(error: CommanderError): number {
  return error.code === 'commander.help' ? USAGE_STATUS : 0;
}

function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}
