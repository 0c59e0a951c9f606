/**
 * Floods a gateway with TCP connections that never become TLS. Run by flood.test.ts, as a process of its own.
 *
 * Arguments: port, connections in all, sources, `silent` or `drip`. The sources are 127.1.0.1 and the addresses after it.
 * Prints one line of JSON when every connection has been tried, then holds what is open until its standard input ends.
 */

import { connect, type Socket } from 'node:net';

const [port = '', count = '', sources = '', manner = ''] = process.argv.slice(2);
const AT_ONCE = 128;
/** The start of a ClientHello of 512 bytes; what follows never completes it in time. */
const HELLO = Buffer.concat([Buffer.from('1603010200010001fc0303', 'hex'), Buffer.alloc(500)]);

const open = new Set<Socket>();
let tried = 0;
let settled = 0;

function next(): void {
  if (tried >= Number(count)) return;
  const source = tried % Number(sources);
  tried += 1;
  const socket = connect({ port: Number(port), host: '127.0.0.1', localAddress: `127.1.0.${source + 1}` });
  let isSettled = false;
  const settle = (): void => {
    if (isSettled) return;
    isSettled = true;
    settled += 1;
    if (settled === Number(count)) process.stdout.write(`${JSON.stringify({ tried, open: open.size })}\n`);
    next();
  };
  socket.once('connect', () => {
    open.add(socket);
    if (manner === 'drip') drip(socket);
    settle();
  });
  socket.on('error', () => {});
  socket.once('close', () => {
    open.delete(socket);
    settle();
  });
}

function drip(socket: Socket): void {
  let sent = 0;
  const send = (): void => {
    socket.write(HELLO.subarray(sent, sent + 1));
    sent += 1;
  };
  send();
  const timer = setInterval(send, 1_000);
  socket.once('close', () => clearInterval(timer));
}

for (let at = 0; at < AT_ONCE; at++) next();
process.stdin.resume();
process.stdin.once('end', () => process.exit(0));
