/**
 * The files of the admin page, ready to be served from memory.
 *
 * Hides where they come from: a published package brings them made, a checkout makes them from `src/web` when it starts. Names
 * of scripts and styles hold a hash of what is in them, so that a browser may keep them for good.
 */

import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { toVpnError, VpnError } from '../../base/errors.ts';
import { embeddedFile } from '../../os/own-program.ts';

/** One file, by the path that asks for it. */
export interface PageFile {
  readonly type: string;
  readonly body: Uint8Array;
  readonly gzipped: Uint8Array;
  /** Its name changes with what is in it. */
  readonly isFixed: boolean;
}

export type PageFiles = ReadonlyMap<string, PageFile>;

const WEB = join(import.meta.dirname, '../../web');
/** What `npm run build` makes: script and style as JSON. */
export const PAGE_FILE = 'page.json';
const BUILT = join(WEB, PAGE_FILE);

/** Script and style of the page. */
export interface PageSource {
  readonly script: string;
  readonly style: string;
}

/** The icon: a shield, in the colour of the page's accents. */
const ICON =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path fill="#2f6f5e" d="M16 2 4 7v9c0 7 5 12 12 14 7-2 12-7 12-14V7z"/>' +
  '<path fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round" stroke-linejoin="round" d="m10.5 16 4 4 7-8"/></svg>';

/**
 * Loads script and style, which needs the file system and, in a checkout, another program: whoever serves them need have neither.
 *
 * @throws {VpnError} ERR_UNSUPPORTED when they are neither there nor can be made
 */
export async function loadPage(): Promise<PageSource> {
  const made = embeddedFile(PAGE_FILE) ?? (existsSync(BUILT) ? await readFile(BUILT, 'utf8') : undefined);
  return made === undefined ? await makePage() : (JSON.parse(made) as PageSource);
}

/** All files of the page. */
export function pageFiles({ script, style }: PageSource): PageFiles {
  const scriptPath = `/assets/page-${shortHash(script)}.js`;
  const stylePath = `/assets/page-${shortHash(style)}.css`;
  const html = [
    '<!doctype html>',
    '<html lang="en">',
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">',
    '<meta name="robots" content="noindex">',
    '<title>CustomVPN</title>',
    '<link rel="icon" href="/icon.svg" type="image/svg+xml">',
    `<link rel="stylesheet" href="${stylePath}">`,
    `<script type="module" src="${scriptPath}"></script>`,
    '<body><div id="page"></div><noscript>This page needs JavaScript. The command line can do all that it can.</noscript>',
    '',
  ].join('\n');
  return new Map([
    ['/', fileOf('text/html; charset=utf-8', html, false)],
    ['/icon.svg', fileOf('image/svg+xml', ICON, false)],
    [scriptPath, fileOf('text/javascript; charset=utf-8', script, true)],
    [stylePath, fileOf('text/css; charset=utf-8', style, true)],
  ]);
}

/**
 * Makes the page from its source.
 *
 * @throws {VpnError} ERR_UNSUPPORTED where the tool that makes it is not installed
 */
export async function makePage(): Promise<PageSource> {
  try {
    const { build } = await import('esbuild');
    const { outputFiles } = await build({
      entryPoints: [join(WEB, 'main.tsx')],
      bundle: true,
      minify: true,
      write: false,
      outdir: 'page',
      format: 'esm',
      target: 'es2023',
      jsx: 'automatic',
      jsxImportSource: 'preact',
      legalComments: 'none',
      logLevel: 'silent',
    });
    const text = (ending: string) => outputFiles.find(({ path }) => path.endsWith(ending))?.text ?? '';
    return { script: text('.js'), style: text('.css') };
  } catch (cause) {
    const { message } = toVpnError(cause);
    throw new VpnError('ERR_UNSUPPORTED', `the admin page cannot be made: ${message}; run: npm ci --include=dev`, {
      cause,
    });
  }
}

function fileOf(type: string, text: string, isFixed: boolean): PageFile {
  const body = Buffer.from(text);
  return { type, body, gzipped: gzipSync(body, { level: 9 }), isFixed };
}

function shortHash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}
