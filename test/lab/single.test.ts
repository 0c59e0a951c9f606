/**
 * The single executable on a machine that has nothing else of CustomVPN: it is the command line, all processes of the gateway
 * and the client in the background, and has in it whatever they read.
 *
 * "Nothing else" is made by a mount namespace in which the checkout, with its Node and its packages, is an empty folder.
 */

import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { manifest } from '../../scripts/packaging/installed-tree.ts';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { type RunResult, run } from './process.ts';

const ROOT = dirname(dirname(import.meta.dirname));
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const PASSWORD = 'correct horse battery';

/** Waits for something before it offers anything, as a module may. */
const HOOKS = `const away = await Promise.resolve('mallory');
export const onLogin = ({ user }: { user: string }) => (user === away ? { allow: false, reason: 'on leave' } : true);
`;

describe('the single executable', labOptions({ unshare: 'util-linux' }), () => {
  let folder: string;
  let executable: string;
  let deployment: Deployment;
  let client: Client;

  /** The arguments of each process of ours in the gateway's namespace. */
  const processes = async (): Promise<string[]> => {
    const { stdout } = await run(['ps', '-eo', 'user:20,args']);
    return stdout.split('\n').filter((line) => line.includes(executable) && !line.includes('unshare'));
  };

  const add = (user: string): Promise<RunResult> =>
    deployment.gateway.run([deployment.command, 'user', 'add', user, '--password-stdin', '--state', deployment.state], {
      input: `${PASSWORD}\n`,
    });

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'customvpn-single-'));
    // The gateway's users have to reach it.
    chmodSync(folder, 0o755);
    const made = await run([...NODE, join(ROOT, 'scripts/package.ts'), 'sea', '--out', join(folder, 'bin')], {
      timeoutMs: 120_000,
    });
    executable = made.stdout.trim();
    const command = join(folder, 'customvpn');
    const alone = `#!/bin/sh
exec unshare --mount sh -c 'mount -t tmpfs tmpfs "$0" && exec "$@"' ${ROOT} ${executable} "$@"
`;
    writeFileSync(command, alone, { mode: 0o755 });
    const hooks = join(folder, 'hooks');
    mkdirSync(hooks);
    writeFileSync(join(hooks, 'hooks.ts'), HOOKS);
    writeFileSync(join(folder, 'secret'), 'a secret that both of them have\n', { mode: 0o600 });
    // A source whose codec has files of its own, a page and functions of the operator's: what is read besides the scripts.
    const settings = `
[login]
steps = ["device", "password"]
[hook]
file = "${join(hooks, 'hooks.ts')}"
[admin]
listen = "${BEHIND.gateway4}:8444"
[backends.dial-in]
kind = "radius"
servers = ["${BEHIND.nobody4}"]
secretFile = "${join(folder, 'secret')}"
tries = 1
timeoutSeconds = 1
`;
    deployment = await Deployment.open({ workers: 1, settings, command });
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    await deployment.run();
  });
  after(async () => {
    await deployment?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  test('is one file, which says its version and writes its manual', async () => {
    assert.equal((await deployment.ok(deployment.gateway, '--version')).stdout.trim(), manifest.version);
    await deployment.ok(deployment.gateway, 'manual', join(folder, 'manual'));
    const unit = (await deployment.ok(deployment.gateway, 'server', 'unit', '--state', deployment.state)).stdout;
    assert.match(unit, new RegExp(`^ExecStart=${executable} server run`, 'm'));
  });

  test('runs a gateway, all of whose processes are this file, as users of their own', async () => {
    const lines = await processes();
    const ofPart = (part: string): string[] => lines.filter((line) => line.includes(` --part ${part}`));
    for (const part of ['auth', 'worker 0', 'hooks']) {
      const [line = '', ...more] = ofPart(part);
      assert.ok(line !== '' && more.length === 0, `${part}: ${lines.join('\n')}`);
      assert.doesNotMatch(line, /^root /);
    }
    assert.equal(readlinkSync(`/proc/${deployment.server.pid}/exe`), executable);
  });

  test('lets a client in with a password, by its own hasher and past its own hook, and carries its packets', async () => {
    await add(client.user);
    await deployment.profile(client);
    const up = [deployment.command, 'client', 'up', client.profile, '--state', client.state, '--password-stdin'];
    await client.namespace.run(up, { input: `${PASSWORD}\n` });
    assert.equal((await client.status()).state, 'connected');
    assert.ok(await client.reaches(BEHIND.host4));
    assert.ok((await processes()).some((line) => line.includes(' --part hasher')));
    assert.match((await deployment.ok(client.namespace, 'doctor', client.profile)).stdout, /^ok +hello/m);
    await client.down();
  });

  test('refuses whom a hook of the operator’s refuses', async () => {
    await add('mallory');
    const { stdout } = await deployment.ok(deployment.gateway, 'profile', 'mallory', '--state', deployment.state);
    const profile = join(folder, 'mallory.toml');
    writeFileSync(profile, stdout.replace(/^hosts = .*$/m, `hosts = [ "${client.outer.gateway4}" ]`), { mode: 0o600 });
    const up = [deployment.command, 'client', 'up', profile, '--state', client.state, '--password-stdin'];
    const { status } = await client.namespace.run(up, { anyStatus: true, input: `${PASSWORD}\n` });
    assert.equal(status, 77);
    const audit = await deployment.ask<{ event: string; reason: string }[]>('audit', '--user', 'mallory');
    assert.ok(
      audit.some(({ reason }) => reason?.includes('on leave')),
      JSON.stringify(audit),
    );
  });

  test('serves the admin page, with script and style, out of itself', async () => {
    const place = `https://${BEHIND.gateway4}:8444`;
    const fetched = async (path: string): Promise<string> =>
      (await deployment.behind.run(['curl', '--silent', '--insecure', '--fail', `${place}${path}`])).stdout;
    const html = await fetched('/');
    const paths = [...html.matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map(([, path = '']) => path);
    assert.equal(paths.length, 2, html);
    for (const path of paths) assert.ok((await fetched(path)).length > 10_000, path);
  });

  test('ends, and leaves nothing that runs', async () => {
    assert.equal(await deployment.stop(), 0);
    assert.deepEqual(await processes(), []);
  });
});
