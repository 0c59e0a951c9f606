/**
 * A policy on its way into the kernel: the file as the supervisor has read it, and what auth says of it, part by part.
 *
 * Hides that auth is not believed: rules come from the file, or from a text that an operator wrote where the configuration lets
 * operators do that, and auth says only which of them are in force for whom and what names stand for. What it says of another
 * policy than the one that was read last, the one in force, or the one before it, to which a change that fails goes back, is refused.
 */

import type { z } from 'zod';
import { VpnError } from '../../base/errors.ts';
import type { IpAddress } from '../../ip/address.ts';
import { type Policy, readPolicy } from '../../policy/policy.ts';
import { type authToSupervisor, MAX_OFFERED_POLICY } from '../ipc/messages.ts';
import type { AdmittedLease, Enforcement } from '../ipc/ports.ts';
import { policyDigest, readPolicyFile, replacePolicyFile } from '../policy-files.ts';

type Part = z.output<(typeof authToSupervisor)['stage']['input']>;
type Admitted = z.output<(typeof authToSupervisor)['admit']['input']>['admitted'];

const MAX_SESSIONS = 200_000;

interface Read {
  readonly revision: number;
  readonly policy: Policy;
  readonly text: string;
}

export class PolicyStage {
  /** The policy as it was read last, as it is in force, and as it was before. */
  #read: Read | undefined;
  #inForce: Read | undefined;
  #former: Read | undefined;
  #offered = '';
  #revision = 0;
  #hosts = new Map<string, readonly IpAddress[]>();
  #sessions: AdmittedLease[] = [];

  /** Reads the file. Whether it can be used is auth's to say. @throws {VpnError} ERR_CONFIG_FILE */
  async read(file: string | undefined): Promise<{ text: string | null; revision: number }> {
    if (file === undefined) return { text: null, revision: 0 };
    const text = await readPolicyFile(file);
    return { text, revision: this.#take(text) };
  }

  /** A part of a text that an operator has written. @throws {VpnError} ERR_INVARIANT when it becomes too long */
  offer(part: string): void {
    this.#offered += part;
    if (this.#offered.length <= MAX_OFFERED_POLICY) return;
    this.#offered = '';
    throw new VpnError('ERR_INVARIANT', 'the policy that is offered is too long');
  }

  /**
   * Reads what was offered, as if it stood in the file; it is used up.
   *
   * @param digest SHA-256 of the whole text, hexadecimal
   * @throws {VpnError} ERR_INVARIANT when that is of another text: parts of two have come together
   */
  readOffered(digest: string): { revision: number } {
    const text = this.#offered;
    this.#offered = '';
    if (policyDigest(text) === digest) return { revision: this.#take(text) };
    throw new VpnError('ERR_INVARIANT', `the parts of the policy that is offered are not those of ${digest}`);
  }

  /** Auth begins anew: what the last one has said in part is worth nothing. */
  clear(): void {
    this.#offered = '';
    this.#hosts = new Map();
    this.#sessions = [];
  }

  /** Puts what was read into the file. @throws {VpnError} as `replacePolicyFile`; ERR_INVARIANT */
  async save(revision: number, file: string | undefined, replaces: string): Promise<void> {
    const found = this.#find(revision);
    if (found === undefined || file === undefined) throw stale();
    await replacePolicyFile(file, found.text, replaces);
  }

  #take(text: string): number {
    const { policy } = readPolicy(text);
    this.#revision += 1;
    const revision = this.#revision;
    this.#read = policy === undefined ? undefined : { revision, policy, text };
    return revision;
  }

  /** @throws {VpnError} ERR_INVARIANT */
  add(part: Part): void {
    if ('hosts' in part) for (const { name, addresses } of part.hosts) this.#hosts.set(name, addresses);
    else this.#sessions.push(...leasesOf(part));
    if (this.#sessions.length > MAX_SESSIONS) throw new VpnError('ERR_INVARIANT', 'there are too many sessions');
  }

  /** What is to be put in force; what was staged is used up. @throws {VpnError} ERR_INVARIANT */
  take(revision: number | null): Enforcement | undefined {
    const [hosts, sessions] = [this.#hosts, this.#sessions];
    this.#hosts = new Map();
    this.#sessions = [];
    if (revision === null) return undefined;
    const found = this.#find(revision);
    if (found === undefined) throw stale();
    return { policy: found.policy, hosts, sessions };
  }

  /** It has been put in force. */
  entered(revision: number | null): void {
    const entered = revision === null ? undefined : this.#find(revision);
    if (entered === this.#inForce) return;
    this.#former = this.#inForce;
    this.#inForce = entered;
  }

  #find(revision: number): Read | undefined {
    return [this.#read, this.#inForce, this.#former].find((one) => one?.revision === revision);
  }

  /** Clients of the policy in force. @throws {VpnError} ERR_INVARIANT */
  admitted(revision: number, admitted: Admitted): AdmittedLease[] {
    if (revision !== this.#inForce?.revision) throw stale();
    return leasesOf(admitted);
  }
}

function leasesOf({ classes, sessions }: Admitted): AdmittedLease[] {
  return sessions.map(({ lease, class: number, peers, networks }) => {
    const rules = classes[number];
    if (rules === undefined) throw new VpnError('ERR_INVARIANT', `there is no class ${number}`);
    return { lease, access: { rules, peers, ...(networks === undefined ? {} : { networks }) } };
  });
}

function stale(): VpnError {
  return new VpnError('ERR_INVARIANT', 'auth speaks of a policy that is not the one that was read');
}
