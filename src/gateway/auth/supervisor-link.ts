/** The supervisor, as auth in a process of its own reaches it. */

import type { Lease } from '../../ip/lease-pool.ts';
import type { Policy } from '../../policy/policy.ts';
import type { GatewayConfig } from '../config.ts';
import type { CredentialFiles, CredentialKind, CredentialsConfig, CredentialTexts } from '../credential-files.ts';
import type { IpcChannel } from '../ipc/channel.ts';
import { type authToSupervisor, POLICY_PART, type supervisorToAuth } from '../ipc/messages.ts';
import type { AdmittedLease, Enforcement, HostReport, Place, SupervisorPort } from '../ipc/ports.ts';
import { type PolicyFiles, type PolicyText, policyDigest } from '../policy-files.ts';

/** Bytes of one message, as its parts are estimated; well below what the supervisor takes (`LIMITS_OF_AUTH`). */
const PART_BYTES = 40 * 1024;

export class SupervisorLink implements SupervisorPort, CredentialFiles, PolicyFiles {
  readonly #channel: () => IpcChannel<typeof authToSupervisor, typeof supervisorToAuth>;

  /** The files of the certificates in force, and those that were read last. */
  #used: string | undefined;
  #read: string | undefined;
  /** The policy file of the configuration in force; which text was read last, and which is in force. */
  #policyFile: string | undefined;
  #revision = 0;
  readonly #revisions = new WeakMap<Policy, number>();
  #inForce = 0;

  constructor(channel: () => IpcChannel<typeof authToSupervisor, typeof supervisorToAuth>) {
    this.#channel = channel;
  }

  async place(lease: Lease, worker: number, place: Place): Promise<void> {
    await this.#channel().call('place', { lease, worker, place });
  }

  async unplace(lease: Lease): Promise<void> {
    await this.#channel().call('unplace', { lease });
  }

  /** The supervisor applies what it has read itself, by `readConfig`: nobody can have it open a way by saying so. */
  async update({ policyFile }: GatewayConfig): Promise<void> {
    await this.#channel().call('apply', {});
    this.#policyFile = policyFile ?? '';
  }

  async takeBack({ policyFile }: GatewayConfig): Promise<void> {
    await this.#channel().call('takeBack', {});
    this.#policyFile = policyFile ?? '';
  }

  reloaded(): void {
    this.#channel().tell('reloaded', {});
  }

  /** The text of the policy; what is said of a policy afterwards is of this one. */
  async readPolicy({ policyFile }: GatewayConfig): Promise<string | undefined> {
    this.#policyFile ??= policyFile ?? '';
    const of = (policyFile ?? '') === this.#policyFile ? 'current' : 'next';
    const { text, revision } = await this.#channel().call('readPolicy', { of });
    this.#revision = revision;
    return text ?? undefined;
  }

  async offerPolicy(text: string): Promise<void> {
    const channel = this.#channel();
    for (let at = 0; at < text.length; at += POLICY_PART) {
      channel.tell('policyPart', { text: text.slice(at, at + POLICY_PART) });
    }
    this.#revision = (await channel.call('offerPolicy', { digest: policyDigest(text) })).revision;
  }

  async savePolicy({ policy }: PolicyText, replaces: string): Promise<void> {
    await this.#channel().call('savePolicy', { revision: this.#revisionOf(policy), replaces });
  }

  /** The supervisor has read the rules itself; what else it needs goes in parts, which arrive in order. */
  async enforce(enforcement: Enforcement | undefined): Promise<void> {
    const channel = this.#channel();
    const revision = enforcement === undefined ? null : this.#revisionOf(enforcement.policy);
    const hosts = [...(enforcement?.hosts ?? [])].map(([name, addresses]) => ({ name, addresses: [...addresses] }));
    for (const part of batches(hosts, ({ addresses }) => 300 + addresses.length * 42))
      channel.tell('stage', { hosts: part });
    for (const part of admittedParts(enforcement?.sessions ?? [])) channel.tell('stage', part);
    await channel.call('enforce', { revision });
    this.#inForce = revision ?? 0;
  }

  /** A policy is seen first when it has just been read. */
  #revisionOf(policy: Policy): number {
    const revision = this.#revisions.get(policy) ?? this.#revision;
    this.#revisions.set(policy, revision);
    return revision;
  }

  async admit(entries: readonly AdmittedLease[]): Promise<void> {
    const revision = this.#inForce;
    await Promise.all(admittedParts(entries).map((admitted) => this.#channel().call('admit', { revision, admitted })));
  }

  async dismiss(lease: Lease): Promise<void> {
    await this.#channel().call('dismiss', { lease });
  }

  report(): Promise<HostReport> {
    return this.#channel().call('report', {});
  }

  readConfig(): Promise<GatewayConfig> {
    return this.#channel().call('readConfig', {});
  }

  async read(config: CredentialsConfig, what: CredentialKind): Promise<CredentialTexts> {
    const files = JSON.stringify([config.certFile, config.keyFile, config.caFile, config.crlFile]);
    this.#used ??= files;
    this.#read = files;
    const of = files === this.#used ? 'current' : 'next';
    const { pem, crlFile, stamp } = await this.#channel().call('readCredentials', { what, of });
    return { pem: { cert: pem.cert, key: pem.key, ca: pem.ca, crl: pem.crl }, crlFile, stamp };
  }

  async stamp(): Promise<string> {
    return (await this.#channel().call('stampOfLists', {})).stamp;
  }

  async useCredentials(what: CredentialKind): Promise<void> {
    await this.#channel().call('useCredentials', { what });
    this.#used = this.#read;
  }

  /** Another process is to take the place of this one, if it is still there; `isSilent`: it has closed its channel. */
  replace(worker: number, pid: number, isSilent: boolean): void {
    this.#channel().tell('replace', { worker, pid, isSilent });
  }

  async replaceWorkers(): Promise<number> {
    return (await this.#channel().call('replaceWorkers', {})).replaced;
  }

  drained(seconds: number): void {
    this.#channel().tell('drained', { seconds });
  }

  stop(): void {
    this.#channel().tell('stop', {});
  }
}

/** Lists of at most so many bytes each, in order. */
function batches<T>(all: readonly T[], bytesOf: (one: T) => number): T[][] {
  const lists: T[][] = [];
  let left = 0;
  for (const one of all) {
    const bytes = bytesOf(one);
    if (bytes > left) {
      lists.push([]);
      left = PART_BYTES;
    }
    left -= bytes;
    lists.at(-1)?.push(one);
  }
  return lists;
}

/** Clients with the same rules share a list of them. */
function admittedParts(entries: readonly AdmittedLease[]) {
  const sorted = [...Map.groupBy(entries, ({ access }) => access.rules).values()].flat();
  let last: readonly number[] | undefined;
  const lists = batches(sorted, ({ access: { rules, peers, networks = [] } }) => {
    const own = rules === last ? 0 : (rules.at(-1) ?? 0) / 6 + 8;
    last = rules;
    return own + 160 + networks.length * 6 + peers.reduce((sum, peer) => sum + peer.length * 2 + 3, 0);
  });
  return lists.map((list) => {
    const classes = [...new Set(list.map(({ access }) => access.rules))];
    const numbers = new Map(classes.map((rules, index) => [rules, index]));
    const sessions = list.map(({ lease, access: { rules, peers, networks = [] } }) => {
      const own = { lease, class: numbers.get(rules) ?? 0, peers: [...peers] };
      return networks.length === 0 ? own : { ...own, networks: [...networks] };
    });
    return { classes, sessions };
  });
}
