/**
 * `customvpn policy …`: who may reach what, checked and tried before it counts.
 */

import { Command } from 'commander';
import type { CliHost, PolicyCheck, PolicyTrial } from './host.ts';
import { gatewayState, jsonOutput } from './options.ts';
import { bad, dim, good, type OutputOptions, print, warning } from './output.ts';

/** A policy that cannot be used, as `sysexits(3)` says it: EX_CONFIG. */
const BAD_POLICY_STATUS = 78;

export function policyCommand(host: CliHost): Command {
  const command = new Command('policy').description('who may reach what: check a policy file, try its tests');

  command
    .command('check')
    .description('say what is wrong in a policy file, and what is probably not meant')
    .argument('<file>')
    .addOption(jsonOutput())
    .addHelpText('after', '\nExample:\n  customvpn policy check policy.toml')
    .action(async (file: string, options: OutputOptions) => {
      const check = await host.checkPolicy(file);
      print(check, options, formatCheck);
      if (!check.good) process.exitCode = BAD_POLICY_STATUS;
    });

  command
    .command('test')
    .description('try the tests in a policy file; users have the groups of the gateway, where there is one')
    .argument('<file>')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
A test is a sentence in the list "expect" of the table [tests]:
  alice can reach 10.1.2.3:443/tcp
  group:contractors cannot reach 10.1.2.3
  alice with certificate, mfa can reach [2001:db8::1]:22/tcp at 2026-03-02T09:00Z

Example:
  customvpn policy test policy.toml`,
    )
    .action(async (file: string, options: OutputOptions & { state: string }) => {
      const trial = await host.testPolicy(file, options.state);
      print(trial, options, formatTrial);
      if (!trial.good) process.exitCode = BAD_POLICY_STATUS;
    });

  command
    .command('schema')
    .description('print a JSON Schema of policy files, for editors')
    .addHelpText('after', '\nExample:\n  customvpn policy schema > policy.schema.json')
    .action(async () => {
      process.stdout.write(`${JSON.stringify(await host.schemaOfPolicy(), null, 2)}\n`);
    });

  return command;
}

function formatCheck({ file, good: isGood, rules, tests, problems }: PolicyCheck): string {
  const lines = problems.map(({ severity, line, column, message }) => {
    const kind = severity === 'error' ? bad('error') : warning('warning');
    return `${file}:${line}:${column}: ${kind}: ${message}`;
  });
  if (!isGood) return lines.join('\n');
  const next =
    tests === 0 ? 'it has no tests; see: customvpn policy test --help' : `try its tests: customvpn policy test ${file}`;
  return [...lines, `${good('good')}  ${count(rules, 'rule')}, ${count(tests, 'test')}; ${next}`].join('\n');
}

function formatTrial({ file, outcomes, unresolved }: PolicyTrial): string {
  const failed = outcomes.filter(({ passed }) => !passed);
  return [
    ...outcomes.map(({ passed, line, text, reason }) =>
      passed
        ? `${good('ok')}      ${dim(`${line}:`)} ${text}`
        : `${bad('failed')}  ${dim(`${line}:`)} ${text}: ${reason}`,
    ),
    ...unresolved.map(
      (name) => `${warning('warning')} the name ${name} could not be looked up: no rule for it matches`,
    ),
    outcomes.length === 0
      ? `${file} has no tests; add some, in the table [tests]: customvpn policy test --help`
      : `${count(outcomes.length, 'test')}, ${failed.length === 0 ? good('all hold') : bad(`${failed.length} failed`)}`,
  ].join('\n');
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}
