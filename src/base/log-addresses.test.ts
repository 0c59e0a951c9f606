import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createLogger, type LogOptions } from './log.ts';
import { addressFilter } from './log-addresses.ts';

function lines(options: LogOptions): { log: ReturnType<typeof createLogger>; said: string[] } {
  const said: string[] = [];
  return { log: createLogger({ format: 'json', ...options, sink: { write: (line) => void said.push(line) } }), said };
}

const FIELDS = {
  peer: '203.0.113.77:51234',
  remote: '[2001:db8:12:34::7]:443',
  listen: '0.0.0.0:8443',
  routes: ['198.51.100.0/24', 'fd12:3456:789a::/48'],
  version: '1.2.3',
  error: new Error('connect ECONNREFUSED 192.0.2.9:1812'),
};

test('addresses are shortened to their network, wherever they stand, and nothing else is changed', () => {
  const { log, said } = lines({ addresses: 'shorten', keepAddresses: ['0.0.0.0/32', '198.51.100.0/24'] });
  log.info('refused 203.0.113.9 at 12:34:56', FIELDS);
  const { time, msg, peer, remote, listen, routes, version, error } = JSON.parse(said[0] ?? '') as Record<
    string,
    unknown
  >;
  assert.match(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  assert.equal(msg, 'refused 203.0.113.0 at 12:34:56');
  assert.equal(peer, '203.0.113.0:51234');
  assert.equal(remote, '[2001:db8:12::]:443');
  assert.equal(listen, '0.0.0.0:8443');
  assert.deepEqual(routes, ['198.51.100.0/24', 'fd12:3456:789a::/48']);
  assert.equal(version, '1.2.3');
  assert.equal((error as { message: string }).message, 'connect ECONNREFUSED 192.0.2.0:1812');
});

test('hidden they are gone, from text too, but for those of networks that are kept', () => {
  const { log, said } = lines({ addresses: 'hide', keepAddresses: ['10.0.0.0/8', 'fd00::/8'], format: 'text' });
  log.info('hello', { a: '203.0.113.7:5', b: '2001:db8::1', c: '10.1.2.3', d: 'fd00::1', e: '::ffff:192.0.2.1' });
  assert.match(said[0] ?? '', /a=\[address\]:5 b=\[address\] c=10\.1\.2\.3 d=fd00::1 e=\[address\]\n$/);
});

test('kept, as by default, they are as they were', () => {
  const { log, said } = lines({});
  log.info('hello', { peer: '203.0.113.77:51234' });
  assert.equal((JSON.parse(said[0] ?? '') as { peer: string }).peer, '203.0.113.77:51234');
});

test('an address is found whatever stands beside it: words, colons, digits of other bases, ports, brackets, escapes', () => {
  const hide = addressFilter('hide', []) ?? assert.fail();
  const ipv4 = fc.ipV4();
  const ipv6 = fc.ipV6().filter((address) => address !== '::');
  // What ends in a colon may belong to the address, or stand before it.
  const before = fc.constantFrom(
    '',
    'from=',
    'addr:',
    'peer: ',
    '[',
    '(',
    '"',
    'https://',
    '\\u0001',
    '\\n',
    '...',
    'to ',
    'x',
  );
  const behind = fc.constantFrom('', ':443', ']:443', ': refused', '.', '. Then', ',', ')', '"', '/24', '%eth0', ' ');
  const words = fc.constantFrom('', 'fe:', 'dead:', 'a', 'cafe');
  const property = (address: fc.Arbitrary<string>, close: fc.Arbitrary<string>) =>
    fc.property(before, close, address, behind, (start, word, found, end) => {
      const line = hide(`{"msg":"${start}${word}${found}${end}"}`);
      assert.ok(line.includes('[address]'), line);
      assert.ok(!line.toLowerCase().includes(found), line);
    });
  fc.assert(property(ipv4, words), { numRuns: 2000 });
  // A word of hexadecimal digits and a colon in front is part of an IPv6 address, as far as that has room.
  fc.assert(property(ipv6, fc.constantFrom('', 'addr:', 'code:')), { numRuns: 2000 });
});

test('what only looks like one stays: times, versions with more parts, fingerprints, hardware addresses, everybody', () => {
  const hide = addressFilter('hide', []) ?? assert.fail();
  for (const text of [
    'at 12:34:56.789',
    'OID 1.3.6.1.4.1.311',
    'fingerprint AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89',
    'lladdr 52:54:00:12:34:56',
    'version 26.10.0',
    'listening at [::]:443',
    'no. 999.1.1.1',
    'a:b',
  ]) {
    assert.equal(hide(text), text);
  }
});
