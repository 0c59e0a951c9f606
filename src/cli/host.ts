/**
 * What the commands need and may not import: the daemons and the machine.
 *
 * `bin/customvpn.ts` implements it. Commands see only these shapes and the control API, so that a verb is nothing but
 * its arguments and its words.
 */

import type { VpnError } from '../base/errors.ts';
import type { ClientApi, GatewayApi } from '../control/operations.ts';

/** Which gateway is meant. */
export interface GatewaySource {
  readonly state: string;
  /** Default of `checkGateway`, `gatewayUnit` and `runGateway`: that in the state directory; else the one it ran with last. */
  readonly config?: string;
}

export interface GatewayInit {
  state: string;
  names: readonly string[];
  address: string;
  port: number;
  pool: readonly string[];
  dns: readonly string[];
  routes: readonly string[];
}

export interface GatewayInitResult {
  configFile: string;
  certificates: readonly string[];
  names: readonly string[];
  listen: string;
  pool: readonly string[];
  routes: readonly string[];
}

export interface TunnelFlags {
  mode?: 'full' | 'split';
  /** In a full tunnel: private networks that the machine is in stay reachable. */
  lan?: boolean;
  /** Who gets networks that the machine is in and the tunnel has, too. */
  overlap?: 'local' | 'tunnel' | 'stop';
  /** Whether a person can be asked. */
  isAsked?: boolean;
  /** Nothing leaves outside the tunnel until `down`. */
  killSwitch?: boolean;
  /** Networks behind this machine that others are to reach through it. */
  networks?: readonly string[];
  /** From the start, what a captive portal needs is open for so long. */
  portalMs?: number;
}

export interface ClientRun {
  profile: string;
  state: string;
  /** Do not use super-packets, as a peer that cannot. */
  plain: boolean;
  /** Who logs in; default the profile's user. */
  user?: string;
  /** What to do to this machine; default: what the profile says. */
  tunnel?: TunnelFlags;
  /** Answers what a login asks; without it a login that asks for something waits for somebody who can, or fails. */
  answer?: CredentialSource;
  /** Shows where to log in elsewhere, when nobody else can. */
  show?: (request: CredentialRequest) => void;
  /** The tunnel is for commands: `client exec` starts such a client. */
  enclosed?: boolean;
}

/** `client exec`: a command whose only way out is the tunnel. */
export interface ExecRun extends Pick<ClientRun, 'profile' | 'state' | 'user' | 'tunnel' | 'answer'> {
  readonly command: readonly string[];
  /** Whose rights the command has, by name or number; default: whoever called sudo, else who runs this. */
  readonly as?: string;
}

/** What is kept of a profile that has been used, and whether it is now. */
export interface ClientFacts {
  readonly isRunning: boolean;
  /** Whether its kill switch is closed, as far as this user may know. */
  readonly isClosed: boolean;
  /** Its one-time token has been used: the gateway knows this device. */
  readonly isEnrolled: boolean;
  /** Path of the log of clients in the background. */
  readonly log: string;
  /** Why the last client ended by itself. */
  readonly end?: { readonly at: string; readonly code: string; readonly message: string };
}

/** What a login asks a person for, in order. */
export type CredentialRequest = readonly {
  /** `oidc` is only shown; `ask` is a question of a source's own. */
  readonly kind: 'password' | 'totp' | 'token' | 'oidc' | 'ask';
  readonly prompt?: string;
  /** Whether the answer may be seen while it is typed. */
  readonly echo?: boolean;
  /** Where the person logs in, what is compared or typed there, and how long that may take. */
  readonly url?: string;
  readonly code?: string;
  readonly seconds?: number;
}[];

/** Gives the answers by kind. @throws {VpnError} ERR_AUTH_NEEDED when there is nobody to ask */
export type CredentialSource = (request: CredentialRequest) => Promise<Readonly<Record<string, string>>>;

/** `client proxy`: a client without a tunnel. */
export interface ProxyRun {
  profile: string;
  state: string;
  user?: string;
  answer?: CredentialSource;
  socks?: { host: string; port: number };
  http?: { host: string; port: number };
  /** Also where other machines can reach it. */
  expose: boolean;
  /** Told once, when programs can connect, and where. */
  onReady(where: { socks: string | undefined; http: string | undefined }): void;
}

export interface ProbeResult {
  readonly server: string;
  readonly address: string;
  readonly connectMs: number;
  readonly tls: { readonly protocol: string; readonly cipher: string; readonly group: string };
  readonly certificate: {
    readonly subject: string;
    readonly issuer: string;
    readonly notAfter: string;
    readonly pin: string;
    readonly trusted: boolean;
    readonly reason?: string;
  };
  readonly hello: string;
  readonly echoMs: number;
}

/** What an examination of the way to a gateway found. */
export interface ExaminationResult {
  readonly findings: readonly {
    readonly step: string;
    readonly ok: boolean;
    readonly found: string;
    readonly mend?: string;
  }[];
  /** What the gateway shows to anyone, when it was reached. */
  readonly facts: ProbeResult | undefined;
  /** The first failure. */
  readonly error: VpnError | undefined;
}

