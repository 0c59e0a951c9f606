/** A login at an identity provider as a person meets it: the real command line shows where to go, and waits. */

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from './command.ts';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { type BackgroundProcess, run, until } from './process.ts';

const PEER = [process.execPath, '--conditions=customvpn-source', join(import.meta.dirname, 'provider-peer.ts')];
const PAGE = /^ {2}(https:\/\/127\.0\.0\.1:\d+\/device\?user_code=([A-Z]{4}-[A-Z]{4}))\r?$/m;

describe('a gateway whose people log in at a provider', labOptions({ script: 'bsdutils' }), () => {
  let deployment: Deployment;
  let client: Client;
  let provider: BackgroundProcess;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    const folder = join(deployment.rig.folder, 'provider');
    await mkdir(folder);
    // Beside the gateway, which reaches it on its own loopback; the client does not reach it at all.
    provider = await deployment.gateway.start([...PEER, folder], { ready: /^issuer /m, isTyped: true });
    const issuer = /^issuer (\S+)$/m.exec(provider.output)?.[1];
    await deployment.configure(
      (text) => `${text}
[login]
steps = ["device", "oidc"]
enrol = ["oidc"]
provider = "sso"

[backends.sso]
kind = "oidc"
issuer = "${issuer}"
clientId = "customvpn"
clientSecretFile = "${folder}/secret"
caFile = "${folder}/ca.pem"
groups = { Staff = "staff" }
`,
    );
    await deployment.run();
    const made = ['profile', '--shared', '--out', client.profile, '--state', deployment.state];
    await deployment.ok(deployment.gateway, ...made);
    await client.dialOver(4);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const up = [COMMAND, 'client', 'up'];
  const state = () => [client.profile, '--state', client.state];

  async function approve(page: string): Promise<void> {
    const before = provider.output.length;
    provider.write(`${page}\n`);
    await until('the person to be done', () => provider.output.slice(before).includes('approved'));
  }

  test('`client up` shows the page and the code without a terminal, too, and is up once the person is done', async () => {
    await using waiting = await client.namespace.start([...up, ...state()], { ready: /Waiting until/ });
    const [, page = '', code = ''] = PAGE.exec(waiting.output) ?? [];
    assert.ok(waiting.output.includes(`asks for it:  ${code}\n`), waiting.output);
    assert.match(waiting.output, /Waiting until that is done, \d+ min at most \(Ctrl-C gives up\)/);
    assert.doesNotMatch(waiting.output, /█/, 'a picture is for a terminal');
    await approve(page);
    assert.equal(await waiting.exited, 0, waiting.output);
    assert.match(waiting.output, /user +alice/);
    assert.doesNotMatch(waiting.output, /no answer yet/, 'nothing is said over the page and the code');
    assert.ok(await client.reaches(BEHIND.host4));
    const { stdout } = await run([COMMAND, 'user', 'show', 'alice', '--state', deployment.state]);
    assert.match(stdout, /staff/);
    assert.ok(!(await client.log()).includes(code), 'nor does a log have the code');
    await client.down();
  });

  test('in a terminal there is a picture of the address; Ctrl-C gives up, and the gateway waits no longer', async () => {
    const shell = `stty cols 120 rows 60; exec ${[...up, ...state()].join(' ')}`;
    await using terminal = await client.namespace.start(['script', '-qefc', shell, '/dev/null'], {
      ready: /Waiting until/,
      isTyped: true,
    });
    assert.match(terminal.output, PAGE);
    assert.match(terminal.output, /[█▀▄]{4}/);
    terminal.write('\u0003');
    assert.equal(await terminal.exited, 130, terminal.output);
    await until('the record of it', async () => {
      const audit = ['audit', '--since', '1h', '--event', 'login.refused', '--json', '--state', deployment.state];
      return (await run([COMMAND, ...audit])).stdout.includes('the client went away');
    });
  });
});
