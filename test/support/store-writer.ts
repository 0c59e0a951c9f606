/** Writes accounts and their audit rows until it is killed; says which are committed. A child of store.test.ts. */

import { openStore } from '../../src/store/store.ts';

const store = await openStore(process.argv[2] ?? '');
for (let i = 0; ; i++) {
  await store.transaction(async (db) => {
    const id = `${process.pid}-${i}`;
    await db.insertInto('users').values({ id, name: id, created_at: 1, disabled_at: null, expires_at: null }).execute();
    await db
      .insertInto('user_groups')
      .values({ user_id: id, name: 'x'.repeat(5000) })
      .execute();
  });
  process.stdout.write(`${process.pid}-${i}\n`);
}
