/**
 * Several commands of `ip` in one run.
 *
 * Hides `ip -batch` and how it says which of them failed. The program is started before these functions return.
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import { IP_WORD, runCommand } from './command.ts';

function batchText(lines: readonly (readonly string[])[]): string {
  for (const word of lines.flat()) {
    if (!IP_WORD.test(word)) throw new VpnError('ERR_INVARIANT', `${JSON.stringify(word)} is no word of an ip command`);
  }
  return lines.map((words) => `${words.join(' ')}\n`).join('');
}

/** Stops at the first command that fails. @throws {VpnError} ERR_HOST_APPLY naming it, ERR_PRIVILEGE, ERR_UNSUPPORTED */
export async function runIpBatch(lines: readonly (readonly string[])[]): Promise<void> {
  try {
    await runCommand('ip', ['-batch', '-'], batchText(lines));
  } catch (error) {
    const failure = toVpnError(error, 'ERR_HOST_APPLY');
    const line = /Command failed -:(\d+)/.exec(failure.message)?.[1];
    const command = line === undefined ? undefined : lines[Number(line) - 1];
    if (command === undefined) throw failure;
    const words = failure.message.replace(/ \| Command failed.*$/, '').replace(/^ip -batch -: /, '');
    throw new VpnError(failure.code, `ip ${command.join(' ')}: ${words}`, { cause: error, details: failure.details });
  }
}

/** Goes on after commands that fail. Returns what was said of each, by its line, the first being 1. */
export async function runIpBatchLeniently(lines: readonly (readonly string[])[]): Promise<Map<number, string>> {
  const failed = new Map<number, string>();
  const text = batchText(lines);
  if (text === '') return failed;
  try {
    await runCommand('ip', ['-force', '-batch', '-'], text);
  } catch (error) {
    const { code, details } = toVpnError(error, 'ERR_HOST_APPLY');
    if (code === 'ERR_UNSUPPORTED') throw error;
    let words: string[] = [];
    for (const said of String(details.stderr ?? '').split('\n')) {
      const line = /^Command failed -:(\d+)/.exec(said)?.[1];
      if (line === undefined) {
        words.push(said);
      } else {
        failed.set(Number(line), `ip ${lines[Number(line) - 1]?.join(' ')}: ${words.join(' ')}`);
        words = [];
      }
    }
    if (failed.size === 0) throw error;
  }
  return failed;
}
