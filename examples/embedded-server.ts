/**
 * A gateway inside another program: no TUN device, no root, and the program decides who may log in.
 *
 *   node --conditions=customvpn-source examples/embedded-server.ts      in a checkout
 *
 * Prints one JSON object a line: `{"event":"listening","port":…,"profile":…}` first, then what the hooks learn. A line on
 * standard input, or its end, stops it. `tun: 'kernel'` instead would carry packets, as root.
 */

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initGateway, VpnServer } from 'customvpn';

const say = (event: string, facts: object): void => console.log(JSON.stringify({ event, ...facts }));

const folder = await mkdtemp(join(tmpdir(), 'embedded-server-'));
try {
  // Once: certificates, keys and a store. A program would keep this folder.
  const stateDir = join(folder, 'state');
  await initGateway(stateDir, { names: ['localhost'] });

  const server = new VpnServer({
    stateDir,
    names: ['localhost'],
    address: '127.0.0.1',
    port: 0,
    tun: 'none',
    hooks: {
      // The built-in steps have said yes; the last word is ours.
      authorizeLogin: ({ user, remote }) => {
        say('login', { user, remote });
        return user !== 'mallory';
      },
      onSessionStart: ({ user, addresses }) => say('start', { user, addresses }),
      onSessionEnd: ({ user }, reason) => say('end', { user, reason }),
    },
  });
  await server.start();

  // A profile is all that a client needs; until its first use it holds a one-time token, so it is written privately.
  const profiles: Record<string, string> = {};
  for (const user of ['alice', 'mallory']) {
    await server.administration['user.add']({ name: user });
    const { profile } = await server.administration['profile.create']({ user });
    profiles[user] = join(folder, `${user}.toml`);
    await writeFile(profiles[user], profile, { mode: 0o600 });
  }
  say('listening', { port: server.address.port, profiles });

  await new Promise<void>((resolve) => {
    process.stdin.once('data', () => resolve()).once('end', () => resolve());
  });
  process.stdin.destroy();
  await server.stop();
} finally {
  await rm(folder, { recursive: true });
}
