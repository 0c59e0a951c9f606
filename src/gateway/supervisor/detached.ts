/**
 * The supervisor of a gateway that leaves its host alone: devices of the caller's, or none.
 *
 * For a gateway inside another program or a test. It opens the listening socket and nothing else.
 */

import { MemoryTun } from '../../os/tun-memory.ts';
import type { GatewayConfig } from '../config.ts';
import type { HostReport } from '../ipc/ports.ts';
import type { WorkerDevices } from '../worker/worker.ts';
import { openGatewaySocket, type Supervisor } from './supervisor.ts';

export class DetachedSupervisor implements Supervisor {
  readonly devices: WorkerDevices;
  readonly congestion: string;
  readonly port: number;
  readonly #socket: ReturnType<typeof openGatewaySocket>;
  readonly #ownsDevices: boolean;

  private constructor(devices: WorkerDevices | undefined, config: GatewayConfig) {
    this.#socket = openGatewaySocket(config);
    this.congestion = this.#socket.congestion;
    this.port = this.#socket.port;
    this.#ownsDevices = devices === undefined;
    this.devices = devices ?? { primary: discardingTun(config) };
  }

  /** @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_CONFIG_VALUE */
  static open(options: { config: GatewayConfig; devices: WorkerDevices | undefined }): DetachedSupervisor {
    return new DetachedSupervisor(options.devices, options.config);
  }

  takeListenSocket(): number {
    return this.#socket.take();
  }

  async update(): Promise<void> {}

  async place(): Promise<void> {}

  async unplace(): Promise<void> {}

  async report(): Promise<HostReport> {
    return { counters: {}, warnings: [] };
  }

  async close(): Promise<void> {
    this.#socket.close();
    if (this.#ownsDevices) await this.devices.primary.close();
  }
}

/** Takes packets and forgets them. */
function discardingTun(config: GatewayConfig): MemoryTun {
  const tun = new MemoryTun({ name: 'none', mtu: config.mtu });
  tun.onWritten = () => {};
  return tun;
}
