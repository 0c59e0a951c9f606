/**
 * What a login step asks of a source of accounts outside the gateway: a directory, a RADIUS server, an identity provider.
 *
 * Hides which protocol the source speaks and how it is reached. A back end judges a name and what its user shows, and
 * says later whether the account is still good; it must not know devices, sessions or the store. Each kind is one file
 * beside this one. A source that is down or answers nonsense is `unavailable`, never a refusal: live sessions stay.
 */

import type { CloseReason } from '../../protocol/messages.ts';

/** What a source says of one login. Reasons are for the audit record, never for the peer. */
export type BackendVerdict =
  | {
      readonly kind: 'accepted';
      /** The account's name in the source, normalised. */
      readonly user: string;
      /** The source's groups, mapped to ours; undefined when the source has no say in them. */
      readonly groups: readonly string[] | undefined;
    }
  | { readonly kind: 'refused'; readonly reason: string }
  | { readonly kind: 'unavailable'; readonly reason: string }
  /** The source wants one more answer from the person, to be typed unseen unless `echo`; `state` goes back with it. */
  | { readonly kind: 'ask'; readonly prompt: string; readonly echo: boolean; readonly state: string };

/** Whether an account may keep its sessions. `unknown`: the source could not say; nothing changes. */
export type Standing = 'good' | 'gone' | 'unknown';

/** What a source says of an account that has sessions. */
export interface Rechecked {
  readonly standing: Standing;
  /** The source's groups, mapped to ours, of an account that is good; undefined when it has no say in them, or did not tell. */
  readonly groups?: readonly string[] | undefined;
}

interface Backend {
  /** As the configuration names it. */
  readonly name: string;
  /** Asked every 15 minutes for each account with a session, and at resume. Never rejects. */
  recheck(user: string, signal: AbortSignal): Promise<Rechecked>;
  close(): Promise<void>;
}

/** A source that judges a password. */
export interface PasswordBackend extends Backend {
  /** Never rejects; `signal` ends the attempt, which is then `unavailable`. */
  authenticate(
    attempt: {
      readonly user: string;
      readonly password: string;
      /** Address and port of the client. */
      readonly source: string;
      /** Of the `ask` that this answers. */
      readonly state?: string;
    },
    signal: AbortSignal,
  ): Promise<BackendVerdict>;
}

/** A source where the person logs in with a browser of their own (RFC 8628). */
export interface BrowserBackend extends Backend {
  /** Begins a login. Rejects with ERR_BACKEND when the source cannot be reached. */
  begin(signal: AbortSignal): Promise<BrowserLogin>;
}

/** A source to which a page of ours sends a browser, and from which that comes back (RFC 6749 §4.1, RFC 7636). */
export interface VisitedBackend extends Backend {
  /**
   * Begins a login that comes back to this address. Rejects with ERR_BACKEND when the source cannot be reached.
   */
  visit(returnTo: string, signal: AbortSignal): Promise<Visit>;
}

/** One login, on its way; all of it is used up by `finish`. */
export interface Visit {
  /** Where the browser goes. */
  readonly url: string;
  /** Comes back with it; tells logins apart. */
  readonly state: string;
  /** Judges what the browser brought back, after the question mark. Never rejects. */
  finish(query: string, signal: AbortSignal): Promise<BackendVerdict>;
}

export interface BrowserLogin {
  /** Where the person goes, with the code in it where the provider offers that. */
  readonly url: string;
  /** What the person compares or types there. */
  readonly code: string;
  /** Milliseconds since the Unix epoch. */
  readonly expiresAt: number;
  /** Waits until the person is done, the code expires or `signal` ends it. Never rejects. */
  finish(signal: AbortSignal): Promise<BackendVerdict>;
}

/** A source that wants to know what sessions its accounts have. */
export interface SessionAccountant {
  /** Seconds between reports of a running session; undefined when the source wants none at all. */
  readonly interimSeconds: number | undefined;
  /** Tells the source. @throws {VpnError} ERR_BACKEND when it does not confirm */
  report(session: SessionReport, signal: AbortSignal): Promise<void>;
}

export interface SessionReport {
  readonly status: 'start' | 'interim' | 'stop';
  /** Tells sessions apart; not enough to take one over. */
  readonly id: string;
  readonly user: string;
  /** Address and port of the client. */
  readonly remote: string;
  /** Inner addresses. */
  readonly addresses: readonly string[];
  /** How long it has run. */
  readonly seconds: number;
  /** Received: from the client. */
  readonly counters: {
    readonly receivedBytes: number;
    readonly receivedPackets: number;
    readonly sentBytes: number;
    readonly sentPackets: number;
  };
  /** Why it has ended, with `stop`. */
  readonly reason?: CloseReason | undefined;
}

/** Where a source keeps what it needs to ask about an account later. Texts hold secrets; they are sealed where they rest. */
export interface GrantStore {
  load(account: string): Promise<string | undefined>;
  /** Replaces what was kept. */
  save(account: string, text: string): Promise<void>;
}

/** Theirs to ours, as configured; undefined: the source has no say in groups. */
export type GroupTable = Readonly<Record<string, string>> | undefined;

/**
 * The groups of ours that groups of the source stand for, sorted; those that the table lacks do not count.
 *
 * @param same the one form of a group's name in the source
 */
export function mapGroups(
  table: GroupTable,
  theirs: readonly string[],
  same: (name: string) => string = (name) => name,
): readonly string[] | undefined {
  if (table === undefined) return undefined;
  const held = new Set(theirs.map(same));
  const ours = Object.entries(table).flatMap(([their, our]) => (held.has(same(their)) ? [our] : []));
  return [...new Set(ours)].sort();
}
