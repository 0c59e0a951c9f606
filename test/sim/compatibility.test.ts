/**
 * Clients and gateways of other ages: today's gateway against the recorded bytes of a client, today's client against those
 * of a gateway (docs/vectors.json), and both against what a later version may add.
 *
 * The recorded ends do not use this project's protocol code: frames are cut and made here, by docs/protocol.md.
 */

import assert from 'node:assert/strict';
import { createHash, createPrivateKey, sign } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createServer as createTls, type Server, type TLSSocket } from 'node:tls';
import { VpnClient } from '../../src/client/client.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { TestAuthority, type TestLeaf } from '../support/certificates.ts';
import { icmpPacket } from '../support/packets.ts';
import { equal, type RawClient, SimHost, until, World } from '../support/world.ts';

const { device, login: recorded } = JSON.parse(
  readFileSync(new URL('../../docs/vectors.json', import.meta.url), 'utf8'),
);
const hex = (text: unknown): Buffer => Buffer.from(String(text), 'hex');
/** Ed25519 in PKCS #8: the fixed bytes before a seed. */
const key = createPrivateKey({
  key: Buffer.concat([hex('302e020100300506032b657004220420'), hex(device.seed)]),
  format: 'der',
  type: 'pkcs8',
});
const bodyOf = (frame: Buffer): Record<string, unknown> => JSON.parse(frame.subarray(4).toString());
const frameOf = (type: number, body: object): Buffer => {
  const payload = Buffer.from(JSON.stringify(body));
  return Buffer.concat([Uint8Array.of(type, 0, payload.length >> 8, payload.length & 0xff), payload]);
};
const framed = (type: number, payload: Uint8Array): Buffer =>
  Buffer.concat([Uint8Array.of(type, 0, payload.length >> 8, payload.length & 0xff), payload]);

const Type = {
  login: 1,
  challenge: 2,
  answer: 3,
  accept: 4,
  reject: 5,
  config: 6,
  ping: 7,
  pong: 8,
  close: 9,
} as const;

/** Logs in as the recorded client does: its LOGIN to the byte, its ANSWER but for what has to differ. */
async function replay(
  raw: RawClient,
  token: Uint8Array,
  login = hex(recorded.login),
): Promise<Record<string, unknown>> {
  await raw.greeted();
  raw.write(login);
  const challenge = framed(Type.challenge, await raw.next(Type.challenge));
  const { nonce } = bodyOf(challenge);
  const certificate = raw.socket.getPeerX509Certificate();
  assert.ok(certificate);
  const signed = hex(recorded.signedBytes);
  const server = signed.indexOf(hex('51'.repeat(32)));
  const parts = [
    createHash('sha256')
      .update(certificate.publicKey.export({ type: 'spki', format: 'der' }))
      .digest(),
    raw.socket.exportKeyingMaterial(32, 'EXPORTER-customvpn-1-auth', Buffer.alloc(0)),
    Buffer.from(String(nonce), 'base64url'),
    hex(device.deviceId),
    createHash('sha256').update(raw.greeting).update(login).update(challenge).digest(),
  ];
  Buffer.concat(parts).copy(signed, server);
  const [proof, secret] = [sign(null, signed, key), Buffer.from(token)].map((bytes) => bytes.toString('base64url'));
  const old = hex(recorded.answer).toString('latin1');
  const [oldProof = '', oldSecret = ''] = [...old.matchAll(/"value":"([^"]+)"/g)].map(([, value = '']) => value);
  raw.write(Buffer.from(old.replace(oldProof, String(proof)).replace(oldSecret, String(secret)), 'latin1'));
  return JSON.parse(Buffer.from(await raw.next(Type.accept)).toString());
}

test('REQ-VECTOR-001: a recorded client logs in at this gateway, byte for byte, and its packets flow', async () => {
  await using world = await World.open();
  const { token } = await world.profile('zoë');
  const raw = await world.raw();
  const accept = await replay(raw, token?.reveal() ?? new Uint8Array(0));
  world.keepSessions();
  const old = bodyOf(hex(recorded.accept));
  for (const name of Object.keys(old)) assert.equal(typeof accept[name], typeof old[name], name);
  assert.deepEqual((accept.features as string[]).toSorted(), ['attach', 'super']);
  assert.equal(accept.deviceId, old.deviceId);
  const config = JSON.parse(Buffer.from(await raw.next(Type.config)).toString());
  assert.equal(config.mtu, 1500);
  const up = icmpPacket({ source: config.addresses.v4.address, destination: '192.0.2.80' });
  raw.send(0x20, up);
  await until(() => world.tun.written.some(({ bytes }) => equal(bytes, up)), 'its packet');
});

