/**
 * `customvpn server drain`: how a gateway is emptied, and how far that has come.
 *
 * Hides that the end of it is that nobody answers any more.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { isVpnError } from '../base/errors.ts';
import type { DrainInfo, GatewayApi } from '../control/operations.ts';
import type { CliHost } from './host.ts';
import { gatewayState, jsonOutput, lengthOfTime } from './options.ts';
import { dim, good, type OutputOptions, print } from './output.ts';

const LOOK_MS = 500;
/** So often a line is printed even where nothing has changed. */
const SAY_EVERY_MS = 15_000;

interface DrainOptions extends OutputOptions {
  state: string;
  deadline: string;
  wait: boolean;
}

/** What `--json` prints: `stopped` tells whether it was waited for, and `left` who was there at the end. */
type DrainResult = DrainInfo & { stopped: boolean };

export function drainCommand(host: CliHost): Command {
  return new Command('drain')
    .description('let nobody new in, ask clients to move to another server, and stop when the last has gone or in time')
    .addOption(gatewayState())
    .option('--deadline <time>', 'how long sessions may go on, such as 90s or 15m, 1h at most', '5m')
    .option('--no-wait', 'come back at once; otherwise when the gateway has stopped')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
Sessions go on until then, and may be resumed; logins are refused as the gateway's that is shutting down. Clients whose profile
names several servers move to another one. Said again, the deadline counts anew. Ctrl-C ends the watching, not the draining;
"server status" says how far it is.

Examples:
  customvpn server drain
  customvpn server drain --deadline 15m --no-wait
  customvpn server drain --deadline 0s --json      ends all sessions now`,
    )
    .action(async (options: DrainOptions) => {
      const seconds = options.deadline === '0s' ? 0 : lengthOfTime(options.deadline) / 1000;
      await using gateway = await host.openGateway(options);
      const begun = await gateway['server.drain']({ seconds });
      if (!options.wait) {
        print({ ...begun, stopped: false }, options, describe);
        return;
      }
      process.stderr.write(`${describe(begun)}\n`);
      const last = await watch(gateway, begun);
      print({ ...last, stopped: true }, options, describeEnd);
    });
}

/** Resolves with the last that was heard when the gateway has stopped. */
async function watch(gateway: GatewayApi, begun: DrainInfo): Promise<DrainInfo> {
  let last = begun;
  let said = { left: begun.left, at: performance.now() };
  for (;;) {
    await sleep(LOOK_MS);
    let drain: DrainInfo | null;
    try {
      ({ drain } = await gateway['server.status']({}));
    } catch (error) {
      if (isVpnError(error, 'ERR_NOT_RUNNING')) return last;
      throw error;
    }
    if (drain === null) continue;
    last = drain;
    if (last.left === said.left && performance.now() - said.at < SAY_EVERY_MS) continue;
    said = { left: last.left, at: performance.now() };
    process.stderr.write(`${describe(last)}\n`);
  }
}

function describe({ sessions, left, asked, until }: DrainInfo): string {
  const words = left === 0 ? '' : dim(` (${asked} of them can move to another server)`);
  return `${left} of ${sessions} sessions are left${words}; the gateway stops by ${until}`;
}

function describeEnd({ sessions, left }: DrainResult): string {
  const cut = left === 0 ? 'nobody was cut off' : `${left} of ${sessions} sessions were cut off`;
  return `${good('stopped')}: ${cut}`;
}
