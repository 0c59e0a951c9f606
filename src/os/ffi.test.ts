import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { checkResult, Errno, errnoName, IoVector, NativeMemory, nativeCalls, systemError } from './ffi.ts';

const skip = process.platform === 'linux' ? false : 'this machine does not run Linux';
const O_RDWR_CLOEXEC = 0x2 | 0x80000;

test('memory is zeroed, has an address, and is the same memory for bytes, view and C', { skip }, () => {
  const memory = new NativeMemory(16);
  assert.notEqual(memory.address, 0n);
  assert.deepEqual([...memory.bytes], Array(16).fill(0));
  memory.view.setUint16(0, 0x0102);
  assert.deepEqual([...memory.bytes.subarray(0, 2)], [1, 2]);

  const calls = nativeCalls();
  const fd = calls.open('/dev/zero', O_RDWR_CLOEXEC, 0);
  const vector = new IoVector();
  vector.setBase(memory.address + 1n);
  vector.setLength(3);
  memory.bytes.fill(7);
  assert.equal(calls.readv(fd, vector.address, 1), 3);
  assert.deepEqual([...memory.bytes.subarray(0, 6)], [7, 0, 0, 0, 7, 7]);
  assert.equal(calls.writev(fd, vector.address, 1), 3);
  assert.equal(calls.close(fd), 0);
});

test('small memory does not move when the collector runs', { skip }, () => {
  const memories = Array.from({ length: 100 }, () => new NativeMemory(8));
  const calls = nativeCalls();
  const vector = new IoVector();
  // Enough garbage for several collections of the young generation, between taking the address and using it.
  let garbage: unknown[] = [];
  for (let i = 0; i < 200_000; i += 1) garbage = [new Uint8Array(8), garbage.length];
  const fd = calls.open('/dev/zero', O_RDWR_CLOEXEC, 0);
  for (const memory of memories) {
    memory.bytes.fill(9);
    vector.setBase(memory.address);
    vector.setLength(8);
    assert.equal(calls.readv(fd, vector.address, 1), 8);
    assert.deepEqual([...memory.bytes], Array(8).fill(0));
  }
  calls.close(fd);
});

test('a failed call says which call and why', { skip }, () => {
  const calls = nativeCalls();
  assert.equal(calls.open('/nowhere/at/all', O_RDWR_CLOEXEC, 0), -1);
  assert.equal(calls.errno(), Errno.ENOENT);
  assert.throws(
    () => checkResult(calls.close(-1), 'closing nothing', 'close'),
    (error) => isVpnError(error, 'ERR_SYSCALL') && error.details.errno === 'EBADF' && error.details.syscall === 'close',
  );
  assert.equal(checkResult(5, 'nothing', 'none'), 5);
});

test('error numbers have names; an unknown one keeps its number', { skip }, () => {
  assert.equal(errnoName(Errno.EAGAIN), 'EAGAIN');
  assert.equal(errnoName(Errno.EADDRINUSE), 'EADDRINUSE');
  assert.equal(errnoName(4000), 'errno 4000');
  assert.equal(systemError('trying', 'call', 4000).code, 'ERR_SYSCALL');
});
