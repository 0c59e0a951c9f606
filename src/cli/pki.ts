/**
 * `customvpn pki …`: the built-in certificate authority.
 */

import { Command, Option } from 'commander';
import type { CliHost } from './host.ts';
import { gatewayConfig, gatewayState, jsonOutput } from './options.ts';
import { bad, good, type OutputOptions, print, table, warning } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
  config?: string;
}

const WARN_DAYS = 30;

export function pkiCommand(host: CliHost): Command {
  const command = new Command('pki').description('the built-in certificate authority');
  const verb = (usage: string, description: string) =>
    command
      .command(usage)
      .description(description)
      .addOption(gatewayState())
      .addOption(gatewayConfig())
      .addOption(jsonOutput());

  verb('show', 'all certificates').action(async (options: StateOptions) => {
    await using gateway = await host.openGateway(options);
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
      await using gateway = await host.openGateway(options);
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
      await using gateway = await host.openGateway(options);
      print(
        await gateway['pki.revoke']({ serial }),
        options,
        (done) => `revoked ${done.certificate.name}; ${done.kicked} sessions ended`,
      );
    });

  verb('renew', 'make a new certificate in place of one: of the server, which uses it at once, or of a client')
    .argument('[name]', "the client's name, as `pki show` prints it; without one: the server's certificate")
    .addOption(new Option('--new-key', 'for a new key (default for the server, whose next key profiles know)'))
    .addOption(new Option('--same-key', 'for the key there is (default for a client)').conflicts('newKey'))
    .addHelpText(
      'after',
      `
The old certificate stays valid until it ends or is revoked with \`pki revoke\`.

Examples:
  customvpn pki renew                 the server's, for its next key
  customvpn pki renew alice           alice's, for the key she has
  customvpn pki renew alice --new-key`,
    )
    .action(async (name: string | undefined, options: StateOptions & { newKey?: boolean; sameKey?: boolean }) => {
      await using gateway = await host.openGateway(options);
      const input = {
        ...(name === undefined ? {} : { name }),
        ...(options.newKey === true ? { key: 'new' as const } : {}),
        ...(options.sameKey === true ? { key: 'same' as const } : {}),
      };
      print(
        await gateway['pki.renew'](input),
        options,
        (made) => `${made.role} certificate for ${made.name} until ${made.notAfter.slice(0, 10)}: ${made.file}`,
      );
    });

  return command;
}
