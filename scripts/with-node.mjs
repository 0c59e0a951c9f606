/**
 * Runs a script of this project with the project's own Node, setting up first whatever is missing.
 *
 *   node scripts/with-node.mjs [--setup-only] [--packages demo|test|bench] [SCRIPT [ARGUMENT…]]
 *
 * Hides what the machine brings: any Node from 16 on, any npm from 7 on, Debian packages or none. It is therefore plain
 * JavaScript without dependencies. All it says goes to standard error; standard output belongs to the script. When
 * nothing is missing it costs one hash of the lock file and a few look-ups. It ends no process but its own children.
 */

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const modules = path.join(root, 'node_modules');
const cache = path.join(root, '.cache');

/** sysexits(3) */
const EX_USAGE = 64;
const EX_UNAVAILABLE = 69;
const EX_NOPERM = 77;

/** Commands and the Debian package that brings each. */
const DEBIAN_PACKAGES = {
  ip: 'iproute2',
  nft: 'nftables',
  ping: 'iputils-ping',
  iperf3: 'iperf3',
  tcpdump: 'tcpdump',
  ethtool: 'ethtool',
  sysctl: 'procps',
  openssl: 'openssl',
  curl: 'curl',
  openvpn: 'openvpn',
  ocserv: 'ocserv',
  openconnect: 'openconnect',
  wg: 'wireguard-tools',
  slapd: 'slapd',
  freeradius: 'freeradius',
  dnsmasq: 'dnsmasq-base',
  udhcpc: 'udhcpc',
  tinyproxy: 'tinyproxy-bin',
  microsocks: 'microsocks',
  stunnel4: 'stunnel4',
  pg_ctlcluster: 'postgresql',
  psql: 'postgresql-client',
  zsh: 'zsh',
  fish: 'fish',
  promtool: 'prometheus',
  chromium: 'chromium',
};

const DEMO_COMMANDS = ['ip', 'nft', 'ping', 'iperf3', 'tcpdump', 'ethtool', 'sysctl'];
const TEST_COMMANDS = [
  ...DEMO_COMMANDS,
  'openssl',
  'curl',
  'slapd',
  'freeradius',
  'dnsmasq',
  'udhcpc',
  'tinyproxy',
  'microsocks',
  'stunnel4',
  'pg_ctlcluster',
  'psql',
  'zsh',
  'fish',
  'promtool',
  'chromium',
];

/**
 * What each `--packages` set needs. `required`: without these the script is not started. `wanted`: without these it
 * runs and says what it left out. `tunnel`: it makes network namespaces and TUN devices.
 */
const SETS = {
  demo: { required: DEMO_COMMANDS, wanted: [], tunnelRequired: true },
  test: { required: [], wanted: TEST_COMMANDS, tunnelRequired: false },
  bench: {
    required: DEMO_COMMANDS,
    wanted: ['openssl', 'openvpn', 'ocserv', 'openconnect', 'wg'],
    tunnelRequired: true,
  },
};

/** Services that Debian would start at the next boot, though here only their programs are wanted. */
const SERVICES = {
  openvpn: ['openvpn.service'],
  ocserv: ['ocserv.service', 'ocserv.socket'],
  slapd: ['slapd.service'],
  freeradius: ['freeradius.service'],
  pg_ctlcluster: ['postgresql.service'],
  promtool: ['prometheus.service'],
};

/** An unprivileged user's PATH leaves these out on Debian, where `ip` and `nft` live in them. */
const searchPath = [
  ...new Set([
    ...(process.env.PATH || '').split(path.delimiter).filter(Boolean),
    '/usr/local/sbin',
    '/usr/sbin',
    '/sbin',
  ]),
];

class SetupError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function say(text) {
  try {
    fs.writeSync(2, `customvpn: ${text}\n`);
  } catch {
    // Nobody listens on standard error: the work goes on.
  }
}

