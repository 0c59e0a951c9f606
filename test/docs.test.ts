/**
 * Ties the documents to the code: links, commands, error codes, decisions, and words that must not appear.
 */

import assert from 'node:assert/strict';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, posix, resolve } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES, type ErrorCode, VpnError } from '../src/base/errors.ts';
import { runProgram } from './support/process.ts';

const ROOT = dirname(import.meta.dirname);
const NOT_OURS = ['**/node_modules/**', 'dist/**', '.cache/**', '.git/**'];

const documents = new Map(
  globSync('**/*.md', { cwd: ROOT, exclude: NOT_OURS })
    .sort()
    .map((file) => [file.replaceAll('\\', '/'), readFileSync(join(ROOT, file), 'utf8')]),
);

/** The text without its fenced blocks and inline code. */
function prose(markdown: string): string {
  return markdown.replace(/^( *)(```|~~~).*\n[\s\S]*?^\1\2.*$/gm, '').replace(/`[^`\n]*`/g, '');
}

/** The text of fenced blocks and inline code: what a reader may type. */
function codeOf(markdown: string): string[] {
  const fences = [...markdown.matchAll(/^ *(?:```|~~~).*\n([\s\S]*?)^ *(?:```|~~~) *$/gm)].map(
    (match) => match[1] ?? '',
  );
  const rest = markdown.replace(/^ *(?:```|~~~).*\n[\s\S]*?^ *(?:```|~~~) *$/gm, '');
  // Inline code may be broken over two lines.
  const inline = [...rest.matchAll(/`([^`]+)`/g)].map((match) => (match[1] ?? '').replaceAll(/\s+/g, ' '));
  return [...fences.flatMap((fence) => fence.split('\n')), ...inline];
}

/** The anchors that headings get on the usual hosts. */
function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  const headings = markdown.replace(/^( *)(```|~~~).*\n[\s\S]*?^\1\2.*$/gm, '').matchAll(/^#{1,6} +(.+?) *#* *$/gm);
  for (const heading of headings) {
    const text = (heading[1] ?? '').replace(/\[([^\]]*)\]\([^)]*\)/g, '$1');
    const base = text
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\p{M}\p{Pc} -]/gu, '')
      .replaceAll(' ', '-');
    let anchor = base;
    for (let count = 1; anchors.has(anchor); count++) anchor = `${base}-${count}`;
    anchors.add(anchor);
  }
  for (const match of markdown.matchAll(/<a (?:id|name)="([^"]+)"/g)) anchors.add(match[1] ?? '');
  return anchors;
}

function brokenLinks(file: string, markdown: string): string[] {
  const text = prose(markdown);
  const targets = [
    ...[...text.matchAll(/\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)/g)].map((match) => match[1] ?? ''),
    ...[...text.matchAll(/^ *\[[^\]]+\]: +<?(\S+?)>?(?: .*)?$/gm)].map((match) => match[1] ?? ''),
  ];
  const broken: string[] = [];
  for (const target of targets) {
    if (/^[a-z][a-z+.-]*:/i.test(target)) continue;
    const [path = '', anchor] = target.split('#');
    const linked = path === '' ? file : posix.normalize(posix.join(posix.dirname(file), decodeURIComponent(path)));
    if (linked.startsWith('..') || !existsSync(join(ROOT, linked))) broken.push(`${file}: ${target}`);
    else if (anchor !== undefined && linked.endsWith('.md')) {
      const linkedText = linked === file ? markdown : (documents.get(linked) ?? '');
      if (!anchorsOf(linkedText).has(decodeURIComponent(anchor))) broken.push(`${file}: ${target}`);
    }
  }
  return broken;
}

/** `npm run X` and `npm X` in what a reader may type. */
function npmScriptsIn(markdown: string): string[] {
  return codeOf(markdown).flatMap((line) =>
    [...line.matchAll(/\bnpm (?:(?:run|run-script) (?:-s |--silent )?([\w:-]+)|(test|start))/g)].map(
      (match) => match[1] ?? match[2] ?? '',
    ),
  );
}

