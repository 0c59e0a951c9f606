/**
 * Who may use the gateway as a proxy at the moment, and until when.
 *
 * Hides how a right is proven: by the secret of a session, or by a user's access token. Each connection has a key of its
 * own, and all keys of a holder end with what the holder's right rests on: the session, the token, the account. A worker
 * that lies gets connections for nobody whose proof it has not seen.
 */

import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import type { Rechecked } from '../../identity/backends/backend.ts';
import type { ProxyCredentials, ProxyLogin, ProxyLogins } from '../../identity/proxy-login.ts';
import type { Holder as PolicyHolder } from '../../policy/access.ts';
import type { Primitives } from '../../protocol/keys.ts';
import { answerProxyClaim, type ProxyBinding } from '../../protocol/proxy-binding.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import type {
  ProxyGrant,
  ProxyKey,
  ProxyPeer,
  ProxyPort,
  ProxyProof,
  ProxyWorkerPort,
  SessionKey,
  StreamTraffic,
} from '../ipc/ports.ts';
import type { LoginFacts, RightsHolder } from './rights.ts';

const KEY_BYTES = 16;
/** A program that connects again within this time goes on with its login. */
const LINGER_MS = 60_000;
/** Connections of one session or token. */
const MAX_CONNECTIONS = 256;
const NO_TRAFFIC: StreamTraffic = { streams: 0, sentBytes: 0, receivedBytes: 0 };

export interface ProxyGrantsParts {
  readonly logins: ProxyLogins;
  readonly primitives: Primitives;
  readonly clock: Clock;
  readonly log: Logger;
  /** A session that is alive; without a binding while a resume is under way. */
  findSession(
    key: SessionKey,
  ): { readonly holder: PolicyHolder; readonly binding: ProxyBinding | undefined } | undefined;
  /** Whether the account is still good at its source. */
  standing(user: string): Promise<Rechecked | undefined>;
  /** Why the application or the operator's hook does not want it. */
  objection(login: LoginFacts): Promise<string | undefined>;
  /** Asks for a verdict, and grants on yes; not when the right has been taken away meanwhile. */
  judging<T>(holder: RightsHolder, judge: () => Promise<boolean>, grant: () => T): Promise<T | undefined>;
  /** A worker is about to carry streams for somebody. */
  prepare(carrier: ProxyCarrier): void;
}

/** Somebody who has connections for streams at a worker. */
export interface ProxyCarrier {
  readonly worker: number;
  readonly user: string;
  /** As rules look at it at the moment. */
  holder(): PolicyHolder;
}

/** One connection of a worker. */
interface Connection {
  readonly worker: number;
  readonly remote: string;
  traffic: StreamTraffic;
}

/** Somebody with a right, and the connections that use it. */
interface Holder {
  /** Of an access token; undefined: of a session. */
  readonly login: ProxyLogin | undefined;
  readonly user: string;
  readonly connections: Map<ProxyKey, Connection>;
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  /** Of connections that are gone. */
  past: { sentBytes: number; receivedBytes: number };
  /** Since when it has no connection, by the monotonic clock. */
  emptySince: number | undefined;
}

/** A login by access token, as an operator sees it. */
export interface ProxyLoginInfo extends StreamTraffic {
  readonly token: string;
  readonly user: string;
  /** Of its latest connection. */
  readonly remote: string;
  readonly connections: number;
  readonly since: number;
}

export class ProxyGrants {
  readonly #parts: ProxyGrantsParts;
  readonly #log: Logger;
  readonly #lines: LogLimit;
  /** By session, or by token. */
  readonly #holders = new Map<string, Holder>();
  readonly #byKey = new Map<ProxyKey, string>();
  /** Several connections of one program at once make one record. */
  readonly #recording = new Map<string, Promise<boolean>>();
  readonly #workers = new Map<number, ProxyWorkerPort>();
  #groups: ReadonlyMap<string, readonly string[]> = new Map();

  constructor(parts: ProxyGrantsParts) {
    this.#parts = parts;
    this.#log = parts.log.child({ component: 'proxy' });
    this.#lines = new LogLimit(this.#log, parts.clock);
  }

