/**
 * Descriptors that the supervisor gives to auth and to workers, and what each is for.
 *
 * Hides the few bytes that come with each. Like `messages.ts` it is the whole list: nothing else is given. Only the supervisor has
 * the sending ends of these sockets.
 */

import { VpnError } from '../../base/errors.ts';

const NAMES = ['auth', 'listen', 'primary', 'plain', 'dialled', 'from', 'to'] as const;

/** What a worker gets. */
export type WorkerDescriptor =
  /** Its channel to auth, its listening socket, its devices; and the way by which auth gives the connections that it has made. */
  | { readonly use: 'auth' | 'listen' | 'primary' | 'plain' | 'dialled' }
  /** The way by which that worker gives connections to this one; the way by which this one gives them to that worker. */
  | { readonly use: 'from' | 'to'; readonly worker: number };

/** u8 use ‖ u8 worker, 0 where there is none. */
export function encodeWorkerDescriptor(descriptor: WorkerDescriptor): Uint8Array {
  return Uint8Array.of(NAMES.indexOf(descriptor.use), 'worker' in descriptor ? descriptor.worker : 0);
}

/** @throws {VpnError} ERR_INVARIANT: the sender is this very program */
export function decodeWorkerDescriptor(bytes: Uint8Array): WorkerDescriptor {
  const [index = -1, worker] = bytes;
  const use = NAMES[index];
  if (use === undefined || worker === undefined || bytes.length !== 2) {
    throw new VpnError('ERR_INVARIANT', `a descriptor came for an unknown use (${index})`);
  }
  return use === 'from' || use === 'to' ? { use, worker } : { use };
}

/** What auth gets, for each worker that joins: the way by which that worker gets connections, then its channel. */
export interface Newcomer {
  readonly worker: number;
  /** Process id, with the channel; undefined: this is the way. */
  readonly pid: number | undefined;
}

/** u8 worker, and with a channel u32 process id, big-endian. */
export function encodeNewcomer({ worker, pid }: Newcomer): Uint8Array {
  const bytes = Buffer.alloc(pid === undefined ? 1 : 5);
  bytes.writeUInt8(worker);
  if (pid !== undefined) bytes.writeUInt32BE(pid, 1);
  return bytes;
}

export function decodeNewcomer(bytes: Uint8Array): Newcomer {
  const packet = Buffer.from(bytes);
  return { worker: packet.readUInt8(), pid: packet.length < 5 ? undefined : packet.readUInt32BE(1) };
}
