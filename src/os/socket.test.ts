import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, createServer, type Server, Socket } from 'node:net';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { NativeMemory, nativeCalls } from './ffi.ts';
import { closeFd, openListenSocket, socketFd, TcpPath, tuneSocket, UnsentGate } from './socket.ts';

const skip = process.platform === 'linux' ? false : 'this machine does not run Linux';
const kernelHas = (name: string): boolean =>
  skip === false &&
  readFileSync('/proc/sys/net/ipv4/tcp_available_congestion_control', 'utf8').trim().split(' ').includes(name);

async function serve(fd: number): Promise<{ server: Server; accepted: Promise<Socket> }> {
  const server = createServer();
  const accepted = once(server, 'connection').then(([socket]: Socket[]) => socket as Socket);
  server.listen({ fd });
  await once(server, 'listening');
  return { server, accepted };
}

async function dial(port: number, host: string): Promise<Socket> {
  const socket = connect(port, host);
  await once(socket, 'connect');
  return socket;
}

for (const [address, from] of [
  ['127.0.0.1', '127.0.0.1'],
  ['::1', '::1'],
  ['::', '127.0.0.1'],
  ['::', '::1'],
  ['0.0.0.0', '127.0.0.1'],
] as const) {
  test(`a socket listening on ${address} takes a connection from ${from}`, { skip }, async () => {
    const listening = openListenSocket({ address, port: 0 });
    const { server, accepted } = await serve(listening.fd);
    const client = await dial(listening.port, from);
    const peer = await accepted;
    assert.equal(peer.localPort, listening.port);
    client.destroy();
    peer.destroy();
    server.close();
  });
}

test('an IPv6 address other than :: does not take its port for IPv4', { skip }, () => {
  const six = openListenSocket({ address: '::1', port: 0 });
  const four = openListenSocket({ address: '127.0.0.1', port: six.port });
  assert.equal(four.port, six.port);
  closeFd(six.fd);
  closeFd(four.fd);
});

test('accepted sockets inherit what was set on the listening socket', { skip }, async () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0, congestion: 'reno' });
  assert.equal(listening.congestion, 'reno');
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const peer = await accepted;
  assert.equal(tuneSocket(socketFd(peer), {}).congestion, 'reno');
  client.destroy();
  peer.destroy();
  server.close();
});

test('BBR is in force where the kernel has it', { skip: kernelHas('bbr') ? false : 'no BBR in this kernel' }, () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0, congestion: 'bbr', notSentLowat: 8192 });
  assert.equal(listening.congestion, 'bbr');
  closeFd(listening.fd);
});

test('a congestion control that the kernel lacks is left out, and said', { skip }, () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0, congestion: 'no_such_control' });
  assert.notEqual(listening.congestion, 'no_such_control');
  assert.notEqual(listening.congestion, '');
  closeFd(listening.fd);
});

test('a taken port has its own code', { skip }, () => {
  const first = openListenSocket({ address: '127.0.0.1', port: 0 });
  assert.throws(
    () => openListenSocket({ address: '127.0.0.1', port: first.port }),
    (error) => isVpnError(error, 'ERR_PORT_TAKEN') && error.details.port === first.port,
  );
  assert.throws(
    () => openListenSocket({ address: '127.0.0.1', port: first.port, reusePort: true }),
    (error) => isVpnError(error, 'ERR_PORT_TAKEN'),
  );
  closeFd(first.fd);
});

test('sockets that share a port on purpose do share it', { skip }, () => {
  const first = openListenSocket({ address: '127.0.0.1', port: 0, reusePort: true });
  const second = openListenSocket({ address: '127.0.0.1', port: first.port, reusePort: true });
  assert.equal(second.port, first.port);
  closeFd(first.fd);
  closeFd(second.fd);
});

test('an address that is not of this machine, or none at all, is a configuration error', { skip }, () => {
  for (const address of ['192.0.2.1', '2001:db8::1', 'localhost', '127.1']) {
    assert.throws(
      () => openListenSocket({ address, port: 0 }),
      (error) => isVpnError(error, 'ERR_CONFIG_VALUE'),
      address,
    );
  }
});

test('a failed open leaves no descriptor behind', { skip }, () => {
  const first = openListenSocket({ address: '127.0.0.1', port: 0 });
  assert.throws(() => openListenSocket({ address: '127.0.0.1', port: first.port }));
  const next = openListenSocket({ address: '127.0.0.1', port: 0 });
  assert.equal(next.fd, first.fd + 1);
  closeFd(first.fd);
  closeFd(next.fd);
});

/** What the kernel says of TCP_RTO_MAX_MS; undefined before Linux 6.15. */
function maxRetransmitOf(socket: Socket): number | undefined {
  const [value, length] = [new NativeMemory(4), new NativeMemory(4)];
  length.view.setUint32(0, 4, true);
  const result = nativeCalls().getsockopt(socketFd(socket), 6, 44, value.address, length.address);
  return result < 0 ? undefined : value.view.getInt32(0, true);
}

