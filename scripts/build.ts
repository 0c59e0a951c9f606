/**
 * `npm run build`: makes dist/ for the published package, and proves that the package works.
 *
 * Node does not strip types inside node_modules, so what is published is JavaScript with declarations. The proof packs
 * the package as npm would publish it, unpacks it elsewhere, and then uses it as somebody who installed it does: plain
 * Node imports each export, and the launcher runs.
 */

import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const ROOT = dirname(import.meta.dirname);
const MODULES = join(ROOT, 'node_modules');

const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
  readonly name: string;
  readonly version: string;
  readonly exports: Readonly<Record<string, { readonly types: string; readonly default: string }>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
};

/** What the library's face must offer. */
const EXPECTED_EXPORTS = ['VpnServer', 'VpnClient'];

rmSync(join(ROOT, 'dist'), { recursive: true, force: true });
run('compile', process.execPath, [join(MODULES, 'typescript/bin/tsc'), '-p', 'scripts/tsconfig.build.json'], ROOT);
const consumer = mkdtempSync(join(tmpdir(), 'customvpn-build-'));
try {
  const installed = install(consumer);
  importExports(consumer);
  checkTypes(consumer);
  runLauncher(installed);
} finally {
  rmSync(consumer, { recursive: true, force: true });
}
console.log(`${manifest.name} ${manifest.version} is in dist/, and works when it is installed`);

/** Installs what would be published into `folder`; returns where. */
function install(folder: string): string {
  const packed = run(
    'pack',
    'npm',
    ['pack', '--silent', '--ignore-scripts', `--pack-destination=${folder}`],
    ROOT,
  ).trim();
  const target = join(folder, 'node_modules', manifest.name);
  mkdirSync(target, { recursive: true });
  run(
    'unpack',
    'tar',
    ['-xzf', join(folder, packed.split('\n').at(-1) ?? ''), '--strip-components=1', '-C', target],
    folder,
  );
  // npm sets the mode of what `bin` names when it installs.
  chmodSync(join(target, 'bin', manifest.name), 0o755);
  // Only what a consumer gets: no development packages, which would hide a missing dependency.
  const visible = [...Object.keys(manifest.dependencies), ...Object.keys(manifest.optionalDependencies), '@types/node'];
  for (const name of visible) {
    const link = join(folder, 'node_modules', name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(join(MODULES, name), link);
  }
  return target;
}

function importExports(folder: string): void {
  for (const [path, { default: file }] of Object.entries(manifest.exports)) {
    const name = join(manifest.name, path);
    const code =
      `const m = await import(${JSON.stringify(name)}); console.log(import.meta.resolve(${JSON.stringify(name)})); ` +
      "console.log(Object.keys(m).join(' '));";
    const script = join(folder, 'import.mjs');
    writeFileSync(script, code);
    const [resolved = '', names = ''] = run(`import ${name}`, process.execPath, [script], folder).split('\n');
    if (!resolved.endsWith(file.replace(/^\./, ''))) fail(`${name} resolves to ${resolved}, not to ${file}`);
    for (const expected of path === '.' ? EXPECTED_EXPORTS : []) {
      if (!names.split(' ').includes(expected)) fail(`${name} does not export ${expected}; it exports: ${names}`);
    }
  }
}

/** A consumer's strict compiler must accept the declarations. */
function checkTypes(folder: string): void {
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  writeFileSync(
    join(folder, 'use.ts'),
    `import { ${EXPECTED_EXPORTS.join(', ')} } from '${manifest.name}';\nexport const used = [${EXPECTED_EXPORTS.join(', ')}];\n`,
  );
  const options = [
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'esnext',
    '--skipLibCheck',
    '--types',
    'node',
  ];
  run('types', process.execPath, [join(MODULES, 'typescript/bin/tsc'), ...options, 'use.ts'], folder);
}

function runLauncher(installed: string): void {
  const version = run('launcher', join(installed, 'bin', manifest.name), ['--version'], dirname(installed)).trim();
  if (version !== manifest.version) fail(`the installed launcher says version "${version}", not ${manifest.version}`);
}

/** Runs a step; its output is returned, and shown only if it fails. */
function run(step: string, command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (status !== 0) fail(`${step} failed (${error?.message ?? `status ${status}`})\n${stdout}${stderr}`);
  return stdout;
}

function fail(message: string): never {
  console.error(`build: ${message.trimEnd()}`);
  process.exit(1);
}
