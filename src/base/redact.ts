/**
 * Takes secrets and names out of text that leaves the machine, by rule.
 *
 * Hides what a secret looks like. Four rules, each enough by itself for most: what is known to be a secret, whatever it stands in;
 * the value beside a name that means one; blocks of keys and passwords in addresses; and any long run of characters that no
 * person has written. Rather too much goes than too little.
 */

const REMOVED = '[removed]';

/** Names whose values are secrets; not those of files that hold one. */
const SECRET_NAMES =
  '[\\w.-]*(?:secret|password|passwd|passphrase|token|credential|camouflage|cookie|authorization|private[_-]?key)(?!only|file)[\\w-]*';

/** A whole line or JSON member `name = value`; what follows is the value to its end. */
const ASSIGNMENT = new RegExp(
  `(["']?\\b${SECRET_NAMES}["']?\\s*[=:]\\s*)("(?:[^"\\\\\\n]|\\\\.)*"|'[^'\\n]*'|\\S[^\\n,}]*)`,
  'gi',
);
const KEY_BLOCK = /-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)/g;
const URL_PASSWORD = /(\b[a-z][a-z0-9+.-]*:\/\/[^\s/:@]*:)[^\s@/]+@/gi;
const SCHEME = /\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+/gi;
/** Base64, base64url, hexadecimal, base32. Words and paths have other characters in between. */
const OPAQUE = /[A-Za-z0-9+_=-]{20,}/g;
const IPV4 = /\b(?:\d{1,3}\.){3}\d{1,3}\b/g;
const IPV6 =
  /(?<![\w:.])(?:[0-9a-f]{1,4}:){2,7}(?::?[0-9a-f]{1,4}){1,7}(?![\w:])|(?<![\w:.])(?:[0-9a-f]{1,4}:){1,7}:(?![\w:])/gi;
const SHORTEST_SECRET = 4;

export interface RedactOptions {
  /** Exact values that must not appear, in whatever form they are written. */
  readonly secrets?: Iterable<string>;
  /** Names of people: each becomes `user-1`, `user-2`, the same wherever it stands. */
  readonly names?: Iterable<string>;
  /** Addresses that stay as they are. Others become `address-1`, and so on. */
  readonly isKept?: (address: string) => boolean;
}

export class Redactor {
  readonly #secrets: readonly string[];
  readonly #names: readonly string[];
  readonly #isKept: (address: string) => boolean;
  readonly #addresses = new Map<string, string>();

  constructor({ secrets = [], names = [], isKept = () => false }: RedactOptions = {}) {
    const forms = [...secrets].filter(({ length }) => length >= SHORTEST_SECRET).flatMap(formsOf);
    this.#secrets = [...new Set(forms)].sort((a, b) => b.length - a.length);
    this.#names = [...new Set(names)].filter((name) => name !== '');
    this.#isKept = isKept;
  }

  text(text: string): string {
    let clean = text.replace(KEY_BLOCK, `${REMOVED} private key`);
    for (const secret of this.#secrets) clean = clean.replaceAll(secret, REMOVED);
    clean = clean
      .replace(ASSIGNMENT, (_, name: string) => `${name}"${REMOVED}"`)
      .replace(URL_PASSWORD, `$1${REMOVED}@`)
      .replace(SCHEME, `$1 ${REMOVED}`)
      .replace(OPAQUE, (word) => (isOpaque(word) ? `${REMOVED}` : word));
    for (const [at, name] of this.#names.entries()) clean = clean.replace(wordOf(name), `user-${at + 1}`);
    const addresses = (address: string): string => this.#address(address);
    return clean.replace(IPV4, addresses).replace(IPV6, addresses);
  }

  #address(address: string): string {
    if (this.#isKept(address)) return address;
    const known = this.#addresses.get(address) ?? `address-${this.#addresses.size + 1}`;
    this.#addresses.set(address, known);
    return known;
  }
}

/** The same bytes as a program may have written them. */
function formsOf(secret: string): string[] {
  const bytes = Buffer.from(secret, 'utf8');
  return [
    secret,
    encodeURIComponent(secret),
    JSON.stringify(secret).slice(1, -1),
    bytes.toString('hex'),
    bytes.toString('base64').replace(/=+$/, ''),
    bytes.toString('base64url'),
  ];
}

/** Letters and digits mixed as nobody writes them: words joined by hyphens and underscores are not. */
function isOpaque(word: string): boolean {
  if (/^[0-9a-f]{20,}$/i.test(word)) return true;
  const parts = word.split(/[-_]/);
  return (
    parts.some((part) => part.length >= 12 && /\d/.test(part) && /[A-Za-z]/.test(part)) ||
    (/[A-Z].*[a-z].*[A-Z]/.test(word) && /\d/.test(word))
  );
}

function wordOf(name: string): RegExp {
  const escaped = name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`(?<![\\w-])${escaped}(?![\\w-])`, 'g');
}
