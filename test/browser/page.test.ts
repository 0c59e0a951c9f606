// The admin page in a real browser, before a real gateway: from the set-up link to a connected client, each section, and what
// holds for all of them.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseProfile } from '../../src/control/profile.ts';
import { decodeProfileLink } from '../../src/control/profile-link.ts';
import { loadPage, pageFiles } from '../../src/gateway/admin/files.ts';
import { codeOf } from '../support/admin.ts';
import { noBrowser, PASSWORD, Stage, WIDTHS } from '../support/browser.ts';
import { nameOf } from '../support/population.ts';
import { exchange, until } from '../support/world.ts';

const OPTIONS = { timeout: 120_000, skip: noBrowser ?? false };

test('a new administrator gets from the set-up link to a connected client by the page alone', OPTIONS, async () => {
  await using stage = await Stage.open();
  const page = await stage.window();
  const { url } = await stage.api['admin.link']({});
  await page.goto(url);
  await page.getByLabel('Name').fill('ada');
  await page.getByLabel('Password').fill(PASSWORD);
  await page.getByRole('button', { name: 'Continue' }).click();
  const codes = page.locator('.codes code');
  await codes.first().waitFor();
  assert.equal(await codes.count(), 10);
  await page.getByRole('button', { name: 'I have kept them' }).click();
  await page.getByRole('img', { name: 'QR code for your authenticator app' }).waitFor();
  await page.getByText('I cannot scan it').click();
  const secret = await page.locator('code.long').textContent();
  await page.getByRole('textbox', { name: 'Code' }).fill(codeOf(`otpauth://totp/x?secret=${secret}`, Date.now()));
  await page.getByRole('button', { name: 'Finish' }).click();
  await page.getByRole('heading', { name: 'Three steps to the first connection' }).waitFor();
  await page.getByRole('link', { name: 'Add a user' }).click();
  await page.getByRole('dialog').getByLabel('Name').fill('bob');
  await page.getByRole('button', { name: 'Add user' }).click();
  await page.getByRole('button', { name: 'Make profile' }).click();
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Save bob.toml' }).click();
  const file = await (await download).path();
  const profile = parseProfile(readFileSync(file, 'utf8'), 'the download');
  const link = (await page.locator('code.link').textContent()) ?? '';
  assert.deepEqual(decodeProfileLink(link).token?.reveal(), profile.token?.reveal());
  await page.getByRole('img', { name: 'QR code with the profile of bob' }).waitFor();
  await page.getByRole('link', { name: 'Sessions', exact: true }).last().click();
  await page.getByText('Nobody is connected').waitFor();
  const client = await stage.world.client('bob', { profile });
  await client.client.connect({ once: true });
  stage.world.keepSessions();
  await page.getByRole('link', { name: 'bob' }).waitFor();
  await page.getByRole('button', { name: 'End the session of bob' }).click();
  await page.getByRole('button', { name: 'End session' }).click();
  await page.getByText('Nobody is connected').waitFor();
  stage.check();
});

