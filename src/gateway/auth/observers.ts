/**
 * Those who watch a gateway: whoever scrapes its port, and the collector to which metrics and spans are sent.
 *
 * Hides that both see the same numbers, gathered once, and what has to be read from files before there is a cage.
 */

import { VpnError } from '../../base/errors.ts';
import { type Logger, Secret } from '../../base/log.ts';
import { readSecretFile } from '../../base/private-file.ts';
import { readAuthorities } from '../../identity/backends/open.ts';
import { OtlpExporter } from '../../telemetry/otlp.ts';
import type { GatewayConfig } from '../config.ts';
import { GatewayMetrics, type MetricsSources } from './metrics.ts';
import { MetricsServer, type MetricsServerOptions } from './metrics-server.ts';

/** A collector as configured, with what its files hold. */
export interface Collector {
  readonly endpoint: string;
  readonly headers: Secret<Readonly<Record<string, string>>>;
  readonly ca: string | undefined;
}

/** Undefined: there is none. @throws {VpnError} ERR_CONFIG_FILE, ERR_CERT_FILE */
export async function readCollector({ otlp }: GatewayConfig): Promise<Collector | undefined> {
  const { endpoint, headersFile, caFile } = otlp;
  if (endpoint === undefined) return undefined;
  const headers = headersFile === undefined ? {} : headersOf(await readSecretFile(headersFile), headersFile);
  return {
    endpoint,
    headers: new Secret(headers),
    ca: caFile === undefined ? undefined : await readAuthorities(caFile),
  };
}

export interface ObserversOptions extends MetricsSources {
  /** Where metrics are scraped; undefined: nowhere. */
  readonly at: MetricsServerOptions['at'] | undefined;
  readonly log: Logger;
}

export class Observers implements AsyncDisposable {
  readonly #parts: AsyncDisposableStack;
  /** Where metrics are scraped. */
  readonly port: number | undefined;
  readonly #exporter: OtlpExporter | undefined;

  /** @throws {Error} of Node when the port cannot be opened */
  static async open({ at, log, ...sources }: ObserversOptions): Promise<Observers> {
    await using undo = new AsyncDisposableStack();
    const { service, facts } = sources;
    const { collector, config, spans } = service;
    if (at === undefined && collector === undefined) return new Observers(undo.move(), undefined, undefined);
    const metrics: GatewayMetrics = undo.use(new GatewayMetrics({ ...sources, exports: () => exporter?.counts }));
    const server = at === undefined ? undefined : undo.use(await MetricsServer.open({ at, metrics, log }));
    const { serviceName, intervalSeconds, metrics: areMetricsSent } = config.otlp;
    const exporter: OtlpExporter | undefined =
      collector === undefined
        ? undefined
        : undo.use(
            new OtlpExporter({
              endpoint: collector.endpoint,
              headers: collector.headers.reveal(),
              ca: collector.ca,
              resource: {
                'service.name': serviceName,
                'service.version': facts.version,
                ...(config.names[0] === undefined ? {} : { 'service.instance.id': config.names[0] }),
              },
              since: facts.since,
              metrics: areMetricsSent
                ? { everyMs: intervalSeconds * 1000, gather: async () => (await metrics.gather()).families }
                : undefined,
              spans,
              log,
            }),
          );
    return new Observers(undo.move(), server?.port, exporter);
  }

  private constructor(parts: AsyncDisposableStack, port: number | undefined, exporter: OtlpExporter | undefined) {
    this.#parts = parts;
    this.port = port;
    this.#exporter = exporter;
  }

  /** Sends to the collector what there is. Never rejects. */
  async send(): Promise<void> {
    await this.#exporter?.send();
  }

  /** Sends what is left, if that is fast. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts[Symbol.asyncDispose]();
  }
}

/** `NAME=VALUE,…`, as `OTEL_EXPORTER_OTLP_HEADERS` has it. */
function headersOf(text: string, file: string): Record<string, string> {
  const pairs = text.split(',').map((pair) => /^\s*([A-Za-z0-9-]+)=(.*?)\s*$/.exec(pair));
  if (pairs.every((pair) => pair !== null)) {
    return Object.fromEntries(
      pairs.map(([, name = '', value = '']) => [name.toLowerCase(), decodeURIComponent(value)]),
    );
  }
  throw new VpnError('ERR_CONFIG_FILE', `${file}: expected NAME=VALUE, or several with commas between them`, {
    details: { path: file },
  });
}
