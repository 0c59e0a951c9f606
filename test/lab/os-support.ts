/**
 * Network namespaces for the lab tests of `src/os`, and programs that run inside them.
 *
 * Hides names, removal and the reasons for which a machine cannot run these tests. A test process cannot enter a namespace
 * by itself: what needs to be inside runs as a child.
 */

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** Why these tests cannot run here, for `test(…, { skip })`; false when they can. */
export const skipReason: string | false =
  process.platform !== 'linux'
    ? 'this machine does not run Linux'
    : process.getuid?.() !== 0
      ? 'network namespaces need root'
      : !existsSync('/dev/net/tun')
        ? 'this machine has no /dev/net/tun'
        : !hasProgram('ip') || !hasProgram('nft')
          ? 'iproute2 and nftables are needed: apt-get install iproute2 nftables'
          : false;

function hasProgram(name: string): boolean {
  try {
    execFileSync(name, ['-V'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

let count = 0;

/** A network namespace of its own, with loopback up; removed when disposed of. */
export class Namespace {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }

  static async open(label: string): Promise<Namespace> {
    count += 1;
    const namespace = new Namespace(`cvpn-test-${process.pid}-${label}${count}`);
    await run('ip', ['netns', 'add', namespace.name]);
    await namespace.exec('ip', 'link', 'set', 'lo', 'up');
    return namespace;
  }

  /** Runs a program inside and returns its output; a status other than 0 throws. */
  async exec(program: string, ...args: string[]): Promise<string> {
    const { stdout } = await run('ip', ['netns', 'exec', this.name, program, ...args]);
    return stdout;
  }

  /** Runs a program inside with text as its input. */
  feed(input: string, program: string, ...args: string[]): string {
    return execFileSync('ip', ['netns', 'exec', this.name, program, ...args], { input, encoding: 'utf8' });
  }

  spawn(program: string, ...args: string[]): ChildProcess {
    return spawn('ip', ['netns', 'exec', this.name, program, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  }

  /** Runs one of our TypeScript files inside, to its end, and returns what it printed as JSON. */
  async node(script: URL, args: string[] = [], flags: string[] = []): Promise<unknown> {
    const { stdout } = await run(
      'ip',
      [
        'netns',
        'exec',
        this.name,
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        ...flags,
        script.pathname,
        ...args,
      ],
      { timeout: 60_000 },
    );
    return JSON.parse(stdout);
  }

  /** Joins two namespaces by a pair of virtual Ethernet devices, up and with these addresses (`a/length`). */
  static async join(
    left: { in: Namespace; device: string; addresses: string[] },
    right: { in: Namespace; device: string; addresses: string[] },
  ): Promise<void> {
    await left.in.exec(
      ...(['ip', 'link', 'add', left.device, 'type', 'veth', 'peer', 'name', right.device] as const),
      ...['netns', right.in.name],
    );
    for (const end of [left, right]) {
      for (const address of end.addresses) {
        await end.in.exec(
          'ip',
          'address',
          'add',
          address,
          'dev',
          end.device,
          ...(address.includes(':') ? ['nodad'] : []),
        );
      }
      await end.in.exec('ip', 'link', 'set', end.device, 'up');
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await run('ip', ['netns', 'delete', this.name]);
  }
}
