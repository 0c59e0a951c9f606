/**
 * A gateway of two workers for `hostile.test.ts`. Each life of the second is what the next line of the file ATTACKS says: an
 * attack and its arguments, for a hostile worker. When there is none, it is our own.
 *
 *   hostile-outside.ts STATE ATTACKS
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createLogger } from '../../src/base/log.ts';
import { readGatewayConfig, statePaths } from '../../src/gateway/layout.ts';
import { programOf } from '../../src/gateway/supervisor/child.ts';
import { GatewayProcesses } from '../../src/gateway/supervisor/processes.ts';

const [state = '', attacks = ''] = process.argv.slice(2);
const HOSTILE = new URL('./hostile-worker-child.ts', import.meta.url).pathname;

function workerProgram(worker: number): [string, ...string[]] {
  if (worker === 0) return programOf('worker');
  const [next = 'none', ...later] = existsSync(attacks) ? readFileSync(attacks, 'utf8').trim().split('\n') : [];
  writeFileSync(attacks, later.join('\n'));
  const words = (next || 'none').split(' ');
  const [program, ...flags] = programOf('worker').slice(0, -1);
  if (words[0] === 'none' || program === undefined) return programOf('worker');
  return [program, ...flags, HOSTILE, ...words];
}

const readConfig = () => readGatewayConfig(statePaths(state).config);
const config = await readConfig();
const log = createLogger(config.log);
const gateway = await GatewayProcesses.start({
  config,
  stateDir: state,
  workers: 2,
  readConfig,
  version: 'test',
  log,
  workerProgram,
});
process.stdout.write('ready\n');
process.once('SIGTERM', () => void gateway.stop());
await gateway.stopped;
