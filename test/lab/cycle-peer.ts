/**
 * A device that logs in and ends its session, over and over; run inside a namespace.
 *
 *   node cycle-peer.ts PROFILE COUNT [FEATURE…]   enrols a device of its own by this profile, and begins
 *
 * It says `{"cycles":N}` after each COUNT of them, and goes on when it is sent a line; at its end it is stopped.
 */

import { createInterface } from 'node:readline';
import { DeviceKey } from '../../src/client/device-key.ts';
import { readProfile } from '../../src/control/profile.ts';
import { PeerGateway, PeerSession } from '../bench/peer-session.ts';

const [profile = '', count = '', ...features] = process.argv.slice(2);
const gateway = new PeerGateway(await readProfile(profile));
const device = DeviceKey.generate();
const cycle = async (purpose: 'login' | 'enrol'): Promise<void> => {
  const session = await PeerSession.logIn(gateway, device, purpose, undefined, features);
  await session.close();
};
await cycle('enrol');
let cycles = 0;
const run = async (): Promise<void> => {
  for (let at = 0; at < Number(count); at++) await cycle('login');
  cycles += Number(count);
  process.stdout.write(`${JSON.stringify({ cycles })}\n`);
};
await run();
for await (const _line of createInterface({ input: process.stdin })) await run();
