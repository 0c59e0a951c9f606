/**
 * `customvpn server stop`: ends a gateway, and comes back when nothing of it runs any more.
 *
 * Hides that it answers no longer well before its processes have ended.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { VpnError } from '../base/errors.ts';
import type { CliHost, RunningProcess } from './host.ts';
import { gatewayState, jsonOutput, lengthOfTime } from './options.ts';
import { good, type OutputOptions, print } from './output.ts';

const LOOK_MS = 50;
/** So long nothing is said, and then from time to time. */
const SAY_AFTER_MS = 2000;
const SAY_EVERY_MS = 5000;

interface StopOptions extends OutputOptions {
  state: string;
  timeout: string;
  wait: boolean;
}

export function stopCommand(host: CliHost): Command {
  return new Command('stop')
    .description('end the gateway and put the machine back as it was; comes back when its processes have ended')
    .addOption(gatewayState())
    .option('--timeout <time>', 'how long that may take, such as 90s or 5m, 1h at most', '60s')
    .option('--no-wait', 'come back at once')
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
Where it takes longer than --timeout, it fails and says which processes are left; they go on ending.

Examples:
  customvpn server stop
  customvpn server stop --timeout 5m`,
    )
    .action(async (options: StopOptions) => {
      const timeoutMs = lengthOfTime(options.timeout);
      await using gateway = await host.openGateway(options);
      const { pid } = await gateway['server.status']({});
      const left = await host.watchProcesses(pid);
      const { sessions } = await gateway['server.stop']({});
      if (options.wait) await allEnded(left, timeoutMs);
      print({ sessions, stopped: options.wait }, options, (result) =>
        result.stopped
          ? `${good('stopped')}; ${sessions} sessions were live`
          : `stopping; ${sessions} sessions were live`,
      );
    });
}

/** @throws {VpnError} ERR_BUSY */
async function allEnded(left: () => readonly RunningProcess[], timeoutMs: number): Promise<void> {
  const begun = performance.now();
  let sayAt = begun + SAY_AFTER_MS;
  for (;;) {
    const running = left();
    if (running.length === 0) return;
    const now = performance.now();
    if (now - begun > timeoutMs) {
      const which = running.map(({ pid, command }) => `${pid} (${command})`).join(', ');
      throw new VpnError(
        'ERR_BUSY',
        `expected the gateway to end within ${timeoutMs / 1000} s; these processes of it are left: ${which}`,
      );
    }
    if (now > sayAt) {
      process.stderr.write(`${running.length} processes of the gateway are still ending\n`);
      sayAt = now + SAY_EVERY_MS;
    }
    await sleep(LOOK_MS);
  }
}
