/**
 * The page's parts that every section uses: buttons, fields, dialogs, tables, notes, and the states of what is loaded.
 *
 * Hides how each is made usable by keyboard and screen reader, and on a narrow screen.
 */

import type { ButtonHTMLAttributes, ComponentChildren } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { encode } from 'uqr';

/** What is loaded: nothing yet, what came, or why not. */
export type Loaded<T> = { readonly state: 'loading' } | { readonly state: 'here'; readonly value: T } | Failed;
interface Failed {
  readonly state: 'failed';
  readonly message: string;
}

/** Loads when `keys` change, and again on `reload`; what was there stays until the new one comes. */
export function useLoaded<T>(load: () => Promise<T>, keys: readonly unknown[]): [Loaded<T>, () => void] {
  const [loaded, setLoaded] = useState<Loaded<T>>({ state: 'loading' });
  const [round, setRound] = useState(0);
  useEffect(() => {
    let isWanted = true;
    load().then(
      (value) => isWanted && setLoaded({ state: 'here', value }),
      (error: Error) => isWanted && setLoaded({ state: 'failed', message: error.message }),
    );
    return () => {
      isWanted = false;
    };
  }, [...keys, round]);
  return [loaded, () => setRound((count) => count + 1)];
}

export function Loading({ what }: { what: string }) {
  return (
    <div class="state" role="status">
      <span class="spinner" aria-hidden="true" /> Loading {what} …
    </div>
  );
}

export function Failure({ message, retry }: { message: string; retry?: () => void }) {
  return (
    <div class="state failure" role="alert">
      <strong>That did not work.</strong>
      <p>{message}</p>
      {retry !== undefined && <Button onClick={retry}>Try again</Button>}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="state empty">
      <strong>{title}</strong>
      {children}
    </div>
  );
}

/** What is loaded, or what is to be said in its place. */
export function Show<T>({
  loaded,
  what,
  retry,
  children,
}: {
  loaded: Loaded<T>;
  what: string;
  retry?: () => void;
  children: (value: T) => ComponentChildren;
}) {
  if (loaded.state === 'loading') return <Loading what={what} />;
  if (loaded.state === 'failed')
    return <Failure message={loaded.message} {...(retry === undefined ? {} : { retry })} />;
  return <>{children(loaded.value)}</>;
}

export function Button({
  kind = 'plain',
  busy = false,
  children,
  ...rest
}: {
  kind?: 'plain' | 'main' | 'danger' | 'quiet';
  busy?: boolean;
  children: ComponentChildren;
} & Omit<ButtonHTMLAttributes, 'children'>) {
  return (
    <button type="button" {...rest} class={`button ${kind}`} disabled={busy || rest.disabled === true} aria-busy={busy}>
      {children}
    </button>
  );
}

/** A field with its label, a hint and what is wrong with it. */
export function Field({
  label,
  hint,
  children,
}: {
  label: string;
  hint?: ComponentChildren;
  children: (props: { id: string; 'aria-describedby'?: string }) => ComponentChildren;
}) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({ id, ...(hint === undefined ? {} : { 'aria-describedby': `${id}-hint` }) })}
      {hint !== undefined && (
        <p class="hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
    </div>
  );
}

/** A form whose submission may take time and may fail. */
export function Form({
  submit,
  button,
  danger = false,
  children,
  cancel,
}: {
  submit: () => Promise<void>;
  button: string;
  danger?: boolean;
  children?: ComponentChildren;
  cancel?: () => void;
}) {
  const [busy, setBusy] = useState(false);
  const [wrong, setWrong] = useState('');
  const run = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    setWrong('');
    try {
      await submit();
    } catch (error) {
      setWrong((error as Error).message);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form onSubmit={run}>
      {children}
      {wrong !== '' && (
        <p class="wrong" role="alert">
          {wrong}
        </p>
      )}
      <div class="actions">
        {cancel !== undefined && (
          <Button kind="quiet" onClick={cancel}>
            Cancel
          </Button>
        )}
        <Button kind={danger ? 'danger' : 'main'} type="submit" busy={busy}>
          {button}
        </Button>
      </div>
    </form>
  );
}

