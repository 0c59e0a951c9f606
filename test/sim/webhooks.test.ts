// What happens at a gateway is told to other programs, and one of them that hangs delays nobody.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { signatureOf } from '../../src/gateway/auth/webhooks.ts';
import { Receiver } from '../support/receiver.ts';
import { until, World } from '../support/world.ts';

const folder = mkdtempSync(join(tmpdir(), 'customvpn-webhook-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const secretFile = join(folder, 'secret');
const KEY = Buffer.from('0123456789abcdef0123456789abcdef');
writeFileSync(secretFile, `whsec_${KEY.toString('base64')}\n`, { mode: 0o600 });

test('logins and sessions are told, signed, in order, also after the target was away; the commands say how it is', async () => {
  await using receiver = await Receiver.open();
  await using hanging = await Receiver.open();
  hanging.answer = () => 'hang';
  let isAway = true;
  receiver.answer = () => (isAway ? 503 : 204);
  const common = { secretFile, insecure: true };
  const webhooks = {
    siem: { ...common, url: `${receiver.url}/T0KEN`, events: ['login', 'session'] },
    hangs: { ...common, url: hanging.url, timeoutSeconds: 60 },
  };
  await using world = await World.open({ config: { webhooks } });
  world.keepSecret(KEY);
  const api = world.server.api(() => Promise.reject(new Error('not asked for')));
  const ada = await world.connected('ada');
  await ada.client.disconnect();
  const one = async (name: string) => (await api['webhook.list']({})).find((hook) => hook.name === name);
  await until(async () => (await one('siem'))?.state === 'failing', 'the first refusal');
  const failing = await one('siem');
  assert.equal(failing?.target, receiver.url);
  assert.equal(failing?.lastError, 'the server answered 503');
  assert.ok((failing?.waiting ?? 0) >= 3, String(failing?.waiting));
  isAway = false;
  assert.deepEqual(await api['webhook.retry']({}), { queued: 0 });
  const types = () => receiver.bodies.map(({ type }) => type).slice(1);
  await until(() => types().length >= 3, 'the events');
  assert.deepEqual(types().slice(0, 3), ['login.accepted', 'session.opened', 'session.ended']);
  const { headers, body } = receiver.received.at(-1) ?? assert.fail();
  const [id, time, signature] = ['id', 'timestamp', 'signature'].map((name) => String(headers[`webhook-${name}`]));
  assert.equal(signature, signatureOf(KEY, String(id), Number(time), body));
  assert.deepEqual(await api['webhook.dead']({}), []);
  assert.partialDeepStrictEqual(await api['webhook.test']({ name: 'siem' }), { status: 204, error: null });
  assert.ok(((await one('hangs'))?.waiting ?? 0) > 0);
  // What follows the host may be a secret of the receiver's.
  const { values } = await api['server.settings']({});
  assert.ok(!JSON.stringify([values, await api['webhook.list']({}), world.lines]).includes('T0KEN'));
});
