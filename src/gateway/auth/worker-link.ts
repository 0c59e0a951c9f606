/**
 * A worker in a process of its own, as auth reaches it, and what that worker may ask.
 *
 * Hides the channel. A worker that breaks a rule of it is cut off, and said to be gone with the reason; what it was asked is
 * answered with nothing, late or never, and delays nobody for longer than a moment.
 */

import type { VpnError } from '../../base/errors.ts';
import type { SessionInfo } from '../../control/operations.ts';
import type { ClassRule } from '../../ip/traffic-class.ts';
import type { CloseReason, ConfigMessage } from '../../protocol/messages.ts';
import type { GatewayConfig } from '../config.ts';
import { type Handlers, IpcChannel } from '../ipc/channel.ts';
import { authToWorker, LIMITS_OF_WORKER, WAITING_PER_PAGE, workerToAuth } from '../ipc/messages.ts';
import type {
  AuthPort,
  DetachedSession,
  ProxyKey,
  ProxyPort,
  RefusedSource,
  SessionKey,
  Shapes,
  WorkerPort,
  WorkerReport,
} from '../ipc/ports.ts';
import { SHAPES_PER_MESSAGE } from '../ipc/ports.ts';
import type { DialDesk } from './dial-desk.ts';

/** A worker that hangs must not hang whoever asks how the gateway is. */
const ANSWER_MS = 3000;

export class WorkerLink implements WorkerPort {
  readonly #channel: IpcChannel<typeof authToWorker, typeof workerToAuth>;

  /**
   * @param fd this end of the channel, which it takes over
   * @param gate what the worker may ask
   * @param proxies and of those who use the gateway as a proxy
   * @param desk who dials for those
   * @param waiting the sessions that wait for their clients at the worker
   * @param closed the worker is gone; with the rule it has broken, if that is why
   */
  constructor(
    fd: number,
    gate: AuthPort,
    proxies: ProxyPort,
    desk: DialDesk,
    waiting: () => readonly DetachedSession[],
    closed: (error: VpnError | undefined) => void,
  ) {
    const handlers: Handlers<typeof workerToAuth> = {
      challenge: ({ request, peer }) => gate.challenge(request, peer),
      verify: ({ evidence, peer }) => gate.verify(evidence, peer),
      forget: ({ binding }) => gate.forget(binding),
      certificateRefused: ({ refused }) => gate.certificateRefused(refused),
      establish: async ({ session, secret, features }) => {
        await gate.establish(session, secret, features);
        return {};
      },
      attach: ({ request, peer }) => gate.attach(request, peer),
      challengeResume: async ({ peer }) => ({ nonce: await gate.challengeResume(peer) }),
      resume: ({ evidence, peer }) => gate.resume(evidence, peer),
      proposeResume: async ({ resume, mix }) => {
        await gate.proposeResume(resume, mix);
        return {};
      },
      confirmResume: ({ confirmation, peer }) => gate.confirmResume(confirmation, peer),
      started: ({ session, remote }) => gate.started(session, remote),
      traffic: ({ session, traffic }) => gate.traffic(session, traffic),
      usage: ({ reports, isFirst }) => gate.usage(reports, isFirst),
      detach: async ({ session, reason }) => {
        await gate.detach(session, reason);
        return {};
      },
      end: async ({ session, reason }) => {
        await gate.end(session, reason);
        return {};
      },
      proxyBind: async ({ proof, remote }) => ({ grant: (await proxies.bind(proof, { remote })) ?? null }),
      proxyLogin: async ({ user, token, remote }) => ({
        grant: (await proxies.login({ user, token }, { remote })) ?? null,
      }),
      proxyTraffic: ({ key, traffic }) => proxies.traffic(key, traffic),
      proxyRelease: ({ key }) => proxies.release(key),
      dial: ({ id, ...request }) => desk.dial(id, request),
      isAllowed: async ({ key, kind, address, port }) => ({
        isAllowed: await desk.isAllowed(key, kind, address, port),
      }),
      waiting: async ({ after }) => waiting().slice(after, after + WAITING_PER_PAGE),
    };
    this.#channel = new IpcChannel({
      fd,
      out: authToWorker,
      in: workerToAuth,
      handlers,
      limits: LIMITS_OF_WORKER,
      closed,
    });
  }

  /** Says no more and hears no more. Idempotent. */
  end(): void {
    this.#channel.close();
  }

  close(session: SessionKey, reason: CloseReason): void {
    this.#channel.tell('close', { session, reason });
  }

  configure(session: SessionKey, config: ConfigMessage): void {
    this.#channel.tell('configure', { session, config });
  }

  async release(session: SessionKey): Promise<void> {
    await this.#channel.call('release', { session }, ANSWER_MS);
  }

  closeProxy(key: ProxyKey): void {
    this.#channel.tell('closeProxy', { key });
  }

  recheckStreams(): void {
    this.#channel.tell('recheckStreams', {});
  }

  drain(seconds: number): void {
    this.#channel.tell('drain', { seconds });
  }

  limit(limits: GatewayConfig['limits']): void {
    this.#channel.tell('limit', { limits });
  }

  refuse(sources: readonly RefusedSource[]): void {
    this.#channel.tell('refuse', { sources });
  }

  shape({ groups, users }: Shapes): void {
    // Groups first: users speak of them.
    for (let at = 0; at < Math.max(groups.length, users.length); at += SHAPES_PER_MESSAGE) {
      this.#channel.tell('shape', {
        groups: groups.slice(at, at + SHAPES_PER_MESSAGE),
        users: users.slice(at, at + SHAPES_PER_MESSAGE),
      });
    }
  }

  classify(rules: readonly ClassRule[]): void {
    this.#channel.tell('classify', { rules });
  }

  report(): Promise<WorkerReport> {
    return this.#channel.call('report', {}, ANSWER_MS);
  }

  listSessions(after: number): Promise<SessionInfo[]> {
    return this.#channel.call('listSessions', { after }, ANSWER_MS);
  }
}
