// The unix socket of the control API: who may have how much of it, and that root always finds room.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { z } from 'zod';
import { silentLogger } from '../base/log.ts';
import { connectControl, serveControl } from './socket.ts';

const operations = { 'who.am': { input: z.strictObject({}), output: z.object({ uid: z.number() }) } };

/** A daemon that believes whoever connects next to be the user that a test says. */
async function serve(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'customvpn-control-'));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, 'control.sock');
  const next = { uid: 0 };
  const held: net.Socket[] = [];
  t.after(() => {
    for (const socket of held) socket.destroy();
  });
  const handlers = { 'who.am': async (_: object, { uid = -1 }: { uid?: number | undefined }) => ({ uid }) };
  const server = await serveControl(path, operations, handlers, silentLogger, () => next.uid);
  t.after(() => server[Symbol.asyncDispose]());
  const callAs = async (uid: number) => {
    next.uid = uid;
    return await connectControl(path, operations)['who.am']({});
  };
  /** Says nothing; resolves when it is accepted, with whether it is closed at once. */
  const holdAs = async (uid: number): Promise<net.Socket> => {
    next.uid = uid;
    const socket = net.connect(path).on('error', () => {});
    held.push(socket);
    await new Promise((resolve) => socket.once('connect', resolve));
    await callAs(0);
    return socket;
  };
  return { callAs, holdAs };
}

const busy = { code: 'ERR_BUSY', message: /expected at most 32 connections of one user, and 128 of all but root/ };

test('a user has so many connections and no more; others, and root, have theirs', async (t) => {
  const { callAs, holdAs } = await serve(t);
  const sockets: net.Socket[] = [];
  for (let count = 0; count < 32; count++) sockets.push(await holdAs(40_001));
  await assert.rejects(callAs(40_001), busy);
  assert.deepEqual(await callAs(40_002), { uid: 40_002 });
  assert.deepEqual(await callAs(0), { uid: 0 });
  // One that is closed makes room.
  sockets[0]?.destroy();
  await callAs(0);
  assert.deepEqual(await callAs(40_001), { uid: 40_001 });
});

test('many users together leave room for root, and for whoever runs the daemon', async (t) => {
  const { callAs, holdAs } = await serve(t);
  for (let count = 0; count < 128; count++) await holdAs(50_000 + Math.floor(count / 16));
  await assert.rejects(callAs(60_000), busy);
  assert.deepEqual(await callAs(0), { uid: 0 });
  const own = process.getuid?.() ?? 0;
  assert.deepEqual(await callAs(own), { uid: own });
});
