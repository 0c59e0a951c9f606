/**
 * Finds out, step by step, why a gateway cannot be reached, or that it can.
 *
 * Hides the order of the steps and what each failure means: the resolvers, the names, the proxy, TCP to every address, TLS and who
 * signed what was seen, the greeting, the way's packet size, the clock, and with a profile the login. Each step is a finding with
 * what to do; a step that cannot be done because of an earlier one is left out.
 */

import { Resolver } from 'node:dns/promises';
import { request } from 'node:http';
import { isIP, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import { type Secret, silentLogger } from '../base/log.ts';
import { pathMtu, socketFd } from '../os/socket.ts';
import { type DialOptions, lookupAll, openTcp } from '../transport/dial.ts';
import { type ChooseProxy, connectThrough, type OutboundProxy } from '../transport/outbound-proxy.ts';
import { nameObstacle } from './obstacles.ts';
import { type ProbeFacts, probe } from './probe.ts';

const STEP_TIMEOUT_MS = 4000;
/** A login code lives 30 s, certificates are made a minute in advance. */
const CLOCK_TOLERANCE_MS = 20_000;
/** IPv6 asks for so much, and a TLS record that does not fit costs an answer a round trip. */
const MIN_PATH_MTU = 1280;

export interface Finding {
  readonly step: 'dns' | 'name' | 'proxy' | 'tcp' | 'tls' | 'hello' | 'mtu' | 'clock' | 'login';
  readonly ok: boolean;
  readonly found: string;
  /** What to do about it. */
  readonly mend?: string;
}

export interface ExamineTarget {
  readonly hosts: readonly string[];
  readonly port: number;
  readonly serverName: string;
  readonly ca?: string;
  readonly pins?: readonly string[];
  readonly camouflage?: Secret<string>;
  readonly proxy: ChooseProxy;
  readonly mark?: number;
  /** This machine's time, milliseconds since the Unix epoch; default `Date.now`. */
  readonly now?: () => number;
  /** Logs in and out again; tells how that went. Left out: nothing is known that could log in. */
  readonly login?: () => Promise<Omit<Finding, 'step'>>;
}

export interface Examination {
  readonly findings: readonly Finding[];
  /** What the gateway shows to anyone, when it was reached. */
  readonly facts: ProbeFacts | undefined;
  /** The first failure, by its best name. */
  readonly error: VpnError | undefined;
}

/** Never throws for what it finds. */
export async function examine(target: ExamineTarget): Promise<Examination> {
  const findings: Finding[] = [];
  let error: VpnError | undefined;
  const note = (step: Finding['step'], ok: boolean, found: string, mend?: string): void => {
    findings.push({ step, ok, found, ...(ok || mend === undefined ? {} : { mend }) });
  };
  const fail = (step: Finding['step'], cause: unknown, mend: string | undefined): void => {
    const failure = toVpnError(cause, 'ERR_CONNECT');
    error ??= failure;
    if (mend !== undefined) note(step, false, failure.message, mend);
  };

  const addresses = await findAddresses(target, note, fail);
  let facts: ProbeFacts | undefined;
  if (addresses.length > 0) {
    const path = await connectAll(addresses, target, note, fail);
    if (path !== undefined) {
      facts = await lookAtTls(target, note, fail);
      const { mtu } = path;
      if (mtu !== undefined) {
        note(
          'mtu',
          mtu >= MIN_PATH_MTU,
          `the way takes packets of ${mtu} bytes`,
          'a tunnel below IPv6’s minimum of 1280: set the MTU of the outgoing interface, or use another network',
        );
      }
      if (facts !== undefined) await compareClocks(target, addresses[0], note);
    }
  }
  if (target.login !== undefined && error === undefined) {
    const outcome = await target.login();
    findings.push({ step: 'login', ...outcome });
    if (!outcome.ok) error = new VpnError('ERR_AUTH_NEEDED', outcome.found);
  }
  return { findings, facts, error };
}

type Note = (step: Finding['step'], ok: boolean, found: string, mend?: string) => void;
/** Without `mend` the finding is there already. */
type Fail = (step: Finding['step'], cause: unknown, mend: string | undefined) => void;

interface Reached {
  readonly host: string;
  readonly address: string;
  readonly proxy: OutboundProxy | undefined;
}

async function findAddresses({ hosts, port, proxy }: ExamineTarget, note: Note, fail: Fail): Promise<Reached[]> {
  const found: Reached[] = [];
  const failures: string[] = [];
  for (const host of hosts) {
    const through = proxy(host, port);
    const name = through?.host ?? host;
    if (through !== undefined) {
      note(
        'proxy',
        true,
        `${through.kind === 'socks5' ? 'SOCKS' : through.kind.toUpperCase()} proxy ${through.host}:${through.port} for ${host}`,
      );
    }
    if (isIP(name) !== 0) {
      found.push({ host, address: name, proxy: through });
      continue;
    }
    const start = performance.now();
    try {
      const list = await within(lookupAll(name));
      const took = Math.round(performance.now() - start);
      note('name', true, `${name} is ${list.join(', ')} (${took} ms)`);
      found.push(...list.map((address) => ({ host, address, proxy: through })));
    } catch (cause) {
      failures.push(`${name}: ${codeOf(cause)}`);
    }
  }
  if (failures.length > 0) {
    const resolvers = await askResolvers(hosts.find((host) => isIP(host) === 0) ?? 'localhost', note);
    const mend = resolvers
      ? 'the resolvers answer, but know no such name: check how it is spelt'
      : 'no resolver answers: is there a network, and does it let DNS through? see /etc/resolv.conf';
    const words = failures.join('; ');
    if (found.length > 0) note('name', false, words, mend);
    else fail('name', new VpnError('ERR_NAME_LOOKUP', `no address found (${words})`), mend);
  }
  return found;
}

/** Whether any resolver of this machine says anything at all. */
async function askResolvers(name: string, note: Note): Promise<boolean> {
  const servers = new Resolver().getServers();
  const answers = await Promise.all(
    servers.map(async (server) => {
      const resolver = new Resolver({ timeout: 1500, tries: 1 });
      resolver.setServers([server]);
      const outcome = await resolver.resolve4(name).then(
        () => 'knows the name',
        (cause: unknown) => (['ENOTFOUND', 'ENODATA'].includes(codeOf(cause)) ? 'knows no such name' : codeOf(cause)),
      );
      return { server, outcome };
    }),
  );
  const ok = answers.some(({ outcome }) => outcome.startsWith('knows'));
  const words = answers.map(({ server, outcome }) => `${server}: ${outcome}`).join('; ');
  note('dns', ok, words || 'this machine has no resolver', 'check the network and /etc/resolv.conf');
  return ok;
}

/** Connects to every address, and tells of each; the packet size of the first that answers. */
async function connectAll(
  addresses: readonly Reached[],
  { port, mark }: ExamineTarget,
  note: Note,
  fail: Fail,
): Promise<{ mtu: number | undefined } | undefined> {
  const outcomes = await Promise.all(
    addresses.map(async ({ host, address, proxy }) => {
      const start = performance.now();
      let socket: Socket | undefined;
      try {
        socket = await openTcp(address, proxy?.port ?? port, mark, AbortSignal.timeout(STEP_TIMEOUT_MS));
        const mtu = pathMtu(socketFd(socket), isIP(address) === 6 ? 6 : 4);
        if (proxy !== undefined) await within(connectThrough(socket, proxy, host, port));
        return { address, host, proxy, ok: true, mtu, took: Math.round(performance.now() - start), cause: undefined };
      } catch (cause) {
        return { address, host, proxy, ok: false, mtu: undefined, took: 0, cause };
      } finally {
        socket?.destroy();
      }
    }),
  );
  for (const { address, host, proxy, ok, took, cause } of outcomes) {
    const words = ok
      ? `connected in ${took} ms`
      : isVpnError(cause) && cause.code !== 'ERR_CONNECT'
        ? cause.message
        : codeOf(cause);
    const step = proxy === undefined ? 'tcp' : 'proxy';
    note(step, ok, `${address}${proxy === undefined ? '' : ` for ${host}`}: ${words}`, mendOf(cause));
  }
  const reached = outcomes.find(({ ok }) => ok);
  if (reached !== undefined) return { mtu: reached.mtu };
  const [first] = outcomes;
  const cause =
    isVpnError(first?.cause) && first.cause.code !== 'ERR_CONNECT'
      ? first.cause
      : new VpnError(
          'ERR_CONNECT',
          `cannot connect to port ${port} (${outcomes.map((o) => `${o.address}: ${codeOf(o.cause)}`).join('; ')})`,
        );
  // Told address by address.
  fail('tcp', cause, undefined);
  return undefined;
}

const MENDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens there: is the gateway running, and is the port right?',
  ENETUNREACH: 'this machine has no way there: no network, or none of this family',
  EHOSTUNREACH: 'the host does not answer its neighbours, or a firewall says so',
  ETIMEDOUT: 'no answer: a firewall drops it, or the host is down; try another network',
  ERR_CONNECT: 'no answer: a firewall drops it, or the host is down; try another network',
  ERR_PROXY: 'the proxy does not let it through: ask its operator, or set NO_PROXY or server.proxy = "none"',
  ERR_PROXY_AUTH: 'put user and password into the URL of the proxy',
};

