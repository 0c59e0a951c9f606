import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withoutServices } from './private-mounts.ts';

const CASES: readonly [string, string | undefined][] = [
  ['hosts: files dns', undefined],
  ['hosts: files dns myhostname # as it was', undefined],
  ['hosts: files mdns4_minimal [NOTFOUND=return] dns', 'hosts: files dns'],
  ['hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns', 'hosts: files myhostname dns'],
  ['hosts: files [SUCCESS=return] resolve [!UNAVAIL=return]', 'hosts: files [SUCCESS=return] dns'],
  ['hosts: sss', 'hosts: dns'],
  ['passwd: files sss', undefined],
  ['', undefined],
];

for (const [line, expected] of CASES) {
  test(`nsswitch.conf with "${line}" ${expected === undefined ? 'is left as it is' : `says "${expected}"`}`, () => {
    const rest = 'passwd: files systemd\n';
    const changed = expected === undefined ? undefined : `${rest}${expected}\nnetworks: files\n`;
    assert.equal(withoutServices(`${rest}${line}\nnetworks: files\n`), changed);
  });
}
