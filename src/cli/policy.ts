/**
 * `customvpn policy …`: who may reach what, checked and tried before it counts, and seen while it does.
 */

import { setTimeout } from 'node:timers/promises';
import { Command } from 'commander';
import type { DenialInfo, PolicyInfo, PolicyVersionInfo } from '../control/operations.ts';
import type { CliHost, PolicyCheck, PolicyTrial } from './host.ts';
import { gatewayState, jsonOutput, wholeNumber } from './options.ts';
import { bad, dim, facts, good, type OutputOptions, print, warning } from './output.ts';

/** A policy that cannot be used, as `sysexits(3)` says it: EX_CONFIG. */
const BAD_POLICY_STATUS = 78;
const FOLLOW_MS = 500;
const MAX_DENIED = 1000;

export function policyCommand(host: CliHost): Command {
  const command = new Command('policy').description(
    'who may reach what: check a policy file, try its tests, see what is in force and what it denies',
  );

  command
    .command('check')
    .description('say what is wrong in a policy file, and what is probably not meant')
    .argument('<file>')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
Where there is a gateway, it is also said what does not fit its networks.

Example:
  customvpn policy check policy.toml`,
    )
    .action(async (file: string, options: OutputOptions & { state: string }) => {
      const check = await host.checkPolicy(file, options.state);
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
    .command('apply')
    .description('put a policy file in force at the gateway, if its tests hold, in the place of the one that it reads')
    .argument('<file>')
    .option('--note <text>', 'why; kept with the version')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
The gateway's own file (policyFile) is replaced. Each policy that was in force is kept.

Examples:
  customvpn policy apply policy.toml --note "printers for the night shift"
  customvpn policy rollback 12`,
    )
    .action(async (file: string, { note, ...options }: OutputOptions & { state: string; note?: string }) => {
      await using gateway = await host.openGateway(options);
      const text = await host.readPolicy(file);
      print(await gateway['policy.apply']({ text, ...(note === undefined ? {} : { note }) }), options, formatApplied);
    });

  command
    .command('rollback')
    .description('put a policy that was in force before in force again')
    .argument('<version>', 'as `policy history` lists it', wholeNumber)
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExample:\n  customvpn policy rollback 12')
    .action(async (version: number, options: OutputOptions & { state: string }) => {
      await using gateway = await host.openGateway(options);
      print(await gateway['policy.rollback']({ version }), options, formatApplied);
    });

  command
    .command('history')
    .description('policies that were in force: when, by whom and why; with a version its text')
    .argument('[version]', 'print the text of this one', wholeNumber)
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExamples:\n  customvpn policy history\n  customvpn policy history 12 > policy.toml')
    .action(async (version: number | undefined, options: OutputOptions & { state: string }) => {
      await using gateway = await host.openGateway(options);
      if (version !== undefined) {
        print(await gateway['policy.version']({ version }), options, ({ text }) => text.replace(/\n$/, ''));
        return;
      }
      print(await gateway['policy.history']({ limit: 200 }), options, (versions) =>
        versions.length === 0 ? 'there was no policy yet' : versions.map(formatVersion).join('\n'),
      );
    });

  command
    .command('schema')
    .description('print a JSON Schema of policy files, for editors')
    .addHelpText('after', '\nExample:\n  customvpn policy schema > policy.schema.json')
    .action(async () => {
      process.stdout.write(`${JSON.stringify(await host.schemaOfPolicy(), null, 2)}\n`);
    });

  command
    .command('show')
    .description('the policy that is in force, and what it comes to for a user')
    .option('--user <name>', 'also the rules that are in force for this user, for each session')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExamples:\n  customvpn policy show\n  customvpn policy show --user alice')
    .action(async (options: OutputOptions & { state: string; user?: string }) => {
      await using gateway = await host.openGateway(options);
      const shown = await gateway['policy.show'](options.user === undefined ? {} : { user: options.user });
      print(shown, options, formatShown);
    });

  command
    .command('denied')
    .description('what the policy has denied lately: who, what, and by which rule')
    .option('--follow', 'go on with what comes; with --json a line each')
    .option('--user <name>', 'only of this user')
    .addOption(gatewayState())
    .addOption(jsonOutput())
    .addHelpText(
      'after',
      `
It is a sample: of one client at most 5 packets a second are looked at. All that
is denied is counted as drop_policy in: customvpn server status

Examples:
  customvpn policy denied --follow
  customvpn policy denied --user alice --json`,
    )
    .action(async (options: OutputOptions & { state: string; user?: string; follow?: boolean }) => {
      await using gateway = await host.openGateway(options);
      const query = options.user === undefined ? {} : { user: options.user };
      const denials = await gateway['policy.denied']({ ...query, limit: MAX_DENIED });
      if (options.follow !== true) {
        print(denials, options, () => denials.map(formatDenial).join('\n') || 'nothing was denied lately');
        return;
      }
      let after = 0;
      const show = (denial: DenialInfo): void => {
        process.stdout.write(`${options.json === true ? JSON.stringify(denial) : formatDenial(denial)}\n`);
        after = denial.id;
      };
      for (const denial of denials) show(denial);
      for (;;) {
        await setTimeout(FOLLOW_MS);
        for (const denial of await gateway['policy.denied']({ ...query, after, limit: MAX_DENIED })) show(denial);
      }
    });

  return command;
}

