/** A network that the machine is in and the tunnel has, too: it is told before anything is changed, and the user chooses. */

import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { labOptions } from './deployment.ts';
import { LeakRig, NET } from './leak-rig.ts';
import { until } from './process.ts';
import { differences } from './snapshot.ts';

const LAN = '192.168.50.0/24';
const PUSHED = ['192.168.0.0/16', '203.0.113.0/24'];

describe('a local network that is in a pushed one', labOptions({ nsenter: 'util-linux', script: 'bsdutils' }), () => {
  let lab: LeakRig;

  before(async () => {
    lab = await LeakRig.open({ routes: PUSHED });
  });
  after(() => lab?.[Symbol.asyncDispose]());
  afterEach(() => lab?.down());

  const deviceTo = async (address: string): Promise<string | undefined> => {
    const { stdout } = await lab.ip('-j', 'route', 'get', address);
    return (JSON.parse(stdout) as { dev: string }[])[0]?.dev;
  };

  test('stops the start with --overlap stop, which names it and changes nothing', async () => {
    const before = await lab.client.snapshot();
    const { status, stderr } = await lab.inside([...lab.upArguments, '--overlap', 'stop']);
    assert.equal(status, 69, stderr);
    assert.match(stderr, /192\.168\.50\.0\/24 \(on out0; the tunnel has 192\.168\.0\.0\/16\)/);
    assert.match(stderr, /nothing was changed.*--overlap local.*--overlap tunnel/);
    assert.deepEqual(differences(before, await lab.client.snapshot()), []);
  });

  test('stays local without a word, where nobody can be asked, and that is said', async () => {
    await lab.up();
    assert.deepEqual([await deviceTo('192.168.50.9'), await deviceTo('192.168.51.9')], ['out0', 'cvpn0']);
    assert.ok(await lab.reaches(NET.router4));
    const refused = (await lab.status()).refused as { item: string }[];
    assert.deepEqual(
      refused.map(({ item }) => item),
      [`routes ${LAN}`],
    );
  });

  test('goes into the tunnel with --overlap tunnel, and the tunnel itself still gets out', async () => {
    await lab.up('--overlap', 'tunnel');
    assert.equal(await deviceTo('192.168.50.9'), 'cvpn0');
    assert.ok(await lab.reaches(NET.world4));
    assert.match(JSON.stringify((await lab.status()).notes), /192\.168\.50\.0\/24 on out0 goes into the tunnel/);
    const again = await lab.inside([...lab.upArguments, '--overlap', 'local']);
    assert.match(again.stderr, /other settings.*ERR_CONFLICT/);
  });

  for (const [typed, device] of [
    ['tunnel', 'cvpn0'],
    ['', 'out0'],
  ] as const) {
    test(`is asked about at a terminal: ${typed || 'Enter'}`, async () => {
      const command = ['stty cols 200 rows 30;', 'exec', ...lab.upArguments].join(' ');
      await using terminal = await lab.typeInside(['script', '-qefc', command, '/dev/null']);
      await until('the question', () => terminal.output.includes('What shall be'), { timeoutMs: 30_000 });
      assert.match(terminal.output, /192\.168\.50\.0\/24/);
      assert.equal(await deviceTo('192.168.51.9'), 'out0', 'nothing is changed before the answer');
      terminal.write(`${typed}\r`);
      await until('the client to be up', () => !terminal.running, { timeoutMs: 30_000 });
      assert.equal(await terminal.exited, 0, terminal.output);
      assert.equal(await deviceTo('192.168.50.9'), device);
    });
  }
});
