/**
 * Reads a TOML file into a typed, frozen value.
 *
 * Hides the file format and the schema library's error shapes. Parsing happens once, at the edge of a program; nothing
 * else reads configuration text or the environment. An error names the file, the line or key, what was expected and
 * what came.
 */

import { readFile } from 'node:fs/promises';
import { parse, TomlError } from 'smol-toml';
import type { z } from 'zod';
import { VpnError } from './errors.ts';
import { TomlLocations } from './toml-location.ts';

/**
 * Reads and checks a configuration file.
 *
 * @throws {VpnError} ERR_CONFIG_FILE, ERR_CONFIG_SYNTAX, ERR_CONFIG_KEY, ERR_CONFIG_VALUE
 */
export async function readConfig<T extends z.ZodType>(path: string, schema: T): Promise<Readonly<z.output<T>>> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    const why = errno === 'ENOENT' ? 'there is no such file' : errno === 'EACCES' ? 'permission denied' : String(errno);
    throw new VpnError('ERR_CONFIG_FILE', `cannot read the configuration ${path}: ${why}`, {
      cause,
      details: { path, errno },
    });
  }
  return parseConfig(text, schema, path);
}

/**
 * Checks configuration text; `name` is what messages call it.
 *
 * @throws {VpnError} ERR_CONFIG_SYNTAX, ERR_CONFIG_KEY, ERR_CONFIG_VALUE
 */
export function parseConfig<T extends z.ZodType>(text: string, schema: T, name: string): Readonly<z.output<T>> {
  let value: unknown;
  try {
    value = parse(text);
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause;
    const first = cause.message.split('\n')[0]?.replace(/^Invalid TOML document: /, '') ?? 'not TOML';
    throw new VpnError('ERR_CONFIG_SYNTAX', `${name}:${cause.line}:${cause.column}: ${first}`, {
      cause,
      details: { path: name, line: cause.line, column: cause.column },
    });
  }
  const result = schema.safeParse(value);
  if (result.success) return deepFreeze(result.data);
  throw configError(result.error, text, name);
}

function configError(error: z.ZodError, text: string, name: string): VpnError {
  const issue = error.issues[0];
  if (issue === undefined) return new VpnError('ERR_INVARIANT', 'a schema failed without an issue');
  if (issue.code === 'unrecognized_keys') {
    const key = [...issue.path, issue.keys[0]].join('.');
    const { line } = new TomlLocations(text).of([...issue.path, issue.keys[0] ?? '']);
    return new VpnError('ERR_CONFIG_KEY', `${name}:${line}: unknown key "${key}"; see docs/configuration.md`, {
      details: { path: name, key, line },
    });
  }
  const key = issue.path.join('.');
  const { line } = new TomlLocations(text).of(issue.path);
  return new VpnError('ERR_CONFIG_VALUE', `${name}:${line}: ${key}: ${issue.message}`, {
    details: { path: name, key, line },
  });
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !ArrayBuffer.isView(value)) {
    for (const inner of Object.values(value)) deepFreeze(inner);
    Object.freeze(value);
  }
  return value;
}
