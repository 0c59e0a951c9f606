/**
 * `customvpn doctor`: what this machine lacks and how to get it.
 */

import { Command } from 'commander';
import type { CliHost } from './host.ts';
import { jsonOutput } from './options.ts';
import { bad, good, type OutputOptions, print, table, warning } from './output.ts';

/** `EX_UNAVAILABLE`: something that is required is missing. */
const UNAVAILABLE_STATUS = 69;

export function doctorCommand(host: CliHost): Command {
  return new Command('doctor')
    .description('what this machine lacks and how to get it')
    .addOption(jsonOutput())
    .action(async (options: OutputOptions) => {
      const requirements = await host.requirements();
      print(requirements, options, (all) =>
        table(
          ['', 'what', 'found', 'to mend it'],
          all.map(({ name, ok, required, found, mend }) => [
            ok ? good('ok') : required ? bad('missing') : warning('optional'),
            name,
            found,
            ok ? '' : (mend ?? ''),
          ]),
        ),
      );
      if (requirements.some(({ ok, required }) => required && !ok)) process.exitCode = UNAVAILABLE_STATUS;
    });
}
