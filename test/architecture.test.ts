/**
 * Holds the table of docs/architecture.md: which folder may import which, and what the pure folders must not know.
 *
 * Each rule is also tried on planted files that break it, so that a rule which no longer sees anything fails too.
 */

import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { test } from 'node:test';
import { blankWords, type ImportSite, importsOf, opensWithDocComment } from './support/source.ts';

const ROOT = dirname(import.meta.dirname);

const PURE_ROOMS = ['ip', 'protocol'];

/** Folder of src → the folders it may import. `index` is src/index.ts, the library's face. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  base: [],
  ip: ['base'],
  protocol: ['ip', 'base'],
  os: ['ip', 'base'],
  transport: ['protocol', 'os', 'ip', 'base'],
  store: ['base'],
  identity: ['store', 'protocol', 'base'],
  policy: ['ip', 'base'],
  gateway: ['telemetry', 'control', 'policy', 'identity', 'store', 'transport', 'os', 'protocol', 'ip', 'base'],
  client: ['telemetry', 'control', 'policy', 'transport', 'os', 'protocol', 'ip', 'base'],
  control: ['base'],
  telemetry: ['base'],
  cli: ['control', 'base'],
  web: ['control'],
  index: ['client', 'gateway', 'control', 'identity', 'transport', 'protocol', 'ip', 'base'],
};

/** npm packages that a pure folder may use, and by which files. */
const PURE_PACKAGES: readonly { package: string; files: RegExp }[] = [
  { package: 'zod', files: /^src\/protocol\// },
  { package: 'ipaddr.js', files: /^src\/ip\/address\.ts$/ },
];

const FFI_FILE = 'src/os/ffi.ts';
/** Loads a file of the operator's, in a process of its own. */
const FOREIGN_CODE_FILE = 'src/gateway/auth/hooks-child.ts';

/** Words that mean time, chance, input and output, or waiting: none of a pure folder's business. */
const IMPURE_WORDS = [
  'Date',
  'performance',
  'Buffer',
  'process',
  'console',
  'crypto',
  'fetch',
  'setTimeout',
  'setInterval',
  'setImmediate',
  'clearTimeout',
  'queueMicrotask',
  'Promise',
  'async',
  'await',
  'globalThis',
];

type Files = ReadonlyMap<string, string>;

interface Edge extends ImportSite {
  readonly file: string;
  /** The path of a file of ours, or the specifier of a package. */
  readonly target: string;
}

function readSource(): Files {
  const files = new Map<string, string>();
  for (const file of globSync('src/**/*.{ts,tsx}', { cwd: ROOT }).sort()) {
    const path = file.replaceAll('\\', '/');
    if (!path.endsWith('.test.ts')) files.set(path, readFileSync(join(ROOT, file), 'utf8'));
  }
  return files;
}

function edgesOf(files: Files): Edge[] {
  const edges: Edge[] = [];
  for (const [file, text] of files) {
    for (const site of importsOf(text)) {
      const specifier = site.specifier ?? '';
      const target = specifier.startsWith('.') ? posix.join(posix.dirname(file), specifier) : specifier;
      edges.push({ ...site, file, target });
    }
  }
  return edges;
}

function roomOf(path: string): string | undefined {
  if (path === 'src/index.ts') return 'index';
  return /^src\/([^/]+)\//.exec(path)?.[1];
}

function brokenImports(files: Files): string[] {
  const broken: string[] = [];
  for (const { file, target, line, specifier } of edgesOf(files)) {
    const room = roomOf(file) ?? '';
    const at = `${file}:${line}`;
    const allowed = MAY_IMPORT[room];
    if (allowed === undefined) broken.push(`${at}: the folder ${room} is not in the table`);
    if (specifier === undefined) {
      if (file === FOREIGN_CODE_FILE) continue;
      broken.push(`${at}: an import whose name is computed cannot be checked`);
    } else if (target === 'node:ffi' || target === 'ffi') {
      if (file !== FFI_FILE) broken.push(`${at}: only ${FFI_FILE} imports node:ffi`);
    } else if (specifier.startsWith('.')) {
      const other = roomOf(target);
      if (other === undefined) broken.push(`${at}: ${target} is outside src`);
      else if (other !== room && allowed?.includes(other) === false)
        broken.push(`${at}: ${room} must not import ${other}`);
    } else if (PURE_ROOMS.includes(room)) {
      const known = PURE_PACKAGES.some((entry) => entry.package === specifier && entry.files.test(file));
      if (!known) broken.push(`${at}: ${room} is pure and must not import ${specifier}`);
    }
  }
  return broken;
}

function impureWords(files: Files): string[] {
  const found: string[] = [];
  const pattern = new RegExp(`(?<![\\w$.#])(?:(?:${IMPURE_WORDS.join('|')})(?![\\w$])(?!\\??:)|Math\\.random\\b)`, 'g');
  for (const [file, text] of files) {
    if (!PURE_ROOMS.includes(roomOf(file) ?? '')) continue;
    const code = blankWords(text);
    for (const match of code.matchAll(pattern)) {
      found.push(`${file}:${code.slice(0, match.index).split('\n').length}: a pure folder must not use ${match[0]}`);
    }
  }
  return found;
}

/** Cycles of what is loaded at run time; two files of one folder may name each other's types. */
function importCycles(files: Files): string[] {
  const next = new Map<string, string[]>();
  for (const { file, target, typeOnly } of edgesOf(files)) {
    if (files.has(target) && !typeOnly) next.set(file, [...(next.get(file) ?? []), target]);
  }
  const cycles: string[] = [];
  const done = new Set<string>();
  const walk = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) {
      cycles.push([...path.slice(path.indexOf(file)), file].join(' → '));
      return;
    }
    if (done.has(file)) return;
    for (const target of next.get(file) ?? []) walk(target, [...path, file]);
    done.add(file);
  };
  for (const file of files.keys()) walk(file, []);
  return cycles;
}

