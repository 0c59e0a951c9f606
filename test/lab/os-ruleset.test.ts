/**
 * The gateway's packet rules in the real kernel: each rule is met by a packet that it must drop and by one that it must
 * not, sent from behind a TUN device or from a host outside. Needs root.
 */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { ForeignDrop } from '../../src/os/nft.ts';
import type { Observation } from './os-ruleset-child.ts';
import { missingForLab, Rig } from './rig.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };

let rig: Rig | undefined;
let results: Record<string, Observation> = {};
let drops: Record<string, ForeignDrop[]> = {};

before(async () => {
  if (missing.length > 0) return;
  rig = await Rig.open();
  const gateway = await rig.namespace('gateway');
  const outside = await rig.namespace('outside');
  await rig.link(
    { namespace: gateway, device: 'out0', addresses: ['198.51.100.1/24', '2001:db8::1/64'] },
    { namespace: outside, device: 'out0', addresses: ['198.51.100.2/24', '2001:db8::2/64'] },
  );
  await gateway.run(['ip', 'route', 'add', 'default', 'via', '198.51.100.2']);
  await outside.run(['ip', 'route', 'add', '10.8.0.0/16', 'via', '198.51.100.1']);
  await outside.run(['ip', 'route', 'add', 'fd00:8::/64', 'via', '2001:db8::1']);
  await outside.run(['ip', 'route', 'add', '10.40.0.0/16', 'via', '198.51.100.1']);
  await outside.setSysctl('net.ipv4.icmp_ratelimit', '0');
  await gateway.setSysctl('net.ipv4.ip_forward', '1');
  await gateway.setSysctl('net.ipv6.conf.all.forwarding', '1');
  const node = [process.execPath, '--disable-warning=ExperimentalWarning'];
  const file = (name: string): string => new URL(name, import.meta.url).pathname;
  await outside.start([...node, file('./os-ruleset-outside.ts')], { ready: /ready/ });
  const { stdout } = await gateway.run([...node, file('./os-ruleset-child.ts')]);
  ({ results, drops } = JSON.parse(stdout));
});

after(async () => {
  await rig?.close();
});

function seen(name: string): Observation {
  const result = results[name];
  assert.ok(result !== undefined, `no case ${name}`);
  return result;
}

/** The packet was dropped by that rule alone: nothing came back, nothing came out. */
function dropped(name: string, counter: string): void {
  assert.deepEqual(seen(name), { counters: { [counter]: 1 }, received: [], outside: [] }, name);
}

test('a client reaches allowed destinations over both families, masqueraded, from either device', options, () => {
  assert.deepEqual(seen('allowed'), {
    counters: { accepted: 1, replies: 1 },
    received: ['0 198.51.100.2>10.8.0.5 udp answer'],
    outside: ['hello from 198.51.100.1'],
  });
  assert.deepEqual(seen('allowed6'), {
    counters: { accepted: 1, replies: 1 },
    received: ['0 2001:db8::2>fd00:8::5 udp answer'],
    outside: ['hello from 2001:db8::1'],
  });
  assert.deepEqual(seen('allowed plain').received, ['1 198.51.100.2>10.8.0.9 udp answer']);
});

test(
  'a source that is not of the device it comes from is dropped first, to the host as well as through it',
  options,
  () => {
    for (const name of [
      'foreign source',
      'foreign source6',
      'source of another device',
      'block source on the plain device',
      'source of the gateway',
      'source of the gateway6',
      'link-local source',
      'v4-mapped source',
      'foreign source to the host',
    ]) {
      dropped(name, 'drop_source');
    }
  },
);

test('multicast, loopback, link-local, broadcast and v4-mapped destinations are dropped', options, () => {
  const four = ['224.0.0.251', '255.255.255.255', '127.0.0.1', '169.254.1.1', '0.0.0.1'];
  for (const destination of [...four, 'ff02::1', 'fe80::1', 'v4-mapped']) {
    dropped(`to ${destination}`, 'drop_destination_class');
  }
  // The kernel itself drops this one before any rule.
  assert.deepEqual(seen('to ::1'), { counters: {}, received: [], outside: [] });
});

test('the host answers echo requests and its services on the inner address, and nothing else', options, () => {
  assert.deepEqual(seen('echo to the gateway').received, ['0 10.8.0.1>10.8.0.5 icmp 0.0']);
  assert.deepEqual(seen('echo to the gateway6').received, ['0 fd00:8::1>fd00:8::5 icmp 129.0']);
  assert.deepEqual(seen('service').received, ['0 10.8.0.1>10.8.0.5 udp answer']);
  dropped('echo to the outer address', 'drop_input');
  dropped('other port of the gateway', 'drop_input');
  dropped('login port of the host', 'drop_input');
});

test('what the host itself asks of a client is answered', options, () => {
  assert.deepEqual(seen('answer to the host').counters, {});
});

test('nobody outside may address a client or the inner gateway (CVE-2019-14899)', options, () => {
  dropped('from outside to a client', 'drop_pool_outside');
  dropped('from outside to the inner gateway', 'drop_pool_outside');
});

test('a client may not send from the port of the listener through the masquerade (port shadow)', options, () => {
  dropped('source port of the listener', 'drop_port_shadow');
});

test('clients are kept apart, and joined when the administrator says so', options, () => {
  dropped('client to client', 'drop_client_to_client');
  dropped('client to plain client', 'drop_client_to_client');
  assert.deepEqual(seen('client to client when on').received, ['0 10.8.0.5>10.8.0.6 udp x']);
  assert.equal(seen('answer of a client when on').counters.replies, 1);
  assert.deepEqual(seen('answer of a client when on').received, ['0 10.8.0.6>10.8.0.5 udp y']);
  assert.deepEqual(seen('client to plain client when on').received, ['1 10.8.0.5>10.8.0.9 udp x']);
});

