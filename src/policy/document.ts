/**
 * The policy file: its keys, and where in the text each of them stands.
 *
 * Hides the file format. What the values mean together is not judged here.
 */

import { parse, TomlError } from 'smol-toml';
import { z } from 'zod';
import { type TextLocation, TomlLocations } from '../base/toml-location.ts';
import { CLASS_NAMES } from '../ip/traffic-class.ts';
import { DAYS, isZone } from './hours.ts';

/** Something to say about a policy file; an error keeps it from being used. */
export interface Problem extends TextLocation {
  readonly severity: 'error' | 'warning';
  readonly message: string;
}

const MAX_RULES = 20_000;
const MAX_SETTINGS = 1_000;
const MAX_ENTRIES = 10_000;
const MAX_SITES = 1_000;
/** Networks of one site, or behind one client; what a peer takes in a message is as many. */
export const MAX_NETWORKS = 64;
const MAX_OPEN_TO = 64;
const MAX_ADDRESSES = 64;
const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/;
const GROUP = /^[\p{L}\p{N}][\p{L}\p{M}\p{N}._@+-]{0,63}$/u;
const RESERVED = ['any', 'clients', 'tcp', 'udp', 'ip', 'icmp'];

const word = z.string().min(1).max(255);
// No dot: a host name is never taken for the name of a network.
const name = z
  .string()
  .regex(NAME, 'expected letters, digits, "_" and "-", at most 63')
  .refine((text) => !RESERVED.includes(text), `expected another name than ${RESERVED.join(', ')}`);
const group = z.string().regex(GROUP, 'expected the name of a group');
const clock = z.string().regex(/^([01]\d|2[0-3]):[0-5]\d$|^24:00$/, 'expected a time of day such as 08:30');
const list = (what: string) => z.array(word).min(1).max(MAX_ENTRIES).describe(what);

const hours = z
  .strictObject({
    days: z.array(z.enum(DAYS)).min(1).optional().describe('days of the week; default: all'),
    from: clock.optional().describe('start, such as 08:00'),
    to: clock.optional().describe('end, such as 18:00; before the start: on the next day'),
    zone: z
      .string()
      .refine(isZone, 'expected a time zone such as Europe/Berlin')
      .optional()
      .describe('time zone; default: UTC'),
  })
  .refine(({ from, to }) => (from === undefined) === (to === undefined), 'expected both from and to, or neither')
  .refine(({ from, to }) => from === undefined || from !== to, 'from and to are the same time');

const requirement = z.strictObject({
  certificate: z.literal(true).optional().describe('a client certificate was shown'),
  mfaMinutes: z
    .int()
    .min(1)
    .max(525_600)
    .optional()
    .describe('a second factor was proven not more than so many minutes ago'),
});

const rule = z.strictObject({
  name: z.string().min(1).max(100).optional().describe('what people call it'),
  action: z.enum(['allow', 'deny']),
  from: list('any, user:NAME, group:NAME'),
  to: list('any, clients, a named network, a prefix, an address, a host name, site:NAME, user:NAME, group:NAME'),
  services: list('any, a named service, tcp/443, udp/5000-5010, icmp, icmp/echo, ip/47').default(['any']),
  when: hours.optional().describe('when the rule is in force; default: always'),
  require: requirement.optional().describe('what the session must have; else the rule is passed over'),
});

