/**
 * Many accounts and sessions in the store of a gateway that does not run.
 *
 * Hides the tables. A gateway that starts takes the sessions up like those of a gateway before it: they are in its book, with their
 * leases, and wait for clients that never come.
 */

import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';

export interface Population {
  readonly users: number;
  /** Of the first so many users, a device and a session each. */
  readonly sessions: number;
}

/** What the sessions have their addresses of: the gateway's pool. */
export const POPULATION_POOL = ['10.88.0.0/16', 'fd88::/64'];
const GROUPS = 50;
const FEATURES = 'attach,resume,rekey,drain,super,uso';
const SEALED_KEY_BYTES = 61;
const PUBLIC_KEY_BYTES = 91;

/** The name of a user of the population. */
export const nameOf = (index: number): string => `user${String(index).padStart(5, '0')}`;

/** @param dir the state directory; its database is there, and nobody has it open */
export function populate(dir: string, { users, sessions }: Population): void {
  using db = new DatabaseSync(join(dir, 'store.sqlite'));
  db.exec('begin');
  const now = Date.now();
  const user = db.prepare('insert into users (id, name, created_at) values (?, ?, ?)');
  const group = db.prepare('insert into user_groups (user_id, name) values (?, ?)');
  for (let index = 0; index < users; index++) {
    const id = userId(index);
    user.run(id, nameOf(index), now);
    group.run(id, `group${index % GROUPS}`);
  }
  const device = db.prepare(`insert into devices (id, user_id, name, algorithm, public_key, created_at, approved_at)
    values (?, ?, 'laptop', 'p256', ?, ?, ?)`);
  const session = db.prepare(`insert into sessions
    (id, user_id, device_id, worker, epoch, resume_key, lease4, lease6, policy_generation, source, opened_at, steps, features)
    values (?, ?, ?, 0, 0, ?, ?, ?, 1, ?, ?, 'device,token', '${FEATURES}')`);
  for (let index = 0; index < sessions; index++) {
    const deviceId = randomBytes(16).toString('hex');
    device.run(deviceId, userId(index), randomBytes(PUBLIC_KEY_BYTES), now, now);
    // Past the first addresses, of which clients have some.
    const host = 256 + index;
    const [high, low] = [host >> 8, host & 255];
    const lease = [`10.88.${high}.${low}`, `fd88::${host.toString(16)}`] as const;
    const key = randomBytes(SEALED_KEY_BYTES);
    session.run(
      randomBytes(16).toString('hex'),
      userId(index),
      deviceId,
      key,
      ...lease,
      `198.51.${high}.${low}:500`,
      now,
    );
  }
  db.exec('commit');
}

function userId(index: number): string {
  return String(index).padStart(32, '0');
}
