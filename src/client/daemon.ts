/**
 * A client that runs for one profile: keys on disk, a control socket, and the machine put back when it ends.
 *
 * Hides the lives of a client: it connects, may be parked with its session kept, and connects again when somebody asks; each life
 * is a `VpnClient` of its own. It runs in the foreground; whoever wants it in the background starts a process.
 */

import { existsSync, readFileSync, renameSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import { type ClientStatus, clientOperations } from '../control/operations.ts';
import { type Profile, readProfile } from '../control/profile.ts';
import { answers, type Handlers, serveControl } from '../control/socket.ts';
import { lockFile } from '../os/lock-file.ts';
import { Callers } from './callers.ts';
import { ClaimingHost } from './claims.ts';
import { type ClientState, VpnClient } from './client.ts';
import { type ShownHost, statusOf } from './client-status.ts';
import { Desk } from './desk.ts';
import { DeviceKey } from './device-key.ts';
import { OWN_MARK } from './host-plan.ts';
import { KillSwitch } from './kill-switch.ts';
import type { AnswerSteps, AskedStep, StepAnswers } from './login-answers.ts';
import { NamespaceHost } from './namespace-host.ts';
import { nameObstacle } from './obstacles.ts';
import { optionsForProfile } from './profile-client.ts';
import { machineNetwork } from './roaming.ts';
import { ServerNames } from './server-names.ts';
import { type ProfilePaths, profilePaths, writeEnd } from './state-folder.ts';
import { TunnelHost } from './tunnel-host.ts';
import { checkEnclosure, hostWishes, pushLimits, type TunnelFlags } from './wishes.ts';

/** A log that has grown to this makes room: it becomes the old one. */
const MAX_LOG_BYTES = 8 * 1024 * 1024;
const LOG_CHECK_MS = 60_000;
/** How long a client that ends may take for that, and how often it is looked whether it has. */
const ENDING_MS = 3000;
const LOOK_MS = 50;
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
  /** The tunnel is in a network namespace, for commands, and ends with the last of them. */
  enclosed?: boolean;
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
  await using _lock = await lockProfile(paths, options.state);
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
    lives.end();
    clearInterval(logCheck);
    signal.removeEventListener('abort', stop);
  }
}

/** A device has one session, so a profile has one client. One that is ending is waited for. */
async function lockProfile({ lock, control }: ProfilePaths, state: string): Promise<AsyncDisposable> {
  const lateAt = performance.now() + ENDING_MS;
  for (;;) {
    const isRunning = await answers(control);
    try {
      if (!isRunning) return await lockFile(lock);
    } catch (error) {
      if (!isVpnError(error, 'ERR_ALREADY_RUNNING')) throw error;
    }
    if (isRunning || performance.now() > lateAt) {
      throw new VpnError(
        'ERR_ALREADY_RUNNING',
        `this profile is connected already; disconnect with: customvpn client down --state ${state}`,
      );
    }
    await sleep(LOOK_MS);
  }
}

