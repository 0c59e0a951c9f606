/** The supervisor, as auth in a process of its own reaches it. */

import type { Lease } from '../../ip/lease-pool.ts';
import type { GatewayConfig } from '../config.ts';
import type { CredentialFiles, CredentialKind, CredentialsConfig, CredentialTexts } from '../credential-files.ts';
import type { IpcChannel } from '../ipc/channel.ts';
import type { authToSupervisor, supervisorToAuth } from '../ipc/messages.ts';
import type { HostReport, Place, SupervisorPort } from '../ipc/ports.ts';

export class SupervisorLink implements SupervisorPort, CredentialFiles {
  readonly #channel: () => IpcChannel<typeof authToSupervisor, typeof supervisorToAuth>;

  /** The files of the certificates in force, and those that were read last. */
  #used: string | undefined;
  #read: string | undefined;

  constructor(channel: () => IpcChannel<typeof authToSupervisor, typeof supervisorToAuth>) {
    this.#channel = channel;
  }

  async place(lease: Lease, worker: number, place: Place): Promise<void> {
    await this.#channel().call('place', { lease, worker, place });
  }

  async unplace(lease: Lease): Promise<void> {
    await this.#channel().call('unplace', { lease });
  }

  /** The supervisor applies what it has read itself, by `readConfig`: nobody can have it open a way by saying so. */
  async update(): Promise<void> {
    await this.#channel().call('apply', {});
  }

  report(): Promise<HostReport> {
    return this.#channel().call('report', {});
  }

  readConfig(): Promise<GatewayConfig> {
    return this.#channel().call('readConfig', {});
  }

  async read(config: CredentialsConfig, what: CredentialKind): Promise<CredentialTexts> {
    const files = JSON.stringify([config.certFile, config.keyFile, config.caFile, config.crlFile]);
    this.#used ??= files;
    this.#read = files;
    const of = files === this.#used ? 'current' : 'next';
    const { pem, crlFile, stamp } = await this.#channel().call('readCredentials', { what, of });
    return { pem: { cert: pem.cert, key: pem.key, ca: pem.ca, crl: pem.crl }, crlFile, stamp };
  }

  async stamp(): Promise<string> {
    return (await this.#channel().call('stampOfLists', {})).stamp;
  }

  async useCredentials(what: CredentialKind): Promise<void> {
    await this.#channel().call('useCredentials', { what });
    this.#used = this.#read;
  }

  /** Another process is to take the place of this one, if it is still there; `isSilent`: it has closed its channel. */
  replace(worker: number, pid: number, isSilent: boolean): void {
    this.#channel().tell('replace', { worker, pid, isSilent });
  }

  async replaceWorkers(): Promise<number> {
    return (await this.#channel().call('replaceWorkers', {})).replaced;
  }

  stop(): void {
    this.#channel().tell('stop', {});
  }
}
