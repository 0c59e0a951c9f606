/**
 * A program that restricts the files that it can reach and then becomes another one, with the same process id and descriptors.
 *
 *   confine.ts '{"files":{"read":[…],"write":[…],"execute":[…]},"descriptors":[3,4]}' PROGRAM [ARGUMENT…]
 *
 * The kernel restricts a thread, not a process: of this one no other thread lives on. See `launcher.ts`.
 */

import { nativeCalls } from './ffi.ts';
import { type FileAccess, restrictFiles } from './landlock.ts';

const [orders = '', program = '', ...args] = process.argv.slice(2);
const { files, descriptors } = JSON.parse(orders) as { files: FileAccess; descriptors: readonly number[] };

const F_SETFD = 2;
// Node has marked what it inherited to be closed.
for (const fd of descriptors) nativeCalls().fcntl(fd, F_SETFD, 0n);
// Where the kernel has no Landlock, whoever starts programs has said so.
restrictFiles(files);
process.execve?.(program, [program, ...args], process.env);
