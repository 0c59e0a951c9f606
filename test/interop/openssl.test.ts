/** Programs that are not ours meet the gateway's port: `openssl s_client` and `curl`. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from '../lab/command.ts';
import { Deployment, labOptions, OUTER, PORT } from '../lab/deployment.ts';
import { type RunResult, until } from '../lab/process.ts';

const SERVER = `${OUTER[0].gateway4}:${PORT}`;
const GREETING = 'OK VPN-HELLO 1\r\n';

describe('other programs at the gateway', labOptions({ openssl: 'openssl', curl: 'curl' }), () => {
  let deployment: Deployment;

  before(async () => {
    deployment = await Deployment.open();
    await deployment.run();
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** Connects, sends a request that the front door answers, and ends with the connection. */
  function sClient(...flags: string[]): Promise<RunResult> {
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    const argv = ['openssl', 's_client', '-connect', SERVER, ...flags];
    return client.namespace.run(argv, { anyStatus: true, input: 'GET / HTTP/1.0\r\n\r\n', timeoutMs: 20_000 });
  }

  test('with ALPN customvpn/1, `openssl s_client` verifies the certificate and sees the greeting', async () => {
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    const ca = join(deployment.state, 'certs/ca.pem');
    const verify = ['-CAfile', ca, '-verify_return_error', '-verify_ip', OUTER[0].gateway4];
    const argv = ['openssl', 's_client', '-connect', SERVER, '-alpn', 'customvpn/1', ...verify, '-ign_eof'];
    const running = await client.namespace.start(argv, { ready: /OK VPN-HELLO/, stopSignal: 'SIGKILL' });
    await running.stop();
    assert.ok(running.output.includes(GREETING.trimEnd()), running.output);
    assert.match(running.output, /Verify return code: 0 \(ok\)/);
    assert.match(running.output, /ALPN protocol: customvpn\/1/);
    assert.match(running.output, /TLSv1\.3, Cipher is TLS_(AES|CHACHA)/);
    assert.match(running.output, /Secure Renegotiation IS NOT supported|TLSv1\.3/);
  });

  test('without ALPN there is no greeting', async () => {
    for (const flags of [[], ['-alpn', 'http/1.1'], ['-alpn', 'imap']]) {
      const { stdout } = await sClient('-ign_eof', ...flags);
      assert.ok(!stdout.includes('VPN-HELLO'), stdout);
      if (!flags.includes('imap')) assert.match(stdout, /HTTP\/1\.1 404/);
    }
  });

  test('TLS 1.1 and 1.2 are refused', async () => {
    for (const version of ['-tls1_1', '-tls1_2']) {
      const { status, stdout, stderr } = await sClient('-alpn', 'customvpn/1', version, '-cipher', 'ALL:@SECLEVEL=0');
      assert.notEqual(status, 0, version);
      assert.match(stderr + stdout, /alert protocol version|no protocols available|unsupported protocol/, version);
      assert.ok(!stdout.includes('VPN-HELLO'), version);
    }
    const { counters } = await deployment.status;
    assert.equal(counters.handshake_err_tls_version, 2, JSON.stringify(counters));
  });

  test('suites without authenticated encryption, and groups that are not offered, are refused', async () => {
    for (const flags of [
      ['-ciphersuites', 'TLS_AES_128_CCM_SHA256'],
      ['-groups', 'P-521'],
    ]) {
      const { status, stdout } = await sClient('-alpn', 'customvpn/1', ...flags);
      assert.notEqual(status, 0, flags.join(' '));
      assert.ok(!stdout.includes('VPN-HELLO'));
    }
  });

  test('there is no session to resume: no ticket is sent, and a second connection is new', async () => {
    const file = join(deployment.rig.folder, 'tls-session');
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    const argv = ['openssl', 's_client', '-connect', SERVER, '-alpn', 'customvpn/1', '-ign_eof', '-sess_out', file];
    const running = await client.namespace.start(argv, { ready: /OK VPN-HELLO/, stopSignal: 'SIGKILL' });
    await running.stop();
    assert.doesNotMatch(running.output, /Session Ticket|TLS session ticket|Resumption PSK: [0-9A-F]/);
    const reconnected = await sClient('-alpn', 'customvpn/1', '-reconnect');
    assert.doesNotMatch(reconnected.stdout, /^Reused,/m);
    assert.match(reconnected.stdout, /^New, TLSv1\.3/m);
  });

  test('early data is not accepted', async () => {
    const { stdout } = await sClient('-alpn', 'customvpn/1');
    assert.match(stdout, /Early data was not sent|Max Early Data: 0/);
  });

  test('`curl` gets a plain 404 from the front door, over HTTPS, and nothing that names the product', async () => {
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    const ca = join(deployment.state, 'certs/ca.pem');
    const curl = (...words: string[]) =>
      client.namespace.run(['curl', '-sS', '-i', '--max-time', '10', ...words], { anyStatus: true });
    for (const path of ['/', '/v1/server.status', '/../etc/passwd']) {
      const { status, stdout, stderr } = await curl('--cacert', ca, '--path-as-is', `https://${SERVER}${path}`);
      assert.equal(status, 0, stderr);
      assert.match(stdout, /^HTTP\/(1\.1|2) 404 /);
      assert.doesNotMatch(stdout, /vpn/i);
    }
    const untrusted = await curl(`https://${SERVER}/`);
    assert.equal(untrusted.status, 60, 'curl trusts the authority of the gateway without being told');
    const plain = await curl(`http://${SERVER}/`);
    assert.notEqual(plain.status, 0);
    assert.doesNotMatch(plain.stdout, /^HTTP\/1\.1 200|vpn/i);
  });

  test('after all that the gateway serves, and its log says what came', async () => {
    const [client] = deployment.clients;
    assert.ok(client !== undefined);
    const probed = await client.namespace.run([COMMAND, 'client', 'probe', SERVER, '--json']);
    assert.equal((JSON.parse(probed.stdout) as { hello: string }).hello, GREETING.trim());
    await until('the log', () => deployment.server.output.includes('ERR_NOT_TLS'));
    assert.match(deployment.server.output, /ERR_TLS_VERSION/);
  });
});
