/** Programs that are not ours use the gateway as their proxy: curl, a browser, and what goes through `client proxy`. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from '../lab/command.ts';
import { BEHIND, type Client, Deployment, labOptions, OUTER, PORT } from '../lab/deployment.ts';
import type { BackgroundProcess } from '../lab/process.ts';
import { hasTool, type Namespace } from '../lab/rig.ts';

const SERVER = `${OUTER[0].gateway4}:${PORT}`;
const SITE = `http://${BEHIND.host4}:8080`;
const CLOSED = `http://${BEHIND.closed4}:8080`;
const PAGE = '<html><head><title>behind the gateway</title></head><body>a page behind the gateway</body></html>';
/** A web server that tells what it was asked, and an echo of datagrams. */
const SITE_PROGRAM = `
  const http = require('node:http');
  const page = ${JSON.stringify(PAGE)};
  http.createServer((request, response) => {
    if (request.url === '/large') return void response.end(Buffer.alloc(20_000_000, 120));
    let size = 0;
    request.on('data', (chunk) => { size += chunk.length; });
    request.on('end', () => {
      response.setHeader('x-seen', [request.method, request.url, request.headers.host, size].join(' '));
      response.setHeader('content-type', 'text/html');
      response.end(page);
    });
  }).listen(8080, '0.0.0.0', () => console.log('listening'));
`;

/** Sends a datagram by SOCKS5, and prints what comes back. */
const UDP_PROGRAM = `
  const net = require('node:net');
  const socket = require('node:dgram').createSocket('udp4');
  const [host, port] = process.argv.slice(1);
  const control = net.connect(1080, '127.0.0.1', () => control.write(Buffer.from([5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0])));
  let heard = Buffer.alloc(0);
  control.on('data', (chunk) => {
    heard = Buffer.concat([heard, chunk]);
    if (heard.length < 12) return;
    const head = Buffer.from([0, 0, 0, 1, ...host.split('.').map(Number), port >> 8, port & 255]);
    socket.send(Buffer.concat([head, Buffer.from('hello')]), heard.readUInt16BE(10), '127.0.0.1');
  });
  socket.on('message', (message) => { console.log(String(message.subarray(10))); process.exit(0); });
  setTimeout(() => process.exit(1), 20000);
`;

