/**
 * The machine's Chromium, looking at the admin page of a gateway in this process.
 *
 * Hides how it is started and stopped, and watches three things on every page: nothing is asked of another host, nothing
 * breaks the page's security policy, and no script fails.
 */

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { type Browser, chromium, type Page } from 'playwright-core';
import { codeOf } from './admin.ts';
import { POPULATION_POOL, type Population, populate } from './population.ts';
import { World, type WorldOptions } from './world.ts';

export const CHROMIUM = '/usr/bin/chromium';
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const PATIENCE_MS = 20_000;

/** Why no browser test can run here; undefined: they can. */
export const noBrowser = existsSync(CHROMIUM) ? undefined : `there is no ${CHROMIUM} (apt-get install chromium)`;

export const PASSWORD = 'correct horse battery';

/** Widths that a page must fit, in CSS pixels. */
export const WIDTHS = [360, 820, 1280] as const;

export class Stage implements AsyncDisposable {
  readonly world: World;
  readonly port: number;
  readonly #browser: Browser;
  readonly #config: NonNullable<WorldOptions['config']>;
  readonly #foreign: string[] = [];
  readonly #wrong: string[] = [];

  /** @param population who is on record of the gateway besides; its pool is theirs then */
  static async open(options: WorldOptions = {}, population?: Population): Promise<Stage> {
    const pool = population === undefined ? {} : { pool: POPULATION_POOL };
    const config = { ...pool, ...options.config, admin: { listen: '127.0.0.1:0', ...options.config?.admin } };
    const world = await World.open({ ...options, config });
    if (population !== undefined) {
      await world.server.stop();
      populate(world.dir, population);
      await world.restart();
    }
    const port = await world.server.openAdmin(async () => world.config(config));
    assert.ok(port !== undefined);
    const browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
    });
    return new Stage(world, port, browser, config);
  }

  private constructor(world: World, port: number, browser: Browser, config: NonNullable<WorldOptions['config']>) {
    this.#config = config;
    this.world = world;
    this.port = port;
    this.#browser = browser;
  }

  get api() {
    return this.world.server.api(async () => this.world.config(this.#config));
  }

  /** By an address; windows that go by the name `localhost` are as good. */
  get origin(): string {
    return `https://127.0.0.1:${this.port}`;
  }

  get named(): string {
    return `https://localhost:${this.port}`;
  }

  /** A window, empty. */
  async window(options: { width?: number; dark?: boolean } = {}): Promise<Page> {
    const context = await this.#browser.newContext({
      // The gateway's own authority is none that a browser knows.
      ignoreHTTPSErrors: true,
      viewport: { width: options.width ?? 1280, height: 900 },
      colorScheme: options.dark === true ? 'dark' : 'light',
      reducedMotion: 'reduce',
      acceptDownloads: true,
      permissions: ['clipboard-read', 'clipboard-write'],
      bypassCSP: false,
    });
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    page.on('request', (request) => {
      const url = request.url();
      const isOurs = [this.origin, this.named].some((origin) => url.startsWith(`${origin}/`));
      if (!isOurs && !/^(blob|data):/.test(url)) this.#foreign.push(url);
    });
    page.on('pageerror', (error) => this.#wrong.push(error.message));
    page.on('console', (message) => {
      // A refusal is an answer like any other; the browser calls it an error.
      if (message.type() === 'error' && !/the server responded with a status of (4\d\d)/.test(message.text())) {
        this.#wrong.push(message.text());
      }
    });
    return page;
  }

  /** A window in which somebody with this role is logged in. */
  async as(
    role: 'viewer' | 'operator' | 'administrator',
    options: { width?: number; dark?: boolean; origin?: string } = {},
  ): Promise<Page> {
    const name = `${role}.${Math.trunc(performance.now())}`;
    await this.api['user.add']({ name, groups: [`${role}s`], password: PASSWORD });
    const { uri } = await this.api['user.totp']({ name });
    const page = await this.window(options);
    await page.goto(options.origin ?? this.origin);
    await page.getByLabel('Name').fill(name);
    await page.getByLabel('Password').fill(PASSWORD);
    await page.getByLabel('Code').fill(codeOf(uri, Date.now()));
    await page.getByRole('button', { name: 'Log in', exact: true }).click();
    await page.getByRole('heading', { level: 1, name: 'Overview' }).waitFor();
    return page;
  }

  /** Goes to a section, and waits until it has loaded what it shows. */
  async go(page: Page, path: string, heading: string): Promise<void> {
    await page.evaluate((hash) => {
      (globalThis as unknown as { location: { hash: string } }).location.hash = hash;
    }, `#/${path}`);
    await page.getByRole('heading', { level: 1, name: heading }).waitFor();
    await page.locator('.spinner').first().waitFor({ state: 'detached' });
  }

  /** What a check for accessibility finds that is serious or worse. */
  async accessibility(page: Page): Promise<string[]> {
    // The page's own policy lets no script in; the debugging protocol does.
    const client = await page.context().newCDPSession(page);
    await client.send('Runtime.evaluate', { expression: `${AXE};0` });
    const { result } = await client.send('Runtime.evaluate', {
      expression:
        "axe.run(document,{resultTypes:['violations']}).then(r=>JSON.stringify(r.violations.filter(v=>['serious','critical'].includes(v.impact)).map(v=>v.id+': '+v.nodes.map(n=>n.target.join(' ')+' '+n.failureSummary).join(' | '))))",
      awaitPromise: true,
      returnByValue: true,
    });
    await client.detach();
    return JSON.parse(String(result.value)) as string[];
  }

  /** Whether anything sticks out at the side. */
  async overflow(page: Page): Promise<number> {
    return await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth');
  }

  /** Fails when a page asked another host, broke the policy or had an error. */
  check(): void {
    assert.deepEqual(this.#foreign, [], 'asked of another host');
    assert.deepEqual(this.#wrong, [], 'went wrong in the page');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
    await this.world[Symbol.asyncDispose]();
  }
}
