/**
 * What a client has of its machine: the device, the host fitted to a configuration, and the link between packets and a session.
 *
 * Hides that sessions come and go behind one device, that configurations are applied one after the other, and what the links of
 * former sessions have carried. It must not know how a session is opened or why it ends.
 */

import type { Logger } from '../base/log.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import { NO_OFFLOAD } from '../ip/super-packet.ts';
import type { PacketBuffer, TunDevice, TunReader } from '../os/tun.ts';
import type { AcceptedConfig, RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import type { AcceptMessage } from '../protocol/messages.ts';
import { EthernetLink } from '../transport/ethernet-link.ts';
import { PacketBufferPool, PacketLink, SendBatch, type TunnelLink } from '../transport/packet-link.ts';

/** What a client has of its own machine: a TUN device with addresses and routes. */
export interface ClientHost {
  /** Opens the device. Called once, before anything is dialled. */
  open(): Promise<TunDevice>;
  /** Makes MTU, addresses and routes match a configuration; called again for each new one. Returns what it left out. */
  apply(config: AcceptedConfig): Promise<readonly RefusedItem[]>;
  /** The machine may be in other networks than before. Returns as `apply`; undefined while there is no configuration. */
  networkChanged?(): Promise<readonly RefusedItem[] | undefined>;
  /** Puts the machine back as it was and closes the device. Idempotent. */
  close(): Promise<void>;
}

export class Machine {
  /** Packets dropped, by reason. */
  readonly drops: Float64Array = new Float64Array(DROP_REASON_NAMES.length);
  readonly #host: ClientHost | undefined;
  readonly #log: Logger;
  readonly #batch = new SendBatch();
  #device: TunDevice | undefined;
  #buffers: PacketBufferPool | undefined;
  #link: TunnelLink | undefined;
  /** The session that `#link` is for. */
  #linked: AcceptMessage | undefined;
  /** Of the session that is being left for one at another server. */
  #leaving: TunnelLink | undefined;
  #applied: Promise<void> = Promise.resolve();
  #carried = { sentBytes: 0, receivedBytes: 0 };
  #refused: readonly RefusedItem[] = [];

  /** @param host without one no packets are carried */
  constructor(host: ClientHost | undefined, log: Logger) {
    this.#host = host;
    this.#log = log;
  }

  /** @throws {VpnError} as the host's `open` */
  async open(): Promise<void> {
    const device = await this.#host?.open();
    if (device === undefined) return;
    this.#device = device;
    this.#buffers = new PacketBufferPool(device);
    device.start(this.#reader);
  }

  get device(): TunDevice | undefined {
    return this.#device;
  }

  /** The session that the machine is fitted to. */
  get linked(): AcceptMessage | undefined {
    return this.#linked;
  }

  /** What the host left out of the present configuration. */
  get refused(): readonly RefusedItem[] {
    return this.#refused;
  }

  /** Bytes of packets of all sessions so far. */
  get carried(): { readonly sentBytes: number; readonly receivedBytes: number } {
    const { sentBytes = 0, receivedBytes = 0 } = this.#link?.counters ?? {};
    return {
      sentBytes: this.#carried.sentBytes + sentBytes,
      receivedBytes: this.#carried.receivedBytes + receivedBytes,
    };
  }

  /**
   * Fits the machine to a configuration. Called for the first CONFIG of a session and for every later one, which keeps the link;
   * one of the session that is being left changes nothing.
   *
   * @throws {VpnError} as the host's `apply`
   */
  async fit(config: AcceptedConfig, accepted: AcceptMessage): Promise<TunnelLink | undefined> {
    const host = this.#host;
    const device = this.#device;
    const buffers = this.#buffers;
    if (host === undefined || device === undefined || buffers === undefined) return undefined;
    if (this.#leaving !== undefined && accepted !== this.#linked) return this.#leaving;
    const applied = this.#applied.then(async () => {
      this.#refused = await host.apply(config);
    });
    this.#applied = applied.catch(() => {});
    await applied;
    if (this.#linked === accepted) {
      this.#carry(config);
      return this.#link;
    }
    this.#leaving = this.#link;
    this.#linked = accepted;
    const { features } = accepted;
    if (features.includes(Feature.ethernet)) {
      const receive = (buffer: PacketBuffer, length: number): boolean => device.write(buffer, length, NO_OFFLOAD);
      this.#link = new EthernetLink({ buffers, batch: this.#batch, drops: this.drops, receive });
      return this.#link;
    }
    const { v4, v6 } = config.addresses;
    this.#link = new PacketLink({
      device,
      buffers,
      batch: this.#batch,
      lease: { ...(v4 === undefined ? {} : { v4: v4.address }), ...(v6 === undefined ? {} : { v6: v6.address }) },
      ownAddress: 'destination',
      superPackets: features.includes(Feature.superPackets),
      compression: features.includes(Feature.compression),
      limits: { mtu: config.mtu, uso: device.uso && features.includes(Feature.udpSuperPackets) },
      drops: this.drops,
    });
    this.#carry(config);
    return this.#link;
  }

  /** Packets to the networks behind this machine are taken, too. */
  #carry({ networks }: AcceptedConfig): void {
    if (this.#link instanceof PacketLink) this.#link.setNetworks(networks.map(({ seenAs }) => seenAs));
  }

  /** What stays local is judged again where the machine has come to. */
  judgeNetworks(): void {
    const host = this.#host;
    if (host?.networkChanged === undefined) return;
    const judged = this.#applied.then(async () => {
      this.#refused = (await host.networkChanged?.()) ?? this.#refused;
    });
    this.#applied = judged.catch((error: unknown) => {
      this.#log.warn('the tunnel could not be fitted to the changed network', { error });
    });
  }

  /** The session that was being left is over: the other one is the only one. */
  left(): void {
    this.#count(this.#leaving);
    this.#leaving = undefined;
  }

  /** There is no session. */
  forget(): void {
    this.left();
    this.#count(this.#link);
    this.#link = undefined;
  }

  /** Puts the machine back; what is being applied does not come after what takes it back. @throws {VpnError} ERR_HOST_APPLY */
  async close(): Promise<void> {
    await this.#applied;
    await this.#host?.close();
  }

  /** One reader for the life of the device: sessions come and go behind it. */
  readonly #reader: TunReader = {
    packet: (bytes, length, gsoType, flags, gsoSize) => this.#link?.send(bytes, length, gsoType, flags, gsoSize),
    idle: () => this.#batch.flush(),
  };

  #count(link: TunnelLink | undefined): void {
    this.#carried.sentBytes += link?.counters.sentBytes ?? 0;
    this.#carried.receivedBytes += link?.counters.receivedBytes ?? 0;
  }
}
