/** The RADIUS back end against servers that forge, stall and babble; test/interop has it against a real one. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { Secret } from '../../base/log.ts';
import type { BackendVerdict, SessionReport } from './backend.ts';
import { openReply, RadiusBackend, type RadiusOptions } from './radius.ts';

const SECRET = 'a shared secret';
const never = new AbortController().signal;
const [ACCEPT, REJECT, ACCOUNTED, CHALLENGE] = [2, 3, 5, 11];

type Attribute = readonly [type: number, value: string | Uint8Array];

interface Forgery {
  code?: number;
  identifier?: number;
  attributes?: readonly Attribute[];
  secret?: string;
  /** What stands in place of a right Message-Authenticator. */
  authenticator?: 'missing' | 'wrong' | 'twice' | 'short';
}

/** An answer to a request, right but for what is asked to be wrong. */
function answer(request: Buffer, forgery: Forgery = {}): Buffer {
  const { code = ACCEPT, attributes = [], secret = SECRET, authenticator } = forgery;
  const own: Attribute[] =
    authenticator === 'missing'
      ? []
      : authenticator === 'twice'
        ? [
            [80, Buffer.alloc(16)],
            [80, Buffer.alloc(16)],
          ]
        : [[80, Buffer.alloc(authenticator === 'short' ? 15 : 16)]];
  const body = Buffer.concat(
    [...own, ...attributes].map(([type, value]) => {
      const bytes = Buffer.from(value);
      return Buffer.concat([Buffer.of(type, bytes.length + 2), bytes]);
    }),
  );
  const head = Buffer.of(code, forgery.identifier ?? request.readUInt8(1), 0, 0);
  const packet = Buffer.concat([head, request.subarray(4, 20), body]);
  packet.writeUInt16BE(packet.length, 2);
  if (authenticator !== 'missing' && authenticator !== 'short') {
    createHmac('md5', secret).update(packet).digest().copy(packet, 22);
    if (authenticator === 'wrong') packet.writeUInt8(packet.readUInt8(22) ^ 1, 22);
  }
  createHash('md5').update(packet).update(secret).digest().copy(packet, 4);
  return packet;
}

interface Server extends RemoteInfo {
  readonly socket: Socket;
  readonly requests: Buffer[];
  readonly text: string;
}

async function server(
  t: TestContext,
  serve: (request: Buffer, reply: (bytes: Uint8Array) => void, from: RemoteInfo) => void,
): Promise<Pick<Server, 'requests' | 'text'>> {
  const socket = createSocket('udp4');
  const requests: Buffer[] = [];
  socket.on('message', (bytes, from) => {
    const request = Buffer.from(bytes);
    requests.push(request);
    serve(request, (reply) => socket.send(reply, from.port, from.address), from);
  });
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
  t.after(() => socket.close());
  return { requests, text: `127.0.0.1:${socket.address().port}` };
}

function open(servers: readonly string[], options: Partial<RadiusOptions> = {}): RadiusBackend {
  return new RadiusBackend({
    name: 'radius',
    secret: new Secret(SECRET),
    options: {
      servers,
      nasIdentifier: 'gate',
      groupAttribute: 'Class',
      groups: { VPN: 'staff', Ops: 'operators' },
      tries: 2,
      timeoutSeconds: 0.15,
      interimSeconds: 600,
      ...options,
    },
  });
}

const login = (backend: RadiusBackend, more: { password?: string; state?: string; user?: string } = {}) =>
  backend.authenticate({ user: 'alice', password: 'correct horse', source: '192.0.2.7:5555', ...more }, never);

async function assertSays(verdict: Promise<BackendVerdict>, kind: BackendVerdict['kind'], reason: RegExp, what = '') {
  const came = await verdict;
  assert.equal(came.kind, kind, `${what} ${JSON.stringify(came)}`);
  assert.match('reason' in came ? came.reason : '', reason, what);
}

/** The values of a request, by type. */
function valuesOf(packet: Buffer): Map<number, Buffer> {
  const values = new Map<number, Buffer>();
  for (let at = 20; at < packet.length; at += packet.readUInt8(at + 1)) {
    values.set(packet.readUInt8(at), packet.subarray(at + 2, at + packet.readUInt8(at + 1)));
  }
  return values;
}

