/**
 * Tells the service manager that started this process (systemd) how it is: ready, stopping, alive.
 *
 * Hides the protocol of sd_notify(3) and sd_watchdog_enabled(3): datagrams to a UNIX socket that the environment names. Without
 * one, and when a datagram cannot be sent, nothing happens: a service runs no worse for it. It must not know what the service
 * does.
 */

import { NativeMemory, nativeCalls } from './ffi.ts';

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0x80000;
const MSG_NOSIGNAL_DONTWAIT = 0x4000 | 0x40;
const PATH_BYTES = 108;
const FAMILY_BYTES = 2;

export class ServiceManager implements Disposable {
  readonly #socketPath: string | undefined;
  readonly #watchdogMs: number | undefined;
  #feeding: NodeJS.Timeout | undefined;

  /** Takes what concerns this process out of its environment, so that no child takes it for itself. */
  static fromEnvironment(env: NodeJS.ProcessEnv = process.env, pid: number = process.pid): ServiceManager {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env;
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name];
    const micros = /^[1-9][0-9]{0,12}$/.test(WATCHDOG_USEC ?? '') ? Number(WATCHDOG_USEC) : undefined;
    const isOurs = WATCHDOG_PID === undefined || WATCHDOG_PID === String(pid);
    return new ServiceManager(NOTIFY_SOCKET, isOurs && micros !== undefined ? micros / 1000 : undefined);
  }

  private constructor(socketPath: string | undefined, watchdogMs: number | undefined) {
    this.#socketPath = socketPath;
    this.#watchdogMs = watchdogMs;
  }

  /**
   * The service has started; from now on a watchdog that waits for it is fed from the event loop, so that a process that hangs
   * is missed. `status` is one line for people.
   */
  ready(status: string): void {
    this.#send(`READY=1\nSTATUS=${oneLine(status)}`);
    if (this.#watchdogMs === undefined || this.#feeding !== undefined) return;
    this.#feeding = setInterval(() => this.#send('WATCHDOG=1'), this.#watchdogMs / 2).unref();
  }

  /** One line for people: how the service is now. */
  status(text: string): void {
    this.#send(`STATUS=${oneLine(text)}`);
  }

  stopping(): void {
    this.#send('STOPPING=1');
  }

  [Symbol.dispose](): void {
    clearInterval(this.#feeding);
  }

  #send(text: string): void {
    const address = this.#socketPath === undefined ? undefined : socketAddress(this.#socketPath);
    if (address === undefined) return;
    const calls = nativeCalls();
    const fd = calls.socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0);
    if (fd < 0) return;
    const bytes = Buffer.from(text);
    const message = new NativeMemory(bytes.length);
    message.bytes.set(bytes);
    calls.sendto(
      fd,
      message.address,
      BigInt(bytes.length),
      MSG_NOSIGNAL_DONTWAIT,
      address.address,
      address.bytes.length,
    );
    calls.close(fd);
  }
}

/** `struct sockaddr_un`; an abstract name begins with `@`. Undefined for any other kind of address, and one too long. */
function socketAddress(path: string): NativeMemory | undefined {
  const isAbstract = path.startsWith('@');
  const name = Buffer.from(isAbstract ? `\0${path.slice(1)}` : `${path}\0`);
  if (!(isAbstract || path.startsWith('/')) || name.length > PATH_BYTES) return undefined;
  const memory = new NativeMemory(FAMILY_BYTES + name.length);
  memory.view.setUint16(0, AF_UNIX, true);
  memory.bytes.set(name, FAMILY_BYTES);
  return memory;
}

function oneLine(text: string): string {
  return text.replace(/[\0\r\n]+/g, ' ');
}