function isExecutable(file) {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

function findCommand(name, folders = searchPath) {
  return folders.map((folder) => path.join(folder, name)).find(isExecutable);
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

// ── The project's Node ──────────────────────────────────────────────────────────────────────────────────────────────

function bundledNode() {
  const platform = process.platform === 'win32' ? 'win' : process.platform;
  const file = process.platform === 'win32' ? 'node.exe' : 'node';
  return path.join(modules, `node-${platform}-${process.arch}`, 'bin', file);
}

function isNewEnough(version, wanted) {
  const [major, minor] = version.split('.').map(Number);
  const [wantedMajor, wantedMinor] = wanted.split('.').map(Number);
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}

function findNode() {
  const wanted = /[\d.]+/.exec(JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).engines.node)[0];
  if (isExecutable(bundledNode())) return bundledNode();
  if (isNewEnough(process.versions.node, wanted)) return process.execPath;
  throw new SetupError(
    EX_UNAVAILABLE,
    `there is no Node ${wanted} or newer here. npm brings one for linux-x64, linux-arm64 and win-x64; this is ` +
      `${process.platform}-${process.arch} with Node ${process.versions.node}. Install Node ${wanted} or newer, put it ` +
      'first on PATH and run this again.',
  );
}

// ── npm packages ────────────────────────────────────────────────────────────────────────────────────────────────────

const stampFile = path.join(modules, '.customvpn-stamp');

function lockHash() {
  const lock = readText(path.join(root, 'package-lock.json'));
  if (lock === undefined)
    throw new SetupError(EX_UNAVAILABLE, `${root} has no package-lock.json: is this a whole checkout?`);
  return createHash('sha256').update(lock).digest('hex');
}

/** True when node_modules holds what the lock file says, whoever installed it. */
function matchesLock() {
  const installed = readText(path.join(modules, '.package-lock.json'));
  if (installed === undefined) return false;
  const have = JSON.parse(installed).packages;
  const want = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8')).packages;
  for (const [name, entry] of Object.entries(want)) {
    if (name === '') continue;
    // npm leaves out the optional packages of other platforms, and only those.
    const elsewhere = entry.optional === true || entry.devOptional === true;
    if (have[name] === undefined ? !elsewhere : have[name].version !== entry.version) return false;
  }
  return (
    isExecutable(bundledNode()) || want[path.relative(root, path.dirname(path.dirname(bundledNode())))] === undefined
  );
}

function packagesReady() {
  const hash = lockHash();
  if (readText(stampFile) === hash) return true;
  if (!matchesLock()) return false;
  writeStamp(hash);
  return true;
}

function writeStamp(hash) {
  try {
    fs.writeFileSync(stampFile, hash);
  } catch {
    // A checkout of somebody else's: the comparison is made again next time.
  }
}

/** The npm that started us, run by the Node that runs it; else the one on PATH. */
function npmCommand() {
  const cli = process.env.npm_execpath;
  if (cli !== undefined && path.basename(cli) === 'npm-cli.js' && fs.existsSync(cli)) {
    const runner = process.env.npm_node_execpath;
    // `npm ci` deletes node_modules first: it must not run on the Node in there.
    if (runner !== undefined && isExecutable(runner) && !runner.startsWith(modules)) return [runner, cli];
    if (!process.execPath.startsWith(modules)) return [process.execPath, cli];
  }
  const npm = findCommand(process.platform === 'win32' ? 'npm.cmd' : 'npm', outsideFolders());
  if (npm !== undefined) return [npm];
  throw new SetupError(EX_UNAVAILABLE, 'npm is needed to fetch the packages and was not found: apt-get install npm');
}

function outsideFolders() {
  return searchPath.filter((folder) => !folder.startsWith(modules));
}

function npmEnvironment() {
  const env = { ...process.env, PATH: outsideFolders().join(path.delimiter) };
  delete env.NODE_OPTIONS;
  // A user without a home of their own cannot write npm's usual cache.
  const usual = env.npm_config_cache || path.join(os.homedir(), '.npm');
  if (!canWrite(usual)) env.npm_config_cache = path.join(cache, 'npm');
  return env;
}

function canWrite(folder) {
  for (let at = folder; ; at = path.dirname(at)) {
    try {
      fs.accessSync(at, fs.constants.W_OK);
      return true;
    } catch (error) {
      if (error.code !== 'ENOENT' || at === path.dirname(at)) return false;
    }
  }
}

async function installPackages() {
  if (!canWrite(modules)) {
    throw new SetupError(
      EX_NOPERM,
      `the npm packages are missing or old, and ${root} is not yours to write: run \`npm ci\` there as its owner.`,
    );
  }
  const unlock = await lock();
  try {
    if (packagesReady()) return;
    const [command, ...first] = npmCommand();
    say('fetching the npm packages (once; about 400 MB on disk, with a Node of its own)');
    const { status } = await runStep(
      command,
      [
        ...first,
        'ci',
        '--ignore-scripts',
        // A user's own settings may refuse the Node that only starts us, or leave out what we need.
        '--engine-strict=false',
        '--include=dev',
        '--include=optional',
        '--no-audit',
        '--no-fund',
        '--loglevel=error',
      ],
      npmEnvironment(),
    );
    if (status !== 0) {
      throw new SetupError(
        EX_UNAVAILABLE,
        `\`npm ci\` failed with status ${status}; what it said is above. Is the registry reachable, and 500 MB free in ${root}?`,
      );
    }
    writeStamp(lockHash());
  } finally {
    unlock();
  }
}

/** Two commands started at once must not both run `npm ci` in one folder. */
async function lock() {
  fs.mkdirSync(cache, { recursive: true });
  const file = path.join(cache, 'setup.lock');
  for (let told = false; ; ) {
    try {
      fs.writeFileSync(file, String(process.pid), { flag: 'wx' });
      return () => fs.rmSync(file, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const owner = Number(readText(file));
    if (owner > 0 && !isAlive(owner)) {
      fs.rmSync(file, { force: true });
      continue;
    }
    if (!told) say(`waiting for another set-up of this checkout (process ${owner}; its lock is ${file})`);
    told = true;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

// ── Debian packages ─────────────────────────────────────────────────────────────────────────────────────────────────

function missingCommands(names) {
  return names.filter((name) => findCommand(name) === undefined);
}

function debianPackages(commands) {
  return [...new Set(commands.map((name) => DEBIAN_PACKAGES[name]))];
}

async function installDebianPackages(commands) {
  const packages = debianPackages(commands);
  const apt = findCommand('apt-get');
  if (apt === undefined || process.getuid === undefined || process.getuid() !== 0) return;
  say(`installing ${packages.length === 1 ? 'the Debian package' : 'the Debian packages'} ${packages.join(', ')}`);
  const env = {
    ...process.env,
    DEBIAN_FRONTEND: 'noninteractive',
    // Programs are wanted, not daemons: systemctl then starts nothing.
    SYSTEMD_OFFLINE: '1',
  };
  const options = ['-y', '-q', '--no-install-recommends', '-o', 'DPkg::Lock::Timeout=120'];
  const update = () => {
    say('reading the list of Debian packages');
    return runStep(apt, ['-q', 'update'], env, { quiet: true });
  };
  const install = (names) => runStep(apt, [...options, 'install', ...names], env, { quiet: true });

  const fresh = !hasPackageLists();
  if (fresh) await update();
  let result = await install(packages);
  if (result.status !== 0 && !fresh) {
    await update();
    result = await install(packages);
  }
  // One name that this release does not have must not keep the others out.
  if (result.status !== 0 && packages.length > 1) for (const name of packages) await install([name]);
  const missing = missingCommands(commands);
  if (missing.length > 0)
    say(`apt-get could not install ${debianPackages(missing).join(', ')}; it said:\n${result.output}`);
  await disableServices(commands.filter((name) => !missing.includes(name)));
}

function hasPackageLists() {
  try {
    return fs.readdirSync('/var/lib/apt/lists').some((name) => name.includes('_Packages'));
  } catch {
    return false;
  }
}

async function disableServices(commands) {
  const systemctl = findCommand('systemctl');
  const services = commands.flatMap((name) => SERVICES[name] || []);
  if (systemctl === undefined || services.length === 0) return;
  await runStep(
    systemctl,
    ['disable', '--quiet', ...services],
    { ...process.env, SYSTEMD_OFFLINE: '1' },
    { quiet: true },
  );
}

// ── The machine ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** What keeps this process from making namespaces and TUN devices: `{ what, remedy, status }` each. */
function machineFaults() {
  if (process.platform !== 'linux') {
    return [{ what: `this is ${process.platform}, not Linux`, remedy: 'run it on Linux', status: EX_UNAVAILABLE }];
  }
  const faults = [];
  const privileged = process.getuid() === 0;
  if (!privileged) {
    faults.push({
      what: `root is needed to make network namespaces and TUN devices; this is user ${process.getuid()}`,
      remedy: 'run the same command as root, for instance through sudo',
      status: EX_NOPERM,
    });
  } else {
    const lacking = missingCapabilities();
    if (lacking.length > 0) {
      faults.push({
        what: `this root lacks ${lacking.join(' and ')}`,
        remedy: `start the container with ${lacking.map((name) => `--cap-add ${name.slice(4)}`).join(' ')}`,
        status: EX_NOPERM,
      });
    }
  }
  const tun = tunFault(privileged);
  if (tun !== undefined) faults.push(tun);
  return faults;
}

function missingCapabilities() {
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readText('/proc/self/status') || '');
  if (effective === null) return [];
  const bits = BigInt(`0x${effective[1]}`);
  const wanted = { CAP_NET_ADMIN: 12n, CAP_SYS_ADMIN: 21n };
  return Object.keys(wanted).filter((name) => ((bits >> wanted[name]) & 1n) === 0n);
}

function tunFault(privileged) {
  const device = '/dev/net/tun';
  if (!fs.existsSync(device)) {
    return {
      what: `${device} does not exist`,
      remedy: `modprobe tun; in a container, start it with --device ${device}`,
      status: EX_UNAVAILABLE,
    };
  }
  if (!privileged) return undefined;
  try {
    fs.closeSync(fs.openSync(device, 'r+'));
    return undefined;
  } catch (error) {
    return {
      what: `${device} cannot be opened (${error.code})`,
      remedy: error.code === 'ENODEV' ? 'modprobe tun' : `in a container, start it with --device ${device}`,
      status: EX_UNAVAILABLE,
    };
  }
}

/** Installs what a `--packages` set lacks; throws when the script cannot run at all, else says what is left out. */
async function prepareMachine(setName) {
  const set = SETS[setName];
  const faults = machineFaults();
  if (missingCommands([...set.required, ...set.wanted]).length > 0 && !(set.tunnelRequired && faults.length > 0)) {
    await installDebianPackages(missingCommands([...set.required, ...set.wanted]));
  }
  const fatal = set.tunnelRequired ? [...faults] : [];
  const bearable = set.tunnelRequired ? [] : [...faults];
  for (const [names, list] of [
    [set.required, fatal],
    [set.wanted, bearable],
  ]) {
    const missing = missingCommands(names);
    if (missing.length === 0) continue;
    list.push({
      what: `${missing.length === 1 ? 'the command' : 'the commands'} ${missing.join(', ')} ${missing.length === 1 ? 'is' : 'are'} missing`,
      remedy: `as root: apt-get install -y ${debianPackages(missing).join(' ')}`,
      status: EX_UNAVAILABLE,
    });
  }
  if (fatal.length > 0) {
    const status = fatal.some((fault) => fault.status === EX_NOPERM) ? EX_NOPERM : EX_UNAVAILABLE;
    throw new SetupError(status, `\`npm run ${setName}\` cannot run on this machine:\n${describe(fatal)}`);
  }
  if (bearable.length > 0) say(`what needs the following is left out, and is said to be:\n${describe(bearable)}`);
}

function describe(faults) {
  return faults.map((fault) => `  - ${fault.what}\n      mend it: ${fault.remedy}`).join('\n');
}

// ── Child processes ─────────────────────────────────────────────────────────────────────────────────────────────────

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'];

/** Passes our signals on to a child while it lives. What a terminal sends reaches the child without us. */
function forwardSignals(child) {
  const terminal = [0, 1, 2].some((fd) => isTerminal(fd));
  const handlers = FORWARDED.map((signal) => {
    const typed = signal === 'SIGINT' || signal === 'SIGQUIT';
    const handler = () => {
      if (!(terminal && typed)) child.kill(signal);
    };
    process.on(signal, handler);
    return [signal, handler];
  });
  return () => {
    for (const [signal, handler] of handlers) process.removeListener(signal, handler);
  };
}

function isTerminal(fd) {
  try {
    return fs.fstatSync(fd).isCharacterDevice() && fs.fstatSync(fd).rdev !== fs.statSync('/dev/null').rdev;
  } catch {
    return false;
  }
}

function waitFor(child) {
  const restore = forwardSignals(child);
  return new Promise((resolve, reject) => {
    child.once('error', (error) => {
      restore();
      reject(error);
    });
    child.once('close', (status, signal) => {
      restore();
      resolve({ status, signal });
    });
  });
}

/**
 * One step of the set-up: its output goes to standard error, or with `quiet` is kept instead. Says every ten
 * seconds that it goes on. Resolves to the exit status and what was kept.
 */
async function runStep(command, args, env, { quiet = false } = {}) {
  const started = Date.now();
  const child = spawn(command, args, { cwd: root, env, stdio: ['ignore', quiet ? 'pipe' : 2, quiet ? 'pipe' : 2] });
  let kept = '';
  for (const stream of quiet ? [child.stdout, child.stderr] : []) {
    stream.setEncoding('utf8');
    stream.on('data', (text) => {
      kept = (kept + text).slice(-8000);
    });
  }
  const name = path.basename(command) === 'npm' || args.includes('ci') ? 'npm' : path.basename(command);
  const seconds = () => Math.round((Date.now() - started) / 1000);
  const heart = setInterval(() => say(`… ${name} is at work, ${seconds()} s`), 10_000);
  try {
    const { status, signal } = await waitFor(child);
    if (signal !== null) throw new SetupError(128 + os.constants.signals[signal], `${name} was ended by ${signal}`);
    if (status === 0) say(`… done in ${seconds()} s`);
    return { status, output: kept.trimEnd() };
  } finally {
    clearInterval(heart);
  }
}

async function runScript(node, script, args) {
  const argv = ['--disable-warning=ExperimentalWarning', '--conditions=customvpn-source', script, ...args];
  const env = { ...process.env, PATH: searchPath.join(path.delimiter) };
  // In place where Node can: the same process id, and no second process to pass signals through.
  if (typeof process.execve === 'function') process.execve(node, [node, ...argv], env);
  const { status, signal } = await waitFor(spawn(node, argv, { stdio: 'inherit', env }));
  if (signal !== null) process.kill(process.pid, signal);
  process.exitCode = status === null ? 1 : status;
}

// ── The command line ────────────────────────────────────────────────────────────────────────────────────────────────

const USAGE = `usage: node scripts/with-node.mjs [--setup-only] [--packages ${Object.keys(SETS).join('|')}] [SCRIPT [ARGUMENT…]]`;

function parseArguments(argv) {
  const rest = [...argv];
  let setupOnly = false;
  let packages;
  while (rest.length > 0 && rest[0].startsWith('--')) {
    const option = rest.shift();
    if (option === '--setup-only') setupOnly = true;
    else if (option === '--packages' && SETS[rest[0]] !== undefined) packages = rest.shift();
    else throw new SetupError(EX_USAGE, `${option} is not understood\n${USAGE}`);
  }
  if (rest.length === 0 && !setupOnly) throw new SetupError(EX_USAGE, `a script is needed\n${USAGE}`);
  return { setupOnly, packages, script: rest[0], args: rest.slice(1) };
}

try {
  const { setupOnly, packages, script, args } = parseArguments(process.argv.slice(2));
  // First what may turn out to be impossible, so that nothing is fetched in vain.
  if (packages !== undefined) await prepareMachine(packages);
  if (!packagesReady()) await installPackages();
  const node = findNode();
  if (setupOnly) say(`ready: ${node}`);
  else await runScript(node, path.resolve(root, script), args);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(error.message);
  process.exitCode = error.status;
}
