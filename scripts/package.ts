/**
 * `npm run package -- KIND… [--out FOLDER]`: makes what is handed to those who install CustomVPN.
 *
 * `deb`: a Debian package with its own Node. `sea`: a single executable. `npm`: the package for a registry. `sbom`: what it is
 * made of (CycloneDX).
 * Prints the path of each file that it made.
 */

import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { makeDeb } from './packaging/deb.ts';
import { compile, packTarball, ROOT } from './packaging/installed-tree.ts';
import { makeSbom } from './packaging/sbom.ts';
import { makeSingle } from './packaging/single.ts';

const USAGE = `usage: npm run package -- KIND… [--out FOLDER] [--version VERSION] [--compression xz|zstd|gzip|none]
  deb   Debian package: gateway and client with their own Node, units, manual, completions
  sea   single executable: gateway, client and Node in one file
  npm   package for a registry
  sbom  CycloneDX list of what it is made of
  all   each of them`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string', default: join(ROOT, '.cache/packages') },
    version: { type: 'string' },
    compression: { type: 'string', default: 'xz' },
    help: { type: 'boolean', default: false },
  },
});

/** Those that are made of `dist/`. */
const COMPILED = ['deb', 'npm'];

const out = resolve(values.out);
const makers: Readonly<Record<string, () => string | Promise<string>>> = {
  deb: () => makeDeb({ out, version: values.version, compression: values.compression, epoch: sourceEpoch() }),
  sea: () => makeSingle(out),
  npm: () => packTarball(out),
  sbom: () => makeSbom(out),
};

const kinds = positionals.includes('all') ? Object.keys(makers) : positionals;
const unknown = kinds.filter((kind) => !Object.hasOwn(makers, kind));
if (values.help || kinds.length === 0 || unknown.length > 0) {
  const text = unknown.length > 0 ? `there is no ${unknown.join(', ')}\n${USAGE}` : USAGE;
  if (values.help) console.log(text);
  else {
    console.error(text);
    process.exit(64);
  }
} else {
  try {
    mkdirSync(out, { recursive: true });
    if (kinds.some((kind) => COMPILED.includes(kind))) await compile();
    for (const kind of kinds) console.log(await makers[kind]?.());
  } catch (error) {
    console.error(`package: ${error instanceof Error ? error.message : String(error)}`);
    process.exit(1);
  }
}

/** The same sources make the same package, whenever that is. */
function sourceEpoch(): number {
  const given = Number(process.env.SOURCE_DATE_EPOCH);
  if (Number.isInteger(given) && given > 0) return given;
  const { status, stdout } = spawnSync('git', ['log', '-1', '--format=%ct'], { cwd: ROOT, encoding: 'utf8' });
  return status === 0 ? Number(stdout) : Math.trunc(Date.now() / 1000);
}
