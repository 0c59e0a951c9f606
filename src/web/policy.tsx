/**
 * The policy: what is in force, another one as it is written, with what is wrong with it and what it would change.
 */

import { useEffect, useRef, useState } from 'preact/hooks';
import { call, isAtLeast, type Me, type Output } from './api.ts';
import { Badge, Button, Empty, Field, Moment, Show, saveFile, Table, useLoaded } from './ui.tsx';

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
  const [current, again] = useLoaded(() => call('policy.text', {}), []);
  return (
    <>
      <Show loaded={current} what="the policy" retry={again}>
        {({ file, text }) => (
          <>
            {file === null && (
              <Empty title="There is no policy">
                <p>
                  The networks in <code>routes</code> say what clients may reach. Write one here, save it on the
                  gateway, and name it in the configuration as <code>policyFile</code>.
                </p>
              </Empty>
            )}
            {isAtLeast(me.role, 'operator') ? (
              <Draft me={me} file={file} text={file === null ? SAMPLE : text} applied={again} />
            ) : (
              file !== null && (
                <pre class="card">
                  <code>{text}</code>
                </pre>
              )
            )}
          </>
        )}
      </Show>
      <Denied />
    </>
  );
}

type Checked = Output<'policy.check'>;

function Draft({ me, file, text, applied }: { me: Me; file: string | null; text: string; applied: () => void }) {
  const [draft, setDraft] = useState(text);
  const [checked, setChecked] = useState<Checked>();
  const [said, setSaid] = useState('');
  const [isBusy, setBusy] = useState(false);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    let isWanted = true;
    const timer = setTimeout(
      () => {
        call('policy.check', { text: draft }, { background: draft === text }).then(
          (result) => {
            if (!isWanted) return;
            setChecked(result);
            setSaid('');
          },
          (error: Error) => isWanted && setSaid(error.message),
        );
      },
      draft === text ? 0 : STILL_MS,
    );
    return () => {
      isWanted = false;
      clearTimeout(timer);
    };
  }, [draft, text]);
  const go = (line: number): void => {
    const element = area.current;
    if (element === null) return;
    const lines = draft.split('\n');
    const start = lines.slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
    element.focus();
    element.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  };
  const reload = async (): Promise<void> => {
    setBusy(true);
    try {
      const { applied: keys } = await call('server.reload', {});
      setSaid(
        keys.includes('policyFile')
          ? 'The file on the gateway is in force.'
          : 'The file on the gateway has been read again.',
      );
      applied();
    } catch (error) {
      setSaid((error as Error).message);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section aria-label="Write a policy">
      <Field
        label={file === null ? 'A first policy' : `${file}, as it is in force`}
        hint="It is checked as you write. Nothing is in force before it is saved on the gateway and read there."
      >
        {(props) => (
          <textarea
            {...props}
            ref={area}
            class="policy"
            rows={18}
            spellcheck={false}
            autoCapitalize="none"
            value={draft}
            onInput={(event) => setDraft(event.currentTarget.value)}
          />
        )}
      </Field>
      <div class="row">
        <Button
          kind="main"
          disabled={checked?.good !== true}
          onClick={() => saveFile('policy.toml', draft, 'application/toml')}
        >
          Save as a file
        </Button>
        <Button disabled={draft === text} onClick={() => setDraft(text)}>
          Back to what is in force
        </Button>
        {isAtLeast(me.role, 'administrator') && file !== null && (
          <Button busy={isBusy} onClick={reload}>
            Read the gateway’s file again
          </Button>
        )}
      </div>
      <p role="status">{said}</p>
      {checked !== undefined && <Verdict checked={checked} isSame={draft === text && file !== null} go={go} />}
    </section>
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
