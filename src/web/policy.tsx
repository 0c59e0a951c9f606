/**
 * The policy: what is in force, another one as it is written, with what is wrong with it and what it would change.
 */

import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, call, isAtLeast, type Me, type Output, read } from './api.ts';
import { Badge, Button, Dialog, Empty, Field, Form, Moment, Show, saveFile, Table, useLoaded } from './ui.tsx';

const STILL_MS = 600;
const SAMPLE = `version = 1

# Who may reach what. The first rule that fits decides; what no rule allows is denied.
[[rules]]
name = "staff"
action = "allow"
from = ["group:staff"]
to = ["192.168.10.0/24"]
services = ["any"]
`;

export function PolicySection({ me }: { me: Me }) {
  const [current, again] = useLoaded(() => read('policy.text', {}), []);
  const [shown, setShown] = useState<{ text: string; of: string }>();
  const [round, setRound] = useState(0);
  const changed = (): void => {
    setShown(undefined);
    setRound(round + 1);
    again();
  };
  return (
    <>
      <Show loaded={current} what="the policy" retry={again}>
        {({ value: { file, text, isEditable }, tag }) => (
          <>
            {file === null && (
              <Empty title="There is no policy">
                <p>
                  The networks in <code>routes</code> say what clients may reach. Write one here, save it on the
                  gateway, and name it in the configuration as <code>policyFile</code>. From then on it is changed here.
                </p>
              </Empty>
            )}
            {isAtLeast(me.role, 'operator') ? (
              <Draft
                key={`${round} ${shown?.of ?? ''}`}
                file={file}
                inForce={file === null ? SAMPLE : text}
                start={shown}
                tag={isEditable && isAtLeast(me.role, 'administrator') ? tag : undefined}
                mayRead={isAtLeast(me.role, 'administrator') && file !== null}
                changed={changed}
                conflicted={again}
              />
            ) : (
              file !== null && (
                <pre class="card">
                  <code>{text}</code>
                </pre>
              )
            )}
            {file !== null && (
              <History
                tag={isEditable && isAtLeast(me.role, 'administrator') ? tag : undefined}
                look={(version, old) => setShown({ text: old, of: `version ${version}` })}
                mayLook={isAtLeast(me.role, 'operator')}
                changed={changed}
                conflicted={again}
              />
            )}
          </>
        )}
      </Show>
      <Denied />
    </>
  );
}

type Checked = Output<'policy.check'>;

interface DraftProps {
  readonly file: string | null;
  readonly inForce: string;
  /** Another text to begin with. */
  readonly start: { readonly text: string; readonly of: string } | undefined;
  /** Of what is in force; undefined: it cannot be changed here. */
  readonly tag: string | undefined;
  readonly mayRead: boolean;
  readonly changed: () => void;
  /** Somebody else was faster; what is written here stays. */
  readonly conflicted: () => void;
}

