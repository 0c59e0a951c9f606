/** The bare link: the limit of the machine, beside which every VPN stands. */

import type { BackgroundProcess } from '../../lab/process.ts';
import { type BenchNetwork, firstPing, OUTER_SERVER, type System, type TunnelEnds } from '../system.ts';

export class RawLink implements System {
  readonly name = 'raw';
  readonly server: readonly BackgroundProcess[] = [];
  readonly client: readonly BackgroundProcess[] = [];

  async missing(): Promise<undefined> {}

  async version(): Promise<string> {
    return 'a pair of veth devices, no VPN';
  }

  async up(network: BenchNetwork): Promise<TunnelEnds> {
    return { server: OUTER_SERVER, firstPingMs: await firstPing(network, OUTER_SERVER, performance.now(), []) };
  }

  async down(): Promise<void> {}
}
