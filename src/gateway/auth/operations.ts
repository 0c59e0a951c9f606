/**
 * The control API of a running gateway.
 *
 * Hides that what an operator sees as one gateway is several workers: it asks each, and adds up.
 */

import type { z } from 'zod';
import { VpnError } from '../../base/errors.ts';
import type { DrainInfo, GatewayApi, GatewayStatus, gatewayOperations } from '../../control/operations.ts';
import { pageOf } from '../../control/page.ts';
import { formatPrefix, parsePrefix } from '../../ip/address.ts';
import type { Tracer } from '../../telemetry/tracing.ts';
import { auditInfo } from '../administration.ts';
import type { GatewayConfig } from '../config.ts';
import type { HostReport, WorkerReport } from '../ipc/ports.ts';
import type { DrainProgress } from './draining.ts';
import type { AuthService } from './service.ts';

/** What stays as it is while a gateway runs. */
export interface GatewayFacts {
  /** Reported by `server.status`. */
  readonly version: string;
  readonly pid: number;
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  /** Address and port that clients connect to. */
  readonly listen: string;
  readonly congestion: string;
  readonly devices: readonly GatewayStatus['devices'][number][];
}

/** What only whoever runs the gateway can do. */
export interface GatewayControl {
  /** The configuration as it is written now. @throws {VpnError} ERR_CONFIG_FILE, ERR_CONFIG_VALUE, … */
  readConfig(): Promise<GatewayConfig>;
  /** Begins to stop; the answer to whoever asked is still to be sent. */
  stop(): void;
  /** The gateway is drained, and stops in so many seconds; told where that has to outlive auth. */
  drained?(seconds: number): void;
  report(): Promise<HostReport>;
  /** Puts other processes in the place of the workers, one after the other; returns how many. */
  replaceWorkers(): Promise<number>;
  /** Undefined: there is no admin page, or not yet. */
  admin?(): AdminDesk | undefined;
}

/** Those who work with the admin page. */
export interface AdminDesk {
  /** Makes a link that makes an administrator, once. */
  link(): Promise<{ url: string; expiresAt: string }>;
  /** Who is logged in, the newest first. */
  sessions(): z.output<(typeof gatewayOperations)['admin.sessions']['output']>;
}

const NO_PAGE =
  'this gateway has no admin page; add a line such as admin.listen = "127.0.0.1:8443" to its configuration, and start it again';

/** Implements the operations. */
export function gatewayApi(service: AuthService, facts: GatewayFacts, control: GatewayControl): GatewayApi {
  const admin = (): AdminDesk => {
    const desk = control.admin?.();
    if (desk !== undefined) return desk;
    throw new VpnError('ERR_NOT_RUNNING', NO_PAGE);
  };
  return traced(service.tracer, {
    ...service.administration,
    'server.status': () => statusOf(service, facts, control),
    'server.reload': async ({ via }) => await service.reload(await control.readConfig(), via),
    'policy.show': async ({ user }) => service.policy.show(user),
    'policy.text': async () => service.policyChanges.text(),
    'policy.apply': ({ text, note }) => service.policyChanges.apply(text, note),
    'policy.rollback': ({ version, note }) => service.policyChanges.rollBack(version, note),
    'policy.history': ({ limit = 50 }) => service.policyChanges.history(limit),
    'policy.version': ({ version }) => service.policyChanges.version(version),
    'policy.check': async ({ text }) => await service.policy.check(text),
    'policy.denied': async ({ after, user, limit = 100 }) =>
      service.policy.denials.list({ ...(after === undefined ? {} : { after }), user: user?.normalize('NFC'), limit }),
    'server.stop': async () => {
      const reports = await reportsOf(service);
      setImmediate(() => control.stop());
      return { sessions: reports.reduce((sum, { report }) => sum + (report?.sessions ?? 0), 0) };
    },
    'server.drain': async ({ seconds = 300 }) => {
      const progress = service.drain(seconds, () => control.stop());
      control.drained?.(seconds);
      return drainInfo(progress);
    },
    'server.replaceWorkers': async () => ({ replaced: await control.replaceWorkers() }),
    'server.history': async () => service.history.report(),
    'admin.link': () => admin().link(),
    'admin.sessions': async () => admin().sessions(),
    'session.list': async (page) =>
      pageOf(
        await service.listSessions(),
        page,
        ({ id }) => id,
        ({ id, user, device, addresses, peer }) => [id, user, device, peer, ...addresses],
      ),
    ...webhookOperations(service),
    'session.kick': async ({ id }) => ({ kicked: kick(service, id) }),
  });
}

