/**
 * System calls that the C library has no function for, by name.
 *
 * Hides their numbers, and `no_new_privs`, which those that restrict a process need first.
 */

import { checkResult, nativeCalls } from './ffi.ts';
import { isFilterArch, type SyscallName, syscallNumber } from './seccomp.ts';

const PR_SET_NO_NEW_PRIVS = 38;

/** The result of a call, as `NativeCalls`; undefined on an architecture whose numbers are not known. */
export function callByName(name: SyscallName, a = 0n, b = 0n, c = 0n, d = 0n): number | undefined {
  const number = isFilterArch(process.arch) ? syscallNumber(process.arch, name) : null;
  return number === null ? undefined : nativeCalls().syscall(BigInt(number), a, b, c, d);
}

/**
 * No program that this thread starts gains rights, for good.
 *
 * @throws {VpnError} ERR_SYSCALL
 */
export function setNoNewPrivileges(what: string): void {
  checkResult(nativeCalls().prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n), what, 'prctl PR_SET_NO_NEW_PRIVS');
}
