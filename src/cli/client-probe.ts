/**
 * `customvpn client probe`, and what `doctor` says of a gateway: the way there, step by step.
 */

import type { Command } from 'commander';
import { findProfile, isStoredOrFile } from '../control/profile-place.ts';
import type { CliHost, ExaminationResult, ProbeResult } from './host.ts';
import { clientState, hostAndPort, jsonOutput } from './options.ts';
import { bad, facts, good, type OutputOptions, print, reportError, table, warning } from './output.ts';

export function addProbeCommand(command: Command, host: CliHost): void {
  command
    .command('probe')
    .description('is there a gateway, what does its TLS look like, and if it cannot be reached, why?')
    .argument(
      '<target>',
      'HOST:PORT, which needs no profile; or a profile, a file or a name, which tries the login too',
    )
    .addOption(clientState())
    .addOption(jsonOutput())
    .addHelpText('after', '\nExamples:\n  customvpn client probe vpn.example.org:443\n  customvpn client probe work')
    .action(async (target: string, options: OutputOptions & { state: string }) => {
      showExamination(await examineTarget(host, target, options.state), options);
    });
}

/** @throws {VpnError} ERR_USAGE, ERR_CONFIG_* */
export async function examineTarget(host: CliHost, target: string, state: string): Promise<ExaminationResult> {
  if (isStoredOrFile(state, target)) return await host.examineProfile(await findProfile(state, target), state);
  const { host: name, port } = hostAndPort(target, 443);
  return await host.examineServer(name, port);
}

function showExamination({ findings, facts: seen, error }: ExaminationResult, options: OutputOptions): void {
  if (error === undefined && seen !== undefined) {
    print({ ...seen, findings }, options, () => `${formatProbe(seen)}\n\n${formatFindings(findings)}`);
    return;
  }
  const failure = error === undefined ? null : { code: error.code, message: error.message };
  if (options.json === true) print({ error: failure, findings }, options, () => '');
  else process.stderr.write(`${formatFindings(findings)}\n\n`);
  if (error !== undefined) process.exitCode = reportError(error);
}

/** A table of what each step found. */
export function formatFindings(findings: ExaminationResult['findings']): string {
  return table(
    ['', 'step', 'found', 'to mend it'],
    findings.map(({ step, ok, found, mend }) => [ok ? good('ok') : bad('failed'), step, found, mend ?? '']),
  );
}

function formatProbe(result: ProbeResult): string {
  const { certificate, tls } = result;
  return facts([
    ['server', `${result.server} (${result.address})`],
    ['reachable', `${good('yes')}, connected in ${result.connectMs.toFixed(1)} ms`],
    ['tls', `${tls.protocol}, ${tls.cipher}, ${tls.group}`],
    ['certificate', `${certificate.subject}, until ${certificate.notAfter.slice(0, 10)}`],
    ['issued by', certificate.issuer],
    ['trusted here', certificate.trusted ? good('yes') : `${warning('no')}: ${certificate.reason ?? ''}`],
    ['pin', certificate.pin],
    ['hello', result.hello],
    ['echo', `${result.echoMs.toFixed(2)} ms`],
  ]);
}