/** The words after `customvpn` in what a reader may type, up to the first that is no word. */
function commandsIn(markdown: string): string[][] {
  return codeOf(markdown).flatMap((line) =>
    [...line.matchAll(/(?:^|[\s/$(])customvpn((?: +[a-z][a-z-]*(?![\w./:=,@]))+)/g)].map((match) =>
      (match[1] ?? '').trim().split(/ +/),
    ),
  );
}

type Verbs = ReadonlyMap<string, readonly string[]>;

function isCommand(verbs: Verbs, [noun = '', verb]: readonly string[]): boolean {
  const children = verbs.get(noun);
  if (children === undefined) return false;
  return children.length === 0 || verb === undefined || children.includes(verb);
}

/** The command line as it describes itself: noun → verbs. */
async function readVerbs(): Promise<Verbs> {
  const help = async (...path: string[]): Promise<string[]> => {
    const { status, stdout, stderr } = await runProgram(join(ROOT, 'bin/customvpn'), [...path, '--help']);
    assert.equal(status, 0, `customvpn ${path.join(' ')} --help: ${stderr}`);
    const list = /^Commands:\n((?: {2}.*\n?)+)/m.exec(stdout)?.[1] ?? '';
    return [...list.matchAll(/^ {2}([a-z][\w-]*)/gm)].map((match) => match[1] ?? '').filter((name) => name !== 'help');
  };
  const nouns = await help();
  const verbs = new Map<string, readonly string[]>();
  // Two at a time: each is a process of its own.
  for (let i = 0; i < nouns.length; i += 2) {
    const pair = nouns.slice(i, i + 2);
    const lists = await Promise.all(pair.map((noun) => help(noun)));
    for (const [at, noun] of pair.entries()) verbs.set(noun, lists[at] ?? []);
  }
  return verbs;
}

test('the documents that a reader expects are there', () => {
  const expected = [
    'README.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
    'CHANGELOG.md',
    'docs/architecture.md',
    'docs/protocol.md',
    'docs/configuration.md',
    'docs/errors.md',
  ];
  assert.deepEqual(
    expected.filter((file) => !documents.has(file)),
    [],
  );
  assert.match(readFileSync(join(ROOT, 'LICENSE'), 'utf8'), /Apache License\s+Version 2\.0[\s\S]+END OF TERMS/);
});

test('links between documents resolve', () => {
  assert.deepEqual(
    [...documents].flatMap(([file, text]) => brokenLinks(file, text)),
    [],
  );
});

test('the check of links sees a broken one', () => {
  const bad = [
    '[x](nowhere.md)',
    '[x](#no-such)',
    '[x](docs/errors.md#err_nonsense)',
    '[x]: nowhere.md',
    '![x](no.png)',
  ];
  for (const text of bad) assert.equal(brokenLinks('CONTRIBUTING.md', text).length, 1, text);
  const good = ['[x](docs/errors.md#err_usage)', '# A b, c!\n[x](#a-b-c)', '[x](https://example.org)', '`[x](no.md)`'];
  for (const text of good) assert.deepEqual(brokenLinks('CONTRIBUTING.md', text), [], text);
});

test('every npm script that a document names exists', () => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { scripts: object };
  for (const [file, text] of documents) {
    for (const name of npmScriptsIn(text)) assert.ok(name in scripts, `${file}: npm run ${name}`);
  }
  assert.deepEqual(npmScriptsIn('`npm run demo -- --json`, `npm test`\n```sh\nnpm run a:b\n```\nnpm run prose'), [
    'a:b',
    'demo',
    'test',
  ]);
});

const launches = existsSync(join(ROOT, 'bin/customvpn.ts'));

