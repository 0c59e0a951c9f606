/**
 * What the policy has denied lately, for an operator to see: who, what, and by which rule.
 *
 * Hides that packets come from the kernel's log, which says no rule, and streams from this process: both are judged again
 * here, by the policy in force, for their rule. The same thing denied again and again is one line that counts. Bounded, and a
 * sample: the kernel shows only some of what one client sends, and packets are judged here only so many a second.
 */

import type { Clock } from '../../base/clock.ts';
import type { DenialInfo } from '../../control/operations.ts';
import { formatIp, type IpAddress } from '../../ip/address.ts';
import { readU8, readU16 } from '../../ip/bytes.ts';
import {
  addressBytes,
  destinationOffset,
  IpProtocol,
  ipVersion,
  sourceOffset,
  transportOffset,
  transportProtocol,
  walkTransport,
} from '../../ip/packet.ts';
import type { Decision, Flow } from '../../policy/access.ts';
import type { LiveSession } from './live-session.ts';

const MAX_KEPT = 1000;
/** What comes again within this time is counted with what is there. */
const SAME_MS = 10_000;
const PACKETS_PER_SECOND = 500;
const PROTOCOLS: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmp' };
const ICMP_ECHO = 8;
const ICMPV6_ECHO = 128;

export interface DenialsParts {
  /** Whose address it is. */
  sessionAt(address: IpAddress): LiveSession | undefined;
  /** What the policy in force says of a packet of a session. */
  judge(session: LiveSession, flow: Flow): Decision | undefined;
  readonly clock: Clock;
}

/** The head of a packet, as far as a policy looks at it; undefined: it is none. */
export function readFlow(packet: Uint8Array): { source: IpAddress; flow: Flow } | undefined {
  const version = ipVersion(packet, 0);
  const bytes = addressBytes(version);
  const to = destinationOffset(version);
  if ((version !== 4 && version !== 6) || packet.length < to + bytes) return undefined;
  const addressAt = (at: number): IpAddress => ({ version, bytes: packet.slice(at, at + bytes) });
  const source = addressAt(sourceOffset(version));
  const destination = addressAt(to);
  const walk = walkTransport(packet, 0, packet.length);
  if (walk < 0) return { source, flow: { destination, protocol: readU8(packet, version === 4 ? 9 : 6) } };
  const at = transportOffset(walk);
  const protocol = transportProtocol(walk);
  if ((protocol === IpProtocol.tcp || protocol === IpProtocol.udp) && at + 4 <= packet.length) {
    return { source, flow: { destination, protocol, port: readU16(packet, at + 2) } };
  }
  const isIcmp = protocol === (version === 4 ? IpProtocol.icmp : IpProtocol.icmpv6);
  const isEcho = isIcmp && at < packet.length && readU8(packet, at) === (version === 4 ? ICMP_ECHO : ICMPV6_ECHO);
  return { source, flow: { destination, protocol, ...(isIcmp ? { isEcho } : {}) } };
}

export class Denials {
  readonly #parts: DenialsParts;
  /** Oldest first. */
  readonly #kept = new Map<string, DenialInfo>();
  #next = 1;
  #second = 0;
  #judged = 0;

  constructor(parts: DenialsParts) {
    this.#parts = parts;
  }

  /** A packet that the kernel has denied, as it begins. */
  packet(bytes: Uint8Array): void {
    const second = Math.floor(this.#parts.clock.now() / 1000);
    if (second !== this.#second) this.#judged = 0;
    this.#second = second;
    this.#judged += 1;
    if (this.#judged > PACKETS_PER_SECOND) return;
    const read = readFlow(bytes);
    if (read === undefined) return;
    const session = this.#parts.sessionAt(read.source);
    if (session === undefined) return;
    const decision = this.#parts.judge(session, read.flow);
    // What is allowed meanwhile was denied by a rule that is gone.
    if (decision?.action !== 'deny') return;
    this.#add('packet', session.user, session.key.slice(0, 8), formatIp(read.source), read.flow, decision);
  }

  /** A connection through the proxy that was denied. */
  stream(user: string, flow: Flow, decision: Decision): void {
    this.#add('stream', user, '', '', flow, decision);
  }

  #add(
    kind: DenialInfo['kind'],
    user: string,
    session: string,
    source: string,
    { destination, protocol, port }: Flow,
    { rule }: Decision,
  ): void {
    const at = this.#parts.clock.wallNow();
    const to = formatIp(destination);
    const key = [kind, user, session, to, protocol, port, rule?.index].join(' ');
    const former = this.#kept.get(key);
    const isAgain = former !== undefined && at - Date.parse(former.at) < SAME_MS;
    this.#kept.delete(key);
    this.#kept.set(key, {
      id: this.#next++,
      at: new Date(at).toISOString(),
      kind,
      user,
      session,
      source,
      destination: to,
      protocol: PROTOCOLS[protocol] ?? `ip/${protocol}`,
      port: port ?? null,
      rule: rule === undefined ? null : { name: rule.name, line: rule.line },
      count: isAgain ? former.count + 1 : 1,
    });
    if (this.#kept.size <= MAX_KEPT) return;
    const [oldest = ''] = this.#kept.keys();
    this.#kept.delete(oldest);
  }

  /** Those after a number, oldest first, the newest so many; of one user, if given. */
  list({ after = 0, user, limit }: { after?: number; user?: string | undefined; limit: number }): DenialInfo[] {
    return [...this.#kept.values()]
      .filter((one) => one.id > after && (user === undefined || one.user === user))
      .slice(-limit);
  }
}
