/**
 * What this process uses of the machine, without opening a file: a caged process may not.
 */

import { getHeapStatistics } from 'node:v8';

export interface ProcessUsage {
  /** The most memory that was in use at once, as the kernel counts it. */
  readonly peak_bytes: number;
  /** Of JavaScript objects, and outside of their heap. */
  readonly heap_bytes: number;
  readonly external_bytes: number;
  /** Processor time, user and system. */
  readonly cpu_seconds: number;
}

export function processUsage(): ProcessUsage {
  const { used_heap_size: heap, external_memory: external } = getHeapStatistics();
  const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();
  return {
    peak_bytes: maxRSS * 1024,
    heap_bytes: heap,
    external_bytes: external,
    cpu_seconds: (userCPUTime + systemCPUTime) / 1e6,
  };
}
