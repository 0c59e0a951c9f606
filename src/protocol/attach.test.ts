import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, exporterOf, primitives, split, utf8 } from '../../test/support/protocol.ts';
import { AttachClient, type AttachClientOptions, AttachServer } from './attach.ts';
import { FrameType } from './frame.ts';
import { attachKey } from './keys.ts';
import { type AttachMessage, decodeMessage, encodeMessage } from './messages.ts';

const SESSION = new Uint8Array(16).fill(0x5e);
const KEY = attachKey(primitives, new Uint8Array(32).fill(1));

function server(epoch = 0): AttachServer {
  return new AttachServer({ primitives, session: SESSION, epoch, key: KEY, slots: 2 });
}

function client(changes: Partial<AttachClientOptions> = {}): AttachClient {
  const options = {
    primitives,
    exporter: exporterOf('data'),
    session: SESSION,
    epoch: 0,
    key: KEY,
    slot: 0,
    generation: 0,
  };
  return new AttachClient({ ...options, ...changes });
}

function ask(changes: Partial<AttachClientOptions> = {}): AttachMessage {
  return decodeMessage('attach', split(client(changes).start())[1]);
}

test('REQ-ATTACH-001: both ends prove the session to each other on this connection', () => {
  const asking = client({ slot: 1, generation: 7 });
  const message = decodeMessage('attach', split(asking.start())[1]);
  const attached = server().receive(message, exporterOf('data'));
  assert.equal(attached.slot, 1);
  assert.equal(attached.generation, 7);
  assert.deepEqual(asking.receive(...split(attached.frame)), { kind: 'attached' });
});

test('REQ-ATTACH-002: a wrong, replayed or foreign proof is ERR_ATTACH_PROOF', () => {
  const good = ask();
  const flipped = good.proof.slice();
  flipped[31] = (flipped[31] ?? 0) ^ 1;
  const other = new Uint8Array(16).fill(9);
  const cases: [string, AttachMessage, string][] = [
    ['a wrong proof', { ...good, proof: flipped }, 'data'],
    ['a replay on another connection', good, 'elsewhere'],
    ['the proof of another session', ask({ key: attachKey(primitives, new Uint8Array(32).fill(2)) }), 'data'],
    ['another session id under a good proof', ask({ session: other }), 'data'],
    ['another epoch under a good proof', ask({ epoch: 1 }), 'data'],
    ['a changed slot', { ...good, slot: 1 }, 'data'],
    ['a changed generation', { ...good, generation: 1 }, 'data'],
    ['changed flags', { ...good, flags: 1 }, 'data'],
    ['a slot beyond the last', ask({ slot: 2 }), 'data'],
  ];
  for (const [what, message, connection] of cases) {
    assert.throws(() => server().receive(message, exporterOf(connection)), code('ERR_ATTACH_PROOF'), what);
  }
  server().receive(good, exporterOf('data'));
});

test('REQ-ATTACH-003: a slot is attached anew only with a newer generation', () => {
  const ours = server();
  ours.receive(ask({ generation: 3 }), exporterOf('data'));
  for (const generation of [3, 2, 0]) {
    assert.throws(() => ours.receive(ask({ generation }), exporterOf('data')), code('ERR_ATTACH_PROOF'));
  }
  ours.receive(ask({ slot: 1, generation: 0 }), exporterOf('data'));
  assert.equal(ours.receive(ask({ generation: 4 }), exporterOf('data')).generation, 4);
});

test('REQ-ATTACH-003: a refused ATTACH does not use up its generation', () => {
  const ours = server();
  assert.throws(
    () => ours.receive({ ...ask({ generation: 9 }), proof: SESSION }, exporterOf('data')),
    code('ERR_ATTACH_PROOF'),
  );
  ours.receive(ask({ generation: 1 }), exporterOf('data'));
});

test('REQ-ATTACH-004: a client takes no ATTACHED that does not prove the session on this connection', () => {
  const proofOf = (connection: string) => {
    const message = ask({ exporter: exporterOf(connection) });
    return server().receive(message, exporterOf(connection)).frame;
  };
  const own = ask();
  const echoed = encodeMessage('attached', { slot: 0, generation: 0, flags: 0, proof: own.proof });
  const moved = decodeMessage('attached', split(proofOf('data'))[1]);
  const wrong = [
    proofOf('elsewhere'),
    echoed,
    encodeMessage('attached', { ...moved, slot: 1 }),
    encodeMessage('attached', { ...moved, generation: 1 }),
    encodeMessage('attached', { ...moved, flags: 1 }),
  ];
  for (const frame of wrong) {
    const asking = client();
    asking.start();
    assert.throws(() => asking.receive(...split(frame)), code('ERR_ATTACH_PROOF'));
    assert.throws(() => asking.receive(...split(proofOf('data'))), code('ERR_FRAME_STATE'));
  }
});

test('REQ-ATTACH-005: MOVED, REJECT and CLOSE answer an ATTACH too, anything else is ERR_FRAME_STATE', () => {
  const asking = () => {
    const started = client();
    started.start();
    return started;
  };
  assert.deepEqual(asking().receive(...split(encodeMessage('moved', { worker: 3 }))), { kind: 'moved', worker: 3 });
  const failed = asking().receive(...split(encodeMessage('reject', { code: 'session_unknown', message: '' })));
  assert.ok(failed.kind === 'failed' && failed.error.code === 'ERR_SESSION_UNKNOWN');
  const closed = asking().receive(...split(encodeMessage('close', { reason: 'shutdown' })));
  assert.deepEqual(closed, { kind: 'closed', reason: 'shutdown' });
  assert.throws(() => asking().receive(FrameType.challenge, utf8('{}')), code('ERR_FRAME_STATE'));
  assert.throws(() => client().receive(...split(encodeMessage('moved', { worker: 3 }))), code('ERR_FRAME_STATE'));
  assert.throws(() => {
    const twice = asking();
    twice.start();
  }, code('ERR_INVARIANT'));
});
