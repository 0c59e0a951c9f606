/**
 * Feature negotiation: what both ends have is used, the rest is ignored.
 *
 * Hides nothing but the names. An end lists only what its machine really can do; a name that the other does not know
 * means nothing, so old and new ends understand each other.
 *
 * @see docs/protocol.md §7
 */

/** The features of this version. */
export const Feature = {
  /** SUPER frames with TCP segmentation and partial checksums, in both directions. */
  superPackets: 'super',
  /** UDP segmentation in SUPER frames; means nothing without `super`. */
  udpSuperPackets: 'uso',
  /** Data connections attached to the session. */
  attach: 'attach',
  /** RESUME of a session on a new connection. */
  resume: 'resume',
  /** Make-before-break change of a connection with SWITCH. */
  rekey: 'rekey',
  /** ETHERNET frames in place of PACKET and SUPER. An end that has it wants nothing else. */
  ethernet: 'ethernet',
  /** COMPRESSED frames, in both directions. */
  compression: 'zstd',
  /** DRAIN: the server goes, and asks its clients to move to another. */
  drain: 'drain',
  /** Networks behind a client: `networks` of LOGIN and CONFIG. */
  networks: 'networks',
} as const;
export type Feature = (typeof Feature)[keyof typeof Feature];

/** What both have, in the order of `supported`, without repetitions. */
export function negotiateFeatures(offered: readonly string[], supported: readonly string[]): string[] {
  const asked = new Set(offered);
  const both = [...new Set(supported)].filter((name) => asked.has(name));
  return both.includes(Feature.superPackets) ? both : both.filter((name) => name !== Feature.udpSuperPackets);
}
