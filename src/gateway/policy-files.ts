/**
 * Reading and replacing the policy file of a gateway.
 *
 * Hides the file system: auth, which may not reach files any more, has the supervisor do it.
 */

import { createHash, randomBytes } from 'node:crypto';
import { open, readFile, realpath, rename, rm, stat } from 'node:fs/promises';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { Policy } from '../policy/policy.ts';
import type { GatewayConfig } from './config.ts';

const MAX_BYTES = 8 * 1024 * 1024;
const MODE_BITS = 0o7777;

/** A policy with the text that it was read from. */
export interface PolicyText {
  readonly policy: Policy;
  readonly text: string;
  /** Of the file it is for. */
  readonly file: string;
}

/** Where the text of a policy comes from, and goes to. */
export interface PolicyFiles {
  /**
   * The text of the file that a configuration names; undefined: it names none.
   *
   * @throws {VpnError} ERR_CONFIG_FILE
   */
  readPolicy(config: GatewayConfig): Promise<string | undefined>;
  /**
   * The policy that is judged next is of this text, which stands in no file yet.
   *
   * @throws {VpnError} ERR_PRIVILEGE where the configuration forbids it
   */
  offerPolicy(text: string): Promise<void>;
  /**
   * Puts a policy into the file that the configuration in force names.
   *
   * @param replaces SHA-256 of what must stand there now, hexadecimal
   * @throws {VpnError} ERR_CONFLICT when something else stands there; ERR_CONFIG_FILE, ERR_PRIVILEGE
   */
  savePolicy(policy: PolicyText, replaces: string): Promise<void>;
}

/** From the files themselves. */
export const policyFiles: PolicyFiles = {
  readPolicy: async ({ policyFile }) => (policyFile === undefined ? undefined : await readPolicyFile(policyFile)),
  offerPolicy: async () => {},
  savePolicy: async ({ file, text }, replaces) => await replacePolicyFile(file, text, replaces),
};

/** Whether operators may change the policy by the control API. */
export function mayEditPolicy({ admin }: GatewayConfig): boolean {
  return admin.editPolicy ?? admin.listen !== undefined;
}

/** SHA-256 of a policy's text, hexadecimal. */
export function policyDigest(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** @throws {VpnError} ERR_CONFIG_FILE when it cannot be read, or is too long for a policy */
export async function readPolicyFile(path: string): Promise<string> {
  try {
    await using file = await open(path, 'r');
    const { size } = await file.stat();
    if (size > MAX_BYTES) throw new Error(`it has ${size} bytes, at most ${MAX_BYTES} were expected`);
    return await file.readFile('utf8');
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? (cause instanceof Error ? cause.message : String(cause));
    throw new VpnError('ERR_CONFIG_FILE', `policyFile: cannot read ${path}: ${why}`, { cause, details: { path } });
  }
}

/**
 * Replaces a policy file as a whole, with its owner and mode, also behind a link.
 *
 * @param replaces SHA-256 of what must stand there, hexadecimal
 * @throws {VpnError} ERR_CONFLICT when something else does; ERR_CONFIG_FILE when it cannot be written
 */
export async function replacePolicyFile(path: string, text: string, replaces: string): Promise<void> {
  let made: string | undefined;
  try {
    const target = await realpath(path);
    if (policyDigest(await readFile(target, 'utf8')) !== replaces) {
      throw new VpnError(
        'ERR_CONFLICT',
        `${path} has been changed since the gateway read it; read it again (customvpn server reload), then repeat`,
      );
    }
    const { uid, gid, mode } = await stat(target);
    made = `${target}.${randomBytes(6).toString('hex')}`;
    {
      await using file = await open(made, 'wx', 0o600);
      await file.chown(uid, gid);
      await file.chmod(mode & MODE_BITS);
      await file.writeFile(text);
      await file.sync();
    }
    await rename(made, target);
  } catch (cause) {
    if (made !== undefined) await rm(made, { force: true });
    const error = toVpnError(cause);
    if (error.code === 'ERR_CONFLICT') throw error;
    const why = (cause as NodeJS.ErrnoException).code ?? error.message;
    throw new VpnError('ERR_CONFIG_FILE', `policyFile: cannot write ${path}: ${why}`, { cause, details: { path } });
  }
}
