import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLogger, type LogOptions } from './log.ts';

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
