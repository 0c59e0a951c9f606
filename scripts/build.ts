/**
 * `npm run build`: makes dist/ for the published package, and proves that the package works.
 *
 * Node does not strip types inside node_modules, so what is published is JavaScript with declarations. The proof packs
 * the package as npm would publish it, unpacks it elsewhere, and then uses it as somebody who installed it does: plain
 * Node imports each export, and the launcher runs.
 */

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { compile, manifest, ROOT, run as runProgram, unpackPublished } from './packaging/installed-tree.ts';

const MODULES = join(ROOT, 'node_modules');

/** What the library's face must offer. */
const EXPECTED_EXPORTS = ['VpnServer', 'VpnClient'];

const consumer = mkdtempSync(join(tmpdir(), 'customvpn-build-'));
try {
  await compile();
  const installed = install(consumer);
  importExports(consumer);
  checkTypes(consumer);
  runLauncher(installed);
  console.log(`${manifest.name} ${manifest.version} is in dist/, and works when it is installed`);
} catch (error) {
  console.error(`build: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  rmSync(consumer, { recursive: true, force: true });
}

/** Installs what would be published into `folder`; returns where. */
function install(folder: string): string {
  const target = join(folder, 'node_modules', manifest.name);
  unpackPublished(target);
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

/** Runs a step; its output is returned, and is in the error if it fails. */
function run(step: string, command: string, args: readonly string[], cwd: string): string {
  try {
    return runProgram(command, args, cwd);
  } catch (error) {
    fail(`${step}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function fail(message: string): never {
  throw new Error(message);
}
