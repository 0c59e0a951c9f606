/** The LDAP back end against directories that lie, stall, flood and hang up; test/interop has it against a real one. */

import assert from 'node:assert/strict';
import { createServer, type Server, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { createSecureContext, TLSSocket } from 'node:tls';
import { TestAuthority } from '../../../test/support/certificates.ts';
import { Secret } from '../../base/log.ts';
import type { BackendVerdict } from './backend.ts';
import { escapeDn, escapeFilter, LdapBackend, type LdapOptions } from './ldap.ts';

const never = new AbortController().signal;
const authority = await TestAuthority.create();
const leaf = await authority.server();

/** ExtendedResponse of message 1: success, and unwilling. */
const YES_TO_TLS = Buffer.from('300c02010178070a010004000400', 'hex');
const NO_TO_TLS = Buffer.from('300c02010178070a013504000400', 'hex');
/** BindResponse, success. */
const bound = (id: number) => Buffer.from([0x30, 0x0c, 0x02, 0x01, id, 0x61, 0x07, 0x0a, 0x01, 0, 4, 0, 4, 0]);

interface Directory {
  readonly url: string;
  /** Everything that came outside TLS. */
  readonly heard: () => Buffer;
  readonly connections: () => number;
}

async function directory(t: TestContext, converse: (socket: Socket) => void): Promise<Directory> {
  const sockets = new Set<Socket>();
  const heard: Buffer[] = [];
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.on('data', (chunk: Buffer) => {
      heard.push(chunk);
      converse(socket);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  return {
    url: `ldap://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`,
    heard: () => Buffer.concat(heard),
    connections: () => sockets.size,
  };
}

function open(url: string, options: Partial<LdapOptions> = {}): LdapBackend {
  return new LdapBackend({
    name: 'office',
    ca: authority.cert,
    bindPassword: new Secret('searcher'),
    options: {
      urls: [url],
      startTls: true,
      insecure: false,
      bindDn: 'cn=vpn',
      baseDn: 'dc=example',
      filter: '(uid={user})',
      nameAttribute: 'uid',
      groupAttribute: 'memberOf',
      groupFilter: '(member={dn})',
      timeoutSeconds: 5,
      ...options,
    },
  });
}

const plain = { startTls: false, insecure: true };
const login = (backend: LdapBackend, signal = never): Promise<BackendVerdict> =>
  backend.authenticate({ user: 'alice', password: 'correct horse' }, signal);

async function assertUnavailable(verdict: Promise<BackendVerdict>, reason: RegExp): Promise<void> {
  const came = await verdict;
  assert.equal(came.kind, 'unavailable', JSON.stringify(came));
  assert.match('reason' in came ? came.reason : '', reason);
}

test('values are escaped in filters and DNs', () => {
  assert.equal(escapeFilter('a*)(uid=\\\0é'), 'a\\2a\\29\\28uid=\\5c\\00é');
  assert.equal(escapeDn('a,b+c="d" <é>;\\\0#'), 'a\\2cb\\2bc\\3d\\22d\\22\\20\\3cé\\3e\\3b\\5c\\00\\23');
  assert.equal(escapeDn('alice.b_c@example-org'), 'alice.b_c@example-org');
});

test('a directory that does not agree to StartTLS hears no password', async (t) => {
  for (const answer of [NO_TO_TLS, bound(1), Buffer.from('HTTP/1.1 400\r\n\r\n'), Buffer.from('300c0201', 'hex')]) {
    const { url, heard } = await directory(t, (socket) => socket.end(answer));
    await assertUnavailable(login(open(url)), /StartTLS/);
    assert.doesNotMatch(heard().toString('latin1'), /searcher|horse/);
  }
});

test('bytes that came beside the answer to StartTLS do not count as said under TLS', async (t) => {
  // The beginning of a forged answer to the bind; the first bytes under TLS would complete it.
  const forged = bound(2).subarray(0, 10);
  const { url, heard } = await directory(t, (socket) => socket.write(Buffer.concat([YES_TO_TLS, forged])));
  await assertUnavailable(login(open(url)), /StartTLS/);
  assert.equal(heard().length, 31);
});

test('a connection that is lost under TLS is not made again without TLS', async (t) => {
  let upgraded = false;
  const { url, heard, connections } = await directory(t, (socket) => {
    if (upgraded) return;
    upgraded = true;
    socket.removeAllListeners('data');
    socket.write(YES_TO_TLS);
    const secure = new TLSSocket(socket, { isServer: true, secureContext: createSecureContext(leaf) });
    secure.on('error', () => {});
    secure.once('data', () => {
      secure.write(bound(2));
      secure.end();
    });
  });
  await assertUnavailable(login(open(url)), /lost|closed|Socket/i);
  assert.equal(connections(), 1);
  assert.equal(heard().length, 31);
});

test('nonsense, silence and a lost connection are no refusal', async (t) => {
  const short = { ...plain, timeoutSeconds: 0.2 };
  const nonsense = await directory(t, (socket) => socket.write('SSH-2.0-OpenSSH_9.2\r\n'));
  await assertUnavailable(login(open(nonsense.url, short)), /no answer in time/);
  const silent = await directory(t, () => {});
  await assertUnavailable(login(open(silent.url, short)), /no answer in time/);
  await assertUnavailable(login(open(silent.url, { timeoutSeconds: 0.2 })), /no answer in time/);
  assert.equal((await open(silent.url, short).recheck('alice', never)).standing, 'unknown');
  const lost = await directory(t, (socket) => socket.destroy());
  await assertUnavailable(login(open(lost.url, plain)), /closed/i);
  // An answer cut in the middle.
  const cut = await directory(t, (socket) => socket.end(bound(2).subarray(0, 9)));
  await assertUnavailable(login(open(cut.url, plain)), /closed/i);
});

test('a flood ends the connection, and many small messages at once are read', async (t) => {
  // One message that says it is long: 64 MiB, of which no more than a megabyte is taken.
  let sent = 0;
  const flood = await directory(t, (socket) => {
    const more = () => {
      sent += 65_536;
      if (!socket.destroyed && sent < 67_108_864) socket.write(Buffer.alloc(65_536, 0x30), more);
    };
    socket.write(Buffer.from('308404000000', 'hex'), more);
  });
  await assertUnavailable(login(open(flood.url, plain)), /closed/i);
  assert.ok(sent < 16_777_216, `${sent} bytes were taken`);

  const small = Buffer.concat(Array.from({ length: 60_000 }, () => bound(99)));
  const many = await directory(t, (socket) => socket.end(small));
  await assertUnavailable(login(open(many.url, plain)), /closed/i);
});

test('a login that is called off, and a back end that is closed, wait for nothing', async (t) => {
  const asked = Promise.withResolvers<void>();
  const { url } = await directory(t, () => asked.resolve());
  const stop = new AbortController();
  const verdict = login(open(url, plain), stop.signal);
  await asked.promise;
  stop.abort();
  await assertUnavailable(verdict, /office/);

  const backend = open(url, plain);
  const other = login(backend);
  await backend.close();
  await assertUnavailable(other, /office/);
});

test('no more than 64 questions are asked at once', async (t) => {
  const { url } = await directory(t, () => {});
  const backend = open(url, plain);
  const waiting = Array.from({ length: 64 }, () => login(backend));
  await assertUnavailable(login(backend), /too many questions/);
  await backend.close();
  for (const verdict of waiting) await assertUnavailable(verdict, /office/);
});
