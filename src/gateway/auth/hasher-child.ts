/** The hasher's process: takes requests from its parent, one at a time, and ends with it. */

import { constants, setPriority } from 'node:os';
import { hashPassword, verifyPassword } from '../../identity/passwords.ts';
import { type HasherReply, type HasherRequest, isHasherRequest } from './hasher-messages.ts';

setPriority(constants.priority.PRIORITY_LOW);

process.once('disconnect', () => process.exit(0));
process.on('message', (message) => {
  if (!isHasherRequest(message)) process.exit(65);
  void answer(message).then((reply) => process.send?.(reply));
});

async function answer(request: HasherRequest): Promise<HasherReply> {
  const { id, password } = request;
  try {
    const result = await (request.kind === 'hash'
      ? hashPassword(password, request)
      : verifyPassword(request.phc, password));
    return { id, result };
  } catch (error) {
    return { id, error: error instanceof Error ? error.message : String(error) };
  }
}
