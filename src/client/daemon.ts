/**
 * A client that runs for one profile: keys on disk, a control socket, and the machine put back when it ends.
 *
 * Hides the lives of a client: it connects, may be parked with its session kept, and connects again when somebody asks; each life
 * is a `VpnClient` of its own. It runs in the foreground; whoever wants it in the background starts a process.
 */

import { existsSync, readFileSync, renameSync, statSync, truncateSync, writeFileSync } from 'node:fs';

import { dirname, resolve } from 'node:path';
import { toVpnError, VpnError } from '../base/errors.ts';
import { type Logger, Secret } from '../base/log.ts';
import { makePrivateFolder, writePrivateFile } from '../base/private-file.ts';
import { type ClientApi, type ClientStatus, clientOperations } from '../control/operations.ts';
import { type Profile, readProfile, withoutToken, writeProfile } from '../control/profile.ts';
import { answers, serveControl } from '../control/socket.ts';
import { formatIp, formatPrefix } from '../ip/address.ts';
import { type ChooseProxy, parseProxyUrl, proxiesOfEnvironment } from '../transport/outbound-proxy.ts';
import { ClaimingHost } from './claims.ts';
import { type ClientSnapshot, type ClientState, VpnClient } from './client.ts';
import { Desk } from './desk.ts';
import { DeviceKey } from './device-key.ts';
import { OWN_MARK } from './host-plan.ts';
import { KillSwitch } from './kill-switch.ts';
import type { AnswerSteps, AskedStep, StepAnswers } from './login-answers.ts';
import { nameObstacle } from './obstacles.ts';
import { machineNetwork } from './roaming.ts';
import { ServerNames } from './server-names.ts';
import { profilePaths, writeEnd } from './state-folder.ts';
import { TunnelHost } from './tunnel-host.ts';
import { hostWishes, pushLimits, type TunnelFlags } from './wishes.ts';

/** A log that has grown to this makes room: it becomes the old one. */
const MAX_LOG_BYTES = 8 * 1024 * 1024;
const LOG_CHECK_MS = 60_000;
/** How long a caller may wait for news in one call. */
const MAX_NEWS_WAIT_MS = 20_000;

export interface ClientRunOptions {
  /** Path of the profile file. */
  profile: string;
  /** What people call it; default what the profile says. */
  name?: string;
  /** The client's state directory. */
  state: string;
  /** Behave as a machine without super-packets. */
  plain: boolean;
  version: string;
  log: Logger;
  /** Default: the profile's. */
  user?: string;
  /** What the command line says of the tunnel; default: what the profile says. */
  tunnel?: TunnelFlags;
  /** Default: whoever calls over the control socket is asked. */
  answer?: AnswerSteps;
  /** Shows where to log in elsewhere, when no caller is there. */
  show?: (steps: readonly AskedStep[]) => void;
  /** Whether the log goes to the profile's log file, which is then kept small. */
  isLogged?: boolean;
  /** Told once, when the control socket answers. */
  onListening?: (() => void) | undefined;
  /** Told once, when packets can flow. */
  onReady?: (() => void) | undefined;
  onState?: ((state: ClientState | 'down') => void) | undefined;
}

/**
 * Runs a client until it is told to stop, by its control socket or by `signal`.
 *
 * @throws {VpnError} what made it stop: ERR_CONFIG_* for the profile, ERR_ALREADY_RUNNING, ERR_PRIVILEGE, ERR_AUTH_*, ERR_CERT_*,
 *   ERR_CONFLICT (another client has its networks)
 */
export async function runClient(options: ClientRunOptions, signal: AbortSignal): Promise<void> {
  const { log } = options;
  const profile = await readProfile(options.profile);
  const paths = profilePaths(options.state, profile.id);
  await makePrivateFolder(paths.folder);
  if (await answers(paths.control)) {
    throw new VpnError(
      'ERR_ALREADY_RUNNING',
      `this profile is connected already; disconnect with: customvpn client down --state ${options.state}`,
    );
  }
  await writeEnd(paths.end, undefined, '');
  const lives = new Lives(options, profile, await DeviceKey.open(paths.key));
  const stop = (): void => void lives.stop();
  signal.addEventListener('abort', stop, { once: true });
  await using _control = await serveControl(paths.control, clientOperations, lives.operations, log);
  const logCheck = setInterval(() => options.isLogged === true && trimLog(paths.log, log), LOG_CHECK_MS).unref();
  try {
    if (signal.aborted) return;
    options.onListening?.();
    await lives.run();
  } catch (error) {
    await writeEnd(paths.end, toVpnError(error), new Date().toISOString());
    throw error;
  } finally {
    clearInterval(logCheck);
    signal.removeEventListener('abort', stop);
  }
}

