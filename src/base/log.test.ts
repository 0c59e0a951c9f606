import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runProgram } from '../../test/support/process.ts';
import { createLogger, SECRET_FIELDS } from './log.ts';

const MODULE = new URL('log.ts', import.meta.url).href;

/** Runs a module that has `log` and prints to standard error itself. */
async function stderrOf(source: string): Promise<string[]> {
  const code = `import { createLogger } from ${JSON.stringify(MODULE)};\nconst log = createLogger();\n${source}`;
  const { stderr } = await runProgram(process.execPath, ['--input-type=module', '--eval', code]);
  return stderr
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.replace(/ \d\d:\d\d:\d\d\.\d{3} /, ' TIME '));
}

test('lines reach standard error in order, whoever wrote them, and by the end of the turn', async () => {
  const lines = await stderrOf(`
    const other = createLogger();
    log.info('one');
    other.warn('two');
    log.child({ component: 'part' }).info('three', { n: 3 });
    setImmediate(() => process.stderr.write('after the turn\\n'));
  `);
  assert.deepEqual(lines, ['info  TIME one', 'warn  TIME two', 'info  TIME part: three n=3', 'after the turn']);
});

test('what waits is written when the process ends: by itself, by exit and by an exception', async () => {
  assert.deepEqual(await stderrOf("log.info('last');"), ['info  TIME last']);
  assert.deepEqual(await stderrOf("log.info('last'); process.exit(3);"), ['info  TIME last']);
  const thrown = await stderrOf("log.info('last'); throw new Error('broken');");
  assert.ok(thrown.includes('info  TIME last'), thrown.join('\n'));
  assert.ok(thrown.some((line) => line.includes('broken')));
});

test('a flood in one turn does not wait for its end', async () => {
  const lines = await stderrOf(`
    for (let n = 0; n < 3000; n += 1) log.info('a line of some forty characters to fill it', { n });
    process.kill(process.pid, 'SIGKILL');
  `);
  assert.ok(lines.length > 2000, `${lines.length} lines`);
});

test('a control character in a value cannot make a second line', () => {
  let text = '';
  const log = createLogger({
    sink: {
      write: (line) => {
        text += line;
      },
    },
  });
  log.info('login refused', { user: 'mallory\nerror 00:00:00 root: all is lost', peer: '\u001b[2J' });
  assert.equal(text.match(/\n/g)?.length, 1);
  assert.ok(!text.includes('\u001b'));
});

test('fields that name a secret are not written, in either format, also one level deeper', () => {
  for (const format of ['json', 'text'] as const) {
    const lines: string[] = [];
    const log = createLogger({ format, sink: { write: (line) => void lines.push(line) } });
    for (const name of SECRET_FIELDS)
      log.child({ [name]: 'hunter2' }).info('x', { [name]: 'hunter2', deeper: { [name]: 'hunter2' } });
    log.info('y', { user: 'ada', deeper: { tokens: 3 } });
    assert.equal(lines.length, SECRET_FIELDS.length + 1);
    assert.doesNotMatch(lines.join(''), /hunter2/);
    assert.match(lines.at(-1) ?? '', /ada/);
    assert.match(lines.at(-1) ?? '', /tokens/);
  }
});
