/**
 * Where in a TOML text a value stands, for messages about it.
 *
 * Hides the syntax tree. Needed only when there is something to say: values are read by another parser, which is faster.
 */

import { type AST, ParseError, parseTOML } from 'toml-eslint-parser';

/** Both counted from 1. */
export interface TextLocation {
  readonly line: number;
  readonly column: number;
}

const START: TextLocation = { line: 1, column: 1 };

export class TomlLocations {
  /** By path, as JSON. */
  readonly #found = new Map<string, TextLocation>();

  /** @param text what another parser has accepted; of anything else every value stands in line 1 */
  constructor(text: string) {
    let program: AST.TOMLProgram;
    try {
      program = parseTOML(text);
    } catch (error) {
      if (error instanceof ParseError) return;
      throw error;
    }
    for (const node of program.body[0].body) {
      if (node.type === 'TOMLKeyValue') this.#visitPair(node, []);
      else {
        for (let length = 1; length <= node.resolvedKey.length; length++) {
          this.#note(node.resolvedKey.slice(0, length), node);
        }
        for (const pair of node.body) this.#visitPair(pair, node.resolvedKey);
      }
    }
  }

  /** Where the value at a path stands, such as `['rules', 3, 'to', 0]`; where it is missing, what should have held it. */
  of(path: readonly PropertyKey[]): TextLocation {
    for (let length = path.length; length > 0; length--) {
      const found = this.#found.get(JSON.stringify(path.slice(0, length)));
      if (found !== undefined) return found;
    }
    return START;
  }

  #visitPair({ key, value }: AST.TOMLKeyValue, parent: readonly (string | number)[]): void {
    let path = parent;
    for (const part of key.keys) {
      path = [...path, part.type === 'TOMLBare' ? part.name : part.value];
      this.#note(path, part);
    }
    this.#visitValue(value, path);
  }

  #visitValue(value: AST.TOMLContentNode, path: readonly (string | number)[]): void {
    if (value.type === 'TOMLInlineTable') {
      for (const pair of value.body) this.#visitPair(pair, path);
    } else if (value.type === 'TOMLArray') {
      for (const [index, element] of value.elements.entries()) {
        this.#note([...path, index], element);
        this.#visitValue(element, [...path, index]);
      }
    }
  }

  /** The first place of a path is where it begins. */
  #note(path: readonly (string | number)[], { loc }: AST.TOMLNode): void {
    const key = JSON.stringify(path);
    if (!this.#found.has(key)) this.#found.set(key, { line: loc.start.line, column: loc.start.column + 1 });
  }
}
