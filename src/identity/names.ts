/**
 * Names of users, groups and client certificates, and labels: which texts are names, and when two are the same.
 *
 * A name is 1 to 64 characters in Unicode normal form C: letters and digits of any script, and `.` `_` `@` `+` `-` after
 * the first. No space, no control, direction or format character, and nothing that a file system or a log line could
 * take for something else.
 */

import { VpnError } from '../base/errors.ts';

const NAME = /^[\p{L}\p{N}][\p{L}\p{M}\p{N}._@+-]*$/u;
const MAX_CHARACTERS = 64;

/** The one form of a name, or undefined for a text that is none. */
export function normaliseName(text: string): string | undefined {
  // Normalising costs time by length, and a peer chooses the length.
  if (text.length > 4 * MAX_CHARACTERS) return undefined;
  const name = text.normalize('NFC');
  return NAME.test(name) && Array.from(name).length <= MAX_CHARACTERS ? name : undefined;
}

/**
 * The one form of a name that an operator gives.
 *
 * @param what what it names, for the message
 * @throws {VpnError} ERR_BAD_REQUEST
 */
export function parseName(what: string, text: string): string {
  const name = normaliseName(text);
  if (name !== undefined) return name;
  throw new VpnError(
    'ERR_BAD_REQUEST',
    `${JSON.stringify(text.slice(0, 80))} is no name for a ${what}: expected 1 to ${MAX_CHARACTERS} letters, digits or . _ @ + -, ` +
      'the first a letter or digit',
  );
}

/** Something people read and no program relies on: any letters, digits, punctuation and single spaces. */
const LABEL = /^[\p{L}\p{M}\p{N}\p{P}\p{S}]+(?: [\p{L}\p{M}\p{N}\p{P}\p{S}]+)*$/u;

/**
 * The one form of a label, such as what a device or token is called.
 *
 * @param what what it names, for the message
 * @throws {VpnError} ERR_BAD_REQUEST
 */
export function parseLabel(what: string, text: string): string {
  const label = text.length > 4 * MAX_CHARACTERS ? '' : text.normalize('NFC').trim();
  if (LABEL.test(label) && Array.from(label).length <= MAX_CHARACTERS) return label;
  throw new VpnError(
    'ERR_BAD_REQUEST',
    `${JSON.stringify(text.slice(0, 80))} is no name for a ${what}: expected 1 to ${MAX_CHARACTERS} printable characters`,
  );
}
