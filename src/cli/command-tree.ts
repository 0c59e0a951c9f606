/**
 * The commands of the program as a value, for whoever writes about them: shell completions and the manual.
 *
 * Hides the library that parses the command line. What is hidden there, and the help that every command has, is left out.
 */

import { EventEmitter } from 'node:events';
import type { Argument, Command, Option } from 'commander';

/** What a shell can offer for a value. */
export type ValueKind = 'file' | 'folder' | 'text' | readonly string[];

export interface OptionNode {
  /** As it is written in help: `--state <dir>`. */
  readonly flags: string;
  /** `--state`, and `-s` where there is one. */
  readonly names: readonly string[];
  readonly description: string;
  /** What its value is; undefined: it has none. */
  readonly value: ValueKind | undefined;
  readonly defaultText: string | undefined;
  readonly isRequired: boolean;
}

export interface ArgumentNode {
  /** `<file>`, or `[file]` where it can be left out. */
  readonly flags: string;
  readonly description: string;
  readonly value: ValueKind;
}

export interface CommandNode {
  /** Without the program: `['server', 'init']`. */
  readonly path: readonly string[];
  readonly description: string;
  readonly options: readonly OptionNode[];
  readonly arguments: readonly ArgumentNode[];
  readonly commands: readonly CommandNode[];
  /** What help says at its end: examples and advice. */
  readonly remarks: string;
}

/** The tree under a command. */
export function commandTree(command: Command, path: readonly string[] = []): CommandNode {
  const help = command.createHelp();
  return {
    path,
    description: command.description(),
    options: help
      .visibleOptions(command)
      .filter(({ long }) => long !== '--help')
      .map(optionNode),
    arguments: command.registeredArguments.map(argumentNode),
    commands: help
      .visibleCommands(command)
      .filter((child) => child.name() !== 'help')
      .map((child) => commandTree(child, [...path, child.name()])),
    remarks: remarksOf(command),
  };
}

/** The command and all below it, in the order of help. */
export function allNodes(node: CommandNode): CommandNode[] {
  return [node, ...node.commands.flatMap(allNodes)];
}

function optionNode(option: Option): OptionNode {
  const placeholder = /[<[]([^>\]]+)[>\]]/.exec(option.flags)?.[1];
  const { defaultValue } = option;
  return {
    flags: option.flags,
    names: [option.long, option.short].filter((name) => name !== undefined && name !== null),
    description: option.description,
    value: placeholder === undefined ? undefined : kindOf(placeholder, option.argChoices),
    defaultText:
      placeholder === undefined || defaultValue === undefined || defaultValue === ''
        ? undefined
        : String(option.defaultValueDescription ?? defaultValue),
    isRequired: option.mandatory,
  };
}

function argumentNode(argument: Argument): ArgumentNode {
  const name = argument.variadic ? `${argument.name()}...` : argument.name();
  return {
    flags: argument.required ? `<${name}>` : `[${name}]`,
    description: argument.description,
    value: kindOf(argument.name(), argument.argChoices),
  };
}

function kindOf(placeholder: string, choices: readonly string[] | undefined): ValueKind {
  if (choices !== undefined) return choices;
  if (/^(?:dir|folder)\b/.test(placeholder)) return 'folder';
  return /^(?:file|profile|target|command)\b/.test(placeholder) ? 'file' : 'text';
}

function remarksOf(command: Command): string {
  let text = '';
  // Its type does not say that it is an emitter.
  EventEmitter.prototype.emit.call(command, 'afterHelp', {
    error: false,
    command,
    write: (part: string) => {
      text += part;
    },
  });
  return text.trim();
}
