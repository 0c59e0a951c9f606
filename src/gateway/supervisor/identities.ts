/**
 * Who the processes of a gateway are.
 *
 * Hides the account database. Without accounts of these names fixed numbers are taken that no system hands out by itself.
 */

import { readFileSync } from 'node:fs';
import { VpnError } from '../../base/errors.ts';
import type { Identity } from '../../os/launcher.ts';
import type { GatewayConfig } from '../config.ts';

const AUTH_USER = 'customvpn-auth';
const WORKER_USER = 'customvpn-worker';
/** In the range 60578 to 61183, which systemd leaves unused (systemd.io/UIDS-GIDS) and Debian hands out to nobody. */
const FALLBACK: Readonly<Record<string, number>> = { [AUTH_USER]: 60_978, [WORKER_USER]: 60_979 };
const NUMERIC = /^[1-9][0-9]{0,9}$/;

/**
 * The users that auth and workers become.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE when the configuration names a user that is not there, or root, or one for both
 */
export function identitiesOf(
  { users }: GatewayConfig,
  accounts: string = readAccounts(),
): { auth: Identity; worker: Identity } {
  const auth = identityOf(users.auth, 'users.auth', accounts);
  const worker = identityOf(users.worker, 'users.worker', accounts);
  if (auth.uid !== worker.uid) return { auth, worker };
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    'users: auth and workers must be different users, or one could read the other',
    {
      details: { key: 'users.worker' },
    },
  );
}

function identityOf(name: string, key: string, accounts: string): Identity {
  if (NUMERIC.test(name)) return { uid: Number(name), gid: Number(name) };
  for (const line of accounts.split('\n')) {
    const [account, , uid = '', gid = ''] = line.split(':');
    if (account !== name || !NUMERIC.test(uid) || !NUMERIC.test(gid)) continue;
    return { uid: Number(uid), gid: Number(gid) };
  }
  const number = FALLBACK[name];
  if (number !== undefined) return { uid: number, gid: number };
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `${key}: there is no user ${name} without root's rights; make one with: useradd --system --shell /usr/sbin/nologin ${name}`,
    { details: { key } },
  );
}

function readAccounts(): string {
  try {
    return readFileSync('/etc/passwd', 'utf8');
  } catch {
    return '';
  }
}
