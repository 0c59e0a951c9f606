/** How long this process has waited for a processor: what a busy machine, and not the process, is to blame for. */

import { readFileSync } from 'node:fs';

/** Milliseconds that the main thread has been ready and did not run, since it began; 0 where the kernel does not say. */
export function waitedForProcessorMs(): number {
  let text: string;
  try {
    text = readFileSync('/proc/self/schedstat', 'utf8');
  } catch {
    return 0;
  }
  return Number(text.split(' ')[1]) / 1e6;
}