class Lives {
  readonly #options: ClientRunOptions;
  readonly #profile: Profile;
  readonly #key: DeviceKey;
  readonly #desk = new Desk();
  #host: TunnelHost;
  #client: VpnClient;
  /** What the command line says of the tunnel in this life. */
  #flags: TunnelFlags;
  #isReady = false;
  readonly #stopping = new AbortController();
  /** Set while parked: ends that. */
  #wake: (() => void) | undefined;
  #parkedAt = 0;

  constructor(options: ClientRunOptions, profile: Profile, key: DeviceKey) {
    this.#options = options;
    this.#profile = profile;
    this.#key = key;
    this.#flags = options.tunnel ?? {};
    this.#host = this.#createHost();
    this.#client = this.#create();
  }

  readonly operations: ClientApi = {
    'client.status': async () => this.#status(),
    'client.up': async ({ tunnel }) => {
      if (this.#wake === undefined) {
        this.#checkFlags(tunnel ?? {});
        return {};
      }
      this.#flags = tunnel ?? this.#flags;
      this.#desk.begin();
      this.#wake();
      return {};
    },
    'client.portal': async ({ seconds }) => {
      await this.#host.openPortal(seconds * 1000);
      return {};
    },
    'client.down': async ({ keep = false }) => {
      // Before the tunnel goes: what is in it stays in it until then.
      await this.#host.release();
      if (keep) await this.park();
      else await this.stop();
      return {};
    },
    'client.next': async ({ waitMs }) => {
      const news = await this.#desk.next(Math.min(waitMs, MAX_NEWS_WAIT_MS));
      const { state, lastError } = this.#status();
      return { news, state, lastError };
    },
    'client.answer': async ({ id, answers: given, declined }) => {
      if (given !== undefined) this.#desk.answer(id, given);
      else {
        const why = declined ?? 'the login was not answered';
        this.#desk.decline(id, new VpnError('ERR_AUTH_NEEDED', why, { details: { declined: true } }));
      }
      return {};
    },
  };

