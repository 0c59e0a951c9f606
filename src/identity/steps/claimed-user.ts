/**
 * Whom a login claims to be: the name that was typed or, without one, the owner of the device or of the profile's token.
 *
 * A claim only: the steps that use it prove something about that user, and all steps must agree.
 */

import type { Store } from '../../store/store.ts';
import { normaliseName } from '../names.ts';
import type { Attempt, Subject } from './step.ts';

/** A token begins with its public id. */
const TOKEN_ID_BYTES = 8;

/** Of an account of ours, `source` is null. */
export interface ClaimedUser extends Subject {
  readonly source: string | null;
}

/** Does the same work whether there is such a user or not. */
export async function claimedUser(store: Store, { evidence, device }: Attempt): Promise<ClaimedUser | undefined> {
  if (evidence.user !== undefined) {
    return await store.db
      .selectFrom('users')
      .select(['id', 'name', 'source'])
      .where('name', '=', normaliseName(evidence.user) ?? '')
      .executeTakeFirst();
  }
  if (evidence.purpose === 'enrol') {
    const id = evidence.token?.slice(0, TOKEN_ID_BYTES).toHex() ?? '';
    return await store.db
      .selectFrom('enrolment_tokens')
      .innerJoin('users', 'users.id', 'enrolment_tokens.user_id')
      .select(['users.id', 'users.name', 'users.source'])
      .where('enrolment_tokens.id', '=', id)
      .executeTakeFirst();
  }
  return await store.db
    .selectFrom('devices')
    .innerJoin('users', 'users.id', 'devices.user_id')
    .select(['users.id', 'users.name', 'users.source'])
    .where('devices.id', '=', device)
    .executeTakeFirst();
}
