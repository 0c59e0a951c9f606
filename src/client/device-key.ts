/**
 * The device's key: made on this machine at first use, stored for its owner only, never sent.
 *
 * Hides the file and the algorithm. Everyone else sees a public key, the id that follows from it and a `sign` function.
 *
 * @see docs/protocol.md#REQ-DEVICE-001
 */

import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import { writePrivateFile } from '../base/private-file.ts';

const DEVICE_ID_BYTES = 16;

/** A private key that signs for one device. */
export class DeviceKey {
  readonly algorithm: 'p256' | 'ed25519';
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  /** The first 16 bytes of SHA-256 of `publicKey`. */
  readonly id: Uint8Array;
  readonly #key: KeyObject;

  private constructor(key: KeyObject, algorithm: 'p256' | 'ed25519') {
    this.#key = key;
    this.algorithm = algorithm;
    this.publicKey = createPublicKey(key).export({ type: 'spki', format: 'der' });
    this.id = createHash('sha256').update(this.publicKey).digest().subarray(0, DEVICE_ID_BYTES);
  }

  /** A new P-256 key that lives only in memory. */
  static generate(): DeviceKey {
    return new DeviceKey(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey, 'p256');
  }

  /**
   * Reads a key from PEM text (PKCS #8).
   *
   * @throws {VpnError} ERR_CERT_FILE when it is no P-256 or Ed25519 private key
   */
  static parse(pem: string, name = 'the device key'): DeviceKey {
    let key: KeyObject;
    try {
      key = createPrivateKey(pem);
    } catch (cause) {
      throw new VpnError('ERR_CERT_FILE', `${name}: expected a private key in PEM form`, { cause });
    }
    if (key.asymmetricKeyType === 'ed25519') return new DeviceKey(key, 'ed25519');
    if (key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1')
      return new DeviceKey(key, 'p256');
    throw new VpnError(
      'ERR_CERT_FILE',
      `${name}: expected a P-256 or Ed25519 key, got ${key.asymmetricKeyType ?? 'another kind'}`,
    );
  }

  /**
   * Opens the key stored at `path`, or makes one there (mode 0600).
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_SYSCALL
   */
  static async open(path: string): Promise<DeviceKey> {
    let pem: string;
    try {
      pem = await readFile(path, 'utf8');
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') {
        throw new VpnError('ERR_CERT_FILE', `cannot read ${path}: ${String((cause as NodeJS.ErrnoException).code)}`, {
          cause,
        });
      }
      const key = DeviceKey.generate();
      await writePrivateFile(path, key.toPem(), { when: 'create' });
      return key;
    }
    return DeviceKey.parse(pem, path);
  }

  /** The private key as PEM (PKCS #8); a secret. */
  toPem(): string {
    return this.#key.export({ type: 'pkcs8', format: 'pem' }).toString();
  }

  /** Signs: P-256 with SHA-256 as raw r‖s (64 bytes), or Ed25519. */
  sign(bytes: Uint8Array): Uint8Array {
    return this.algorithm === 'ed25519'
      ? sign(null, bytes, this.#key)
      : sign('sha256', bytes, { key: this.#key, dsaEncoding: 'ieee-p1363' });
  }
}