  /** Lives until it is stopped. @throws {VpnError} why it cannot go on */
  async run(): Promise<void> {
    while (!this.#stopping.signal.aborted) {
      this.#desk.begin();
      const client = this.#client;
      try {
        await client.connect();
        this.#desk.up();
        if (!this.#isReady) this.#options.onReady?.();
        this.#isReady = true;
        await client.stopped;
        const { lastError } = client.snapshot;
        if (lastError !== undefined && !client.wasAskedToStop) throw lastError;
      } catch (error) {
        if (!client.wasAskedToStop) {
          this.#desk.failed(error);
          throw error;
        }
      } finally {
        await client.disconnect();
      }
      if (this.#stopping.signal.aborted) break;
      await this.#rest(client);
    }
    this.#desk.down();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wake?.();
    await this.#client.disconnect();
  }

  /** Disconnects, and keeps the session and this process for the next time. */
  async park(): Promise<void> {
    await this.#client.disconnect({ keep: true });
  }

  async #rest({ ticket }: VpnClient): Promise<void> {
    const { promise, resolve: wake } = Promise.withResolvers<void>();
    this.#wake = wake;
    this.#parkedAt = Date.now();
    this.#desk.down();
    this.#options.onState?.('down');
    if (this.#stopping.signal.aborted) wake();
    await promise;
    this.#wake = undefined;
    this.#host = this.#createHost();
    this.#client = this.#create(ticket);
  }

  /** @throws {VpnError} ERR_CONFLICT when the client that runs was started with something else than is asked for */
  #checkFlags({ mode, lan, overlap, killSwitch }: TunnelFlags): void {
    const { tunnel } = this.#profile;
    const has = { mode: this.#flags.mode ?? tunnel.mode, lan: this.#flags.lan ?? tunnel.lan };
    const isOther =
      (mode !== undefined && mode !== has.mode) ||
      (lan !== undefined && lan !== has.lan) ||
      (overlap !== undefined && overlap !== (this.#flags.overlap ?? tunnel.overlap)) ||
      (killSwitch === true && !this.#host.isClosed);
    if (!isOther) return;
    throw new VpnError(
      'ERR_CONFLICT',
      `"${this.#name}" is connected with other settings than these; disconnect first: customvpn client down ${this.#name}`,
    );
  }

  #createHost(): TunnelHost {
    const { state, plain, answer, log } = this.#options;
    const { id } = this.#profile;
    const paths = profilePaths(state, id);
    const asking: AnswerSteps = answer ?? ((steps, abort) => this.#ask(steps, abort));
    return new TunnelHost({
      journalPath: paths.journal,
      namesPath: paths.names,
      killSwitch: new KillSwitch(id, log),
      superPackets: !plain,
      ...hostWishes(this.#profile, this.#flags, asking, this.#stopping.signal),
      log,
    });
  }

  #create(resume?: VpnClient['ticket']): VpnClient {
    const { options, profile, key } = { options: this.#options, profile: this.#profile, key: this.#key };
    const { log, version } = options;
    const paths = profilePaths(options.state, profile.id);
    const isEnrolled = existsSync(paths.enrolled);
    const answer: AnswerSteps = options.answer ?? ((steps, abort) => this.#ask(steps, abort));
    const host = this.#host;
    const names = new ServerNames({
      path: paths.addresses,
      isApart: () => host.isApart,
      servers: () => host.nameServers(),
      log,
    });
    return new VpnClient({
      serverHost: profile.server.hosts,
      serverPort: profile.server.port,
      serverName: profile.server.name,
      ...(profile.ca === undefined ? {} : { ca: profile.ca }),
      ...(profile.certFile === undefined ? {} : { certFile: resolve(dirname(options.profile), profile.certFile) }),
      ...(profile.keyFile === undefined ? {} : { keyFile: resolve(dirname(options.profile), profile.keyFile) }),
      pins: profile.pins,
      verifyServer: profile.verifyServer,
      deviceKey: key,
      enrol: !isEnrolled,
      ...userOf(options.user ?? profile.user),
      answer,
      ...(isEnrolled || profile.token === undefined ? {} : { token: profile.token.reveal() }),
      ...(resume === undefined ? {} : { resume }),
      limits: pushLimits(profile, this.#flags),
      lookup: (name) => names.lookup(name),
      mark: OWN_MARK,
      proxy: chooseProxy(profile.server.proxy),
      explain: (error) =>
        nameObstacle(error, {
          // Nothing but the tunnel leaves while the kill switch is closed, a question for a page neither.
          hosts: host.isClosed ? [] : profile.server.hosts,
          serverName: profile.server.name,
          hasAuthority: profile.ca !== undefined || profile.pins.length > 0,
          mark: OWN_MARK,
          lookup: (name) => names.lookup(name),
        }),
      ...(profile.server.camouflage === undefined ? {} : { camouflage: new Secret(profile.server.camouflage) }),
      superPackets: !options.plain,
      ...(profile.tunnel.channels === undefined ? {} : { dataChannels: profile.tunnel.channels }),
      network: machineNetwork(OWN_MARK),
      host: new ClaimingHost(host, options.state, profile.id.slice(0, 16), this.#name, host.networks),
      onEnrolled: async () => {
        await writePrivateFile(paths.enrolled, `${new Date().toISOString()}\n`);
        await forgetToken(options.profile, profile, log);
      },
      onState: (state) => {
        const { tls } = this.#client.snapshot;
        if (state === 'connected' && tls !== undefined) void names.confirm(tls.remote.address);
        options.onState?.(state);
      },
      log,
      version,
    });
  }

  /** Where to log in elsewhere can be shown to nobody in particular; everything else needs somebody. */
  async #ask(steps: readonly AskedStep[], signal: AbortSignal): Promise<StepAnswers> {
    const { show } = this.#options;
    if (show === undefined || this.#desk.isAttended || steps.some(({ kind }) => kind !== 'oidc')) {
      return await this.#desk.ask(steps, signal);
    }
    show(steps);
    return {};
  }

  get #name(): string {
    return this.#options.name ?? this.#profile.name;
  }

  #status(): ClientStatus {
    const status = statusOf(this.#client.snapshot, this.#profile, this.#host, this.#options.version);
    const named = { ...status, name: this.#name };
    if (this.#wake === undefined) return named;
    return { ...named, state: 'down', since: new Date(this.#parkedAt).toISOString() };
  }
}

/** What a profile says of a proxy. @throws {VpnError} ERR_CONFIG_VALUE */
export function chooseProxy(setting: Profile['server']['proxy']): ChooseProxy {
  if (setting === 'none') return () => undefined;
  if (setting === undefined || setting === 'environment') return proxiesOfEnvironment(process.env);
  const proxy = parseProxyUrl(setting, 'server.proxy in the profile');
  return () => proxy;
}

/** Whoever has the file open goes on writing at its end. */
function trimLog(path: string, log: Logger): void {
  try {
    if (!existsSync(path) || statSync(path).size < MAX_LOG_BYTES) return;
    writeFileSync(`${path}.1.tmp`, readFileSync(path), { mode: 0o600 });
    renameSync(`${path}.1.tmp`, `${path}.1`);
    truncateSync(path);
  } catch (error) {
    log.warn('the log could not be shortened; it goes on growing', { error });
  }
}

/** The token has been used up, and a file that is copied about must not look as if it still opened something. */
export async function forgetToken(path: string, profile: Profile, log: Logger): Promise<void> {
  try {
    await writeProfile(path, withoutToken(profile), { when: 'replace' });
  } catch (error) {
    log.warn('the used token could not be removed from the profile', { error });
  }
}

/** What a caller is shown of a client, and of what it does to its machine. */
export function statusOf(
  snapshot: ClientSnapshot,
  profile: Profile,
  host: Pick<TunnelHost, 'plan' | 'nameKeeper' | 'isClosed' | 'isPortalOpen'>,
  version: string,
): ClientStatus {
  const { config, tls, lastError } = snapshot;
  const { plan, nameKeeper, isClosed, isPortalOpen } = host;
  const addresses = config === undefined ? [] : [config.addresses.v4, config.addresses.v6];
  return {
    version,
    pid: process.pid,
    profile: profile.name,
    name: profile.name,
    state: snapshot.state === 'idle' || snapshot.state === 'stopped' ? 'stopping' : snapshot.state,
    server: `${profile.server.name}:${profile.server.port}`,
    verified: profile.verifyServer,
    since: new Date(snapshot.since).toISOString(),
    user: snapshot.user ?? null,
    device: snapshot.device?.name ?? null,
    addresses: addresses.flatMap((entry) => (entry === undefined ? [] : [formatIp(entry.address)])),
    routes: (config?.routes.map(formatPrefix) ?? []).filter(
      (route) => !snapshot.refused.some(({ item }) => item === `routes ${route}`),
    ),
    refused: [...snapshot.refused],
    tls: tls === undefined ? null : { protocol: tls.protocol, cipher: tls.cipher, group: tls.group },
    dns: {
      servers: (plan?.dns ?? config?.dns)?.servers.map(formatIp) ?? [],
      domains: [...((plan?.dns ?? config?.dns)?.domains ?? [])],
      all: plan?.dns?.all ?? false,
      keeper: nameKeeper,
    },
    mode: plan?.mode ?? null,
    killSwitch: isPortalOpen ? 'portal' : isClosed ? 'closed' : 'open',
    notes: [...(plan?.notes ?? [])],
    superPackets: snapshot.superPackets,
    channels: snapshot.channels,
    sentBytes: snapshot.sentBytes,
    receivedBytes: snapshot.receivedBytes,
    roundTripMs: snapshot.roundTripMs ?? null,
    reconnects: snapshot.reconnects,
    rekeys: snapshot.rekeys,
    rekeyGaps: snapshot.rekeyGaps,
    lastError: lastError === undefined ? null : { code: lastError.code, message: lastError.message },
  };
}

function userOf(user: string | undefined): { user?: string } {
  return user === undefined ? {} : { user };
}
