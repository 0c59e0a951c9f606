/**
 * The closed list of reasons for which a packet is dropped.
 *
 * Every drop on the data path is counted under exactly one of these; counters are plain arrays indexed by the value, of
 * length `DROP_REASON_NAMES.length`. The rules of `docs/protocol.md` for super-packets have one reason each, so that a
 * counter names the rule that was broken. Values are small consecutive integers and are no part of the wire format.
 */

export const DropReason = {
  /** Not dropped. */
  none: 0,

  // Any packet.
  /** Fewer bytes than the fixed header of its IP version. */
  tooShort: 1,
  /** The version nibble is neither 4 nor 6. */
  version: 2,
  /** IPv4 header length below 5 words, or beyond the packet. */
  ipHeaderLength: 3,
  /** The length field of the IP header is not the length of the packet: cut short, or bytes behind it. */
  ipLength: 4,

  // Super-packets and partial checksums: what is asked for.
  /** A SUPER frame shorter than its own header, or without a packet. */
  superTooShort: 5,
  /** A segmentation type that is not ours: UFO, a tunnel type, unknown bits. */
  superType: 6,
  /** A flag bit other than the partial checksum. */
  superFlags: 7,
  /** A segment size on a packet that is not to be segmented. */
  superUnusedSize: 8,

  // Super-packets and partial checksums: the IP header.
  /** The IP version is not the one of the segmentation type. */
  superVersion: 9,
  /** The IPv4 header checksum is wrong. */
  superHeaderChecksum: 10,
  /** An IPv6 payload length of 0: a jumbogram, or nothing behind the header. */
  superEmpty: 11,
  /** A fragment. */
  superFragment: 12,
  /** More IPv6 extension headers than 8. */
  superExtensionCount: 13,
  /** Hop-by-hop options that are not the first extension header. */
  superExtensionOrder: 14,
  /** A routing header with segments left. */
  superRouting: 15,
  /** A header that runs beyond the end of the packet. */
  superTruncated: 16,

  // Super-packets and partial checksums: the transport header.
  /** A partial checksum over something other than TCP and UDP. */
  superChecksumProtocol: 17,
  /** A TCP data offset below 5 words, or beyond the packet. */
  superTcpDataOffset: 18,
  /** The UDP length is not the rest of the packet. */
  superUdpLength: 19,
  /** Segments asked for without a partial checksum. */
  superChecksumMissing: 20,
  /** The transport protocol is not the one of the segmentation type. */
  superProtocol: 21,
  /** A TCP segmentation of a packet with SYN, RST or URG. */
  superTcpFlags: 22,

  // Super-packets: the segments.
  /** Segments of fewer than 256 bytes of payload. */
  superSegmentTooSmall: 23,
  /** Segments that with their headers exceed the MTU. */
  superSegmentTooBig: 24,
  /** A payload that fits in one segment. */
  superOneSegment: 25,
  /** More segments than 256 (TCP) or 64 (UDP). */
  superTooManySegments: 26,
  /** UDP segmentation that this kernel does not do. */
  superUdpUnsupported: 27,

  // Policy and load.
  /** Super-packets were not negotiated in this session. */
  notNegotiated: 28,
  /** The source address is not leased to the session, nor in a network behind it. */
  sourceNotLeased: 29,
  /** Multicast, broadcast, loopback, link-local, unspecified or v4-mapped: never carried. */
  unroutable: 30,
  /** No session has the destination address. */
  noSession: 31,
  /** The session has no data channel at the moment. */
  noChannel: 32,
  /** Longer than the MTU of the tunnel. */
  tooBig: 33,
  /** The queue of the session is full: taken from the head of its longest flow, or refused. */
  queueFull: 34,
  /** The kernel refused the packet. */
  tunRefused: 35,
  /** A segment cut off a super-packet that waits, so that its sender slows down. */
  queueTrimmed: 36,
  /** A packet that waited, dropped so that its sender slows down. */
  queueSignal: 37,
  /** All queues together hold what they may; taken from the longest. */
  queueBudget: 38,
  /** Its user has carried as much as the quota allows. */
  quota: 39,

  // Ethernet: the frame.
  /** Fewer bytes than an Ethernet header, or than what its type says. */
  frameTooShort: 40,
  /** A source that is no address of a single station. */
  frameSource: 41,
  /** To the reserved addresses of bridges (STP, LLDP, PAUSE …), or LLC, which these speak. */
  frameControl: 42,
  /** A VLAN tag. */
  frameTagged: 43,
  /** A protocol that is not listed. */
  frameProtocol: 44,
  /** A fragment whose transport header cannot be told. */
  frameFragment: 45,

  // Ethernet: what a client must not say.
  /** Another's MAC address, as the source or in an ARP or DHCP message. */
  macSpoofed: 46,
  /** More MAC addresses than a client may have. */
  macLimit: 47,
  /** No room in the table of MAC addresses. */
  macTableFull: 48,
  /** An IP address that is another's or was not leased, as a source or in an ARP or neighbour message. */
  addressSpoofed: 49,
  /** More IP addresses than a client may have. */
  addressLimit: 50,
  /** A router advertisement or redirect. */
  routerAdvertisement: 51,
  /** What only a DHCP server says. */
  dhcpServer: 52,

  // Ethernet: where frames go.
  /** More broadcasts and multicasts of a client in a second than it may send. */
  broadcastRate: 53,
  /** More broadcasts and multicasts from the bridge in a second than are copied to the clients. */
  floodRate: 54,
  /** To another client, and clients are kept apart. */
  clientIsolated: 55,
  /** To where the frame came from. */
  sameSide: 56,
  /** A COMPRESSED frame that is not what it says, or longer. */
  compressed: 57,
} as const;
export type DropReason = (typeof DropReason)[keyof typeof DropReason];

/** The names of the reasons, in snake case for metrics, indexed by value. */
export const DROP_REASON_NAMES: readonly string[] = Object.freeze(
  Object.keys(DropReason).map((key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)),
);
