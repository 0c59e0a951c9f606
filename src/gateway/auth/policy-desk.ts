/**
 * What an operator asks of the policy: what is in force, for whom, what it has denied, and whether a change cuts somebody off.
 *
 * Hides how access is found out (`access-desk`), and that streams are judged beside packets.
 */

import type { Clock } from '../../base/clock.ts';
import type { PolicyInfo } from '../../control/operations.ts';
import { formatIp, formatPrefix, parseIp, parsePrefix, prefixContains } from '../../ip/address.ts';
import { groupsOf } from '../../policy/access.ts';
import { formatDestination, type Rule } from '../../policy/policy.ts';
import type { Selection } from '../../policy/selector.ts';
import { formatService, TCP, UDP } from '../../policy/service.ts';
import type { DeviceHolder, Site } from '../../policy/sites.ts';
import type { GatewayConfig } from '../config.ts';
import { openPool } from '../pool.ts';
import type { StreamFacts } from '../stream-policy.ts';
import { type AccessDesk, holderOf } from './access-desk.ts';
import type { Auth } from './auth.ts';
import { Denials } from './denials.ts';
import type { LiveSession } from './live-session.ts';
import { examineDraft } from './policy-draft.ts';

/** The connection by which an operator is at the gateway, as text: from an address to one of the gateway's and a port. */
export interface OperatorWay {
  readonly from: string;
  readonly to: string;
  readonly port: number;
}

export interface PolicyDeskParts {
  readonly access: AccessDesk;
  readonly auth: Auth;
  readonly clock: Clock;
}

/** Of rules that a user's answer lists. */
const MAX_SHOWN = 1000;

export class PolicyDesk {
  readonly denials: Denials;
  readonly #access: AccessDesk;
  readonly #auth: Auth;
  readonly #clock: Clock;

  constructor({ access, auth, clock }: PolicyDeskParts) {
    this.#access = access;
    this.#auth = auth;
    this.#clock = clock;
    this.denials = new Denials({
      sessionAt: (address) => access.sessionAt(address),
      judge: (session, flow) => access.judge(holderOf(session), flow),
      clock,
    });
  }

