/**
 * `customvpn client …`: connect, disconnect, look.
 */

import { Command, Option } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { ClientStatus } from '../control/operations.ts';
import type { CliHost, ProbeResult, TunnelFlags } from './host.ts';
import { clientState, hostAndPort, jsonOutput } from './options.ts';
import { bad, facts, formatAge, formatBytes, good, type OutputOptions, print, warning } from './output.ts';
import { answersFromStdin, askInTerminal, isInteractive, showLogins } from './secrets.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

interface UpOptions {
  foreground?: boolean;
  plain?: boolean;
  user?: string;
  passwordStdin?: boolean;
  full?: boolean;
  split?: boolean;
  lan?: boolean;
  overlap?: 'local' | 'tunnel' | 'stop' | 'ask';
}

export function clientCommand(host: CliHost): Command {
  const command = new Command('client').description('connect this machine to a gateway');

  command
    .command('up')
    .description('connect; returns when traffic flows')
    .argument('<profile>', 'the file made by `customvpn profile`')
    .addOption(clientState())
    .option('--foreground', 'stay in the foreground until interrupted')
    .option('--plain', 'do not use super-packets')
    .addOption(new Option('--full', 'all traffic goes through the tunnel').conflicts('split'))
    .option('--split', "only the gateway's networks go through the tunnel")
    .option('--lan', 'with --full: private networks that this machine is in stay reachable')
    .option('--no-lan', 'with --full: everything else, local networks too, goes through the tunnel')
    .addOption(
      new Option(
        '--overlap <who>',
        'networks that this machine is in and the tunnel has, too: they stay local, go into the tunnel, or stop the start',
      ).choices(['local', 'tunnel', 'stop', 'ask']),
    )
    .option('--user <name>', "log in as this user instead of the profile's")
    .option('--password-stdin', 'answer from standard input, a line each: password, one-time code, what else is asked')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn client up alice.toml\n  customvpn client up alice.toml --full --lan\n  customvpn client up alice.toml --foreground\n  pass show vpn | customvpn client up alice.toml --password-stdin',
    )
    .action(async (profile: string, options: StateOptions & UpOptions) => {
      const answer = options.passwordStdin === true ? answersFromStdin() : isInteractive() ? askInTerminal : showLogins;
      const run = {
        profile,
        state: options.state,
        plain: options.plain ?? false,
        ...(options.user === undefined ? {} : { user: options.user }),
        tunnel: tunnelFlags(options),
        answer,
      };
      if (options.foreground === true) {
        await host.runClient(run);
        return;
      }
      const client = await host.startClient(run);
      print(await client['client.status']({}), options, formatStatus);
    });

  command
    .command('down')
    .description('disconnect and put the machine back as it was')
    .addOption(clientState())
    .action(async (options: StateOptions) => {
      const clients = await host.openClients(options.state);
      for (const client of clients.values()) await client['client.down']({});
      const cleaned = await host.cleanClients(options.state);
      if (clients.size === 0 && cleaned === 0) {
        throw new VpnError('ERR_NOT_RUNNING', `no client runs with the state directory ${options.state}`);
      }
      process.stdout.write(clients.size > 0 ? 'disconnected\n' : 'took away what a crashed client had left\n');
    });

  command
    .command('status')
    .description('state, addresses, routes, traffic')
    .addOption(clientState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      const [client] = (await host.openClients(options.state)).values();
      if (client === undefined) {
        throw new VpnError('ERR_NOT_RUNNING', 'no client is running; connect with: customvpn client up PROFILE');
      }
      print(await client['client.status']({}), options, formatStatus);
    });

  command
    .command('probe')
    .description('is there a gateway, and what does its TLS look like? Needs no profile')
    .argument('<host:port>')
    .addOption(jsonOutput())
    .addHelpText('after', '\nExample:\n  customvpn client probe vpn.example.org:443')
    .action(async (target: string, options: OutputOptions) => {
      const { host: name, port } = hostAndPort(target, 443);
      print(await host.probe(name, port), options, formatProbe);
    });

  return command;
}

function tunnelFlags({ full, split, lan, overlap }: UpOptions): TunnelFlags {
  const isAsked = overlap === 'ask' || (overlap === undefined && isInteractive());
  return {
    ...(full === true ? { mode: 'full' } : split === true ? { mode: 'split' } : {}),
    ...(lan === undefined ? {} : { lan }),
    ...(overlap === undefined || overlap === 'ask' ? {} : { overlap }),
    isAsked,
  };
}

function formatStatus(status: ClientStatus): string {
  const state = status.state === 'connected' ? good(status.state) : warning(status.state);
  return [
    facts([
      ['state', `${state}${status.since === null ? '' : ` for ${formatAge(status.since)}`}`],
      ['server', `${status.server}${status.verified ? '' : ` ${bad('NOT VERIFIED')}`}`],
      ['user', status.user ?? undefined],
      ['addresses', status.addresses.join(', ')],
      ['device', status.device === null ? undefined : `${status.device}${deviceKind(status)}`],
      ['routes', status.routes.join(', ') || 'none'],
      ['tls', status.tls === null ? undefined : `${status.tls.protocol}, ${status.tls.cipher}, ${status.tls.group}`],
      ['traffic', `${formatBytes(status.sentBytes)} sent, ${formatBytes(status.receivedBytes)} received`],
      ['round trip', status.roundTripMs === null ? undefined : `${status.roundTripMs.toFixed(1)} ms`],
      ['reconnects', status.reconnects === 0 ? undefined : String(status.reconnects)],
      ['last error', status.lastError === null ? undefined : `${status.lastError.message} (${status.lastError.code})`],
    ]),
    ...status.refused.map(({ item, why }) => `${warning('refused')} ${item}: ${why}`),
  ].join('\n');
}

/** What was agreed with the server; nothing yet while there is no session. */
function deviceKind({ state, superPackets }: ClientStatus): string {
  if (state !== 'connected') return '';
  return superPackets ? ' (super-packets)' : ' (plain)';
}

function formatProbe(result: ProbeResult): string {
  const { certificate, tls } = result;
  return facts([
    ['server', `${result.server} (${result.address})`],
    ['reachable', `${good('yes')}, connected in ${result.connectMs.toFixed(1)} ms`],
    ['tls', `${tls.protocol}, ${tls.cipher}, ${tls.group}`],
    ['certificate', `${certificate.subject}, until ${certificate.notAfter.slice(0, 10)}`],
    ['issued by', certificate.issuer],
    ['trusted here', certificate.trusted ? good('yes') : `${warning('no')}: ${certificate.reason ?? ''}`],
    ['pin', certificate.pin],
    ['hello', result.hello],
    ['echo', `${result.echoMs.toFixed(2)} ms`],
  ]);
}
