/** What crosses from process to process: that every value that may be said can be. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { z } from 'zod';
import { parseIp } from '../../ip/address.ts';
import { workerToAuth } from './messages.ts';

type Waiting = z.output<typeof workerToAuth.waiting.output>[number];

const times = { absoluteSeconds: 1, idleSeconds: 1, graceSeconds: 1 };

function waitingAt(lease: Waiting['granted']['lease'], addresses: Waiting['granted']['config']['addresses']): Waiting {
  const session = new Uint8Array(16).fill(7);
  return {
    granted: {
      key: session.toHex(),
      grant: { session, worker: 1, user: 'alice', ...times },
      user: 'alice',
      device: 'd'.repeat(32),
      lease,
      config: {
        revision: 1,
        addresses,
        routes: [],
        dns: { servers: [], domains: [] },
        mtu: 1500,
        ping: { intervalSeconds: 25, deadSeconds: 80 },
        data: { mode: 'inline', channels: 0 },
        transports: [],
        pins: [],
      },
    },
    features: ['resume'],
    remote: '192.0.2.1:4000',
    openedAt: 1,
    detachedMs: 1,
  };
}

test('sessions that wait can be said of a pool of one family, and of both', () => {
  const v4 = parseIp('10.88.0.2');
  const v6 = parseIp('fd88::2');
  const { output } = workerToAuth.waiting;
  for (const lease of [{ v4 }, { v6 }, { v4, v6 }]) {
    const said = output.encode([waitingAt(lease, { v4: { address: '10.88.0.2', gateway: '10.88.0.1' } })]);
    assert.deepEqual(output.decode(JSON.parse(JSON.stringify(said)))[0]?.granted.lease, lease);
  }
});

test('what is no address and what is no bytes cannot be said', () => {
  const { output } = workerToAuth.waiting;
  const good = waitingAt({ v4: parseIp('10.88.0.2') }, {});
  const bad: Waiting[] = [
    { ...good, granted: { ...good.granted, lease: { v4: '10.88.0.2' as never } } },
    { ...good, granted: { ...good.granted, grant: { ...good.granted.grant, session: new Uint8Array(15) } } },
  ];
  for (const one of bad) assert.equal(output.safeEncode([one]).success, false);
});
