/**
 * `customvpn audit`: who did what, from where, and with what result.
 */

import { setTimeout } from 'node:timers/promises';
import { Command } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { AuditRecordInfo } from '../control/operations.ts';
import type { CliHost } from './host.ts';
import { gatewayConfig, gatewayState, jsonOutput, since } from './options.ts';
import { bad, dim, type OutputOptions, plain, print } from './output.ts';

const FOLLOW_MS = 1000;
const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 10_000;

interface AuditOptions extends OutputOptions {
  state: string;
  config?: string;
  since?: string;
  user?: string;
  event?: string;
  limit: string;
  follow?: boolean;
}

export function auditCommand(host: CliHost): Command {
  return new Command('audit')
    .description('logins, refusals with their true reason, and changes of accounts; oldest first')
    .option('--since <when>', 'a date, an instant, or a time ago such as 2h or 7d', since)
    .option('--user <name>', 'only what concerns this user')
    .option('--event <event>', 'such as login.refused, or all of a kind such as login')
    .option('--limit <n>', 'the newest so many', String(DEFAULT_LIMIT))
    .option('--follow', 'go on with what comes; with --json a line each')
    .addOption(gatewayState())
    .addOption(gatewayConfig())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      '\nExamples:\n  customvpn audit --since 24h --event login.refused\n  customvpn audit --user alice --json\n  customvpn audit --follow',
    )
    .action(async (options: AuditOptions) => {
      const limit = Number(options.limit);
      if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT) {
        throw new VpnError('ERR_USAGE', `expected --limit from 1 to ${MAX_LIMIT}, got "${options.limit}"`);
      }
      const query = {
        ...(options.since === undefined ? {} : { since: options.since }),
        ...(options.user === undefined ? {} : { user: options.user }),
        ...(options.event === undefined ? {} : { event: options.event }),
      };
      await using gateway = await host.openGateway(options);
      const records = await gateway['audit.list']({ ...query, limit });
      if (options.follow !== true) {
        print(records, options, () => records.map(lineOf).join('\n') || 'nothing is recorded');
        return;
      }
      const show = (record: AuditRecordInfo): void =>
        void process.stdout.write(`${options.json === true ? JSON.stringify(record) : lineOf(record)}\n`);
      for (const record of records) show(record);
      let after = records.at(-1)?.id ?? '';
      for (;;) {
        await setTimeout(FOLLOW_MS);
        for (const record of await gateway['audit.list']({ ...query, after, limit: MAX_LIMIT })) {
          show(record);
          after = record.id;
        }
      }
    });
}

/** A record in a line. Names and reasons may be a stranger's words. */
export function lineOf({ at, event, user, device, source, reason, detail }: AuditRecordInfo): string {
  const facts = Object.entries(detail).map(([name, value]) => `${name}=${plain(String(value))}`);
  return [
    dim(at.replace('T', ' ').slice(0, 19)),
    (/refused|reused|gone|revoked/.test(event) ? bad : String)(event.padEnd(20)),
    plain(user ?? '-').padEnd(12),
    source ?? '',
    device === null ? '' : `device ${device.slice(0, 8)}`,
    plain(reason ?? ''),
    dim(facts.join(' ')),
  ]
    .filter((part) => part !== '')
    .join('  ');
}
