/**
 * The way from a bare clone to the running program: scripts/with-node.mjs, bin/customvpn and the lock file.
 *
 * Each test builds a small checkout of its own; npm is a stand-in that records how it was called, so that nothing is
 * fetched.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Outcome, type RunOptions, runProgram } from './support/process.ts';

const ROOT = dirname(import.meta.dirname);
const PLATFORM_PACKAGE = `node-${process.platform}-${process.arch}`;
const PLAIN_PATH = '/usr/local/bin:/usr/bin:/bin';

/** A folder that anyone may enter and that is removed after the test. */
function temporaryFolder(t: TestContext): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'customvpn-setup-')));
  chmodSync(folder, 0o755);
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function write(path: string, text: string, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  chmodSync(path, mode);
}

/** Puts the Node that runs this test where npm would have put it. */
function placeNode(modules: string): void {
  mkdirSync(join(modules, PLATFORM_PACKAGE, 'bin'), { recursive: true });
  symlinkSync(process.execPath, join(modules, PLATFORM_PACKAGE, 'bin/node'));
}

const PRINT_FACTS =
  'console.log(JSON.stringify({ pid: process.pid, cwd: process.cwd(), args: process.argv.slice(2), ' +
  'flags: process.execArgv, script: process.argv[1] }));\n';

interface Facts {
  readonly pid: number;
  readonly cwd: string;
  readonly args: readonly string[];
  readonly flags: readonly string[];
  readonly script: string;
}

const factsOf = (outcome: Outcome): Facts => {
  assert.equal(outcome.status, 0, outcome.stderr);
  return JSON.parse(outcome.stdout) as Facts;
};

// ── with-node.mjs ──

interface Checkout {
  readonly root: string;
  /** Runs with-node.mjs with these arguments. */
  run(args: readonly string[], options?: RunOptions & { withoutExecve?: boolean; uid?: number }): Promise<Outcome>;
  /** How often the stand-in for npm was called, and how the last time. */
  npmCalls(): string[][];
}

function makeCheckout(t: TestContext, options: { npmStatus?: number; installed?: boolean } = {}): Checkout {
  const root = temporaryFolder(t);
  const modules = join(root, 'node_modules');
  const calls = join(root, 'npm-calls');
  mkdirSync(join(root, 'scripts'));
  copyFileSync(join(ROOT, 'scripts/with-node.mjs'), join(root, 'scripts/with-node.mjs'));
  write(join(root, 'package.json'), JSON.stringify({ type: 'module', engines: { node: '>=26.10.0' } }));
  write(join(root, 'package-lock.json'), JSON.stringify({ lockfileVersion: 3, packages: { '': {} } }));
  write(join(root, 'scripts/facts.ts'), PRINT_FACTS);
  write(
    join(root, 'npm/npm-cli.js'),
    `const fs = require('node:fs');
     fs.appendFileSync(${JSON.stringify(calls)}, JSON.stringify(process.argv.slice(2)) + '\\n');
     console.log('what npm says');
     if (${options.npmStatus ?? 0} !== 0) process.exit(${options.npmStatus ?? 0});
     fs.mkdirSync(${JSON.stringify(join(modules, PLATFORM_PACKAGE, 'bin'))}, { recursive: true });
     fs.rmSync(${JSON.stringify(join(modules, PLATFORM_PACKAGE, 'bin/node'))}, { force: true });
     fs.symlinkSync(${JSON.stringify(process.execPath)}, ${JSON.stringify(join(modules, PLATFORM_PACKAGE, 'bin/node'))});`,
  );
  write(join(root, 'npm/package.json'), '{"type":"commonjs"}');
  if (options.installed !== false) {
    placeNode(modules);
    const hash = createHash('sha256')
      .update(readFileSync(join(root, 'package-lock.json')))
      .digest('hex');
    write(join(modules, '.customvpn-stamp'), hash);
  }
  return {
    root,
    run: (args, { withoutExecve = false, uid, ...rest } = {}) => {
      const flags = withoutExecve ? ['--import', 'data:text/javascript,delete process.execve'] : [];
      const command = [process.execPath, ...flags, join(root, 'scripts/with-node.mjs'), ...args];
      const drop = uid === undefined ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
      const [program = '', ...programArgs] = [...drop, ...command];
      const env = {
        PATH: PLAIN_PATH,
        HOME: root,
        npm_execpath: join(root, 'npm/npm-cli.js'),
        npm_node_execpath: process.execPath,
      };
      return runProgram(program, programArgs, { ...rest, env: { ...env, ...rest.env } });
    },
    npmCalls: () =>
      existsSync(calls)
        ? readFileSync(calls, 'utf8')
            .trim()
            .split('\n')
            .map((line) => JSON.parse(line) as string[])
        : [],
  };
}

