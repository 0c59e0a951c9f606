/**
 * The port for those who watch a gateway: `/metrics`, `/healthz` and `/readyz` over plain HTTP.
 *
 * Hides HTTP. It only reads, and says nothing that names a user. Whoever asks costs little: connections are few and short,
 * and however many ask for metrics at once, they are gathered once.
 */

import http from 'node:http';
import type { Logger } from '../../base/log.ts';
import { EXPOSITION_TYPE } from '../../telemetry/exposition.ts';
import type { GatewayMetrics } from './metrics.ts';

const MAX_CONNECTIONS = 64;
const REQUEST_MS = 5000;
/** A connection that goes on asking is kept between two scrapes. */
const KEEP_ALIVE_MS = 70_000;

export interface MetricsServerOptions {
  /** A listening socket that it takes over, or where to listen. */
  at: { readonly fd: number } | { readonly host: string; readonly port: number };
  metrics: GatewayMetrics;
  log: Logger;
}

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly text: string;
}

export class MetricsServer implements AsyncDisposable {
  readonly #metrics: GatewayMetrics;
  readonly #log: Logger;
  readonly #server: http.Server;
  #reading: Promise<string> | undefined;

  /** @throws {Error} of Node when the port cannot be opened */
  static async open({ at, metrics, log }: MetricsServerOptions): Promise<MetricsServer> {
    const server = new MetricsServer(metrics, log);
    await new Promise<void>((resolve, reject) => server.#server.once('error', reject).listen(at, resolve));
    return server;
  }

  private constructor(metrics: GatewayMetrics, log: Logger) {
    this.#metrics = metrics;
    this.#log = log.child({ component: 'metrics' });
    this.#server = http.createServer(
      {
        requestTimeout: REQUEST_MS,
        headersTimeout: REQUEST_MS,
        connectionsCheckingInterval: 1000,
        keepAliveTimeout: KEEP_ALIVE_MS,
        maxHeaderSize: 8192,
      },
      (request, response) => {
        this.#answer(request).then(
          ({ status, type, text }) => {
            const headers = { 'content-type': type, 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' };
            response.writeHead(status, { ...headers, 'content-length': Buffer.byteLength(text) });
            response.end(request.method === 'HEAD' ? undefined : text);
          },
          (error: unknown) => {
            this.#log.error('metrics could not be gathered', { error });
            response.writeHead(500).end();
          },
        );
      },
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /** Where it listens. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#metrics[Symbol.dispose]();
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  async #answer(request: http.IncomingMessage): Promise<Answer> {
    const plain = (status: number, text: string): Answer => ({ status, type: 'text/plain; charset=utf-8', text });
    if (request.method !== 'GET' && request.method !== 'HEAD') return plain(405, 'only GET and HEAD\n');
    switch (request.url?.split('?', 1)[0]) {
      case '/metrics':
        return { status: 200, type: EXPOSITION_TYPE, text: await this.#read() };
      case '/healthz':
        return plain(200, 'ok\n');
      case '/readyz': {
        const { ready, problems } = await this.#metrics.readiness();
        return ready ? plain(200, 'ready\n') : plain(503, `${problems.join('\n')}\n`);
      }
      default:
        return plain(404, 'there is /metrics, /healthz and /readyz\n');
    }
  }

  #read(): Promise<string> {
    this.#reading ??= this.#metrics.read().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }
}