const seconds = z.int().min(60).max(31_536_000);
const mbit = z.number().min(0.064).max(100_000);
const burst = z.int().min(8).max(65_536);
const gib = z.number().min(0.000_001).max(1_000_000);
const settings = z.strictObject({
  for: list('any, user:NAME, group:NAME'),
  routes: z.array(word).max(1000).optional().describe("prefixes that are pushed, in place of the gateway's routes"),
  mode: z
    .enum(['full', 'split'])
    .optional()
    .describe('full: all traffic is asked for; split: what routes says. Default: as the routes are'),
  dns: z
    .array(z.union([z.ipv4(), z.ipv6()], 'expected an IPv4 or IPv6 address'))
    .max(8)
    .optional(),
  dnsDomains: z
    .array(
      z
        .string()
        .max(253)
        .regex(/^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/, 'expected a domain name in lower case'),
    )
    .max(64)
    .optional(),
  absoluteSeconds: seconds.optional().describe('a session ends after this, however busy'),
  idleSeconds: seconds.optional().describe('a session ends when no packet came for this long'),
  downMbit: mbit.optional().describe('what all sessions of a user get together, to the client'),
  upMbit: mbit.optional().describe('the same from the client'),
  burstKiB: burst.optional().describe('what may come at once; default: 20 ms at the rate'),
  quotaDayGiB: gib.optional().describe('what a user may carry in a day (UTC), both directions together'),
  quotaMonthGiB: gib.optional().describe('the same in a month'),
  overQuota: z.enum(['slow', 'refuse']).optional().describe('what happens to a user who has; default: slow'),
  slowMbit: mbit.optional().describe('rate of a user who has, each way; default: 1'),
  compression: z.boolean().optional().describe('a client that asks for it may compress; default: no'),
});

const groupLimit = z.strictObject({
  downMbit: mbit.optional().describe('what all members get together, to them'),
  upMbit: mbit.optional().describe('the same from them'),
  burstKiB: burst.optional(),
});

const trafficClass = z.strictObject({
  class: z.enum(CLASS_NAMES),
  services: list('tcp/443, udp/5000-5010, a named service: of TCP and UDP only'),
});

const cidr = z.union([z.cidrv4(), z.cidrv6()], 'expected a network such as 10.20.0.0/16 or fd00:20::/48');
const site = z.strictObject({
  name: name.describe('rules reach it as site:NAME'),
  for: list('whose client it is behind: user:NAME, group:NAME, device:ID'),
  networks: z
    .array(
      z.union(
        [
          cidr,
          z.strictObject({
            network: cidr.describe('as it is at the site'),
            as: cidr.describe('as everybody else sees it, of the same length'),
          }),
        ],
        'expected a network, or { network = "192.168.1.0/24", as = "10.201.1.0/24" }',
      ),
    )
    .min(1)
    .max(MAX_NETWORKS),
  openTo: z
    .array(cidr)
    .max(MAX_OPEN_TO)
    .default([])
    .describe("networks on the gateway's side from where connections to the site may be begun"),
});

const staticAddresses = z.strictObject({
  for: list('user:NAME, group:NAME, device:ID'),
  addresses: z
    .array(word)
    .min(1)
    .max(MAX_ADDRESSES)
    .describe('addresses and prefixes of the pool that nobody else gets; the other family has the same host part'),
});

export const policySchema = z.strictObject({
  version: z.literal(1),
  groups: z.record(group, list('NAME, group:NAME')).default({}).describe('members beside those that accounts have'),
  networks: z.record(name, list('prefixes, addresses, host names, other networks')).default({}),
  services: z.record(name, list('tcp/443, udp/5000-5010, icmp, icmp/echo, ip/47, other services')).default({}),
  rules: z.array(rule).max(MAX_RULES).default([]).describe('the first that matches counts; none: denied'),
  settings: z
    .array(settings)
    .max(MAX_SETTINGS)
    .default([])
    .describe('what sessions get beside access; for each key the first entry that has it counts'),
  sites: z.array(site).max(MAX_SITES).default([]).describe('networks behind clients'),
  addresses: z
    .array(staticAddresses)
    .max(MAX_SETTINGS)
    .default([])
    .describe('addresses that are always the same; for each session the first entry that speaks of it counts'),
  groupLimits: z.record(group, groupLimit).default({}).describe('rates that the members of a group share'),
  classes: z
    .array(trafficClass)
    .max(MAX_SETTINGS)
    .default([])
    .describe('which traffic is interactive, normal or bulk, before what its DSCP says; the first that matches counts'),
  tests: z
    .strictObject({
      expect: z
        .array(z.string().min(1).max(500))
        .max(MAX_ENTRIES)
        .describe('alice can reach 10.1.2.3:443/tcp; group:contractors cannot reach 10.1.2.3'),
    })
    .default({ expect: [] }),
});

