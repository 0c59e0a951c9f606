import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REKEY_BYTES } from '../protocol/rekey.ts';
import type { Channel } from '../transport/channel.ts';
import { ServerConnection } from './connection.ts';

const SERVICE = { ping: { intervalMs: 20_000, deadMs: 60_000 }, rekeyMs: 3_600_000 };

test('REQ-REKEY-001: a connection is worn by its age, or by what it has carried in both directions together', () => {
  const counters = { sentBytes: 0, receivedBytes: 0 };
  const connection = new ServerConnection({ counters } as unknown as Channel);
  assert.equal(connection.isWorn(1e12), false, 'one that serves no session');
  connection.serve(SERVICE, 1000);
  assert.equal(connection.isWorn(1000 + 0.89 * 3_600_000), false);
  assert.equal(connection.isWorn(1000 + 1.11 * 3_600_000), true);
  counters.sentBytes = REKEY_BYTES * 0.5;
  counters.receivedBytes = REKEY_BYTES * 0.39;
  assert.equal(connection.isWorn(2000), false);
  counters.receivedBytes = REKEY_BYTES * 0.51;
  assert.equal(connection.isWorn(2000), true);
});
