/**
 * Looks names up at name servers over sockets of our own, which a firewall mark keeps outside the tunnel.
 *
 * Hides who is asked, how often and over what. The system's resolver will not do for a gateway's name once a tunnel is
 * there: its questions would go into the tunnel, or be stopped by the kill switch, and they are not ours to let out. An answer
 * is not trusted: what it leads to has to prove who it is.
 */

import { randomInt } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isIP, type Socket } from 'node:net';
import { toVpnError, VpnError } from '../base/errors.ts';
import { openMarkedDatagrams, openMarkedSocket } from '../os/socket.ts';
import { type Answer, encodeQuery, isHostName, parseAnswer, type Question, RecordType } from './dns-message.ts';

const PORT = 53;
/** How long one server is waited for, and how often all are asked. */
const ANSWER_MS = 1_000;
const ROUNDS = 2;
const PATIENCE_MS = 50;
const MAX_SERVERS = 4;
const HOSTS_FILE = '/etc/hosts';

export interface ResolverOptions {
  /** The servers to ask, in order; read anew for each name. */
  servers: () => Promise<readonly string[]>;
  mark: number;
  /** Default 53. */
  port?: number;
  hostsFile?: string;
  /** How long the other family is waited for once one has answered (RFC 8305 §3); default 50 ms. */
  patienceMs?: number;
}

/**
 * The addresses of a name: IPv6 before IPv4, as the hosts file or the first server that knows says.
 *
 * @throws {VpnError} ERR_NAME_LOOKUP, ERR_PRIVILEGE
 */
export async function resolveHost(host: string, options: ResolverOptions): Promise<readonly string[]> {
  const listed = await readHosts(host, options.hostsFile ?? HOSTS_FILE);
  if (listed.length > 0) return listed;
  if (!isHostName(host)) throw new VpnError('ERR_NAME_LOOKUP', `${JSON.stringify(host)} is no name to look up`);
  const servers = (await options.servers()).filter((server) => isIP(server) !== 0).slice(0, MAX_SERVERS);
  if (servers.length === 0) {
    throw new VpnError('ERR_NAME_LOOKUP', `no name server is known outside the tunnel to ask for ${host}`);
  }
  const six = askAll(host, RecordType.aaaa, servers, options);
  const four = askAll(host, RecordType.a, servers, options);
  const first = await Promise.any([withAddresses(six), withAddresses(four)]).catch(() => undefined);
  if (first === undefined) {
    const [a6, a4] = await Promise.all([six, four]);
    const isMissing = a6.kind === 'none' && a4.kind === 'none';
    throw new VpnError(
      'ERR_NAME_LOOKUP',
      isMissing ? `there is no ${host}, says ${servers[0]}` : `no answer for ${host} from ${servers.join(', ')}`,
    );
  }
  const patience = new Promise<undefined>((resolve) =>
    setTimeout(resolve, options.patienceMs ?? PATIENCE_MS, undefined),
  );
  const found = await Promise.all([six, four].map((answer) => Promise.race([answer, patience])));
  return found.flatMap((answer) => (answer?.kind === 'addresses' ? answer.addresses : []));
}

async function withAddresses(asked: Promise<Answer>): Promise<Answer> {
  const answer = await asked;
  if (answer.kind !== 'addresses') throw new VpnError('ERR_NAME_LOOKUP', 'no addresses');
  return answer;
}

/** Never rejects but for ERR_PRIVILEGE. */
async function askAll(
  name: string,
  type: RecordType,
  servers: readonly string[],
  { mark, port = PORT }: ResolverOptions,
): Promise<Answer> {
  for (let round = 0; round < ROUNDS; round++) {
    for (const server of servers) {
      const question: Question = { id: randomInt(0x1_0000), name, type };
      let answer = await ask(datagramExchange, question, server, port, mark);
      if (answer.kind === 'truncated') answer = await ask(streamExchange, question, server, port, mark);
      if (answer.kind !== 'failed') return answer;
    }
  }
  return { kind: 'failed' };
}

type Exchange = (
  query: Uint8Array,
  server: string,
  port: number,
  mark: number,
  signal: AbortSignal,
  heard: (message: Uint8Array) => void,
) => Promise<void>;

async function ask(
  exchange: Exchange,
  question: Question,
  server: string,
  port: number,
  mark: number,
): Promise<Answer> {
  const heard = Promise.withResolvers<Answer>();
  const end = new AbortController();
  const timer = setTimeout(() => heard.resolve({ kind: 'failed' }), ANSWER_MS);
  const running = exchange(encodeQuery(question), server, port, mark, end.signal, (message) => {
    const answer = parseAnswer(message, question);
    if (answer !== undefined) heard.resolve(answer);
  });
  running.catch((error: unknown) => {
    if (toVpnError(error).code === 'ERR_PRIVILEGE') heard.reject(error);
    else heard.resolve({ kind: 'failed' });
  });
  try {
    return await heard.promise;
  } finally {
    clearTimeout(timer);
    end.abort();
  }
}

/** A port of its own for each question: whoever would forge an answer has to guess it, too. */
const datagramExchange: Exchange = async (query, server, port, mark, signal, heard) => {
  const socket = openMarkedDatagrams(isIP(server) === 6 ? 6 : 4, mark);
  const failed = Promise.withResolvers<void>();
  signal.addEventListener('abort', () => socket.close(), { once: true });
  socket.on('error', failed.reject);
  socket.on('close', failed.resolve);
  socket.on('message', heard);
  socket.connect(port, server, (error?: Error) => {
    if (error !== undefined) failed.reject(error);
    else socket.send(query);
  });
  await failed.promise;
};

const streamExchange: Exchange = async (query, server, port, mark, signal, heard) => {
  const socket: Socket = openMarkedSocket(isIP(server) === 6 ? 6 : 4, mark);
  const closed = Promise.withResolvers<void>();
  signal.addEventListener('abort', () => socket.destroy(), { once: true });
  socket.on('error', closed.reject);
  socket.on('close', () => closed.resolve());
  let bytes: Buffer = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length >= 2 && bytes.length >= 2 + bytes.readUInt16BE(0)) {
      heard(bytes.subarray(2, 2 + bytes.readUInt16BE(0)));
      socket.destroy();
    }
  });
  socket.connect({ host: server, port }, () => {
    const length = Buffer.alloc(2);
    length.writeUInt16BE(query.length);
    socket.write(Buffer.concat([length, query]));
  });
  await closed.promise;
};

/** What the hosts file has for a name. */
async function readHosts(host: string, path: string): Promise<string[]> {
  const text = await readFile(path, 'utf8').catch(() => '');
  const wanted = host.toLowerCase();
  return text.split('\n').flatMap((line) => {
    const [address = '', ...names] = (line.split('#')[0] ?? '').trim().split(/\s+/);
    return isIP(address) !== 0 && names.some((name) => name.toLowerCase() === wanted) ? [address] : [];
  });
}
