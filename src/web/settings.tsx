/**
 * How the gateway is configured, who is held back or logged in here, and what an administrator does to the gateway itself.
 */

import { useState } from 'preact/hooks';
import { call, entrances, isAtLeast, type Me, passkeys } from './api.ts';
import { knowsPasskeys } from './passkey.ts';
import { age, Badge, Button, Confirm, Dialog, Empty, Field, Form, Moment, Show, Table, useLoaded } from './ui.tsx';

export function Settings({ me }: { me: Me }) {
  const isRuler = isAtLeast(me.role, 'administrator');
  return (
    <>
      <Passkeys me={me} />
      {isRuler && <Gateway />}
      <Bans me={me} />
      {isRuler && <Operators />}
      <Configuration />
    </>
  );
}

/** One's own, whatever one's role. */
function Passkeys({ me }: { me: Me }) {
  const [list, again] = useLoaded(() => passkeys.list(), []);
  const [offers] = useLoaded(entrances, []);
  const [open, setOpen] = useState<'add' | { readonly id: string; readonly name: string }>();
  const [name, setName] = useState('');
  const close = (): void => setOpen(undefined);
  const mayAdd = knowsPasskeys && offers.state === 'here' && offers.value.passkey;
  return (
    <section aria-labelledby="passkeys">
      <h2 id="passkeys">Your passkeys</h2>
      <Show loaded={list} what="your passkeys" retry={again}>
        {(own) =>
          own.length === 0 ? (
            <Empty title="You have none">
              <p>A passkey lets you in by your finger, face or PIN, in place of password and code.</p>
            </Empty>
          ) : (
            <Table
              label="Your passkeys"
              rows={own}
              keyOf={({ id }) => id}
              columns={[
                { title: 'Name', cell: ({ name: called }) => called },
                { title: 'For', cell: ({ host }) => <span class="mono">{host}</span> },
                { title: 'Since', cell: ({ createdAt }) => <Moment at={createdAt} /> },
                {
                  title: 'Last used',
                  cell: ({ lastUsedAt }) => (lastUsedAt === null ? 'never' : <Moment at={lastUsedAt} />),
                },
                {
                  title: '',
                  cell: ({ id, name: called }) => (
                    <Button kind="quiet" aria-label={`Remove ${called}`} onClick={() => setOpen({ id, name: called })}>
                      Remove
                    </Button>
                  ),
                },
              ]}
            />
          )
        }
      </Show>
      {mayAdd ? (
        <div class="row">
          <Button onClick={() => setOpen('add')}>Add a passkey</Button>
        </div>
      ) : (
        offers.state === 'here' && (
          <p class="hint">
            To add one, reach this page by a name, such as <code>localhost</code>: browsers know no passkeys for
            addresses.
          </p>
        )
      )}
      {open === 'add' && (
        <Dialog title="Add a passkey" close={close}>
          <Form
            button="Make it"
            cancel={close}
            submit={async () => {
              await passkeys.add(me.user, name);
              setName('');
              close();
              again();
            }}
          >
            <Field label="What do you call it?" hint="Such as the device that holds it.">
              {(props) => (
                <input
                  {...props}
                  required
                  maxLength={64}
                  value={name}
                  onInput={(event) => setName(event.currentTarget.value)}
                />
              )}
            </Field>
          </Form>
        </Dialog>
      )}
      {typeof open === 'object' && (
        <Confirm
          title={`Remove ${open.name}?`}
          button="Remove passkey"
          close={close}
          act={async () => {
            await passkeys.remove(open.id);
            again();
          }}
        >
          <p>It opens this page no more. Remove it from your authenticator, too.</p>
        </Confirm>
      )}
    </section>
  );
}

