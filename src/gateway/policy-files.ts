/**
 * Reading the policy file of a gateway.
 *
 * Hides the file system: auth, which may not reach files any more, gets the text from the supervisor.
 */

import { open } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import type { GatewayConfig } from './config.ts';

const MAX_BYTES = 8 * 1024 * 1024;

/** Where the text of a policy comes from. */
export interface PolicyFiles {
  /**
   * The text of the file that a configuration names; undefined: it names none.
   *
   * @throws {VpnError} ERR_CONFIG_FILE
   */
  readPolicy(config: GatewayConfig): Promise<string | undefined>;
}

/** From the files themselves. */
export const policyFiles: PolicyFiles = {
  readPolicy: async ({ policyFile }) => (policyFile === undefined ? undefined : await readPolicyFile(policyFile)),
};

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