  /** What a worker may ask; it hears of no other's connections. */
  gateOf(worker: number): ProxyPort {
    return {
      bind: (proof, peer) => this.#bind(proof, peer, worker),
      login: (credentials, peer) => this.#login(credentials, peer, worker),
      traffic: (key, traffic) => {
        const connection = this.#connectionOf(key);
        if (connection?.worker === worker) connection.traffic = traffic;
      },
      release: (key) => {
        if (this.#connectionOf(key)?.worker === worker) this.#release(key);
      },
    };
  }

  /** A worker is there. */
  connect(worker: number, port: ProxyWorkerPort): void {
    this.#workers.set(worker, port);
  }

  /** A worker is gone, and its connections with it. */
  disconnect(worker: number): void {
    this.#workers.delete(worker);
    for (const { connections } of this.#holders.values()) {
      for (const [key, connection] of connections) if (connection.worker === worker) this.#release(key);
    }
  }

  /** Whose key of this worker it is; undefined: nobody's any more. */
  userOf(key: ProxyKey, worker: number): string | undefined {
    return this.#holderOf(key, worker)?.user;
  }

  /** The same, as far as the rules of a policy look at it: a session, or an access token, which is nothing but its user. */
  holderOf(key: ProxyKey, worker: number): PolicyHolder | undefined {
    const holder = this.#holderOf(key, worker);
    return holder === undefined ? undefined : this.#policyHolderOf(this.#byKey.get(key) ?? '', holder);
  }

  #carrier(id: string, holder: Holder, worker: number): ProxyCarrier {
    return { worker, user: holder.user, holder: () => this.#policyHolderOf(id, holder) };
  }

  #policyHolderOf(id: string, { login, user }: Holder): PolicyHolder {
    if (login !== undefined) return { user, groups: this.#groups.get(user) ?? login.groups, hasCertificate: false };
    return this.#parts.findSession(id)?.holder ?? { user, groups: this.#groups.get(user) ?? [], hasCertificate: false };
  }

  /** Who has connections, and at which workers. */
  get carriers(): ProxyCarrier[] {
    return [...this.#holders].flatMap(([id, holder]) => {
      const workers = new Set([...holder.connections.values()].map(({ worker }) => worker));
      return [...workers].map((worker) => this.#carrier(id, holder, worker));
    });
  }

  /** The groups of accounts, as they are now. */
  regroup(groups: ReadonlyMap<string, readonly string[]>): void {
    this.#groups = groups;
  }

  #holderOf(key: ProxyKey, worker: number): Holder | undefined {
    const id = this.#byKey.get(key);
    const holder = id === undefined ? undefined : this.#holders.get(id);
    return holder?.connections.get(key)?.worker === worker ? holder : undefined;
  }