function Gateway() {
  const [said, setSaid] = useState('');
  const [isDraining, setDraining] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const reload = async (): Promise<void> => {
    setBusy(true);
    try {
      const { applied, needsRestart } = await call('server.reload', {});
      const rest = needsRestart.length === 0 ? '' : ` These need a restart: ${needsRestart.join(', ')}.`;
      setSaid(`${applied.length === 0 ? 'Nothing had changed.' : `In force: ${applied.join(', ')}.`}${rest}`);
    } catch (error) {
      setSaid((error as Error).message);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="card" aria-labelledby="gateway">
      <h2 id="gateway">Gateway</h2>
      <p>
        The configuration is a file on the gateway. After a change there, put it in force here; no connection is lost.
      </p>
      <div class="row">
        <Button busy={isBusy} onClick={reload}>
          Read the configuration again
        </Button>
        <Button kind="danger" onClick={() => setDraining(true)}>
          Drain and stop
        </Button>
      </div>
      <p role="status">{said}</p>
      {isDraining && (
        <Confirm
          title="Drain and stop the gateway?"
          button="Drain"
          close={() => setDraining(false)}
          act={async () => {
            const { sessions, until } = await call('server.drain', { seconds: 300 });
            setSaid(`${sessions} sessions are left; the gateway stops by ${new Date(until).toLocaleTimeString()}.`);
          }}
        >
          <p>Nobody new is let in. The gateway stops when no session is left, at the latest in five minutes.</p>
          <p>This page stops with it; start the gateway again on its machine.</p>
        </Confirm>
      )}
    </section>
  );
}

function Bans({ me }: { me: Me }) {
  const [bans, again] = useLoaded(() => call('server.bans', {}), []);
  return (
    <section aria-labelledby="bans">
      <h2 id="bans">Held back after failed logins</h2>
      <Show loaded={bans} what="bans" retry={again}>
        {(list) =>
          list.length === 0 ? (
            <Empty title="Nobody is held back" />
          ) : (
            <Table
              label="Held back"
              rows={list}
              keyOf={({ kind, key }) => `${kind} ${key}`}
              columns={[
                { title: 'What', cell: ({ kind }) => kind },
                { title: 'Which', cell: ({ key }) => <span class="mono">{key}</span> },
                {
                  title: 'State',
                  cell: ({ banned }) => <Badge tone={banned ? 'bad' : 'warn'}>{banned ? 'banned' : 'waits'}</Badge>,
                },
                { title: 'Failures', cell: ({ failures }) => String(failures), isNumber: true },
                { title: 'Until', cell: ({ until }) => <Moment at={until} /> },
                {
                  title: '',
                  cell: ({ kind, key }) =>
                    kind !== 'device' &&
                    isAtLeast(me.role, 'operator') && (
                      <Button
                        kind="quiet"
                        aria-label={`Let ${key} in again`}
                        onClick={async () => {
                          if (kind === 'source') await call('server.unban', { source: key });
                          else await call('user.unlock', { name: key });
                          again();
                        }}
                      >
                        Let in again
                      </Button>
                    ),
                },
              ]}
            />
          )
        }
      </Show>
    </section>
  );
}

function Operators() {
  const [sessions, again] = useLoaded(() => call('admin.sessions', {}), []);
  return (
    <section aria-labelledby="operators">
      <h2 id="operators">Logged in at this page</h2>
      <Show loaded={sessions} what="who is logged in" retry={again}>
        {(list) => (
          <Table
            label="Logged in"
            rows={list}
            keyOf={({ id }) => id}
            columns={[
              { title: 'User', cell: ({ user }) => user },
              { title: 'Role', cell: ({ role }) => role },
              { title: 'From', cell: ({ source }) => <span class="mono">{source}</span> },
              { title: 'For', cell: ({ since }) => age(since) },
            ]}
          />
        )}
      </Show>
    </section>
  );
}

function Configuration() {
  const [settings, again] = useLoaded(() => call('server.settings', {}), []);
  return (
    <section aria-labelledby="configuration">
      <h2 id="configuration">Configuration in force</h2>
      <Show loaded={settings} what="the configuration" retry={again}>
        {({ values, reloadable }) => (
          <Table
            label="Configuration"
            rows={linesOf(values)}
            keyOf={({ key }) => key}
            columns={[
              { title: 'Key', cell: ({ key }) => <span class="mono">{key}</span> },
              { title: 'Value', cell: ({ value }) => <span class="mono wrap">{value}</span> },
              {
                title: 'A change',
                cell: ({ key }) => (reloadable.includes(key.split('.')[0] ?? '') ? 'at a reload' : 'at a restart'),
              },
            ]}
          />
        )}
      </Show>
    </section>
  );
}

function linesOf(values: Readonly<Record<string, unknown>>, before = ''): { key: string; value: string }[] {
  return Object.entries(values).flatMap(([name, value]) => {
    const key = `${before}${name}`;
    const isTable = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isTable
      ? linesOf(value as Record<string, unknown>, `${key}.`)
      : [
          {
            key,
            value:
              JSON.stringify(value)
                .replaceAll(/[[\]"]/g, '')
                .replaceAll(',', ', ') || '–',
          },
        ];
  });
}
