/**
 * The supervisor of a gateway that leaves its host alone: devices of the caller's, or none.
 *
 * For a gateway inside another program or a test. It opens the listening socket and nothing else.
 */

import { VpnError } from '../../base/errors.ts';
import { closeFd } from '../../os/socket.ts';
import { MemoryTun } from '../../os/tun-memory.ts';
import type { GatewayConfig } from '../config.ts';
import type { HostReport } from '../ipc/ports.ts';
import type { WorkerDevices } from '../worker/worker.ts';
import { openGatewaySocket } from './host.ts';
import type { Supervisor } from './supervisor.ts';

export class DetachedSupervisor implements Supervisor {
  readonly devices: WorkerDevices;
  readonly congestion: string;
  readonly port: number;
  #socket: number | undefined;
  readonly #ownsDevices: boolean;

  private constructor(devices: WorkerDevices | undefined, config: GatewayConfig) {
    const { fd, port, congestion } = openGatewaySocket(config, { port: config.port, shared: false });
    this.#socket = fd;
    this.congestion = congestion;
    this.port = port;
    this.#ownsDevices = devices === undefined;
    this.devices = devices ?? { primary: discardingTun(config) };
  }

  /** @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_CONFIG_VALUE */
  static open(options: { config: GatewayConfig; devices: WorkerDevices | undefined }): DetachedSupervisor {
    return new DetachedSupervisor(options.devices, options.config);
  }

  takeListenSocket(): number {
    const fd = this.#socket;
    if (fd === undefined) throw new VpnError('ERR_INVARIANT', 'the listening socket has been taken');
    this.#socket = undefined;
    return fd;
  }

  async update(): Promise<void> {}

  async takeBack(): Promise<void> {}

  reloaded(): void {}

  async place(): Promise<void> {}

  async unplace(): Promise<void> {}

  async enforce(): Promise<void> {}

  async admit(): Promise<void> {}

  async dismiss(): Promise<void> {}

  async report(): Promise<HostReport> {
    return { counters: {}, warnings: [] };
  }

  async close(): Promise<void> {
    if (this.#socket !== undefined) closeFd(this.#socket);
    this.#socket = undefined;
    if (this.#ownsDevices) await this.devices.primary.close();
  }
}

/** Takes packets and forgets them. */
function discardingTun(config: GatewayConfig): MemoryTun {
  const tun = new MemoryTun({ name: 'none', mtu: config.mtu });
  tun.onWritten = () => {};
  return tun;
}