test('what was lost is sent again within a second at most, where the kernel can, at both ends', { skip }, async (t) => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0, maxRetransmitMs: 1000 });
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const peer = await accepted;
  const standard = maxRetransmitOf(client);
  tuneSocket(socketFd(client), { maxRetransmitMs: 1000 });
  if (standard === undefined) t.diagnostic('this kernel is older than 6.15: nothing is set, and nothing fails');
  else {
    assert.equal(standard, 120_000);
    assert.equal(maxRetransmitOf(client), 1000);
    assert.equal(maxRetransmitOf(peer), 1000, 'an accepted connection has it from its listening socket');
  }
  client.destroy();
  peer.destroy();
  server.close();
});

test('options of a dialled socket are set; a socket without a descriptor is refused', { skip }, async () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0 });
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const tuned = tuneSocket(socketFd(client), {
    congestion: 'reno',
    notSentLowat: 8192,
    userTimeoutMs: 20_000,
    noDelay: true,
  });
  assert.equal(tuned.congestion, 'reno');
  (await accepted).destroy();
  client.destroy();
  server.close();
  for (const socket of [client, new Socket()]) {
    assert.throws(
      () => socketFd(socket),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
    );
  }
  assert.throws(
    () => tuneSocket(-1, { noDelay: true }),
    (error) => isVpnError(error, 'ERR_SYSCALL') && error.details.errno === 'EBADF',
  );
});

test('the gate counts unsent bytes, stays shut while the peer does not read, and opens when it does', {
  skip,
}, async () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0 });
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const peer = await accepted;
  tuneSocket(socketFd(client), { notSentLowat: 8192 });
  await using cleanup = new AsyncDisposableStack();
  const gate = cleanup.adopt(new UnsentGate(socketFd(client)), (it) => it.close());
  cleanup.defer(() => {
    client.destroy();
    peer.destroy();
    server.close();
  });
  assert.equal(gate.unsent(), 0);

  // More than every buffer on the way holds: what stays unsent is then stuck until the peer reads.
  client.write(new Uint8Array(32 << 20));
  let stuck = gate.unsent();
  for (let calm = 0; calm < 200; calm += 1) {
    await new Promise((done) => setImmediate(done));
    if (gate.unsent() !== stuck) calm = 0;
    stuck = gate.unsent();
  }
  assert.ok(stuck > 8192, `unsent ${stuck}`);

  let isOpen = false;
  const opened = new Promise<void>((done) =>
    gate.whenWritable(() => {
      isOpen = true;
      done();
    }),
  );
  for (let turn = 0; turn < 20; turn += 1) await new Promise((done) => setImmediate(done));
  assert.equal(isOpen, false);
  peer.resume();
  await opened;
});

test('a closed gate calls nobody, and lets the connection end', { skip }, async () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0 });
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const peer = await accepted;
  const gate = new UnsentGate(socketFd(client));
  gate.whenWritable(() => assert.fail('called after close'));
  const closed = gate.close();
  gate.whenWritable(() => assert.fail('called after close'));
  await Promise.all([closed, gate.close()]);
  assert.equal(gate.unsent(), 0);
  client.destroy();
  peer.resume();
  await once(peer, 'close');
  server.close();
});

test('a path tells round trips and segments, and takes another congestion control while data flows', {
  skip,
}, async () => {
  const listening = openListenSocket({ address: '127.0.0.1', port: 0 });
  const { server, accepted } = await serve(listening.fd);
  const client = await dial(listening.port, '127.0.0.1');
  const peer = await accepted;
  const path = new TcpPath(socketFd(client));
  const facts = { rttMs: -1, minRttMs: -1, sentSegments: -1, resentSegments: -1, ackedBytes: -1 };
  assert.ok(path.read(facts));
  assert.equal(facts.sentSegments, 0);
  client.write(Buffer.alloc(1000));
  await once(peer, 'data');
  assert.ok(path.use('reno'));
  assert.equal(path.congestion, 'reno');
  assert.equal(path.use('no_such_control'), false);
  assert.equal(path.congestion, 'reno');
  client.write(Buffer.alloc(1000));
  await once(peer, 'data');
  assert.ok(path.read(facts));
  assert.equal(facts.sentSegments, 2);
  assert.equal(facts.resentSegments, 0);
  assert.ok(facts.ackedBytes >= 0);
  assert.ok(facts.rttMs > 0 && facts.rttMs < 1000, `${facts.rttMs} ms on loopback`);
  assert.ok(facts.minRttMs > 0 && facts.minRttMs <= facts.rttMs + 1, `${facts.minRttMs} ms on loopback`);
  peer.destroy();
  client.destroy();
  server.close();
  assert.equal(new TcpPath(listening.fd).read(facts), false, 'of a closed descriptor nothing is told');
});
