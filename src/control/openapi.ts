/**
 * The description of a gateway's control API in OpenAPI 3.1, made from the one list of operations.
 *
 * Hides how a contract becomes JSON Schema (of the same draft as OpenAPI 3.1's). It must not know who serves it.
 */

import { z } from 'zod';
import { GATEWAY_ACCESS } from './access.ts';
import { gatewayOperations, type Operation } from './operations.ts';

/** Where operations are, before their names. */
export const API_PREFIX = '/api/v1/';

type Json = Readonly<Record<string, unknown>>;

const problem = {
  type: 'object',
  required: ['code', 'message'],
  properties: {
    code: { type: 'string', description: 'a stable name, see docs/errors.md' },
    message: { type: 'string', description: 'what was expected, what came, what to do' },
  },
};

const REFUSALS: Readonly<Record<string, string>> = {
  400: 'The input is not valid, or the operation has failed',
  401: 'Nobody is logged in',
  403: "Not with this role, or not from the gateway's own page",
  404: 'There is no such thing',
  409: 'It conflicts with what is there',
  412: 'It has changed since it was read (If-Match)',
  429: 'Too many requests',
};

/** The whole document. */
export function openApiDocument(version: string): Json {
  const table: Readonly<Record<string, Operation>> = gatewayOperations;
  const paths = Object.entries(GATEWAY_ACCESS).map(([name, access]) => {
    const operation = table[name];
    if (operation === undefined) return [];
    const { reads, role, summary, user, isOfPolicy } = access;
    const hasTag = name === 'user.show' || name === 'policy.text';
    const input = schemaOf(operation.input, 'input');
    const common = {
      tags: [name.split('.')[0]],
      summary,
      description: `Needs the role ${role}.`,
      'x-role': role,
      responses: {
        200: {
          description: 'Done',
          ...(hasTag ? { headers: { ETag: { schema: { type: 'string' } } } } : {}),
          content: { 'application/json': { schema: schemaOf(operation.output, 'output') } },
        },
        ...Object.fromEntries(
          Object.entries(REFUSALS).map(([status, description]) => [
            status,
            { description, content: { 'application/json': { schema: { $ref: '#/components/schemas/Problem' } } } },
          ]),
        ),
      },
    };
    const conditional = { name: 'If-Match', in: 'header', required: false, schema: { type: 'string' } };
    const post = {
      ...common,
      operationId: name,
      ...(!reads && (isOfPolicy === true || (user !== undefined && name !== 'user.add'))
        ? { parameters: [conditional] }
        : {}),
      requestBody: { required: true, content: { 'application/json': { schema: input } } },
    };
    const get = { ...common, operationId: `${name}.get`, parameters: parametersOf(input) };
    return [[`${API_PREFIX}${name}`, reads ? { get, post } : { post }]];
  });
  return {
    openapi: '3.1.0',
    jsonSchemaDialect: 'https://json-schema.org/draft/2020-12/schema',
    info: {
      title: 'CustomVPN control API',
      version,
      description: 'Every operation of a gateway. The command line and the admin page use nothing else.',
    },
    security: [{ session: [] }, { token: [] }],
    paths: Object.fromEntries(paths.flat()),
    components: {
      schemas: { Problem: problem },
      securitySchemes: {
        session: { type: 'apiKey', in: 'cookie', name: '__Host-customvpn' },
        token: { type: 'http', scheme: 'bearer', description: 'an access token of the scope api' },
      },
    },
  };
}

function schemaOf(type: z.ZodType, io: 'input' | 'output'): Json {
  const { $schema: _, ...schema } = z.toJSONSchema(type, { io });
  return schema;
}

/** The fields of an input as what stands after the question mark. */
function parametersOf({ properties = {}, required = [] }: Json): Json[] {
  const needed = required as readonly string[];
  return Object.entries(properties as Json).map(([name, schema]) => ({
    name,
    in: 'query',
    required: needed.includes(name),
    schema,
  }));
}
