/** Auth, as a worker in a process of its own reaches it: each question is a message, and its answer another. */

import type { Challenge, ChallengeRequest, LoginEvidence } from '../../protocol/login.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import type { ResumeEvidence } from '../../protocol/resume.ts';
import type { StreamRefusal } from '../../transport/stream-request.ts';
import { type Handlers, IpcChannel } from '../ipc/channel.ts';
import { authToWorker, LIMITS_FROM_ABOVE, LIMITS_OF_WORKER, WAITING_PER_PAGE, workerToAuth } from '../ipc/messages.ts';
import type {
  AttachRequest,
  AttachVerdict,
  AuthPort,
  DetachedSession,
  DialRequest,
  GrantedResume,
  LoginPeer,
  LoginVerdict,
  ProxyKey,
  ProxyPort,
  RefusedCertificate,
  ResumeConfirmation,
  ResumedSession,
  ResumeVerdict,
  SessionKey,
  SessionTraffic,
  UsageReport,
  WorkerPort,
} from '../ipc/ports.ts';

const MAX_NAME = 256;
const MAX_TOKEN_BYTES = 1024;

export class AuthLink implements AuthPort {
  readonly #channel: IpcChannel<typeof workerToAuth, typeof authToWorker>;

  /**
   * @param fd this end of the channel to auth, which it takes over
   * @param worker who does what auth says
   * @param closed auth is gone
   */
  constructor(fd: number, worker: () => WorkerPort, closed: () => void) {
    const handlers: Handlers<typeof authToWorker> = {
      close: ({ session, reason }) => worker().close(session, reason),
      configure: ({ session, config }) => worker().configure(session, config),
      release: async ({ session }) => {
        await worker().release(session);
        return {};
      },
      drain: ({ seconds }) => worker().drain(seconds),
      closeProxy: ({ key }) => worker().closeProxy(key),
      recheckStreams: () => worker().recheckStreams(),
      limit: ({ limits }) => worker().limit(limits),
      refuse: ({ sources }) => worker().refuse(sources),
      shape: (shapes) => worker().shape(shapes),
      classify: ({ rules }) => worker().classify(rules),
      report: async () => await worker().report(),
      listSessions: async ({ after }) => await worker().listSessions(after),
    };
    this.#channel = new IpcChannel({
      fd,
      out: workerToAuth,
      in: authToWorker,
      handlers,
      limits: LIMITS_FROM_ABOVE,
      maxSentBytes: LIMITS_OF_WORKER.frameBytes,
      closed,
    });
  }

  /** What is asked of those who use the gateway as a proxy. */
  readonly proxies: ProxyPort = {
    bind: async (proof, { remote }) => (await this.#channel.call('proxyBind', { proof, remote })).grant ?? undefined,
    login: async ({ user, token }, { remote }) =>
      // Whatever is longer is no token.
      (
        await this.#channel.call('proxyLogin', {
          user: user.slice(0, MAX_NAME),
          token: token.subarray(0, MAX_TOKEN_BYTES),
          remote,
        })
      ).grant ?? undefined,
    traffic: (key, traffic) => this.#channel.tell('proxyTraffic', { key, traffic }),
    release: (key) => this.#channel.tell('proxyRelease', { key }),
  };

  /** Has a connection made; its descriptor comes by itself, under this number. */
  async dial(
    id: string,
    { key, kind, target }: DialRequest,
  ): Promise<{ address: string } | { refused: StreamRefusal }> {
    return await this.#channel.call('dial', { id, key, kind, target });
  }

  async isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
    return (await this.#channel.call('isAllowed', { key, kind, address, port })).isAllowed;
  }

  /** The sessions that wait for their clients here. */
  async waiting(): Promise<DetachedSession[]> {
    const all: DetachedSession[] = [];
    for (;;) {
      const page = await this.#channel.call('waiting', { after: all.length });
      all.push(...page);
      if (page.length < WAITING_PER_PAGE) return all;
    }
  }

  challenge(request: ChallengeRequest, peer: LoginPeer): Promise<Challenge> {
    return this.#channel.call('challenge', { request, peer });
  }

  verify(evidence: LoginEvidence, peer: LoginPeer): Promise<LoginVerdict> {
    return this.#channel.call('verify', { evidence, peer });
  }

  forget(binding: string): void {
    this.#channel.tell('forget', { binding });
  }

  certificateRefused(refused: RefusedCertificate): void {
    this.#channel.tell('certificateRefused', { refused });
  }

  async establish(session: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void> {
    await this.#channel.call('establish', { session, secret, features });
  }

  attach(request: AttachRequest, peer: LoginPeer): Promise<AttachVerdict> {
    return this.#channel.call('attach', { request, peer });
  }

  async challengeResume(peer: LoginPeer): Promise<Uint8Array> {
    return (await this.#channel.call('challengeResume', { peer })).nonce;
  }

  resume(evidence: ResumeEvidence, peer: LoginPeer): Promise<ResumeVerdict> {
    return this.#channel.call('resume', { evidence, peer });
  }

  async proposeResume(resume: GrantedResume, mix: Uint8Array): Promise<void> {
    await this.#channel.call('proposeResume', { resume, mix });
  }

  confirmResume(confirmation: ResumeConfirmation, peer: LoginPeer): Promise<ResumedSession> {
    return this.#channel.call('confirmResume', { confirmation, peer });
  }

  started(session: SessionKey, remote: string): void {
    this.#channel.tell('started', { session, remote });
  }

  traffic(session: SessionKey, traffic: SessionTraffic): void {
    this.#channel.tell('traffic', { session, traffic });
  }

  usage(reports: readonly UsageReport[], isFirst: boolean): void {
    this.#channel.tell('usage', { reports: [...reports], isFirst });
  }

  async detach(session: SessionKey, reason?: CloseReason): Promise<void> {
    await this.#channel.call('detach', reason === undefined ? { session } : { session, reason });
  }

  async end(session: SessionKey, reason: CloseReason): Promise<void> {
    await this.#channel.call('end', { session, reason });
  }
}