function undocumented(files: Files): string[] {
  return [...files].filter(([, text]) => !opensWithDocComment(text)).map(([file]) => file);
}

const source = readSource();
const planted = (file: string, text: string): Files => new Map([[file, text]]);

test('the source is seen: files, imports and every folder', () => {
  assert.ok(source.size > 20, `only ${source.size} files were found`);
  const edges = edgesOf(source);
  assert.ok(edges.length > source.size, `only ${edges.length} imports were found in ${source.size} files`);
  for (const { target, file } of edges) {
    if (target.startsWith('src/') && !target.endsWith('.css'))
      assert.ok(source.has(target), `${file} imports ${target}, which was not read`);
  }
});

test('a folder imports only what the table allows', () => {
  assert.deepEqual(brokenImports(source), []);
});

test('the import rules see what breaks them', () => {
  const cases: readonly [file: string, text: string][] = [
    ['src/base/a.ts', "import { x } from '../ip/address.ts';"],
    ['src/ip/a.ts', "import type { Frame } from '../protocol/frame.ts';"],
    ['src/protocol/a.ts', "import { open } from '../os/tun.ts';"],
    ['src/client/a.ts', "export { Store } from '../store/store.ts';"],
    ['src/client/a.ts', "import {\n  a,\n  b,\n} from '../identity/accounts.ts';"],
    ['src/cli/a.ts', "const m = await import('../gateway/main.ts');"],
    ['src/control/a.ts', "export * from '../gateway/main.ts';"],
    ['src/store/a.ts', "import '../identity/pki.ts';"],
    ['src/os/tun-linux.ts', "import ffi from 'node:ffi';"],
    ['src/gateway/a.ts', "const ffi = process.getBuiltinModule('node:ffi');"],
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is source text
    ['src/gateway/a.ts', "const name = 'ffi'; const ffi = await import(`node:${name}`);"],
    ['src/gateway/a.ts', 'await import(name);'],
    ['src/protocol/a.ts', "import { createHash } from 'node:crypto';"],
    ['src/ip/route-table.ts', "import ipaddr from 'ipaddr.js';"],
    ['src/ip/address.ts', "import { z } from 'zod';"],
    ['src/base/a.ts', "import { helper } from '../../test/support/process.ts';"],
    ['src/helpers/a.ts', "import { VpnError } from '../base/errors.ts';"],
  ];
  for (const [file, text] of cases) {
    assert.ok(brokenImports(planted(file, text)).length > 0, `not seen in ${file}: ${text}`);
  }
});

