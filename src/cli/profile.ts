/**
 * `customvpn profile NAME`: the one file that a person needs to connect.
 */

import { writeFile } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { CliHost } from './host.ts';
import { gatewayConfig, gatewayState } from './options.ts';
import { drawQr } from './secrets.ts';

interface ProfileOptions {
  state: string;
  config?: string;
  out?: string;
  shared?: boolean;
  pin: 'ca' | 'leaf';
  hours: string;
  approve?: boolean;
  link?: boolean;
  qr?: boolean;
}

export function profileCommand(host: CliHost): Command {
  return new Command('profile')
    .description("make a user's profile: server, CA, pin and a one-time token that enrols one device")
    .argument('[user]')
    .option('--shared', 'without a user and token: for everybody who enrols by password (see login.enrol)')
    .option('--out <file>', 'write it here, mode 0600 (default: standard output)')
    .addOption(
      new Option('--pin <what>', 'pin the CA, or the server key itself too').choices(['ca', 'leaf']).default('ca'),
    )
    .option('--link', 'print a link in place of the file: one line to send or paste, as secret as the file')
    .option('--qr', 'draw that link as a QR code')
    .option('--hours <n>', 'how long the token can be used', '72')
    .option('--approve', 'hold the device until an operator approves it')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .addHelpText(
      'after',
      '\nExample:\n  customvpn profile alice --out alice.toml\n  customvpn profile alice --link\n  customvpn profile --shared --out company.toml',
    )
    .action(async (user: string | undefined, options: ProfileOptions) => {
      if ((user === undefined) !== (options.shared === true)) {
        throw new VpnError('ERR_USAGE', 'expected the user whose profile it shall be, or --shared');
      }
      const validHours = Number(options.hours);
      if (!Number.isInteger(validHours) || validHours < 1 || validHours > 8760) {
        throw new VpnError('ERR_USAGE', `expected --hours from 1 to 8760, got "${options.hours}"`);
      }
      await using gateway = await host.openGateway(options);
      const made = await gateway['profile.create']({
        ...(user === undefined ? {} : { user }),
        pin: options.pin,
        validHours,
        approve: options.approve ?? false,
      });
      if (options.link === true || options.qr === true) {
        const { parseProfile } = await import('../control/profile.ts');
        const { encodeProfileLink } = await import('../control/profile-link.ts');
        await showLink(encodeProfileLink(parseProfile(made.profile, 'the profile')), options);
        if (options.out === undefined) return;
      }
      if (options.out === undefined) {
        process.stdout.write(made.profile);
        return;
      }
      try {
        await writeFile(options.out, made.profile, { mode: 0o600, flag: 'wx' });
      } catch (cause) {
        const exists = (cause as NodeJS.ErrnoException).code === 'EEXIST';
        throw new VpnError(
          'ERR_USAGE',
          `cannot write ${options.out}: ${exists ? 'it exists; remove it or name another file' : String(cause)}`,
          {
            cause,
          },
        );
      }
      process.stdout.write(
        (user === undefined
          ? `wrote ${options.out}: for everybody; each device is brought in by what login.enrol asks\n`
          : `wrote ${options.out}: give it to ${user} over a safe way; it enrols one device until ${made.expiresAt}\n`) +
          `\nNext, on the client:\n  customvpn client up ${options.out}${user === undefined ? ' --user NAME' : ''}\n`,
      );
    });
}

/** The link alone on standard output, so that it can be piped; the drawing where eyes are. */
async function showLink(link: string, { link: isAsked = false, qr = false }: ProfileOptions): Promise<void> {
  if (qr) process.stderr.write(`${await drawQr(link, { ecc: 'L' })}\n`);
  if (isAsked || !qr) process.stdout.write(`${link}\n`);
  process.stderr.write('On the client:  customvpn client import -   and paste the link there\n');
}