test('an operator does the daily work: groups, password, second factor, devices, disabling', OPTIONS, async () => {
  await using stage = await Stage.open();
  await stage.world.connected('carol');
  const page = await stage.as('operator');
  await stage.go(page, 'users', 'Users');
  await page.getByLabel('Search name or group').fill('caro');
  await page.getByRole('link', { name: 'carol' }).click();
  await page.getByRole('button', { name: 'Change groups' }).click();
  await page.getByRole('textbox', { name: 'Groups' }).fill('staff, night');
  await page.getByRole('button', { name: 'Save' }).click();
  await page.getByText('night, staff').waitFor();
  await page.getByRole('button', { name: 'Set a password' }).click();
  await page.getByRole('dialog').locator('input').fill('short');
  await page.getByRole('dialog').getByRole('button', { name: 'Set password' }).click();
  await page.getByRole('alert').getByText('at least 10 characters').waitFor();
  await page.getByRole('dialog').locator('input').fill('long enough for anybody');
  await page.getByRole('dialog').getByRole('button', { name: 'Set password' }).click();
  await page.getByRole('button', { name: 'Reset password' }).waitFor();
  await page.getByRole('button', { name: 'Set up second factor' }).click();
  await page.getByRole('button', { name: 'Make it' }).click();
  await page.getByRole('img', { name: 'QR code with the second factor of carol' }).waitFor();
  await page.getByRole('button', { name: 'Done' }).click();
  await page.getByText('yes, 10 recovery codes left').waitFor();
  await page.getByRole('button', { name: /^Rename/ }).click();
  await page.getByRole('textbox', { name: 'Name' }).fill('laptop of carol');
  await page.getByRole('dialog').getByRole('button', { name: 'Rename' }).click();
  await page.getByText('laptop of carol').waitFor();
  await page.getByRole('button', { name: 'Revoke laptop of carol' }).click();
  await page.getByRole('button', { name: 'Revoke device' }).click();
  await page.locator('.badge').getByText('revoked').waitFor();
  await page.getByRole('button', { name: 'Disable', exact: true }).click();
  await page.getByRole('button', { name: 'Disable user' }).click();
  await page.locator('.badge').getByText('disabled').waitFor();
  const shown = await stage.api['user.show']({ name: 'carol' });
  assert.deepEqual(
    [shown.groups, shown.disabled, shown.totp, shown.devices[0]?.name, shown.devices[0]?.state],
    [['night', 'staff'], true, true, 'laptop of carol', 'revoked'],
  );
  await stage.go(page, 'audit', 'Audit');
  await page.getByLabel('Kind of event').selectOption('operator');
  await page.getByText(/operation user\.disable/).waitFor();
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Export' }).click();
  const lines = readFileSync(await (await download).path(), 'utf8')
    .trim()
    .split('\n');
  assert.ok(lines.every((line) => String(JSON.parse(line).event).startsWith('operator.')));
  stage.check();
});

test(
  'a policy is checked as it is written: errors in their lines, tests, and what it would change',
  OPTIONS,
  async () => {
    await using stage = await Stage.open();
    await stage.api['user.add']({ name: 'carol', groups: ['staff'] });
    const page = await stage.as('operator');
    await stage.go(page, 'policy', 'Policy');
    await page.getByText('There is no policy').waitFor();
    await page.getByText(/1 rule, 0 of 0 tests hold/).waitFor();
    await page.getByRole('row', { name: /carol.*allowed.*192\.168\.10\.1/ }).waitFor();
    const text = page.getByLabel('A first policy');
    await text.fill('version = 1\n[[rules]]\nname = "x"\naction = "perhaps"\n');
    await page.getByText('not usable').waitFor();
    await page.getByRole('button', { name: '4', exact: true }).first().click();
    const chosen = await page.evaluate(
      'document.activeElement.value.slice(document.activeElement.selectionStart, document.activeElement.selectionEnd)',
    );
    assert.equal(chosen, 'action = "perhaps"');
    assert.ok(await page.getByRole('button', { name: 'Save as a file' }).isDisabled());
    stage.check();
  },
);