test('with-node runs a script with the flags and arguments it needs, and says nothing', async (t) => {
  const checkout = makeCheckout(t);
  const outcome = await checkout.run(['scripts/facts.ts', '--json', 'a b']);
  const facts = factsOf(outcome);
  assert.deepEqual(facts.args, ['--json', 'a b']);
  assert.deepEqual(facts.flags, ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source']);
  assert.equal(facts.pid, outcome.pid, 'where Node can, the script takes the place of the wrapper');
  assert.equal(outcome.stderr, '');
  assert.deepEqual(checkout.npmCalls(), []);
});

test('with-node on a Node without execve passes status, signals and arguments through', async (t) => {
  const checkout = makeCheckout(t);
  assert.deepEqual(factsOf(await checkout.run(['scripts/facts.ts', 'x'], { withoutExecve: true })).args, ['x']);

  write(join(checkout.root, 'scripts/seven.ts'), 'process.exit(7);');
  assert.equal((await checkout.run(['scripts/seven.ts'], { withoutExecve: true })).status, 7);

  write(join(checkout.root, 'scripts/dies.ts'), "process.kill(process.pid, 'SIGKILL');");
  assert.equal((await checkout.run(['scripts/dies.ts'], { withoutExecve: true })).signal, 'SIGKILL');

  write(
    join(checkout.root, 'scripts/waits.ts'),
    "process.on('SIGTERM', () => { console.log('told'); process.exit(3); });\n" +
      "setInterval(() => {}, 1000);\nconsole.log('waiting');",
  );
  const told = await checkout.run(['scripts/waits.ts'], {
    withoutExecve: true,
    started: (child, output) => output.once('data', () => child.kill('SIGTERM')),
  });
  assert.equal(told.status, 3);
  assert.equal(told.stdout, 'waiting\ntold\n');
});

test('with-node installs the packages once, and again when the lock file has changed', async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const first = await checkout.run(['scripts/facts.ts']);
  factsOf(first);
  assert.match(first.stderr, /fetching the npm packages/);
  assert.match(first.stderr, /what npm says/, "npm's words go to standard error");
  const [call = []] = checkout.npmCalls();
  assert.equal(call[0], 'ci');
  for (const flag of ['--ignore-scripts', '--engine-strict=false', '--include=dev', '--include=optional']) {
    assert.ok(call.includes(flag), flag);
  }
  assert.equal((await checkout.run(['scripts/facts.ts'])).stderr, '');
  assert.equal(checkout.npmCalls().length, 1);

  write(join(checkout.root, 'package-lock.json'), JSON.stringify({ lockfileVersion: 3, packages: { '': { a: 1 } } }));
  factsOf(await checkout.run(['scripts/facts.ts']));
  assert.equal(checkout.npmCalls().length, 2);
});

test('with-node leaves alone what somebody installed with npm itself, unless a version differs', async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const modules = join(checkout.root, 'node_modules');
  placeNode(modules);
  const lock = (version: string): string =>
    JSON.stringify({
      packages: { 'node_modules/a': { version }, 'node_modules/elsewhere': { version: '1.0.0', optional: true } },
    });
  write(join(checkout.root, 'package-lock.json'), lock('1.0.0'));
  write(join(modules, '.package-lock.json'), JSON.stringify({ packages: { 'node_modules/a': { version: '1.0.0' } } }));
  factsOf(await checkout.run(['scripts/facts.ts']));
  assert.deepEqual(checkout.npmCalls(), []);

  write(join(checkout.root, 'package-lock.json'), lock('1.0.1'));
  factsOf(await checkout.run(['scripts/facts.ts']));
  assert.equal(checkout.npmCalls().length, 1);
});

test('with-node started twice at once runs npm once', async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const both = await Promise.all([checkout.run(['scripts/facts.ts']), checkout.run(['scripts/facts.ts'])]);
  for (const outcome of both) factsOf(outcome);
  assert.equal(checkout.npmCalls().length, 1);
  assert.ok(!existsSync(join(checkout.root, '.cache/setup.lock')));
});