  async #bind(
    { claim, exported }: ProxyProof,
    peer: ProxyPeer,
    worker: number,
  ): Promise<(ProxyGrant & { info: string }) | undefined> {
    const { primitives, findSession } = this.#parts;
    const key = claim.session.toHex();
    const session = findSession(key);
    // The same work, whether there is such a session or not.
    const binding = session?.binding ?? { session: claim.session, epoch: claim.epoch, key: NO_KEY };
    const info = answerProxyClaim(primitives, binding, claim, () => exported);
    if (session?.binding === undefined || info === undefined) return undefined;
    const holder = this.#holders.get(key) ?? this.#createHolder(key, session.holder.user, undefined);
    return { ...this.#grant(key, holder, peer, worker), info };
  }

  async #login(credentials: ProxyCredentials, peer: ProxyPeer, worker: number): Promise<ProxyGrant | undefined> {
    const { logins } = this.#parts;
    const login = await logins.check(credentials, peer.remote);
    if (login === undefined) return undefined;
    const { user, token, endsAt } = login;
    const rights = { user, device: '', certificate: undefined, steps: ['token'], token, endsAt } as const;
    const judge = async (): Promise<boolean> => {
      const { standing, groups = login.groups } = (await this.#parts.standing(user)) ?? {};
      if (standing === 'gone') return false;
      const reason = await this.#parts.objection({ user, groups, device: '', remote: peer.remote });
      if (reason !== undefined) {
        this.#lines.write('warn', 'objection', 'proxy login refused', { user, peer: peer.remote, reason });
        return false;
      }
      if (this.#holders.has(token)) return true;
      const recording = this.#recording.get(token) ?? logins.record(login, peer.remote);
      this.#recording.set(token, recording);
      return await recording.finally(() => this.#recording.delete(token));
    };
    return await this.#parts.judging(rights, judge, () => {
      const holder = this.#holders.get(token);
      if (holder !== undefined) return this.#grant(token, holder, peer, worker);
      this.#log.info('proxy opened', { user, token, peer: peer.remote });
      return this.#grant(token, this.#createHolder(token, user, login), peer, worker);
    });
  }

  #release(key: ProxyKey): void {
    const id = this.#byKey.get(key);
    const holder = id === undefined ? undefined : this.#holders.get(id);
    const connection = holder?.connections.get(key);
    this.#byKey.delete(key);
    if (holder === undefined || connection === undefined) return;
    holder.connections.delete(key);
    holder.past.sentBytes += connection.traffic.sentBytes;
    holder.past.receivedBytes += connection.traffic.receivedBytes;
    if (holder.connections.size === 0) holder.emptySince = this.#parts.clock.now();
  }

  /** A session is over: so is what it had here. */
  endSession(key: SessionKey): void {
    this.#end(key);
  }

  /** Ends the logins that a change of rights concerns; returns how many there were. */
  close(concerned: (holder: RightsHolder) => boolean): number {
    let ended = 0;
    for (const [id, { login, user }] of [...this.#holders]) {
      if (login === undefined) continue;
      const { token, endsAt } = login;
      if (!concerned({ user, device: '', certificate: undefined, steps: ['token'], token, endsAt })) continue;
      this.#log.info('proxy closed: its right has ended', { user, token });
      this.#end(id);
      ended += 1;
    }
    return ended;
  }

  /** Ends the login whose token id starts so; returns how many there were. */
  kick(token: string): number {
    const ids = [...this.#holders].filter(([id, { login }]) => login !== undefined && id.startsWith(token));
    for (const [id] of ids) this.#end(id);
    return ids.length;
  }

  /** The logins by access token, oldest first. */
  get logins(): ProxyLoginInfo[] {
    this.#forgetIdle();
    return [...this.#holders.values()].flatMap((holder) => {
      const { login, user, since, connections } = holder;
      if (login === undefined) return [];
      const remote = [...connections.values()].at(-1)?.remote ?? '';
      return [{ token: login.token, user, remote, connections: connections.size, since, ...totalsOf(holder) }];
    });
  }

  /** What the streams of the session whose key begins so have carried. */
  trafficOf(beginning: string): StreamTraffic {
    for (const [id, holder] of this.#holders) {
      if (holder.login === undefined && id.startsWith(beginning)) return totalsOf(holder);
    }
    return NO_TRAFFIC;
  }

  /** The users with a login by access token. */
  get users(): string[] {
    return [...this.#holders.values()].flatMap(({ login, user }) => (login === undefined ? [] : [user]));
  }

  #createHolder(id: string, user: string, login: ProxyLogin | undefined): Holder {
    this.#forgetIdle();
    const since = this.#parts.clock.wallNow();
    const past = { sentBytes: 0, receivedBytes: 0 };
    const holder: Holder = { login, user, connections: new Map(), since, past, emptySince: undefined };
    this.#holders.set(id, holder);
    return holder;
  }

  #grant(id: string, holder: Holder, { remote }: ProxyPeer, worker: number): ProxyGrant {
    const [oldest] = holder.connections.keys();
    if (holder.connections.size >= MAX_CONNECTIONS && oldest !== undefined) {
      this.#close(oldest);
      this.#release(oldest);
    }
    const key = this.#parts.primitives.randomBytes(KEY_BYTES).toHex();
    holder.connections.set(key, { worker, remote, traffic: NO_TRAFFIC });
    holder.emptySince = undefined;
    this.#byKey.set(key, id);
    this.#parts.prepare(this.#carrier(id, holder, worker));
    return { key, user: holder.user };
  }

  #end(id: string): void {
    const holder = this.#holders.get(id);
    if (holder === undefined) return;
    for (const key of holder.connections.keys()) {
      this.#close(key);
      this.#byKey.delete(key);
    }
    this.#holders.delete(id);
  }

  #close(key: ProxyKey): void {
    const connection = this.#connectionOf(key);
    if (connection !== undefined) this.#workers.get(connection.worker)?.closeProxy(key);
  }

  #connectionOf(key: ProxyKey): Connection | undefined {
    const id = this.#byKey.get(key);
    return id === undefined ? undefined : this.#holders.get(id)?.connections.get(key);
  }

  /** Those of sessions end with them. */
  #forgetIdle(): void {
    const now = this.#parts.clock.now();
    for (const [id, { login, emptySince }] of this.#holders) {
      if (login !== undefined && emptySince !== undefined && now - emptySince > LINGER_MS) this.#holders.delete(id);
    }
  }
}

const NO_KEY = new Uint8Array(32);

function totalsOf({ connections, past }: Holder): StreamTraffic {
  const totals = { streams: 0, ...past };
  for (const { traffic } of connections.values()) {
    totals.streams += traffic.streams;
    totals.sentBytes += traffic.sentBytes;
    totals.receivedBytes += traffic.receivedBytes;
  }
  return totals;
}
