/** A network whose captive portal answers for everybody: it is named, and the client goes on by itself when it lets go. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BEHIND, Deployment, labOptions, OUTER, PORT } from './deployment.ts';
import { until } from './process.ts';

const LOGIN = 'http://login.hotel.test/welcome';
/** Answers every request, on the port of the web and on the gateway's, with a redirection. */
const PORTAL = `
  const http = require('node:http');
  const answer = (_, response) => response.writeHead(302, { location: '${LOGIN}' }).end();
  let left = 2;
  for (const port of [80, ${PORT}]) http.createServer(answer).listen(port, '::', () => --left === 0 && console.log('ready'));
`;

test('a captive portal is named with its page, by `up` and by `probe`, and passes', labOptions(), async () => {
  await using deployment = await Deployment.open();
  const [client] = deployment.clients;
  assert.ok(client !== undefined);
  await deployment.enrol(client);
  const portal = await deployment.gateway.start([process.execPath, '-e', PORTAL], { ready: /^ready$/m });
  const running = await client.upInForeground(/not connected/);
  const named = await client.statusWhen('its name', ({ lastError }) => lastError?.code === 'ERR_CAPTIVE_PORTAL');
  assert.match(named.lastError?.message ?? '', new RegExp(LOGIN));
  const probed = await deployment.cli(client.namespace, 'client', 'probe', `${OUTER[0].gateway4}:${PORT}`);
  assert.equal(probed.status, 69);
  assert.match(probed.stderr, new RegExp(`${LOGIN}.*ERR_CAPTIVE_PORTAL`, 's'));

  await portal.stop();
  await deployment.run();
  await until('the client to be up', () => /^up$/m.test(running.output), { timeoutMs: 90_000 });
  assert.ok(await client.reaches(BEHIND.host4));
  const doctor = await deployment.cli(client.namespace, 'doctor', client.profile, '--state', client.state, '--json');
  const { findings, error } = JSON.parse(doctor.stdout) as {
    findings: { step: string; ok: boolean }[];
    error: unknown;
  };
  assert.equal(error, null, doctor.stdout);
  assert.deepEqual(
    findings.map(({ step }) => step),
    ['tcp', 'tls', 'hello', 'mtu', 'clock', 'login'],
  );
  await client.down();
});
