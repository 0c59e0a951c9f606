/** What may be said to a gateway: every field of every operation has a limit, and one step past it is refused for that field. */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import { gatewayOperations } from './operations.ts';

interface Shape {
  readonly type?: string;
  readonly anyOf?: readonly Shape[];
  readonly properties?: Readonly<Record<string, Shape>>;
  readonly additionalProperties?: unknown;
  readonly items?: Shape;
  readonly enum?: readonly unknown[];
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly format?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly maxItems?: number;
}

/** A field of an input, by the way there; `0` stands for an item of a list. */
interface Field {
  readonly operation: string;
  readonly path: readonly string[];
  readonly shape: Shape;
}

function fieldsOf(operation: string, shape: Shape, path: readonly string[] = []): Field[] {
  const below = [
    ...(shape.anyOf ?? []).flatMap((one) => fieldsOf(operation, one, path)),
    ...Object.entries(shape.properties ?? {}).flatMap(([name, one]) => fieldsOf(operation, one, [...path, name])),
    ...(shape.items === undefined ? [] : fieldsOf(operation, shape.items, [...path, '0'])),
  ];
  return shape.type === undefined ? below : [{ operation, path, shape }, ...below];
}

const inputs = Object.entries(gatewayOperations).map(([name, { input }]) => [name, input] as const);
const fields = inputs.flatMap(([name, input]) => fieldsOf(name, z.toJSONSchema(input, { io: 'input' }) as Shape));

/** An input that has only this value, where the field is. */
function holding(path: readonly string[], value: unknown): unknown {
  const [first, ...rest] = path;
  if (first === undefined) return value;
  return first === '0' ? [holding(rest, value)] : { [first]: holding(rest, value) };
}

/** Whether the operation objects to the value of this field, whatever else it misses. */
function isRefused({ operation, path }: Field, value: unknown): boolean {
  const { input } = gatewayOperations[operation as keyof typeof gatewayOperations];
  const { error } = input.safeParse(holding(path, value));
  const at = path.join();
  // What one of several forms has against it is said at the place that has several.
  return error?.issues.some((issue) => issue.path.join() === at && issue.code !== 'unrecognized_keys') ?? false;
}

const nameOf = ({ operation, path }: Field): string => `${operation} ${path.join('.')}`;

describe('every field of an operation', () => {
  test('has a limit', () => {
    assert.ok(fields.length > 100, `${fields.length} fields were found`);
    const unlimited = fields.filter(({ shape }) => {
      if (shape.type === 'string') return shape.maxLength === undefined && shape.enum === undefined;
      if (shape.type === 'array') return shape.maxItems === undefined;
      if (shape.type === 'number' || shape.type === 'integer') return shape.maximum === undefined;
      return shape.type === 'object' && shape.additionalProperties !== false;
    });
    assert.deepEqual(unlimited.map(nameOf), []);
  });

  test('takes a text of its length, and no longer or shorter one', () => {
    for (const field of fields) {
      const { type, maxLength, minLength = 0, pattern, format, enum: choices } = field.shape;
      if (type !== 'string' || choices !== undefined || maxLength === undefined) continue;
      assert.ok(isRefused(field, 'x'.repeat(maxLength + 1)), `${nameOf(field)} takes more than ${maxLength}`);
      if (minLength > 0) assert.ok(isRefused(field, 'x'.repeat(minLength - 1)), `${nameOf(field)} takes too little`);
      if (pattern !== undefined || format !== undefined) continue;
      assert.ok(!isRefused(field, 'x'.repeat(maxLength)), `${nameOf(field)} does not take ${maxLength}`);
    }
  });

  test('takes a number within its limits, and none that is no whole one', () => {
    for (const field of fields) {
      const { type, minimum, maximum } = field.shape;
      if (type !== 'integer' || minimum === undefined || maximum === undefined) continue;
      for (const value of [minimum - 1, maximum + 1, minimum + 0.5, Number.NaN, Number.POSITIVE_INFINITY, '7']) {
        assert.ok(isRefused(field, value), `${nameOf(field)} takes ${value}`);
      }
      for (const value of [minimum, maximum]) assert.ok(!isRefused(field, value), `${nameOf(field)}: ${value}`);
    }
  });

  test('takes no list that is too long, and no value of another kind', () => {
    for (const field of fields) {
      if (field.path.length === 0) continue;
      const { type, maxItems = 0 } = field.shape;
      if (type === 'array') assert.ok(isRefused(field, new Array(maxItems + 1).fill('x')), nameOf(field));
      const other = type === 'object' ? 'x' : {};
      assert.ok(isRefused(field, other), `${nameOf(field)} takes ${JSON.stringify(other)}`);
    }
  });

  test('is one that is known: others are refused, also those that every object has', () => {
    for (const [name, input] of inputs) {
      for (const text of ['{"unknown":1}', '{"constructor":1}', '{"__proto__":{"name":"x"}}']) {
        assert.ok(!input.safeParse(JSON.parse(text)).success, `${name} takes ${text}`);
      }
      for (const value of [[], 'x', 1, null]) assert.ok(!input.safeParse(value).success, name);
    }
  });
});
