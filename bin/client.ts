/**
 * Having a client in the background: the one that runs, or a new one. Whoever waits for this waits for all that it loads.
 */

import { isVpnError, toVpnError } from '../src/base/errors.ts';
import type { ClientRun } from '../src/cli/host.ts';
import { clientOf, profilePaths, readEnd } from '../src/client/state-folder.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { findProfile, profileIdAt } from '../src/control/profile-place.ts';
import { answers } from '../src/control/socket.ts';
import { GIVEN_UP_STATUS, spawnClient, waitUntilUp, withLog } from './client-background.ts';

export { findClients } from '../src/client/state-folder.ts';

/** Sees to it that a client for the profile runs in the background and is connected. */
export async function startClient(run: ClientRun): Promise<ClientApi> {
  const id = await profileIdAt(await findProfile(run.state, run.profile));
  const paths = profilePaths(run.state, id);
  const client = clientOf(run.state, id);
  let giveUp: () => Promise<unknown>;
  if (await answers(paths.control)) {
    const { state } = await client['client.status']({});
    // With its flags, which a client that runs already must have been started with.
    await client['client.up']({ ...(run.tunnel === undefined ? {} : { tunnel: run.tunnel }) });
    if (state === 'connected') {
      process.stderr.write('connected already\n');
      return client;
    }
    giveUp = () => (state === 'down' ? client['client.down']({ keep: true }) : Promise.resolve());
  } else {
    const child = await spawnClient(run, paths.folder, paths.log);
    giveUp = async () => child.kill('SIGTERM');
  }
  // Whoever gives up waiting gives up the client.
  const interrupted = (): void => {
    process.stderr.write('gave up\n');
    void giveUp()
      .catch(() => {})
      .finally(() => process.exit(GIVEN_UP_STATUS));
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    await waitUntilUp(client, run);
  } catch (error) {
    // It has ended before it could say why to us.
    const end = isVpnError(error, 'ERR_NOT_RUNNING') ? await readEnd(run.state, id.slice(0, 16)) : undefined;
    throw withLog(end?.error ?? toVpnError(error), run);
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
  return client;
}