test('a request is signed first of all, hides the password and says who asks for whom', async (t) => {
  const { text, requests } = await server(t, (request, reply) => reply(answer(request)));
  assert.deepEqual(await login(open([text])), { kind: 'accepted', user: 'alice', groups: [] });
  const [request] = requests;
  assert.ok(request !== undefined);
  assert.equal(request.readUInt8(0), 1);
  assert.equal(request.readUInt16BE(2), request.length);
  assert.equal(request.readUInt8(20), 80);
  const signed = Buffer.from(request);
  signed.fill(0, 22, 38);
  assert.deepEqual(request.subarray(22, 38), createHmac('md5', SECRET).update(signed).digest());
  assert.ok(!request.includes('correct') && !request.includes(SECRET));
  const values = valuesOf(request);
  const mask = createHash('md5').update(SECRET).update(request.subarray(4, 20)).digest();
  const password = values.get(2)?.map((byte, index) => byte ^ (mask[index] ?? 0));
  assert.equal(
    Buffer.from(password ?? [])
      .toString()
      .replaceAll('\0', ''),
    'correct horse',
  );
  assert.equal(values.get(1)?.toString(), 'alice');
  assert.equal(values.get(31)?.toString(), '192.0.2.7');
  assert.equal(values.get(32)?.toString(), 'gate');
});

test('what an answer says is read: groups, another spelling of the name, a refusal', async (t) => {
  const groups = [
    [25, 'VPN'],
    [25, 'Other'],
    [25, 'Ops'],
    [11, 'Filter'],
  ] as const;
  const { text } = await server(t, (request, reply) =>
    reply(answer(request, { attributes: [...groups, [1, 'Alice']] })),
  );
  assert.deepEqual(await login(open([text])), { kind: 'accepted', user: 'Alice', groups: ['operators', 'staff'] });
  const byFilter = open([text], { groupAttribute: 'Filter-Id', groups: { Filter: 'few' } });
  assert.deepEqual(await login(byFilter), { kind: 'accepted', user: 'Alice', groups: ['few'] });
  const none = await login(open([text], { groups: undefined }));
  assert.equal(none.kind === 'accepted' && none.groups, undefined);
  const no = await server(t, (request, reply) => reply(answer(request, { code: REJECT })));
  await assertSays(login(open([no.text])), 'refused', /said no/);
  const odd = await server(t, (request, reply) => reply(answer(request, { attributes: [[1, 'a b']] })));
  await assertSays(login(open([odd.text])), 'refused', /no name/);
});

test('an answer that is forged, cut, for another or from elsewhere does not exist', async (t) => {
  const cases: [string, RegExp, (request: Buffer, reply: (bytes: Uint8Array) => void, from: RemoteInfo) => void][] = [
    ['no Message-Authenticator', /no Message-Auth/, (r, reply) => reply(answer(r, { authenticator: 'missing' }))],
    ['wrong Message-Authenticator', /wrong Message-Auth/, (r, reply) => reply(answer(r, { authenticator: 'wrong' }))],
    ['two Message-Authenticators', /wrong Message-Auth/, (r, reply) => reply(answer(r, { authenticator: 'twice' }))],
    ['short Message-Authenticator', /wrong Message-Auth/, (r, reply) => reply(answer(r, { authenticator: 'short' }))],
    ['another secret', /wrong authenticator/, (r, reply) => reply(answer(r, { secret: 'x' }))],
    [
      'another identifier',
      /another request/,
      (r, reply) => reply(answer(r, { identifier: (r.readUInt8(1) + 1) % 256 })),
    ],
    [
      'a no made a yes',
      /wrong authenticator/,
      (r, reply) => reply(Buffer.concat([Buffer.of(ACCEPT), answer(r, { code: REJECT }).subarray(1)])),
    ],
    ['the request itself', /wrong authenticator|code 1/, (r, reply) => reply(r)],
    ['an accounting answer', /code 5/, (r, reply) => reply(answer(r, { code: ACCOUNTED }))],
    ['cut', /wrong length/, (r, reply) => reply(answer(r).subarray(0, 30))],
    ['too short', /3 bytes/, (_, reply) => reply(Buffer.alloc(3))],
    ['too long', /5000 bytes/, (r, reply) => reply(Buffer.concat([answer(r), Buffer.alloc(5000 - answer(r).length)]))],
    ['noise', /another request|wrong/, (_, reply) => reply(randomBytes(64))],
    ['nothing', /no answer$/, () => {}],
    [
      'another port',
      /no answer$/,
      (r, _, from) => {
        const other = createSocket('udp4');
        other.send(answer(r), from.port, from.address, () => other.close());
      },
    ],
  ];
  for (const [what, reason, serve] of cases) {
    const { text, requests } = await server(t, serve);
    await assertSays(login(open([text], { timeoutSeconds: 0.06 })), 'unavailable', reason, what);
    assert.equal(requests.length, 2, what);
    assert.deepEqual(requests[0], requests[1], 'a try is the same packet');
  }
});

