/**
 * One page of a long list: searching, and going on where the page before ended.
 */

/** What of a list is wanted. */
export interface PageQuery {
  /** Text that one of the item's texts must have in it, whatever its case. */
  readonly search?: string | undefined;
  /** The key of the last item of the page before. */
  readonly after?: string | undefined;
  readonly limit?: number | undefined;
}

/** The items that are wanted, in the order of the list. After a key that is gone there is nothing. */
export function pageOf<T>(
  list: readonly T[],
  { search, after, limit }: PageQuery,
  keyOf: (item: T) => string,
  textsOf: (item: T) => readonly string[],
): T[] {
  const wanted = search?.normalize('NFC').toLowerCase();
  const start = after === undefined ? 0 : list.findIndex((item) => keyOf(item) === after) + 1 || list.length;
  const found: T[] = [];
  for (let index = start; index < list.length && found.length < (limit ?? Number.POSITIVE_INFINITY); index++) {
    const item = list[index] as T;
    if (wanted === undefined || textsOf(item).some((text) => text.toLowerCase().includes(wanted))) found.push(item);
  }
  return found;
}
