/**
 * Who may call which operation of a gateway, and what each is, in a line.
 *
 * One row for each operation, so that a new one that nobody has thought about does not compile. Whoever connects to the unix
 * socket has every right; roles are for those who come over the network.
 */

import type { gatewayOperations, Role } from './operations.ts';
import { ROLES } from './operations.ts';

/** What there is to know of an operation besides its shapes. */
export interface Access {
  /** The least role that may call it. */
  readonly role: Role;
  /** It changes nothing, and answers GET as well as POST. */
  readonly reads: boolean;
  /** For people. */
  readonly summary: string;
  /** Where its input names a user: that user's rights bound who may call it, and writes take `If-Match` of `user.show`. */
  readonly user?: 'name' | 'user';
  /** It changes the policy: it takes `If-Match` of `policy.text`. */
  readonly isOfPolicy?: true;
  /** Where its input names groups, which may stand for roles. */
  readonly groups?: readonly ('groups' | 'add' | 'remove')[];
}

const look = (summary: string, role: Role = 'viewer'): Access => ({ role, reads: true, summary });
const work = (summary: string, more: Partial<Access> = {}): Access => ({
  role: 'operator',
  reads: false,
  summary,
  ...more,
});
const rule = (summary: string, more: Partial<Access> = {}): Access => ({
  ...work(summary, more),
  role: 'administrator',
});

export const GATEWAY_ACCESS: Readonly<Record<keyof typeof gatewayOperations, Access>> = {
  'server.status': look('What the gateway does, and what it warns of'),
  'server.history': look('The last hour: sessions, throughput, logins'),
  'server.settings': look('The configuration in force'),
  'server.reload': rule('Read configuration and certificates again'),
  'server.stop': rule('End the gateway'),
  'server.drain': rule('Let nobody new in, and stop when no session is left'),
  'server.replaceWorkers': rule('Put other processes in the place of the workers'),
  'policy.show': look('The policy in force, and what it is for a user'),
  'policy.text': look('The text of the policy in force'),
  'policy.apply': rule('Put a policy in force, if its tests hold', { isOfPolicy: true }),
  'policy.rollback': rule('Put a policy that was in force before in force again', { isOfPolicy: true }),
  'policy.history': look('Policies that were in force'),
  'policy.version': look('The text of a policy that was in force'),
  'policy.check': look('What is wrong with a policy, whether its tests hold, and what it would change', 'operator'),
  'policy.denied': look('What the policy has denied lately'),
  'server.bans': look('Who has to wait, or is banned, after failed logins'),
  'server.unban': work('Forget the failed logins of a source'),
  'session.list': look('Who is connected'),
  'session.kick': work('End a session'),
  'user.add': work('Add a user', { user: 'name', groups: ['groups'] }),
  'user.list': look('Users'),
  'user.groups': look('Groups that have users or stand for a role'),
  'user.show': look('One user with devices and tokens'),
  'user.disable': work('Accept no login of a user', { user: 'name' }),
  'user.enable': work('Accept logins of a user again', { user: 'name' }),
  'user.unlock': work('Forget the failed logins of a user', { user: 'name' }),
  'user.delete': work('Remove a user with all devices', { user: 'name' }),
  'user.regroup': work('Put a user into groups, or take them out', { user: 'name', groups: ['add', 'remove'] }),
  'user.expire': work('Set when an account ends', { user: 'name' }),
  'user.password': work('Set or remove a password', { user: 'name' }),
  'user.totp': work('Make a second factor', { user: 'name' }),
  'user.totpRemove': work('Remove a second factor', { user: 'name' }),
  'user.recovery': work('Make new recovery codes', { user: 'name' }),
  'token.list': look('Access tokens'),
  'token.issue': work('Make an access token', { user: 'user' }),
  'token.revoke': work('Revoke an access token'),
  'passkey.list': look('Passkeys for the admin page'),
  'passkey.remove': work('Let nobody in by a passkey any more'),
  'device.list': look('Devices'),
  'device.approve': work('Let a device in that waits for it'),
  'device.rename': work('Give a device another name'),
  'device.revoke': work('Let a device in no more'),
  'profile.create': work("Make a user's profile", { user: 'user' }),
  'audit.list': look('The audit record'),
  'webhook.list': look('Webhooks, and how they are doing'),
  'webhook.test': rule('Post an event of no meaning to a webhook'),
  'webhook.dead': look('Events that a webhook was not told of', 'operator'),
  'webhook.retry': work('Tell a webhook again what it was not told of'),
  'pki.show': look('Certificates'),
  'pki.issue': rule('Issue a client certificate'),
  'pki.revoke': rule('Revoke a certificate'),
  'pki.renew': rule('Renew a certificate'),
  'admin.link': rule('A one-time link that makes an administrator'),
  'admin.sessions': look('Who is logged in here', 'administrator'),
};

/** Whether a role may do what needs another. */
export function isAtLeast(role: Role, needed: Role): boolean {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}
