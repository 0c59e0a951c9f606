/**
 * Those who look at a gateway: programs that ask its API, watch it, or open its page in a browser. A process of its own, so that it
 * can be in another namespace.
 *
 * Usage: operations-peer.ts load|page HOST:PORT CA COUNT, or watch HOST:PORT CA METRICS; the token comes in BENCH_TOKEN. It prints one line
 * of JSON, or `ready` and goes on until it is ended.
 */

import { readFileSync } from 'node:fs';
import { get } from 'node:http';
import { Agent, request } from 'node:https';
import { setTimeout as delay } from 'node:timers/promises';
import { chromium } from 'playwright-core';
import { CHROMIUM } from '../support/browser.ts';
import { quantile } from './statistics.ts';

/** As a few people with a page before them, and far below what the gateway lets a program ask. */
const REQUESTS_PER_SECOND = 10;
const WARM_UP = 50;
const SCRAPE_MS = 1000;
const LISTENERS = 3;

export interface LoadFound {
  readonly p99: number;
  readonly operations: readonly { readonly operation: string; readonly p50: number; readonly p99: number }[];
}

export interface PageFound {
  /** All that one visit loads, as it crosses the network. */
  readonly bytes: number;
  /** From the navigation until the form is there and the main thread has nothing to do. */
  readonly interactiveMs: readonly number[];
  readonly paintMs: readonly number[];
}

const [, , command = '', place = '', caFile = '', rest = ''] = process.argv;
const ca = readFileSync(caFile);
const token = process.env.BENCH_TOKEN ?? '';
const [host = '', port = ''] = place.split(':');
const agent = new Agent({ keepAlive: true, maxSockets: 4, ca });

/** What the page asks most, and what a program would. */
const CALLS: readonly (readonly [string, string])[] = [
  ['user.list', 'limit=100'],
  ['user.list', 'limit=100&search=9999'],
  ['user.list', 'limit=100&after=user05000'],
  ['user.show', 'name=user07777'],
  ['session.list', 'limit=100'],
  ['server.status', ''],
  ['audit.list', 'limit=100'],
];

function call(operation: string, query: string): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const since = performance.now();
  const headers = { authorization: `Bearer ${token}` };
  request({ host, port, agent, path: `/api/v1/${operation}?${query}`, headers }, (response) => {
    response.resume();
    response.once('end', () => {
      if (response.statusCode === 200) resolve(performance.now() - since);
      else reject(new Error(`${operation}?${query} was answered ${response.statusCode}`));
    });
  })
    .once('error', reject)
    .end();
  return promise;
}

async function load(count: number): Promise<LoadFound> {
  const found = new Map<string, number[]>();
  const began = performance.now();
  const running: Promise<void>[] = [];
  for (let index = 0; index < count + WARM_UP; index += 1) {
    const [operation = '', query = ''] = CALLS[index % CALLS.length] ?? [];
    const name = query === '' ? operation : `${operation} ${query}`;
    // By the clock, whether the last one is answered or not: whoever waits, waits for what is before them, too.
    await delay(Math.max(0, began + (index * 1000) / REQUESTS_PER_SECOND - performance.now()));
    running.push(
      call(operation, query).then((ms) => {
        if (index >= WARM_UP) found.set(name, [...(found.get(name) ?? []), ms]);
      }),
    );
  }
  await Promise.all(running);
  const at = (values: readonly number[], q: number) => Number((quantile(values, q) ?? 0).toPrecision(3));
  return {
    p99: at([...found.values()].flat(), 0.99),
    operations: [...found].map(([operation, values]) => ({ operation, p50: at(values, 0.5), p99: at(values, 0.99) })),
  };
}

async function page(visits: number): Promise<PageFound> {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
  });
  const interactiveMs: number[] = [];
  const paintMs: number[] = [];
  let bytes = 0;
  for (let visit = 0; visit <= visits; visit += 1) {
    const context = await browser.newContext({ ignoreHTTPSErrors: true });
    const window = await context.newPage();
    await window.addInitScript(`
      new MutationObserver((_, observer) => {
        if (document.querySelector('form button') === null) return;
        observer.disconnect();
        requestAnimationFrame(() => requestIdleCallback(() => { globalThis.interactiveAt = performance.now(); }));
      }).observe(document, { childList: true, subtree: true });
    `);
    await window.goto(`https://${place}/`);
    // The page's own policy lets nothing be evaluated in it by itself.
    while ((await window.evaluate('globalThis.interactiveAt')) === undefined) await delay(10);
    const [at, paint, size] = (await window.evaluate(`[
      globalThis.interactiveAt,
      performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0,
      [...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]
        .filter(({ name }) => !name.includes('/api/')).reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
    ]`)) as [number, number, number];
    await context.close();
    // The first has the browser itself start.
    if (visit === 0) continue;
    interactiveMs.push(at);
    paintMs.push(paint);
    bytes = size;
  }
  await browser.close();
  return { bytes, interactiveMs, paintMs };
}

function listen(): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const headers = { authorization: `Bearer ${token}` };
  request({ host, port, ca, agent: false, path: '/api/events', headers }, (response) => {
    response.resume();
    response.once('data', () => resolve());
  })
    .once('error', reject)
    .end();
  return promise;
}

function scrape(): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  get(`http://${rest}/metrics`, (response) => {
    response.resume();
    response.once('end', resolve);
  }).once('error', reject);
  return promise;
}

if (command === 'watch') {
  await Promise.all(Array.from({ length: LISTENERS }, listen));
  await scrape();
  process.stdout.write('ready\n');
  for (;;) {
    await delay(SCRAPE_MS);
    await scrape();
  }
}
const found = command === 'page' ? await page(Number(rest)) : await load(Number(rest));
process.stdout.write(`${JSON.stringify(found)}\n`);
agent.destroy();
