// The examples run as programs of their own that know the library by its name only.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { runProgram } from '../support/process.ts';

const ROOT = dirname(dirname(import.meta.dirname));
const NODE_ARGUMENTS = ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const program = (name: string): string => join(ROOT, 'examples', name);

interface ServerEvent {
  event: string;
  user?: string;
  reason?: string;
  profiles?: Record<string, string>;
}

test('a server embedded in a program serves a client that echoes framed payloads, and its hook refuses another', async () => {
  const server = spawn(process.execPath, [...NODE_ARGUMENTS, program('embedded-server.ts')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const ended = new Promise<number | null>((resolve) => server.once('close', resolve));
  try {
    const events: ServerEvent[] = [];
    const lines = createInterface({ input: server.stdout });
    const listening = Promise.withResolvers<ServerEvent>();
    lines.on('line', (line) => {
      const event = JSON.parse(line) as ServerEvent;
      events.push(event);
      if (event.event === 'listening') listening.resolve(event);
    });
    lines.once('close', () => listening.reject(new Error('the server ended before it listened')));
    const { profiles = {} } = await listening.promise;

    const run = async (user: string, ...texts: string[]) =>
      await runProgram(process.execPath, [
        ...NODE_ARGUMENTS,
        program('echo-client.ts'),
        profiles[user] ?? '',
        ...texts,
      ]);
    const alice = await run('alice', 'hello', 'grüße', 'x'.repeat(5000));
    assert.equal(alice.status, 0, alice.stderr);
    const result = JSON.parse(alice.stdout) as {
      user: string;
      protocol: string;
      group: string;
      echoes: { text: string; ms: number }[];
    };
    assert.equal(result.user, 'alice');
    assert.equal(result.protocol, 'TLSv1.3');
    assert.equal(result.group, 'X25519MLKEM768');
    assert.deepEqual(
      result.echoes.map(({ text }) => text),
      ['hello', 'grüße', 'x'.repeat(5000)],
    );
    assert.ok(result.echoes.every(({ ms }) => ms > 0));

    const again = await run('alice');
    assert.equal(again.status, 1);
    assert.deepEqual(JSON.parse(again.stdout), { error: 'ERR_AUTH_PROFILE_USED' });
    const mallory = await run('mallory');
    assert.equal(mallory.status, 1);
    assert.deepEqual(JSON.parse(mallory.stdout), { error: 'ERR_AUTH_REJECTED' });

    server.stdin.end();
    assert.equal(await ended, 0);
    assert.deepEqual(
      events.map(({ event, user, reason }) => [event, user, reason].filter((part) => part !== undefined).join(' ')),
      ['listening', 'login alice', 'start alice', 'end alice peer_disconnect', 'login mallory'],
    );
    assert.equal(existsSync(profiles.alice ?? ''), false, 'nothing is left behind');
  } finally {
    server.kill();
  }
});

test('the examples say how they are used, and what is wrong', async () => {
  const without = await runProgram(process.execPath, [...NODE_ARGUMENTS, program('echo-client.ts')]);
  assert.equal(without.status, 64);
  assert.match(without.stderr, /^usage: /);
});

test('the library exports what its documents promise, and nothing by default', async () => {
  const library = (await import('customvpn')) as Record<string, unknown>;
  assert.deepEqual(Object.keys(library).sort(), [
    'DeviceKey',
    'ManualClock',
    'Secret',
    'VpnClient',
    'VpnError',
    'VpnServer',
    'createLogger',
    'initGateway',
    'isVpnError',
    'parseProfile',
    'readGatewayConfig',
    'readProfile',
    'withoutToken',
    'writeProfile',
  ]);
});
