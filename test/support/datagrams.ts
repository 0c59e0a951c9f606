/** A UNIX datagram socket that receives, which Node has none of: the end of a service manager. */

import { checkResult, IoVector, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';

const AF_UNIX = 1;
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;

/** At a path, or with an abstract name that begins with `@`. */
export class Receiver implements Disposable {
  readonly #fd: number;
  readonly #memory = new NativeMemory(4096);
  readonly #vector = new IoVector();

  constructor(name: string) {
    const calls = nativeCalls();
    this.#fd = checkResult(calls.socket(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0), 'a receiver', 'socket');
    const bytes = Buffer.from(name.startsWith('@') ? `\0${name.slice(1)}` : `${name}\0`);
    const address = new NativeMemory(2 + bytes.length);
    address.view.setUint16(0, AF_UNIX, true);
    address.bytes.set(bytes, 2);
    checkResult(calls.bind(this.#fd, address.address, address.bytes.length), 'a receiver', 'bind');
    this.#vector.setBase(this.#memory.address);
    this.#vector.setLength(4096);
  }

  /** The next message, if one has come. */
  take(): string | undefined {
    const length = nativeCalls().readv(this.#fd, this.#vector.address, 1);
    return length < 0 ? undefined : Buffer.from(this.#memory.bytes.subarray(0, length)).toString();
  }

  [Symbol.dispose](): void {
    nativeCalls().close(this.#fd);
  }
}
