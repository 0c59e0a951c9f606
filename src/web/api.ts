/**
 * The page's way to its gateway: calls, events, who is logged in.
 *
 * Hides HTTP. Types are those of the control API itself, so that a call that it does not have does not compile.
 */

import type { GatewayApi, PasskeyInfo, Role } from '../control/operations.ts';
import { makePasskey, type PasskeyQuestion, usePasskey } from './passkey.ts';

/** Who is logged in, and where. */
export interface Me {
  readonly user: string;
  readonly role: Role;
  readonly csrf: string;
  /** The gateway's first name. */
  readonly gateway: string;
  readonly version: string;
}

/** What was read, and which state of it that was. */
export interface Tagged<T> {
  readonly value: T;
  readonly tag: string;
}

/** What the gateway refused, in its words. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const ROLES: readonly Role[] = ['viewer', 'operator', 'administrator'];
let csrf = '';
let onLoggedOut = (): void => {};

/** Told when the gateway knows us no more. */
export function whenLoggedOut(listener: () => void): void {
  onLoggedOut = listener;
}

/** Whether a role may do what needs another; the gateway checks it again. */
export function isAtLeast(role: Role, needed: Role): boolean {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

export type Input<K extends keyof GatewayApi> = Parameters<GatewayApi[K]>[0];
export type Output<K extends keyof GatewayApi> = Awaited<ReturnType<GatewayApi[K]>>;

/**
 * Calls an operation.
 *
 * @param options.background it is the page that looks, not a person: it keeps nobody logged in
 * @throws {ApiError}
 */
export async function call<K extends keyof GatewayApi>(
  operation: K,
  input: Input<K>,
  options: { background?: boolean; ifMatch?: string } = {},
): Promise<Output<K>> {
  const { background, ifMatch } = options;
  const headers = {
    ...(background === true ? { 'x-background': '1' } : {}),
    ...(ifMatch === undefined ? {} : { 'if-match': ifMatch }),
  };
  return (await post<Output<K>>(`/api/v1/${operation}`, input, headers)).value;
}

/** As `call`, with the tag by which a change says what it is a change of. @throws {ApiError} */
export async function read<K extends keyof GatewayApi>(operation: K, input: Input<K>): Promise<Tagged<Output<K>>> {
  return await post<Output<K>>(`/api/v1/${operation}`, input);
}

/** Who we are; undefined when nobody is logged in. */
export async function whoAmI(): Promise<Me | undefined> {
  try {
    return remember((await request<Me>('/api/me', { headers: {} })).value);
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return undefined;
    throw error;
  }
}

/** @throws {ApiError} */
export async function logIn(user: string, password: string, code: string): Promise<Me> {
  return remember((await post<Me>('/api/login', { user, password, code })).value);
}

/** Which ways in there are besides name and password. */
export interface Entrances {
  readonly passkey: boolean;
  /** Whom the client certificate names that the browser shows. */
  readonly certificate: string | null;
  /** The provider at which people log in. */
  readonly provider: string | null;
}

/** @throws {ApiError} */
export async function entrances(): Promise<Entrances> {
  return (await request<Entrances>('/api/login', { headers: {} })).value;
}

/** @throws {ApiError} */
export async function logInByCertificate(): Promise<Me> {
  return remember((await post<Me>('/api/login/certificate', {})).value);
}

/** @throws {ApiError} */
export async function logInByPasskey(): Promise<Me> {
  const asked = (await post<PasskeyQuestion>('/api/login/passkey/challenge', {})).value;
  return remember((await post<Me>('/api/login/passkey', await usePasskey(asked))).value);
}

/** One's own passkeys. */
export const passkeys = {
  list: async () => (await request<PasskeyInfo[]>('/api/passkeys', { headers: {} })).value,
  add: async (user: string, name: string): Promise<void> => {
    const asked = (await post<PasskeyQuestion>('/api/passkeys/challenge', {})).value;
    await post('/api/passkeys', { name, ...(await makePasskey(user, asked)) });
  },
  remove: (id: string) => post('/api/passkeys/remove', { id }),
};

export async function logOut(): Promise<void> {
  await post('/api/logout', {});
}

/** The steps of a set-up link. @throws {ApiError} */
export const setUp = {
  begin: (token: string) => post('/api/setup', { token }),
  account: async (token: string, name: string, password: string) =>
    (await post<{ uri: string; recoveryCodes: string[] }>('/api/setup/account', { token, name, password })).value,
  finish: async (token: string, code: string) => remember((await post<Me>('/api/setup/finish', { token, code })).value),
};

export type EventName = 'sessions' | 'audit' | 'health';

/** Listens to events until told to stop; `isLive` says whether they come. */
export function listen(
  names: readonly EventName[],
  heard: (name: EventName, data: unknown) => void,
  isLive: (live: boolean) => void = () => {},
): () => void {
  const source = new EventSource(`/api/events?topics=${names.join()}`);
  for (const name of names) {
    source.addEventListener(name, (event) => heard(name, JSON.parse((event as MessageEvent<string>).data)));
  }
  source.addEventListener('open', () => isLive(true));
  source.addEventListener('error', () => isLive(false));
  return () => source.close();
}

function remember(me: Me): Me {
  csrf = me.csrf;
  return me;
}

async function post<T>(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Tagged<T>> {
  return await request<T>(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-csrf-token': csrf, ...headers },
    body: JSON.stringify(body ?? {}),
  });
}

async function request<T>(path: string, init: RequestInit): Promise<Tagged<T>> {
  let response: Response;
  try {
    response = await fetch(path, { ...init, credentials: 'same-origin', redirect: 'error' });
  } catch {
    throw new ApiError(0, 'The gateway does not answer. Is it running, and is this machine connected?');
  }
  const answer = (await response.json().catch(() => ({}))) as { message?: string };
  if (response.ok) return { value: answer as T, tag: response.headers.get('etag') ?? '*' };
  if (response.status === 401 && path.startsWith('/api/v1/')) onLoggedOut();
  throw new ApiError(response.status, answer.message ?? `The gateway answered with status ${response.status}.`);
}
