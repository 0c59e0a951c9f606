/**
 * Through real proxies: tinyproxy (HTTP CONNECT with a password), the same in TLS by stunnel, and microsocks (SOCKS 5 with a
 * password).
 */

import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { parseProxyUrl } from '../../src/transport/outbound-proxy.ts';
import { TestAuthority } from '../support/certificates.ts';
import { addressOf, exchange, until, World } from '../support/world.ts';

const has = (program: string) => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
const missing = (program: string, packageName: string) =>
  has(program) ? false : `${program} is not installed: apt-get install ${packageName}`;

/** A port that nobody has a moment later, either. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function start(program: string, args: readonly string[], port: number): Promise<ChildProcess> {
  const child = spawn(program, args, { stdio: 'ignore' });
  await until(
    () =>
      new Promise<boolean>((resolve) => {
        const socket = connect(port, '127.0.0.1', () => resolve(true)).on('error', () => resolve(false));
        socket.on('connect', () => socket.destroy());
      }),
    `${program} to listen`,
  );
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  const gone = once(child, 'exit');
  child.kill();
  await gone;
}

const KINDS = [
  {
    name: 'tinyproxy',
    scheme: 'http',
    skip: missing('tinyproxy', 'tinyproxy-bin'),
    argsOf: (folder: string, port: number) => {
      const file = join(folder, 'tinyproxy.conf');
      writeFileSync(file, `Port ${port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nBasicAuth ada s3cret\n`);
      return ['-d', '-c', file];
    },
    refusal: /refuses this user and password/,
  },
  {
    name: 'microsocks',
    scheme: 'socks5',
    skip: missing('microsocks', 'microsocks'),
    argsOf: (_folder: string, port: number) => ['-i', '127.0.0.1', '-p', String(port), '-u', 'ada', '-P', 's3cret'],
    refusal: /refuses this user and password/,
  },
] as const;

for (const { name, scheme, skip, argsOf, refusal } of KINDS) {
  describe(`a gateway behind ${name}`, { skip }, () => {
    let folder: string;
    let child: ChildProcess;
    let port: number;

    before(async () => {
      folder = mkdtempSync(join(tmpdir(), 'customvpn-proxy-'));
      port = await freePort();
      child = await start(name, argsOf(folder, port), port);
    });
    after(async () => {
      if (child !== undefined) await end(child);
      rmSync(folder, { recursive: true });
    });

    const through = (password: string) => {
      const proxy = parseProxyUrl(`${scheme}://ada:${password}@127.0.0.1:${port}`, 'test');
      return () => proxy;
    };

    test('packets flow, and the session is resumed through it', async () => {
      await using world = await World.open();
      const sim = await world.connected('alice', { serverHost: 'localhost', proxy: through('s3cret') });
      assert.equal(sim.client.snapshot.tls?.remote.port, port);
      await exchange(world, sim, 4);
      await exchange(world, sim, 6);
      const address = addressOf(sim, 4);
      await world.server.stop();
      await world.restart();
      await until(() => sim.client.snapshot.resumes === 1 && sim.client.snapshot.state === 'connected', 'the resume');
      assert.equal(addressOf(sim, 4), address);
      await exchange(world, sim, 4);
      world.secrets.add('s3cret');
    });

    test('a wrong password is told, and so is a closed port behind it', async () => {
      await using world = await World.open();
      const sim = await world.client('bob', { proxy: through('wrong') });
      await assert.rejects(sim.client.connect({ once: true }), (error: Error & { code?: string }) => {
        assert.equal(error.code, 'ERR_PROXY_AUTH', error.message);
        assert.match(error.message, refusal);
        return true;
      });
      const closed = await world.client('carol', { proxy: through('s3cret'), serverPort: 1 });
      await assert.rejects(closed.client.connect({ once: true }), (error: Error & { code?: string }) => {
        assert.ok(['ERR_PROXY', 'ERR_PEER_GONE'].includes(error.code ?? ''), `${error.code}: ${error.message}`);
        return true;
      });
    });
  });
}

describe('a gateway behind tinyproxy in TLS', { skip: KINDS[0].skip || missing('stunnel4', 'stunnel4') }, () => {
  const authorities = getCACertificates('default');
  let folder: string;
  let authority: TestAuthority;
  let port: number;
  const children: ChildProcess[] = [];

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'customvpn-proxy-'));
    authority = await TestAuthority.create();
    const { cert, key } = await authority.server();
    writeFileSync(join(folder, 'pair.pem'), `${key}\n${cert}\n`, { mode: 0o600 });
    const inner = await freePort();
    children.push(await start('tinyproxy', KINDS[0].argsOf(folder, inner), inner));
    port = await freePort();
    const file = join(folder, 'stunnel.conf');
    const service = ['[proxy]', `accept = 127.0.0.1:${port}`, `connect = 127.0.0.1:${inner}`];
    writeFileSync(file, ['foreground = yes', 'pid =', `cert = ${join(folder, 'pair.pem')}`, ...service, ''].join('\n'));
    children.push(await start('stunnel4', [file], port));
  });
  after(async () => {
    setDefaultCACertificates(authorities);
    for (const child of children) await end(child);
    rmSync(folder, { recursive: true });
  });

  const through = (password: string) => {
    const proxy = parseProxyUrl(`https://ada:${password}@localhost:${port}`, 'test');
    return () => proxy;
  };

  test('a proxy whose certificate nobody has signed hears no password', async () => {
    await using world = await World.open();
    const sim = await world.client('alice', { proxy: through('s3cret') });
    await assert.rejects(sim.client.connect({ once: true }), (error: Error & { code?: string }) => {
      assert.equal(error.code, 'ERR_PROXY', error.message);
      return /no TLS with/.test(error.message);
    });
  });

  test('packets flow, and the session is resumed through it; a wrong password is told', async () => {
    setDefaultCACertificates([...authorities, authority.cert]);
    await using world = await World.open();
    const sim = await world.connected('alice', { serverHost: 'localhost', proxy: through('s3cret') });
    assert.equal(sim.client.snapshot.tls?.remote.port, port);
    await exchange(world, sim, 4);
    const address = addressOf(sim, 4);
    await world.server.stop();
    await world.restart();
    await until(() => sim.client.snapshot.resumes === 1 && sim.client.snapshot.state === 'connected', 'the resume');
    assert.equal(addressOf(sim, 4), address);
    await exchange(world, sim, 4);
    world.secrets.add('s3cret');
    const wrong = await world.client('bob', { proxy: through('wrong') });
    await assert.rejects(wrong.client.connect({ once: true }), { code: 'ERR_PROXY_AUTH' });
  });
});
