/**
 * A browser without a head that logs in at a proxy: `browser-peer.ts PROXY USER TOKEN FOLDER URL` prints the page's text.
 *
 * A person would type name and token; here the browser's debugging protocol answers when it asks.
 */

import { spawn } from 'node:child_process';

const [proxy = '', username = '', password = '', folder = '', url = ''] = process.argv.slice(2);
const flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run'];
const quiet = ['--disable-background-networking', '--ignore-certificate-errors', `--user-data-dir=${folder}`];
const where = [`--proxy-server=${proxy}`, '--remote-debugging-port=0', 'about:blank'];
const browser = spawn('chromium', [...flags, ...quiet, ...where], { stdio: ['ignore', 'ignore', 'pipe'] });
const deadline = setTimeout(() => end(1, 'the browser took too long'), 60_000);

let heard = '';
const socketUrl = await new Promise<string>((resolve) => {
  browser.stderr.on('data', (chunk: Buffer) => {
    heard += String(chunk);
    const found = /DevTools listening on (ws:\S+)/.exec(heard)?.[1];
    if (found !== undefined) resolve(found);
  });
});
const socket = new WebSocket(socketUrl);
await new Promise((resolve) => void socket.addEventListener('open', resolve, { once: true }));

interface Message {
  id?: number;
  method?: string;
  params?: { requestId: string };
  result?: Record<string, unknown>;
}
let nextId = 0;
const waiting = new Map<number, (result: Record<string, unknown>) => void>();
function send(method: string, params: object, sessionId?: string): Promise<Record<string, unknown>> {
  nextId += 1;
  const id = nextId;
  socket.send(JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) }));
  return new Promise((resolve) => void waiting.set(id, resolve));
}
const loaded = Promise.withResolvers<void>();
let session = '';
socket.addEventListener('message', ({ data }) => {
  const { id, method, params, result } = JSON.parse(String(data)) as Message;
  if (id !== undefined) waiting.get(id)?.(result ?? {});
  if (method === 'Fetch.requestPaused') void send('Fetch.continueRequest', { requestId: params?.requestId }, session);
  if (method === 'Fetch.authRequired') {
    const authChallengeResponse = { response: 'ProvideCredentials', username, password };
    void send('Fetch.continueWithAuth', { requestId: params?.requestId, authChallengeResponse }, session);
  }
  if (method === 'Page.loadEventFired') loaded.resolve();
});

const { targetId } = await send('Target.createTarget', { url: 'about:blank' });
({ sessionId: session } = (await send('Target.attachToTarget', { targetId, flatten: true })) as { sessionId: string });
await send('Page.enable', {}, session);
await send('Fetch.enable', { handleAuthRequests: true }, session);
await send('Page.navigate', { url }, session);
await loaded.promise;
const { result } = await send('Runtime.evaluate', { expression: 'document.body.innerText' }, session);
end(0, String((result as { value?: unknown }).value));

function end(status: number, text: string): never {
  clearTimeout(deadline);
  console.log(text);
  browser.kill('SIGKILL');
  process.exit(status);
}
