/**
 * The host behind the gateway in `os-ruleset.test.ts`: answers datagrams, keeps a log of them, and does what it is told.
 *
 *     fence                what has come since the last fence, as JSON; nothing is still on its way then
 *     send ADDRESS PORT    sends a datagram that nobody asked for
 *     again                sends one more answer to the last datagram `later`
 *     anything else        is logged and answered
 */

import { createSocket, type Socket } from 'node:dgram';

const PORT = 9000;

let log: string[] = [];
let later: { socket: Socket; address: string; port: number } | undefined;

for (const type of ['udp4', 'udp6'] as const) {
  const socket = createSocket({ type, ipv6Only: type === 'udp6' });
  socket.on('message', (message, from) => {
    const [command = '', address = '', port = ''] = message.toString().split(' ');
    const answer = (text: string): void => socket.send(text, from.port, from.address);
    if (command === 'fence') {
      answer(JSON.stringify(log));
      log = [];
    } else if (command === 'send') {
      socket.send('unasked', Number(port), address, () => answer('sent'));
    } else if (command === 'again') {
      if (later !== undefined) later.socket.send('again', later.port, later.address, () => answer('sent'));
    } else {
      if (command === 'later') later = { socket, address: from.address, port: from.port };
      log.push(`${message.toString()} from ${from.address}`);
      answer('answer');
    }
  });
  await new Promise<void>((done) => socket.bind(PORT, done));
}
process.stdout.write('ready\n');