test('REQ-MESSAGE-002: fields and features that only a later client knows are ignored, and not taken up', async () => {
  await using world = await World.open();
  const { token } = await world.profile('alice');
  const later = bodyOf(hex(recorded.login));
  const login = frameOf(Type.login, {
    ...later,
    features: ['super', 'teleport-2', 'attach'],
    mood: { good: [true, null, 1] },
    device: { ...(later.device as object), attestation: 'x' },
    client: { ...(later.client as object), build: 7 },
  });
  const raw = await world.raw();
  const accept = await replay(raw, token?.reveal() ?? new Uint8Array(0), login);
  world.keepSessions();
  assert.equal((accept.features as string[]).includes('teleport-2'), false);
  await raw.next(Type.config);
  // REQ-FRAME-007: what only a later client sends.
  raw.write(framed(0x9a, Buffer.from('later')));
  raw.send(Type.ping, Buffer.from('ping'));
  assert.equal(Buffer.from(await raw.next(Type.pong)).toString(), 'ping');
});

for (const [what, frame, reason] of [
  [
    'REQ-JSON-008: a field that must be understood',
    frameOf(1, { ...bodyOf(hex(recorded.login)), '!must': 1 }),
    'close',
  ],
  ['REQ-LOGIN-012: a later version', frameOf(1, { ...bodyOf(hex(recorded.login)), version: 2 }), 'reject'],
  ['REQ-FRAME-006: an unknown frame', framed(0x1d, Buffer.from('x')), 'close'],
] as const) {
  test(`${what} of a later client is refused, and says so`, async () => {
    await using world = await World.open();
    const raw = await (await world.raw()).greeted();
    raw.write(frame);
    if (reason === 'close') assert.equal((await raw.message('close')).reason, 'protocol_error');
    else assert.equal((await raw.message('reject')).code, 'version');
    await raw.closed();
  });
}

/** A gateway that says what was recorded, or what it is given, whatever it hears. */
class OldGateway implements AsyncDisposable {
  /** Frames of the client. */
  readonly heard: Buffer[] = [];
  readonly authority: TestAuthority;
  readonly #pin: string;
  readonly #script: Buffer[];
  readonly #server: Server;
  readonly #sockets: TLSSocket[] = [];

  /** @param script one entry for each of LOGIN and ANSWER */
  static async open(script: Buffer[], greeting = hex(recorded.greeting)): Promise<OldGateway> {
    const authority = await TestAuthority.create();
    const leaf = await authority.server({ names: ['vpn.example.com'] });
    const gateway = new OldGateway(authority, script, leaf, greeting);
    gateway.#server.listen(0, '127.0.0.1');
    await once(gateway.#server, 'listening');
    return gateway;
  }

  private constructor(authority: TestAuthority, script: Buffer[], leaf: TestLeaf, hello: Buffer) {
    this.authority = authority;
    this.#pin = leaf.pin;
    this.#script = script;
    this.#server = createTls(
      { cert: leaf.cert, key: leaf.key, ALPNCallback: ({ protocols }) => protocols[0] },
      (socket) => {
        this.#sockets.push(socket);
        socket.on('error', () => {});
        socket.write(hello);
        let rest: Buffer = Buffer.alloc(0);
        socket.on('data', (chunk: Buffer) => {
          rest = Buffer.concat([rest, chunk]);
          while (rest.length >= 4 && rest.length >= 4 + rest.readUIntBE(1, 3)) {
            const length = 4 + rest.readUIntBE(1, 3);
            const frame = rest.subarray(0, length);
            rest = rest.subarray(length);
            this.heard.push(frame);
            const answer = frame[0] === Type.login || frame[0] === Type.answer ? this.#script.shift() : undefined;
            if (answer !== undefined) socket.write(answer);
          }
        });
      },
    );
  }

