/**
 * Runs a program to its end and keeps what it wrote, for tests.
 */

import { spawn } from 'node:child_process';

export interface Outcome {
  /** Null when a signal ended it. */
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly pid: number | undefined;
}

export interface RunOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Called once with the child, for instance to signal it. */
  readonly started?: (child: { kill(signal: NodeJS.Signals): boolean }, output: NodeJS.ReadableStream) => void;
}

/** Runs `command` with its standard input closed. Rejects only when it cannot be started. */
export function runProgram(command: string, args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      ...(options.env === undefined ? {} : { env: options.env }),
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.once('error', reject);
    child.once('close', (status, signal) => resolve({ status, signal, stdout, stderr, pid: child.pid }));
    options.started?.(child, child.stdout);
  });
}