test(
  'a policy is put in force and rolled back from the page; of two who change it the slower is told',
  OPTIONS,
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'customvpn-policy-'));
    const file = join(folder, 'policy.toml');
    const text = (to: string) =>
      `version = 1\n[[rules]]\nname = "staff"\naction = "allow"\nfrom = ["group:staff"]\nto = ["${to}"]\n`;
    writeFileSync(file, text('192.0.2.0/24'));
    await using stage = await Stage.open({ config: { policyFile: file } });
    await stage.api['user.add']({ name: 'carol', groups: ['staff'] });
    const page = await stage.as('administrator');
    await stage.go(page, 'policy', 'Policy');
    const area = page.getByLabel(`${file}, as it is in force`);
    await area.fill(`${text('198.51.100.0/24')}[tests]\nexpect = ["group:staff cannot reach 198.51.100.7"]\n`);
    await page.locator('.gutter .error').getByText('8', { exact: true }).waitFor();
    const apply = page.getByRole('button', { name: 'Put in force …' });
    assert.ok(await apply.isDisabled());
    await area.fill(text('198.51.100.0/24'));
    await page.getByRole('row', { name: /carol.*forbidden.*192\.0\.2\.1/ }).waitFor();
    // Somebody else was faster.
    await stage.api['policy.apply']({ text: text('203.0.113.0/24') });
    await apply.click();
    await page.getByRole('dialog').getByLabel('Why').fill('they moved');
    const confirm = page.getByRole('dialog').getByRole('button', { name: 'Put in force' });
    await confirm.click();
    await page.getByRole('alert').getByText('changed by somebody else').waitFor();
    assert.equal(readFileSync(file, 'utf8'), text('203.0.113.0/24'));
    assert.equal(await area.inputValue(), text('198.51.100.0/24'), 'what was written is still there');
    await confirm.click();
    await page.getByRole('row', { name: /they moved.*in force/ }).waitFor();
    assert.equal(readFileSync(file, 'utf8'), text('198.51.100.0/24'));
    await page.getByRole('button', { name: 'Look at version 1' }).click();
    await page.getByLabel(`${file}, version 1`).waitFor();
    await page.getByRole('button', { name: 'Roll back to version 1' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Put in force' }).click();
    await page.getByRole('row', { name: /as version 1.*in force/ }).waitFor();
    assert.equal(readFileSync(file, 'utf8'), text('192.0.2.0/24'));
    stage.check();
    rmSync(folder, { recursive: true });
  },
);

test('a viewer sees everything and is offered nothing to change', OPTIONS, async () => {
  await using stage = await Stage.open();
  await stage.world.connected('carol');
  const page = await stage.as('viewer');
  for (const [path, heading] of [
    ['sessions', 'Sessions'],
    ['users', 'Users'],
    ['users/carol', 'carol'],
    ['devices', 'Devices'],
    ['settings', 'Settings'],
  ] as const) {
    await stage.go(page, path, heading);
    const names = await page.locator('main button').allTextContents();
    assert.deepEqual(
      names.filter((name) => !/Skip|Show|Export/.test(name)),
      [],
      path,
    );
  }
  stage.check();
});

test(
  'a passkey is made in the settings, opens the page in place of password and code, and is removed',
  OPTIONS,
  async () => {
    await using stage = await Stage.open();
    const page = await stage.as('viewer', { origin: stage.named });
    const authenticator = await page.context().newCDPSession(page);
    await authenticator.send('WebAuthn.enable');
    await authenticator.send('WebAuthn.addVirtualAuthenticator', {
      options: {
        protocol: 'ctap2',
        transport: 'internal',
        hasResidentKey: true,
        hasUserVerification: true,
        isUserVerified: true,
        automaticPresenceSimulation: true,
      },
    });
    await stage.go(page, 'settings', 'Settings');
    await page.getByText('You have none').waitFor();
    await page.getByRole('button', { name: 'Add a passkey' }).click();
    await page.getByRole('dialog').getByLabel('What do you call it?').fill('a virtual key');
    await page.getByRole('button', { name: 'Make it' }).click();
    await page.getByRole('row', { name: /a virtual key.*localhost.*never/ }).waitFor();
    await page.getByRole('button', { name: 'Log out' }).click();
    const enter = page.getByRole('button', { name: 'Log in with a passkey' });
    await enter.waitFor();
    await enter.click();
    await page.getByRole('heading', { level: 1, name: 'Settings' }).waitFor();
    await page.getByRole('button', { name: 'Remove a virtual key' }).click();
    await page.getByRole('button', { name: 'Remove passkey' }).click();
    await page.getByText('You have none').waitFor();
    await page.getByRole('button', { name: 'Log out' }).click();
    await enter.click();
    await page.getByRole('alert').getByText('does not let you in').waitFor();
    // Another session of the debugging protocol takes the virtual authenticator away when it ends: so only now.
    assert.deepEqual(await stage.accessibility(page), []);
    stage.check();
  },
);

