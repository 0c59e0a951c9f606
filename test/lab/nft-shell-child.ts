/** The long-lived `nft` in a namespace: prints what became of each change, for `nft-shell.test.ts`. */

import { execFileSync } from 'node:child_process';
import { toVpnError } from '../../src/base/errors.ts';
import { NftShell } from '../../src/os/nft-shell.ts';

const shell = new NftShell();
const outcomes: string[] = [];
const run = async (commands: string): Promise<void> => {
  outcomes.push(
    await shell.run(commands).then(
      () => 'done',
      (error: unknown) => toVpnError(error).message,
    ),
  );
};
const elements = (): string => execFileSync('nft', ['list', 'set', 'inet', 'shell', 's'], { encoding: 'utf8' });

execFileSync('nft', ['-f', '-'], { input: 'add table inet shell\nadd set inet shell s { type ipv4_addr; }\n' });
await Promise.all([
  run('add element inet shell s { 192.0.2.1 }\nadd element inet shell s { 192.0.2.2 }'),
  // One transaction: the first half must not stay.
  run('add element inet shell s { 192.0.2.3 }\ndelete element inet shell s { 192.0.2.99 }'),
  run('add element inet shell nothing { 192.0.2.4 }'),
  run('this is no command'),
  run('add element inet shell s { 192.0.2.5 }'),
]);
const [pid = ''] = execFileSync('pgrep', ['-P', String(process.pid), 'nft'], { encoding: 'utf8' }).split('\n');
const lost = run('add element inet shell s { 192.0.2.6 }');
process.kill(Number(pid), 'SIGKILL');
await lost;
await run('add element inet shell s { 192.0.2.7 }');
await shell.close();
await run('add element inet shell s { 192.0.2.8 }');
const listed = elements();
process.stdout.write(JSON.stringify({ outcomes, listed: [...listed.matchAll(/192\.0\.2\.\d+/g)].map(([one]) => one) }));
process.exit(0);
