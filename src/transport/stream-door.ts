/**
 * A connection of `customvpn-streams/1` at the front door: what comes by it becomes a `ProxyRequest`, as what comes by HTTP.
 *
 * Hides the mux. Nothing but the proof of a session is taken until that has been judged, and who opens and gives up streams
 * faster than anybody can use them is cut off.
 *
 * @see docs/protocol.md §18
 */

import type { TLSSocket } from 'node:tls';
import type { MuxStream, StreamSink } from '../protocol/stream-mux.ts';
import type { QueueBudget } from './queue-budget.ts';
import { StreamConnection } from './stream-connection.ts';
import { StreamEnd } from './stream-end.ts';
import type {
  BindRequest,
  ProxyConnection,
  ProxyRequest,
  ProxyStream,
  StreamRefusal,
  StreamRequest,
  StreamTarget,
} from './stream-request.ts';

/** Of uploads, whose reader is whoever the client has chosen: it may never read. */
const MAX_WINDOW_BYTES = 1 << 20;
const WINDOW_BUDGET_BYTES = 16 << 20;
/** Streams that may be given up before they are answered, at once, and per second after that. */
const GIVEN_UP_BURST = 1000;
const GIVEN_UP_PER_SECOND = 200;

export class StreamDoor {
  readonly #visitor: ProxyConnection;
  readonly #connection: StreamConnection;
  readonly #onRequest: (request: ProxyRequest) => void;
  #mayGiveUp = GIVEN_UP_BURST;
  #refilledAt = performance.now();

  /** @param queues whose memory its streams hold */
  constructor(
    visitor: ProxyConnection & { readonly socket: TLSSocket },
    onRequest: (request: ProxyRequest) => void,
    queues: QueueBudget | undefined,
  ) {
    this.#visitor = visitor;
    this.#onRequest = onRequest;
    this.#connection = new StreamConnection(visitor.socket, {
      role: 'server',
      maxWindowBytes: MAX_WINDOW_BYTES,
      windowBudgetBytes: WINDOW_BUDGET_BYTES,
      queues,
      onBind: (credential) => this.#onRequest(new Binding(visitor, this.#connection, credential)),
      onWanted: (stream, { kind, host, port }) => {
        const request = new Request(visitor, stream, kind, { host, port }, () => this.#gaveUp());
        this.#onRequest(request);
      },
      closed: () => visitor.destroy(),
    });
  }

  /** Ends it when what was said has gone. */
  end(): void {
    this.#connection.end();
  }

  destroy(): void {
    this.#connection.destroy();
  }

  #gaveUp(): void {
    const now = performance.now();
    const refilled = this.#mayGiveUp + ((now - this.#refilledAt) / 1000) * GIVEN_UP_PER_SECOND;
    this.#refilledAt = now;
    this.#mayGiveUp = Math.min(GIVEN_UP_BURST, refilled) - 1;
    if (this.#mayGiveUp < 0) this.#visitor.destroy();
  }
}

class Binding implements BindRequest {
  readonly kind = 'bind';
  readonly connection: ProxyConnection;
  readonly authorization: string;
  onGone = ignore;
  readonly #streams: StreamConnection;

  constructor(connection: ProxyConnection, streams: StreamConnection, credential: string) {
    this.connection = connection;
    this.authorization = credential;
    this.#streams = streams;
  }

  accept(info: string): void {
    this.#streams.mux.answerBind(info);
  }

  refuse(): void {
    this.#streams.mux.answerBind(undefined);
    this.#streams.end();
  }

  challenge(): void {
    this.refuse();
  }
}

class Request implements StreamRequest, StreamSink {
  readonly connection: ProxyConnection;
  readonly authorization = undefined;
  readonly kind: 'tcp' | 'udp';
  readonly target: StreamTarget;
  onGone: () => void = ignore;
  readonly #stream: MuxStream;
  readonly #gaveUp: () => void;

  constructor(
    connection: ProxyConnection,
    stream: MuxStream,
    kind: 'tcp' | 'udp',
    target: StreamTarget,
    gaveUp: () => void,
  ) {
    this.connection = connection;
    this.kind = kind;
    this.target = target;
    this.#stream = stream;
    this.#gaveUp = gaveUp;
    stream.sink = this;
  }

  challenge(): void {
    this.refuse('http_request_denied');
  }

  accept(): ProxyStream {
    const end = new StreamEnd(this.#stream);
    this.#stream.accept();
    return end;
  }

  refuse(why: StreamRefusal): void {
    this.#stream.refuse(why);
  }

  broken(): void {
    this.#gaveUp();
    this.onGone();
  }

  // Nothing else is told of a stream that has not been accepted; when it has, another is its sink in the same turn.
  bytes(): void {}
  ended(): void {}
  room(): void {}
}

function ignore(): void {}
