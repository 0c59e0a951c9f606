/**
 * The data plane of a worker that bridges Ethernet: its TAP device, its clients, and the switch between them.
 *
 * Hides that a frame may go to several places. What a client sends is judged by `ip/ethernet-switch` and goes to the device,
 * to another client or to everybody; what the device gives goes to the clients that it is for. Every drop is counted. Per
 * frame there is no allocation; a frame is copied only by the queues that it waits in.
 */

import { DropReason } from '../../ip/drop-reason.ts';
import { ANNOUNCEMENT_BYTES, stationMac, writeAnnouncement } from '../../ip/ethernet-station.ts';
import { EthernetSwitch, type SwitchOptions, Verdict } from '../../ip/ethernet-switch.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import { NO_OFFLOAD } from '../../ip/super-packet.ts';
import { PACKET_OFFSET, type PacketBuffer, type TunDevice, type TunReader } from '../../os/tun.ts';
import { EthernetLink } from '../../transport/ethernet-link.ts';
import { PacketBufferPool, type SendBatch } from '../../transport/packet-link.ts';

export interface EthernetPlaneOptions {
  device: TunDevice;
  switching: SwitchOptions;
  /** Whether clients use the addresses of their leases; else what they are given on the segment. */
  isLeased: boolean;
  batch: SendBatch;
  drops: Float64Array;
}

interface PlanePort {
  readonly number: number;
  readonly mac: Uint8Array;
  readonly lease: Lease | undefined;
}

export class EthernetPlane implements TunReader {
  readonly #options: EthernetPlaneOptions;
  readonly #buffers: PacketBufferPool;
  readonly #switch: EthernetSwitch;
  /** By port. */
  readonly #links: (EthernetLink | undefined)[] = [];
  readonly #ports = new Map<EthernetLink, PlanePort>();
  readonly #announcement: PacketBuffer;
  #announced = 0;

  constructor(options: EthernetPlaneOptions) {
    this.#options = options;
    this.#buffers = new PacketBufferPool(options.device);
    this.#switch = new EthernetSwitch(options.switching);
    this.#announcement = options.device.createBuffer();
  }

  /** Plain integers, read at scrape. */
  get counters(): Record<string, number> {
    const { macs, addresses } = this.#switch.sizes;
    return { ethernet_macs: macs, ethernet_addresses: addresses, ethernet_announcements: this.#announced };
  }

  start(): void {
    this.#options.device.start(this);
  }

  /** A client's place at the switch, with what its lease makes its own. */
  open(lease: Lease): EthernetLink {
    const { batch, drops, isLeased } = this.#options;
    const mac = stationMac(lease);
    const own = isLeased ? lease : undefined;
    const number = this.#switch.openPort({ mac, lease: own });
    const link = new EthernetLink({
      buffers: this.#buffers,
      batch,
      drops,
      receive: (buffer, length) => this.#fromClient(number, buffer, length),
    });
    this.#links[number] = link;
    this.#ports.set(link, { number, mac, lease: own });
    return link;
  }

  /** The client is gone, or at another worker. */
  close(link: EthernetLink): void {
    const port = this.#ports.get(link);
    if (port === undefined) return;
    this.#ports.delete(link);
    this.#links[port.number] = undefined;
    this.#switch.closePort(port.number);
  }

  /** Tells the segment where a client is: it may have been at another worker. */
  announce(link: EthernetLink): void {
    const port = this.#ports.get(link);
    if (port === undefined) return;
    const { lease } = port;
    const known =
      lease === undefined
        ? this.#switch.addressesOf(port.number)
        : [lease.v4, lease.v6].flatMap((address) => (address === undefined ? [] : [address.bytes]));
    for (const address of [new Uint8Array(0), ...known]) {
      const buffer = this.#announcement;
      buffer.bytes.fill(0, PACKET_OFFSET, PACKET_OFFSET + ANNOUNCEMENT_BYTES);
      const length = writeAnnouncement(buffer.bytes, PACKET_OFFSET, port.mac, address);
      this.#announced += 1;
      if (!this.#options.device.write(buffer, length, NO_OFFLOAD)) this.#drop(DropReason.tunRefused);
    }
  }

  /** Called about once a second. */
  handleTick(): void {
    this.#switch.handleTick();
  }

  packet(bytes: Uint8Array, length: number): void {
    const verdict = this.#switch.fromBridge(bytes, PACKET_OFFSET, length);
    if (verdict < 0) this.#drop(-verdict);
    else if (verdict === Verdict.everybody) this.#flood(bytes, length);
    else this.#links[verdict]?.send(bytes, length);
  }

  idle(): void {
    this.#options.batch.flush();
  }

  #fromClient(number: number, buffer: PacketBuffer, length: number): boolean {
    const verdict = this.#switch.fromClient(number, buffer.bytes, PACKET_OFFSET, length);
    if (verdict < 0) {
      this.#drop(-verdict);
      return false;
    }
    if (verdict === Verdict.everybody) this.#forwardToOthers(buffer.bytes, length, number);
    if (verdict !== Verdict.bridge && verdict !== Verdict.everybody) {
      this.#links[verdict]?.forward(buffer.bytes, length);
      return true;
    }
    if (this.#options.device.write(buffer, length, NO_OFFLOAD)) return true;
    this.#drop(DropReason.tunRefused);
    return false;
  }

  #flood(bytes: Uint8Array, length: number): void {
    const links = this.#links;
    for (let number = 0; number < links.length; number++) links[number]?.send(bytes, length);
  }

  #forwardToOthers(bytes: Uint8Array, length: number, sender: number): void {
    const links = this.#links;
    for (let number = 0; number < links.length; number++) {
      if (number !== sender) links[number]?.forward(bytes, length);
    }
  }

  #drop(reason: number): void {
    const { drops } = this.#options;
    drops[reason] = (drops[reason] ?? 0) + 1;
  }
}
