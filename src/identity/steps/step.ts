/**
 * What every kind of login step is to the authenticator. Each kind is one file beside this one.
 *
 * A step works in two phases. It *examines* what the client sent and changes nothing; every step of a login examines,
 * whatever the others found. Only when all of them pass does each *spend* what may be used once (a token, a code), all in
 * one transaction with the verdict: a step never uses up a credential for a login that fails at another step.
 *
 * A step does the same work for a subject that exists and one that does not.
 */

import type { LoginEvidence } from '../../protocol/login.ts';
import type { RejectCode, Step, StepKind } from '../../protocol/messages.ts';
import type { AuditEvent } from '../../store/audit.ts';
import type { Queries } from '../../store/store.ts';

/** The connection that a login came on. */
export interface LoginPeer {
  /** Worker and connection. */
  readonly binding: string;
  /** Address and port of the client. */
  readonly remote: string;
  /** SHA-256 of the public key of the server's leaf in this handshake. */
  readonly serverId: Uint8Array;
  /** The client certificate that TLS has verified. */
  readonly certificate?: ClientCertificate;
}

/** A client certificate, as TLS has verified it. */
export interface ClientCertificate {
  /** Its common name, for people. */
  readonly name: string;
  /** Lower-case hexadecimal. */
  readonly serial: string;
  /** For people. */
  readonly issuer: string;
  /** The issuer's name in short: with the serial number it says which certificate this is. */
  readonly authority: string;
  /** Milliseconds since the Unix epoch. */
  readonly notAfter: number;
  /** What it calls its holder, by kind. */
  readonly names: {
    readonly commonNames: readonly string[];
    readonly emails: readonly string[];
    readonly uris: readonly string[];
    readonly upns: readonly string[];
  };
}

/** One login, as a step sees it. */
export interface Attempt {
  readonly evidence: LoginEvidence;
  /** The device id in `evidence`, hexadecimal. */
  readonly device: string;
  readonly peer: LoginPeer;
  /** Milliseconds since the Unix epoch. */
  readonly now: number;
}

/** A user whom a step has proven to be there. */
export interface Subject {
  readonly id: string;
  readonly name: string;
}

/** A no. */
export interface Refusal {
  /** What the client is told, if nothing else is wrong; `rejected` tells nothing. */
  readonly code: RejectCode;
  /** What is recorded; never a secret. */
  readonly reason: string;
  /** Recorded in place of a plain refusal. */
  readonly event?: AuditEvent;
  readonly detail?: Readonly<Record<string, string | number>>;
  /** What was spent stays spent: the login is in order and only has to wait. */
  readonly keep?: boolean;
}

/** What a person has to know to pass a step; shown by the client. */
export type StepDetails = Omit<Step, 'kind'>;

/** One more thing that the person has to say before a step can be judged. */
export interface Question {
  /** Printable, in normal form C, at most 256 UTF-16 units. */
  readonly prompt: string;
  /** Whether the answer may be seen while it is typed. */
  readonly echo: boolean;
  /** Judges the answer in place of what the question came from; it may have another question. */
  answer(text: string, attempt: Attempt): Promise<Finding>;
}

/** What a step found. */
export interface Finding {
  readonly refusal?: Refusal;
  /** Whom the step stands for; all that stand for somebody must stand for the same. */
  readonly subject?: Subject | undefined;
  /** When what was shown is good no more, milliseconds since the Unix epoch; undefined: it does not end by itself. */
  readonly endsAt?: number | undefined;
  /** Id of the access token that was shown. */
  readonly token?: string;
  /** Nothing is found yet: this is asked, unless another step refuses. */
  readonly question?: Question;
  /** Uses up what may be used once. Runs only after every step has passed; nothing but `db` may be awaited. */
  readonly spend?: (db: Queries) => Promise<Refusal | undefined>;
}

export interface LoginStep {
  readonly kind: StepKind;
  /**
   * Makes ready what is shown when the step is asked. Only in a second round: a device has proven its key.
   *
   * @param isKnown whether it is the device of somebody here, or a token vouches for it
   */
  begin?(attempt: Attempt, isKnown: boolean): Promise<StepDetails | Refusal>;
  examine(attempt: Attempt): Promise<Finding>;
  /** The connection is gone: whatever waits for its client ends. */
  forget?(binding: string): void;
}