test('destinations that are not allowed are dropped', options, () => {
  dropped('not allowed', 'drop_destination');
});

test('packets that belong to no connection are dropped', options, () => {
  dropped('no connection', 'drop_invalid');
});

test('an ICMP error about an accepted packet comes back to the client', options, () => {
  assert.deepEqual(seen('closed port outside').received, ['0 198.51.100.2>10.8.0.5 icmp 3.3']);
  assert.deepEqual(seen('closed port outside6').received, ['0 2001:db8::2>fd00:8::5 icmp 1.4']);
});

test('new rules judge a running flow anew: it goes on where they allow it', options, () => {
  assert.equal(seen('flow starts').received.length, 1);
  assert.equal(seen('flow goes on').received.length, 1);
  dropped('answer before the flow is judged anew', 'drop_stale');
  assert.deepEqual(seen('flow is judged anew').counters, { accepted: 1, replies: 1 });
  assert.deepEqual(seen('flow goes on under new rules').received, ['0 198.51.100.2>10.8.0.5 udp again']);
});

test('new rules end a running flow, both ways, where they do not', options, () => {
  dropped('answer after the rule is gone', 'drop_stale');
  dropped('question after the rule is gone', 'drop_destination');
  dropped('answer after that', 'drop_stale');
});

test('an address moves between devices at run time, and back', options, () => {
  assert.equal(seen('moved host on its new device').received.length, 1);
  dropped('moved host on its old device', 'drop_source');
  dropped('host moved back, new device', 'drop_source');
  assert.equal(seen('host moved back, old device').received.length, 1);
});

test('a network behind a client speaks from the device where its client lives, and from no other', options, () => {
  assert.deepEqual(seen('site on its device').outside, ['hello from 10.40.1.2']);
  assert.equal(seen('site on its device').received.length, 1);
  dropped('site on another device', 'drop_source');
  dropped('site that has gone', 'drop_source');
});

test('a network behind a client that is away is refused, however else it could be reached', options, () => {
  const { counters, received, outside } = seen('to a site that is away');
  assert.deepEqual([counters, outside], [{ drop_site_away: 1 }, []]);
  assert.deepEqual(received, ['0 10.8.0.1>10.8.0.5 icmp 3.0']);
});

test(
  'whoever may speak to a site first is refused while it is away, and other traffic of the machine is left alone',
  options,
  () => {
    assert.deepEqual(seen('what others route through the gateway').counters, {});
    assert.deepEqual(seen('whoever may speak to a site that is away').counters, { drop_site_away: 1 });
  },
);

test('whoever may speak to a site first is heard and answered, and nobody else', options, () => {
  dropped('from outside to a site that is not open', 'drop_unsolicited');
  assert.deepEqual(seen('from outside to an open site').counters, { accepted: 1 });
  assert.deepEqual(seen('from outside to an open site').received, ['0 198.51.100.2>10.40.1.2 udp unasked']);
  // Which the host outside answers once more.
  assert.deepEqual(seen('its answer').counters, { accepted: 1, replies: 1 });
  dropped('its answer when it is open no more', 'drop_stale');
});

test('one address cannot fill the table of connections', options, () => {
  assert.deepEqual(seen('too many connections').counters, { accepted: 5, replies: 5, drop_connections: 3 });
  assert.deepEqual(seen('another address beside it').counters, { accepted: 1, replies: 1 });
  assert.deepEqual(seen('too many connections6').counters, { accepted: 5, replies: 5, drop_connections: 3 });
});

test('a network behind a client is one address there, however many speak from it', options, () => {
  assert.deepEqual(seen('too many connections of a site').counters, { accepted: 5, replies: 5, drop_connections: 3 });
  assert.deepEqual(seen('its client beside it').counters, { accepted: 1, replies: 1 });
  assert.deepEqual(seen('too many of its client').counters, { accepted: 4, replies: 4, drop_connections: 4 });
});

test('a routed pool keeps its addresses, takes answers, and nothing unasked for', options, () => {
  assert.deepEqual(seen('routed').outside, ['hello from 10.8.0.30']);
  assert.deepEqual(seen('routed6').outside, ['hello from fd00:8::30']);
  dropped('routed, from outside to a client', 'drop_unsolicited');
  dropped('routed, from outside to the inner gateway', 'drop_pool_outside');
});

test('another firewall that drops our packets is found and named, and its advice mends it', options, () => {
  assert.deepEqual(drops.none, []);
  assert.deepEqual(
    drops.found?.map(({ table, chain, hook, owner }) => ({ table, chain, hook, owner })),
    [
      { table: 'inet other', chain: 'forward', hook: 'forward', owner: 'other' },
      { table: 'inet other', chain: 'input', hook: 'input', owner: 'other' },
    ],
  );
  assert.deepEqual(seen('under another firewall').received, []);
  assert.deepEqual(drops.mended, []);
  assert.equal(seen('after its mending').received.length, 1);
});

test('without the table nothing of it is left in force', options, () => {
  assert.deepEqual(seen('without rules').counters, {});
  assert.deepEqual(seen('without rules').outside, ['unmasked from 10.8.0.77']);
});

test('the lab leaves nothing behind', options, async () => {
  assert.deepEqual(await rig?.close(), []);
});
