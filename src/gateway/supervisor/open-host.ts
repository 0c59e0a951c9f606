/** What the processes of a gateway need of its host, and which host that is: one that routes packets or one that bridges Ethernet. */

import type { SupervisorPort } from '../ipc/ports.ts';
import { isBridging } from '../tap-config.ts';
import { BridgeHost } from './bridge-host.ts';
import { GatewayHost, type GatewayHostOptions, type WorkerDescriptors } from './host.ts';

export interface WorkerHost extends Omit<SupervisorPort, 'takeBack' | 'reloaded'> {
  readonly port: number;
  /** The congestion control in force on the listening sockets. */
  readonly congestion: string;
  /** By number of the worker. */
  readonly workers: readonly WorkerDescriptors[];
  /** Hands the descriptors of a worker over: whoever takes them closes them, after `close`. */
  take(worker: number): WorkerDescriptors;
  /** Refuses whoever comes to a worker's socket: the kernel gives new connections to those of the others. Idempotent. */
  closeSocket(worker: number): void;
  /** All addresses go where their share says again. @throws {VpnError} ERR_HOST_APPLY */
  unplaceAll(): Promise<void>;
  /** Makes the host ready. @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE */
  configure(): Promise<void>;
  /** Takes everything back, and closes what nobody has taken. */
  close(): Promise<void>;
}

/** @throws {VpnError} as `GatewayHost.open` and `BridgeHost.open` */
export function openHost(options: GatewayHostOptions): Promise<WorkerHost> {
  return isBridging(options.config) ? BridgeHost.open(options) : GatewayHost.open(options);
}
