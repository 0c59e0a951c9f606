/**
 * A file over HTTP, for showing that what goes through a tunnel arrives: a server that makes the file up as it sends it,
 * and a client that only counts and hashes. Neither needs a disk.
 *
 *   node file-peer.ts serve ADDRESS PORT BYTES MARKER   prints `sha256 HEX`, then `ready`; runs until it is ended
 *   node file-peer.ts fetch URL                         prints `at BYTES` as it goes, then one line of JSON
 *
 * MARKER, in hexadecimal, stands in the file every 64 KiB. The file is the same for the same BYTES and MARKER.
 */

import { createHash } from 'node:crypto';
import { createServer, get, type IncomingMessage, type ServerResponse } from 'node:http';
import { pathToFileURL } from 'node:url';

const BLOCK_BYTES = 1024 * 1024;
const MARKER_SPACING = 65_536;
const PROGRESS_MS = 500;

/** What the fetching side prints at its end. */
export interface FetchResult {
  bytes: number;
  sha256: string;
  /** From the first byte of the answer to the last. */
  seconds: number;
}

/** The file, block by block. Every block is the same memory, good until the next is asked for. */
export function* fileBlocks(bytes: number, marker: Buffer): Generator<Buffer> {
  const block = Buffer.alloc(BLOCK_BYTES);
  // Bytes that do not repeat within a block: SHA-256 in counter mode.
  for (let offset = 0; offset < BLOCK_BYTES; offset += 32) {
    createHash('sha256').update(marker).update(String(offset)).digest().copy(block, offset);
  }
  for (let offset = MARKER_SPACING / 2; offset < BLOCK_BYTES; offset += MARKER_SPACING) marker.copy(block, offset);
  for (let sent = 0; sent < bytes; sent += BLOCK_BYTES) {
    // Each block differs from every other, so that one that is lost, repeated or moved is noticed.
    block.writeDoubleBE(sent, 0);
    yield block.subarray(0, Math.min(BLOCK_BYTES, bytes - sent));
  }
}

function serve(address: string, port: number, bytes: number, marker: Buffer): void {
  const hash = createHash('sha256');
  for (const block of fileBlocks(bytes, marker)) hash.update(block);
  process.stdout.write(`sha256 ${hash.digest('hex')}\n`);
  createServer((_request, response) => {
    response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': bytes });
    void send(response, bytes, marker);
  }).listen(port, address, () => process.stdout.write('ready\n'));
}

/** One block at a time: its memory is reused once it has been written. */
async function send(response: ServerResponse, bytes: number, marker: Buffer): Promise<void> {
  for (const block of fileBlocks(bytes, marker)) {
    const failed = await new Promise<Error | null | undefined>((resolve) => response.write(block, resolve));
    if (failed) return;
  }
  response.end();
}

async function fetchFile(url: string): Promise<FetchResult> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => get(url, resolve).on('error', reject));
  const hash = createHash('sha256');
  const start = performance.now();
  let bytes = 0;
  let told = start;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    hash.update(chunk);
    bytes += chunk.length;
    if (performance.now() - told < PROGRESS_MS) continue;
    told = performance.now();
    process.stdout.write(`at ${bytes}\n`);
  }
  return { bytes, sha256: hash.digest('hex'), seconds: (performance.now() - start) / 1000 };
}

async function main(words: readonly string[]): Promise<void> {
  const [verb, first = '', port, bytes, marker = ''] = words;
  if (verb === 'serve') serve(first, Number(port), Number(bytes), Buffer.from(marker, 'hex'));
  else if (verb === 'fetch') process.stdout.write(`${JSON.stringify(await fetchFile(first))}\n`);
  else {
    process.stderr.write('usage: file-peer.ts serve ADDRESS PORT BYTES MARKER | fetch URL\n');
    process.exitCode = 64;
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main(process.argv.slice(2));
