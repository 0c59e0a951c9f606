// A connection for streams that is to be used no longer: it ends with its last stream, and with nothing of that lost.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type TestContext, test } from 'node:test';
import { primitives } from '../../test/support/protocol.ts';
import { openSocketPair } from '../../test/support/tls-pair.ts';
import { until } from '../../test/support/world.ts';
import { answerProxyClaim, parseProxyCredential } from '../protocol/proxy-binding.ts';
import type { MuxStream } from '../protocol/stream-mux.ts';
import { StreamConnection } from '../transport/stream-connection.ts';
import { StreamEnd } from '../transport/stream-end.ts';
import { ProxyConnection } from './proxy-connection.ts';

const BINDING = { session: new Uint8Array(16).fill(7), epoch: 3, key: new Uint8Array(32).fill(9) };
const LIMIT = { timeout: 20_000 };
const TARGET = { host: '192.0.2.1', port: 7 };

/** A connection, and the gateway's end of it, which opens every stream. */
async function open(t: TestContext) {
  const sockets = await openSocketPair();
  const streams: MuxStream[] = [];
  const gateway: StreamConnection = new StreamConnection(sockets.server, {
    role: 'server',
    maxWindowBytes: 1 << 20,
    windowBudgetBytes: 1 << 20,
    onBind: (credential) => {
      const claim = parseProxyCredential(credential);
      const exporter = (label: string, context: Uint8Array) =>
        sockets.server.exportKeyingMaterial(32, label, Buffer.from(context));
      gateway.mux.answerBind(claim && answerProxyClaim(primitives, BINDING, claim, exporter));
    },
    onWanted: (stream, { port }) => {
      streams.push(stream);
      if (port === TARGET.port) stream.accept();
      else stream.refuse('connection_refused');
    },
    closed: () => {},
  });
  const connection = await ProxyConnection.open(sockets.client, BINDING);
  t.after(() => connection.destroy());
  return { connection, gateway, streams };
}

test('one without streams ends at once, and so does one whose last stream is refused', LIMIT, async (t) => {
  const empty = await open(t);
  empty.connection.retire();
  assert.ok(empty.connection.isClosed);
  await until(() => empty.gateway.isClosed, 'its end');
  const { connection, gateway } = await open(t);
  const refused = connection.open('tcp', { ...TARGET, port: 9 });
  connection.retire();
  assert.ok(!gateway.isClosed);
  await assert.rejects(refused, { why: 'connection_refused' });
  await until(() => gateway.isClosed, 'the end of the other');
});

test('one with streams takes no others, carries those to their ends, and then ends', LIMIT, async (t) => {
  const { connection, gateway, streams } = await open(t);
  const { duplex } = await connection.open('tcp', TARGET);
  const [far] = streams;
  assert.ok(far !== undefined);
  const there = new StreamEnd(far).duplex;
  connection.retire();
  await assert.rejects(connection.open('tcp', TARGET), { code: 'ERR_PEER_GONE' });
  let received = '';
  let answered = '';
  there.on('data', (bytes: Buffer) => {
    received += bytes.toString();
  });
  duplex.on('data', (bytes: Buffer) => {
    answered += bytes.toString();
  });
  const closed = new Promise<void>((resolve) => connection.onClosed(resolve));
  there.end('answer');
  await once(duplex, 'end');
  assert.ok(!gateway.isClosed, 'the other half is open');
  duplex.end('the last word');
  await once(there, 'end');
  assert.deepEqual([received, answered], ['the last word', 'answer']);
  await closed;
  await until(() => gateway.isClosed, 'the end');
});
