/**
 * A gateway in this process with its admin page, and people who work there.
 *
 * Hides how accounts with a second factor are made and logged in, at a time that tests set.
 */

import assert from 'node:assert/strict';
import { ManualClock } from '../../src/base/clock.ts';
import type { Role } from '../../src/control/operations.ts';
import { AdminBrowser, codeOf } from './admin.ts';
import { World, type WorldOptions } from './world.ts';

export const PASSWORD = 'correct horse battery';
export const START = 1_790_000_000_000;

export class Office implements AsyncDisposable {
  readonly world: World;
  readonly clock: ManualClock;
  readonly port: number;
  readonly #uris = new Map<string, string>();

  static async open(options: WorldOptions = {}): Promise<Office> {
    const clock = new ManualClock(START);
    const config = { ...options.config, admin: { listen: '127.0.0.1:0', ...options.config?.admin } };
    const world = await World.open({ tun: 'none', clock, ...options, config });
    const port = await world.server.openAdmin(() => Promise.reject(new Error('not asked for')));
    assert.ok(port !== undefined);
    return new Office(world, clock, port);
  }

  private constructor(world: World, clock: ManualClock, port: number) {
    this.world = world;
    this.clock = clock;
    this.port = port;
  }

  get api() {
    return this.world.server.api(() => Promise.reject(new Error('not asked for')));
  }

  stranger(): AdminBrowser {
    return new AdminBrowser(this.port, this.world.ca);
  }

  /** An account with a password and a second factor, in these groups. */
  async account(name: string, groups: string[]): Promise<void> {
    await this.api['user.add']({ name, groups, password: PASSWORD });
    const { uri } = await this.api['user.totp']({ name });
    this.#uris.set(name, uri);
  }

  /** A code that has not been used. */
  async code(name: string): Promise<string> {
    this.clock.advance(30_000);
    return codeOf(this.#uris.get(name) ?? '', this.clock.wallNow());
  }

  async as(role: Role, name: string = role): Promise<AdminBrowser> {
    await this.account(name, [`${role}s`]);
    return await this.login(name);
  }

  async login(name: string): Promise<AdminBrowser> {
    const browser = this.stranger();
    const reply = await browser.post('/api/login', { user: name, password: PASSWORD, code: await this.code(name) });
    assert.equal(reply.status, 200, reply.text);
    return browser;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.world[Symbol.asyncDispose]();
  }
}