/** A dialog over the page; Escape and the button close it, and focus goes back to where it was. */
export function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby={id} onClose={close}>
      <header>
        <h2 id={id}>{title}</h2>
        <button type="button" class="close" aria-label="Close" onClick={() => dialog.current?.close()}>
          ×
        </button>
      </header>
      {children}
    </dialog>
  );
}

/** Asks before something that cannot be taken back. */
export function Confirm({
  title,
  button,
  act,
  close,
  children,
}: {
  title: string;
  button: string;
  act: () => Promise<void>;
  close: () => void;
  children: ComponentChildren;
}) {
  return (
    <Dialog title={title} close={close}>
      <Form
        submit={async () => {
          await act();
          close();
        }}
        button={button}
        danger
        cancel={close}
      >
        {children}
      </Form>
    </Dialog>
  );
}

export function Badge({
  tone = 'plain',
  children,
}: {
  tone?: 'plain' | 'good' | 'warn' | 'bad';
  children: ComponentChildren;
}) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

export interface Column<T> {
  readonly title: string;
  readonly cell: (row: T) => ComponentChildren;
  /** Digits are easier to compare at the right. */
  readonly isNumber?: boolean;
}

/** A table that becomes a list of cards where there is no room for columns. */
export function Table<T>({
  label,
  columns,
  rows,
  keyOf,
}: {
  label: string;
  columns: readonly Column<T>[];
  rows: readonly T[];
  keyOf: (row: T) => string;
}) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what is beyond the edge is reached by the keyboard, too
    <section class="scroll" aria-label={label} tabIndex={0}>
      <table>
        <thead>
          <tr>
            {columns.map(({ title, isNumber }) => (
              <th key={title} scope="col" class={isNumber === true ? 'number' : ''}>
                {title === '' ? <span class="hidden">Actions</span> : title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map(({ title, cell, isNumber }) => (
                <td key={title} data-label={title} class={isNumber === true ? 'number' : ''}>
                  {cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

/** Text that is wanted elsewhere. */
export function Copy({ text, label = 'Copy' }: { text: string; label?: string }) {
  const [said, setSaid] = useState('');
  const copy = async (): Promise<void> => {
    try {
      await navigator.clipboard.writeText(text);
      setSaid('Copied');
    } catch {
      setSaid('Select and copy it yourself');
    }
  };
  return (
    <>
      <Button onClick={copy}>{said === '' ? label : said}</Button>
      <span class="hidden" role="status">
        {said}
      </span>
    </>
  );
}

/** A QR code, dark on light in every theme: cameras want it so. */
export function QrCode({ text, label }: { text: string; label: string }) {
  const { data, size } = encode(text, { ecc: 'L', border: 4 });
  let path = '';
  for (const [y, row] of data.entries())
    for (const [x, isDark] of row.entries()) if (isDark) path += `M${x} ${y}h1v1h-1z`;
  return (
    <svg class="qr" role="img" aria-label={label} viewBox={`0 0 ${size} ${size}`} shape-rendering="crispEdges">
      <rect width={size} height={size} fill="#fff" />
      <path d={path} fill="#000" />
    </svg>
  );
}

/** Gives a text as a file. */
export function saveFile(name: string, text: string, type: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];

/** Bytes for people. */
export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Bits a second for people. */
export function bitRate(bytesPerSecond: number): string {
  return `${bytes(bytesPerSecond * 8).replace('B', 'bit')}/s`;
}

/** How long ago, in one unit. */
export function age(instant: string, now = Date.now()): string {
  const seconds = Math.max(0, Math.round((now - Date.parse(instant)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** A moment, in the reader's own words; the exact one for whoever wants it. */
export function Moment({ at }: { at: string }) {
  const date = new Date(at);
  const isToday = date.toDateString() === new Date().toDateString();
  const text = isToday
    ? date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' })
    : date.toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
  return (
    <time dateTime={at} title={at}>
      {text}
    </time>
  );
}

/** A text that changes while it is typed, told when it has been still for a moment. */
export function SearchBox({ label, search }: { label: string; search: (text: string) => void }) {
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  return (
    <input
      type="search"
      class="search"
      aria-label={label}
      placeholder={label}
      onInput={(event) => {
        const { value } = event.currentTarget;
        clearTimeout(timer.current);
        timer.current = setTimeout(() => search(value.trim()), 200) as unknown as number;
      }}
    />
  );
}
