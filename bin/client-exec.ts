/**
 * `client exec`: finds or starts the client that the profile's commands share, and runs one more of them in its tunnel.
 */

import { writeSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isVpnError, toVpnError, VpnError } from '../src/base/errors.ts';
import type { ExecRun } from '../src/cli/host.ts';
import { clientOf, profilePaths, readEnd } from '../src/client/state-folder.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { findProfile, profileIdAt } from '../src/control/profile-place.ts';
import { findUser, runEnclosed, type User, whyNotStarted } from '../src/os/enclosed-command.ts';
import { START_VARIABLE, spawnClient, waitUntilUp, withLog } from './client-background.ts';

/** How long one client that ends, or that starts beside ours, is waited for. */
const PATIENCE_MS = 15_000;
const LOOK_MS = 50;
/** How long the client that has no command left may take to end. */
const ENDING_MS = 10_000;

/** Runs a command in the profile's tunnel; returns the status to end with. @throws {VpnError} why it was not started */
export async function execInTunnel(run: ExecRun): Promise<number> {
  if (process.getuid?.() !== 0) {
    throw new VpnError('ERR_PRIVILEGE', 'a network namespace for a command needs root: sudo customvpn client exec …');
  }
  const failure = whyNotStarted(run.command);
  if (failure !== undefined) {
    writeSync(2, `customvpn: ${failure.why}\n`);
    return failure.status;
  }
  const user = await userOf(run.as);
  const id = await profileIdAt(await findProfile(run.state, run.profile));
  const client = clientOf(run.state, id);
  const ticket = await enter(run, id, client);
  // From here on our end, however it comes, is the ticket's end.
  const held = client['client.hold']({ ticket });
  let isOver = false;
  void held.then(
    ({ ended }) => {
      if (!isOver && ended !== null) writeSync(2, `customvpn: the command has no network any more: ${ended.message}\n`);
    },
    () => {
      if (!isOver) writeSync(2, 'customvpn: the command has no network any more: the client is gone\n');
    },
  );
  try {
    await waitUntilUp(client, run).catch(async (error: unknown) => {
      isOver = true;
      throw withLog(await reasonOf(run.state, id, toVpnError(error)), run);
    });
    const { namespace } = await client['client.status']({});
    if (namespace === null) throw new VpnError('ERR_NOT_RUNNING', 'the tunnel ended before the command was started');
    return await runEnclosed({
      command: run.command,
      enclosure: namespace,
      folder: profilePaths(run.state, id).folder,
      without: [START_VARIABLE],
      ...(user === undefined ? {} : { user }),
    });
  } finally {
    isOver = true;
    await leave(client, ticket);
  }
}

/** A client that has ended by itself has written down why. */
async function reasonOf(state: string, id: string, error: VpnError): Promise<VpnError> {
  if (error.code !== 'ERR_NOT_RUNNING') return error;
  return (await readEnd(state, id))?.error ?? error;
}

/** Joins the client that there is, or starts one. Of several that start together one is it. */
async function enter(run: ExecRun, id: string, client: ClientApi): Promise<number> {
  const { folder, log } = profilePaths(run.state, id);
  const lateAt = performance.now() + PATIENCE_MS;
  for (;;) {
    try {
      const { ticket } = await client['client.enter'](run.tunnel === undefined ? {} : { tunnel: run.tunnel });
      return ticket;
    } catch (error) {
      if (!isVpnError(error, 'ERR_NOT_RUNNING') || performance.now() > lateAt) throw error;
    }
    try {
      await spawnClient({ ...run, plain: false, enclosed: true }, folder, log);
    } catch (error) {
      if (!isVpnError(error, 'ERR_ALREADY_RUNNING') || performance.now() > lateAt) throw error;
      await sleep(LOOK_MS);
    }
  }
}

/** Whoever was the last waits until nothing is left of the tunnel. */
async function leave(client: ClientApi, ticket: number): Promise<void> {
  try {
    const { pid } = await client['client.status']({});
    const { commands } = await client['client.leave']({ ticket });
    if (commands > 0) return;
    const lateAt = performance.now() + ENDING_MS;
    while ((await isAlive(pid)) && performance.now() < lateAt) await sleep(LOOK_MS);
  } catch {
    // It has ended already.
  }
}

/** Not one that has ended and whose parent has not looked yet. */
async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
  const state = stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
  return state !== '' && state !== 'Z';
}

/** Whose rights the command has: root's only if root has asked for it. */
async function userOf(as: string | undefined): Promise<User | undefined> {
  const caller = process.env.SUDO_UID;
  const wanted = as ?? (caller !== undefined && /^\d+$/.test(caller) ? caller : undefined);
  if (wanted === undefined) return undefined;
  const user = await findUser(wanted);
  return user.uid === 0 ? undefined : user;
}
