/**
 * Strict JSON: bytes → value.
 *
 * Hides the difference between the JSON that two programs might read differently and the JSON that they cannot: one
 * reading of every text, or none. It must not know any message.
 *
 * Stricter than RFC 8259: valid UTF-8 without a byte order mark; objects at the top; integers within ±(2^53 − 1) only;
 * no name twice, no `__proto__`; text in NFC without control, bidirectional-control or lone surrogate characters; at most
 * `MAX_DEPTH` levels. A name that starts with `!` marks a field that must be understood: this version knows none.
 *
 * @see docs/protocol.md §4.1
 */

import { VpnError } from '../base/errors.ts';

/** Levels of objects and arrays, the outermost being the first. */
export const MAX_DEPTH = 8;

export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
export interface JsonObject {
  [name: string]: JsonValue;
}

/** Controls (C0, DEL, C1), line and paragraph separators, and the characters that reorder text. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is its purpose
const FORBIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/;
/** Of texts of nothing else, and without an escape, every string is in order. */
const PLAIN_ASCII = /^[\x20-\x5b\x5d-\x7e]*$/;
const DECODER = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const INTEGER = /-?(?:0|[1-9][0-9]*)/y;
const PLAIN = /[^"\\]*/y;

/**
 * Reads a JSON object.
 *
 * @throws {VpnError} ERR_MESSAGE_SYNTAX where it is not the JSON described above, ERR_MESSAGE_FIELD for an unknown name
 *   that starts with `!`
 */
export function parseJson(bytes: Uint8Array): JsonObject {
  let text: string;
  try {
    text = DECODER.decode(bytes);
  } catch (cause) {
    throw new VpnError('ERR_MESSAGE_SYNTAX', 'the payload is not UTF-8', { cause });
  }
  return new Parser(text).document();
}

class Parser {
  readonly #text: string;
  readonly #isPlain: boolean;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
    this.#isPlain = PLAIN_ASCII.test(text);
  }

  document(): JsonObject {
    this.#space();
    if (this.#text[this.#at] !== '{') this.#fail('expected an object');
    const value = this.#object(1);
    this.#space();
    if (this.#at < this.#text.length) this.#fail('expected the end');
    return value;
  }

  #value(depth: number): JsonValue {
    const first = this.#text[this.#at];
    switch (first) {
      case '{':
        return this.#object(depth + 1);
      case '[':
        return this.#array(depth + 1);
      case '"':
        return this.#string();
      case 't':
        return this.#word('true', true);
      case 'f':
        return this.#word('false', false);
      case 'n':
        return this.#word('null', null);
      default:
        return this.#integer();
    }
  }

  #object(depth: number): JsonObject {
    if (depth > MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} levels`);
    // Without a prototype no name that a peer chooses can mean anything but itself.
    const object: JsonObject = Object.create(null);
    this.#at += 1;
    this.#space();
    if (this.#take('}')) return object;
    for (;;) {
      if (this.#text[this.#at] !== '"') this.#fail('expected a name');
      const name = this.#string();
      if (name === '__proto__') this.#fail('the name __proto__');
      if (Object.hasOwn(object, name)) this.#fail('a name that comes twice');
      if (name.startsWith('!')) {
        throw new VpnError('ERR_MESSAGE_FIELD', 'the peer demands that an unknown field be understood', {
          details: { field: name.slice(0, 64) },
        });
      }
      this.#space();
      if (!this.#take(':')) this.#fail('expected ":"');
      this.#space();
      object[name] = this.#value(depth);
      this.#space();
      if (this.#take('}')) return object;
      if (!this.#take(',')) this.#fail('expected "," or "}"');
      this.#space();
    }
  }

  #array(depth: number): JsonValue[] {
    if (depth > MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} levels`);
    const array: JsonValue[] = [];
    this.#at += 1;
    this.#space();
    if (this.#take(']')) return array;
    for (;;) {
      array.push(this.#value(depth));
      this.#space();
      if (this.#take(']')) return array;
      if (!this.#take(',')) this.#fail('expected "," or "]"');
      this.#space();
    }
  }

  #string(): string {
    this.#at += 1;
    if (this.#isPlain) {
      const end = this.#text.indexOf('"', this.#at);
      if (end < 0) this.#fail('a string without end');
      const plain = this.#text.slice(this.#at, end);
      this.#at = end + 1;
      return plain;
    }
    let value = '';
    for (;;) {
      PLAIN.lastIndex = this.#at;
      const run = PLAIN.exec(this.#text)?.[0] ?? '';
      value += run;
      this.#at += run.length;
      const next = this.#text[this.#at];
      this.#at += 1;
      if (next === '"') break;
      if (next !== '\\') this.#fail('a string without end');
      value += this.#escape();
    }
    // Checked after escapes are resolved: a forbidden character is refused however it is written.
    if (FORBIDDEN.test(value)) this.#fail('a control or bidirectional-control character');
    if (!value.isWellFormed()) this.#fail('a lone surrogate');
    if (value.normalize('NFC') !== value) this.#fail('text that is not in normal form C');
    return value;
  }

  #escape(): string {
    const letter = this.#text[this.#at];
    this.#at += 1;
    switch (letter) {
      case '"':
      case '\\':
      case '/':
        return letter;
      case 'u': {
        const digits = this.#text.slice(this.#at, this.#at + 4);
        if (!/^[0-9A-Fa-f]{4}$/.test(digits)) this.#fail('a malformed escape');
        this.#at += 4;
        return String.fromCharCode(Number.parseInt(digits, 16));
      }
      default:
        // \b \f \n \r \t would only name characters that are refused.
        return this.#fail('a malformed or forbidden escape');
    }
  }

  #integer(): number {
    INTEGER.lastIndex = this.#at;
    const digits = INTEGER.exec(this.#text)?.[0];
    if (digits === undefined || digits === '-0') this.#fail('expected a value');
    this.#at += digits.length;
    const value = Number(digits);
    if (!Number.isSafeInteger(value) || /[0-9.eE]/.test(this.#text[this.#at] ?? '')) {
      this.#fail('expected an integer within 2^53');
    }
    return value;
  }

  #word<T extends boolean | null>(word: string, value: T): T {
    if (!this.#text.startsWith(word, this.#at)) this.#fail('expected a value');
    this.#at += word.length;
    return value;
  }

  #take(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at += 1;
    return true;
  }

  #space(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x09 && code !== 0x0a && code !== 0x0d) return;
      this.#at += 1;
    }
  }

  /** The text itself is not quoted: it may be a password. */
  #fail(why: string): never {
    throw new VpnError('ERR_MESSAGE_SYNTAX', `the payload is not strict JSON: ${why} at character ${this.#at}`, {
      details: { at: this.#at },
    });
  }
}
