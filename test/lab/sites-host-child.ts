/**
 * Runs inside a namespace for `sites-host.test.ts`: a gateway's host whose routes to networks behind clients cannot be made,
 * because the address that they are to be used from has gone. Prints what stands after each attempt as JSON.
 */

import { isVpnError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/log.ts';
import { gatewayConfigSchema } from '../../src/gateway/config.ts';
import { openPool } from '../../src/gateway/pool.ts';
import { GatewayHost } from '../../src/gateway/supervisor/host.ts';
import { runCommand } from '../../src/os/command.ts';
import { readPolicy } from '../../src/policy/policy.ts';

const ALLOW = '[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["192.0.2.0/24"]\n';
const SITE = '[[sites]]\nname = "berlin"\nfor = ["user:a"]\nnetworks = ["10.8.64.0/20"]\n';

function policyOf(text: string) {
  const { policy } = readPolicy(`version = 1\n${text}`);
  if (policy === undefined) throw new Error('the policy is none');
  return policy;
}

const config = gatewayConfigSchema.parse({ pool: ['10.8.0.0/24'], port: 0, address: '127.0.0.1' });
const pool = openPool(config);
const lease = pool.lease('a');
await using undo = new AsyncDisposableStack();
const options = { config, pool, workers: 1, stateDir: undefined, log: silentLogger };
const host = undo.adopt(await GatewayHost.open(options), (opened) => opened.close());
await host.configure();

/** All that stands, but for what the kernel counts. */
const stands = async (): Promise<string> =>
  (await runCommand('nft', ['-s', 'list', 'table', 'inet', 'customvpn'])) +
  (await runCommand('ip', ['route', 'show', 'to', 'match', '10.8.64.0/20']));
const codeOf = async (attempt: Promise<void>): Promise<string> =>
  await attempt.then(
    () => 'done',
    (error: unknown) => (isVpnError(error) ? error.code : String(error)),
  );
const session = (networks: readonly number[]) => ({ lease, access: { rules: [0], peers: [], networks } });
const address = (verb: 'add' | 'del') => runCommand('ip', ['address', verb, '10.8.0.1', 'dev', 'cvpn0']);
const results: Record<string, unknown> = {};

await host.enforce({ policy: policyOf(ALLOW), hosts: new Map(), sessions: [session([])] });
const plain = await stands();
const withSite = { policy: policyOf(SITE + ALLOW), hosts: new Map() };
await address('del');
results.enforce = await codeOf(host.enforce({ ...withSite, sessions: [session([0])] }));
results.isAsBefore = (await stands()) === plain;

await host.enforce({ ...withSite, sessions: [session([])] });
const without = await stands();
results.admit = await codeOf(host.admit([session([0])]));
results.isAdmittedAsBefore = (await stands()) === without;

await address('add');
results.again = await codeOf(host.admit([session([0])]));
results.route = /10\.8\.64\.0\/20 dev cvpn0 .*metric (\d+)/.exec(await stands())?.[1];
const large = gatewayConfigSchema.parse({ ...config, pool: ['10.8.0.0/16'] });
results.pool = await codeOf(host.update(large));
process.stdout.write(JSON.stringify(results));