function Draft({ file, inForce, start, tag, mayRead, changed, conflicted }: DraftProps) {
  const [draft, setDraft] = useState(start?.text ?? inForce);
  const [checked, setChecked] = useState<{ readonly text: string; readonly result: Checked }>();
  const [said, setSaid] = useState('');
  const [isBusy, setBusy] = useState(false);
  const [isApplying, setApplying] = useState(false);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (start !== undefined) area.current?.focus();
  }, []);
  useEffect(() => {
    let isWanted = true;
    const timer = setTimeout(
      () => {
        call('policy.check', { text: draft }, { background: draft === inForce }).then(
          (result) => {
            if (!isWanted) return;
            setChecked({ text: draft, result });
            setSaid('');
          },
          (error: Error) => isWanted && setSaid(error.message),
        );
      },
      draft === inForce ? 0 : STILL_MS,
    );
    return () => {
      isWanted = false;
      clearTimeout(timer);
    };
  }, [draft, inForce]);
  const go = (line: number): void => {
    const element = area.current;
    if (element === null) return;
    const lines = draft.split('\n');
    const begin = lines.slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
    element.focus();
    element.setSelectionRange(begin, begin + (lines[line - 1]?.length ?? 0));
  };
  const reload = async (): Promise<void> => {
    setBusy(true);
    try {
      await call('server.reload', {});
      changed();
    } catch (error) {
      setSaid((error as Error).message);
    } finally {
      setBusy(false);
    }
  };
  const isGood = checked?.text === draft && checked.result.good;
  return (
    <section aria-label="Write a policy">
      <Field
        label={
          file === null ? 'A first policy' : start === undefined ? `${file}, as it is in force` : `${file}, ${start.of}`
        }
        hint={
          tag === undefined
            ? 'It is checked as you write. Nothing is in force before it is saved on the gateway and read there.'
            : 'It is checked as you write. Nothing changes before you put it in force.'
        }
      >
        {(props) => <Editor {...props} area={area} text={draft} change={setDraft} marks={marksOf(checked?.result)} />}
      </Field>
      <div class="row">
        {tag !== undefined && (
          <Button kind="main" disabled={!isGood || draft === inForce} onClick={() => setApplying(true)}>
            Put in force …
          </Button>
        )}
        <Button
          kind={tag === undefined ? 'main' : 'plain'}
          disabled={!isGood}
          onClick={() => saveFile('policy.toml', draft, 'application/toml')}
        >
          Save as a file
        </Button>
        <Button disabled={draft === inForce} onClick={() => setDraft(inForce)}>
          Back to what is in force
        </Button>
        {mayRead && (
          <Button busy={isBusy} onClick={reload}>
            Read the gateway’s file again
          </Button>
        )}
      </div>
      <p role="status">{said}</p>
      {checked !== undefined && (
        <Verdict checked={checked.result} isSame={draft === inForce && file !== null} go={go} />
      )}
      {isApplying && tag !== undefined && checked !== undefined && (
        <Apply
          title="Put this policy in force?"
          checked={checked.result}
          close={() => setApplying(false)}
          act={async (note) => {
            const { warnings } = await call('policy.apply', { text: draft, note }, { ifMatch: tag });
            return warnings;
          }}
          done={changed}
          conflicted={conflicted}
        />
      )}
    </section>
  );
}

/** Asks before a policy counts, and says afterwards what an operator should know. */
function Apply({
  title,
  checked,
  close,
  act,
  done,
  conflicted,
}: {
  title: string;
  checked: Checked;
  close: () => void;
  act: (note: string) => Promise<readonly string[]>;
  done: () => void;
  conflicted: () => void;
}) {
  const [note, setNote] = useState('');
  const [warnings, setWarnings] = useState<readonly string[]>();
  const { changes, isCut } = checked;
  const allowed = changes.filter(({ after }) => after === 'allow').length;
  const more = isCut ? 'at least ' : '';
  if (warnings !== undefined) {
    return (
      <Dialog title="It is in force" close={done}>
        {warnings.map((text) => (
          <p key={text} class="note">
            {text}
          </p>
        ))}
        <div class="actions">
          <Button kind="main" onClick={done}>
            Done
          </Button>
        </div>
      </Dialog>
    );
  }
  return (
    <Dialog title={title} close={close}>
      <Form
        button="Put in force"
        cancel={close}
        submit={async () => {
          try {
            const said = await act(note);
            if (said.length === 0) done();
            else setWarnings(said);
          } catch (error) {
            if (error instanceof ApiError && error.status === 412) conflicted();
            throw error;
          }
        }}
      >
        <p>
          Where rules speak of something, it allows {more}
          {allowed} and forbids {more}
          {changes.length - allowed} ways that people have or lack now. Live sessions are changed at once; connections
          that it forbids end.
        </p>
        <Field label="Why" hint="Kept with the version, for whoever asks later. May be empty.">
          {(props) => (
            <input {...props} maxLength={256} value={note} onInput={(event) => setNote(event.currentTarget.value)} />
          )}
        </Field>
      </Form>
    </Dialog>
  );
}