export interface Requirement {
  name: string;
  ok: boolean;
  /** Without it nothing works; a missing optional one only costs a feature. */
  required: boolean;
  found: string;
  mend?: string;
}

/** A copy of the store that was made, or put in place. */
export interface StoreCopyResult {
  readonly file: string;
  readonly bytes: number;
  readonly users: number;
  /** Where the store that was there before is. */
  readonly replaced?: string;
}

export interface RunningProcess {
  readonly pid: number;
  readonly command: string;
}

/** What was gathered for somebody who helps. */
export interface BundleResult {
  readonly folder: string;
  readonly files: readonly string[];
  /** Of these, such as say only why there is nothing. */
  readonly missing: readonly string[];
}

/** What was found in a policy file. */
export interface PolicyCheck {
  readonly file: string;
  /** It can be used: there are no errors. */
  readonly good: boolean;
  readonly rules: number;
  readonly tests: number;
  readonly problems: readonly {
    readonly severity: 'error' | 'warning';
    readonly line: number;
    readonly column: number;
    readonly message: string;
  }[];
}

/** What became of the tests of a policy file. */
export interface PolicyTrial {
  readonly file: string;
  /** All of them hold. */
  readonly good: boolean;
  readonly outcomes: readonly {
    readonly line: number;
    readonly text: string;
    readonly passed: boolean;
    /** What was found instead. */
    readonly reason: string;
  }[];
  /** Host names of the file that could not be looked up. */
  readonly unresolved: readonly string[];
}

export interface CliHost {
  /** The gateway's operations: of the running daemon, else of its state directory. Dispose of it after use. */
  openGateway(source: GatewaySource): Promise<GatewayApi & AsyncDisposable>;
  /**
   * Watches the processes of a gateway, by the number of its first; what it returns tells which still run. None where that
   * number is not a gateway's, as where it runs in a container.
   */
  watchProcesses(pid: number): Promise<() => readonly RunningProcess[]>;
  initGateway(init: GatewayInit): Promise<GatewayInitResult>;
  /** Checks the configuration and returns it as text, opening nothing. */
  checkGateway(source: GatewaySource): Promise<string>;
  /** Copies the store of a gateway, running or not, to a file. */
  backupStore(source: GatewaySource, file: string, force: boolean): Promise<StoreCopyResult>;
  /** Puts such a copy in the place of the store of a gateway that does not run. */
  restoreStore(source: GatewaySource, file: string, force: boolean): Promise<StoreCopyResult>;
  /** Gathers what somebody needs who helps, without secrets, in a folder; `log`: a file, default the journal. */
  bundle(source: GatewaySource, folder: string, log: string | undefined): Promise<BundleResult>;
  /** The text of a systemd unit that runs this gateway. */
  gatewayUnit(source: GatewaySource): Promise<string>;
  /** The text of a policy file. */
  readPolicy(file: string): Promise<string>;
  /** Checks a policy file; also against the networks of the gateway of a state directory, where there is one. */
  checkPolicy(file: string, state: string): Promise<PolicyCheck>;
  /** Tries the tests of a policy file; with the users and addresses of the gateway of a state directory, where there is one. */
  testPolicy(file: string, state: string): Promise<PolicyTrial>;
  /** JSON Schema of a policy file. */
  schemaOfPolicy(): Promise<object>;
  /** Runs until stopped; resolves when everything has been put back. */
  runGateway(source: GatewaySource): Promise<void>;
  /** Operations of the running clients under a state directory, by profile id. */
  openClients(state: string): Promise<ReadonlyMap<string, ClientApi>>;
  /** What is kept of each profile that has been used, by the first half of its id. */
  clientFacts(state: string): Promise<ReadonlyMap<string, ClientFacts>>;
  /** Forgets what is kept of a profile, its device's key first of all. */
  forgetClient(state: string, id: string): Promise<void>;
  /** The text of a systemd unit template that runs clients. */
  clientUnit(state: string): Promise<string>;
  /** Runs a client's local proxy until stopped. */
  runProxy(run: ProxyRun): Promise<void>;
  /** Runs a client until stopped. */
  runClient(run: ClientRun): Promise<void>;
  /** Sees to it that a client runs in the background; resolves with its operations when traffic flows. */
  startClient(run: ClientRun): Promise<ClientApi>;
  /** Runs a command in the tunnel; returns its status. */
  execInTunnel(run: ExecRun): Promise<number>;
  /** Takes away what clients that died have left under a state directory; returns how many there were. */
  cleanClients(state: string): Promise<number>;
  /** Closes or opens the kill switch of a profile, or only looks; returns whether it is closed then. */
  killSwitch(state: string, profile: string, action: 'close' | 'open' | 'look'): Promise<boolean>;
  /** The text of a systemd unit that closes a profile's kill switch before there is a network. */
  killSwitchUnit(state: string, profile: string): Promise<string>;
  /** Examines the way to a gateway of which nothing else is known. */
  examineServer(host: string, port: number): Promise<ExaminationResult>;
  /** Examines the way to the gateway of a profile file, up to a login. */
  examineProfile(profile: string, state: string): Promise<ExaminationResult>;
  requirements(): Promise<readonly Requirement[]>;
}