/** The operations, each as a span of its own; what is asked is not in it. */
function traced(tracer: Tracer, api: GatewayApi): GatewayApi {
  const operations = Object.entries(api).map(([operation, call]) => [
    operation,
    (input: never): Promise<unknown> =>
      tracer.span<unknown>(`control ${operation}`, { 'customvpn.operation': operation }, () => call(input)),
  ]);
  return Object.fromEntries(operations) as GatewayApi;
}

function webhookOperations({
  webhooks,
}: AuthService): Pick<GatewayApi, Extract<keyof GatewayApi, `webhook.${string}`>> {
  const instant = (at: number | undefined) => (at === undefined ? null : new Date(at).toISOString());
  return {
    'webhook.list': async () =>
      (await webhooks.list()).map(({ died: _, ...state }) => ({
        ...state,
        events: [...state.events],
        lastDeliveredAt: instant(state.lastDeliveredAt),
        nextTryAt: instant(state.nextTryAt),
        lastError: state.lastError ?? null,
      })),
    'webhook.test': async ({ name }) => {
      const { status, ms, error } = await webhooks.test(name);
      return { status: status ?? null, ms, error: error ?? null };
    },
    'webhook.dead': async ({ name, limit = 100 }) =>
      (await webhooks.dead(name, limit)).map(({ letter: { webhook, at, tries, why, record: id }, record }) => ({
        ...{ webhook, at: new Date(at).toISOString(), tries, why, id },
        record: record === undefined ? null : auditInfo(record),
      })),
    'webhook.retry': async ({ name, id }) => ({ queued: await webhooks.retry(name, id) }),
  };
}

/**
 * Ends the session whose id starts with `id`, hexadecimal.
 *
 * @throws {VpnError} ERR_NOT_FOUND; ERR_BAD_REQUEST when several sessions match
 */
export function kick(service: AuthService, id: string): number {
  const matching = service.kick(id.toLowerCase());
  if (matching === 0)
    throw new VpnError('ERR_NOT_FOUND', `no session starts with ${id}; see: customvpn server sessions`);
  if (matching > 1) throw new VpnError('ERR_BAD_REQUEST', `${matching} sessions start with ${id}; give more digits`);
  return 1;
}

/** What each worker says of itself; undefined: it does not answer, of which nothing else may depend. */
export async function reportsOf(service: AuthService): Promise<{ worker: number; report: WorkerReport | undefined }[]> {
  return await Promise.all(
    [...service.workers].map(async ([worker, port]) => ({
      worker,
      report: await port.report().catch(() => undefined),
    })),
  );
}

async function statusOf(service: AuthService, facts: GatewayFacts, control: GatewayControl): Promise<GatewayStatus> {
  const [host, reports] = await Promise.all([control.report(), reportsOf(service)]);
  const workers = reports.flatMap(({ report }) => report ?? []);
  const silent = reports.flatMap(({ worker, report }) => (report === undefined ? [worker] : []));
  const { config, pool, administration, drainProgress: drain } = service;
  const { version, pid, since, listen, congestion, devices } = facts;
  return {
    version,
    pid,
    since: new Date(since).toISOString(),
    listen: [listen],
    names: [...config.names],
    devices: [...devices],
    congestionControl: congestion,
    sessions: workers.reduce((sum, { sessions }) => sum + sessions, 0),
    waiting: workers.reduce((sum, { waiting }) => sum + waiting, 0),
    drain: drain === undefined ? null : drainInfo(drain),
    pool: config.pool.map((prefix) => ({
      prefix: formatPrefix(parsePrefix(prefix)),
      used: pool.leased,
      size: String(pool.size),
    })),
    certificates: service.hasPki ? await administration['pki.show']({}) : [],
    counters: { ...total(workers.map(({ counters }) => counters)), ...host.counters },
    drops: total(workers.map(({ drops }) => drops)),
    warnings: [
      ...silent.map((worker) => `worker ${worker} does not answer: its sessions and counts are missing here`),
      ...host.warnings,
      ...(await service.warnings({ ends: true })),
    ],
  };
}

function drainInfo({ since, until, sessions, left, asked }: DrainProgress): DrainInfo {
  return { since: new Date(since).toISOString(), until: new Date(until).toISOString(), sessions, left, asked };
}

/** The sums, by name. */
function total(parts: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const part of parts) for (const [name, value] of Object.entries(part)) sums[name] = (sums[name] ?? 0) + value;
  return sums;
}