test('every command that a document names exists', {
  skip: launches ? false : 'bin/customvpn.ts is missing',
}, async () => {
  const verbs = await readVerbs();
  assert.ok(verbs.size >= 5, `the help lists only ${[...verbs.keys()].join(', ')}`);
  for (const [file, text] of documents) {
    for (const words of commandsIn(text)) {
      assert.ok(isCommand(verbs, words), `${file}: customvpn ${words.join(' ')}`);
    }
  }
});

test('the check of commands reads what a document says', () => {
  const text = [
    'Run `customvpn server run`, or `sudo bin/customvpn client up alice.toml --state DIR`, `customvpn/1` on the wire.',
    '```sh',
    'customvpn profile alice --out alice.toml',
    'nft list table inet customvpn',
    '```',
  ].join('\n');
  assert.deepEqual(commandsIn(text), [
    ['profile', 'alice'],
    ['server', 'run'],
    ['client', 'up'],
  ]);
  const verbs = new Map([
    ['server', ['run']],
    ['profile', []],
  ]);
  assert.equal(isCommand(verbs, ['server', 'run']), true);
  assert.equal(isCommand(verbs, ['server']), true);
  assert.equal(isCommand(verbs, ['profile', 'alice']), true);
  assert.equal(isCommand(verbs, ['server', 'walk']), false);
  assert.equal(isCommand(verbs, ['serve', 'run']), false);
});

test('every error code has a heading under its kind, with cause and remedy, and no heading lacks a code', () => {
  const text = documents.get('docs/errors.md') ?? '';
  const documented = new Map<string, string>();
  for (const section of text.split(/^## /m).slice(1)) {
    const kind = section.slice(0, section.indexOf('\n')).trim();
    for (const entry of section.split(/^### /m).slice(1)) {
      const code = entry.slice(0, entry.indexOf('\n')).trim();
      assert.ok(!documented.has(code), `${code} is documented twice`);
      assert.match(entry, /^Cause: \S[\s\S]+^Remedy: \S/m, `${code} lacks its cause or its remedy`);
      documented.set(code, kind);
    }
  }
  const expected = new Map<string, string>(ERROR_CODES.map((code: ErrorCode) => [code, new VpnError(code, '').kind]));
  const differences = [...new Set([...expected.keys(), ...documented.keys()])]
    .filter((code) => expected.get(code) !== documented.get(code))
    .map(
      (code) =>
        `${code}: ${expected.get(code) ?? 'no code'} in errors.ts, ${documented.get(code) ?? 'none'} in errors.md`,
    );
  assert.deepEqual(differences, []);
});

test('decisions are numbered without a gap and have their three parts', () => {
  const files = [...documents.keys()].filter((file) => file.startsWith('docs/decisions/')).sort();
  assert.ok(files.length >= 7);
  for (const [at, file] of files.entries()) {
    const number = String(at + 1).padStart(4, '0');
    assert.match(file, new RegExp(`^docs/decisions/${number}-[a-z0-9-]+\\.md$`));
    const text = documents.get(file) ?? '';
    assert.match(text, new RegExp(`^# ${number}\\. \\S`), file);
    assert.match(text, /^## Context\n[\s\S]+^## Decision\n[\s\S]+^## Consequences\n/m, file);
  }
});

test('no file names the machine it was written on', () => {
  const files = globSync('**/*.{md,ts,mjs,json,toml,sh}', { cwd: ROOT, exclude: NOT_OURS });
  assert.ok(files.length > 30);
  const own = [ROOT, dirname(ROOT), homedir()]
    .map((path) => resolve(path))
    // A clone in an ordinary place proves nothing.
    .filter((path) => !['/', '/tmp', '/home', '/root', '/opt', '/srv', '/usr/src', '/nonexistent'].includes(path));
  const forbidden = [...own.map((path) => `${path}/`), '/home/', '/Users/'];
  for (const file of files) {
    // This file has to spell out what it looks for.
    if (resolve(ROOT, file) === import.meta.filename) continue;
    const text = readFileSync(join(ROOT, file), 'utf8');
    for (const word of forbidden) assert.ok(!text.includes(word), `${file} contains ${word}`);
  }
});
