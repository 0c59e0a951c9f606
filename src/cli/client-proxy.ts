/**
 * `customvpn client proxy`: the gateway's networks for programs that can use a proxy, without root and without a tunnel.
 */

import { homedir } from 'node:os';
import { join } from 'node:path';
import { Command, Option } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { CliHost } from './host.ts';
import { DEFAULT_CLIENT_STATE } from './options.ts';
import { answersFromStdin, askInTerminal, isInteractive } from './secrets.ts';

interface ProxyOptions {
  state: string;
  socks?: string;
  http?: string;
  expose?: boolean;
  user?: string;
  passwordStdin?: boolean;
}

export function clientProxyCommand(host: CliHost): Command {
  return new Command('proxy')
    .description('be a SOCKS5 and HTTP proxy on this machine, through the gateway; needs no root')
    .argument('<profile>', 'a file made by `customvpn profile`, or the name of an imported profile')
    .addOption(new Option('--state <dir>', 'state directory of the client').default(defaultState()))
    .option('--socks <addr:port>', 'where programs find the SOCKS5 proxy, such as 127.0.0.1:1080')
    .option('--http <addr:port>', 'where programs find the HTTP proxy, such as 127.0.0.1:8118')
    .option('--expose', 'allow addresses that other machines can reach')
    .option('--user <name>', "log in as this user instead of the profile's")
    .option('--password-stdin', 'answer from standard input, a line each: password, one-time code, what else is asked')
    .addHelpText(
      'after',
      '\nNames are looked up at the gateway. Stays in the foreground until interrupted.\n\nExamples:\n  customvpn client proxy alice.toml --socks 127.0.0.1:1080\n  curl --socks5-hostname 127.0.0.1:1080 http://intranet.example/\n  customvpn client proxy alice.toml --http 127.0.0.1:8118\n  https_proxy=http://127.0.0.1:8118 git pull',
    )
    .action(async (profile: string, options: ProxyOptions) => {
      const { socks, http } = options;
      if (socks === undefined && http === undefined) {
        throw new VpnError('ERR_USAGE', 'expected --socks ADDR:PORT, --http ADDR:PORT, or both, got neither');
      }
      const answer = options.passwordStdin === true ? answersFromStdin() : isInteractive() ? askInTerminal : undefined;
      await host.runProxy({
        profile,
        state: options.state,
        expose: options.expose === true,
        ...(socks === undefined ? {} : { socks: endpoint(socks) }),
        ...(http === undefined ? {} : { http: endpoint(http) }),
        ...(options.user === undefined ? {} : { user: options.user }),
        ...(answer === undefined ? {} : { answer }),
        onReady: (where) => {
          if (where.socks !== undefined) process.stdout.write(`socks5 ${where.socks}\n`);
          if (where.http !== undefined) process.stdout.write(`http ${where.http}\n`);
          process.stdout.write('ready\n');
        },
      });
    });
}

/** Whoever is not root has no place under /var/lib. */
function defaultState(): string {
  if (process.getuid?.() === 0) return DEFAULT_CLIENT_STATE;
  return join(process.env.XDG_STATE_HOME ?? join(homedir(), '.local', 'state'), 'customvpn');
}

/** `ADDR:PORT`, `[V6]:PORT`, `:PORT` or `PORT`; port 0: the system chooses. @throws {VpnError} ERR_USAGE */
function endpoint(text: string): { host: string; port: number } {
  const match = /^(?:(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]*)):)?(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) {
    throw new VpnError('ERR_USAGE', `expected ADDR:PORT such as 127.0.0.1:1080, got "${text}"`);
  }
  return { host: match[1] ?? (match[2] || '127.0.0.1'), port };
}
