/**
 * Stores for tests that run on every database: in memory, or, where a server is named, one of its databases for each.
 *
 * `test/interop/postgres.test.ts` names the server and runs the same test files again.
 */

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { openStore, type Store } from '../../src/store/store.ts';

/** `postgres://USER@HOST/DATABASE`, where databases may be made. */
export const POSTGRES_URL = 'CUSTOMVPN_TEST_POSTGRES_URL';
export const POSTGRES_PASSWORD = 'CUSTOMVPN_TEST_POSTGRES_PASSWORD';

/** The databases of this process, by the path that tests gave. */
const databases = new Map<string, Promise<string>>();

/** True where every test's store is a database of a server. */
export const isServer = process.env[POSTGRES_URL] !== undefined;

/** @param path the same one: the same store */
export async function openTestStore(path = ':memory:'): Promise<Store> {
  const { [POSTGRES_URL]: server, [POSTGRES_PASSWORD]: password } = process.env;
  if (server === undefined) return await openStore(path);
  const known = path === ':memory:' ? undefined : databases.get(path);
  const made = known ?? makeDatabase(new URL(server), password ?? '');
  if (path !== ':memory:') databases.set(path, made);
  return await openStore({ url: await made, password, connections: 3 });
}

async function makeDatabase(server: URL, password: string): Promise<string> {
  const { hostname, port, username } = server;
  const client = new pg.Client({ host: hostname, port: Number(port), user: username, password, database: 'postgres' });
  const name = `test_${randomBytes(6).toString('hex')}`;
  await client.connect();
  await client.query(`create database ${name}`);
  await client.end();
  const url = new URL(server);
  url.pathname = `/${name}`;
  return url.href;
}
