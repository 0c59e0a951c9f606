// Other firewalls, as their rules look to `nft -j` and `iptables-legacy`; real ones are met in test/lab/os-ruleset.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { type ForeignDropQuery, foreignDropsIn, legacyDropsIn, replaceTableText } from './nft.ts';

const QUERY: ForeignDropQuery = {
  own: { family: 'inet', name: 'customvpn' },
  devices: ['cvpn0', 'cvpn0p'],
  listen: [{ protocol: 'tcp', port: 443 }],
};

const chain = (family: string, table: string, name: string, hook?: string, policy?: string): object => ({
  chain: { family, table, name, ...(hook === undefined ? {} : { hook, type: 'filter', prio: 0, policy }) },
});
const rule = (family: string, table: string, chainName: string, ...expr: object[]): object => ({
  rule: { family, table, chain: chainName, expr },
});
const meta = (key: string, right: unknown): object => ({ match: { op: '==', left: { meta: { key } }, right } });
const dport = (right: unknown): object => ({
  match: { op: '==', left: { payload: { protocol: 'tcp', field: 'dport' } }, right },
});

function find(...objects: object[]) {
  return foreignDropsIn(JSON.stringify({ nftables: [{ metainfo: {} }, ...objects] }), QUERY);
}

test('Docker: its policy is found, and mended by its own chain for users', () => {
  const docker = [chain('ip', 'filter', 'FORWARD', 'forward', 'drop'), chain('ip', 'filter', 'DOCKER-USER')];
  const [drop, ...more] = find(...docker);
  assert.deepEqual(more, []);
  assert.equal(drop?.owner, 'docker');
  assert.deepEqual(drop?.advice.slice(0, 2), [
    'iptables -I DOCKER-USER -i cvpn0 -j ACCEPT',
    'iptables -I DOCKER-USER -o cvpn0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
  ]);
  const one = rule('ip', 'filter', 'DOCKER-USER', meta('iifname', 'cvpn0'), { counter: {} }, { accept: null });
  assert.equal(find(...docker, one).length, 1, 'the other device is still dropped');
  const all = rule('ip', 'filter', 'DOCKER-USER', meta('iifname', 'cvpn*'), { counter: {} }, { accept: null });
  assert.deepEqual(find(...docker, all), []);
});

test('ufw: both ways of our packets are found', () => {
  const ufw = [
    chain('ip', 'filter', 'INPUT', 'input', 'drop'),
    chain('ip', 'filter', 'FORWARD', 'forward', 'drop'),
    chain('ip', 'filter', 'ufw-user-input'),
  ];
  assert.deepEqual(
    find(...ufw).map(({ hook, owner, advice }) => ({ hook, owner, advice })),
    [
      { hook: 'input', owner: 'ufw', advice: ['ufw allow 443/tcp'] },
      { hook: 'forward', owner: 'ufw', advice: ['ufw route allow in on cvpn0', 'ufw route allow in on cvpn0p'] },
    ],
  );
  const mended = [
    rule('ip', 'filter', 'ufw-user-input', dport({ set: [80, 443] }), { accept: null }),
    rule('ip', 'filter', 'ufw-user-forward', meta('iifname', { set: ['cvpn0', 'cvpn0p'] }), { accept: null }),
  ];
  assert.deepEqual(find(...ufw, ...mended), []);
});

test('firewalld: a reject at the end of a chain that accepts by policy', () => {
  const firewalld = chain('inet', 'firewalld', 'filter_FORWARD', 'forward', 'accept');
  const end = rule('inet', 'firewalld', 'filter_FORWARD', { reject: { type: 'icmpx', expr: 'admin-prohibited' } });
  assert.match(find(firewalld, end)[0]?.advice[0] ?? '', /firewall-cmd .*--add-interface=cvpn0/);
  const conditional = rule('inet', 'firewalld', 'filter_FORWARD', meta('iifname', 'eth0'), { reject: {} });
  assert.deepEqual(find(firewalld, conditional), []);
});

test('what accepts, is ours, is of another hook or no base chain, is no drop', () => {
  const fine = [
    chain('inet', 'customvpn', 'input', 'input', 'drop'),
    chain('inet', 'other', 'forward', 'forward', 'accept'),
    chain('inet', 'other', 'output', 'output', 'drop'),
    chain('bridge', 'other', 'forward', 'forward', 'drop'),
    chain('inet', 'other', 'helper'),
  ];
  assert.deepEqual(find(...fine), []);
});

test('a rule that does not accept, or matches something else, lets nothing pass', () => {
  const base = chain('inet', 'other', 'forward', 'forward', 'drop');
  for (const useless of [
    rule('inet', 'other', 'forward', meta('iifname', 'cvpn*'), { drop: null }),
    rule('inet', 'other', 'forward', meta('oifname', 'cvpn*'), { accept: null }),
    rule(
      'inet',
      'other',
      'forward',
      { match: { op: '!=', left: { meta: { key: 'iifname' } }, right: 'cvpn*' } },
      { accept: null },
    ),
    rule('inet', 'third', 'forward', meta('iifname', 'cvpn*'), { accept: null }),
  ]) {
    assert.equal(find(base, useless).length, 1);
  }
});

test('rules of the old iptables are read from their own listing', () => {
  const listing = '-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n';
  const found = legacyDropsIn(listing, 'iptables-legacy', QUERY);
  assert.deepEqual(
    found.map(({ chain: name, owner, advice }) => [name, owner, advice[0]]),
    [
      ['FORWARD', 'docker', 'iptables-legacy -I FORWARD -i cvpn0 -j ACCEPT'],
      ['INPUT', 'docker', 'iptables-legacy -I INPUT -p tcp --dport 443 -j ACCEPT'],
    ],
  );
  const mended = `${listing}-A FORWARD -i cvpn0 -j ACCEPT\n-A FORWARD -i cvpn0p -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT\n`;
  assert.deepEqual(legacyDropsIn(mended, 'iptables-legacy', QUERY), []);
  assert.deepEqual(legacyDropsIn('-P INPUT ACCEPT\n-P FORWARD ACCEPT\n', 'iptables-legacy', QUERY), []);
});

test('what is no JSON is an error with a code', () => {
  assert.throws(
    () => foreignDropsIn('Error: syntax', QUERY),
    (error) => isVpnError(error, 'ERR_HOST_APPLY'),
  );
});

test('a table is replaced in one transaction, whether it is there or not', () => {
  assert.equal(
    replaceTableText({ family: 'inet', name: 't' }, 'chain c { }'),
    'add table inet t\ndelete table inet t\ntable inet t {\nchain c { }\n}\n',
  );
});
