/** Writes accounts and their groups, three at a time, until it is killed; says which are committed. A child of store.test.ts. */

import { openStore } from '../../src/store/store.ts';

const store = await openStore(process.argv[2] ?? '');

async function write(id: string): Promise<void> {
  await store.transaction(async (db) => {
    await db.insertInto('users').values({ id, name: id, created_at: 1, disabled_at: null, expires_at: null }).execute();
    await db
      .insertInto('user_groups')
      .values({ user_id: id, name: 'x'.repeat(5000) })
      .execute();
  });
  process.stdout.write(`${id}\n`);
}

for (let i = 0; ; i += 3) await Promise.all([i, i + 1, i + 2].map((number) => write(`${process.pid}-${number}`)));
