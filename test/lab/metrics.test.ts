/** Those who watch a gateway of several processes: what they see, and that its ends and beginnings do not shut them out. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { LabError, processesOfRun, RUN_VARIABLE, until } from './process.ts';

const AT = 'http://127.0.0.1:9464';

describe('a gateway that is watched', labOptions({ curl: 'curl' }), () => {
  let deployment: Deployment;
  let client: Client;

  const ask = (path: string) =>
    deployment.gateway.run(['curl', '-sS', '--max-time', '10', '-w', '\n%{http_code}', `${AT}${path}`], {
      anyStatus: true,
    });

  async function samples(): Promise<ReadonlyMap<string, number>> {
    const { stdout, status } = await ask('/metrics');
    if (status !== 0) throw new LabError('no metrics');
    const lines = stdout.split('\n').filter((line) => line.startsWith('customvpn_'));
    return new Map(lines.map((line) => [line.replace(/ \S+$/, ''), Number(/\S+$/.exec(line)?.[0])]));
  }

  /** The process of a part of this gateway. */
  function pidOf(part: RegExp): number {
    const run = readFileSync(`/proc/${deployment.server.pid}/environ`, 'utf8')
      .split('\0')
      .find((entry) => entry.startsWith(`${RUN_VARIABLE}=`));
    assert.ok(run !== undefined);
    // Processes of the gateway have an environment of their own.
    const children = [...childrenOf(deployment.server.pid)].filter(([, line]) => part.test(line));
    assert.ok(children.length > 0, `${part}; ${[...processesOfRun(run).values()].join('\n')}`);
    return children[0]?.[0] ?? -1;
  }

  function childrenOf(pid: number): Map<number, string> {
    const ids = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
    return new Map(ids.map((id) => [id, readFileSync(`/proc/${id}/cmdline`, 'utf8').replaceAll('\0', ' ')]));
  }

  before(async () => {
    deployment = await Deployment.open({ workers: 2, settings: '[metrics]\nlisten = "127.0.0.1:9464"\n' });
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    await deployment.run();
    await deployment.enrol(client);
    await client.up();
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const sum = (all: ReadonlyMap<string, number>, pattern: RegExp): number =>
    [...all].reduce((total, [name, value]) => (pattern.test(name) ? total + value : total), 0);

  test('every process is there with its memory, and traffic is counted', async () => {
    assert.ok(await client.reaches(BEHIND.host4));
    const all = await samples();
    assert.equal(sum(all, /^customvpn_sessions\{.*connected/), 1);
    assert.ok(sum(all, /^customvpn_bytes_total\{.*received/) > 0);
    assert.ok(sum(all, /^customvpn_bytes_total\{.*sent/) > 0);
    assert.equal(sum(all, /^customvpn_worker_up/), 2);
    for (const process of ['auth', 'worker 0', 'worker 1']) {
      const peak = all.get(`customvpn_peak_bytes{process="${process}"}`) ?? 0;
      assert.ok(peak > 20e6 && peak < 2e9, `${process}: ${peak}`);
      assert.ok((all.get(`customvpn_cpu_seconds_total{process="${process}"}`) ?? 0) > 0, process);
    }
    await until('the loop to have been looked at', async () =>
      [...(await samples())].some(
        ([name, value]) => /^customvpn_event_loop_delay_seconds_count\{process="worker 0"\}/.test(name) && value > 0,
      ),
    );
    assert.match((await ask('/readyz')).stdout, /^ready\n\n200$/);
  });

  test('a worker that has died is started again, and that is counted', async () => {
    const pid = pidOf(/worker\/main/);
    process.kill(pid, 'SIGKILL');
    await until(
      'three starts of two workers that are up',
      async () => {
        const all = await samples();
        return sum(all, /^customvpn_worker_starts_total/) === 3 && sum(all, /^customvpn_worker_up/) === 2;
      },
      { timeoutMs: 60_000 },
    );
  });

  test('when auth has died the port is answered by the next one', async () => {
    process.kill(pidOf(/auth\/main/), 'SIGKILL');
    await until(
      'another auth',
      async () => {
        const all = await samples().catch(() => new Map<string, number>());
        return sum(all, /^customvpn_worker_up/) === 2 && sum(all, /^customvpn_worker_starts_total/) === 2;
      },
      { timeoutMs: 60_000 },
    );
    assert.match((await ask('/healthz')).stdout, /^ok\n\n200$/);
  });
});
