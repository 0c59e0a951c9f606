import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ERROR_CODES, exitStatus, VpnError } from '../base/errors.ts';
import { allNodes, commandTree } from './command-tree.ts';
import { completionScript, SHELLS } from './completions.ts';
import type { CliHost } from './host.ts';
import { manualPages, STATUS_MEANINGS } from './manual.ts';
import { createProgram } from './program.ts';

const tree = commandTree(createProgram({} as CliHost, '1.2.3'));
const folder = mkdtempSync(join(tmpdir(), 'customvpn-completions-'));
after(() => rmSync(folder, { recursive: true, force: true }));
mkdirSync(join(folder, 'gateway'));
writeFileSync(join(folder, 'gold.toml'), '');
for (const shell of SHELLS)
  writeFileSync(join(folder, `customvpn.${shell}`), completionScript(shell, tree, 'customvpn'));

function isThere(program: string): boolean {
  return spawnSync(program, ['--version']).status === 0;
}

/** What a shell offers for the last of these words, sorted. */
const offers: Readonly<Record<string, (words: readonly string[]) => string[]>> = {
  bash: (words) => {
    const list = words.map((word) => `'${word}'`).join(' ');
    const code = `source ./customvpn.bash; COMP_WORDS=(customvpn ${list}); COMP_CWORD=${words.length};
      compopt() { :; }; _customvpn; printf '%s\\n' "\${COMPREPLY[@]}"`;
    return lines('bash', ['--norc', '-c', code]);
  },
  zsh: (words) => {
    const list = words.map((word) => `'${word}'`).join(' ');
    // The builtins of the line editor, told to print.
    const code = `_describe() { local -a all; all=(\${(P)2}); print -rl -- \${all%%:*} }
      compadd() { shift; print -rl -- "$@" }
      _files() { [[ $1 == -/ ]] && print -rl -- *(/) || print -rl -- * }
      _message() { }
      words=(customvpn ${list}); CURRENT=${words.length + 1}; source ./customvpn.zsh`;
    const last = words.at(-1) ?? '';
    return lines('zsh', ['-f', '-c', code]).filter((word) => word.startsWith(last));
  },
  fish: (words) => {
    const code = `source ./customvpn.fish; complete -C 'customvpn ${words.join(' ')}'`;
    return lines('fish', ['--no-config', '-c', code]).map((line) => (line.split('\t')[0] ?? '').replace(/\/$/, ''));
  },
};

function lines(shell: string, args: readonly string[]): string[] {
  const { stdout, stderr, status } = spawnSync(shell, args, {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, HOME: folder },
  });
  assert.equal(status, 0, stderr);
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .sort();
}

for (const shell of SHELLS) {
  const skip = isThere(shell) ? false : `${shell} is not installed`;
  const offer = (...words: string[]): string[] => offers[shell]?.(words) ?? [];

  test(`${shell} offers the nouns, the verbs of a noun, and nothing of another`, { skip }, () => {
    const verbs = (at: string): string[] =>
      (allNodes(tree).find(({ path }) => path.join(' ') === at)?.commands ?? [])
        .map(({ path }) => path.at(-1) ?? '')
        .sort();
    assert.deepEqual(offer(''), verbs(''));
    assert.deepEqual(offer('server', ''), verbs('server'));
    assert.deepEqual(offer('client', 'kill-switch', ''), ['close', 'open', 'status', 'unit']);
    assert.deepEqual(offer('server', 're'), ['reload', 'replace-workers', 'restore']);
  });

  test(`${shell} passes over options and their values on the way to the verb`, { skip }, () => {
    // "init" is the value of an option here, no verb.
    assert.deepEqual(offer('server', '--state', 'init', 'dr'), ['drain']);
    assert.deepEqual(offer('server', 'init', '--json', '--po'), ['--pool']);
  });

  test(`${shell} offers folders, files and choices where they belong`, { skip }, () => {
    assert.deepEqual(offer('server', 'status', '--state', 'g'), ['gateway']);
    assert.deepEqual(offer('server', 'restore', 'go'), ['gold.toml']);
    assert.deepEqual(offer('completions', 'f'), ['fish']);
    assert.deepEqual(offer('server', 'drain', '--deadline', ''), []);
  });
}

test('each script has every command and every option', () => {
  for (const shell of SHELLS) {
    const script = readFileSync(join(folder, `customvpn.${shell}`), 'utf8');
    for (const { path, options } of allNodes(tree)) {
      assert.ok(script.includes(path.join(' ')), `${shell}: ${path.join(' ')}`);
      for (const name of options.flatMap(({ names }) => names)) {
        const spelt = shell === 'fish' ? (name.startsWith('--') ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`) : name;
        assert.ok(script.includes(spelt), `${shell}: ${path.join(' ')} ${name}`);
      }
    }
  }
});

test('the manual has a page for each noun, which names every verb, argument and option of it', () => {
  const pages = manualPages(tree, { program: 'customvpn', version: '1.2.3', date: '2026-01-31' });
  assert.equal(pages.size, tree.commands.length + 1);
  const unescaped = (text: string): string => text.replaceAll('\\-', '-').replaceAll('\\e', '\\');
  for (const noun of tree.commands) {
    const text = unescaped(pages.get(`customvpn-${noun.path.join('-')}.1`) ?? '');
    for (const { path, options, arguments: args, commands } of allNodes(noun)) {
      if (commands.length > 0) continue;
      assert.ok(text.includes(`.SH "customvpn ${path.join(' ')}"`), path.join(' '));
      for (const { flags } of [...options, ...args])
        assert.ok(text.includes(`.B ${flags}`), `${path.join(' ')} ${flags}`);
    }
    // A request that no one meant would begin with a dot.
    for (const line of text.split('\n')) assert.match(line, /^(?!['.])|^\.(?:TH|SH|TP|B|br|nf|fi|PP|nh|ad) ?/, line);
  }
});

test('the manual says what every status means with which a command can end', () => {
  const statuses = new Set([0, ...ERROR_CODES.map((code) => exitStatus(new VpnError(code, '')))]);
  assert.deepEqual(
    STATUS_MEANINGS.map(([status]) => status),
    [...statuses].sort((a, b) => a - b),
  );
});

test('man(1) finds no fault in the pages', { skip: isThere('groff') ? false : 'groff is not installed' }, () => {
  for (const [name, text] of manualPages(tree, { program: 'customvpn', version: '1.2.3', date: '2026-01-31' })) {
    const { stderr, status } = spawnSync('groff', ['-man', '-Tutf8', '-K', 'utf8', '-ww', '-z'], {
      input: text,
      encoding: 'utf8',
    });
    assert.equal(status, 0, stderr);
    assert.equal(stderr, '', name);
  }
});
