/** Packets that do not fit are answered with the right ICMP error, by whoever knows. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions, peer, startPeer } from './deployment.ts';

const ECHO_PORT = '7007';
const BYTES = 2 * 1024 * 1024;
/** Behind the host behind the gateway, over a way that takes 1,300 bytes. */
const FAR = { host4: '192.0.2.200', net4: '192.0.2.192/26', host6: '2001:db8:2:0:1::200', net6: '2001:db8:2:0:1::/80' };

interface TcpResult {
  sent: { bytes: number; sha256: string };
  returned: { bytes: number; sha256: string };
}

interface UdpResult {
  sent: number;
  intact: number;
}

describe('what does not fit into the tunnel', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    const { gateway, behind } = deployment;
    // A network of jumbo frames behind the gateway: its hosts may send what no tunnel of 1,500 bytes takes.
    for (const namespace of [gateway, behind]) await namespace.run(['ip', 'link', 'set', 'lan0', 'mtu', '9000']);
    await behind.setSysctl('net.ipv4.ip_forward', '1');
    await behind.setSysctl('net.ipv6.conf.all.forwarding', '1');
    await deployment.rig.link(
      { namespace: behind, device: 'far0', addresses: ['192.0.2.193/26', '2001:db8:2:0:1::1/80'] },
      { namespace: await deployment.rig.namespace('far'), device: 'far0', addresses: [`${FAR.host4}/26`] },
    );
    await behind.run(['ip', 'link', 'set', 'far0', 'mtu', '1300']);
    await gateway.run(['ip', 'route', 'add', FAR.net4, 'via', BEHIND.host4]);
    await gateway.run(['ip', '-6', 'route', 'add', FAR.net6, 'via', BEHIND.host6]);
    await deployment.run();
    await deployment.enrol(client);
    for (const address of [BEHIND.host4, BEHIND.host6]) await startPeer(behind, 'serve', ECHO_PORT, address);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** What a ping of so many bytes of packet, that must not be cut, brings. */
  async function ping(address: string, bytes: number): Promise<string> {
    const payload = String(bytes - (address.includes(':') ? 48 : 28));
    const argv = ['ping', '-n', '-c', '2', '-i', '0.3', '-W', '2', '-M', 'do', '-s', payload, address];
    const { stdout, stderr } = await client.namespace.run(argv, { anyStatus: true });
    return stdout + stderr;
  }

  /** The MTU that the host behind the gateway has been told for this address. */
  async function learnt(address: string): Promise<number> {
    const { stdout } = await deployment.behind.run(['ip', 'route', 'get', address]);
    return Number(/ mtu (\d+)/.exec(stdout)?.[1]);
  }

  async function tcpBothWays(): Promise<void> {
    for (const address of [BEHIND.host4, BEHIND.host6]) {
      const { sent, returned } = await peer<TcpResult>(client.namespace, 'tcp', address, ECHO_PORT, String(BYTES));
      assert.deepEqual(returned, sent);
      assert.equal(sent.bytes, BYTES);
    }
  }

  for (const [mtu, flags] of [
    [1500, []],
    [1500, ['--plain']],
    [1280, []],
    [1280, ['--plain']],
  ] as const) {
    test(`an inner MTU of ${mtu}${flags.length > 0 ? ', --plain' : ''}: what fits passes, what does not is told, TCP works both ways`, async () => {
      if ((await deployment.status).devices[0]?.mtu !== mtu) {
        await deployment.stop();
        await deployment.configure((text) => `mtu = ${mtu}\n${text.replace(/^mtu = .*\n/m, '')}`);
        await deployment.run();
      }
      for (const family of ['-4', '-6']) await deployment.behind.run(['ip', family, 'route', 'flush', 'cache']);
      await client.up(...flags);
      for (const host of [BEHIND.host4, BEHIND.host6]) {
        assert.match(await ping(host, mtu), / 0% packet loss/);
        // The client's own kernel knows.
        assert.match(await ping(host, mtu + 1), new RegExp(`mtu[=:] ?${mtu}`));
        // An answer that is too big for the tunnel: the gateway tells the host behind it, which sends the next one in pieces.
        const results = [];
        for (let round = 0; round < 2; round++) {
          results.push(await peer<UdpResult>(client.namespace, 'udp', host, ECHO_PORT, '1', '4000'));
        }
        assert.equal(results[1]?.intact, 1);
        assert.equal(await learnt(host.includes(':') ? BEHIND.gateway6 : BEHIND.gateway4), mtu);
      }
      // A router on the way behind the gateway tells the client.
      if (mtu > 1300) {
        assert.match(await ping(FAR.host4, 1400), /mtu = 1300/);
        assert.match(await ping(FAR.host6, 1400), /mtu=1300/);
      }
      await tcpBothWays();
      await client.down();
    });
  }
});