function mendOf(cause: unknown): string | undefined {
  return MENDS[codeOf(cause)];
}

async function lookAtTls(target: ExamineTarget, note: Note, fail: Fail): Promise<ProbeFacts | undefined> {
  const options: Partial<DialOptions> = {
    host: target.hosts,
    serverName: target.serverName,
    ...(target.ca === undefined ? {} : { ca: target.ca }),
    ...(target.pins === undefined ? {} : { pins: target.pins }),
    ...(target.camouflage === undefined ? {} : { camouflage: target.camouflage }),
    ...(target.mark === undefined ? {} : { mark: target.mark }),
    proxy: target.proxy,
    log: silentLogger,
  };
  try {
    const facts = await probe(target.hosts[0] ?? '', target.port, options);
    const { certificate, tls } = facts;
    const seen = `${tls.protocol}, ${tls.group}; certificate of ${certificate.subject}, signed by ${certificate.issuer}`;
    const isWanted = certificate.trusted || target.ca === undefined;
    if (isWanted) {
      note(
        'tls',
        true,
        `${seen}${certificate.trusted ? '' : ' (not one of this machine’s authorities; a profile names its own)'}`,
      );
      note('hello', true, `${facts.hello}; an answer takes ${facts.echoMs.toFixed(1)} ms`);
    } else {
      const code = certificate.code ?? 'ERR_CERT_UNTRUSTED';
      const { issuer, subject } = certificate;
      const error = new VpnError(code, certificate.reason ?? '', { details: { issuer, subject } });
      fail('tls', await nameObstacle(error, obstacleOf(target)), `seen: ${seen}`);
    }
    return facts;
  } catch (cause) {
    const error = toVpnError(cause);
    const isStuck = error.code === 'ERR_STAGE_TIMEOUT';
    const step = error.code === 'ERR_GREETING' ? 'hello' : 'tls';
    fail(
      step,
      await nameObstacle(error, obstacleOf(target)),
      isStuck
        ? 'small packets pass and large ones do not, or a firewall holds TLS up: try a smaller MTU on the outgoing interface, or another network'
        : 'see docs/errors.md',
    );
    return undefined;
  }
}

