/**
 * The privileged side of `cage.test.ts`, inside a namespace: makes a device and a socket, starts a program in a cage with
 * both, looks at it from outside, has it try what it must not, and prints what was seen as JSON.
 *
 *   cage-outside.ts SCENARIO
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { gatewayConfigSchema } from '../../src/gateway/config.ts';
import { initGateway } from '../../src/gateway/init.ts';
import { readGatewayConfig, statePaths } from '../../src/gateway/layout.ts';
import { GatewayProcesses } from '../../src/gateway/supervisor/processes.ts';
import type { CageKind } from '../../src/os/cage.ts';
import { checkResult, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';
import { Launcher } from '../../src/os/launcher.ts';
import { openListenSocket } from '../../src/os/socket.ts';
import { TestAuthority } from '../support/certificates.ts';
import { collectLog } from '../support/log-lines.ts';
import type { CageOrder } from './cage-child.ts';

const NOBODY = { uid: 65534, gid: 65534 };
const CHILD = new URL('./cage-child.ts', import.meta.url).pathname;
const CONFINED = new URL('./confine-child.ts', import.meta.url).pathname;
const AUTH_FILES = new URL('./auth-files-child.ts', import.meta.url).pathname;
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning'] as const;
const SHOWN = [
  'Uid',
  'Gid',
  'Groups',
  'NoNewPrivs',
  'Seccomp',
  'Seccomp_filters',
  'CapInh',
  'CapPrm',
  'CapEff',
  'CapBnd',
  'CapAmb',
];

const scenarios: Record<string, () => Promise<unknown>> = {
  worker: () => caged('worker'),
  hasher: () => caged('hasher'),
  auth: () => caged('auth'),
  'auth-files': authFiles,
  confined: () => confined(true),
  unconfined: () => confined(false),
  free: () => caged('worker', true),
  'no-setpriv': async () => {
    // The administrator's folders stay on the path; setpriv is a user's program.
    process.env.PATH = '/nowhere';
    return await caged('worker');
  },
  'own-ring': ownRing,
  privileged,
  orphan,
  unreachable,
};

function openTunFd(): number {
  const calls = nativeCalls();
  const fd = checkResult(calls.open('/dev/net/tun', 0x2 | 0x800, 0), 'opening a device', 'open');
  const request = new NativeMemory(40);
  request.bytes.set(new TextEncoder().encode('cvcage0'));
  request.view.setUint16(16, 0x1001, true);
  checkResult(calls.ioctl(fd, 0x4004_54can, request.address), 'making a device', 'ioctl TUNSETIFF');
  return fd;
}

async function caged(kind: CageKind, isFree = false): Promise<unknown> {
  const { log, lines } = collectLog();
  const launcher = await Launcher.open({ log });
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-cage-'));
  try {
    chmodSync(folder, 0o777);
    const secrets = ['store.sqlite', 'server.key'].map((name) => join(folder, name));
    for (const path of secrets) writeFileSync(path, 'secret', { mode: 0o600 });
    const ca = await TestAuthority.create();
    const { cert, key } = await ca.server();
    await using beside = createServer((socket) => socket.destroy());
    await new Promise<void>((done) => beside.listen(0, '127.0.0.1', done));
    const port = (beside.address() as { port: number }).port;
    const listen = openListenSocket({ address: '127.0.0.1', port: 0, reusePort: true });
    const command = launcher.command(NOBODY, [...NODE, CHILD], [CHILD]);
    const child = spawn(command.file, command.args, {
      ...command.options,
      env: {},
      stdio: ['ignore', 'inherit', 'pipe', 'ipc', listen.fd, openTunFd()],
    });
    let errors = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      errors += text;
    });
    const order: CageOrder = { kind, cert, key, paths: [folder, ...secrets], port, isFree };
    const ready = await ask(child, order);
    const serves = kind === 'hasher' ? () => 'not asked' : () => echo(listen.port, ca.cert);
    const served = await serves();
    const works = await ask(child, 'works');
    const threads = statusOfThreads(child.pid ?? 0);
    const attempts = await ask(child, 'attempts');
    const stillServed = await serves();
    const stillWorks = await ask(child, 'works');
    const wayOut = await ask(child, 'way out');
    const ended = once(child, 'exit');
    child.disconnect();
    await ended;
    const warnings = lines.map(({ msg }) => msg);
    return { ready, served, works, threads, attempts, stillServed, stillWorks, wayOut, warnings, errors };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Started past the launcher, so that Node has made its ring. */
async function ownRing(): Promise<unknown> {
  const listen = openListenSocket({ address: '127.0.0.1', port: 0 });
  const child = spawn(NODE[0], [NODE[1], CHILD], {
    ...NOBODY,
    env: {},
    stdio: ['ignore', 'inherit', 'inherit', 'ipc', listen.fd, openTunFd()],
  });
  return await ask(child, { kind: 'worker', paths: [], port: 0 } as unknown as CageOrder);
}

/** Started by the launcher's process, but as root. */
async function privileged(): Promise<unknown> {
  await Launcher.open({ log: collectLog().log });
  const listen = openListenSocket({ address: '127.0.0.1', port: 0 });
  const child = spawn(NODE[0], [NODE[1], CHILD], {
    env: {},
    stdio: ['ignore', 'inherit', 'inherit', 'ipc', listen.fd, openTunFd()],
  });
  return await ask(child, { kind: 'worker', paths: [], port: 0 } as unknown as CageOrder);
}

