/**
 * `customvpn doctor`: what this machine lacks and how to get it, and what is wrong on the way to a gateway.
 */

import { Command } from 'commander';
import { examineTarget, formatFindings } from './client-probe.ts';
import type { CliHost, Requirement } from './host.ts';
import { clientState, jsonOutput } from './options.ts';
import { bad, good, type OutputOptions, print, reportError, table, warning } from './output.ts';

/** `EX_UNAVAILABLE`: something that is required is missing. */
const UNAVAILABLE_STATUS = 69;

export function doctorCommand(host: CliHost): Command {
  return new Command('doctor')
    .description('what this machine lacks and how to get it; with a target, what is wrong on the way there, too')
    .argument('[target]', 'a profile, a file or a name; or HOST:PORT')
    .addOption(clientState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExamples:\n  customvpn doctor\n  customvpn doctor work')
    .action(async (target: string | undefined, options: OutputOptions & { state: string }) => {
      const requirements = await host.requirements();
      if (target !== undefined) {
        const { findings, error } = await examineTarget(host, target, options.state);
        const failure = error === undefined ? null : { code: error.code, message: error.message };
        print({ requirements, findings, error: failure }, options, () =>
          [formatRequirements(requirements), formatFindings(findings)].join('\n\n'),
        );
        if (error !== undefined) process.exitCode = reportError(error);
      } else print(requirements, options, formatRequirements);
      if (requirements.some(({ ok, required }) => required && !ok)) process.exitCode = UNAVAILABLE_STATUS;
    });
}

function formatRequirements(all: readonly Requirement[]): string {
  return table(
    ['', 'what', 'found', 'to mend it'],
    all.map(({ name, ok, required, found, mend }) => [
      ok ? good('ok') : required ? bad('missing') : warning('optional'),
      name,
      found,
      ok ? '' : (mend ?? ''),
    ]),
  );
}
