/**
 * Data frames made shorter with zstd, each by itself: nothing of one frame is ever used for another.
 *
 * Hides the codec, its bounds, and which flows are worth trying: one whose frames do not shrink is left alone for a while,
 * twice as long each time. What comes back is bounded by what the frame says and by the longest frame, whatever it holds.
 * Compression tells lengths, and lengths can tell secrets (docs/security.md): it is used only where both ends ask for it.
 *
 * @see docs/protocol.md#REQ-ZSTD-001
 */

import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { type FlowKey, flowHash } from '../ip/packet.ts';
import {
  COMPRESSED_HEADER_BYTES,
  FRAME_HEADER_BYTES,
  FrameType,
  MAX_PACKET_PAYLOAD_BYTES,
  MAX_SUPER_PAYLOAD_BYTES,
  SUPER_HEADER_BYTES,
  writeFrameHeader,
} from '../protocol/frame.ts';
import { frameLength, isPacketFrame, packetOffset } from './data-frame.ts';

/** Shorter ones are not worth the call. */
const LEAST_BYTES = 256;
/** A frame goes compressed if it is shorter by a sixteenth at least. */
const LEAST_GAIN = 1 / 16;
const FLOWS = 256;
/** How many frames of a flow are left alone at most. */
const MAX_SKIPPED = 64;
/** The longest distance of a reference back, as a power of two: what a decoder has to hold. */
const WINDOW_LOG = 17;

const COMPRESSING = {
  params: {
    [constants.ZSTD_c_compressionLevel]: 1,
    [constants.ZSTD_c_windowLog]: WINDOW_LOG,
    [constants.ZSTD_c_contentSizeFlag]: 0,
  },
};
const EXPANDING = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG };

/** Compresses what one session sends. */
export class FrameCompressor {
  readonly #key: FlowKey;
  /** By flow: frames that are still left alone, and how many the next time. */
  readonly #skip = new Uint8Array(FLOWS);
  readonly #penalty = new Uint8Array(FLOWS);
  #packed = Buffer.alloc(0);

  /** @param key spreads flows */
  constructor(key: FlowKey = [0, 0]) {
    this.#key = key;
  }

  /** @returns the same frames, some of them compressed; good until the next call. What does not shrink is as it was. */
  pack(batch: Buffer): Buffer {
    if (this.#packed.length < batch.length) this.#packed = Buffer.allocUnsafeSlow(batch.length);
    const packed = this.#packed;
    let end = 0;
    for (let at = 0; at < batch.length; ) {
      const length = frameLength(batch, at);
      const short = this.#compress(batch, at, length);
      if (short === undefined) {
        batch.copy(packed, end, at, at + length);
        end += length;
      } else {
        writeFrameHeader(packed, end, FrameType.compressed, COMPRESSED_HEADER_BYTES + short.length);
        // The header of the frame that it was: type and length.
        batch.copy(packed, end + FRAME_HEADER_BYTES, at, at + FRAME_HEADER_BYTES);
        short.copy(packed, end + FRAME_HEADER_BYTES + COMPRESSED_HEADER_BYTES);
        end += FRAME_HEADER_BYTES + COMPRESSED_HEADER_BYTES + short.length;
      }
      at += length;
    }
    return packed.subarray(0, end);
  }

  #compress(batch: Buffer, at: number, length: number): Buffer | undefined {
    const payload = length - FRAME_HEADER_BYTES;
    if (payload < LEAST_BYTES || !isPacketFrame(batch, at)) return undefined;
    const offset = packetOffset(batch, at);
    const flow = flowHash(batch, at + offset, length - offset, this.#key) % FLOWS;
    const skip = this.#skip[flow] ?? 0;
    if (skip > 0) {
      this.#skip[flow] = skip - 1;
      return undefined;
    }
    const short = zstdCompressSync(batch.subarray(at + FRAME_HEADER_BYTES, at + length), COMPRESSING);
    if (short.length + COMPRESSED_HEADER_BYTES <= payload * (1 - LEAST_GAIN)) {
      this.#penalty[flow] = 0;
      return short;
    }
    const penalty = Math.min(MAX_SKIPPED, 2 * (this.#penalty[flow] ?? 0) + 1);
    this.#penalty[flow] = penalty;
    this.#skip[flow] = penalty;
    return undefined;
  }
}

/** A frame that was compressed. */
export interface ExpandedFrame {
  readonly type: number;
  readonly payload: Uint8Array;
}

/** @param payload of a COMPRESSED frame @returns undefined for what is none, or not as long as it says */
export function expandFrame(payload: Uint8Array): ExpandedFrame | undefined {
  const type = payload[0] ?? 0;
  const length = frameLength(payload, 0) - FRAME_HEADER_BYTES;
  const isSuper = type === FrameType.super;
  if (!isSuper && type !== FrameType.packet) return undefined;
  if (length > (isSuper ? MAX_SUPER_PAYLOAD_BYTES : MAX_PACKET_PAYLOAD_BYTES)) return undefined;
  if (length < (isSuper ? SUPER_HEADER_BYTES + 1 : 1)) return undefined;
  try {
    const expanded = zstdDecompressSync(payload.subarray(COMPRESSED_HEADER_BYTES), {
      params: EXPANDING,
      maxOutputLength: length,
    });
    return expanded.length === length ? { type, payload: expanded } : undefined;
  } catch {
    return undefined;
  }
}