  /** What is wrong with a policy that is being written, and what it would change. @throws {VpnError} ERR_STORE */
  async check(text: string) {
    return await examineDraft(text, this.#access, this.#clock.wallNow());
  }

  /** What the policy says of a stream; undefined: there is none. */
  judgeStream({ key, kind, address, port }: StreamFacts, worker: number): boolean | undefined {
    if (this.#access.inForce === undefined) return undefined;
    const holder = this.#auth.proxies.holderOf(key, worker);
    if (holder === undefined) return false;
    // There is nobody there, and the host would send it elsewhere.
    if (this.#access.isAway(address)) return false;
    const flow = { destination: address, protocol: kind === 'tcp' ? TCP : UDP, port };
    const decision = this.#access.judge(holder, flow);
    if (decision?.action === 'deny') this.denials.stream(holder.user, flow, decision);
    return decision?.action === 'allow';
  }

  /** What is in force, in general and for a user. */
  show(user: string | undefined): PolicyInfo {
    const inForce = this.#access.inForce;
    const name = user?.normalize('NFC');
    if (inForce === undefined) return { file: null, since: null, rules: 0, tests: 0, hosts: [], sites: [], user: null };
    const { file, since, names, selector } = inForce;
    return {
      file,
      since: new Date(since).toISOString(),
      rules: selector.policy.rules.length,
      tests: selector.policy.tests.length,
      sites: selector.policy.sites.map((site) => this.#showSite(site)),
      hosts: [...names.found].map(([host, addresses]) => ({ name: host, addresses: addresses.map(formatIp) })),
      user: name === undefined ? null : this.#showUser(name),
    };
  }

  #showSite({ name, networks, openTo }: Site) {
    const holders = this.#auth.sessions.all.filter((session) =>
      this.#access.networksOf(session).some((one) => networks.includes(one)),
    );
    return {
      name,
      networks: networks.map(({ network, seenAs }) => ({
        network: formatPrefix(network),
        seenAs: formatPrefix(seenAs),
      })),
      openTo: openTo.map(formatPrefix),
      users: [...new Set(holders.map(({ user }) => user))],
    };
  }

  #showUser(user: string): NonNullable<PolicyInfo['user']> {
    const sessions = this.#auth.sessions.all.filter((session) => session.user === user);
    const shown = sessions.flatMap((session) => {
      const selection = this.#access.selectionOf(session);
      const { key, lease, groups } = session;
      const addresses = [lease.v4, lease.v6].flatMap((address) => (address === undefined ? [] : [formatIp(address)]));
      return selection === undefined
        ? []
        : [
            {
              ...{ session: key.slice(0, 8), addresses, networks: this.networksOf(session) },
              ...{ kept: this.#keptFor(session), ...this.#describe(user, groups, selection) },
            },
          ];
    });
    if (shown.length > 0) return shown;
    const groups = this.#access.groupsOf(user);
    const selection = this.#access.select({ user, groups, hasCertificate: false });
    if (selection === undefined) return [];
    const kept = this.#keptFor({ user, groups, device: '' });
    return [{ session: '', addresses: [], networks: [], kept, ...this.#describe(user, groups, selection) }];
  }

  #keptFor(holder: DeviceHolder): string[] {
    return (this.#access.staticAddressesOf(holder) ?? []).map(formatPrefix);
  }

  /** Networks behind a session's client, as everybody else sees them. */
  networksOf(session: LiveSession): string[] {
    return this.#access.networksOf(session).map(({ seenAs }) => formatPrefix(seenAs));
  }

  #describe(user: string, groups: readonly string[], { rules, settings }: Selection) {
    const { policy } = this.#access.inForce?.selector ?? {};
    const all = policy === undefined ? groups : [...groupsOf(policy, { user, groups })].sort();
    const given = Object.entries(settings).map(([key, value]) => [
      key,
      key === 'routes' ? (settings.routes ?? []).map(formatPrefix) : value,
    ]);
    return {
      groups: [...all],
      rules: rules.slice(0, MAX_SHOWN).map(ruleInfo),
      settings: Object.fromEntries(given) as Record<string, string | number | boolean | string[]>,
    };
  }

  /** What to tell an operator of sessions that a change has left with nothing to reach. */
  cutOff(sessions: readonly LiveSession[]): string[] {
    if (sessions.length === 0) return [];
    const users = [...new Set(sessions.map(({ user }) => user))];
    const some = users.slice(0, 5).join(', ');
    const more = users.length > 5 ? ` and ${users.length - 5} more` : '';
    return [
      `policy: ${sessions.length} ${sessions.length === 1 ? 'session' : 'sessions'} can reach nothing any more (${some}${more}); see: customvpn policy show --user NAME`,
    ];
  }

  /** What to tell an operator of addresses that are kept for one, and that another has. */
  taken(): string[] {
    return this.#auth.sessions.all.flatMap((session) => {
      const { key, user, lease } = session;
      const own = [lease.v4, lease.v6].filter((address) => address !== undefined);
      const { policy } = this.#access.inForce?.selector ?? {};
      const entry = policy?.addresses.find(({ addresses }) =>
        addresses.some((prefix) => own.some((address) => prefixContains(prefix, address))),
      );
      if (entry === undefined || entry.addresses === this.#access.staticAddressesOf(session)) return [];
      return [
        `policy: ${own.map(formatIp).join(' and ')} is kept for somebody by line ${entry.line}, and ${user} has it until the session ends; end it with: customvpn server kick ${key.slice(0, 8)}`,
      ];
    });
  }

  /** What to tell an operator who is here through the tunnel, and could not come again under a configuration. */
  cutsWay(way: OperatorWay | undefined, config: GatewayConfig): string[] {
    if (way === undefined) return [];
    const [from, to] = [parseIp(way.from), parseIp(way.to)];
    if (!config.pool.map(parsePrefix).some((prefix) => prefixContains(prefix, from))) return [];
    const { gateway4, gateway6 } = openPool(config);
    const isInner = [gateway4, gateway6].some((address) => address !== undefined && formatIp(address) === formatIp(to));
    const services = [`tcp/${way.port}`, `${way.port}/tcp`];
    if (isInner && config.services.some((service) => services.includes(service))) return [];
    return [
      `your own connection comes through the tunnel, from ${way.from} to port ${way.port} of ${way.to}, and clients cannot make it any more: keep it open, and put "tcp/${way.port}" back into services`,
    ];
  }
}

function ruleInfo({ name, line, action, to, services }: Rule) {
  return { name, line, action, to: to.map(formatDestination), services: services.map(formatService) };
}
