/**
 * How commands get secrets: asked in a terminal, unseen, or read from standard input. Never from arguments.
 *
 * Hides the prompt library and the difference between a person and a pipe. Prompts go to standard error, so that standard
 * output stays the command's result.
 */

import { isatty } from 'node:tty';
import { VpnError } from '../base/errors.ts';
import type { CredentialRequest, CredentialSource } from './host.ts';

const MAX_LINES_BYTES = 16 * 1024;
const MAX_INPUT_BYTES = 256 * 1024;

/** Whether there is somebody to ask. */
export function isInteractive(): boolean {
  // Not by `process.stdin`: to look at it is to read from it, and a command may be waiting for what there is to read.
  return isatty(0) && isatty(2);
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
  for (const step of request) {
    const { kind, prompt, echo = kind === 'totp' } = step;
    if (kind === 'oidc') {
      await showLogin(step);
      continue;
    }
    const message =
      prompt ?? { password: 'Password', totp: 'One-time code', token: 'Access token', ask: 'Answer' }[kind];
    const answer = await ask(message, !echo);
    answers[kind] = kind === 'totp' ? answer.replaceAll(/[\s-]/g, '').toLowerCase() : answer;
  }
  return answers;
};

/** Shows where to log in, and has no answer to anything else. @param advice what to do then */
export function showLogins(
  advice = 'run this in a terminal, or give it on standard input with --password-stdin',
): CredentialSource {
  return async (request) => {
    const [asked] = request.filter(({ kind }) => kind !== 'oidc');
    if (asked !== undefined) {
      const kinds = request.flatMap(({ kind }) => (kind === 'oidc' ? [] : [kind])).join(' and ');
      throw new VpnError('ERR_AUTH_NEEDED', `the login asks for a ${kinds}; ${advice}`);
    }
    for (const step of request) await showLogin(step);
    return {};
  };
}

/**
 * Answers from standard input: the password on the first line, a one-time code on the second, then, a line each, what else
 * is asked.
 */
export function answersFromStdin(): CredentialSource {
  let lines: Promise<string[]> | undefined;
  let next = 1;
  return async (request) => {
    const answers: Record<string, string> = {};
    for (const step of request) {
      const { kind } = step;
      if (kind === 'oidc') {
        await showLogin(step);
        continue;
      }
      lines ??= readLines();
      const given = await lines;
      if (kind === 'totp') next = Math.max(next, 2);
      const answer = kind === 'totp' ? given[1] : kind === 'ask' ? given[next++] : given[0];
      if (answer === undefined || answer === '') {
        throw new VpnError(
          'ERR_AUTH_NEEDED',
          `the login asks for ${kind === 'ask' ? 'an answer' : `a ${kind}`}, and standard input has none; give one a line`,
        );
      }
      answers[kind] = answer;
    }
    return answers;
  };
}

/** Where to log in, for people: on standard error, and for a telephone's camera where there is a terminal. */
export async function showLogin({ url = '', code = '', seconds = 0 }: CredentialRequest[number]): Promise<void> {
  const minutes = Math.max(1, Math.floor(seconds / 60));
  const drawn = process.stderr.isTTY === true ? `\n${await drawQr(url)}\n` : '';
  process.stderr.write(
    `To log in, open this page in any browser:\n\n  ${url}\n${drawn}\nIt must show the code, or asks for it:  ${code}\n` +
      `Waiting until that is done, ${minutes} min at most (Ctrl-C gives up)\n`,
  );
}

/** A QR code in characters. */
export async function drawQr(text: string, options: { ecc?: 'L' } = {}): Promise<string> {
  const { renderUnicodeCompact } = await import('uqr');
  return renderUnicodeCompact(text, { border: 2, ...options });
}

async function ask(message: string, isSecret: boolean): Promise<string> {
  const { isCancel, password, text } = await import('@clack/prompts');
  const options = { message, output: process.stderr };
  const answer = isSecret ? await password(options) : await text(options);
  if (isCancel(answer)) throw new VpnError('ERR_USAGE', 'given up; nothing was changed');
  return answer ?? '';
}

/** All of standard input, at most 256 KiB; in a terminal it is asked for. @throws {VpnError} ERR_USAGE */
export async function readStandardInput(prompt: string): Promise<string> {
  if (process.stdin.isTTY === true) process.stderr.write(`${prompt}\n`);
  let text = '';
  process.stdin.setEncoding('utf8');
  for await (const chunk of process.stdin as AsyncIterable<string>) {
    text += chunk;
    if (text.length > MAX_INPUT_BYTES) throw new VpnError('ERR_USAGE', 'standard input is too long for a profile');
  }
  return text;
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