test('no changed bit and no noise is taken for an answer', () => {
  const request = Buffer.concat([Buffer.of(1, 7, 0, 20), randomBytes(16)]);
  const good = answer(request, {
    attributes: [
      [25, 'VPN'],
      [18, 'hello'],
    ],
  });
  assert.equal(typeof openReply(good, request, SECRET, true), 'object');
  assert.equal(typeof openReply(Buffer.concat([good, Buffer.alloc(9)]), request, SECRET, true), 'object', 'padding');
  for (let bit = 0; bit < good.length * 8; bit++) {
    const changed = Buffer.from(good);
    changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
    assert.equal(typeof openReply(changed, request, SECRET, true), 'string', `bit ${bit}`);
  }
  for (let length = 0; length < good.length; length++) {
    assert.equal(typeof openReply(good.subarray(0, length), request, SECRET, true), 'string');
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (noise) => {
      // Signed noise: what an attacker with the secret, or a faulty server, could send.
      const packet = Buffer.concat([Buffer.of(ACCEPT, 7, 0, 0), request.subarray(4, 20), noise]);
      packet.writeUInt16BE(packet.length, 2);
      createHash('md5').update(packet).update(SECRET).digest().copy(packet, 4);
      assert.equal(typeof openReply(packet, request, SECRET, true), 'string');
    }),
  );
});

test('a length that is cut inside an attribute is no answer', async (t) => {
  const { text } = await server(t, (request, reply) => {
    const packet = answer(request, { attributes: [[25, 'VPN']] });
    packet.writeUInt8(200, packet.length - 4);
    packet.set(request.subarray(4, 20), 4);
    createHash('md5').update(packet).update(SECRET).digest().copy(packet, 4);
    reply(packet);
  });
  await assertSays(login(open([text])), 'unavailable', /wrong length/);
});

test('the right answer counts after a wrong one, and at the second try; one that is late does not', async (t) => {
  const both = await server(t, (request, reply) => {
    reply(answer(request, { authenticator: 'missing' }));
    reply(answer(request));
  });
  assert.equal((await login(open([both.text]))).kind, 'accepted');
  const second = await server(t, (request, reply) => {
    if (second.requests.length === 2) reply(answer(request));
  });
  assert.equal((await login(open([second.text]))).kind, 'accepted');
  let late = () => {};
  const slow = await server(t, (request, reply) => {
    late = () => reply(answer(request));
  });
  await assertSays(login(open([slow.text])), 'unavailable', /no answer$/);
  late();
});

test('the next server is asked when one is down or silent', async (t) => {
  const silent = await server(t, () => {});
  const good = await server(t, (request, reply) => reply(answer(request)));
  const down = createSocket('udp4');
  await new Promise<void>((resolve) => down.bind(0, '127.0.0.1', resolve));
  const closed = `127.0.0.1:${down.address().port}`;
  await new Promise<void>((resolve) => down.close(resolve));
  assert.equal((await login(open([closed, silent.text, good.text]))).kind, 'accepted');
  await assertSays(login(open([closed])), 'unavailable', /ECONNREFUSED/);
  assert.equal((await open([closed]).recheck()).standing, 'unknown');
});

test('a challenge is asked, and its answer goes to the server that asked, with its State', async (t) => {
  const silent = await server(t, () => {});
  const state = randomBytes(20);
  const asking = await server(t, (request, reply) => {
    const isAnswer = valuesOf(request).has(24);
    const question = {
      code: CHALLENGE,
      attributes: [
        [18, 'Code from \u001b[31myour\n'],
        [18, 'phone:'],
        [24, state],
      ] as const,
    };
    reply(answer(request, isAnswer ? {} : question));
  });
  const backend = open([silent.text, asking.text]);
  const asked = await login(backend);
  assert.ok(asked.kind === 'ask', JSON.stringify(asked));
  assert.equal(asked.prompt, 'Code from  [31myour phone:');
  const before = silent.requests.length;
  assert.equal((await login(backend, { password: '123456', state: asked.state })).kind, 'accepted');
  assert.equal(silent.requests.length, before);
  assert.deepEqual(valuesOf(asking.requests.at(-1) ?? Buffer.alloc(0)).get(24), state);
  for (const forged of ['', '1', '7.AAAA', '1.!', `1.${'A'.repeat(400)}`]) {
    await assertSays(login(backend, { state: forged }), 'refused', /nobody asked/);
  }
  const stateless = await server(t, (request, reply) => reply(answer(request, { code: CHALLENGE })));
  await assertSays(login(open([stateless.text])), 'unavailable', /without State/);
});

