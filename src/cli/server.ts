/**
 * `customvpn server …`: make, run and steer a gateway.
 */

import { isIP } from 'node:net';
import { Command } from 'commander';
import type { GatewayStatus } from '../control/operations.ts';
import { drainCommand } from './drain.ts';
import type { CliHost, StoreCopyResult } from './host.ts';
import { gatewayConfig, gatewayState, hostAndPort, jsonOutput, list, stateHint } from './options.ts';
import { facts, formatAge, formatBytes, good, type OutputOptions, print, table, warning } from './output.ts';
import { stopCommand } from './stop.ts';

interface StateOptions extends OutputOptions {
  state: string;
  config?: string;
}

export function serverCommand(host: CliHost): Command {
  const command = new Command('server').description('make, run and steer a gateway');

  command
    .command('init')
    .description('make a state directory: certificates, keys and a configuration')
    .addOption(gatewayState())
    .requiredOption('--name <host,…>', 'names or addresses by which clients reach the gateway', list)
    .option('--listen <addr:port>', 'address and port to listen on', '[::]:443')
    .option('--pool <cidr,…>', 'client addresses: an IPv4 prefix, an IPv6 prefix, or both', list)
    .option('--dns <ip,…>', 'name servers to push to clients', list)
    .option('--route <cidr,…>', 'networks that clients may reach', list)
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
Examples:
  customvpn server init --name vpn.example.org --route 10.20.0.0/16
  customvpn server init --state ./gw --name 192.0.2.1 --listen 192.0.2.1:8443 --pool 10.9.0.0/24,fd09::/64`,
    )
    .action(
      async (
        options: StateOptions & { name: string[]; listen: string; pool?: string[]; dns?: string[]; route?: string[] },
      ) => {
        const listen = hostAndPort(options.listen, 443);
        const result = await host.initGateway({
          state: options.state,
          names: options.name,
          address: listen.host,
          port: listen.port,
          pool: options.pool ?? [],
          dns: options.dns ?? [],
          routes: options.route ?? [],
        });
        const state = stateHint(options.state);
        print(result, options, (made) =>
          [
            facts([
              ['configuration', made.configFile],
              ['certificates', made.certificates.join('  ')],
              ['names', made.names.join(', ')],
              ['listens on', made.listen],
              ['client addresses', made.pool.join(', ')],
              [
                'clients may reach',
                made.routes.join(', ') || 'only the gateway itself (add --route, or routes in the configuration)',
              ],
            ]),
            '',
            'Next:',
            `  customvpn user add NAME${state}`,
            `  customvpn profile NAME${state} --out NAME.toml`,
            `  customvpn server run${state}`,
            '',
            'From boot: customvpn server unit --help',
          ].join('\n'),
        );
      },
    );

  command
    .command('run')
    .description('run the gateway in the foreground; prints "ready" when clients can connect')
    .addOption(gatewayState())
    .option('--config <file>', 'configuration file (default: server.toml in the state directory)')
    .option('--check', 'check the configuration and exit')
    .action(async (options: StateOptions & { config?: string; check?: boolean }) => {
      const source = { state: options.state, ...(options.config === undefined ? {} : { config: options.config }) };
      if (options.check === true) process.stdout.write(`${await host.checkGateway(source)}\n`);
      else await host.runGateway(source);
    });

  command
    .command('unit')
    .description('print a systemd unit that runs the gateway from boot, with no right that it does not need')
    .addOption(gatewayState())
    .option('--config <file>', 'configuration file (default: server.toml in the state directory)')
    .addHelpText(
      'after',
      `
Example:
  customvpn server unit > /etc/systemd/system/customvpn.service
  systemctl daemon-reload && systemctl enable --now customvpn`,
    )
    .action(async (options: StateOptions & { config?: string }) => {
      const source = { state: options.state, ...(options.config === undefined ? {} : { config: options.config }) };
      process.stdout.write(await host.gatewayUnit(source));
    });

  command
    .command('status')
    .description('what the running gateway does')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['server.status']({}), options, formatStatus);
    });

  command
    .command('sessions')
    .description('who is connected, and who has lost the connection and may resume')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['session.list']({}), options, (sessions) =>
        sessions.length === 0
          ? 'no sessions'
          : table(
              ['session', 'user', 'device', 'addresses', 'from', 'state', 'since', 'received', 'sent', 'round trip'],
              sessions.map((session) => [
                session.id,
                session.user,
                session.device,
                [...session.addresses, ...(session.networks ?? [])].join(' '),
                session.peer,
                session.waiting ? 'waits for its client' : 'up',
                formatAge(session.since),
                formatBytes(session.receivedBytes),
                formatBytes(session.sentBytes),
                session.roundTripMs === null ? '-' : `${session.roundTripMs.toFixed(1)} ms`,
              ]),
            ),
      );
    });

  command
    .command('kick')
    .description('end a session; its client may log in again')
    .argument('<session>', 'session id, or its first digits, as `server sessions` shows them')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .action(async (id: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['session.kick']({ id }), options, ({ kicked }) => `${kicked} session ended`);
    });

  command
    .command('admin-link')
    .description('make a link that makes an administrator of the admin page, once, within an hour')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
The gateway must run, with a line such as  admin.listen = "127.0.0.1:8443"  in its configuration.

Examples:
  customvpn server admin-link
  ssh -L 8443:127.0.0.1:8443 gateway    (then open the link here)`,
    )
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['admin.link']({}), options, ({ url, expiresAt }) => `${url}\ngood once, until ${expiresAt}`);
    });

  command
    .command('bans')
    .description('who has to wait, or is banned, after failed logins')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .addOption(jsonOutput())
    .addHelpText('after', '\nSources are let in again with `server unban`, names and devices with `user unlock`.')
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['server.bans']({}), options, (bans) =>
        bans.length === 0
          ? 'no bans'
          : table(
              ['what', 'which', 'failures', 'state', 'until'],
              bans.map(({ kind, key, failures, banned, until }) => [
                kind,
                key,
                String(failures),
                banned ? 'banned' : 'waits',
                until,
              ]),
            ),
      );
    });

  command
    .command('unban')
    .description('forget the failed logins of a source')
    .argument('<source>', 'an address, or a source as `server bans` shows it')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExample:\n  customvpn server unban 203.0.113.7')
    .action(async (source: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['server.unban']({ source }), options, () => `${source} may log in again`);
    });

  command
    .command('reload')
    .description('read configuration, policy and certificates again without dropping a connection')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      const via = wayHere(process.env.SSH_CONNECTION);
      const reloaded = await gateway['server.reload'](via === undefined ? {} : { via });
      print(reloaded, options, ({ applied, needsRestart, warnings }) =>
        [
          facts([
            ['applied', applied.join(', ') || 'nothing had changed'],
            ['needs a restart', needsRestart.length === 0 ? undefined : warning(needsRestart.join(', '))],
          ]),
          ...warnings.map((text) => `${warning('warning')}  ${text}`),
        ].join('\n'),
      );
    });

  command
    .command('backup')
    .description('copy accounts, devices and the audit record to a file, also while the gateway runs')
    .argument('<file>', 'the copy; mode 0600')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .option('--force', 'replace the file if there is one')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
