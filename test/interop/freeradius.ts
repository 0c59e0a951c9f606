/**
 * Debian's freeradius with a configuration folder and ports of its own, for tests of the RADIUS back end.
 *
 * Hides how it is set up. The machine's own server, if it runs one, is neither used nor disturbed.
 */

import { createSocket } from 'node:dgram';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BackgroundProcess } from '../lab/process.ts';

export const PROGRAM = '/usr/sbin/freeradius';

async function freeUdpPort(): Promise<number> {
  const socket = createSocket('udp4');
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
  const { port } = socket.address();
  await new Promise<void>((resolve) => socket.close(resolve));
  return port;
}

export interface FreeradiusOptions {
  secret: string;
  /** Passwords by name; `otp` accounts are asked for `123456` after it, and again after `next`. */
  users: Readonly<Record<string, { password: string; classes?: readonly string[]; otp?: boolean }>>;
  /** Whether answers carry Message-Authenticator; older servers leave it out unless told. */
  signs?: boolean;
}

export class Freeradius implements AsyncDisposable {
  /** `ADDRESS:PORT` for logins. */
  readonly server: string;
  /** `ADDRESS:PORT` for accounting. */
  readonly accountingServer: string;
  readonly #folder: string;
  readonly #process: BackgroundProcess;

  static async start({ secret, users, signs = true }: FreeradiusOptions): Promise<Freeradius> {
    const folder = await mkdtemp(join(tmpdir(), 'customvpn-radius-'));
    const [port, accountingPort] = [await freeUdpPort(), await freeUdpPort()];
    const sign = signs ? 'update reply { Message-Authenticator := 0x00 }' : 'ok';
    const entries = Object.entries(users).map(([name, { password, classes = [], otp = false }]) => {
      const check = `${name} Cleartext-Password := "${password}"${otp ? ', Auth-Type := First' : ''}`;
      return `${check}\n${classes.map((value) => `\tClass += "${value}"`).join(',\n')}\n`;
    });
    await writeFile(join(folder, 'users'), entries.join('\n'));
    await writeFile(
      join(folder, 'radiusd.conf'),
      `
prefix = /usr
raddbdir = ${folder}
logdir = ${folder}
run_dir = ${folder}
libdir = /usr/lib/freeradius
pidfile = ${folder}/pid
max_request_time = 10
cleanup_delay = 2
max_requests = 256
hostname_lookups = no
log { destination = stdout }
security { max_attributes = 200 reject_delay = 0 status_server = no }
proxy_requests = no
client loopback { ipaddr = 127.0.0.1 secret = "${secret}" require_message_authenticator = yes }
modules {
  pap { }
  always ok { rcode = ok }
  always reject { rcode = reject }
  always handled { rcode = handled }
  files { usersfile = ${folder}/users }
  detail { filename = ${folder}/detail permissions = 0600 header = "%t" }
}
server default {
  listen { type = auth ipaddr = 127.0.0.1 port = ${port} }
  listen { type = acct ipaddr = 127.0.0.1 port = ${accountingPort} }
  authorize {
    files
    if (&State) {
      if (&State == 0x636f6465 && &User-Password == "123456") {
        update control { Auth-Type := Accept }
      }
      elsif (&State == 0x636f6465 && &User-Password == "next") {
        update control { Auth-Type := Next }
      }
      else {
        reject
      }
    }
    pap
  }
  authenticate {
    Auth-Type PAP { pap }
    Auth-Type First {
      pap
      if (ok) {
        update reply { State := 0x636f6465 Reply-Message := "One-time code:" }
        update control { Response-Packet-Type := Access-Challenge }
        ${signs ? 'update reply { Message-Authenticator := 0x00 }' : ''}
        handled
      }
    }
    Auth-Type Next {
      update reply { State := 0x636f6465 Reply-Message := "The next code:" Prompt := Echo }
      update control { Response-Packet-Type := Access-Challenge }
      ${signs ? 'update reply { Message-Authenticator := 0x00 }' : ''}
      handled
    }
  }
  post-auth {
    ${sign}
    Post-Auth-Type REJECT { ${sign} }
    Post-Auth-Type Challenge { ${sign} }
  }
  accounting { detail }
}
`.replaceAll(/\{ ([^{}\n]+?) \}/g, (_, inner: string) => `{\n${inner.replaceAll(/ (?=[\w-]+ :?= )/g, '\n')}\n}`),
    );
    const process = await BackgroundProcess.start(
      [PROGRAM, '-f', '-l', 'stdout', '-x', '-d', folder, '-n', 'radiusd'],
      {
        ready: /Ready to process requests/,
      },
    );
    return new Freeradius(folder, process, port, accountingPort);
  }

  private constructor(folder: string, process: BackgroundProcess, port: number, accountingPort: number) {
    this.#folder = folder;
    this.#process = process;
    this.server = `127.0.0.1:${port}`;
    this.accountingServer = `127.0.0.1:${accountingPort}`;
  }

  /** What it says of itself and what it was asked. */
  get log(): string {
    return this.#process.output;
  }

  /** The accounting records it has written. */
  async records(): Promise<string> {
    return await readFile(join(this.#folder, 'detail'), 'utf8');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