test('names and passwords that do not fit are refused before anybody is asked', async (t) => {
  const { text, requests } = await server(t, (request, reply) => reply(answer(request)));
  const backend = open([text]);
  for (const password of ['', 'a\0b', 'a'.repeat(129), 'é'.repeat(65)]) {
    await assertSays(login(backend, { password }), 'refused', /password/);
  }
  for (const user of ['', 'a b', 'a\0', '𝒜'.repeat(64)]) await assertSays(login(backend, { user }), 'refused', /name/);
  assert.equal(requests.length, 0);
  assert.equal((await login(backend, { password: 'a'.repeat(128) })).kind, 'accepted');
});

test('a question that is called off, and a back end that is closed, wait for nothing', async (t) => {
  const heard = Promise.withResolvers<void>();
  const { text } = await server(t, () => heard.resolve());
  const stop = new AbortController();
  const patient = open([text], { timeoutSeconds: 60 });
  const verdict = patient.authenticate({ user: 'alice', password: 'x', source: '' }, stop.signal);
  await heard.promise;
  stop.abort();
  await assertSays(verdict, 'unavailable', /called off/);
  const other = login(patient);
  await patient.close();
  await assertSays(other, 'unavailable', /called off/);
});

test('sessions are accounted, with counters beyond 32 bits and the cause of their end', async (t) => {
  const { text, requests } = await server(t, (request, reply) =>
    reply(answer(request, { code: ACCOUNTED, authenticator: 'missing' })),
  );
  const backend = open(['127.0.0.1:1'], { accountingServers: [text] });
  assert.equal(backend.interimSeconds, 600);
  const report: SessionReport = {
    status: 'stop',
    id: '0a1b2c3d',
    user: 'alice',
    remote: '[2001:db8::7]:5555',
    addresses: ['10.88.0.2', 'fd00::2'],
    seconds: 61.9,
    counters: { receivedBytes: 0x2_0000_0003, receivedPackets: 7, sentBytes: 5, sentPackets: 1 },
    reason: 'idle_timeout',
  };
  await backend.report(report, never);
  const [request] = requests;
  assert.ok(request !== undefined);
  const unsigned = Buffer.from(request);
  unsigned.fill(0, 4, 20);
  assert.deepEqual(request.subarray(4, 20), createHash('md5').update(unsigned).update(SECRET).digest());
  const values = valuesOf(request);
  const number = (type: number) => values.get(type)?.readUInt32BE(0);
  assert.deepEqual([request.readUInt8(0), number(40), number(46), number(49)], [4, 2, 61, 4]);
  assert.deepEqual([number(42), number(52), number(43), number(53), number(47)], [3, 2, 5, 0, 7]);
  assert.deepEqual([values.get(44)?.toString(), values.get(31)?.toString()], ['0a1b2c3d', '2001:db8::7']);
  assert.deepEqual([...(values.get(8) ?? [])], [10, 88, 0, 2]);

  const deaf = await server(t, (r, reply) =>
    reply(answer(r, { code: ACCOUNTED, secret: 'x', authenticator: 'missing' })),
  );
  const unheard = open(['127.0.0.1:1'], { accountingServers: [deaf.text] });
  await assert.rejects(unheard.report(report, never), { code: 'ERR_BACKEND', message: /wrong authenticator/ });
  const silent = open(['127.0.0.1:1']);
  assert.equal(silent.interimSeconds, undefined);
  await silent.report(report, never);
});

test('the codec’s age does not show: no warning is printed', async () => {
  const script = `
    const { RadiusBackend } = await import(${JSON.stringify(join(import.meta.dirname, 'radius.ts'))});
    const { Secret } = await import(${JSON.stringify(join(import.meta.dirname, '../../base/log.ts'))});
    const options = { servers: ['127.0.0.1:9'], nasIdentifier: 'x', groupAttribute: 'Class', tries: 1, timeoutSeconds: 0.1, interimSeconds: 60 };
    const backend = new RadiusBackend({ name: 'x', secret: new Secret('x'), options });
    await backend.authenticate({ user: 'alice', password: 'x', source: '' }, new AbortController().signal);`;
  const { stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script]);
  assert.equal(stderr, '');
});
