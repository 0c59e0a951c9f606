/**
 * Which of three classes a packet belongs to: interactive, normal or bulk.
 *
 * Hides where the DSCP stands and which of its values mean what (RFC 4594, RFC 8622), and how ports are looked up. The
 * field itself is carried as it came. Runs per packet: nothing here allocates or throws.
 *
 * @see docs/decisions/0023-shaping.md
 */

import { readU8, readU16 } from './bytes.ts';
import { IpProtocol, ipVersion, transportOffset, transportProtocol, walkTransport } from './packet.ts';

/** In the order in which they go first. */
export const TrafficClass = { interactive: 0, normal: 1, bulk: 2 } as const;
export type TrafficClass = (typeof TrafficClass)[keyof typeof TrafficClass];
export const CLASS_NAMES = ['interactive', 'normal', 'bulk'] as const;

/** AF21–43, CS3–CS7, VOICE-ADMIT and EF. What is meant for networks' own control is as urgent as a voice. */
const INTERACTIVE = [18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 44, 46, 48, 56];
/** LE, CS1 and AF11–13. */
const BULK = [1, 8, 10, 12, 14];

const BY_DSCP = new Uint8Array(64).fill(TrafficClass.normal);
for (const dscp of INTERACTIVE) BY_DSCP[dscp] = TrafficClass.interactive;
for (const dscp of BULK) BY_DSCP[dscp] = TrafficClass.bulk;

/** The class that a packet's DSCP says. */
export function classOfDscp(bytes: Uint8Array, offset: number): number {
  return BY_DSCP[dscpOf(bytes, offset)] ?? TrafficClass.normal;
}

/** The six bits in front of ECN. */
export function dscpOf(bytes: Uint8Array, offset: number): number {
  if (ipVersion(bytes, offset) === 4) return readU8(bytes, offset + 1) >>> 2;
  return (readU16(bytes, offset) >>> 6) & 0x3f;
}

/** Some traffic, and its class. */
export interface ClassRule {
  readonly class: TrafficClass;
  readonly protocol: 'tcp' | 'udp';
  /** Ports of the service, both included. */
  readonly from: number;
  readonly to: number;
}

/** What traffic belongs to which class: the first rule that has one of a packet's ports, else its DSCP. */
export class TrafficClasses {
  /** Class + 1 by port; 0: the DSCP says. Undefined without a rule for the protocol. */
  readonly #tcp: Uint8Array | undefined;
  readonly #udp: Uint8Array | undefined;

  constructor(rules: readonly ClassRule[]) {
    this.#tcp = tableOf(rules.filter(({ protocol }) => protocol === 'tcp'));
    this.#udp = tableOf(rules.filter(({ protocol }) => protocol === 'udp'));
  }

  /** The class of the packet `bytes[offset, offset + length)`. */
  classOf(bytes: Uint8Array, offset: number, length: number): number {
    const tcp = this.#tcp;
    const udp = this.#udp;
    if (tcp !== undefined || udp !== undefined) {
      const walk = walkTransport(bytes, offset, length);
      if (walk >= 0) {
        const protocol = transportProtocol(walk);
        const table = protocol === IpProtocol.tcp ? tcp : protocol === IpProtocol.udp ? udp : undefined;
        const start = transportOffset(walk);
        if (table !== undefined && start + 4 <= length) {
          // A service is known by its own port, which is one of the two.
          const source = table[readU16(bytes, offset + start)] ?? 0;
          const found = source > 0 ? source : (table[readU16(bytes, offset + start + 2)] ?? 0);
          if (found > 0) return found - 1;
        }
      }
    }
    return classOfDscp(bytes, offset);
  }
}

function tableOf(rules: readonly ClassRule[]): Uint8Array | undefined {
  if (rules.length === 0) return undefined;
  const table = new Uint8Array(0x1_0000);
  // The first rule counts: it is written last.
  for (const rule of rules.toReversed()) table.fill(rule.class + 1, rule.from, rule.to + 1);
  return table;
}