test('with-node steals the lock of a set-up that died', async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const dead = await runProgram('/bin/sh', ['-c', 'exit 0']);
  write(join(checkout.root, '.cache/setup.lock'), String(dead.pid));
  factsOf(await checkout.run(['scripts/facts.ts']));
  assert.equal(checkout.npmCalls().length, 1);
});

test('with-node says what failed when npm fails, and tries again the next time', async (t) => {
  const checkout = makeCheckout(t, { installed: false, npmStatus: 5 });
  for (const count of [1, 2]) {
    const outcome = await checkout.run(['scripts/facts.ts']);
    assert.equal(outcome.status, 69);
    assert.match(outcome.stderr, /npm ci` failed with status 5/);
    assert.equal(outcome.stdout, '');
    assert.equal(checkout.npmCalls().length, count);
  }
});

test('with-node refuses options it does not know', async (t) => {
  const checkout = makeCheckout(t);
  for (const args of [[], ['--nonsense'], ['--packages', 'nonsense', 'scripts/facts.ts']]) {
    const outcome = await checkout.run(args);
    assert.equal(outcome.status, 64, args.join(' '));
    assert.match(outcome.stderr, /usage: node scripts\/with-node\.mjs/);
  }
});

const isRoot = process.getuid?.() === 0;

/** Whether a user without rights can reach the Node that runs this and the temporary folders. */
function strangerIsShutOut(): boolean {
  for (const path of [process.execPath, realpathSync(tmpdir())]) {
    for (let at = dirname(path); at !== dirname(at); at = dirname(at)) {
      if ((statSync(at).mode & 0o001) === 0) return true;
    }
  }
  return false;
}

const asStranger = { skip: isRoot && strangerIsShutOut() ? 'other users cannot enter this checkout' : false };
const stranger = isRoot ? { uid: 65534 } : {};

test('with-node as another user: demo says what is missing and fetches nothing', asStranger, async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const outcome = await checkout.run(['--packages', 'demo', 'scripts/facts.ts', '--json'], stranger);
  assert.equal(outcome.status, 77);
  assert.match(outcome.stderr, /root is needed to make network namespaces and TUN devices/);
  assert.equal(outcome.stdout, '');
  assert.deepEqual(checkout.npmCalls(), []);
});

test('with-node as another user: test goes on and says what is left out', asStranger, async (t) => {
  const checkout = makeCheckout(t);
  const outcome = await checkout.run(['--packages', 'test', 'scripts/facts.ts'], stranger);
  factsOf(outcome);
  assert.match(outcome.stderr, /is left out, and is said to be:\n {2}- root is needed/);
});

test('with-node in a checkout that is not ours to write says who must install', {
  skip: isRoot ? asStranger.skip : 'needs root',
}, async (t) => {
  const checkout = makeCheckout(t, { installed: false });
  const outcome = await checkout.run(['scripts/facts.ts'], { uid: 65534 });
  assert.equal(outcome.status, 77);
  assert.match(outcome.stderr, /run `npm ci` there as its owner/);
});

// ── bin/customvpn ──

/** A checkout or an installed package with the real launcher and a program that prints facts. */
function makeProgram(folder: string, kind: 'checkout' | 'package'): string {
  mkdirSync(join(folder, 'bin'), { recursive: true });
  copyFileSync(join(ROOT, 'bin/customvpn'), join(folder, 'bin/customvpn'));
  write(join(folder, 'package.json'), '{"type":"module"}');
  if (kind === 'checkout') {
    mkdirSync(join(folder, 'src'));
    write(join(folder, 'bin/customvpn.ts'), `const typed: number = 1;\n${PRINT_FACTS}`);
  } else {
    write(join(folder, 'dist/bin/customvpn.js'), PRINT_FACTS);
  }
  return join(folder, 'bin/customvpn');
}

test('the launcher becomes the program: same process, folder and arguments, through links', async (t) => {
  const folder = temporaryFolder(t);
  const launcher = makeProgram(join(folder, 'a checkout'), 'checkout');
  placeNode(join(folder, 'a checkout/node_modules'));
  symlinkSync(launcher, join(folder, 'absolute'));
  mkdirSync(join(folder, 'links'));
  symlinkSync('../absolute', join(folder, 'links/relative'));

  for (const path of [launcher, join(folder, 'absolute'), join(folder, 'links/relative')]) {
    const outcome = await runProgram(path, ['client', 'up', 'a b', ''], { cwd: folder, env: { PATH: PLAIN_PATH } });
    const facts = factsOf(outcome);
    assert.equal(facts.pid, outcome.pid);
    assert.equal(facts.cwd, folder);
    assert.deepEqual(facts.args, ['client', 'up', 'a b', '']);
    assert.equal(basename(facts.script), 'customvpn.ts');
    assert.equal(outcome.stderr, '');
  }
  const byRelativePath = await runProgram('/bin/sh', ['-c', 'cd links && exec ./relative x'], {
    cwd: folder,
    env: { PATH: PLAIN_PATH },
  });
  assert.deepEqual(factsOf(byRelativePath).args, ['x']);
});

test('the launcher of an installed package runs dist with the Node installed beside it', async (t) => {
  const folder = temporaryFolder(t);
  const launcher = makeProgram(join(folder, 'node_modules/customvpn'), 'package');
  placeNode(join(folder, 'node_modules'));
  mkdirSync(join(folder, 'node_modules/.bin'));
  symlinkSync('../customvpn/bin/customvpn', join(folder, 'node_modules/.bin/customvpn'));
  for (const path of [launcher, join(folder, 'node_modules/.bin/customvpn')]) {
    const facts = factsOf(await runProgram(path, ['--version'], { env: { PATH: PLAIN_PATH } }));
    assert.equal(basename(facts.script), 'customvpn.js');
  }
});

test('the launcher takes a new enough Node from PATH, and refuses an old one', async (t) => {
  const folder = temporaryFolder(t);
  const launcher = makeProgram(join(folder, 'checkout'), 'checkout');
  mkdirSync(join(folder, 'new'));
  symlinkSync(process.execPath, join(folder, 'new/node'));
  factsOf(await runProgram(launcher, [], { env: { PATH: `${folder}/new:/usr/bin:/bin` } }));

  write(join(folder, 'old/node'), '#!/bin/sh\necho v20.20.2\n', 0o755);
  const old = await runProgram(launcher, [], { env: { PATH: `${folder}/old:/usr/bin:/bin` } });
  assert.equal(old.status, 69);
  assert.match(old.stderr, /found on PATH: v20\.20\.2\.\n.*run `npm ci` first/);
  assert.equal(old.stdout, '');

  write(join(folder, 'none/node'), '#!/bin/sh\nexit 127\n', 0o755);
  const none = await runProgram(launcher, [], { env: { PATH: `${folder}/none:/usr/bin:/bin` } });
  assert.equal(none.status, 69);
  assert.match(none.stderr, /found on PATH: none/);
});

test('the launcher asks for the Node that package.json asks for', () => {
  const { engines } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { engines: { node: string } };
  const [major, minor] = engines.node.replace('>=', '').split('.');
  const launcher = readFileSync(join(ROOT, 'bin/customvpn'), 'utf8');
  assert.ok(launcher.includes(`+a > ${major} || (+a === ${major} && +b >= ${minor})`));
  assert.ok(launcher.includes(`Node ${major}.${minor} or newer`));
});

// ── package-lock.json ──

interface LockEntry {
  readonly version?: string;
  readonly resolved?: string;
  readonly hasInstallScript?: boolean;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
  packages: Readonly<Record<string, LockEntry>>;
};

test('the lock file has an entry for every platform: npm ci refuses it otherwise', () => {
  for (const [path, entry] of Object.entries(lock.packages)) {
    for (const name of Object.keys(entry.optionalDependencies ?? {})) {
      let folder = path;
      while (lock.packages[join(folder, 'node_modules', name)] === undefined) {
        assert.notEqual(folder, '', `${name}, an optional dependency of ${path || 'the project'}, has no entry`);
        folder = folder.slice(0, Math.max(0, folder.lastIndexOf('node_modules/') - 1));
      }
    }
  }
});

/** Its script only makes its command start faster; what is needed comes as an optional package for the platform. */
const WORKS_WITHOUT_SCRIPT = ['node_modules/esbuild'];

test('the lock file names no registry and no package that needs its install script', () => {
  const packages = Object.entries(lock.packages);
  assert.deepEqual(
    packages
      .filter(
        ([path, entry]) =>
          entry.resolved !== undefined || (entry.hasInstallScript === true && !WORKS_WITHOUT_SCRIPT.includes(path)),
      )
      .map(([path]) => path),
    [],
  );
});
