/**
 * The programs of a built package: `dist/`, of JavaScript that loads in a few files.
 *
 * Hides how they are put together. Node takes about a millisecond for each module, and there are several hundred of them; so
 * each program is bundled with the packages that it needs, in parts that programs share. All parts lie in one folder, and a
 * stub takes a program's place where the source has it: whoever starts one finds it by the same path as in a checkout.
 */

import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import { type BuildOptions, build, type Plugin } from 'esbuild';
import { makePage } from '../../src/gateway/admin/files.ts';

const ROOT = dirname(dirname(import.meta.dirname));
/** What is started or imported by its path, without the ending. */
const PROGRAMS = [
  'bin/customvpn',
  'src/index',
  'src/gateway/auth/hasher-child',
  'src/gateway/auth/hooks-child',
  'src/gateway/auth/main',
  'src/gateway/worker/main',
  'src/gateway/worker/spare',
  'src/os/confine',
] as const;
const PARTS = 'parts';
/** Packages of CommonJS ask for modules of Node's in their own way. */
const REQUIRE =
  "import { createRequire as customvpnRequire } from 'node:module'; const require = customvpnRequire(import.meta.url);";
/** Tools that make what a built package has already, and what a package can do without. */
const ABSENT = ['esbuild', 'pg-native'];

/** Writes the programs and the admin page into `dist`. @throws {Error} with what the bundler said */
export async function buildPrograms(dist: string): Promise<void> {
  await build({
    absWorkingDir: ROOT,
    entryPoints: Object.fromEntries(PROGRAMS.map((path) => [partOf(path), `${path}.ts`])),
    outdir: join(dist, PARTS),
    splitting: true,
    ...bundled(placesOfSource),
  });
  for (const path of PROGRAMS) {
    const stub = join(dist, `${path}.js`);
    mkdirSync(dirname(stub), { recursive: true });
    const part = posix.join(posix.relative(posix.dirname(path), PARTS), `${partOf(path)}.js`);
    writeFileSync(stub, `export * from '${part}';\n`);
  }
  // Whoever is confined to this folder looks for it no further up.
  writeFileSync(join(dist, 'package.json'), '{ "type": "module" }\n');
  mkdirSync(join(dist, 'src/web'), { recursive: true });
  writeFileSync(join(dist, 'src/web/page.json'), JSON.stringify(await makePage()));
}

/**
 * Lays out the checkout as it is where it is installed: its programs built, its packages linked. Replaces what is there.
 *
 * @returns the command
 */
export async function layOutBuilt(folder: string): Promise<string> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, 'bin'), { recursive: true });
  await buildPrograms(join(folder, 'dist'));
  for (const file of ['bin/customvpn', 'package.json']) copyFileSync(join(ROOT, file), join(folder, file));
  for (const name of ['node_modules', 'config', 'packaging']) symlinkSync(join(ROOT, name), join(folder, name));
  return join(folder, 'bin/customvpn');
}

/** How programs and packages are put together. */
export function bundled(...plugins: readonly Plugin[]): BuildOptions {
  return {
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: `node${process.versions.node}`,
    conditions: ['customvpn-source'],
    external: ABSENT,
    banner: { js: REQUIRE },
    plugins: [...plugins, dictionariesInside],
    logLevel: 'silent',
  };
}

function partOf(path: string): string {
  return path.replaceAll('/', '-');
}

/** Our own files go on seeing the place where the source has them, wherever their code has come to lie. */
const placesOfSource: Plugin = {
  name: 'places of source',
  setup: ({ onLoad }) => {
    onLoad({ filter: /\.ts$/ }, ({ path }) => {
      const text = readFileSync(path, 'utf8');
      const file = relative(ROOT, path);
      if (!/^(?:src|bin)\//.test(file) || !text.includes('import.meta.')) return undefined;
      const place = `../${file.replace(/\.ts$/, '.js')}`;
      const url = `new URL(${JSON.stringify(place)}, import.meta.url).href`;
      const folder = `process.getBuiltinModule('node:path').join(import.meta.dirname, ${JSON.stringify(posix.dirname(place))})`;
      const contents = text.replaceAll(/import\.meta\.(?:url|dirname)\b/g, (word) =>
        word.endsWith('url') ? url : folder,
      );
      return { contents, loader: 'ts' };
    });
  },
};

/** `radius` reads its dictionaries from a folder beside its script. */
const dictionariesInside: Plugin = {
  name: 'radius-dictionaries',
  setup(build) {
    build.onLoad({ filter: /\/radius\/lib\/radius\.js$/ }, ({ path }) => {
      const folder = join(path, '../../dictionaries');
      const texts = Object.fromEntries(
        readdirSync(folder).map((name) => [`/${name}`, readFileSync(join(folder, name), 'latin1')]),
      );
      const source = readFileSync(path, 'utf8');
      const contents = source
        .replace('require("fs")', 'dictionaryFiles')
        .replace('path.normalize(__dirname + "/../dictionaries")', '"/"');
      if (contents.includes('require("fs")') || contents.includes('__dirname')) {
        throw new Error(`${path} reads files otherwise than expected; look at scripts/packaging/programs.ts`);
      }
      const files = `const dictionaryTexts = ${JSON.stringify(texts)};
const dictionaryFiles = {
  existsSync: (path) => path === '/' || Object.hasOwn(dictionaryTexts, path),
  statSync: (path) => ({ isDirectory: () => path === '/' }),
  readdirSync: () => Object.keys(dictionaryTexts).map((path) => path.slice(1)),
  readFileSync: (path) => dictionaryTexts[path],
};
`;
      return { contents: files + contents, loader: 'js' };
    });
  },
};
