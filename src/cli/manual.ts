/**
 * The manual pages, made from the commands: `customvpn(1)` and one for each noun.
 *
 * Hides roff (man(7)). Pure text. What a page says of a command is what its help says, so that they cannot differ.
 */

import { allNodes, type CommandNode } from './command-tree.ts';

export interface ManualOptions {
  readonly program: string;
  readonly version: string;
  /** Of the pages, `2026-01-31`. */
  readonly date: string;
}

/** What the statuses mean with which commands end (sysexits(3)). */
export const STATUS_MEANINGS: readonly (readonly [status: number, meaning: string])[] = [
  [0, 'It was done.'],
  [64, 'Wrong usage of the command line.'],
  [69, 'Nobody answers: the gateway or the client does not run, or cannot be reached.'],
  [70, 'A fault of this program.'],
  [71, 'This machine lacks something, or refused something.'],
  [76, 'The other end broke the protocol.'],
  [77, 'Not permitted, or the login was refused.'],
  [78, 'A configuration, profile or certificate is wrong.'],
];

/** The pages by file name, `customvpn-server.1`. */
export function manualPages(root: CommandNode, options: ManualOptions): ReadonlyMap<string, string> {
  const { program } = options;
  const pages = new Map([[`${program}.1`, mainPage(root, options)]]);
  for (const noun of root.commands) pages.set(`${program}-${noun.path.join('-')}.1`, nounPage(noun, root, options));
  return pages;
}

function mainPage(root: CommandNode, options: ManualOptions): string {
  const { program } = options;
  return page(program, options, [
    section('NAME', [line(`${program} - ${root.description.replace(/\.$/, '')}`)]),
    section('SYNOPSIS', [bold(program), line('NOUN VERB [OPTION]...')]),
    section(
      'COMMANDS',
      root.commands.flatMap((noun) => item(`${program}-${noun.path.join('-')}(1)`, [noun.description])),
    ),
    ...(root.options.length === 0 ? [] : [section('OPTIONS', root.options.flatMap(optionItem))]),
    section('EXAMPLES', [verbatim(root.remarks)]),
    section(
      'EXIT STATUS',
      STATUS_MEANINGS.flatMap(([status, meaning]) => item(String(status), [meaning])),
    ),
    section('FILES', [
      ...item('/var/lib/customvpn', ['State of a gateway: configuration (server.toml), certificates, accounts.']),
      ...item('/var/lib/customvpn-client', ['State of clients: profiles, device keys, logs.']),
    ]),
    section('SEE ALSO', [line(root.commands.map((noun) => `${program}-${noun.path.join('-')}(1)`).join(', '))]),
  ]);
}

function nounPage(noun: CommandNode, root: CommandNode, options: ManualOptions): string {
  const { program } = options;
  const name = `${program}-${noun.path.join('-')}`;
  const verbs = allNodes(noun).filter(({ commands }) => commands.length === 0);
  return page(name, options, [
    section('NAME', [line(`${name} - ${noun.description}`)]),
    section(
      'SYNOPSIS',
      verbs.flatMap((verb, index) => [...(index === 0 ? [] : ['.br']), ...synopsis(program, verb)]),
    ),
    ...verbs.map((verb) =>
      section(`${program} ${verb.path.join(' ')}`, [
        line(sentence(verb.description)),
        ...verb.arguments.flatMap(({ flags, description }) => item(flags, [description])),
        ...verb.options.flatMap(optionItem),
        ...(verb.remarks === '' ? [] : ['.PP', verbatim(verb.remarks)]),
      ]),
    ),
    section('SEE ALSO', [
      line(
        [
          `${program}(1)`,
          ...root.commands.filter((other) => other !== noun).map((other) => `${program}-${other.path.join('-')}(1)`),
        ].join(', '),
      ),
    ]),
  ]);
}

function page(name: string, { program, version, date }: ManualOptions, sections: readonly string[]): string {
  const heading = `.TH ${quoted(name.toUpperCase())} 1 ${quoted(date)} ${quoted(`${program} ${version}`)} ${quoted('CustomVPN')}`;
  // Words are not broken at hyphens, and lines are not stretched.
  return `${[heading, '.nh', '.ad l', ...sections].join('\n')}\n`;
}

function section(title: string, lines: readonly string[]): string {
  return [`.SH ${quoted(title)}`, ...lines].join('\n');
}

function synopsis(program: string, verb: CommandNode): string[] {
  const required = verb.options.filter(({ isRequired }) => isRequired).map(({ flags }) => flags);
  const words = [...verb.arguments.map(({ flags }) => flags), ...required, '[OPTION]...'];
  return [bold(`${program} ${verb.path.join(' ')}`), line(words.join(' '))];
}

function optionItem({ flags, description, defaultText, isRequired }: CommandNode['options'][number]): string[] {
  const remarks = [
    ...(isRequired ? ['needed'] : []),
    ...(defaultText === undefined ? [] : [`default: ${defaultText}`]),
  ];
  return item(flags, [remarks.length === 0 ? description : `${description} (${remarks.join('; ')})`]);
}

function item(tag: string, lines: readonly string[]): string[] {
  return ['.TP', bold(tag), ...lines.map(line)];
}

function bold(text: string): string {
  return `.B ${escaped(text)}`;
}

function verbatim(text: string): string {
  return ['.nf', ...text.split('\n').map(line), '.fi'].join('\n');
}

/** A line of text: one that begins with a dot or an apostrophe would be a request. */
function line(text: string): string {
  return /^[.']/.test(text) ? `\\&${escaped(text)}` : escaped(text);
}

function escaped(text: string): string {
  return text.replaceAll('\\', '\\e').replaceAll('-', '\\-');
}

function quoted(text: string): string {
  return `"${escaped(text).replaceAll('"', '""')}"`;
}

function sentence(text: string): string {
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? '' : '.'}`;
}
