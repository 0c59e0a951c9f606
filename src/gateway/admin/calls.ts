/**
 * Operations of the control API, called by somebody with a role.
 *
 * Hides who may do what to whom: besides the role that an operation needs, whoever is no administrator can neither touch the
 * account of somebody who has a role, nor give one. Every change is put on record with who made it. It must not know HTTP.
 */

import { createHash } from 'node:crypto';
import { VpnError } from '../../base/errors.ts';
import { type Access, GATEWAY_ACCESS, isAtLeast } from '../../control/access.ts';
import { type GatewayApi, gatewayOperations, type Operation, type Role } from '../../control/operations.ts';
import { type Audit, AuditEvent, actingFor } from '../../store/audit.ts';

/** Somebody who calls. */
export interface Caller {
  readonly user: string;
  readonly role: Role;
  /** Address and port. */
  readonly source: string;
}

export interface CallsParts {
  readonly api: GatewayApi;
  readonly audit: Audit;
  /** The role that somebody's groups give, whether the account is good or not. */
  roleOfUser(name: string): Promise<Role | undefined>;
  roleOfGroups(groups: readonly string[]): Role | undefined;
}

/** What an operation answered; `tag` changes whenever what was read does. */
export interface Answer {
  readonly value: unknown;
  readonly tag: string | undefined;
}

type Fields = Readonly<Record<string, unknown>>;

export class Calls {
  readonly #parts: CallsParts;
  readonly #table: Readonly<Record<string, Operation>> = gatewayOperations;
  readonly #access: Readonly<Record<string, Access>> = GATEWAY_ACCESS;
  /** Conditional changes, one after the other: nothing may come between look and change. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: CallsParts) {
    this.#parts = parts;
  }

  /** Whether an operation changes nothing; undefined: there is none of this name. */
  reads(operation: string): boolean | undefined {
    return Object.hasOwn(this.#access, operation) ? this.#access[operation]?.reads : undefined;
  }

  /**
   * @param ifMatch only if this is the tag of what `user.show` answers of the user that is changed, or `policy.text`
   * @throws {VpnError} ERR_NOT_FOUND, ERR_PRIVILEGE, ERR_BAD_REQUEST, ERR_CONFLICT, and what the operation throws
   */
  async call(operation: string, raw: unknown, caller: Caller, ifMatch?: string): Promise<Answer> {
    const contract = Object.hasOwn(this.#table, operation) ? this.#table[operation] : undefined;
    const access = this.#access[operation];
    if (contract === undefined || access === undefined) {
      throw new VpnError('ERR_NOT_FOUND', `there is no operation ${JSON.stringify(operation.slice(0, 80))}`);
    }
    if (!isAtLeast(caller.role, access.role)) {
      throw new VpnError('ERR_PRIVILEGE', `${operation} needs the role ${access.role}; you are ${caller.role}`);
    }
    const parsed = contract.input.safeParse(raw ?? {});
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      const where = issue?.path.join('.') || 'input';
      throw new VpnError('ERR_BAD_REQUEST', `${where}: ${issue?.message ?? 'not valid'}`);
    }
    const input = parsed.data as Fields;
    const run = this.#parts.api[operation as keyof GatewayApi] as (input: Fields) => Promise<unknown>;
    if (access.reads) {
      const value = await run(input);
      return { value, tag: tagOf(value) };
    }
    await this.#checkTarget(operation, access, input, caller);
    const change = async (): Promise<Answer> => {
      const value = await actingFor(caller.user, () => run(input));
      await this.#record(operation, access, input, caller);
      return { value, tag: undefined };
    };
    return ifMatch === undefined ? await change() : await this.#conditionally(access, input, ifMatch, change);
  }

  /** @throws {VpnError} ERR_PRIVILEGE */
  async #checkTarget(operation: string, access: Access, input: Fields, { role }: Caller): Promise<void> {
    if (role === 'administrator') return;
    const given = (access.groups ?? []).flatMap((key) => (input[key] as readonly string[] | undefined) ?? []);
    if (this.#parts.roleOfGroups(given.map((group) => group.normalize('NFC'))) !== undefined) {
      throw new VpnError('ERR_PRIVILEGE', 'only administrators put people into groups that stand for a role');
    }
    const target = await this.#targetOf(operation, access, input);
    if (target !== undefined && (await this.#parts.roleOfUser(target)) !== undefined) {
      throw new VpnError('ERR_PRIVILEGE', 'only administrators change the account of somebody who has a role');
    }
  }

  /** Whose right it is about. */
  async #targetOf(operation: string, { user }: Access, input: Fields): Promise<string | undefined> {
    const { api } = this.#parts;
    if (user !== undefined) return input[user] as string | undefined;
    const id = String(input.id).toLowerCase();
    if (operation.startsWith('device.')) return (await api['device.list']({})).find((device) => device.id === id)?.user;
    if (operation === 'passkey.remove') return (await api['passkey.list']({})).find((key) => key.id === id)?.user;
    if (operation === 'token.revoke') return (await api['token.list']({})).find((token) => token.id === id)?.user;
    return undefined;
  }

  async #conditionally(access: Access, input: Fields, ifMatch: string, change: () => Promise<Answer>): Promise<Answer> {
    const { api } = this.#parts;
    const name = access.user === undefined ? undefined : input[access.user];
    if (typeof name !== 'string' && access.isOfPolicy !== true)
      throw new VpnError('ERR_BAD_REQUEST', 'If-Match was not expected with this operation');
    const [what, look] =
      typeof name === 'string'
        ? ([name, () => api['user.show']({ name })] as const)
        : (['the policy', () => api['policy.text']({})] as const);
    const turn = this.#turn.then(async () => {
      if (ifMatch !== '*' && ifMatch !== tagOf(await look())) {
        throw new VpnError('ERR_CONFLICT', `${what} was changed by somebody else meanwhile; look again, then repeat`, {
          details: { httpStatus: 412 },
        });
      }
      return await change();
    });
    this.#turn = turn.catch(() => {});
    return await turn;
  }

  async #record(operation: string, { user }: Access, input: Fields, { user: by, role, source }: Caller): Promise<void> {
    const about = user === undefined ? (input.id ?? input.version) : input[user];
    const isTold = typeof about === 'string' || typeof about === 'number';
    const detail = { operation, by, role, ...(isTold ? { about } : {}) };
    await this.#parts.audit.append({ event: AuditEvent.operatorActed, source, detail });
  }
}

/** When something was used last changes without anybody's doing. */
function tagOf(value: unknown): string {
  const text = JSON.stringify(value, (key, part) => (key === 'lastSeenAt' || key === 'lastUsedAt' ? undefined : part));
  return `"${createHash('sha256').update(text).digest('base64url').slice(0, 22)}"`;
}