  send(bytes: Buffer): void {
    for (const socket of this.#sockets) socket.write(bytes);
  }

  /** The client of the recording. */
  client(): { client: VpnClient; host: SimHost } {
    const address = this.#server.address();
    assert.ok(typeof address === 'object' && address !== null);
    const host = new SimHost({ superPackets: false });
    const client = new VpnClient({
      serverHost: '127.0.0.1',
      serverPort: address.port,
      serverName: 'vpn.example.com',
      ca: this.authority.cert,
      pins: [this.#pin],
      deviceKey: DeviceKey.parse(key.export({ type: 'pkcs8', format: 'pem' }).toString()),
      token: Buffer.from(Array.from({ length: 40 }, (_, at) => at)),
      host,
    });
    return { client, host };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

const CONFIG = {
  revision: 1,
  addresses: { v4: { address: '10.9.0.2', gateway: '10.9.0.1' } },
  routes: ['192.0.2.0/24'],
  dns: { servers: [], domains: [] },
  mtu: 1400,
  ping: { intervalSeconds: 20, deadSeconds: 60 },
  data: { mode: 'inline', channels: 0 },
  transports: [],
  pins: [],
};
const challenge = hex(recorded.challenge);
/** Without `super`: a device in memory has none. */
const accept = frameOf(Type.accept, { ...bodyOf(hex(recorded.accept)), features: ['attach'] });
const later = { since: 'version 9', nested: { a: [1] } };

for (const [what, script] of [
  ['REQ-VECTOR-001: as recorded', [challenge, Buffer.concat([accept, frameOf(Type.config, CONFIG)])]],
  [
    'REQ-MESSAGE-002: with fields of a later version',
    [
      frameOf(Type.challenge, { ...bodyOf(challenge), ...later }),
      Buffer.concat([
        frameOf(Type.accept, { ...bodyOf(accept), ...later }),
        frameOf(Type.config, { ...CONFIG, ...later, data: { ...CONFIG.data, ...later }, transports: ['quic-9'] }),
        // REQ-FRAME-007
        framed(0x9a, Buffer.from('later')),
      ]),
    ],
  ],
] as const) {
  test(`a gateway that answers ${what}: this client connects, and packets flow`, async () => {
    await using gateway = await OldGateway.open([...script]);
    const { client, host } = gateway.client();
    await client.connect({ once: true });
    const [login, answer] = gateway.heard;
    const old = bodyOf(hex(recorded.login));
    assert.deepEqual(
      { ...bodyOf(login ?? Buffer.alloc(4)), features: 0, client: 0 },
      { ...old, features: 0, client: 0 },
      'what an old gateway reads of LOGIN',
    );
    assert.deepEqual(Object.keys(bodyOf(answer ?? Buffer.alloc(4))), ['answers']);
    const packet = icmpPacket({ source: '192.0.2.1', destination: '10.9.0.2' });
    gateway.send(framed(0x20, packet));
    await until(() => host.tun.written.some(({ bytes }) => equal(bytes, packet)), 'a packet');
    await client.disconnect();
  });
}

const withSteps = (...kinds: string[]): Buffer =>
  frameOf(Type.challenge, { ...bodyOf(challenge), steps: kinds.map((kind) => ({ kind })) });
for (const [what, script, code] of [
  [
    'REQ-MESSAGE-006: a reject code of a later version',
    [frameOf(Type.reject, { code: 'later', message: '' })],
    'ERR_AUTH_REJECTED',
  ],
  ['REQ-MESSAGE-006: a close reason of a later version', [frameOf(Type.close, { reason: 'later' })], 'ERR_PEER_GONE'],
  [
    'REQ-LOGIN-017: a feature that was not offered',
    [challenge, frameOf(Type.accept, { ...bodyOf(accept), features: ['teleport-2'] })],
    'ERR_MESSAGE_FIELD',
  ],
  [
    'REQ-JSON-008: a field that must be understood',
    [frameOf(Type.challenge, { ...bodyOf(challenge), '!must': 1 })],
    'ERR_MESSAGE_FIELD',
  ],
  ['REQ-FRAME-006: an unknown frame', [framed(0x1d, Buffer.from('x'))], 'ERR_FRAME_TYPE'],
] as const) {
  test(`${what}, from a gateway: ${code}`, async () => {
    await using gateway = await OldGateway.open([...script]);
    const { client } = gateway.client();
    await assert.rejects(client.connect({ once: true }), { code });
    await client.stopped;
  });
}

test('REQ-LOGIN-019: a step that only a later client knows is answered with CLOSE, and nothing is told', async () => {
  await using gateway = await OldGateway.open([withSteps('device', 'retina')]);
  const { client } = gateway.client();
  await assert.rejects(client.connect({ once: true }));
  await until(() => gateway.heard.length >= 2, 'CLOSE');
  const [first, ...others] = gateway.heard.map((frame) => frame[0]);
  assert.equal(first, Type.login);
  assert.deepEqual(new Set(others), new Set([Type.close]));
});

test('REQ-GREETING-002: a greeting without a version is that of version 1, one of version 2 is ERR_PROTOCOL_VERSION', async () => {
  const script = () => [challenge, Buffer.concat([accept, frameOf(Type.config, CONFIG)])];
  await using first = await OldGateway.open(script(), Buffer.from('OK VPN-HELLO\r\n'));
  const { client } = first.client();
  await client.connect({ once: true });
  await client.disconnect();
  await using second = await OldGateway.open(script(), Buffer.from('OK VPN-HELLO 2\r\n'));
  const other = second.client();
  await assert.rejects(other.client.connect({ once: true }), { code: 'ERR_PROTOCOL_VERSION' });
  await other.client.stopped;
});