The copy has no certificates, configuration and master.key: keep those, and apart from it.

Examples:
  customvpn server backup /var/backups/customvpn.sqlite
  customvpn server backup --force /var/backups/customvpn-monday.sqlite`,
    )
    .action(async (file: string, options: StateOptions & { force?: boolean }) => {
      const made = await host.backupStore(options, file, options.force === true);
      print(made, options, (copy) => formatCopy('backed up to', copy));
    });

  command
    .command('restore')
    .description('put a backup in the place of the store; the gateway must not run')
    .argument('<file>', 'what `server backup` made')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .option('--force', 'replace the store that is there; it is kept beside the restored one')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
The backup is checked as a whole first. What was revoked or disabled after it was made is good again: do that anew.

Example:
  customvpn server stop
  customvpn server restore --force /var/backups/customvpn.sqlite`,
    )
    .action(async (file: string, options: StateOptions & { force?: boolean }) => {
      const made = await host.restoreStore(options, file, options.force === true);
      print(made, options, (copy) => formatCopy('restored from', copy));
    });

  command
    .command('bundle')
    .description('gather what somebody needs who helps, with secrets, names and addresses taken out')
    .argument('<folder>', 'where; it is made')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .option('--log <file>', 'the log of the gateway (default: from the journal of the unit customvpn)')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