class Lives {
  readonly #options: ClientRunOptions;
  readonly #profile: Profile;
  readonly #key: DeviceKey;
  readonly #desk = new Desk();
  /** The machine that the tunnel is for; undefined where it is for commands. */
  #host: TunnelHost | undefined;
  readonly #enclosure: NamespaceHost;
  readonly #callers: Callers | undefined;
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
    this.#enclosure = this.#createEnclosure();
    if (options.enclosed === true) {
      checkEnclosure(profile);
      this.#callers = new Callers(() => void this.stop());
    } else this.#host = this.#createHost();
    this.#client = this.#create();
  }

  readonly operations: Handlers<typeof clientOperations> = {
    'client.status': async () => this.#status(),
    'client.up': async ({ tunnel }) => {
      if (this.#callers !== undefined) throw this.#isForCommands();
      if (this.#wake === undefined) {
        this.#checkFlags(tunnel ?? {});
        return {};
      }
      this.#flags = tunnel ?? this.#flags;
      this.#desk.begin();
      this.#wake();
      return {};
    },
    'client.enter': async ({ tunnel = {} }) => {
      if (this.#callers === undefined) {
        throw new VpnError(
          'ERR_CONFLICT',
          this.#wake === undefined
            ? `"${this.#name}" is connected for this whole machine, and a device has one session: run the command as it is, or first: customvpn client down ${this.#name}`
            : `the session of "${this.#name}" is kept for the next up; let go of it first: customvpn client down ${this.#name}`,
        );
      }
      this.#checkFlags(tunnel);
      return { ticket: this.#callers.enter() };
    },
    'client.hold': async ({ ticket }, { gone }) => await this.#usedBy().hold(ticket, gone),
    'client.leave': async ({ ticket }) => ({ commands: this.#usedBy().leave(ticket) }),
    'client.portal': async ({ seconds }) => {
      if (this.#host === undefined) throw this.#isForCommands();
      await this.#host.openPortal(seconds * 1000);
      return {};
    },
    'client.down': async ({ keep = false }) => {
      // Before the tunnel goes: what is in it stays in it until then.
      await this.#host?.release();
      if (keep && this.#callers === undefined) await this.park();
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
    this.end();
    this.#wake?.();
    await this.#client.disconnect();
  }

  /** Whoever waits for the end of the tunnel hears of it. */
  end(): void {
    const { lastError } = this.#client.snapshot;
    this.#callers?.end(lastError ?? new VpnError('ERR_NOT_RUNNING', 'the client was told to disconnect'));
  }

  #usedBy(): Callers {
    if (this.#callers === undefined) throw new VpnError('ERR_BAD_REQUEST', 'this client is not there for commands');
    return this.#callers;
  }

  #isForCommands(): VpnError {
    const { count } = this.#usedBy();
    return new VpnError(
      'ERR_CONFLICT',
      `"${this.#name}" is used by ${count} ${count === 1 ? 'command' : 'commands'} of client exec, and a device has one session: wait for them, or first: customvpn client down ${this.#name}`,
    );
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
    const before = this.#offer;
    await promise;
    this.#wake = undefined;
    this.#host = this.#createHost();
    // What a session may have behind it was said at its login: another offer needs another one.
    this.#client = this.#create(this.#offer === before ? ticket : undefined);
  }

  /** The networks behind this machine that it offers in this life. */
  get #offer(): string {
    return (this.#flags.networks ?? this.#profile.tunnel.networks).toSorted().join();
  }

  /** @throws {VpnError} ERR_CONFLICT when the client that runs was started with something else than is asked for */
  #checkFlags({ mode, lan, overlap, killSwitch, networks }: TunnelFlags): void {
    const { tunnel } = this.#profile;
    const has = { mode: this.#flags.mode ?? tunnel.mode, lan: this.#flags.lan ?? tunnel.lan };
    const isOther =
      (mode !== undefined && mode !== has.mode) ||
      (lan !== undefined && lan !== has.lan) ||
      (overlap !== undefined && overlap !== (this.#flags.overlap ?? tunnel.overlap)) ||
      (networks !== undefined && networks.join() !== (this.#flags.networks ?? tunnel.networks).join()) ||
      (killSwitch === true && this.#host?.isClosed !== true);
    if (!isOther) return;
    throw new VpnError(
      'ERR_CONFLICT',
      `"${this.#name}" is connected with other settings than these; disconnect first: customvpn client down ${this.#name}`,
    );
  }

  #createHost(): TunnelHost {
    const { state, plain, log } = this.#options;
    const { id } = this.#profile;
    const paths = profilePaths(state, id);
    return new TunnelHost({
      journalPath: paths.journal,
      namesPath: paths.names,
      killSwitch: new KillSwitch(id, log),
      superPackets: !plain,
      ...hostWishes(this.#profile, this.#flags, this.#answer, this.#stopping.signal),
      log,
    });
  }

  #createEnclosure(): NamespaceHost {
    const { state, plain, log } = this.#options;
    // A kill switch is about the machine; in there is no other way out.
    const profile = { ...this.#profile, tunnel: { ...this.#profile.tunnel, killSwitch: 'off' as const } };
    const { wishes } = hostWishes(profile, this.#flags, undefined, this.#stopping.signal);
    const { resolvConf } = profilePaths(state, profile.id);
    return new NamespaceHost({ resolvConf, superPackets: !plain, wishes, log });
  }

  get #answer(): AnswerSteps {
    return this.#options.answer ?? ((steps, abort) => this.#ask(steps, abort));
  }

  #create(resume?: VpnClient['ticket']): VpnClient {
    const { options, profile, key } = { options: this.#options, profile: this.#profile, key: this.#key };
    const { log, version, state, user } = options;
    const paths = profilePaths(state, profile.id);
    const host = this.#host;
    const names = new ServerNames({
      path: paths.addresses,
      isApart: () => host?.isApart ?? false,
      servers: async () => (await host?.nameServers()) ?? [],
      log,
    });
    return new VpnClient({
      ...optionsForProfile({ profile, path: options.profile, state, key, user, answer: this.#answer, log, version }),
      ...(resume === undefined ? {} : { resume }),
      // Behind the namespace of a command there is nothing.
      limits: { ...pushLimits(profile, this.#flags), ...(this.#options.enclosed === true ? { networks: [] } : {}) },
      lookup: (name) => names.lookup(name),
      mark: OWN_MARK,
      explain: (error) =>
        nameObstacle(error, {
          // Nothing but the tunnel leaves while the kill switch is closed, a question for a page neither.
          hosts: host?.isClosed === true ? [] : profile.server.hosts,
          serverName: profile.server.name,
          hasAuthority: profile.ca !== undefined || profile.pins.length > 0,
          mark: OWN_MARK,
          lookup: (name) => names.lookup(name),
        }),
      superPackets: !options.plain,
      compression: profile.tunnel.compression,
      ...(profile.tunnel.channels === undefined ? {} : { dataChannels: profile.tunnel.channels }),
      network: machineNetwork(OWN_MARK),
      host:
        host === undefined
          ? this.#enclosure
          : new ClaimingHost(host, state, profile.id.slice(0, 16), this.#name, host.networks),
      onState: (clientState) => {
        const { tls } = this.#client.snapshot;
        if (clientState === 'connected' && tls !== undefined) void names.confirm(tls.remote.address);
        options.onState?.(clientState);
      },
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

  get #shown(): ShownHost {
    if (this.#host !== undefined) return this.#host;
    const { plan, enclosure } = this.#enclosure;
    const dns = plan && { servers: plan.servers, domains: plan.domains, all: true };
    return {
      plan: plan && { ...plan, dns },
      nameKeeper: 'none',
      isClosed: false,
      isPortalOpen: false,
      namespace: enclosure === undefined ? null : { ...enclosure, commands: this.#callers?.count ?? 0 },
    };
  }

  #status(): ClientStatus {
    const status = statusOf(this.#client.snapshot, this.#profile, this.#shown, this.#options.version);
    const named = { ...status, name: this.#name };
    if (this.#wake === undefined) return named;
    return { ...named, state: 'down', since: new Date(this.#parkedAt).toISOString() };
  }
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
