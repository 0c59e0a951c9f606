/**
 * Completions of the command line for bash, zsh and fish, made from the commands.
 *
 * Hides the three shells. Pure text. Each script finds out first which command is being written, passing over options and
 * their values, and then offers its verbs, options, choices, files or folders.
 */

import { allNodes, type CommandNode, type OptionNode, type ValueKind } from './command-tree.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** Where each shell looks for completions by itself, below a prefix such as `/usr/share`. */
export const COMPLETION_FILES: Readonly<Record<Shell, (program: string) => string>> = {
  bash: (program) => `bash-completion/completions/${program}`,
  zsh: (program) => `zsh/vendor-completions/_${program}`,
  fish: (program) => `fish/vendor_completions.d/${program}.fish`,
};

/** The script for a shell. */
export function completionScript(shell: Shell, root: CommandNode, program: string): string {
  const makers: Record<Shell, (root: CommandNode, program: string) => string> = {
    bash: bashScript,
    zsh: zshScript,
    fish: fishScript,
  };
  return makers[shell](root, program);
}

const pathOf = ({ path }: CommandNode): string => path.join(' ');

/** Names of the options of any command that are followed by a value. */
function valueNames(root: CommandNode): string[] {
  const options = allNodes(root).flatMap(({ options: own }) => own);
  return [...new Set(options.filter(({ value }) => value !== undefined).flatMap(({ names }) => names))].sort();
}

/** What a word in the command's own place can be. */
function wordKind({ commands, arguments: args }: CommandNode): ValueKind | undefined {
  if (commands.length > 0) return undefined;
  return args.map(({ value }) => value).find((value) => value !== 'text');
}

const optionNames = ({ options }: CommandNode): string[] => [...options.flatMap(({ names }) => names), '--help'];

const withValue = ({ options }: CommandNode): OptionNode[] => options.filter(({ value }) => value !== undefined);

// ── bash ──

function bashScript(root: CommandNode, program: string): string {
  const nodes = allNodes(root);
  const paths = nodes.filter(({ path }) => path.length > 0).map(pathOf);
  const offer = (kind: ValueKind | undefined): string => {
    if (kind === 'file') return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur")';
    if (kind === 'folder') return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur")';
    if (kind === undefined || kind === 'text') return ':';
    return `mapfile -t COMPREPLY < <(compgen -W '${kind.join(' ')}' -- "$cur")`;
  };
  const values = nodes.flatMap((node) =>
    withValue(node).map(
      ({ names, value }) =>
        `    ${names.map((name) => `"${pathOf(node)}:${name}"`).join(' | ')}) ${offer(value)}; return ;;`,
    ),
  );
  const words = nodes.map((node) => {
    const offered = node.commands.map(({ path }) => path.at(-1));
    const kind = wordKind(node);
    const own =
      offered.length > 0 ? `mapfile -t COMPREPLY < <(compgen -W '${offered.join(' ')}' -- "$cur")` : offer(kind);
    return `    "${pathOf(node)}")
      if [[ $cur == -* ]]; then mapfile -t COMPREPLY < <(compgen -W '${optionNames(node).join(' ')}' -- "$cur")
      else ${own}; fi ;;`;
  });
  const name = `_${program}`;
  return `# bash completion for ${program}; made by: ${program} completions bash
${name}() {
  local cur prev path='' word i
  cur=\${COMP_WORDS[COMP_CWORD]}
  prev=\${COMP_WORDS[COMP_CWORD - 1]}
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    case $word in
      ${valueNames(root).join(' | ')}) ((i++)); continue ;;
      -*) continue ;;
    esac
    case "\${path:+$path }$word" in
      ${paths.map((path) => `'${path}'`).join(' | ')}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$path:$prev" in
${values.join('\n')}
  esac
  case $path in
${words.join('\n')}
  esac
}
complete -F ${name} ${program}
`;
}

// ── zsh ──

