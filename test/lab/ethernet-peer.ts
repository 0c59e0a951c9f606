/**
 * Sends Ethernet frames as they are: `ethernet-peer.ts DEVICE`, frames as lines of hexadecimal digits on standard input. For what
 * no program of a machine would say.
 */

import { createInterface } from 'node:readline';
import { checkResult, IoVector, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';

const AF_PACKET = 17;
const SOCK_RAW_CLOEXEC = 3 | 0x80000;
const MAX_FRAME_BYTES = 65_536;

const [, , device = ''] = process.argv;
const calls = nativeCalls();
const fd = checkResult(calls.socket(AF_PACKET, SOCK_RAW_CLOEXEC, 0), device, 'socket');
const address = new NativeMemory(20);
address.view.setUint16(0, AF_PACKET, true);
address.view.setInt32(4, calls.if_nametoindex(device), true);
checkResult(calls.bind(fd, address.address, 20), device, 'bind');
const frame = new NativeMemory(MAX_FRAME_BYTES);
const vector = new IoVector();
vector.setBase(frame.address);

for await (const line of createInterface({ input: process.stdin })) {
  const bytes = Buffer.from(line, 'hex');
  frame.bytes.set(bytes);
  vector.setLength(bytes.length);
  checkResult(calls.writev(fd, vector.address, 1), device, 'writev');
}
calls.close(fd);
