/** Descriptors that travel between processes: they arrive whole, one at a time, and none is leaked. */

import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd } from './socket.ts';
import { DescriptorReceiver, DescriptorSender, MAX_DESCRIPTOR_PACKET_BYTES, socketPair } from './unix-socket.ts';

const linux = { skip: process.platform === 'linux' ? false : 'needs Linux' };

const openCount = () => readdirSync('/proc/self/fd').length;

test('a descriptor arrives with its bytes, as a copy', linux, async () => {
  const [near, far] = socketPair('packets');
  const file = openSync('/dev/null', 'r');
  const came = Promise.withResolvers<[string, number]>();
  const receiver = new DescriptorReceiver(far, (bytes, fd) => came.resolve([Buffer.from(bytes).toString(), fd]));
  assert.equal(new DescriptorSender(near).send(Buffer.from('hello'), file), true);
  const [text, fd] = await came.promise;
  assert.equal(text, 'hello');
  assert.notEqual(fd, file);
  assert.equal(fstatSync(fd).rdev, fstatSync(file).rdev);
  for (const each of [fd, file, near]) closeSync(each);
  await receiver.close();
});

test('whoever does not take them is not sent more, and no descriptor stays behind', linux, async () => {
  const before = openCount();
  const [near, far] = socketPair('packets');
  const file = openSync('/dev/null', 'r');
  const sender = new DescriptorSender(near);
  let sent = 0;
  while (sender.send(Buffer.alloc(1000, 1), file)) sent += 1;
  assert.ok(sent > 0 && sent < 100_000, `${sent}`);
  let taken = 0;
  const all = Promise.withResolvers<void>();
  const receiver = new DescriptorReceiver(far, (_bytes, fd) => {
    closeFd(fd);
    taken += 1;
    if (taken === sent) all.resolve();
  });
  await all.promise;
  closeSync(near);
  closeSync(file);
  await receiver.close();
  assert.equal(openCount(), before);
});

test('a packet that is empty or too long is a mistake of the sender', linux, () => {
  const [near, far] = socketPair('packets');
  const sender = new DescriptorSender(near);
  assert.throws(() => sender.send(Buffer.alloc(0), 0), { code: 'ERR_INVARIANT' });
  assert.throws(() => sender.send(Buffer.alloc(MAX_DESCRIPTOR_PACKET_BYTES + 1), 0), { code: 'ERR_INVARIANT' });
  closeFd(near);
  closeFd(far);
});
