/**
 * The single executable: Node, gateway, client and admin page in one file (`node --build-sea`).
 *
 * Hides the format, and what is in it besides the scripts. Which of its processes the executable is to be is decided in
 * `bin/single.ts`.
 */

import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { build } from 'esbuild';
import { makePage, PAGE_FILE } from '../../src/gateway/admin/files.ts';
import { manifest, ROOT, run, runtimePackages } from './installed-tree.ts';
import { bundled } from './programs.ts';

const LICENCES_FILE = 'LICENCES';

/** Makes the executable for this platform; returns its path. */
export async function makeSingle(out: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-single-'));
  try {
    mkdirSync(out, { recursive: true });
    const output = join(out, `${manifest.name}-${manifest.version}-${process.platform}-${process.arch}`);
    const script = join(folder, `${manifest.name}.mjs`);
    await bundle(script);
    const page = join(folder, PAGE_FILE);
    writeFileSync(page, JSON.stringify(await makePage()));
    const licences = join(folder, LICENCES_FILE);
    writeFileSync(licences, licenceTexts());
    const config = join(folder, 'sea.json');
    const settings = {
      main: script,
      mainFormat: 'module',
      executable: process.execPath,
      output,
      disableExperimentalSEAWarning: true,
      execArgv: ['--disable-warning=ExperimentalWarning'],
      // As with an installed package: NODE_OPTIONS counts, and no word of the command line is for Node.
      execArgvExtension: 'env',
      assets: { [PAGE_FILE]: page, 'package.json': join(ROOT, 'package.json'), [LICENCES_FILE]: licences },
    };
    writeFileSync(config, JSON.stringify(settings));
    run(process.execPath, ['--build-sea', config], folder);
    return output;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function bundle(outfile: string): Promise<void> {
  await build({
    entryPoints: [join(ROOT, 'bin/single.ts')],
    outfile,
    ...bundled(),
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: 'none',
  });
}

/** What the licences of the packages inside want to be handed on. */
function licenceTexts(): string {
  return ['.', ...runtimePackages()]
    .flatMap((path) => {
      const files = globSync('{LICENSE,LICENCE,License,license,COPYING,NOTICE}*', { cwd: join(ROOT, path) });
      const texts = files.map((file) => readFileSync(join(ROOT, path, file), 'utf8').trim());
      return texts.length === 0 ? [] : [`${path === '.' ? manifest.name : basename(path)}\n\n${texts.join('\n\n')}\n`];
    })
    .join(`\n${'='.repeat(72)}\n\n`);
}
