/**
 * Questions for addresses, and their answers, as DNS messages.
 *
 * Hides the bytes of RFC 1035: names, compression, records. A message from the network is hostile: every read is bounded,
 * pointers only lead backwards, and an answer counts only when it is to the question that was asked. Pure.
 */

import { formatIp } from '../ip/address.ts';

export const RecordType = { a: 1, aaaa: 28 } as const;
export type RecordType = (typeof RecordType)[keyof typeof RecordType];

export interface Question {
  /** 16 bits; an answer carries the same. */
  readonly id: number;
  readonly name: string;
  readonly type: RecordType;
}

/** What a server answered: `none` when the name has no such address, `failed` when another server may know more. */
export type Answer =
  | { readonly kind: 'addresses'; readonly addresses: readonly string[]; readonly ttlSeconds: number }
  | { readonly kind: 'none' | 'failed' | 'truncated' };

const HEADER_BYTES = 12;
const CLASS_IN = 1;
const CNAME = 5;
const MAX_NAME_CHARACTERS = 253;
const MAX_LABEL_BYTES = 63;
const MAX_LABELS = 128;
/** Of a chain of aliases. */
const MAX_ALIASES = 16;
const Rcode = { ok: 0, noSuchName: 3 } as const;

/** Whether a text can be asked for: letters, digits, hyphens and underscores in labels. */
export function isHostName(name: string): boolean {
  const labels = name.replace(/\.$/, '').split('.');
  const isLabel = (label: string): boolean => /^[A-Za-z0-9_-]+$/.test(label) && label.length <= MAX_LABEL_BYTES;
  return name.length <= MAX_NAME_CHARACTERS && labels.every(isLabel);
}

/** A query for one type of address, recursion desired. `name` is one of `isHostName`. */
export function encodeQuery({ id, name, type }: Question): Uint8Array {
  const labels = name.replace(/\.$/, '').split('.');
  const bytes = new Uint8Array(HEADER_BYTES + labels.reduce((sum, label) => sum + label.length + 1, 0) + 5);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, id);
  view.setUint16(2, 0x0100);
  view.setUint16(4, 1);
  let at = HEADER_BYTES;
  for (const label of labels) {
    bytes[at++] = label.length;
    for (const character of label) bytes[at++] = character.charCodeAt(0);
  }
  view.setUint16(at + 1, type);
  view.setUint16(at + 3, CLASS_IN);
  return bytes;
}

/** Reads an answer to a question; undefined when it is none, or to another one, or broken. */
export function parseAnswer(message: Uint8Array, question: Question): Answer | undefined {
  try {
    return read(message, question);
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/** @throws {RangeError} when the message ends within what it announces */
function read(message: Uint8Array, { id, name, type }: Question): Answer | undefined {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const flags = view.getUint16(2);
  const isResponse = (flags & 0x8000) !== 0 && (flags & 0x7800) === 0;
  if (view.getUint16(0) !== id || !isResponse || view.getUint16(4) !== 1) return undefined;
  const asked = readName(message, HEADER_BYTES);
  if (asked.name !== canonical(name) || view.getUint16(asked.end) !== type) return undefined;
  if ((flags & 0x0200) !== 0) return { kind: 'truncated' };
  const rcode = flags & 0xf;
  if (rcode === Rcode.noSuchName) return { kind: 'none' };
  if (rcode !== Rcode.ok) return { kind: 'failed' };
  return follow(canonical(name), type, readRecords(message, view, asked.end + 4));
}

interface ResourceRecord {
  readonly name: string;
  readonly type: number;
  readonly ttlSeconds: number;
  /** An address, or the name that an alias is for. */
  readonly value: string;
}

function readRecords(message: Uint8Array, view: DataView, start: number): ResourceRecord[] {
  const records: ResourceRecord[] = [];
  let at = start;
  for (let left = view.getUint16(6); left > 0; left--) {
    const { name, end } = readName(message, at);
    const type = view.getUint16(end);
    const ttlSeconds = view.getUint32(end + 4);
    const length = view.getUint16(end + 8);
    const data = end + 10;
    if (data + length > message.length) throw new RangeError();
    const isIn = view.getUint16(end + 2) === CLASS_IN;
    if (isIn && type === CNAME) records.push({ name, type, ttlSeconds, value: readName(message, data).name });
    else if (isIn && type === RecordType.a && length === 4) {
      records.push({ name, type, ttlSeconds, value: formatIp({ version: 4, bytes: message.slice(data, data + 4) }) });
    } else if (isIn && type === RecordType.aaaa && length === 16) {
      records.push({ name, type, ttlSeconds, value: formatIp({ version: 6, bytes: message.slice(data, data + 16) }) });
    }
    at = data + length;
  }
  return records;
}

function follow(name: string, type: RecordType, records: readonly ResourceRecord[]): Answer {
  let current = name;
  let ttlSeconds = Number.POSITIVE_INFINITY;
  for (let steps = 0; steps < MAX_ALIASES; steps++) {
    const found = records.filter((record) => record.name === current && record.type === type);
    if (found.length > 0) {
      const least = Math.min(ttlSeconds, ...found.map((record) => record.ttlSeconds));
      return { kind: 'addresses', addresses: found.map(({ value }) => value), ttlSeconds: least };
    }
    const alias = records.find((record) => record.name === current && record.type === CNAME);
    if (alias === undefined) return { kind: 'none' };
    ttlSeconds = Math.min(ttlSeconds, alias.ttlSeconds);
    current = alias.value;
  }
  return { kind: 'failed' };
}

/** The name at an offset, in lower case, and where what follows it begins. @throws {RangeError} */
function readName(message: Uint8Array, start: number): { name: string; end: number } {
  const labels: string[] = [];
  let at = start;
  let end = -1;
  for (let count = 0; count < MAX_LABELS; count++) {
    const length = byteAt(message, at);
    if (length === 0) return { name: labels.join('.').toLowerCase(), end: end < 0 ? at + 1 : end };
    if (length >= 0xc0) {
      if (end < 0) end = at + 2;
      const target = ((length & 0x3f) << 8) | byteAt(message, at + 1);
      if (target >= at) throw new RangeError();
      at = target;
      continue;
    }
    if (length > MAX_LABEL_BYTES || at + 1 + length > message.length) throw new RangeError();
    labels.push(String.fromCharCode(...message.subarray(at + 1, at + 1 + length)));
    at += 1 + length;
  }
  throw new RangeError();
}

function byteAt(message: Uint8Array, at: number): number {
  const byte = message[at];
  if (byte === undefined) throw new RangeError();
  return byte;
}

function canonical(name: string): string {
  return name.replace(/\.$/, '').toLowerCase();
}