Works while the gateway runs and while it does not. Look through the files before you give them away.

Example:
  customvpn server bundle ./bundle && tar -czf bundle.tar.gz bundle`,
    )
    .action(async (folder: string, options: StateOptions & { log?: string }) => {
      print(await host.bundle(options, folder, options.log), options, ({ files, missing }) =>
        facts([
          ['gathered in', folder],
          ['files', files.join(', ')],
          ['without content', missing.join(', ')],
        ]),
      );
    });

  command.addCommand(drainCommand(host));

  command
    .command('replace-workers')
    .description('put other processes in the place of the workers, one after the other, as after an upgrade')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .action(async (options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['server.replaceWorkers']({}), options, ({ replaced }) => `${replaced} workers were replaced`);
    });

  command.addCommand(stopCommand(host));

  return command;
}

function formatCopy(what: string, { file, bytes, users, replaced }: StoreCopyResult): string {
  return facts([
    [what, file],
    ['users', String(users)],
    ['size', formatBytes(bytes)],
    ['the store before', replaced],
  ]);
}

function formatStatus(status: GatewayStatus): string {
  const server = status.certificates.find(({ role }) => role === 'server');
  const totals = (values: Record<string, number>) =>
    Object.entries(values)
      .filter(([, value]) => value > 0)
      .map(([name, value]) => `${name} ${value}`)
      .join(', ') || 'none';
  return [
    facts([
      ['state', `${good('running')} for ${formatAge(status.since)}, process ${status.pid}, version ${status.version}`],
      ['listens on', status.listen.join(', ')],
      ['names', status.names.join(', ')],
      [
        'sessions',
        status.waiting === 0 ? String(status.sessions) : `${status.sessions}, of which ${status.waiting} wait`,
      ],
      [
        'drain',
        status.drain === null
          ? undefined
          : `${status.drain.left} of ${status.drain.sessions} sessions are left; stops by ${status.drain.until}`,
      ],
      ['pool', status.pool.map(({ prefix, used, size }) => `${prefix}: ${used} of ${size}`).join(', ')],
      [
        'devices',
        status.devices
          .map(({ name, superPackets, mtu }) => `${name} (${superPackets ? 'super-packets' : 'plain'}, mtu ${mtu})`)
          .join(', '),
      ],
      ['congestion', status.congestionControl],
      ['certificate', server === undefined ? 'none' : `${server.name}, ${server.daysLeft} days left`],
      ['counters', totals(status.counters)],
      ['drops', totals(status.drops)],
    ]),
    ...status.warnings.map((text) => `${warning('warning')} ${text}`),
  ].join('\n');
}

/** The connection by which the operator is here, as the SSH server says it: address, port, our address, our port. */
function wayHere(text: string | undefined): { from: string; to: string; port: number } | undefined {
  const [from, , to, port] = text?.split(' ') ?? [];
  if (from === undefined || to === undefined || isIP(from) === 0 || isIP(to) === 0) return undefined;
  return Number(port) >= 1 && Number(port) <= 65_535 ? { from, to, port: Number(port) } : undefined;
}
