/** A client's machine that moves: other addresses, other ways, a cable that is pulled. What runs inside goes on. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import {
  BEHIND,
  type Client,
  type ClientStatus,
  Deployment,
  INNER,
  labOptions,
  OUTER,
  startPeer,
} from './deployment.ts';
import { type BackgroundProcess, until } from './process.ts';

const ECHO_PORT = '7007';
const [{ client4, gateway4, client6 }] = OUTER;
const MOVED4 = '198.51.100.77';
const MOVED6 = '2001:db8:1::77';
const OTHER = { client4: '198.51.102.1', gateway4: '198.51.102.2' };

describe('a client that moves', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  /** An inner connection that lives through all of it. */
  let talk: BackgroundProcess;
  let status: ClientStatus;
  let logins: number | undefined;

  before(async () => {
    // Silence is noticed long after every deadline here, so that it is not what helps.
    deployment = await Deployment.open({ settings: '[session]\npingSeconds = 100\ndeadSeconds = 300\n' });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.run();
    await deployment.enrol(client);
    await startPeer(deployment.behind, 'serve', ECHO_PORT, BEHIND.host4);
    status = await client.up();
    ({ logins } = (await deployment.status).counters);
    talk = await startTalk();
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  async function startTalk(): Promise<BackgroundProcess> {
    return await startPeer(client.namespace, 'talk', BEHIND.host4, ECHO_PORT);
  }

  /** The inner connection still carries both ways, and nobody had to log in again. */
  async function goesOn(word: string): Promise<void> {
    talk.write(`${word}\n`);
    await until(`an echo of "${word}"`, () => talk.output.includes(word), { timeoutMs: 40_000 });
    assert.doesNotMatch(talk.output, /error/);
    const now = await client.statusWhen('the connection', ({ state }) => state === 'connected');
    assert.deepEqual(now.addresses, status.addresses);
    assert.equal(now.pid, status.pid);
    assert.equal(now.device, status.device);
    assert.equal((await deployment.status).counters.logins, logins);
  }

  async function ip(...lines: string[]): Promise<void> {
    await client.namespace.run(['ip', '-batch', '-'], { input: `${lines.join('\n')}\n` });
  }

  /** After `change` the client is connected anew. An attempt that a second word of the kernel calls off counts as well. */
  async function reconnectsBy(change: () => Promise<unknown>): Promise<void> {
    const { reconnects } = await client.status();
    await change();
    const isAnew = (now: ClientStatus): boolean => now.state === 'connected' && now.reconnects > reconnects;
    await client.statusWhen(`more than ${reconnects} reconnects`, isAnew, 40_000);
  }

  test('another address: the connection is given up at once, the session resumed, the inner connection lives', async () => {
    await goesOn('before');
    await reconnectsBy(() => ip(`address delete ${client4}/24 dev out0`, `address add ${MOVED4}/24 dev out0`));
    await goesOn('moved');
    assert.match(await client.log(), new RegExp(`address is ${MOVED4} now, and was ${client4}`));
  });

  test('another way: a better route over another network is taken', async () => {
    await deployment.rig.link(
      { namespace: client.namespace, device: 'out9', addresses: [`${OTHER.client4}/24`] },
      { namespace: deployment.gateway, device: 'out9', addresses: [`${OTHER.gateway4}/24`] },
    );
    await reconnectsBy(() => ip(`route add ${gateway4}/32 via ${OTHER.gateway4} dev out9`));
    await goesOn('rerouted');
    // And back, when the cable of that network is pulled.
    await reconnectsBy(() => ip('link set out9 down'));
    await goesOn('pulled');
  });

  test('a cable that is pulled and put back: the connection is as good as before', async () => {
    await ip('link set out0 down');
    await until('the link to be down', async () => !(await client.reaches(INNER.gateway4)));
    await ip('link set out0 up');
    await goesOn('replugged');
  });

  test('IPv6: the same for an address of the other family', async () => {
    await client.down();
    await talk.stop();
    // Gone with the cable.
    await ip(`address add ${client6}/64 dev out0`);
    await client.dialOver(6);
    status = await client.up();
    ({ logins } = (await deployment.status).counters);
    talk = await startTalk();
    await goesOn('over six');
    await reconnectsBy(() => ip(`address delete ${client6}/64 dev out0`, `address add ${MOVED6}/64 dev out0`));
    await goesOn('moved again');
    assert.match(await client.log(), new RegExp(`address is ${MOVED6} now`));
  });

  test('in a full tunnel behind a kill switch: the way is looked for outside the tunnel, and nothing has to be opened', async () => {
    await client.down();
    await talk.stop();
    await ip('address flush dev out0 scope global', `address add ${client4}/24 dev out0`);
    await client.dialOver(4);
    status = await client.up('--full', '--kill-switch');
    ({ logins } = (await deployment.status).counters);
    talk = await startTalk();
    await goesOn('in full');
    await reconnectsBy(() => ip(`address delete ${client4}/24 dev out0`, `address add ${MOVED4}/24 dev out0`));
    await goesOn('moved in full');
  });
});
