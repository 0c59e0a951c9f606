/**
 * Wires the command line to gateway, client and machine, and loads of them only what the verb needs.
 */

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { CliHost } from '../src/cli/host.ts';
import { runProgram } from '../src/cli/program.ts';
import { embeddedFile } from '../src/os/own-program.ts';

/** The status that a shell shows for a program that SIGPIPE has ended, which Node ignores. */
const OF_SIGPIPE = 141;

/** Runs the command line; the exit status is the process's. */
export async function main(): Promise<void> {
  const { version, command } = ownPackage();
  const gateway = () => import('./gateway.ts');
  const policy = () => import('./policy.ts');
  const client = () => import('./client.ts');
  const care = () => import('./client-care.ts');
  const examination = () => import('../src/client/profile-examination.ts');
  const host: CliHost = {
    openGateway: async (source) => (await gateway()).openGateway(source),
    watchProcesses: async (pid) => (await gateway()).watchProcesses(pid),
    initGateway: async (init) => (await gateway()).makeGateway(init),
    checkGateway: async (source) => (await gateway()).checkGateway(source),
    backupStore: async (source, file, force) => (await gateway()).backupStore(source, file, force),
    restoreStore: async (source, file, force) => (await gateway()).restoreStore(source, file, force),
    bundle: async (source, folder, log) => (await import('./bundle.ts')).bundle(source, folder, log, version),
    gatewayUnit: async (source) => (await gateway()).unitOf(source, command),
    readPolicy: async (file) => (await policy()).readPolicyText(file),
    checkPolicy: async (file, state) =>
      (await policy()).checkPolicy(file, await (await gateway()).gatewayNetworks(state)),
    testPolicy: async (file, state) => (await policy()).testPolicy(file, await (await gateway()).policyWorld(state)),
    schemaOfPolicy: async () => (await policy()).schemaOfPolicy(),
    runGateway: async (source) => (await import('./serve.ts')).runGateway(source, version),
    openClients: async (state) => (await client()).findClients(state),
    clientFacts: async (state) => (await care()).clientFacts(state),
    forgetClient: async (state, id) => (await care()).forgetClient(state, id),
    clientUnit: async (state) => (await care()).unitOf(state, command),
    runProxy: async (run) => (await import('./client-proxy.ts')).runProxyHere(run, version),
    runClient: async (run) => (await import('./client-run.ts')).runClientHere(run, version),
    startClient: async (run) => (await client()).startClient(run),
    execInTunnel: async (run) => (await import('./client-exec.ts')).execInTunnel(run),
    cleanClients: async (state) => (await care()).cleanUp(state),
    killSwitch: async (state, profile, action) => (await care()).workKillSwitch(state, profile, action),
    killSwitchUnit: async (state, profile) => (await care()).killSwitchUnitOf(state, profile, command),
    examineServer: async (name, port) => (await examination()).examineServer(name, port),
    examineProfile: async (path, state) => (await examination()).examineProfile(path, state, version),
    requirements: async () => (await import('../src/os/requirements.ts')).findRequirements(),
  };
  // Whoever reads the output may have seen enough, as `head` has: this ends, tidily where there is something to tidy up.
  process.stdout.on('error', () => {
    if (process.listenerCount('SIGTERM') > 0) process.kill(process.pid, 'SIGTERM');
    else process.exit(OF_SIGPIPE);
  });
  process.exitCode = await runProgram(host, version, process.argv.slice(2));
}

/** The version of the package this file belongs to, and the command that people start it by. */
function ownPackage(): { version: string; command: string } {
  const embedded = embeddedFile('package.json');
  if (embedded !== undefined) return { version: versionIn(embedded), command: process.execPath };
  const root = packageFolder();
  return {
    version: versionIn(readFileSync(join(root, 'package.json'), 'utf8')),
    command: join(root, 'bin', 'customvpn'),
  };
}

/** In which the launcher is: one up in a checkout, two in a built package. */
function packageFolder(): string {
  for (let folder = dirname(import.meta.dirname); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'bin/customvpn'))) return folder;
  }
}

function versionIn(manifest: string): string {
  return (JSON.parse(manifest) as { version: string }).version;
}