describe('other programs and the proxy', labOptions({ curl: 'curl' }), () => {
  let deployment: Deployment;
  let site: BackgroundProcess;
  let local: BackgroundProcess;
  let client: Client;
  let from: Namespace;
  let token: string;

  before(async () => {
    deployment = await Deployment.open();
    await deployment.run();
    site = await deployment.behind.start([process.execPath, '-e', SITE_PROGRAM], { ready: /listening/ });
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    from = client.namespace;
    await deployment.enrol(client);
    const issue = ['user', 'token', client.user, '--name', 'browser', '--scope', 'proxy'];
    token = (await deployment.ask<{ token: string }>(...issue)).token;
    const ports = ['--socks', '127.0.0.1:1080', '--http', '127.0.0.1:8118'];
    const state = ['--state', join(deployment.rig.folder, 'proxy-client')];
    local = await from.start([COMMAND, 'client', 'proxy', client.profile, ...state, ...ports], { ready: /^ready$/m });
  });
  after(async () => {
    await local?.stop();
    await site?.stop();
    await deployment?.[Symbol.asyncDispose]();
  });

  const curl = (...words: string[]) =>
    from.run(['curl', '-sS', '-i', '--max-time', '20', ...words], { anyStatus: true });
  const asProxy = () => [
    '--proxy',
    `https://${SERVER}`,
    '--proxy-cacert',
    join(deployment.state, 'certs/ca.pem'),
    '--proxy-user',
    `${client.user}:${token}`,
  ];

  test('`curl --proxy https://` gets a page by a plain request and by CONNECT', async () => {
    const plain = await curl(...asProxy(), `${SITE}/a?b`);
    assert.match(plain.stdout, /^HTTP\/1\.1 200 /);
    assert.match(plain.stdout, new RegExp(`x-seen: GET /a\\?b ${BEHIND.host4}:8080 0`));
    assert.ok(plain.stdout.endsWith(PAGE), plain.stdout);
    const tunnelled = await curl(...asProxy(), '--proxytunnel', `${SITE}/c`);
    assert.match(tunnelled.stdout, /x-seen: GET \/c /, tunnelled.stderr);
    const posted = await curl(...asProxy(), '--data-binary', 'x'.repeat(50_000), `${SITE}/d`);
    assert.match(posted.stdout, /x-seen: POST \/d \S+ 50000/, posted.stderr);
  });

  test('`curl` with a wrong token is told 407, and one target too many 403', async () => {
    const wrong = await curl(...asProxy().slice(0, 4), '--proxy-user', `${client.user}:wrong`, '-p', `${SITE}/`);
    assert.match(wrong.stdout, /^HTTP\/1\.1 407 /);
    assert.ok(!wrong.stdout.includes(PAGE));
    const closed = await curl(...asProxy(), '-p', `${CLOSED}/`);
    assert.match(closed.stdout, /^HTTP\/1\.1 403 /);
    for (const target of ['127.0.0.1:22', `${BEHIND.gateway4}:22`, `${OUTER[0].gateway4}:${PORT}`, '10.88.0.1:22']) {
      const own = await curl(...asProxy(), '-p', `http://${target}/`);
      assert.match(own.stdout, /^HTTP\/1\.1 403 /, target);
    }
  });

  test('`curl --proxy-http2` does the same over HTTP/2', async (t) => {
    const { stdout } = await from.run(['curl', '--help', 'all']);
    if (!stdout.includes('--proxy-http2')) {
      t.skip('this curl is older than 8.1 and knows no HTTP/2 proxies');
      return;
    }
    const { stdout: page, stderr } = await curl(...asProxy(), '--proxy-http2', '-v', '-p', `${SITE}/h2`);
    assert.match(page, /x-seen: GET \/h2 /, stderr);
    assert.match(stderr, /HTTP\/2/);
  });

  test('`curl --socks5-hostname` and `curl --proxy http://` go through `client proxy`', async () => {
    for (const proxy of [
      ['--socks5-hostname', '127.0.0.1:1080'],
      ['--proxy', 'http://127.0.0.1:8118'],
      ['--proxy', 'http://127.0.0.1:8118', '-p'],
    ]) {
      const { stdout, stderr } = await curl(...proxy, `${SITE}/x`);
      assert.match(stdout, /x-seen: GET \/x /, `${proxy.join(' ')}: ${stderr}`);
    }
    const closed = await curl('--socks5-hostname', '127.0.0.1:1080', `${CLOSED}/`);
    assert.equal(closed.status, 97, closed.stderr);
    const large = await from.run(
      [
        'curl',
        '-sS',
        '--max-time',
        '60',
        '--socks5-hostname',
        '127.0.0.1:1080',
        '-o',
        '/dev/null',
        '-w',
        '%{size_download}',
        `${SITE}/large`,
      ],
      { timeoutMs: 70_000 },
    );
    assert.equal(large.stdout, '20000000');
  });

  test('`server sessions` shows the client and the program with its token', async () => {
    const rows = await deployment.ask<{ user: string; device: string; id: string }[]>('server', 'sessions');
    assert.deepEqual(rows.map(({ device }) => device === '').toSorted(), [false, true]);
  });

  const browser = hasTool('chromium') ? false : 'no chromium; install it with: apt-get install chromium';
  test('datagrams go through `client proxy` and the processes of the gateway', async () => {
    const echo = await deployment.behind.start(
      [
        process.execPath,
        '-e',
        "const s = require('node:dgram').createSocket('udp4'); s.on('message', (m, r) => s.send('echo ' + m, r.port, r.address)); s.bind(5353, () => console.log('listening'));",
      ],
      { ready: /listening/ },
    );
    const { stdout } = await from.run([process.execPath, '-e', UDP_PROGRAM, BEHIND.host4, '5353']);
    assert.equal(stdout.trim(), 'echo hello');
    await echo.stop();
  });

  test('a browser without a head gets a page by the gateway, and by `client proxy`', { skip: browser }, async () => {
    const show = async (...words: string[]) => {
      const folder = join(deployment.rig.folder, 'browser');
      const argv = ['chromium', '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'];
      const quiet = [
        '--no-first-run',
        '--disable-background-networking',
        `--user-data-dir=${folder}`,
        '--timeout=30000',
      ];
      return await from.run([...argv, ...quiet, ...words], { anyStatus: true, timeoutMs: 90_000 });
    };
    const local5 = await show('--proxy-server=socks5://127.0.0.1:1080', '--dump-dom', `${SITE}/page`);
    assert.match(local5.stdout, /a page behind the gateway/, local5.stderr);
    const localHttp = await show('--proxy-server=http://127.0.0.1:8118', '--dump-dom', `${SITE}/page`);
    assert.match(localHttp.stdout, /a page behind the gateway/, localHttp.stderr);
    // The gateway itself, by the HTTP that the browser chooses, with user and token.
    const folder = join(deployment.rig.folder, 'browser-direct');
    const argv = [process.execPath, join(import.meta.dirname, 'browser-peer.ts'), `https://${SERVER}`];
    const direct = await from.run([...argv, client.user, token, folder, `${SITE}/page`], {
      anyStatus: true,
      timeoutMs: 90_000,
    });
    assert.match(direct.stdout, /a page behind the gateway/, direct.stderr);
  });

  test('`client proxy` ends by `client down`, and says what is wrong with its ports', async () => {
    const state = ['--state', join(deployment.rig.folder, 'proxy-client')];
    const another = await deployment.cli(
      from,
      'client',
      'proxy',
      client.profile,
      ...state,
      '--socks',
      '127.0.0.1:1081',
    );
    assert.match(another.stderr, /connected already/);
    await deployment.ok(from, 'client', 'down', ...state);
    assert.equal(await local.exited, 0);
    const open = await deployment.cli(from, 'client', 'proxy', client.profile, ...state, '--socks', '0.0.0.0:1080');
    assert.equal(open.status, 64, open.stderr);
    assert.match(open.stderr, /--expose/);
  });

  test('when the token is revoked `curl` is told 407', async () => {
    const tokens = await deployment.ask<{ id: string }[]>('user', 'token', client.user);
    await deployment.ok(
      deployment.gateway,
      'user',
      'token',
      '--revoke',
      tokens[0]?.id ?? '',
      '--state',
      deployment.state,
    );
    const refused = await curl(...asProxy(), `${SITE}/`);
    assert.match(refused.stdout, /^HTTP\/1\.1 407 /, refused.stderr);
  });
});
