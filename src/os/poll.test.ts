import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { isVpnError } from '../base/errors.ts';
import { Poll, PollEvents } from './poll.ts';

const run = promisify(execFile);
const skip = process.platform === 'linux' ? false : 'this machine does not run Linux';

/** A pipe whose two ends are one descriptor. */
function openPipe(): { fd: number; close(): void } {
  const folder = mkdtempSync(join(tmpdir(), 'cvpn-poll-'));
  const path = join(folder, 'pipe');
  execFileSync('mkfifo', [path]);
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  return {
    fd,
    close() {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    },
  };
}

test('a listener is called while the descriptor is readable, and no more after stop', { skip }, async () => {
  const pipe = openPipe();
  const poll = new Poll(pipe.fd);
  const { promise, resolve } = Promise.withResolvers<void>();
  let wakes = 0;
  poll.start(PollEvents.readable, (status, events) => {
    assert.equal(status, 0);
    assert.equal(events, PollEvents.readable);
    wakes += 1;
    if (wakes < 3) return;
    poll.stop();
    resolve();
  });
  writeSync(pipe.fd, 'x');
  await promise;
  for (let turn = 0; turn < 5; turn += 1) await new Promise((done) => setImmediate(done));
  assert.equal(wakes, 3);

  const writable = Promise.withResolvers<number>();
  poll.start(PollEvents.writable, (_status, events) => {
    poll.stop();
    writable.resolve(events);
  });
  assert.equal(await writable.promise, PollEvents.writable);
  await poll.close();
  pipe.close();
});

test('after close no listener is called, closing again is harmless, and starting is refused', { skip }, async () => {
  const pipe = openPipe();
  const poll = new Poll(pipe.fd);
  let wakes = 0;
  poll.start(PollEvents.readable, () => {
    wakes += 1;
  });
  writeSync(pipe.fd, 'x');
  const first = poll.close();
  pipe.close();
  await Promise.all([first, poll.close()]);
  assert.equal(wakes, 0);
  assert.throws(
    () => poll.start(PollEvents.readable, () => {}),
    (error) => isVpnError(error, 'ERR_INVARIANT'),
  );
  poll.stop();
});

test('a listener may close its own handle', { skip }, async () => {
  const pipe = openPipe();
  const poll = new Poll(pipe.fd);
  const { promise, resolve } = Promise.withResolvers<void>();
  poll.start(PollEvents.readable, () => {
    resolve(poll.close());
  });
  writeSync(pipe.fd, 'x');
  await promise;
  pipe.close();
});

test('what cannot be polled is refused', { skip }, () => {
  assert.throws(
    () => new Poll(-1),
    (error) => isVpnError(error, 'ERR_SYSCALL') && error.details.syscall === 'uv_poll_init',
  );
});

test('thousands of handles come and go', { skip }, async () => {
  const pipe = openPipe();
  for (let round = 0; round < 20; round += 1) {
    // One descriptor fits into a loop once, so each handle is closed before the next is made.
    for (let i = 0; i < 50; i += 1) {
      const poll = new Poll(pipe.fd);
      poll.start(PollEvents.readable, () => assert.fail('nothing was written'));
      await poll.close();
    }
  }
  writeSync(pipe.fd, 'x');
  assert.equal(readSync(pipe.fd, new Uint8Array(4)), 1);
  pipe.close();
});

const MODULE = new URL('./poll.ts', import.meta.url).pathname;

/** Runs a program with `fd`, a pipe, and `Poll` in scope; returns its status and output. */
async function child(program: string): Promise<{ code: number; stdout: string }> {
  const pipe = mkdtempSync(join(tmpdir(), 'cvpn-poll-'));
  execFileSync('mkfifo', [join(pipe, 'pipe')]);
  const text = `import fs from 'node:fs'; import { Poll } from '${MODULE}';
    const fd = fs.openSync('${join(pipe, 'pipe')}', fs.constants.O_RDWR | fs.constants.O_NONBLOCK); ${program}`;
  const args = ['--disable-warning=ExperimentalWarning', '--expose-gc', '--input-type=module', '-e', text];
  try {
    const { stdout } = await run(process.execPath, args, { timeout: 20_000 });
    return { code: 0, stdout };
  } catch (error) {
    const { code, stdout } = error as { code: number; stdout: string };
    return { code, stdout };
  } finally {
    rmSync(pipe, { recursive: true });
  }
}

test('an exception in a listener is an ordinary uncaught exception', { skip }, async () => {
  const result = await child(`
    process.on('uncaughtException', (error) => { console.log(error.message); process.exit(3); });
    new Poll(fd).start(1, () => { throw new Error('from the listener'); });
    fs.writeSync(fd, 'x');`);
  assert.deepEqual(result, { code: 3, stdout: 'from the listener\n' });
});

test('a handle that nobody holds lives on through forced collections', { skip }, async () => {
  const result = await child(`
    let wakes = 0;
    (() => {
      new Poll(fd).start(1, () => {
        fs.readSync(fd, new Uint8Array(1));
        gc();
        wakes += 1;
        if (wakes === 40) { console.log('done'); process.exit(0); }
        setImmediate(() => { gc(); fs.writeSync(fd, 'x'); });
      });
    })();
    gc();
    fs.writeSync(fd, 'x');`);
  assert.deepEqual(result, { code: 0, stdout: 'done\n' });
});

test('a process ends by itself once its handles are closed', { skip }, async () => {
  const result = await child(`
    const poll = new Poll(fd);
    poll.start(1, () => {});
    poll.close().then(() => console.log('closed'));`);
  assert.deepEqual(result, { code: 0, stdout: 'closed\n' });
});
