import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Redactor } from './redact.ts';

test('values beside a name that means a secret go, those of files that hold one stay', () => {
  const redactor = new Redactor();
  const gone = [
    'camouflage = "/short-path"',
    "password: 'hunter2'",
    '{"clientSecret":"hunter2","a":1}',
    'authorization: hunter2',
    'level=info token=hunter2',
    'ADMIN_PASSWORD=hunter2',
  ];
  for (const text of gone) assert.doesNotMatch(redactor.text(text), /hunter2|short-path/, text);
  assert.equal(redactor.text('secretFile = "secrets/radius"'), 'secretFile = "secrets/radius"');
  assert.equal(redactor.text('camouflageOnly = true'), 'camouflageOnly = true');
  assert.equal(
    redactor.text('workers = 4\npool = ["10.9.0.0/24"]'.replace('10.9.0.0', 'x')),
    'workers = 4\npool = ["x/24"]',
  );
});

test('keys, passwords in addresses, and what nobody has written go, wherever they stand', () => {
  const redactor = new Redactor();
  const key = '-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIabc\n-----END EC PRIVATE KEY-----';
  assert.doesNotMatch(redactor.text(`x ${key} y`), /MHcC/);
  // Cut short, as at the end of a log.
  assert.doesNotMatch(redactor.text(key.slice(0, 45)), /MHcC/);
  assert.doesNotMatch(redactor.text('postgres://vpn:geheim@db/x'), /geheim/);
  for (const word of [
    'Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg',
    '5f4dcc3b5aa765d61d8327deb882cf99',
    'JBSWY3DPEHPK3PXPJBSWY3DP',
  ]) {
    assert.doesNotMatch(redactor.text(`seen ${word}, so`), new RegExp(word));
  }
  const words = 'ip6_route_output_key-handler is-a-long-name-of-words';
  assert.equal(redactor.text(words), words);
});

test('what is known to be a secret goes in every form', () => {
  const secret = 'päss "w0rd"/x';
  const redactor = new Redactor({ secrets: [secret] });
  const bytes = Buffer.from(secret);
  const forms = [
    secret,
    JSON.stringify(secret),
    encodeURIComponent(secret),
    bytes.toString('hex'),
    bytes.toString('base64'),
  ];
  for (const form of forms) {
    const clean = redactor.text(`said ${form} once`);
    assert.ok(!clean.includes(form.replaceAll(/^"|"$|=+$/g, '')), `${form}: ${clean}`);
  }
});

test('people and addresses have other names, the same wherever they stand', () => {
  const redactor = new Redactor({ names: ['ada', 'bob'], isKept: (address) => address.startsWith('10.') });
  const clean = redactor.text(
    'ada from 203.0.113.7:4711, bob from [2001:db8::7]:1, ada, adamant, 10.1.2.3, 203.0.113.7',
  );
  assert.equal(clean, 'user-1 from address-1:4711, user-2 from [address-2]:1, user-1, adamant, 10.1.2.3, address-1');
});
