/**
 * What a change of this machine's network means for the connection to a gateway.
 *
 * Hides how changes are noticed (the kernel's messages, a clock that stood still) and judged: a connection whose machine would
 * send from another address is lost, and is given up at once; one whose way looks the same is asked for a sign of life; without
 * one it is time to dial. It must not know of sessions.
 */

import { isIP } from 'node:net';
import { uptime } from 'node:os';
import type { Clock } from '../base/clock.ts';
import { SleepWatch } from '../base/sleep-watch.ts';
import { formatIp, parseIp } from '../ip/address.ts';
import { NetworkMonitor } from '../os/netlink.ts';
import { sourceAddress } from '../os/socket.ts';

/** Changes come in flocks: the way is asked for a sign of life so long after the first. */
const SETTLE_MS = 100;
const TICK_MS = 1000;
/** A tick that is so late: this process stood still, or the machine did. */
const LATE_MS = 5000;

/** What a client sees of its machine's network. */
export interface NetworkView {
  /** Calls back on changes, but for those of `ignored` devices, until it is disposed of. */
  watch(onChange: () => void): NetworkWatch;
  /** The address that this machine would send from to reach this one; undefined: there is no way, or nobody knows. */
  sourceFor(remote: string): string | undefined;
  /** Milliseconds since boot, sleep included. */
  bootNow(): number;
}

export interface NetworkWatch extends AsyncDisposable {
  ignore(device: string): void;
}

/** The network of the machine that this runs on. @param mark the firewall mark of our connections */
export function machineNetwork(mark?: number): NetworkView {
  return {
    watch: (onChange) => new NetworkMonitor(onChange),
    sourceFor: (remote) => {
      // An address with a zone names its interface itself.
      if (isIP(remote) === 0 || remote.includes('%')) return undefined;
      const source = sourceAddress(parseIp(remote), mark);
      return source === undefined ? undefined : formatIp(source);
    },
    bootNow: () => uptime() * 1000,
  };
}

/** The ends of a connection. */
export interface Path {
  readonly local: string;
  readonly remote: string;
  /** The tunnel's own addresses. A machine that has no other left would send from one, and get no answer. */
  readonly inner: readonly string[];
}

export interface RoamingHandlers {
  /** The connection that is open now. */
  path(): Path | undefined;
  /** This machine would send from another address than the open connection has. */
  moved(from: string, to: string): void;
  /** The way may be broken: ask for a sign of life. */
  check(): void;
  /** There is no connection, and now might be a better time than later. */
  retry(): void;
}

/** Watches for as long as a client runs. */
export class Roaming implements AsyncDisposable {
  readonly #network: NetworkView;
  readonly #handlers: RoamingHandlers;
  readonly #watch: NetworkWatch;
  readonly #tick: NodeJS.Timeout;
  #settle: NodeJS.Timeout | undefined;
  readonly #sleep: SleepWatch;

  /** @throws {VpnError} ERR_SYSCALL, ERR_UNSUPPORTED */
  constructor(network: NetworkView, clock: Clock, handlers: RoamingHandlers) {
    this.#network = network;
    this.#handlers = handlers;
    this.#sleep = new SleepWatch(
      () => clock.now(),
      () => network.bootNow(),
    );
    this.#watch = network.watch(() => this.#handleChange());
    this.#tick = setInterval(() => this.tick(), TICK_MS);
    this.#tick.unref();
  }

  /** Changes of this device are the client's own. */
  ignore(device: string): void {
    this.#watch.ignore(device);
  }

  /** Looks whether the machine slept. Called every second. */
  tick(): void {
    const { passedMs, sleptMs } = this.#sleep.look();
    if (sleptMs > 0 || passedMs > LATE_MS) this.#handleChange();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#tick);
    clearTimeout(this.#settle);
    await this.#watch[Symbol.asyncDispose]();
  }

  #handleChange(): void {
    const path = this.#handlers.path();
    const source = path === undefined ? undefined : this.#network.sourceFor(path.remote);
    if (path !== undefined && source !== undefined && source !== path.local && !path.inner.includes(source)) {
      clearTimeout(this.#settle);
      this.#settle = undefined;
      this.#handlers.moved(path.local, source);
      return;
    }
    this.#settle ??= setTimeout(() => {
      this.#settle = undefined;
      if (this.#handlers.path() === undefined) this.#handlers.retry();
      else this.#handlers.check();
    }, SETTLE_MS);
  }
}