test('texts that are scripts are shown as texts, wherever they come from', OPTIONS, async () => {
  await using stage = await Stage.open();
  const script = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>';
  await stage.world.connected('carol');
  const [device] = await stage.api['device.list']({});
  await stage.api['device.rename']({ id: device?.id ?? '', name: '<img src=x onerror=document.title="owned">' });
  await stage.api['token.issue']({ user: 'carol', name: '<svg onload=document.title="owned">', scopes: ['proxy'] });
  const stranger = await stage.window();
  await stranger.goto(stage.origin);
  await stranger.getByLabel('Name').fill(script);
  await stranger.getByLabel('Password').fill('x');
  await stranger.getByLabel('Code').fill('1');
  await stranger.getByRole('button', { name: 'Log in', exact: true }).click();
  await stranger.getByRole('alert').waitFor();
  const page = await stage.as('administrator');
  await stage.go(page, 'users/carol', 'carol');
  await page.getByText('<svg onload=document.title="owned">').first().waitFor();
  await page.getByText('<img src=x onerror=document.title="owned">').first().waitFor();
  await stage.go(page, 'audit', 'Audit');
  await page.getByText('<script>').first().waitFor();
  assert.doesNotMatch(await page.title(), /owned/);
  assert.equal(await page.locator('img, main svg[onload], main script').count(), 0);
  stage.check();
});

test(
  'every section fits every width in both themes, and a check for accessibility finds nothing serious',
  OPTIONS,
  async () => {
    await using stage = await Stage.open();
    await stage.world.connected('carol');
    for (const width of WIDTHS) {
      for (const dark of [false, true]) {
        const page = await stage.as('administrator', { width, dark });
        for (const [path, heading] of [
          ['overview', 'Overview'],
          ['sessions', 'Sessions'],
          ['users', 'Users'],
          ['users/carol', 'carol'],
          ['devices', 'Devices'],
          ['policy', 'Policy'],
          ['audit', 'Audit'],
          ['settings', 'Settings'],
        ] as const) {
          await stage.go(page, path, heading);
          assert.deepEqual(await stage.accessibility(page), [], `${path} at ${width}, dark ${dark}`);
          assert.equal(await stage.overflow(page), 0, `${path} at ${width}`);
        }
        await page.context().close();
      }
    }
    stage.check();
  },
);

test('the check for accessibility sees what it is there for', OPTIONS, async () => {
  await using stage = await Stage.open();
  const page = await stage.window();
  await page.goto(stage.origin);
  await page.getByLabel('Name').waitFor();
  assert.deepEqual(await stage.accessibility(page), []);
  await page.evaluate("document.querySelector('label').remove()");
  assert.ok((await stage.accessibility(page)).some((found) => found.startsWith('label')));
});

test('the keyboard alone is enough', OPTIONS, async () => {
  await using stage = await Stage.open();
  await stage.api['user.add']({ name: 'carol' });
  const page = await stage.as('operator');
  const press = async (key: string, until: () => Promise<boolean>): Promise<void> => {
    for (let count = 0; count < 60; count++) {
      if (await until()) return;
      await page.keyboard.press(key);
    }
    assert.fail(`sixty times ${key} do not lead there`);
  };
  const focused = (pattern: RegExp) => async () =>
    pattern.test(String(await page.evaluate('document.activeElement?.textContent ?? ""')));
  await press('Tab', focused(/^Users$/));
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { level: 1, name: 'Users' }).waitFor();
  await until(focused(/^Users$/), 'the heading has the focus');
  await page.getByRole('link', { name: 'carol' }).waitFor();
  await press('Tab', focused(/^Add a user$/));
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'detached' });
  await until(focused(/^Add a user$/), 'the focus is back where it was');
  await press('Tab', focused(/^carol$/));
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { level: 1, name: 'carol' }).waitFor();
  stage.check();
});