test('the import rules leave alone what is allowed', () => {
  const cases: readonly [file: string, text: string][] = [
    ['src/ip/address.ts', "import ipaddr from 'ipaddr.js';\nimport { VpnError } from '../base/errors.ts';"],
    ['src/protocol/messages.ts', "import { z } from 'zod';\nimport { parseIp } from '../ip/address.ts';"],
    ['src/os/ffi.ts', "import ffi from 'node:ffi';"],
    [
      'src/base/a.ts',
      "// import { x } from '../ip/address.ts'\n/* from 'node:ffi' */ const text = \"from '../os/tun.ts'\";",
    ],
    ['src/client/a.ts', "import { profile } from '../control/profile.ts';"],
  ];
  for (const [file, text] of cases) assert.deepEqual(brokenImports(planted(file, text)), [], text);
});

test('ip and protocol know no time, no chance, no input or output', () => {
  assert.deepEqual(impureWords(source), []);
});

test('the rule for pure folders sees what breaks it, and only that', () => {
  const impure = [
    'const now = Date.now();',
    'const t = performance.now();',
    'const b = Buffer.alloc(4);',
    'if (process.env.X) f();',
    'setTimeout(f, 1);',
    'export async function f() {}',
    'const x: Promise<void> = g();',
    'const id = crypto.randomUUID();',
    'const r = Math.random();',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is source text
    'const s = `${Date.now()}`;',
    'const ratio = a / b; const t = Date.now(); const half = c / d;',
  ];
  for (const text of impure) assert.equal(impureWords(planted('src/ip/a.ts', text)).length, 1, text);
  const pure = [
    '// Date.now() is not used here',
    "const text = 'process the Buffer';",
    'const pattern = /Date|Buffer/;',
    'const notAfter = certificate.Date;',
    'const DateTime = 1;',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is source text
    'const s = `Date ${x} Buffer`;',
    'machine.process(frame);',
  ];
  for (const text of pure) assert.deepEqual(impureWords(planted('src/protocol/a.ts', text)), [], text);
  assert.deepEqual(impureWords(planted('src/base/clock.ts', 'Date.now();')), []);
});

test('there is no import cycle', () => {
  assert.deepEqual(importCycles(source), []);
});

test('the rule for cycles sees one', () => {
  const files = new Map([
    ['src/ip/a.ts', "import { b } from './b.ts';"],
    ['src/ip/b.ts', "import { c } from './c.ts';"],
    ['src/ip/c.ts', "import { type A, a } from './a.ts';"],
    ['src/ip/d.ts', "import { a } from './a.ts';"],
  ]);
  assert.deepEqual(importCycles(files), ['src/ip/a.ts → src/ip/b.ts → src/ip/c.ts → src/ip/a.ts']);
  for (const text of [
    '',
    "import { x } from './x.ts';\nimport type { A } from './a.ts';",
    "export type * from './a.ts';",
  ]) {
    files.set('src/ip/c.ts', text);
    assert.deepEqual(importCycles(files), [], text);
  }
});

test('an example uses the library as its users do', () => {
  const inside = (text: string): string[] =>
    importsOf(text)
      .map((site) => site.specifier ?? 'a computed name')
      .filter((specifier) => /(^|\/)(src|test|bin)\//.test(specifier) || specifier === 'a computed name');
  for (const file of globSync('examples/**/*.ts', { cwd: ROOT })) {
    if (!file.endsWith('.test.ts')) assert.deepEqual(inside(readFileSync(join(ROOT, file), 'utf8')), [], file);
  }
  assert.deepEqual(inside("import { VpnServer } from '../src/index.ts';"), ['../src/index.ts']);
  assert.deepEqual(inside("import { VpnServer } from 'customvpn';"), []);
});

test('every source file opens with a comment that says what it hides', () => {
  assert.deepEqual(undocumented(source), []);
});

test('the rule for opening comments sees a file without one', () => {
  const bad = ["import x from 'y';\n/** late */", '/* not a doc comment */', '// short', '/** */ const x = 1;', ''];
  for (const text of bad) assert.deepEqual(undocumented(planted('src/ip/a.ts', text)), ['src/ip/a.ts'], text);
  for (const text of [
    '/** One line. */',
    '/**\n * Several.\n */',
    '#!/usr/bin/env node\n/** After the first line. */',
  ]) {
    assert.deepEqual(undocumented(planted('src/ip/a.ts', text)), [], text);
  }
});
