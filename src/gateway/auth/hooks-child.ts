/**
 * The process of the hooks: loads the operator's file and calls its functions.
 *
 *   hooks-child.ts FILE
 *
 * Speaks with auth over descriptor 3, a JSON object a line: `{"loaded":["onLogin"]}` or `{"error":"…"}` once, then for each
 * `{"id":1,"hook":"onLogin","input":{…}}` a `{"id":1,"result":…}` or `{"id":1,"error":"…"}`, and for `{"ping":1}` a `{"pong":1}`.
 * Whatever else becomes of this process is no worse for the gateway than an error.
 */

import { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { constants, runInThisContext } from 'node:vm';
import { type GatewayHooks, HOOK_NAMES, type HookName } from '../hooks.ts';

const CHANNEL_FD = 3;

const [file = ''] = process.argv.slice(2);
const channel = new Socket({ fd: CHANNEL_FD, readable: true, writable: true });
channel.on('error', () => process.exit(1));
channel.on('close', () => process.exit(0));

/** In a single executable, `import` of its own script finds nothing but what is in it. */
const importFile = runInThisContext('(file) => import(file)', {
  importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
}) as (file: string) => Promise<unknown>;

const say = (message: object): void => void channel.write(`${JSON.stringify(message)}\n`);
const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

let hooks: Readonly<Record<string, unknown>> = {};

async function load(): Promise<void> {
  const module = (await importFile(pathToFileURL(file).href)) as Record<string, unknown> & { default?: GatewayHooks };
  hooks = { ...module.default, ...module };
  const loaded = HOOK_NAMES.filter((name) => hooks[name] !== undefined);
  const wrong = loaded.find((name) => typeof hooks[name] !== 'function');
  if (wrong !== undefined) throw new Error(`expected ${wrong} to be a function`);
  if (loaded.length === 0) throw new Error(`expected a function of the name ${HOOK_NAMES.join(', ')}; it exports none`);
  say({ loaded });
}

async function call(id: number, name: HookName, input: unknown): Promise<void> {
  try {
    const hook = hooks[name] as (input: unknown) => unknown;
    say({ id, result: (await hook(input)) ?? null });
  } catch (error) {
    say({ id, error: textOf(error) });
  }
}

createInterface({ input: channel }).on('line', (line) => {
  const message = JSON.parse(line) as { ping?: number; id: number; hook: HookName; input: unknown };
  if (message.ping === undefined) void call(message.id, message.hook, message.input);
  else say({ pong: message.ping });
});

load().catch((error: unknown) => {
  say({ error: textOf(error) });
  channel.end();
});