async function confined(isConfined: boolean): Promise<unknown> {
  const launcher = await Launcher.open({ log: collectLog().log });
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-cage-'));
  try {
    const [state, other] = ['state', 'other'].map((name) => join(folder, name)) as [string, string];
    chmodSync(folder, 0o755);
    for (const path of [state, other]) {
      mkdirSync(path);
      chmodSync(path, 0o777);
    }
    writeFileSync(join(other, 'open'), 'readable by all', { mode: 0o644 });
    writeFileSync(join(folder, 'greeting'), 'hello');
    const program = [...NODE, CONFINED, state, other] as const;
    const command = launcher.command(
      NOBODY,
      program,
      [CONFINED],
      isConfined ? { read: [], write: [state], descriptors: [3] } : undefined,
    );
    const greeting = openSync(join(folder, 'greeting'), 'r');
    const child = spawn(command.file, command.args, {
      ...command.options,
      env: {},
      stdio: ['ignore', 'pipe', 'inherit', greeting],
    });
    child.stdout?.setEncoding('utf8');
    let text = '';
    for await (const chunk of child.stdout ?? []) text += String(chunk);
    return JSON.parse(text);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What the program reaches that a gateway starts as auth, told by one that runs in its place. */
async function authFiles(): Promise<unknown> {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-cage-'));
  try {
    chmodSync(folder, 0o755);
    const [state, other] = ['state', 'other'].map((name) => join(folder, name)) as [string, string];
    const secret = join(folder, 'radius.secret');
    await initGateway(state, { names: ['localhost'], pool: ['10.77.0.0/24'] });
    mkdirSync(other);
    chmodSync(other, 0o777);
    writeFileSync(join(other, 'open'), 'readable by all', { mode: 0o644 });
    writeFileSync(join(other, 'server.key'), 'a key', { mode: 0o600 });
    writeFileSync(secret, 'secret', { mode: 0o600 });
    const written = await readGatewayConfig(statePaths(state).config);
    const radius = { kind: 'radius', servers: ['127.0.0.1'], secretFile: secret, groups: {} };
    const config = gatewayConfigSchema.parse({ ...written, port: 0, backends: { radius } });
    const program = [...NODE, '--conditions=customvpn-source', AUTH_FILES, secret, other] as const;
    const started = GatewayProcesses.start({
      config,
      stateDir: state,
      workers: 1,
      readConfig: async () => written,
      version: 'test',
      log: collectLog().log,
      authProgram: [...program],
    });
    const failed = await started.then(
      () => 'it runs',
      () => 'it does not run',
    );
    const path = join(statePaths(state).certs, 'tried.json');
    return { failed, ...(existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as object) : {}) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Ends without a word while its child is stopped: only the kernel can end that one. */
async function orphan(): Promise<unknown> {
  const launcher = await Launcher.open({ log: collectLog().log });
  const command = launcher.command(NOBODY, [
    ...NODE,
    '-e',
    'process.stdout.write("here"); setInterval(() => {}, 1000)',
  ]);
  const child = spawn(command.file, command.args, {
    ...command.options,
    env: {},
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  child.kill('SIGSTOP');
  process.stdout.write(`${JSON.stringify(child.pid)}\n`, () => process.kill(process.pid, 'SIGKILL'));
  return await new Promise(() => setInterval(() => {}, 1000));
}

async function unreachable(): Promise<unknown> {
  const launcher = await Launcher.open({ log: collectLog().log });
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-cage-'));
  try {
    const program = join(folder, 'program');
    writeFileSync(program, '', { mode: 0o755 });
    launcher.command(NOBODY, [program]);
    return 'done';
  } catch (error) {
    return { code: Reflect.get(error as Error, 'code'), names: String(error).includes(`chmod o+x ${folder}`) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function ask(child: ChildProcess, message: CageOrder | string): Promise<unknown> {
  const answered = once(child, 'message').then(([answer]: unknown[]) => answer);
  const ended = once(child, 'exit').then(([status, signal]) => ({ ended: status ?? signal }));
  // A child that has ended before answers nothing either.
  if (child.exitCode !== null || child.signalCode !== null) return { ended: child.exitCode ?? child.signalCode };
  child.send(message);
  return await Promise.race([answered, ended]);
}

/** What a TLS connection sends comes back. */
async function echo(port: number, ca: string): Promise<string> {
  const socket = connect({ port, host: '127.0.0.1', servername: 'localhost', ca });
  socket.setEncoding('utf8').end('hello through the cage');
  let text = '';
  for await (const chunk of socket) text += String(chunk);
  return text;
}

/** Field → the values that the threads of a process have of it. */
function statusOfThreads(pid: number): Record<string, string[]> & { Threads: string[] } {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const result: Record<string, Set<string>> = {};
  for (const task of tasks) {
    const status = readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8');
    for (const name of SHOWN) {
      const value = new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(status)?.[1]?.trim().replaceAll('\t', ' ');
      const values = result[name] ?? new Set();
      result[name] = values.add(value ?? 'missing');
    }
  }
  const shown = Object.entries(result).map(([name, values]) => [name, [...values]] as const);
  return { ...Object.fromEntries(shown), Threads: [String(tasks.length)] };
}

const scenario = scenarios[process.argv[2] ?? ''];
if (scenario === undefined) throw new Error(`no scenario ${process.argv[2]}`);
process.stdout.write(`${JSON.stringify(await scenario())}\n`, () => process.exit(0));
