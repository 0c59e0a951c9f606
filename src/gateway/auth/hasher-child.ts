/** The hasher's process: takes requests from its parent, one at a time, and ends with it. A caged parent's is caged too, and one whose parent wants it to gives way to everybody. */

import { constants, setPriority } from 'node:os';
import { createLogger } from '../../base/log.ts';
import { hashPassword, verifyPassword } from '../../identity/passwords.ts';
import { enterCage } from '../../os/cage.ts';
import { runInIdleTime } from '../../os/idle.ts';
import { CAGED, type HasherReply, type HasherRequest, IDLE, isHasherRequest } from './hasher-messages.ts';

const manner = process.argv.slice(2);
setPriority(constants.priority.PRIORITY_LOW);
if (manner.includes(IDLE)) runInIdleTime();
if (manner.includes(CAGED)) enterCage('hasher', { log: createLogger() });

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
