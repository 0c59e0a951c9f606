/**
 * The package as it lies where it is installed: what npm would publish, and the packages that it needs to run.
 *
 * Hides compiling, packing, and which packages of the lock file are needed at run time on this platform.
 */

import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { buildPrograms } from './programs.ts';

/** The checkout. */
export const ROOT = dirname(dirname(import.meta.dirname));

export interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly description: string;
  readonly license: string;
  readonly exports: Readonly<Record<string, { readonly types: string; readonly default: string }>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
}

export const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Manifest;

interface LockedPackage {
  readonly version: string;
  readonly dev?: boolean;
  readonly devOptional?: boolean;
}

/** The lock file's entries of what is needed at run time, those of other platforms included. */
function neededEntries(): [path: string, entry: LockedPackage][] {
  const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
    readonly packages: Readonly<Record<string, LockedPackage>>;
  };
  return Object.entries(lock.packages).filter(
    ([path, { dev, devOptional }]) => path !== '' && dev !== true && devOptional !== true,
  );
}

/** Names and versions of these. */
export function neededPackages(): ReadonlyMap<string, readonly string[]> {
  const versions = new Map<string, string[]>();
  for (const [path, { version }] of neededEntries()) {
    const name = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    versions.set(name, [...(versions.get(name) ?? []), version]);
  }
  return versions;
}

/** Paths below the checkout of those that are installed. */
export function runtimePackages(): string[] {
  return neededEntries()
    .map(([path]) => path)
    .filter((path) => existsSync(join(ROOT, path, 'package.json')));
}

/** Makes `dist/`: programs, and declarations for a consumer's compiler. @throws {Error} with what compiler or bundler said */
export async function compile(): Promise<void> {
  const dist = join(ROOT, 'dist');
  rmSync(dist, { recursive: true, force: true });
  run(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', 'scripts/tsconfig.build.json'], ROOT);
  await buildPrograms(dist);
}

/** Packs what npm would publish, without compiling again; returns the path of the tarball. */
export function packTarball(folder: string): string {
  const said = run('npm', ['pack', '--silent', '--ignore-scripts', `--pack-destination=${folder}`], ROOT);
  return join(folder, said.trim().split('\n').at(-1) ?? '');
}

/** Unpacks what would be published into `target`. */
export function unpackPublished(target: string): void {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-pack-'));
  try {
    mkdirSync(target, { recursive: true });
    run('tar', ['-xzf', packTarball(folder), '--strip-components=1', '--no-same-owner', '-C', target], folder);
    // npm sets the mode of what `bin` names when it installs.
    chmodSync(join(target, 'bin', manifest.name), 0o755);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Copies the packages that are needed at run time, this platform's Node among them, into `target/node_modules`. */
export function copyRuntimePackages(target: string): void {
  for (const path of runtimePackages()) {
    const from = join(ROOT, path);
    // Packages inside of packages are listed by themselves.
    const isOwn = (file: string): boolean =>
      !relative(from, file).split('/').includes('node_modules') && !file.endsWith('.map') && !isOfNodesHeaders(file);
    cpSync(from, join(target, path), { recursive: true, dereference: true, filter: isOwn });
  }
}

/** For compilers of other people's code; a quarter of Node's size. */
function isOfNodesHeaders(file: string): boolean {
  return /\/node_modules\/node-[a-z0-9-]+\/(?:include|share)\//.test(file);
}

/** Runs a program to its end and returns what it printed. @throws {Error} on a status other than 0, with what it said */
export function run(
  command: string,
  args: readonly string[],
  cwd: string,
  env: Readonly<Record<string, string>> = {},
): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 256 * 1024 * 1024,
  });
  if (status !== 0) {
    throw new Error(`${command} failed (${error?.message ?? `status ${status}`})\n${stdout}${stderr}`.trimEnd());
  }
  return stdout;
}