function History({
  tag,
  look,
  mayLook,
  changed,
  conflicted,
}: {
  tag: string | undefined;
  look: (version: number, text: string) => void;
  mayLook: boolean;
  changed: () => void;
  conflicted: () => void;
}) {
  const [versions, again] = useLoaded(() => call('policy.history', {}), [tag]);
  const [back, setBack] = useState<{ version: number; checked: Checked }>();
  const [said, setSaid] = useState('');
  const open = async (version: number, use: (text: string) => Promise<void> | void): Promise<void> => {
    setSaid('');
    try {
      await use((await call('policy.version', { version })).text);
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  const ask = (version: number) =>
    open(version, async (text) => {
      const checked = await call('policy.check', { text });
      if (checked.good) setBack({ version, checked });
      else setSaid(`Version ${version} cannot be put in force as it is: its tests fail today. Look at it to see why.`);
    });
  return (
    <section aria-labelledby="versions">
      <h2 id="versions">Versions</h2>
      <Show loaded={versions} what="the versions" retry={again}>
        {(list) => (
          <Table
            label="Versions"
            rows={list}
            keyOf={({ version }) => String(version)}
            columns={[
              { title: 'Version', cell: ({ version }) => String(version) },
              { title: 'When', cell: ({ at }) => <Moment at={at} /> },
              { title: 'By', cell: ({ by }) => by ?? 'the file' },
              { title: 'Why', cell: ({ note }) => <span class="wrap">{note}</span> },
              {
                title: '',
                cell: ({ version, isInForce, hasText }) =>
                  isInForce ? (
                    <Badge tone="good">in force</Badge>
                  ) : (
                    hasText && (
                      <span class="row">
                        {mayLook && (
                          <Button
                            kind="quiet"
                            aria-label={`Look at version ${version}`}
                            onClick={() => open(version, (text) => look(version, text))}
                          >
                            Look
                          </Button>
                        )}
                        {tag !== undefined && (
                          <Button
                            kind="quiet"
                            aria-label={`Roll back to version ${version}`}
                            onClick={() => ask(version)}
                          >
                            Roll back
                          </Button>
                        )}
                      </span>
                    )
                  ),
              },
            ]}
          />
        )}
      </Show>
      <p role="status">{said}</p>
      {back !== undefined && tag !== undefined && (
        <Apply
          title={`Put version ${back.version} in force again?`}
          checked={back.checked}
          close={() => setBack(undefined)}
          act={async (note) => {
            const { version } = back;
            return (await call('policy.rollback', { version, note }, { ifMatch: tag })).warnings;
          }}
          done={() => {
            setBack(undefined);
            changed();
          }}
          conflicted={conflicted}
        />
      )}
    </section>
  );
}

/** What is wrong in which line; the worst of it. */
type Marks = ReadonlyMap<number, { readonly tone: 'error' | 'warning'; readonly message: string }>;

function marksOf(checked: Checked | undefined): Marks {
  const marks = new Map<number, { tone: 'error' | 'warning'; message: string }>();
  const failed = (checked?.outcomes ?? []).filter(({ passed }) => !passed);
  for (const { severity, line, message } of [
    ...failed.map(({ line, reason }) => ({ severity: 'error' as const, line, message: `the test fails: ${reason}` })),
    ...(checked?.problems ?? []),
  ]) {
    if (marks.get(line)?.tone !== 'error') marks.set(line, { tone: severity, message });
  }
  return marks;
}

/** A text with the numbers of its lines, and marks at those in which something is wrong. */
function Editor({
  area,
  text,
  change,
  marks,
  ...props
}: {
  id: string;
  area: preact.RefObject<HTMLTextAreaElement | null>;
  text: string;
  change: (text: string) => void;
  marks: Marks;
}) {
  const gutter = useRef<HTMLDivElement>(null);
  const count = text.split('\n').length;
  return (
    <div class="editor">
      <div class="gutter" aria-hidden="true">
        <div ref={gutter}>
          {Array.from({ length: count }, (_, index) => {
            const mark = marks.get(index + 1);
            return (
              <div key={index} class={mark?.tone ?? ''} title={mark?.message}>
                {index + 1}
              </div>
            );
          })}
        </div>
      </div>
      <textarea
        {...props}
        ref={area}
        class="policy"
        rows={20}
        wrap="off"
        spellcheck={false}
        autoCapitalize="none"
        value={text}
        onInput={(event) => change(event.currentTarget.value)}
        onScroll={(event) => {
          if (gutter.current !== null) gutter.current.style.translate = `0 ${-event.currentTarget.scrollTop}px`;
        }}
      />
    </div>
  );
}

function Verdict({ checked, isSame, go }: { checked: Checked; isSame: boolean; go: (line: number) => void }) {
  const { good, rules, problems, outcomes, changes, isCut } = checked;
  const failed = outcomes.filter(({ passed }) => !passed);
  return (
    <>
      <p role="status">
        <Badge tone={good ? 'good' : 'bad'}>{good ? 'good' : 'not usable'}</Badge> {rules}{' '}
        {rules === 1 ? 'rule' : 'rules'}, {outcomes.length - failed.length} of {outcomes.length} tests hold
      </p>
      {problems.length + failed.length > 0 && (
        <Table
          label="What is wrong"
          rows={[
            ...problems.map(({ severity, line, message }) => ({ severity, line, message })),
            ...failed.map(({ line, text, reason }) => ({
              severity: 'error' as const,
              line,
              message: `the test “${text}” fails: ${reason}`,
            })),
          ]}
          keyOf={({ line, message }) => `${line} ${message}`}
          columns={[
            {
              title: 'Line',
              cell: ({ line }) => (
                <Button kind="quiet" onClick={() => go(line)}>
                  {line}
                </Button>
              ),
            },
            {
              title: 'Weight',
              cell: ({ severity }) => <Badge tone={severity === 'error' ? 'bad' : 'warn'}>{severity}</Badge>,
            },
            { title: 'What', cell: ({ message }) => message },
          ]}
        />
      )}
      {!isSame && problems.every(({ severity }) => severity !== 'error') && (
        <>
          <h2>What it would change</h2>
          {changes.length === 0 ? (
            <Empty title="Nothing, as far as rules speak of it" />
          ) : (
            <Table
              label="What it would change"
              rows={changes}
              keyOf={({ user, destination, service }) => `${user} ${destination} ${service}`}
              columns={[
                { title: 'User', cell: ({ user }) => user },
                {
                  title: 'After it',
                  cell: ({ after }) => (
                    <Badge tone={after === 'allow' ? 'good' : 'bad'}>
                      {after === 'allow' ? 'allowed' : 'forbidden'}
                    </Badge>
                  ),
                },
                { title: 'To', cell: ({ destination }) => <span class="mono">{destination}</span> },
                { title: 'Service', cell: ({ service }) => <span class="mono">{service}</span> },
                { title: 'By', cell: ({ rule }) => rule ?? 'no rule allows it' },
              ]}
            />
          )}
          {isCut && <p class="muted">There is more than is shown here.</p>}
        </>
      )}
    </>
  );
}

function Denied() {
  const [denials, again] = useLoaded(() => call('policy.denied', { limit: 50 }), []);
  return (
    <section aria-labelledby="denied">
      <h2 id="denied">Denied lately</h2>
      <Show loaded={denials} what="what was denied" retry={again}>
        {(list) =>
          list.length === 0 ? (
            <Empty title="Nothing was denied lately" />
          ) : (
            <Table
              label="Denied lately"
              rows={list.toReversed()}
              keyOf={({ id }) => String(id)}
              columns={[
                { title: 'When', cell: ({ at }) => <Moment at={at} /> },
                { title: 'User', cell: ({ user }) => user },
                {
                  title: 'To',
                  cell: ({ destination, protocol, port }) => (
                    <span class="mono">
                      {destination} {protocol}
                      {port === null ? '' : `/${port}`}
                    </span>
                  ),
                },
                {
                  title: 'By',
                  cell: ({ rule }) => (rule === null ? 'no rule allows it' : `${rule.name}, line ${rule.line}`),
                },
                { title: 'Times', cell: ({ count }) => String(count), isNumber: true },
              ]}
            />
          )
        }
      </Show>
    </section>
  );
}
