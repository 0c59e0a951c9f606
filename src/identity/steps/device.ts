/**
 * The `device` step: the client holds the private key of its device.
 *
 * At a login the key is the one in the store; at an enrolment it is the one in the message, which another step vouches
 * for. A signature is verified in any case, against a key that nobody holds when there is none to verify against.
 *
 * @see docs/protocol.md §5
 */

import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { nodePrimitives } from '../../base/primitives.ts';
import { deviceIdOf } from '../../protocol/keys.ts';
import type { DeviceAlgorithm } from '../../protocol/messages.ts';
import { prepare } from '../../store/prepared.ts';
import type { Store } from '../../store/store.ts';
import { DeviceKeys, verifyDeviceSignature } from '../devices.ts';
import type { Attempt, Finding, LoginStep, Subject } from './step.ts';

const findDevice = prepare((db, { device }: { device: string }) =>
  db
    .selectFrom('devices')
    .innerJoin('users', 'users.id', 'devices.user_id')
    .select(['devices.algorithm', 'devices.public_key', 'users.id as user_id', 'users.name as user'])
    .where('devices.id', '=', device),
);

export class DeviceStep implements LoginStep {
  readonly kind = 'device';
  readonly #store: Store;
  readonly #keys = new DeviceKeys();
  readonly #nobody: Readonly<Record<DeviceAlgorithm, { key: KeyObject; encoded: Uint8Array }>> = {
    p256: lostKey(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey),
    ed25519: lostKey(generateKeyPairSync('ed25519').publicKey),
  };

  constructor(store: Store) {
    this.#store = store;
  }

  async examine({ evidence, device }: Attempt): Promise<Finding> {
    const { rows } = await findDevice(this.#store.db, { device });
    const [row] = rows;
    const { algorithm } = evidence;
    const nobody = this.#nobody[algorithm];
    const encoded = evidence.purpose === 'enrol' ? evidence.publicKey : row?.public_key;
    const isSameAlgorithm = row === undefined || row.algorithm === algorithm;
    // A worker has compared id and key already, but it is not believed here.
    const isKnown = isSameAlgorithm && encoded !== undefined && deviceIdOf(nodePrimitives, encoded).toHex() === device;
    // Reading a key and verifying with it both take time that must not tell whether there was one.
    const key = this.#keys.read(device, algorithm, isKnown ? encoded : nobody.encoded);
    const signed = verifyDeviceSignature(algorithm, key ?? nobody.key, evidence.signedBytes, evidence.signature);
    if (key === undefined || !isKnown) {
      const reason = isSameAlgorithm ? 'the device is unknown or its key is none' : 'the device has another algorithm';
      return { refusal: { code: 'rejected', reason } };
    }
    const subject: Subject | undefined = row === undefined ? undefined : { id: row.user_id, name: row.user };
    return signed ? { subject } : { refusal: { code: 'rejected', reason: 'the device signature is wrong' } };
  }
}

/** A public key whose private half is gone. */
function lostKey(key: KeyObject): { key: KeyObject; encoded: Uint8Array } {
  return { key, encoded: key.export({ type: 'spki', format: 'der' }) };
}
