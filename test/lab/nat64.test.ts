/** A client in a network that has only IPv6, and a gateway that has only an IPv4 address, with a NAT64 between them. */

import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { BEHIND, Deployment, labOptions, OUTER, PORT } from './deployment.ts';

const PEER = join(import.meta.dirname, 'nat64-peer.ts');
const [{ client4, gateway4 }] = OUTER;
/** 198.51.100.2 as the well-known prefix has it. */
const TRANSLATED = '64:ff9b::c633:6402';

test(
  'REQ-DIAL-003: the gateway is reached through the NAT64, whose prefix the resolver gives away',
  labOptions(),
  async () => {
    await using deployment = await Deployment.open();
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    await deployment.run();
    await deployment.enrol(client);
    const { namespace } = client;
    // `ip netns exec` puts this in the place of /etc/resolv.conf.
    const folder = join('/etc/netns', namespace.name);
    await mkdir(folder, { recursive: true });
    try {
      await writeFile(join(folder, 'resolv.conf'), 'nameserver ::1\noptions timeout:1 attempts:1\n');
      await namespace.run(['ip', 'address', 'delete', `${client4}/24`, 'dev', 'out0']);
      const nat = await deployment.rig.namespace('nat64');
      await deployment.rig.link(
        { namespace: nat, device: 'in0', addresses: ['2001:db8:64::2/64'] },
        { namespace, device: 'nat0', addresses: ['2001:db8:64::1/64'] },
      );
      await deployment.rig.link(
        { namespace: nat, device: 'out0', addresses: ['198.51.102.1/24'] },
        { namespace: deployment.gateway, device: 'nat0', addresses: ['198.51.102.2/24'] },
      );
      await namespace.run(['ip', '-6', 'route', 'add', '64:ff9b::/96', 'via', '2001:db8:64::2']);
      await nat.run(['ip', '-6', 'address', 'add', TRANSLATED, 'dev', 'lo']);
      await nat.run(['ip', 'route', 'add', `${gateway4}/32`, 'via', '198.51.102.2']);
      const flags = ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
      await nat.start([process.execPath, ...flags, PEER, TRANSLATED, String(PORT), gateway4], { ready: /^ready$/m });
      const resolver = await namespace.start([process.execPath, ...flags, PEER, '::1', '1', gateway4], {
        ready: /^ready$/m,
      });
      assert.ok(resolver.running);
      const status = await client.up();
      assert.equal(status.state, 'connected');
      assert.ok(await client.reaches(BEHIND.host4));
      const sockets = await namespace.run(['ss', '-Htn', 'state', 'established', 'dst', `[${TRANSLATED}]`]);
      assert.match(sockets.stdout, new RegExp(`\\[?${TRANSLATED}\\]?:${PORT}`), sockets.stdout);
      await client.down();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
);
