// What a profile and the command line come to together.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError, VpnError } from '../base/errors.ts';
import { type Profile, parseProfile } from '../control/profile.ts';
import { parsePrefix } from '../ip/address.ts';
import type { Overlap } from './host-plan.ts';
import { checkEnclosure, hostWishes, pushLimits } from './wishes.ts';

const NEVER = new AbortController().signal;
const OVERLAP: Overlap = {
  prefix: parsePrefix('192.168.1.0/24'),
  device: 'eth0',
  route: parsePrefix('192.168.0.0/16'),
  isPrivate: true,
};

function profile(lines = ''): Profile {
  const server = '[server]\nhosts = ["vpn.example"]\nport = 443\nname = "vpn.example"\n';
  return parseProfile(`version = 1\nid = "${'0'.repeat(32)}"\nname = "x"\n${server}${lines}`, 'p.toml');
}

test('the command line wins over the profile', () => {
  const saved = profile('[tunnel]\nmode = "full"\nlan = true\noverlap = "local"\nexclude = ["10.0.0.0/8"]\n');
  const { wishes, overlap } = hostWishes(saved, {}, undefined, NEVER);
  assert.deepEqual([wishes.mode, wishes.lan, overlap], ['full', true, 'local']);
  assert.deepEqual(wishes.exclude, [parsePrefix('10.0.0.0/8')]);
  const said = hostWishes(saved, { mode: 'split', lan: false, overlap: 'stop' }, undefined, NEVER);
  assert.deepEqual([said.wishes.mode, said.wishes.lan, said.overlap], ['split', false, 'stop']);
});

test('a default route is taken only where profile and mode allow it, name servers where the profile does', () => {
  assert.equal(pushLimits(profile(), {}).defaultRoute, true);
  assert.equal(pushLimits(profile(), { mode: 'split' }).defaultRoute, false);
  assert.equal(pushLimits(profile('[tunnel]\nmode = "split"\n'), {}).defaultRoute, false);
  assert.equal(pushLimits(profile('[tunnel]\nmode = "split"\n'), { mode: 'full' }).defaultRoute, true);
  assert.equal(pushLimits(profile('[allow]\nfullTunnel = false\n'), { mode: 'full' }).defaultRoute, false);
  const { dns, domains } = pushLimits(profile('[allow]\ndns = false\ndnsDomains = ["corp.example"]\n'), {});
  assert.deepEqual([dns, domains], [false, ['corp.example']]);
});

test('a person is asked about overlaps, told of both ways, and may stop', async () => {
  const prompts: string[] = [];
  const asked = async (text: string) => {
    const { ask } = hostWishes(
      profile(),
      { isAsked: true },
      async ([step]) => {
        prompts.push(step?.prompt ?? '');
        return { ask: text };
      },
      NEVER,
    );
    return await ask?.([OVERLAP]);
  };
  assert.deepEqual(
    [await asked('tunnel'), await asked(' Local '), await asked('stop'), await asked('')],
    ['tunnel', 'local', 'stop', 'local'],
  );
  await assert.rejects(asked('both'), (error) => isVpnError(error, 'ERR_USAGE'));
  assert.match(prompts[0] ?? '', /192\.168\.1\.0\/24 \(on eth0; the tunnel has 192\.168\.0\.0\/16\)/);
});

test('nobody is asked who is not there', () => {
  assert.equal(hostWishes(profile(), { isAsked: false }, async () => ({}), NEVER).ask, undefined);
  assert.equal(hostWishes(profile(), { isAsked: true }, undefined, NEVER).ask, undefined);
});

test('whoever declines has nothing changed; nobody there is another matter', async () => {
  const asked = (error: VpnError) =>
    hostWishes(profile(), { isAsked: true }, async () => Promise.reject(error), NEVER).ask?.([OVERLAP]);
  assert.equal(await asked(new VpnError('ERR_AUTH_NEEDED', 'given up', { details: { declined: true } })), 'stop');
  await assert.rejects(asked(new VpnError('ERR_AUTH_NEEDED', 'nobody')) ?? Promise.resolve(), (error) =>
    isVpnError(error, 'ERR_AUTH_NEEDED'),
  );
});

test('commands get no tunnel that bridges Ethernet, and are told so before anything is dialled', () => {
  checkEnclosure(profile());
  assert.throws(
    () => checkEnclosure(profile('[tunnel]\ndevice = "tap"\n')),
    (error) => isVpnError(error, 'ERR_UNSUPPORTED') && /client up/.test(error.message),
  );
});

test('a kill switch makes a full tunnel, and none of a split one', () => {
  const closing = (lines: string, killSwitch?: boolean) => {
    const { wishes, closing: how } = hostWishes(
      profile(lines),
      killSwitch === undefined ? {} : { killSwitch },
      undefined,
      NEVER,
    );
    return [wishes.mode, how];
  };
  assert.deepEqual(closing(''), ['auto', 'off']);
  assert.deepEqual(closing('', true), ['full', 'on']);
  assert.deepEqual(closing('[tunnel]\nkillSwitch = "on"\n'), ['full', 'on']);
  assert.deepEqual(closing('[tunnel]\nkillSwitch = "always"\n', true), ['full', 'always']);
  const split = () => hostWishes(profile(), { mode: 'split', killSwitch: true }, undefined, NEVER);
  assert.throws(split, (error) => isVpnError(error, 'ERR_USAGE'));
});
