/**
 * Reads TypeScript source well enough to hold rules about it: what a file imports, and its code without its words.
 *
 * TypeScript 7 has no API for this. Comments and the contents of strings are blanked in place, so that offsets stay
 * true and neither a comment nor a message can look like code; imports are then found by pattern.
 */

/** One import, export-from, dynamic import or built-in look-up. */
export interface ImportSite {
  /** As written; undefined when it is computed at run time. */
  readonly specifier: string | undefined;
  /** `import type` or `export type`: gone when the program runs. */
  readonly typeOnly: boolean;
  /** 1-based. */
  readonly line: number;
}

/** Blanks comments, the contents of strings, templates and regular expressions; keeps length and lines. */
export function blankWords(text: string): string {
  const out = text.split('');
  const blank = (from: number, to: number): void => {
    for (let i = from; i < to; i++) if (out[i] !== '\n') out[i] = ' ';
  };
  /** Where a `}` closes a template's `${`: the depth of braces at which it does. */
  const templates: number[] = [];
  let depth = 0;
  let i = 0;

  const template = (from: number): number => {
    let at = from;
    while (at < text.length && text[at] !== '`') {
      if (text[at] === '\\') at += 2;
      else if (text[at] === '$' && text[at + 1] === '{') {
        blank(from, at);
        templates.push(depth);
        depth += 1;
        return at + 2;
      } else at += 1;
    }
    blank(from, at);
    return at + 1;
  };

  while (i < text.length) {
    const char = text[i] ?? '';
    if (char === '/' && text[i + 1] === '/') {
      const end = indexOr(text, '\n', i, text.length);
      blank(i, end);
      i = end;
    } else if (char === '/' && text[i + 1] === '*') {
      const end = indexOr(text, '*/', i + 2, text.length - 2) + 2;
      blank(i, end);
      i = end;
    } else if (char === "'" || char === '"') {
      let end = i + 1;
      while (end < text.length && text[end] !== char && text[end] !== '\n') end += text[end] === '\\' ? 2 : 1;
      blank(i + 1, end);
      i = end + 1;
    } else if (char === '`') {
      i = template(i + 1);
    } else if (char === '/' && startsRegExp(out, i)) {
      let end = i + 1;
      for (let inClass = false; end < text.length && (inClass || text[end] !== '/'); end++) {
        if (text[end] === '\\') end += 1;
        else if (text[end] === '[') inClass = true;
        else if (text[end] === ']') inClass = false;
      }
      blank(i + 1, end);
      i = end + 1;
    } else if (char === '{') {
      depth += 1;
      i += 1;
    } else if (char === '}') {
      depth -= 1;
      i += 1;
      if (templates.at(-1) === depth) {
        templates.pop();
        i = template(i);
      }
    } else {
      i += 1;
    }
  }
  return out.join('');
}

/** Every import of a file. */
export function importsOf(text: string): ImportSite[] {
  const code = blankWords(text);
  const sites: ImportSite[] = [];
  const line = (offset: number): number => text.slice(0, offset).split('\n').length;
  const statements = [...code.matchAll(/\b(?:import|export)\b/g)].map((match) => match.index);
  const literal = /(?:\bfrom|\bimport|\b(?:import|require|getBuiltinModule)\s*\()\s*(["'`])( *)\1/dg;
  for (const match of code.matchAll(literal)) {
    const [from, to] = match.indices?.[2] ?? [0, 0];
    const statement = code.slice(statements.findLast((start) => start < match.index) ?? match.index);
    const typeOnly = match[0].startsWith('from') && /^(?:import|export)\s+type\b(?!\s*,|\s+from\b)/.test(statement);
    sites.push({ specifier: text.slice(from, to), typeOnly, line: line(from) });
  }
  for (const match of code.matchAll(/\b(?:import|require|getBuiltinModule)\s*\(\s*(?!["'`] *["'`])/g)) {
    sites.push({ specifier: undefined, typeOnly: false, line: line(match.index) });
  }
  return sites;
}

/** True when the file's first words are a doc comment. */
export function opensWithDocComment(text: string): boolean {
  const comment = /^(?:#![^\n]*\n)?\/\*\*([\s\S]*?)\*\//.exec(text);
  return /\w/.test(comment?.[1] ?? '');
}

function indexOr(text: string, what: string, from: number, otherwise: number): number {
  const index = text.indexOf(what, from);
  return index === -1 ? otherwise : index;
}

/** After a value a slash divides; after an operator, an opening bracket or a keyword it opens an expression. */
function startsRegExp(out: readonly string[], slash: number): boolean {
  const before = out
    .slice(Math.max(0, slash - 40), slash)
    .join('')
    .trimEnd();
  if (before === '') return true;
  return (
    /[(,=:[!&|?{};+\-*%<>~^]$/.test(before) || /\b(?:return|typeof|case|in|of|yield|await|delete|void)$/.test(before)
  );
}
