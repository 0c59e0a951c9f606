/**
 * What is left of clients, and what goes on without one: clean-up, kill switches, units, and what is kept of each profile.
 */

import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { VpnError } from '../src/base/errors.ts';
import { createLogger, silentLogger } from '../src/base/log.ts';
import type { ClientFacts } from '../src/cli/host.ts';
import { KillSwitch } from '../src/client/kill-switch.ts';
import { cleanClients, profileIds, profilePaths, readEnd } from '../src/client/state-folder.ts';
import { readProfile } from '../src/control/profile.ts';
import { findProfile } from '../src/control/profile-place.ts';
import { answers } from '../src/control/socket.ts';
import { parsePrefix } from '../src/ip/address.ts';
import { clientUnit, killSwitchUnit } from '../src/os/systemd-unit.ts';

/** Takes away what crashed clients left; returns how many had left something. */
export function cleanUp(state: string): Promise<number> {
  return cleanClients(state, createLogger({ level: 'warn' }));
}

/** `client unit`. */
export function unitOf(state: string, program: string): string {
  return clientUnit({ program, state: resolve(state) });
}

/** Closes or opens a kill switch, or looks; returns whether it is closed then. */
export async function workKillSwitch(state: string, name: string, action: 'close' | 'open' | 'look'): Promise<boolean> {
  const { id, tunnel } = await readProfile(await findProfile(state, name));
  if (action === 'open' && (await answers(profilePaths(state, id).control))) {
    throw new VpnError(
      'ERR_CONFLICT',
      `the client of ${name} runs and keeps it as it is; end it, and open it with that: customvpn client down ${name}`,
    );
  }
  const killSwitch = new KillSwitch(id, createLogger({ level: 'warn' }));
  // One that a client keeps closed is that client's: it knows what else is to stay open.
  if (action === 'close' && !(await killSwitch.isClosed())) await killSwitch.close(tunnel.exclude.map(parsePrefix));
  if (action === 'open') await killSwitch.open();
  return await killSwitch.isClosed();
}

/** The text of the unit that closes a profile's kill switch at boot. */
export async function killSwitchUnitOf(state: string, name: string, program: string): Promise<string> {
  const profile = resolve(await findProfile(state, name));
  await readProfile(profile);
  return killSwitchUnit({ program, profile });
}

/** What there is of each profile that has been used. */
export async function clientFacts(state: string): Promise<ReadonlyMap<string, ClientFacts>> {
  const facts = new Map<string, ClientFacts>();
  for (const id of await profileIds(state)) {
    const { control, enrolled, log } = profilePaths(state, id);
    const end = await readEnd(state, id);
    facts.set(id, {
      isRunning: await answers(control),
      isClosed: await new KillSwitch(id, silentLogger).isClosed().catch(() => false),
      isEnrolled: existsSync(enrolled),
      log,
      ...(end === undefined ? {} : { end: { at: end.at, code: end.error.code, message: end.error.message } }),
    });
  }
  return facts;
}

/** Forgets the device's key and everything else that is kept of a profile. */
export async function forgetClient(state: string, id: string): Promise<void> {
  await rm(profilePaths(state, id).folder, { recursive: true, force: true });
}
