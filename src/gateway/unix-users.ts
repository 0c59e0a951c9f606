/**
 * Who may do what at the control socket: the kernel says which user of this machine is at the other end.
 *
 * Hides how that becomes a role. Root, and whoever runs the gateway, may do everything, as they could anyway; users whom the
 * configuration names have a role, as those of the admin page do, and what they change is on record with their name; nobody
 * else is answered. It must not know sockets.
 */

import { readFileSync } from 'node:fs';
import { VpnError } from '../base/errors.ts';
import { type GatewayApi, gatewayOperations, type Role } from '../control/operations.ts';
import type { Caller, Handlers } from '../control/socket.ts';
import type { Audit } from '../store/audit.ts';
import { Calls } from './admin/calls.ts';
import { type GatewayConfig, GROUP_ROLES, roleOf } from './config.ts';

const NUMERIC = /^[0-9]+$/;

interface UnixUser {
  readonly name: string;
  readonly role: Role;
}

export interface UnixUsersParts {
  readonly config: GatewayConfig;
  readonly audit: Audit;
  /** The groups of an account of the gateway. */
  groupsOf(name: string): Promise<readonly string[]>;
  /** The account database of this machine. */
  readonly accounts?: string;
}

export class UnixUsers {
  readonly #users: ReadonlyMap<number, UnixUser>;
  readonly #parts: UnixUsersParts;

  /** @throws {VpnError} ERR_CONFIG_VALUE when a user is named that this machine does not have */
  constructor(parts: UnixUsersParts) {
    this.#parts = parts;
    const { control } = parts.config;
    const accounts = isOpen(parts.config) ? (parts.accounts ?? readFileSync('/etc/passwd', 'utf8')) : '';
    const users = new Map<number, UnixUser>();
    // The highest role of somebody comes first, and stays.
    for (const [key, role] of GROUP_ROLES) {
      for (const name of control[key]) {
        const uid = uidOf(name, accounts, key);
        if (!users.has(uid)) users.set(uid, { name, role });
      }
    }
    this.#users = users;
  }

  /** The operations, for whoever calls them. */
  operations(api: GatewayApi): Handlers<typeof gatewayOperations> {
    const { config, audit, groupsOf } = this.#parts;
    const calls = new Calls({
      api,
      audit,
      roleOfUser: async (name) => roleOf(await groupsOf(name), config.admin),
      roleOfGroups: (groups) => roleOf(groups, config.admin),
    });
    const handlers = Object.keys(gatewayOperations).map((name) => [
      name,
      async (input: never, { uid }: Caller) => {
        if (uid === undefined || uid === 0 || uid === process.getuid?.()) {
          return await (api[name as keyof GatewayApi] as (input: never) => Promise<unknown>)(input);
        }
        const user = this.#users.get(uid);
        if (user === undefined) {
          throw new VpnError(
            'ERR_PRIVILEGE',
            `user ${uid} of this machine has no role here; root can name one in the configuration, as control.operators`,
          );
        }
        const source = `unix socket, user ${uid}`;
        return (await calls.call(name, input, { user: `unix user ${user.name}`, role: user.role, source })).value;
      },
    ]);
    return Object.fromEntries(handlers) as Handlers<typeof gatewayOperations>;
  }
}

/** Whether others than root may use the control socket. */
export function isOpen({ control }: GatewayConfig): boolean {
  return GROUP_ROLES.some(([key]) => control[key].length > 0);
}

function uidOf(name: string, accounts: string, key: string): number {
  if (NUMERIC.test(name)) return Number(name);
  for (const line of accounts.split('\n')) {
    const [account, , uid = ''] = line.split(':');
    if (account === name && NUMERIC.test(uid)) return Number(uid);
  }
  throw new VpnError('ERR_CONFIG_VALUE', `control.${key}: this machine has no user ${name}`, {
    details: { key: `control.${key}` },
  });
}
