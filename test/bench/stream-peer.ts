/**
 * Fetches through a SOCKS5 proxy and says how it went, in a line of JSON; or serves what is fetched.
 *
 *     stream-peer.ts serve PORT
 *     stream-peer.ts fetch PROXY_PORT HOST PORT STREAMS BYTES     → {"bits": per second}
 *     stream-peer.ts first PROXY_PORT HOST PORT TIMES             → {"ms": [...]}: from dialling the proxy to the first byte
 *
 * A request is the number of bytes wanted and a line end.
 */

import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

const CHUNK = Buffer.alloc(256 * 1024, 0x78);
const SMALL = 100;
const WARM_UP = 30;

const [mode = '', ...words] = process.argv.slice(2);
const numbers = words.map(Number);
if (mode === 'serve') serve(numbers[0] ?? 0);
else if (mode === 'fetch')
  await fetchAll(numbers[0] ?? 0, words[1] ?? '', numbers[2] ?? 0, numbers[3] ?? 1, numbers[4] ?? 0);
else await firstBytes(numbers[0] ?? 0, words[1] ?? '', numbers[2] ?? 0, numbers[3] ?? 1);

function serve(port: number): void {
  createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => {});
    socket.once('data', (line) => {
      let left = Number(String(line).trim());
      const give = (): void => {
        while (left > 0) {
          const part = CHUNK.subarray(0, Math.min(left, CHUNK.length));
          left -= part.length;
          if (!socket.write(part)) return void socket.once('drain', give);
        }
        socket.end();
      };
      give();
    });
  }).listen(port, () => console.log('listening'));
}

/** A connection through the proxy, when it is there. */
async function through(proxy: number, host: string, port: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: proxy, noDelay: true });
  await once(socket, 'connect');
  socket.write(Buffer.of(5, 1, 0));
  await once(socket, 'data');
  socket.write(Buffer.from([5, 1, 0, 1, ...host.split('.').map(Number), port >> 8, port & 0xff]));
  const [answer] = (await once(socket, 'data')) as [Buffer];
  if (answer[1] !== 0) throw new Error(`the proxy answered ${answer[1]}`);
  return socket;
}

async function fetchAll(proxy: number, host: string, port: number, streams: number, bytes: number): Promise<void> {
  const sockets = await Promise.all(Array.from({ length: streams }, () => through(proxy, host, port)));
  const began = performance.now();
  const sizes = await Promise.all(
    sockets.map(async (socket) => {
      let size = 0;
      socket.on('data', (chunk: Buffer) => {
        size += chunk.length;
      });
      socket.write(`${bytes}\n`);
      await once(socket, 'end');
      return size;
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (total !== streams * bytes) throw new Error(`${total} bytes came of ${streams * bytes}`);
  console.log(JSON.stringify({ bits: (total * 8) / seconds }));
}

async function firstBytes(proxy: number, host: string, port: number, times: number): Promise<void> {
  const ms: number[] = [];
  for (let i = 0; i < WARM_UP + times; i++) {
    const began = performance.now();
    const socket = await through(proxy, host, port);
    socket.write(`${SMALL}\n`);
    await once(socket, 'data');
    if (i >= WARM_UP) ms.push(performance.now() - began);
    socket.destroy();
  }
  console.log(JSON.stringify({ ms }));
}