test('ten thousand users and five thousand sessions are no trouble for the tables', OPTIONS, async () => {
  await using stage = await Stage.open({}, { users: 10_000, sessions: 5000 });
  const carol = await stage.world.connected('carol');
  const page = await stage.as('operator');
  await stage.go(page, 'users', 'Users');
  await page.getByRole('link', { name: nameOf(0) }).waitFor();
  assert.equal(await page.locator('tbody tr').count(), 100);
  await page.getByRole('button', { name: 'Show more' }).click();
  await page.getByRole('link', { name: nameOf(150) }).waitFor();
  await page.getByLabel('Search name or group').fill('09999');
  await page.getByRole('link', { name: nameOf(9999) }).waitFor();
  await until(async () => (await page.locator('tbody tr').count()) === 1, 'one is found');
  await stage.go(page, 'sessions', 'Sessions');
  await page.getByText('5001 of 5001 sessions', { exact: true }).waitFor();
  // What is in the document stays few, however many there are.
  assert.equal(await page.locator('tbody tr').count(), 200);
  await page.getByText('The first 200 are shown').waitFor();
  await page.getByLabel('Search name, device or address').fill('carol');
  await page.getByText('1 of 5001 sessions', { exact: true }).waitFor();
  await page.getByText('waits').waitFor({ state: 'detached' });
  await exchange(stage.world, carol);
  await page.getByRole('button', { name: 'End the session of carol' }).click();
  await page.getByRole('button', { name: 'End session' }).click();
  await page.getByText('0 of 5000 sessions', { exact: true }).waitFor();
  await page.getByLabel('Search name, device or address').fill(nameOf(4999));
  await page.getByText('1 of 5000 sessions', { exact: true }).waitFor();
  assert.equal(await stage.overflow(page), 0);
  stage.check();
});

test(
  'a section that is slow says that it loads, one that fails says so and is tried again; both can be read by all',
  OPTIONS,
  async () => {
    await using stage = await Stage.open();
    const page = await stage.as('viewer');
    const sections = [
      ['users', 'Users', 'user.list'],
      ['devices', 'Devices', 'device.list'],
      ['policy', 'Policy', 'policy.text'],
      ['audit', 'Audit', 'audit.list'],
    ] as const;
    for (const [path, heading, operation] of sections) {
      const held = Promise.withResolvers<void>();
      const url = `**/api/v1/${operation}*`;
      await page.route(url, async (route) => {
        await held.promise;
        await route.abort();
      });
      await page.evaluate(`location.hash = '#/${path}'`);
      await page.getByRole('heading', { level: 1, name: heading }).waitFor();
      await page.getByRole('status').filter({ hasText: 'Loading' }).first().waitFor();
      assert.deepEqual(await stage.accessibility(page), [], `${path} while it loads`);
      held.resolve();
      await page.getByRole('alert').getByText('The gateway does not answer').waitFor();
      assert.deepEqual(await stage.accessibility(page), [], `${path} when it failed`);
      await page.unroute(url);
      await page.getByRole('button', { name: 'Try again' }).click();
      await page.getByRole('alert').waitFor({ state: 'detached' });
    }
  },
);

test('a page whose login has ended asks for another, and does not lose its place', OPTIONS, async () => {
  await using stage = await Stage.open();
  const page = await stage.as('viewer');
  await stage.go(page, 'devices', 'Devices');
  const [session] = await stage.api['admin.sessions']({});
  await stage.api['user.disable']({ name: session?.user ?? '' });
  await page.getByLabel('Search name, user or id').fill('x');
  await page.getByText('You were logged out').waitFor();
  assert.match(page.url(), /#\/devices$/);
});

test('the page weighs no more than 120 KB, compressed', async () => {
  const files = pageFiles(await loadPage());
  const sizes = [...files.values()].map(({ gzipped }) => gzipped.length);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  assert.ok(total <= 120_000, `${total} bytes`);
});