function obstacleOf({ hosts, serverName, ca, pins = [], mark }: ExamineTarget) {
  return {
    hosts,
    serverName,
    hasAuthority: ca !== undefined || pins.length > 0,
    ...(mark === undefined ? {} : { mark }),
    lookup: lookupAll,
  };
}

/** The front door tells the time like any web server. */
async function compareClocks(target: ExamineTarget, to: Reached | undefined, note: Note): Promise<void> {
  if (to === undefined) return;
  try {
    const theirs = await dateAt(target, to);
    if (theirs === undefined) return;
    const difference = (target.now ?? Date.now)() - theirs;
    const seconds = Math.round(Math.abs(difference) / 1000);
    note(
      'clock',
      Math.abs(difference) <= CLOCK_TOLERANCE_MS,
      seconds < 2
        ? "the same as the gateway's"
        : `${seconds} s ${difference > 0 ? 'ahead of' : 'behind'} the gateway's`,
      'one-time codes and certificates need the right time; set the clock: timedatectl set-ntp true',
    );
  } catch {
    // A gateway whose front door is shut says no time, which is no failure.
  }
}

async function dateAt(
  { serverName, port, mark }: ExamineTarget,
  { host, address, proxy }: Reached,
): Promise<number | undefined> {
  const raw = await openTcp(address, proxy?.port ?? port, mark, AbortSignal.timeout(STEP_TIMEOUT_MS));
  try {
    if (proxy !== undefined) await within(connectThrough(raw, proxy, host, port));
    // Nothing secret is sent: whoever answers may say what time it is.
    const socket = connectTls({
      socket: raw,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
      ...(isIP(serverName) === 0 ? { servername: serverName } : {}),
    });
    const { promise, resolve, reject } = Promise.withResolvers<number | undefined>();
    const asked = request(
      {
        method: 'HEAD',
        path: '/',
        headers: { host: serverName },
        createConnection: () => socket,
        timeout: STEP_TIMEOUT_MS,
      },
      (response) => {
        const at = Date.parse(response.headers.date ?? '');
        response.resume();
        resolve(Number.isNaN(at) ? undefined : at);
      },
    );
    asked.on('error', reject);
    asked.on('timeout', () => asked.destroy(new Error('no answer')));
    asked.end();
    return await promise;
  } finally {
    raw.destroy();
  }
}

function codeOf(cause: unknown): string {
  return cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
}

async function within<T>(work: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => late.reject(new VpnError('ERR_STAGE_TIMEOUT', `no answer within ${STEP_TIMEOUT_MS / 1000} s`)),
    STEP_TIMEOUT_MS,
  );
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    clearTimeout(timer);
    work.catch(() => {});
  }
}
