/**
 * The policy in force: what each session may reach at the moment, for packets and for streams.
 *
 * Hides the policy file, host names, groups and the clock from sessions, and when the kernel has to be told: it is told of
 * clients one by one as they come, of those for whom something has changed as it changes, and of everything when the policy
 * is another one. What the kernel does not take changes nothing here either. Without a policy nothing of this is done.
 */

import type { Clock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { Repeat } from '../../base/repeat.ts';
import { formatPrefix, type IpAddress, ipEquals, type Prefix, prefixContains } from '../../ip/address.ts';
import type { LeasePool } from '../../ip/lease-pool.ts';
import { type Decision, decide, type Flow, groupsOf, type Holder, type Surroundings } from '../../policy/access.ts';
import { requireTests, testedHosts, usablePolicy } from '../../policy/examine.ts';
import type { Policy } from '../../policy/policy.ts';
import { type Selection, Selector } from '../../policy/selector.ts';
import type { Settings } from '../../policy/settings.ts';
import {
  checkNetworks,
  type DeviceHolder,
  grantNetworks,
  reachableNetworks,
  type SiteNetwork,
  siteOf,
  staticAddressesOf,
} from '../../policy/sites.ts';
import type { GatewayConfig } from '../config.ts';
import type { AdmittedLease, SessionKey, SupervisorPort } from '../ipc/ports.ts';
import { type PolicyFiles, policyDigest } from '../policy-files.ts';
import { HostNames, type Resolve } from './host-names.ts';
import type { LiveSession } from './live-session.ts';
import type { TrafficRules } from './traffic-desk.ts';

/** How often it is looked whether hours have passed. */
const TICK_MS = 250;
const MINUTE_MS = 60_000;
const MAX_HOSTS = 1000;
const NO_SETTINGS: Settings = {};
type Granted = readonly SiteNetwork[];
const NO_NETWORKS: Granted = [];
const NO_GRANTS: ReadonlyMap<SessionKey, Granted> = new Map();

export interface AccessDeskParts {
  readonly pool: LeasePool;
  readonly files: PolicyFiles;
  readonly resolve: Resolve;
  /** The groups of every account. @throws {VpnError} ERR_STORE */
  groups(): Promise<ReadonlyMap<string, readonly string[]>>;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Those whom a policy concerns. */
export interface Concerned {
  sessions(): readonly LiveSession[];
  /** These sessions get other settings. */
  resettled(sessions: readonly LiveSession[]): void;
  /** The groups of every account, as they are now. */
  regrouped(groups: ReadonlyMap<string, readonly string[]>): void;
  /** Somebody may reach something else. */
  changed(): void;
}

const NOBODY: Concerned = { sessions: () => [], resettled: () => {}, regrouped: () => {}, changed: () => {} };

/** A session, and what the kernel is told of it. */
interface Told {
  readonly session: LiveSession;
  readonly selection: Selection | undefined;
}

/** A policy that may be put in force. */
export interface ReadyPolicy {
  readonly file: string;
  /** SHA-256 of its text, hexadecimal. */
  readonly digest: string;
  readonly text: string;
  readonly selector: Selector;
  readonly names: HostNames;
}

interface InForce extends ReadyPolicy {
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
}

export class AccessDesk {
  readonly #parts: AccessDeskParts;
  readonly #log: Logger;
  readonly #tick: Repeat;
  readonly #minute: Repeat;
  #supervisor: SupervisorPort | undefined;
  #concerned = NOBODY;
  #inForce: InForce | undefined;
  /** What the kernel has been told of each session. */
  readonly #told = new Map<SessionKey, Selection>();
  /** The networks behind their clients that sessions have. */
  #granted = NO_GRANTS;
  readonly #waiting: { session: LiveSession; resolve(): void; reject(error: unknown): void }[] = [];
  #changes: Promise<unknown> = Promise.resolve();
  #groups: ReadonlyMap<string, readonly string[]> = new Map();
  #hours = '';
  #dueAt = 0;
  #lookedAt = 0;
  /** Why the last change did not reach the kernel. */
  #problem: string | undefined;

  constructor(parts: AccessDeskParts) {
    this.#parts = parts;
    this.#log = parts.log.child({ component: 'policy' });
    const failed = (error: unknown): void => {
      this.#problem = toVpnError(error).message;
      this.#log.error('a change of access did not take effect; the old rules stay', { error });
    };
    this.#tick = new Repeat(TICK_MS, () => this.#lookAtTime(), failed);
    this.#minute = new Repeat(MINUTE_MS, () => this.#lookAround(), failed);
  }

  /** Called once, before anything is put in force. */
  attach(concerned: Concerned): void {
    this.#concerned = concerned;
  }

  set supervisor(supervisor: SupervisorPort) {
    this.#supervisor = supervisor;
  }

  /** The policy in force, and since when; undefined: there is none. */
  get inForce(): InForce | undefined {
    return this.#inForce;
  }

  /** What an operator should know. */
  get warnings(): string[] {
    const unknown = [...(this.#inForce?.names.found ?? [])].filter(([, found]) => found.length === 0);
    return [
      ...(this.#problem === undefined ? [] : [`policy: the last change did not take effect: ${this.#problem}`]),
      ...unknown.map(([name]) => `policy: the name ${name} cannot be looked up: no rule for it matches`),
    ];
  }

  /**
   * Reads and checks the policy of a configuration, and tries its tests; nothing changes yet.
   *
   * @throws {VpnError} ERR_CONFIG_FILE, ERR_CONFIG_VALUE, ERR_STORE
   */
  async read(config: GatewayConfig): Promise<ReadyPolicy | undefined> {
    const text = await this.#parts.files.readPolicy(config);
    return text === undefined ? undefined : await this.readText(text, config.policyFile ?? '', config);
  }

  /**
   * The same for a text that is to stand in a file.
   *
   * @param config with which it is to be in force: its pool may be larger than the one that there is
   * @throws {VpnError} ERR_CONFIG_VALUE, ERR_STORE
   */
  async readText(text: string, file: string, { pool }: Pick<GatewayConfig, 'pool'>): Promise<ReadyPolicy> {
    const { resolve, clock } = this.#parts;
    const policy = usablePolicy(text, file);
    if (policy.hosts.length > MAX_HOSTS) {
      const message = `policyFile: ${file} speaks of ${policy.hosts.length} host names, at most ${MAX_HOSTS} can be looked up`;
      throw new VpnError('ERR_CONFIG_VALUE', message, { details: { key: 'policyFile' } });
    }
    const [groups, tested] = await Promise.all([this.#parts.groups(), this.#testedNames(testedHosts(policy))]);
    const misfit = checkNetworks(policy, { pool, routes: [] }).find(({ severity }) => severity === 'error');
    if (misfit !== undefined) {
      const { line, message } = misfit;
      throw new VpnError('ERR_CONFIG_VALUE', `policyFile: ${file}:${line}: ${message}`, {
        details: { key: 'policyFile', line },
      });
    }
    const names = new HostNames(resolve, this.#log, this.#inForce?.names.found);
    await names.look(policy.hosts);
    const surroundings = {
      ...this.#surroundings(names),
      addressesOf: (host: string) => names.found.get(host) ?? tested.found.get(host) ?? [],
      holderOf: () => undefined,
      groupsOfUser: (user: string) => groups.get(user) ?? [],
    };
    requireTests(policy, file, surroundings, clock.wallNow());
    return { file, text, digest: policyDigest(text), selector: new Selector(policy), names };
  }

  /**
   * By what another policy would be judged: its names, looked up, and everybody's groups. Nothing changes.
   *
   * @throws {VpnError} ERR_STORE
   */
  async surroundingsOf(policy: Policy) {
    const hosts = [...policy.hosts, ...testedHosts(policy)].slice(0, MAX_HOSTS);
    const [groups, names] = await Promise.all([this.#parts.groups(), this.#testedNames(hosts)]);
    return {
      ...this.#surroundings(names),
      holderOf: () => undefined,
      groups,
      groupsOfUser: (user: string) => groups.get(user) ?? [],
    };
  }

  async #testedNames(hosts: readonly string[]): Promise<HostNames> {
    const names = new HostNames(this.#parts.resolve, this.#log);
    await names.look([...new Set(hosts)]);
    return names;
  }

  /**
   * Puts a policy in force for everybody at once; without one, routes say where clients may go.
   *
   * @returns the sessions that can reach nothing after it and could before
   * @throws {VpnError} ERR_HOST_APPLY, ERR_STORE; the old policy stays
   */
  async enforce(ready: ReadyPolicy | undefined): Promise<LiveSession[]> {
    if (ready === undefined && this.#inForce === undefined) return [];
    await this.#takeGroups();
    return await this.#change(async () => {
      const now = this.#parts.clock.wallNow();
      const sessions = this.#concerned.sessions();
      const former = this.#inForce;
      const before = sessions.map((session) => this.#told.get(session.key));
      const after = sessions.map((session) => ready?.selector.select(holderOf(session), now));
      const settled = sessions.map((session) => this.#settledOf(session));
      const granted = grantsUnder(ready?.selector.policy, sessions);
      if (ready === undefined) await this.#supervisor?.enforce(undefined);
      else {
        const admitted = sessions.flatMap(({ key, lease }, at): AdmittedLease[] => {
          const selection = after[at];
          return selection === undefined ? [] : [{ lease, access: accessOf(selection, granted.get(key)) }];
        });
        const { policy } = ready.selector;
        await this.#supervisor?.enforce({ policy, hosts: ready.names.found, sessions: admitted });
      }
      this.#inForce = ready === undefined ? undefined : { ...ready, since: former === ready ? former.since : now };
      this.#problem = undefined;
      this.#granted = granted;
      this.#told.clear();
      for (const [at, { key }] of sessions.entries()) {
        const selection = after[at];
        if (selection !== undefined) this.#told.set(key, selection);
      }
      this.#plan(now);
      this.#hours = ready?.selector.look(now) ?? '';
      this.#concerned.resettled(sessions.filter((session, at) => settled[at] !== this.#settledOf(session)));
      this.#concerned.changed();
      return sessions.filter(
        (_, at) => after[at] !== undefined && !reaches(after[at]) && (former === undefined || reaches(before[at])),
      );
    });
  }

  /** The groups of an account, as they were seen last. */
  groupsOf(user: string): readonly string[] {
    return this.#groups.get(user) ?? [];
  }

  /** What a session gets beside access. */
  settingsOf(session: LiveSession): Settings {
    return this.selectionOf(session)?.settings ?? NO_SETTINGS;
  }

  /** The networks behind its client that a session has. */
  networksOf({ key }: Pick<LiveSession, 'key'>): Granted {
    return this.#granted.get(key) ?? NO_NETWORKS;
  }

  /** Networks behind other clients that a session may reach, at least a part of. */
  sitesFor(session: LiveSession): Prefix[] {
    const policy = this.#inForce?.selector.policy;
    if (policy === undefined || policy.sites.length === 0) return [];
    const own = this.networksOf(session).map(({ seenAs }) => formatPrefix(seenAs));
    const { rules = [] } = this.#told.get(session.key) ?? this.selectionOf(session) ?? {};
    return reachableNetworks(policy, rules).filter((network) => !own.includes(formatPrefix(network)));
  }

  /** The networks from where connections to those of a session may be begun. */
  opennessOf(session: LiveSession): readonly Prefix[] {
    const granted = this.networksOf(session);
    const sites = this.#inForce?.selector.policy.sites ?? [];
    return sites.flatMap(({ networks, openTo }) => (networks.some((one) => granted.includes(one)) ? openTo : []));
  }

  /** Addresses that a device of a user should have one of; undefined: any. */
  staticAddressesOf(holder: DeviceHolder): readonly Prefix[] | undefined {
    const policy = this.#inForce?.selector.policy;
    return policy === undefined ? undefined : staticAddressesOf(policy, holder);
  }

  /** Whether an address is in the network of a site whose client is not there. */
  isAway(address: IpAddress): boolean {
    const policy = this.#inForce?.selector.policy;
    if (policy === undefined || siteOf(policy, address) === undefined) return false;
    return this.#holderOfNetwork(address) === undefined;
  }

  #holderOfNetwork(address: IpAddress): LiveSession | undefined {
    for (const [key, networks] of this.#granted) {
      if (!networks.some(({ seenAs }) => prefixContains(seenAs, address))) continue;
      return this.#concerned.sessions().find((session) => session.key === key);
    }
    return undefined;
  }

  /** All of what a session's client is told that the policy says. */
  #settledOf(session: LiveSession): string {
    const selection = this.#told.get(session.key);
    const networks = this.networksOf(session).map(({ number, network, seenAs }) => [
      number,
      formatPrefix(network),
      formatPrefix(seenAs),
    ]);
    const routes = [...this.sitesFor(session), ...this.opennessOf(session)].map(formatPrefix);
    return `${settingsText(selection)}${JSON.stringify([networks, routes])}`;
  }

  /** What the policy says of a session's traffic. */
  trafficRulesOf(holder: Holder): TrafficRules {
    const { policy } = this.#inForce?.selector ?? {};
    if (policy === undefined) return { settings: NO_SETTINGS, groups: [] };
    const groups = policy.groupLimits.size === 0 ? [] : [...groupsOf(policy, holder)];
    return {
      settings: this.select(holder)?.settings ?? NO_SETTINGS,
      groups: groups.filter((group) => policy.groupLimits.has(group)).sort(),
    };
  }

  /** What is in force for somebody; undefined: there is no policy. */
  selectionOf(session: LiveSession): Selection | undefined {
    return this.select(holderOf(session));
  }

  /** The same for whoever uses the gateway as a proxy. */
  select(holder: Holder): Selection | undefined {
    return this.#inForce?.selector.select(holder, this.#parts.clock.wallNow());
  }

  /** Judges the first packet of a connection; undefined: there is no policy. */
  judge(holder: Holder, flow: Flow): Decision | undefined {
    const { policy } = this.#inForce?.selector ?? {};
    const selection = this.select(holder);
    if (policy === undefined || selection === undefined) return undefined;
    return decide(policy, selection.rules, flow, this.#surroundings(this.#inForce?.names));
  }

  /** The session's packets are let through as the policy says. @throws {VpnError} ERR_HOST_APPLY */
  admit(session: LiveSession): Promise<void> {
    if (this.#inForce === undefined) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#waiting.push({ session, resolve, reject });
      // Who has come while others were let in goes with the next.
      void this.#change(() => this.#admitWaiting());
    });
  }

  async #admitWaiting(): Promise<void> {
    const batch = this.#waiting.splice(0);
    const now = this.#parts.clock.wallNow();
    const selector = this.#inForce?.selector;
    const present = batch.filter(({ session }) => session.ended === undefined);
    const selected = present.map(({ session }) => ({ session, selection: selector?.select(holderOf(session), now) }));
    try {
      await this.#regrant(selected);
      for (const { resolve } of batch) resolve();
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  }

  /** Its addresses are nobody's any more. @throws {VpnError} ERR_HOST_APPLY */
  async dismiss({ key, lease }: LiveSession): Promise<void> {
    if (this.#inForce === undefined) return;
    await this.#change(async () => {
      if (!this.#told.delete(key)) return;
      await this.#supervisor?.dismiss(lease);
      // Another client may have waited for its networks.
      if (this.#granted.has(key)) await this.#regrant([]);
    });
  }

  /** Tells the kernel of these sessions, and of those whose networks are others because of them; then their clients. */
  async #regrant(entries: readonly Told[]): Promise<void> {
    const policy = this.#inForce?.selector.policy;
    // Of thousands that come at once nobody looks at all the others for each.
    if (policy === undefined || policy.sites.length === 0) {
      await this.#tell(entries, NO_GRANTS);
      return;
    }
    // Of others the kernel does not know yet, nor do their owners.
    const coming = new Set(entries.map(({ session }) => session));
    const sessions = this.#concerned.sessions().filter((one) => this.#told.has(one.key) || coming.has(one));
    const granted = grantsUnder(policy, sessions);
    const changed = sessions.filter(
      (one) =>
        numbersOf(granted.get(one.key)) !== numbersOf(this.#granted.get(one.key)) ||
        (coming.has(one) && granted.has(one.key)),
    );
    const all = new Map(changed.map((session) => [session, this.#told.get(session.key)]));
    for (const { session, selection } of entries) all.set(session, selection);
    // Whoever loses a network comes before whoever gets it.
    const [losing, others] = [
      [...all].filter(([{ key }]) => !granted.has(key)),
      [...all].filter(([{ key }]) => granted.has(key)),
    ];
    const told = [...losing, ...others].map(([session, selection]): Told => ({ session, selection }));
    await this.#tell(told, granted);
    this.#granted = granted;
    this.#concerned.resettled(changed);
  }

  /** Groups of accounts may have changed. @throws {VpnError} ERR_STORE, ERR_HOST_APPLY */
  async regroup(): Promise<void> {
    if (this.#inForce === undefined) return;
    const haveChanged = await this.#takeGroups();
    await this.#refresh(haveChanged);
  }

  /** Returns whether anybody is in other groups than before. */
  async #takeGroups(): Promise<boolean> {
    const groups = await this.#parts.groups();
    const former = this.#groups;
    const haveChanged = [...groups].some(([user, names]) => names.join('\n') !== former.get(user)?.join('\n'));
    this.#groups = groups;
    this.#concerned.regrouped(groups);
    for (const session of this.#concerned.sessions()) session.groups = groups.get(session.user) ?? session.groups;
    return haveChanged;
  }

  /** Begins to look at the clock and at names. */
  start(): void {
    this.#tick.start();
    this.#minute.start();
  }

  async stop(): Promise<void> {
    await this.#tick.stop();
    await this.#minute.stop();
  }

  async #lookAtTime(): Promise<void> {
    const now = this.#parts.clock.wallNow();
    // Also when the clock was set back.
    if (this.#inForce === undefined || (now < this.#dueAt && now >= this.#lookedAt)) return;
    await this.#refresh();
  }

  /** Names and groups change elsewhere, too. */
  async #lookAround(): Promise<void> {
    const inForce = this.#inForce;
    if (inForce === undefined) return;
    const haveChanged = await inForce.names.look(inForce.selector.policy.hosts);
    if (this.#inForce !== inForce) return;
    if (haveChanged) await this.enforce(inForce);
    else await this.regroup();
  }

  /** Tells the kernel of whom something has changed for; `isOther`: streams are looked at in any case. */
  async #refresh(isOther = false): Promise<void> {
    await this.#change(async () => {
      const selector = this.#inForce?.selector;
      if (selector === undefined) return;
      const now = this.#parts.clock.wallNow();
      const changed = this.#concerned.sessions().flatMap((session) => {
        const former = this.#told.get(session.key);
        const selection = selector.select(holderOf(session), now);
        return former === undefined || former === selection ? [] : [{ session, selection, former }];
      });
      const settled = new Map(changed.map(({ session }) => [session, this.#settledOf(session)]));
      await this.#regrant(changed.filter(({ selection, former }) => !isSame(selection, former)));
      for (const { session, selection } of changed) this.#told.set(session.key, selection);
      this.#plan(now);
      const hours = selector.look(now);
      // Also of those who have no session, but a stream.
      if (!isOther && changed.length === 0 && hours === this.#hours) return;
      this.#hours = hours;
      const resettled = changed.filter(({ session }) => settled.get(session) !== this.#settledOf(session));
      this.#concerned.resettled(resettled.map(({ session }) => session));
      this.#concerned.changed();
    });
  }

  async #tell(entries: readonly Told[], granted: ReadonlyMap<SessionKey, Granted>): Promise<void> {
    const admitted = entries.flatMap(({ session: { key, lease }, selection }): AdmittedLease[] =>
      selection === undefined ? [] : [{ lease, access: accessOf(selection, granted.get(key)) }],
    );
    if (admitted.length === 0) return;
    await this.#supervisor?.admit(admitted);
    this.#problem = undefined;
    for (const { session, selection } of entries) if (selection !== undefined) this.#told.set(session.key, selection);
  }

  /** When something changes by itself: at the next minute, or when a second factor is too old. */
  #plan(now: number): void {
    this.#lookedAt = now;
    this.#dueAt = (Math.floor(now / MINUTE_MS) + 1) * MINUTE_MS;
    const ages = this.#inForce?.selector.ages ?? [];
    for (const session of this.#concerned.sessions()) {
      const { mfaAt } = holderOf(session);
      if (mfaAt === undefined) continue;
      for (const minutes of ages) {
        // Within the last millisecond it is still good.
        const end = mfaAt + minutes * MINUTE_MS + 1;
        if (end > now && end < this.#dueAt) this.#dueAt = end;
      }
    }
  }

  #surroundings(names: HostNames | undefined): Surroundings {
    return {
      addressesOf: (host) => names?.found.get(host) ?? [],
      isOfClients: (address) => this.#parts.pool.contains(address),
      holderOf: (address) => {
        const session = this.sessionAt(address);
        return session === undefined ? undefined : holderOf(session);
      },
    };
  }

  /** Whose address it is, or behind whose client. */
  sessionAt(address: IpAddress): LiveSession | undefined {
    const session = this.#concerned.sessions().find(({ lease: { v4, v6 } }) => {
      const own = address.version === 4 ? v4 : v6;
      return own !== undefined && ipEquals(own, address);
    });
    return session ?? this.#holderOfNetwork(address);
  }

  #change<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#changes.then(change);
    this.#changes = done.catch(() => {});
    return done;
  }
}

/** A session, as far as rules look at it. A second factor is as old as the login. */
export function holderOf({ user, groups, certificate, steps, openedAt }: LiveSession): Holder {
  return {
    user,
    groups,
    hasCertificate: certificate !== undefined,
    mfaAt: steps.includes('totp') ? openedAt : undefined,
  };
}

const ACCESS = new WeakMap<Selection, AdmittedLease['access']>();

function accessOf(selection: Selection, networks: Granted = NO_NETWORKS): AdmittedLease['access'] {
  if (networks.length > 0) {
    return { rules: selection.numbers, peers: selection.peers, networks: networks.map(({ number }) => number) };
  }
  let access = ACCESS.get(selection);
  if (access === undefined) {
    access = { rules: selection.numbers, peers: selection.peers };
    ACCESS.set(selection, access);
  }
  return access;
}

function isSame(one: Selection, other: Selection): boolean {
  return one.numbers.join() === other.numbers.join() && one.peers.join('\n') === other.peers.join('\n');
}

/** Only of those who have logged in for good: others are over, or not there yet. */
function grantsUnder(policy: Policy | undefined, sessions: readonly LiveSession[]): ReadonlyMap<SessionKey, Granted> {
  if (policy === undefined || policy.sites.length === 0) return NO_GRANTS;
  return grantNetworks(
    policy,
    sessions.filter(({ offered, ended }) => offered.length > 0 && ended === undefined),
  );
}

function numbersOf(networks: Granted = NO_NETWORKS): string {
  return networks.map(({ number }) => number).join();
}

function reaches(selection: Selection | undefined): boolean {
  return selection?.rules.some(({ action }) => action === 'allow') === true;
}

function settingsText(selection: Selection | undefined): string {
  return JSON.stringify(selection?.settings ?? NO_SETTINGS);
}
