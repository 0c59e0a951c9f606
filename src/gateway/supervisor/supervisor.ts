/**
 * The privileged part of a gateway in one process: its host, with the devices of its one worker.
 *
 * Hides that a device is a descriptor which this process uses itself.
 */

import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { Lease, LeasePool } from '../../ip/lease-pool.ts';
import { closeFd } from '../../os/socket.ts';
import { tunOf } from '../../os/tun-linux.ts';
import type { GatewayConfig } from '../config.ts';
import type { AdmittedLease, Enforcement, HostReport, Place, SupervisorPort } from '../ipc/ports.ts';
import type { WorkerDevices } from '../worker/worker.ts';
import { openDeniedLog } from './host.ts';
import { openHost, type WorkerHost } from './open-host.ts';

/** What a gateway in one process needs of its privileged part. */
export interface Supervisor extends SupervisorPort {
  readonly devices: WorkerDevices;
  readonly port: number;
  /** The congestion control in force on the listening socket. */
  readonly congestion: string;
  /** The listening socket; whoever takes it closes it. */
  takeListenSocket(): number;
  /** What shows packets that the policy denies; undefined: nothing does. Open as long as the supervisor. */
  readonly deniedLog?: number | undefined;
  close(): Promise<void>;
}

export class HostSupervisor implements Supervisor {
  readonly devices: WorkerDevices;
  readonly #host: WorkerHost;
  readonly deniedLog: number | undefined;
  #socket: number | undefined;

  private constructor(host: WorkerHost, deniedLog: number | undefined) {
    this.#host = host;
    this.deniedLog = deniedLog;
    const { socket, primary, plain } = host.take(0);
    this.#socket = socket;
    this.devices = { primary: tunOf(primary), plain: plain === undefined ? undefined : tunOf(plain) };
  }

  /**
   * Takes back what a crashed gateway left, then opens and configures everything; on an error nothing stays.
   *
   * @param options.stateDir where the journal of changes lives; a temporary folder for a gateway without state
   * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_UNSUPPORTED
   */
  static async open(options: {
    config: GatewayConfig;
    pool: LeasePool;
    stateDir: string | undefined;
    log: Logger;
  }): Promise<HostSupervisor> {
    await using undo = new AsyncDisposableStack();
    const host = undo.adopt(await openHost({ ...options, workers: 1 }), (opened) => opened.close());
    await host.configure();
    undo.move();
    return new HostSupervisor(host, openDeniedLog(options.log));
  }

  get port(): number {
    return this.#host.port;
  }

  get congestion(): string {
    return this.#host.congestion;
  }

  takeListenSocket(): number {
    const fd = this.#socket;
    if (fd === undefined) throw new VpnError('ERR_INVARIANT', 'the listening socket has been taken');
    this.#socket = undefined;
    return fd;
  }

  place(lease: Lease, worker: number, place: Place): Promise<void> {
    return this.#host.place(lease, worker, place);
  }

  unplace(lease: Lease): Promise<void> {
    return this.#host.unplace(lease);
  }

  update(config: GatewayConfig): Promise<void> {
    return this.#host.update(config);
  }

  takeBack(former: GatewayConfig): Promise<void> {
    return this.#host.update(former);
  }

  reloaded(): void {}

  enforce(enforcement: Enforcement | undefined): Promise<void> {
    return this.#host.enforce(enforcement);
  }

  admit(entries: readonly AdmittedLease[]): Promise<void> {
    return this.#host.admit(entries);
  }

  dismiss(lease: Lease): Promise<void> {
    return this.#host.dismiss(lease);
  }

  report(): Promise<HostReport> {
    return this.#host.report();
  }

  async close(): Promise<void> {
    await using undo = new AsyncDisposableStack();
    undo.defer(() => this.devices.plain?.close());
    undo.defer(() => this.devices.primary.close());
    undo.defer(() => this.#host.close());
    for (const fd of [this.#socket, this.deniedLog]) if (fd !== undefined) closeFd(fd);
    this.#socket = undefined;
  }
}