function formatApplied({ version, warnings }: { version: number; warnings: string[] }): string {
  return [
    ...warnings.map((text) => `${warning('warning')} ${text}`),
    `${good('in force')}, kept as version ${version}`,
  ].join('\n');
}

function formatVersion({ version, at, by, note, isInForce, hasText }: PolicyVersionInfo): string {
  return [
    String(version).padStart(5),
    at.replace('T', ' ').slice(0, 19),
    (by ?? 'from the file').padEnd(20),
    isInForce ? good('in force') : '        ',
    hasText ? note : `${note} (its text was not kept)`,
  ]
    .join('  ')
    .trimEnd();
}

function formatShown({ file, since, rules, tests, hosts, sites, user }: PolicyInfo): string {
  if (file === null) {
    return 'there is no policy: routes and services say what clients reach; name a file as policyFile in the configuration';
  }
  const head = facts([
    ['policy', file],
    ['in force since', since ?? ''],
    ['rules', `${rules}, with ${count(tests, 'test')}`],
    ...hosts.map(({ name, addresses }): [string, string] => [name, addresses.join(', ') || bad('cannot be looked up')]),
    ...sites.map((site): [string, string] => [`site ${site.name}`, siteWords(site)]),
  ]);
  const own = (user ?? []).map(({ session, addresses, kept, networks, groups, rules: inForce, settings }) =>
    [
      '',
      session === ''
        ? 'no session; without a certificate and a second factor it would be:'
        : `session ${session}  ${addresses.join(', ')}`,
      facts([
        ['groups', groups.join(', ') || '-'],
        ['kept for it', kept.join(', ') || undefined],
        ['behind it', networks.join(', ') || undefined],
        ...Object.entries(settings).map(([key, value]): [string, string] => [key, String(value)]),
      ]),
      ...inForce.map(
        ({ action, line, name, to, services }) =>
          `  ${action === 'allow' ? good('allow') : bad('deny ')}  ${some(to)}  ${some(services)}  ${dim(`${name}, line ${line}`)}`,
      ),
      `  ${bad('deny ')}  everything else`,
    ].join('\n'),
  );
  return [head, ...own].join('\n');
}

function siteWords({ networks, openTo, users }: PolicyInfo['sites'][number]): string {
  const list = networks.map(({ network, seenAs }) => (network === seenAs ? network : `${seenAs} (there ${network})`));
  const open = openTo.length === 0 ? '' : `; open to ${openTo.join(', ')}`;
  return `${list.join(', ')}${open}; ${users.length === 0 ? bad('nobody is there') : `behind ${users.join(', ')}`}`;
}

function some(texts: readonly string[]): string {
  return texts.length <= 4 ? texts.join(', ') : `${texts.slice(0, 4).join(', ')} and ${texts.length - 4} more`;
}

function formatDenial({ at, kind, user, source, destination, protocol, port, rule, count: often }: DenialInfo): string {
  const to = port === null ? `${destination}/${protocol}` : `${bracketed(destination)}:${port}/${protocol}`;
  return [
    dim(at.replace('T', ' ').slice(0, 19)),
    user.padEnd(12),
    kind === 'stream' ? 'proxy'.padEnd(15) : source.padEnd(15),
    to.padEnd(24),
    rule === null ? 'no rule allows it' : `${rule.name}, line ${rule.line}`,
    often === 1 ? '' : dim(`×${often}`),
  ]
    .filter((part) => part !== '')
    .join('  ');
}

function bracketed(address: string): string {
  return address.includes(':') ? `[${address}]` : address;
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
