/**
 * What runs as auth for `cage.test.ts`: it is started like ours, tries files while it is root and when it is in its cage, and writes
 * what came of it into its folder, `tried.json`. Then it ends.
 *
 *   auth-files-child.ts SECRET OTHER_FOLDER
 */

import { spawnSync } from 'node:child_process';
import { appendFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createLogger } from '../../src/base/log.ts';
import { IpcChannel } from '../../src/gateway/ipc/channel.ts';
import { authToSupervisor, LIMITS_FROM_ABOVE, supervisorToAuth } from '../../src/gateway/ipc/messages.ts';
import { enterCage } from '../../src/os/cage.ts';
import { giveUpRights } from '../../src/os/launcher.ts';

const [secret = '', other = ''] = process.argv.slice(2);

function attempt(action: () => unknown): string {
  try {
    action();
    return 'done';
  } catch (error) {
    return String(Reflect.get(error as Error, 'code'));
  }
}

function shell(): void {
  const { error } = spawnSync('/bin/sh', ['-c', 'true'], { env: {} });
  if (error !== undefined) throw error;
}

function tryAll(state: string): Record<string, string> {
  return {
    'its own folder': attempt(() => writeFileSync(`new-${process.getuid?.()}`, 'text')),
    'the store': attempt(() => readFileSync(join(state, 'store.sqlite'))),
    'the configuration, to write': attempt(() => appendFileSync(join(state, 'server.toml'), '')),
    'a secret that the configuration names': attempt(() => readFileSync(secret)),
    'names of hosts': attempt(() => readFileSync('/etc/hosts')),
    'the home of root': attempt(() => readdirSync('/root')),
    'a key that it does not need': attempt(() => readFileSync(join(other, 'server.key'))),
    'a file that all may read': attempt(() => readFileSync(join(other, 'open'))),
    'a folder that all may write': attempt(() => writeFileSync(join(other, 'new'), 'text')),
    'another process': attempt(() => readFileSync(`/proc/${process.ppid}/cmdline`)),
    'a shell': attempt(shell),
  };
}

const unused = async (): Promise<Record<string, never>> => ({});
new IpcChannel({
  fd: 3,
  out: authToSupervisor,
  in: supervisorToAuth,
  handlers: {
    alive: unused,
    prepare: async ({ state, identity, config }) => {
      const asRoot = tryAll(state);
      giveUpRights(identity);
      enterCage('auth', { log: createLogger(config.log) });
      const inCage = tryAll(state);
      writeFileSync('tried.json', JSON.stringify({ asRoot, inCage }));
      process.exit(0);
    },
    begin: unused,
    serve: unused,
    reload: unused,
    pause: unused,
    stop: unused,
  },
  limits: LIMITS_FROM_ABOVE,
  closed: () => process.exit(0),
});
