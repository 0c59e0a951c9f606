/**
 * A passkey in software: what an authenticator and a browser would say, and whatever else a test wants them to.
 */

import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';

const AAGUID = Buffer.alloc(16);
const UP = 0x01;
const UV = 0x04;
const AT = 0x40;

/** What the two sides believe of each other; a test changes one of it. */
export interface Scene {
  readonly challenge: string;
  readonly origin: string;
  readonly host: string;
  readonly type?: string;
  readonly flags?: number;
  readonly crossOrigin?: boolean;
}

export class SoftPasskey {
  readonly id = randomBytes(32);
  readonly publicKey: Buffer;
  count = 0;
  readonly #key: KeyObject;
  readonly #digest: string | null;

  constructor(kind: 'p256' | 'ed25519' | 'rsa' = 'p256') {
    const pair =
      kind === 'p256'
        ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
        : kind === 'rsa'
          ? generateKeyPairSync('rsa', { modulusLength: 2048 })
          : generateKeyPairSync('ed25519');
    this.#key = pair.privateKey;
    this.#digest = kind === 'ed25519' ? null : 'sha256';
    this.publicKey = pair.publicKey.export({ type: 'spki', format: 'der' });
  }

  /** What comes of making it. */
  made(scene: Scene) {
    const length = Buffer.alloc(2);
    length.writeUInt16BE(this.id.length);
    const head = this.#head(scene, UP | UV | AT);
    return {
      clientData: clientData(scene, 'webauthn.create'),
      // Where its key would follow, which nobody reads.
      authenticatorData: Buffer.concat([head, AAGUID, length, this.id, Buffer.from([0xa0])]),
      publicKey: this.publicKey,
    };
  }

  /** What comes of using it. */
  used(scene: Scene) {
    const data = clientData(scene, 'webauthn.get');
    const authenticatorData = this.#head(scene, UP | UV);
    const signed = Buffer.concat([authenticatorData, createHash('sha256').update(data).digest()]);
    return { id: this.id, clientData: data, authenticatorData, signature: sign(this.#digest, signed, this.#key) };
  }

  #head({ host, flags }: Scene, usual: number): Buffer {
    const rest = Buffer.alloc(5);
    rest[0] = flags ?? usual;
    rest.writeUInt32BE(this.count, 1);
    return Buffer.concat([createHash('sha256').update(host).digest(), rest]);
  }
}

/** As JSON can say it. */
export function inText<T extends Readonly<Record<string, Uint8Array>>>(parts: T): Record<keyof T, string> {
  const texts = Object.entries(parts).map(([name, bytes]) => [name, Buffer.from(bytes).toString('base64url')]);
  return Object.fromEntries(texts) as Record<keyof T, string>;
}

function clientData({ challenge, origin, type, crossOrigin = false }: Scene, usual: string): Buffer {
  return Buffer.from(JSON.stringify({ type: type ?? usual, challenge, origin, crossOrigin }));
}
