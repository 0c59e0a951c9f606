/**
 * Lines of a stream of text from somebody who may never end one.
 *
 * Hides how chunks and lines fall together. Of a line no more is kept than asked for, however long it is.
 */

import type { Readable } from 'node:stream';

/**
 * Has `heed` told of each line as it ends, without its end; the stream becomes one of UTF-8 text.
 *
 * @param maxCharacters of a line; of a longer one `heed` is told the beginning, once, with `isCut`
 */
export function readLines(stream: Readable, maxCharacters: number, heed: (line: string, isCut: boolean) => void): void {
  let line = '';
  let isTold = false;
  const add = (text: string): void => {
    if (isTold) return;
    line += text.slice(0, maxCharacters + 1 - line.length);
    if (line.length <= maxCharacters) return;
    isTold = true;
    heed(line.slice(0, maxCharacters), true);
  };
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    let from = 0;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', from)) {
      add(text.slice(from, end));
      if (!isTold) heed(line, false);
      [line, isTold, from] = ['', false, end + 1];
    }
    add(text.slice(from));
  });
}
