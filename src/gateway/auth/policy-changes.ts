/**
 * Changes of the policy by operators: a text that they have written, or one that was in force before.
 *
 * Hides the order of things: a text is read, its tests are tried, it goes into the file that the gateway reads, and then into
 * force; what fails leaves file and gateway as they were, and what is in force is not called a failure. It is kept as a version, whoever put it there. One change
 * is made after the other, and reading the file again counts as one.
 */

import { toVpnError, VpnError } from '../../base/errors.ts';
import type { GatewayApi } from '../../control/operations.ts';
import { actor } from '../../store/audit.ts';
import { MAX_KEPT_POLICY, type PolicyVersions } from '../../store/policy-versions.ts';
import type { GatewayConfig } from '../config.ts';
import { MAX_EDITED_POLICY } from '../ipc/messages.ts';
import { mayEditPolicy, type PolicyFiles, type PolicyText } from '../policy-files.ts';
import type { AccessDesk, ReadyPolicy } from './access-desk.ts';
import type { LiveSession } from './live-session.ts';

type Applied = Awaited<ReturnType<GatewayApi['policy.apply']>>;

export interface PolicyChangesParts {
  readonly access: Pick<AccessDesk, 'inForce' | 'readText'>;
  readonly files: Pick<PolicyFiles, 'offerPolicy' | 'savePolicy'>;
  readonly versions: Pick<PolicyVersions, 'keep' | 'list' | 'show'>;
  config(): GatewayConfig;
  /** Asks whoever has a say in it. @throws {VpnError} when it must not be put in force */
  ask(policy: ReadyPolicy): Promise<void>;
  /** @throws {VpnError} as `AccessDesk.enforce` */
  enforce(policy: ReadyPolicy): Promise<LiveSession[]>;
  /** Another policy is in force. Returns what an operator should know of it. @throws {VpnError} ERR_STORE */
  changed(policy: ReadyPolicy, losers: readonly LiveSession[]): Promise<string[]>;
}

export class PolicyChanges {
  readonly #parts: PolicyChangesParts;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: PolicyChangesParts) {
    this.#parts = parts;
  }

  /** Waits for its turn among all that changes the policy. */
  inTurn<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(change);
    this.#turn = done.catch(() => {});
    return done;
  }

  /** What was read from the file is in force. @throws {VpnError} ERR_STORE */
  async keep(policy: ReadyPolicy | undefined): Promise<void> {
    if (policy !== undefined) await this.#parts.versions.keep(policy, { by: undefined });
  }

  /** The policy in force as text, and whether operators may change it. */
  text() {
    const inForce = this.#parts.access.inForce;
    const isEditable = inForce !== undefined && mayEditPolicy(this.#parts.config());
    return { file: inForce?.file ?? null, text: inForce?.text ?? '', digest: inForce?.digest ?? null, isEditable };
  }

  /**
   * Puts a text in force.
   *
   * @throws {VpnError} ERR_PRIVILEGE, ERR_NOT_FOUND, ERR_CONFLICT, ERR_CONFIG_VALUE, ERR_CONFIG_FILE, ERR_HOST_APPLY,
   *   ERR_STORE; then the old policy stays
   */
  apply(text: string, note?: string): Promise<Applied> {
    return this.inTurn(() => this.#apply(text, note, MAX_EDITED_POLICY));
  }

  /** Puts a version in force again, as a new one. @throws {VpnError} as `apply` */
  rollBack(version: number, note = ''): Promise<Applied> {
    return this.inTurn(async () => {
      const { text } = await this.#parts.versions.show(version);
      return await this.#apply(text, `as version ${version}${note === '' ? '' : `: ${note}`}`, MAX_KEPT_POLICY);
    });
  }

  /** The newest versions, the newest first. @throws {VpnError} ERR_STORE */
  async history(limit: number) {
    const inForce = this.#parts.access.inForce?.digest;
    let isFound = false;
    return (await this.#parts.versions.list(limit)).map(({ at, by, digest, ...rest }) => {
      const isInForce = !isFound && digest === inForce;
      isFound ||= isInForce;
      return { ...rest, at: new Date(at).toISOString(), by: by ?? null, isInForce };
    });
  }

  /** @throws {VpnError} ERR_NOT_FOUND, ERR_STORE */
  async version(number: number) {
    const { version, at, by, note, text } = await this.#parts.versions.show(number);
    return { version, at: new Date(at).toISOString(), by: by ?? null, note, text };
  }

  async #apply(text: string, note: string | undefined, maxCharacters: number): Promise<Applied> {
    const { access, files, versions } = this.#parts;
    const former = access.inForce;
    if (former === undefined) {
      throw new VpnError(
        'ERR_NOT_FOUND',
        'this gateway has no policy file; save this as one, name it as policyFile in the configuration, and read that again (customvpn server reload)',
      );
    }
    if (!mayEditPolicy(this.#parts.config())) {
      throw new VpnError(
        'ERR_PRIVILEGE',
        'the configuration does not let operators change the policy (admin.editPolicy)',
      );
    }
    if (text.length > maxCharacters) {
      throw new VpnError(
        'ERR_CONFIG_VALUE',
        `policyFile: expected a policy of at most ${maxCharacters} characters, got ${text.length}; put it into ${former.file}, and read that again (customvpn server reload)`,
        { details: { key: 'policyFile' } },
      );
    }
    await files.offerPolicy(text);
    const ready = await access.readText(text, former.file, this.#parts.config());
    await this.#parts.ask(ready);
    await files.savePolicy(textOf(ready), former.digest);
    const undo = [() => files.savePolicy(textOf(former), ready.digest)];
    let losers: LiveSession[];
    let version: number;
    try {
      losers = await this.#parts.enforce(ready);
      undo.push(async () => void (await this.#parts.enforce(former)));
      version = await versions.keep(ready, { by: actor() ?? 'the command line', note });
    } catch (error) {
      throw await takenBack(error, undo);
    }
    return { version, warnings: await this.#tell(ready, losers, version) };
  }

  /** It is in force, whatever comes of telling so. */
  async #tell(ready: ReadyPolicy, losers: readonly LiveSession[], version: number): Promise<string[]> {
    try {
      return await this.#parts.changed(ready, losers);
    } catch (error) {
      const { message } = toVpnError(error);
      return [`the policy is in force, as version ${version}, but not all that follows a change was done: ${message}`];
    }
  }
}

/** The error to throw, once all has been undone that can be; it says what could not. */
async function takenBack(error: unknown, undo: readonly (() => Promise<void>)[]): Promise<unknown> {
  const failures = (await Promise.allSettled(undo.map((step) => step()))).flatMap((outcome) =>
    outcome.status === 'rejected' ? [toVpnError(outcome.reason).message] : [],
  );
  if (failures.length === 0) return error;
  const { code, message, details } = toVpnError(error);
  const left = `${message}; and the former policy could not be put back (${failures.join('; ')}): compare the file with what is in force (customvpn policy show), and read it again (customvpn server reload)`;
  return new VpnError(code, left, { cause: error, details });
}

function textOf({ selector, text, file }: ReadyPolicy): PolicyText {
  return { policy: selector.policy, text, file };
}