export type PolicyDocument = z.output<typeof policySchema>;
export type RuleDocument = PolicyDocument['rules'][number];
export type SiteDocument = PolicyDocument['sites'][number];
export type AddressesDocument = PolicyDocument['addresses'][number];
export type SettingsDocument = PolicyDocument['settings'][number];

export interface ReadDocument {
  /** Undefined when there is an error. */
  readonly document: PolicyDocument | undefined;
  readonly problems: readonly Problem[];
  /** Where the value at a path stands. Slow the first time. */
  readonly locate: (path: readonly PropertyKey[]) => TextLocation;
  /** The line of an entry of a list of tables, or of a test. */
  readonly lineOf: (list: 'rules' | 'settings' | 'tests', index: number) => number;
}

/** Reads the text of a policy file. Never throws for what is in it. */
export function readDocument(text: string): ReadDocument {
  let locations: TomlLocations | undefined;
  const locate = (path: readonly PropertyKey[]): TextLocation => {
    locations ??= new TomlLocations(text);
    return locations.of(path);
  };
  const quick = new QuickLines(text);
  const lineOf: ReadDocument['lineOf'] = (list, index) =>
    quick.of(list, index) ?? locate(list === 'tests' ? [list, 'expect', index] : [list, index]).line;
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const message = error.message.split('\n')[0]?.replace(/^Invalid TOML document: /, '') ?? 'not TOML';
    const { line, column } = error;
    return { document: undefined, problems: [{ severity: 'error', line, column, message }], locate, lineOf };
  }
  const { data, error } = policySchema.safeParse(value);
  if (error === undefined) {
    quick.expect(data);
    return { document: data, problems: [], locate, lineOf };
  }
  const problems = error.issues.flatMap((issue): Problem[] => {
    if (issue.code !== 'unrecognized_keys') {
      return [{ severity: 'error', ...locate(issue.path), message: messageOf(issue) }];
    }
    return issue.keys.map((key) => ({
      severity: 'error',
      ...locate([...issue.path, key]),
      message: `unknown key ${JSON.stringify(key)}`,
    }));
  });
  return { document: undefined, problems, locate, lineOf };
}

/** Lines of what is written as nearly everybody writes it, without a syntax tree: that of thousands of rules takes long. */
class QuickLines {
  readonly #text: string;
  #lines: Partial<Record<'rules' | 'settings' | 'tests', readonly number[]>> = {};

  constructor(text: string) {
    this.#text = text;
  }

  /** Looks for what the text is known to hold. What is not found as often as it should be is not known. */
  expect({ rules, settings, tests }: PolicyDocument): void {
    // In a string of several lines anything may stand.
    if (/"""|'''/.test(this.#text)) return;
    const heads: Record<string, number[]> = { rules: [], settings: [] };
    const literals = tests.expect.map((test) => JSON.stringify(test));
    const found: number[] = [];
    for (const [at, line] of this.#text.split('\n').entries()) {
      const [, head = ''] = /^[ \t]*\[\[[ \t]*(rules|settings)[ \t]*\]\]/.exec(line) ?? [];
      heads[head]?.push(at + 1);
      for (
        let next = literals[found.length];
        next !== undefined && line.includes(next);
        next = literals[found.length]
      ) {
        found.push(at + 1);
        if (literals[found.length] === next) break;
      }
    }
    const [ruleLines = [], settingLines = []] = [heads.rules, heads.settings];
    this.#lines = {
      ...(ruleLines.length === rules.length ? { rules: ruleLines } : {}),
      ...(settingLines.length === settings.length ? { settings: settingLines } : {}),
      ...(found.length === literals.length ? { tests: found } : {}),
    };
  }

  of(list: 'rules' | 'settings' | 'tests', index: number): number | undefined {
    return this.#lines[list]?.[index];
  }
}

/** The schema of a policy file for editors, as JSON Schema. */
export function policyJsonSchema(): object {
  return { ...z.toJSONSchema(policySchema, { io: 'input' }), title: 'CustomVPN policy' };
}

function messageOf(issue: z.core.$ZodIssue): string {
  const { path, message } = issue;
  const why = issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? message) : message;
  const key = path.findLast((part) => typeof part === 'string');
  return key === undefined ? why : `${String(key)}: ${why}`;
}
