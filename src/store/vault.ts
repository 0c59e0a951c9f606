/**
 * Seals what a stolen database must not give away.
 *
 * Hides `master.key` and the sealed form (docs/protocol.md §14):
 *
 *     u8 version (1) ‖ nonce (12) ‖ AES-256-GCM ciphertext ‖ tag (16)
 *
 * Each purpose has a key of its own, HKDF-SHA-256(master, info "customvpn/1 seal " ‖ purpose), and the context (the row a
 * value belongs to) is authenticated: a sealed value copied to another row or column does not open. It must not know the
 * tables.
 */

import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isVpnError, VpnError } from '../base/errors.ts';
import { freshBytes } from '../base/primitives.ts';
import { makePrivateFolder, writePrivateFile } from '../base/private-file.ts';

const VERSION = 1;
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const HEADER_BYTES = 1 + NONCE_BYTES;

export class Vault {
  readonly #master: Uint8Array;
  readonly #keys = new Map<string, Uint8Array>();

  /** @param master 32 random bytes; copied */
  constructor(master: Uint8Array) {
    if (master.length !== KEY_BYTES) throw new VpnError('ERR_INVARIANT', 'a master key has 32 bytes');
    this.#master = Uint8Array.from(master);
  }

  /**
   * Reads the master key, making it (mode 0600) when there is none and there need not be one.
   *
   * @throws {VpnError} ERR_STORE when it is not a key, is gone, or others may read it; ERR_SYSCALL
   */
  static async open(path: string, { mustExist = false }: { mustExist?: boolean } = {}): Promise<Vault> {
    const present = await readKey(path);
    if (present !== undefined) return new Vault(present);
    // With another key, nothing that was sealed opens: nobody with a one-time code could log in.
    if (mustExist) {
      throw new VpnError(
        'ERR_STORE',
        `${path} is gone: put your copy back; without one begin with a new key (umask 077; head -c ${KEY_BYTES} /dev/urandom > ${path}) ` +
          'and give users new one-time codes (customvpn user totp NAME)',
        { details: { path } },
      );
    }
    await makePrivateFolder(dirname(path));
    const fresh = randomBytes(KEY_BYTES);
    try {
      await writePrivateFile(path, fresh, { when: 'create' });
      return new Vault(fresh);
    } catch (error) {
      // Another process made it first, and may have sealed with it already.
      const theirs = isVpnError(error, 'ERR_CONFLICT') ? await readKey(path) : undefined;
      if (theirs === undefined) throw error;
      return new Vault(theirs);
    }
  }

  /**
   * Encrypts and authenticates bytes.
   *
   * @param purpose what kind of value this is, a constant such as `session resume`
   * @param context which one it is, such as the row's id
   */
  seal(purpose: string, context: string, plain: Uint8Array): Uint8Array {
    const nonce = freshBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', this.#key(purpose), nonce, { authTagLength: TAG_BYTES });
    cipher.setAAD(associated(context));
    return Buffer.concat([Uint8Array.of(VERSION), nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
  }

  /**
   * The reverse of `seal`, with the same purpose and context.
   *
   * @throws {VpnError} ERR_STORE when anything differs: the key, the purpose, the context or a bit of `sealed`
   */
  unseal(purpose: string, context: string, sealed: Uint8Array): Uint8Array {
    if (sealed.length < HEADER_BYTES + TAG_BYTES || sealed[0] !== VERSION) throw notOurs(purpose);
    const end = sealed.length - TAG_BYTES;
    const decipher = createDecipheriv('aes-256-gcm', this.#key(purpose), sealed.subarray(1, HEADER_BYTES), {
      authTagLength: TAG_BYTES,
    });
    decipher.setAAD(associated(context));
    decipher.setAuthTag(sealed.subarray(end));
    const plain = decipher.update(sealed.subarray(HEADER_BYTES, end));
    try {
      decipher.final();
    } catch {
      plain.fill(0);
      throw notOurs(purpose);
    }
    return plain;
  }

  /** A secret of its own for a purpose, 32 bytes, the same as long as the master key is. */
  secret(purpose: string): Uint8Array {
    return this.#key(`secret ${purpose}`);
  }

  #key(purpose: string): Uint8Array {
    let key = this.#keys.get(purpose);
    if (key === undefined) {
      key = new Uint8Array(hkdfSync('sha256', this.#master, '', `customvpn/1 seal ${purpose}`, KEY_BYTES));
      this.#keys.set(purpose, key);
    }
    return key;
  }
}

function associated(context: string): Uint8Array {
  return Buffer.from(context, 'utf8');
}

function notOurs(purpose: string): VpnError {
  return new VpnError(
    'ERR_STORE',
    `a sealed value (${purpose}) does not open: it was changed, or master.key is not the one it was sealed with`,
    { details: { purpose } },
  );
}

async function readKey(path: string): Promise<Uint8Array | undefined> {
  let bytes: Uint8Array;
  let mode: number;
  try {
    mode = (await stat(path)).mode;
    bytes = await readFile(path);
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    if (errno === 'ENOENT') return undefined;
    throw new VpnError('ERR_STORE', `cannot read the master key ${path}: ${String(errno)}`, {
      cause,
      details: { path, errno },
    });
  }
  if ((mode & 0o077) !== 0) {
    throw new VpnError('ERR_STORE', `others may read the master key ${path}; run: chmod 600 ${path}`, {
      details: { path },
    });
  }
  if (bytes.length !== KEY_BYTES) {
    throw new VpnError('ERR_STORE', `${path} is not a master key: expected 32 bytes, found ${bytes.length}`, {
      details: { path },
    });
  }
  return bytes;
}
