/**
 * `customvpn client …`: connect, disconnect, look.
 */

import { isIP } from 'node:net';
import { Command, Option } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { ClientApi } from '../control/operations.ts';
import { clientExecCommand } from './client-exec.ts';
import { addProbeCommand } from './client-probe.ts';
import { addProfileCommands, idOf } from './client-profiles.ts';
import { clientProxyCommand } from './client-proxy.ts';
import { formatStatus, watchStatus } from './client-status.ts';
import type { CliHost, CredentialRequest, TunnelFlags } from './host.ts';
import { killSwitchCommand } from './kill-switch.ts';
import { clientState, jsonOutput, lengthOfTime } from './options.ts';
import { formatAge, type OutputOptions, print, warning } from './output.ts';
import { answersFromStdin, askInTerminal, isInteractive, showLogin, showLogins } from './secrets.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

interface UpOptions {
  foreground?: boolean;
  plain?: boolean;
  enclosed?: boolean;
  user?: string;
  passwordStdin?: boolean;
  full?: boolean;
  split?: boolean;
  lan?: boolean;
  overlap?: 'local' | 'tunnel' | 'stop' | 'ask';
  killSwitch?: boolean;
  network?: string[];
  portal?: number;
}

export function clientCommand(host: CliHost): Command {
  const command = new Command('client').description('connect this machine to a gateway');

  command
    .command('up')
    .description('connect, in the background; returns when traffic flows, or says why it does not')
    .argument('<profile>', 'a file made by `customvpn profile`, or the name of an imported profile')
    .addOption(clientState())
    .option('--foreground', 'stay in the foreground until interrupted')
    .option('--plain', 'do not use super-packets')
    .addOption(new Option('--enclosed', 'be there for commands of `client exec`').hideHelp())
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
    .option('--kill-switch', 'with a full tunnel: nothing leaves outside it until `client down`, whatever happens')
    .option(
      '--network <cidr...>',
      'networks behind this machine that others are to reach through it, as far as the gateway grants it',
    )
    .option(
      '--portal <time>',
      'open what the login page of a hotspot needs for so long, such as 5m, outside the tunnel',
      lengthOfTime,
    )
    .option('--user <name>', "log in as this user instead of the profile's")
    .option('--password-stdin', 'answer from standard input, a line each: password, one-time code, what else is asked')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn client up alice.toml\n  customvpn client up work\n  customvpn client up alice.toml --full --lan\n  customvpn client up alice.toml --foreground\n  pass show vpn | customvpn client up alice.toml --password-stdin',
    )
    .action(async (profile: string, options: StateOptions & UpOptions) => {
      const answer =
        options.passwordStdin === true
          ? answersFromStdin()
          : isInteractive()
            ? askInTerminal
            : options.foreground === true
              ? undefined
              : showLogins();
      const run = {
        profile,
        state: options.state,
        plain: options.plain ?? false,
        ...(options.enclosed === true ? { enclosed: true } : {}),
        ...(options.user === undefined ? {} : { user: options.user }),
        tunnel: tunnelFlags(options),
        ...(answer === undefined ? { show: showEach } : { answer }),
      };
      if (options.portal !== undefined) {
        tellPortal(options.portal);
        const running = (await host.openClients(options.state)).get(await idOf(options.state, profile));
        if (running !== undefined && (await running['client.status']({})).state !== 'down') {
          await running['client.portal']({ seconds: Math.ceil(options.portal / 1000) });
          print(await running['client.status']({}), options, formatStatus);
          return;
        }
      }
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
    .argument('[profile]', 'default: every one that is connected')
    .option('--keep', 'keep the session and the client, so that the next `up` asks for nothing and takes no time')
    .addOption(clientState())
    .addHelpText('after', '\nExamples:\n  customvpn client down\n  customvpn client down work --keep')
    .action(async (profile: string | undefined, options: StateOptions & { keep?: boolean }) => {
      const clients = await clientsOf(host, options.state, profile);
      for (const client of clients) await client['client.down']({ keep: options.keep ?? false });
      const cleaned = profile === undefined ? await host.cleanClients(options.state) : 0;
      if (clients.length === 0 && cleaned === 0) {
        throw new VpnError('ERR_NOT_RUNNING', `no client runs with the state directory ${options.state}`);
      }
      const kept = options.keep === true ? '; the session is kept: customvpn client up PROFILE goes on with it' : '';
      process.stdout.write(clients.length > 0 ? `disconnected${kept}\n` : 'took away what a crashed client had left\n');
    });

  command
    .command('status')
    .description('state, server, addresses, routes, DNS, traffic, round trip, last error')
    .argument('[profile]', 'default: every one that is connected')
    .option('--watch', 'show it again each second until interrupted')
    .option('--all', 'with --json: an array of all clients, however many there are')
    .addOption(clientState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExamples:\n  customvpn client status\n  customvpn client status work --watch')
    .action(async (profile: string | undefined, options: StateOptions & { watch?: boolean; all?: boolean }) => {
      const look = async () => {
        const clients = await clientsOf(host, options.state, profile);
        return await Promise.all(clients.map((client) => client['client.status']({})));
      };
      if (options.watch === true) {
        await watchStatus(look, options);
        return;
      }
      const found = await look();
      const [only] = found;
      if (options.all === true) print(found, options, (all) => all.map(formatStatus).join('\n\n'));
      else if (only === undefined) throw await notRunning(host, options.state);
      else if (found.length > 1 && options.json === true) {
        const names = found.map(({ name }) => name).join(', ');
        throw new VpnError('ERR_USAGE', `several profiles are connected (${names}); name one, or add --all`);
      } else print(only, options, () => found.map(formatStatus).join('\n\n'));
    });

  addProbeCommand(command, host);
  command.addCommand(killSwitchCommand(host));
  command.addCommand(clientExecCommand(host));
  command.addCommand(clientProxyCommand(host));
  addProfileCommands(command, host);
  return command;
}

function tunnelFlags({ full, split, lan, overlap, killSwitch, network, portal }: UpOptions): TunnelFlags {
  const isAsked = overlap === 'ask' || (overlap === undefined && isInteractive());
  return {
    ...(full === true ? { mode: 'full' } : split === true ? { mode: 'split' } : {}),
    ...(lan === undefined ? {} : { lan }),
    ...(overlap === undefined || overlap === 'ask' ? {} : { overlap }),
    isAsked,
    ...(killSwitch === undefined ? {} : { killSwitch }),
    ...(network === undefined ? {} : { networks: network.map(networkText) }),
    ...(portal === undefined ? {} : { portalMs: portal }),
  };
}

/** @throws {VpnError} ERR_USAGE */
function networkText(text: string): string {
  const [address = '', length = ''] = text.split('/');
  if (isIP(address) !== 0 && /^\d{1,3}$/.test(length) && Number(length) >= 8) return text;
  throw new VpnError('ERR_USAGE', `--network: expected a network such as 10.20.0.0/16, got ${JSON.stringify(text)}`);
}

function tellPortal(milliseconds: number): void {
  process.stderr.write(
    `${warning('WARNING')} for ${Math.ceil(milliseconds / 1000)} s every program on this machine reaches names and web pages OUTSIDE the tunnel.\n` +
      'Log in at the hotspot now, for instance at http://neverssl.com; the tunnel comes up by itself.\n',
  );
}

/** The running client of a profile, or all of them. @throws {VpnError} ERR_NOT_RUNNING when that of the profile does not run */
async function clientsOf(host: CliHost, state: string, profile: string | undefined): Promise<ClientApi[]> {
  const clients = await host.openClients(state);
  if (profile === undefined) return [...clients.values()];
  const client = clients.get(await idOf(state, profile));
  if (client !== undefined) return [client];
  throw await notRunning(host, state, profile);
}

/** Says why nothing runs, where that is known. */
async function notRunning(host: CliHost, state: string, profile?: string): Promise<VpnError> {
  const all = await host.clientFacts(state);
  const ends = profile === undefined ? [...all.values()] : [all.get(await idOf(state, profile))];
  const [last] = ends.flatMap((entry) => entry?.end ?? []).toSorted((a, b) => b.at.localeCompare(a.at));
  const why =
    last === undefined ? '' : `; the last one ended ${formatAge(last.at)} ago: ${last.message} (${last.code})`;
  const isClosed = [...all.values()].some((entry) => entry.isClosed);
  const closed = isClosed
    ? '; its kill switch is CLOSED, nothing leaves this machine: customvpn client down opens it'
    : '';
  return new VpnError(
    'ERR_NOT_RUNNING',
    `no client is running${why}${closed}; connect with: customvpn client up ${profile ?? 'PROFILE'}`,
  );
}

function showEach(request: CredentialRequest): void {
  for (const step of request) void showLogin(step);
}
