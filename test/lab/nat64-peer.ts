/**
 * A network's own services for a test of IPv6-only networks, run inside a namespace: a resolver and a NAT64 for one host.
 *
 *   node nat64-peer.ts LISTEN6 PORT TARGET4        prints `ready`; runs until it is ended
 *
 * The resolver listens on port 53 of `::1`. It knows one name, ipv4only.arpa, and has the addresses of RFC 7050 for it, as a
 * DNS64 makes them with the prefix 64:ff9b::/96. The NAT64 takes TCP connections to LISTEN6 and makes them to TARGET4.
 */

import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

const [listen = '', port = '', target = ''] = process.argv.slice(2);
const TYPE_AAAA = 28;
const NAME = Buffer.from('\x08ipv4only\x04arpa\x00', 'latin1');
const ANSWERS = ['c00000aa', 'c00000ab'].map((four) => Buffer.from(`0064ff9b0000000000000000${four}`, 'hex'));

const resolver = createSocket('udp6');
resolver.on('message', (query, { address, port: from }) => {
  const question = query.subarray(12);
  const end = question.indexOf(0) + 1;
  const isKnown = question.subarray(0, end).toString('latin1').toLowerCase() === NAME.toString('latin1');
  const answers = isKnown && question.readUInt16BE(end) === TYPE_AAAA ? ANSWERS : [];
  const header = Buffer.from(query.subarray(0, 12));
  // An answer; recursion is there; no such name, or no error.
  header.writeUInt16BE(0x8180 | (isKnown ? 0 : 3), 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(answers.length, 6);
  header.fill(0, 8);
  const records = answers.map((data) => Buffer.concat([Buffer.from('c00c001c00010000003c0010', 'hex'), data]));
  resolver.send(Buffer.concat([header, question.subarray(0, end + 4), ...records]), from, address);
});
resolver.bind(53, '::1');

const nat = createServer((near) => {
  const far = connect(Number(port), target);
  near.on('error', () => far.destroy());
  far.on('error', () => near.destroy());
  near.pipe(far).pipe(near);
});
nat.listen(Number(port), listen);
await Promise.all([once(resolver, 'listening'), once(nat, 'listening')]);
process.stdout.write('ready\n');