function zshScript(root: CommandNode, program: string): string {
  const nodes = allNodes(root);
  const paths = nodes.filter(({ path }) => path.length > 0).map(pathOf);
  const described = (name: string, description: string): string =>
    quoteShell(`${name.replaceAll(':', '\\:')}:${description}`);
  const offer = (kind: ValueKind | undefined): string => {
    if (kind === 'file') return '_files';
    if (kind === 'folder') return '_files -/';
    if (kind === undefined || kind === 'text') return "_message 'a value'";
    return `compadd -- ${kind.join(' ')}`;
  };
  const values = nodes.flatMap((node) =>
    withValue(node).map(
      ({ names, value }) =>
        `    ${names.map((name) => `"${pathOf(node)}:${name}"`).join(' | ')}) ${offer(value)}; return ;;`,
    ),
  );
  const words = nodes.map((node) => {
    const offered = node.commands.map(({ path, description }) => described(path.at(-1) ?? '', description));
    const own = offered.length > 0 ? `verbs=(${offered.join(' ')}); _describe command verbs` : offer(wordKind(node));
    const options = [
      ...node.options.flatMap(({ names, description }) => names.map((name) => described(name, description))),
      described('--help', 'what this does and takes'),
    ];
    return `    "${pathOf(node)}")
      options=(${options.join(' ')})
      if [[ $cur == -* ]]; then _describe option options; else ${own}; fi ;;`;
  });
  return `#compdef ${program}
# zsh completion for ${program}; made by: ${program} completions zsh
_${program}() {
  local cur=\${words[CURRENT]} prev=\${words[CURRENT-1]} at='' word
  local -a verbs options
  local -i i
  for ((i = 2; i < CURRENT; i++)); do
    word=\${words[i]}
    case $word in
      ${valueNames(root).join('|')}) ((i++)); continue ;;
      -*) continue ;;
    esac
    case "\${at:+$at }$word" in
      ${paths.map((path) => `'${path}'`).join('|')}) at="\${at:+$at }$word" ;;
    esac
  done
  case "$at:$prev" in
${values.join('\n')}
  esac
  case $at in
${words.join('\n')}
  esac
}
_${program} "$@"
`;
}

// ── fish ──

function fishScript(root: CommandNode, program: string): string {
  const nodes = allNodes(root);
  const paths = nodes.filter(({ path }) => path.length > 0).map(pathOf);
  const at = `__${program}_at`;
  const lines = nodes.flatMap((node) => {
    const when = `complete -c ${program} -n ${quoteFish(`${at} ${quoteFish(pathOf(node))}`)}`;
    const verbs = node.commands.map(
      ({ path, description }) => `${when} -f -a ${path.at(-1)} -d ${quoteFish(description)}`,
    );
    const kind = wordKind(node);
    const words =
      kind === 'file'
        ? [`${when} -F`]
        : kind === 'folder'
          ? [`${when} -f -a '(__fish_complete_directories)'`]
          : typeof kind === 'object'
            ? [`${when} -f -a ${quoteFish(kind.join(' '))}`]
            : [];
    const options = node.options.map(({ names, description, value }) => {
      const spelt = names.map((name) => (name.startsWith('--') ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`));
      return `${when} ${spelt.join(' ')}${fishValue(value)} -d ${quoteFish(description)}`;
    });
    return [...verbs, ...words, ...options];
  });
  return `# fish completion for ${program}; made by: ${program} completions fish
function ${at}
    set -l at
    set -l skip 0
    set -l tokens (commandline -opc)
    for token in $tokens[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch $token
            case ${valueNames(root).join(' ')}
                set skip 1
            case '-*'
            case '*'
                if contains -- (string join ' ' -- $at $token) ${paths.map((path) => `'${path}'`).join(' ')}
                    set -a at $token
                end
        end
    end
    test "$at" = "$argv[1]"
end
complete -c ${program} -f
complete -c ${program} -l help -d 'what this does and takes'
${lines.join('\n')}
`;
}

function fishValue(value: ValueKind | undefined): string {
  if (value === undefined) return '';
  if (value === 'file') return ' -r -F';
  if (value === 'folder') return " -x -a '(__fish_complete_directories)'";
  return value === 'text' ? ' -x' : ` -x -a ${quoteFish(value.join(' '))}`;
}

/** A word between apostrophes, in which nothing has a meaning. */
function quoteShell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The same for fish, where a backslash has one. */
function quoteFish(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}
