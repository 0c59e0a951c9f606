/**
 * A connection on which only one end speaks, for tests of what a change of access does to it.
 *
 *   node drip-peer.ts serve PORT            whoever sends a datagram gets one every 20 ms from then on; prints `ready`
 *   node drip-peer.ts listen ADDRESS PORT   sends one datagram; prints `ready` when answers come, and `silent` after a second without
 */

import { createSocket } from 'node:dgram';

const EVERY_MS = 20;
const SILENT_MS = 1000;
const [, , verb, first = '', second = ''] = process.argv;

if (verb === 'serve') {
  const socket = createSocket('udp6');
  const timers = new Map<string, NodeJS.Timeout>();
  socket.on('message', (_message, { address, port }) => {
    const key = `${address} ${port}`;
    clearInterval(timers.get(key));
    timers.set(
      key,
      setInterval(() => socket.send('drip', port, address), EVERY_MS),
    );
  });
  socket.bind(Number(first), '::', () => process.stdout.write('ready\n'));
} else {
  const socket = createSocket(first.includes(':') ? 'udp6' : 'udp4');
  let silent: NodeJS.Timeout | undefined;
  socket.on('message', () => {
    if (silent === undefined) process.stdout.write('ready\n');
    clearTimeout(silent);
    silent = setTimeout(() => process.stdout.write('silent\n'), SILENT_MS);
  });
  socket.send('first', Number(second), first);
}
