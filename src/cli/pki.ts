/**
 * `customvpn pki …`: the built-in certificate authority.
 */

import { Command } from 'commander';
import type { CliHost } from './host.ts';
import { gatewayState, jsonOutput } from './options.ts';
import { bad, good, type OutputOptions, print, table, warning } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

const WARN_DAYS = 30;

export function pkiCommand(host: CliHost): Command {
  const command = new Command('pki').description('the built-in certificate authority');
  const verb = (usage: string, description: string) =>
    command.command(usage).description(description).addOption(gatewayState()).addOption(jsonOutput());

  verb('show', 'all certificates').action(async (options: StateOptions) => {
    await using gateway = await host.openGateway(options.state);
    print(await gateway['pki.show']({}), options, (certificates) =>
      table(
        ['role', 'name', 'serial', 'state', 'ends', 'file'],
        certificates.map((certificate) => [
          certificate.role,
          certificate.name,
          certificate.serial,
          certificate.revoked
            ? bad('revoked')
            : certificate.daysLeft < WARN_DAYS
              ? warning(`${certificate.daysLeft} days left`)
              : good('valid'),
          certificate.notAfter.slice(0, 10),
          certificate.file,
        ]),
      ),
    );
  });

  verb('issue', 'make a client certificate and key')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(await gateway['pki.issue']({ name }), options, (made) =>
        [
          `certificate  ${made.certificate.file}`,
          `key          ${made.keyFile}`,
          `serial       ${made.certificate.serial}`,
        ].join('\n'),
      );
    });

  verb('revoke', 'refuse a certificate from now on, also on live connections')
    .argument('<serial>', 'as `pki show` prints it')
    .action(async (serial: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(
        await gateway['pki.revoke']({ serial }),
        options,
        (done) => `revoked ${done.certificate.name}; ${done.kicked} sessions ended`,
      );
    });

  verb('renew', 'make a new server certificate and key from the same CA, and use it at once').action(
    async (options: StateOptions) => {
      await using gateway = await host.openGateway(options.state);
      print(
        await gateway['pki.renew']({}),
        options,
        (made) => `server certificate for ${made.name} until ${made.notAfter.slice(0, 10)}`,
      );
    },
  );

  return command;
}
