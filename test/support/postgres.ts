/**
 * Debian's PostgreSQL with a data folder, socket and port of its own, for tests of the store.
 *
 * Hides how a cluster is made and run by a user without rights. The machine's own cluster, if it runs one, is neither
 * used nor disturbed. It listens on a socket in its folder and on one port of the loopback address, and keeps nothing.
 */

import { readdirSync } from 'node:fs';
import { chmod, chown, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BackgroundProcess, run } from '../lab/process.ts';

const VERSIONS = '/usr/lib/postgresql';
/** Debian's package makes this user. */
const USER = 'postgres';
export const PASSWORD = 'a password with / and @';

/** Why there can be no server here; undefined when there can be. */
export function postgresFault(): string | undefined {
  if (programs() === undefined) return 'there is no PostgreSQL: apt-get install postgresql';
  if (process.getuid?.() !== 0) return 'root is needed to run PostgreSQL as a user without rights';
  return undefined;
}

export class TestPostgres implements AsyncDisposable {
  readonly folder: string;
  readonly port: number;
  #server: BackgroundProcess;
  #databases = 0;

  static async start(): Promise<TestPostgres> {
    const folder = await mkdtemp(join(tmpdir(), 'cvpn-pg-'));
    try {
      await writeFile(join(folder, 'password'), PASSWORD, { mode: 0o644 });
      const [uid, gid] = await ids();
      await chown(folder, uid, gid);
      await chmod(folder, 0o700);
      await run(
        asUser([
          join(programs() ?? '', 'initdb'),
          '--no-sync',
          '--username=vpn',
          `--pwfile=${join(folder, 'password')}`,
          '--auth=scram-sha-256',
          '--encoding=UTF8',
          // Sorts texts otherwise than SQLite: a query that relies on either's order shows.
          '--locale-provider=icu',
          '--icu-locale=en',
          '--locale=C.UTF-8',
          '-D',
          join(folder, 'data'),
        ]),
      );
      const port = await freePort();
      return new TestPostgres(folder, port, await serve(folder, port));
    } catch (error) {
      await rm(folder, { recursive: true, force: true });
      throw error;
    }
  }

  private constructor(folder: string, port: number, server: BackgroundProcess) {
    this.folder = folder;
    this.port = port;
    this.#server = server;
  }

  /** The address of a database, without its password. */
  url(database: string): string {
    return `postgres://vpn@127.0.0.1:${this.port}/${database}`;
  }

  /** Makes an empty database. */
  async create(): Promise<string> {
    const name = `store_${this.#databases++}`;
    await this.query('postgres', `create database ${name}`);
    return this.url(name);
  }

  /** Runs a statement as the owner of everything. */
  async query(database: string, statement: string): Promise<string> {
    const argv = ['psql', '-X', '-At', '-v', 'ON_ERROR_STOP=1', '-h', '127.0.0.1', '-p', `${this.port}`, '-U', 'vpn'];
    const { stdout } = await run([...argv, '-d', database, '-c', statement], { env: { PGPASSWORD: PASSWORD } });
    return stdout.trim();
  }

  /** Has it speak TLS from now on, besides the plain protocol; without a certificate no more. */
  async speakTls(leaf?: { readonly cert: string; readonly key: string }): Promise<void> {
    const [uid, gid] = await ids();
    const files = leaf === undefined ? {} : { 'server.crt': leaf.cert, 'server.key': leaf.key };
    for (const [name, pem] of Object.entries(files)) {
      const file = join(this.folder, 'data', name);
      await writeFile(file, pem, { mode: 0o600 });
      await chown(file, uid, gid);
    }
    await this.query('postgres', `alter system set ssl = ${leaf === undefined ? 'off' : 'on'}`);
    await this.query('postgres', 'select pg_reload_conf()');
  }

  /** Ends it as a loss of power would. */
  async kill(): Promise<void> {
    const control = join(programs() ?? '', 'pg_ctl');
    await run(asUser([control, '-D', join(this.folder, 'data'), '-m', 'immediate', '-w', 'stop']));
    await this.#server.stop();
  }

  async restart(): Promise<void> {
    this.#server = await serve(this.folder, this.port);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#server.stop();
    } finally {
      await rm(this.folder, { recursive: true, force: true });
    }
  }
}

async function serve(folder: string, port: number): Promise<BackgroundProcess> {
  const settings = {
    port,
    listen_addresses: '127.0.0.1',
    unix_socket_directories: folder,
    fsync: 'off',
    full_page_writes: 'off',
    shared_buffers: '16MB',
    max_connections: 200,
    jit: 'off',
  };
  const set = Object.entries(settings).flatMap(([key, value]) => ['-c', `${key}=${value}`]);
  return await BackgroundProcess.start(
    asUser([join(programs() ?? '', 'postgres'), '-D', join(folder, 'data'), ...set]),
    { ready: /ready to accept connections/, readyTimeoutMs: 30_000, stopSignal: 'SIGINT' },
  );
}

function asUser(argv: string[]): string[] {
  return ['setpriv', `--reuid=${USER}`, `--regid=${USER}`, '--init-groups', ...argv];
}

async function ids(): Promise<[number, number]> {
  const [uid, gid] = [await run(['id', '-u', USER]), await run(['id', '-g', USER])];
  return [Number(uid.stdout), Number(gid.stdout)];
}

function programs(): string | undefined {
  try {
    const [newest] = readdirSync(VERSIONS).sort((a, b) => Number(b) - Number(a));
    return newest === undefined ? undefined : join(VERSIONS, newest, 'bin');
  } catch {
    return undefined;
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' && address !== null ? address.port : 0;
}
