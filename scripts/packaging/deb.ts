/**
 * The Debian package: gateway and client with their own Node, units, manual and completions.
 *
 * Hides the format (deb(5)). The files of the package are in `/usr/lib/customvpn`; it needs nothing of the machine's Node or
 * npm. What its scripts do when it is installed and removed is in `packaging/deb`.
 */

import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  globSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { COMPLETION_FILES, SHELLS } from '../../src/cli/completions.ts';
import { clientUnit, gatewayUnit } from '../../src/os/systemd-unit.ts';
import { copyRuntimePackages, manifest, ROOT, run, unpackPublished } from './installed-tree.ts';

const PROGRAM = '/usr/bin/customvpn';
const HOME = 'usr/lib/customvpn';
const UNITS = 'usr/lib/systemd/system';
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };
/** What Node itself and the commands of `os` need. */
export const DEPENDS =
  'libc6 (>= 2.28), libstdc++6 (>= 10), libatomic1, adduser, init-system-helpers, iproute2, nftables, util-linux';

export interface DebOptions {
  readonly out: string;
  /** Default: that of the package. */
  readonly version?: string | undefined;
  readonly compression: string;
  /** Seconds since the Unix epoch; what is in the package is as old. */
  readonly epoch: number;
}

/** Makes the package; returns its path. `dist/` must have been compiled. */
export function makeDeb({ out, version = manifest.version, compression, epoch }: DebOptions): string {
  const architecture = ARCHITECTURES[process.arch];
  if (architecture === undefined) throw new Error(`expected an x64 or arm64 machine, this is ${process.arch}`);
  const tree = mkdtempSync(join(tmpdir(), 'customvpn-deb-'));
  try {
    fill(tree, version, new Date(epoch * 1000).toISOString().slice(0, 10));
    for (const file of globSync('**', { cwd: tree })) setMode(join(tree, file));
    // mkdtemp makes a folder that nobody else may enter.
    chmodSync(tree, 0o755);
    writeControl(tree, version, architecture);
    const file = join(out, `${manifest.name}_${version}_${architecture}.deb`);
    mkdirSync(out, { recursive: true });
    const words = ['--root-owner-group', `-Z${compression}`, '--build', tree, file];
    run('dpkg-deb', words, ROOT, { SOURCE_DATE_EPOCH: String(epoch) });
    return file;
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

function fill(tree: string, version: string, date: string): void {
  const home = join(tree, HOME);
  unpackPublished(home);
  copyRuntimePackages(home);
  const own = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8')) as object;
  writeFileSync(join(home, 'package.json'), `${JSON.stringify({ ...own, version }, undefined, 2)}\n`);

  mkdirSync(join(tree, 'usr/bin'), { recursive: true });
  symlinkSync('../lib/customvpn/bin/customvpn', join(tree, PROGRAM));

  const state = '/var/lib/customvpn';
  write(join(tree, UNITS, 'customvpn.service'), gatewayUnit({ program: PROGRAM, state, isPackaged: true }));
  write(join(tree, UNITS, 'customvpn-client@.service'), clientUnit({ program: PROGRAM, state: `${state}-client` }));

  const program = join(home, 'bin/customvpn');
  const pages = join(tree, 'usr/share/man/man1');
  run(program, ['manual', pages, '--date', date], ROOT);
  for (const page of globSync('*.1', { cwd: pages })) compress(join(pages, page));
  for (const shell of SHELLS) {
    const file = join(tree, 'usr/share', COMPLETION_FILES[shell](manifest.name));
    write(file, run(program, ['completions', shell], ROOT));
  }
  rmSync(join(home, 'dist/node_modules'), { recursive: true, force: true });

  const documents = join(tree, 'usr/share/doc/customvpn');
  write(join(documents, 'copyright'), copyright());
  write(join(documents, 'changelog'), readFileSync(join(ROOT, 'CHANGELOG.md'), 'utf8'));
  compress(join(documents, 'changelog'));
}

function writeControl(tree: string, version: string, architecture: string): void {
  const files = globSync('**', { cwd: tree })
    .filter((file) => lstatSync(join(tree, file)).isFile())
    .sort();
  const sums = files.map((file) => `${digest(join(tree, file))}  ${file}`);
  const bytes = files.reduce((sum, file) => sum + lstatSync(join(tree, file)).size, 0);
  const { DEBFULLNAME: name = 'CustomVPN', DEBEMAIL: address = 'root@localhost' } = process.env;
  const folder = join(tree, 'DEBIAN');
  write(
    join(folder, 'control'),
    [
      `Package: ${manifest.name}`,
      `Version: ${version}`,
      `Architecture: ${architecture}`,
      `Maintainer: ${name} <${address}>`,
      `Installed-Size: ${Math.ceil(bytes / 1024)}`,
      `Depends: ${DEPENDS}`,
      'Recommends: ca-certificates',
      'Section: net',
      'Priority: optional',
      `Description: ${manifest.description.replace(/\.$/, '')}`,
      ' A gateway that carries IP packets through TLS on one TCP port, and a client for',
      ' it. It brings its own Node.js. The service starts when a gateway has been made:',
      ' customvpn server init --name HOST --route NETWORK',
      '',
    ].join('\n'),
  );
  write(join(folder, 'md5sums'), `${sums.join('\n')}\n`);
  for (const script of ['postinst', 'prerm', 'postrm']) {
    copyFileSync(join(ROOT, 'packaging/deb', script), join(folder, script));
    chmodSync(join(folder, script), 0o755);
  }
}

/** For everybody to read, and nobody but root to write. */
function setMode(path: string): void {
  const stats = lstatSync(path);
  if (stats.isSymbolicLink()) return;
  const isRun = stats.isDirectory() || (stats.mode & 0o100) !== 0;
  chmodSync(path, isRun ? 0o755 : 0o644);
}

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

function compress(path: string): void {
  writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
  rmSync(path);
}

function digest(path: string): string {
  return createHash('md5').update(readFileSync(path)).digest('hex');
}

function copyright(): string {
  return [
    'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/',
    `Upstream-Name: ${manifest.name}`,
    '',
    'Files: *',
    'Copyright: the CustomVPN authors',
    `License: ${manifest.license}`,
    ' On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.',
    '',
    'Files: usr/lib/customvpn/node_modules/*',
    'Copyright: their authors',
    'License: other',
    ' Each package has its licence in its own folder.',
    '',
  ].join('\n');
}
