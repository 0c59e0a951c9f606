/**
 * How commands get secrets: asked in a terminal, unseen, or read from standard input. Never from arguments.
 *
 * Hides the prompt library and the difference between a person and a pipe. Prompts go to standard error, so that standard
 * output stays the command's result.
 */

import { isCancel, password as promptPassword, text as promptText } from '@clack/prompts';
import { VpnError } from '../base/errors.ts';
import type { CredentialSource } from './host.ts';

const MAX_LINES_BYTES = 16 * 1024;

/** Whether there is somebody to ask. */
export function isInteractive(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true;
}

/**
 * A password to be set: asked twice in a terminal, else the first line of standard input.
 *
 * @throws {VpnError} ERR_USAGE without one
 */
export async function newPassword(fromStdin: boolean): Promise<string> {
  if (fromStdin || !isInteractive()) {
    const [line = ''] = await readLines();
    if (line === '') throw new VpnError('ERR_USAGE', 'expected the password as the first line of standard input');
    return line;
  }
  const first = await ask('New password', true);
  if ((await ask('Once more', true)) === first) return first;
  throw new VpnError('ERR_USAGE', 'the two passwords differ; nothing was changed');
}

/** Asks in the terminal for what a login wants. */
export const askInTerminal: CredentialSource = async (request) => {
  const answers: Record<string, string> = {};
  for (const { kind, prompt } of request) {
    const message = prompt ?? { password: 'Password', totp: 'One-time code', token: 'Access token' }[kind];
    const answer = await ask(message, kind !== 'totp');
    answers[kind] = kind === 'totp' ? answer.replaceAll(/[\s-]/g, '').toLowerCase() : answer;
  }
  return answers;
};

/** Answers from standard input: the password on the first line, a one-time code on the second. */
export function answersFromStdin(): CredentialSource {
  let lines: Promise<string[]> | undefined;
  return async (request) => {
    lines ??= readLines();
    const [password = '', code] = await lines;
    const answers: Record<string, string> = {};
    for (const { kind } of request) {
      const answer = kind === 'totp' ? code : password;
      if (answer === undefined || answer === '') {
        throw new VpnError(
          'ERR_AUTH_NEEDED',
          `the login asks for a ${kind}, and standard input has none; give one a line`,
        );
      }
      answers[kind] = answer;
    }
    return answers;
  };
}

async function ask(message: string, isSecret: boolean): Promise<string> {
  const options = { message, output: process.stderr };
  const answer = isSecret ? await promptPassword(options) : await promptText(options);
  if (isCancel(answer)) throw new VpnError('ERR_USAGE', 'given up; nothing was changed');
  return answer ?? '';
}

async function readLines(): Promise<string[]> {
  let text = '';
  process.stdin.setEncoding('utf8');
  for await (const chunk of process.stdin as AsyncIterable<string>) {
    text += chunk;
    if (text.length > MAX_LINES_BYTES) throw new VpnError('ERR_USAGE', 'standard input is too long for a password');
  }
  return text.split('\n').map((line) => line.replace(/\r$/, ''));
}
