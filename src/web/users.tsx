/**
 * Users and their groups: the list, and adding somebody.
 */

import { useState } from 'preact/hooks';
import { call, isAtLeast, type Me } from './api.ts';
import { Badge, Button, Dialog, Empty, Field, Form, SearchBox, Show, Table, useLoaded } from './ui.tsx';

const PAGE = 100;

/** Words of a field, separated by commas or spaces. */
export const wordsOf = (text: string): string[] => text.split(/[\s,]+/).filter((word) => word !== '');

export function Users({ me, adding }: { me: Me; adding: boolean }) {
  const [search, setSearch] = useState('');
  const [group, setGroup] = useState('');
  const [state, setState] = useState<'' | 'enabled' | 'disabled'>('');
  const [limit, setLimit] = useState(PAGE);
  const [isAdding, setAdding] = useState(adding);
  const [groups, groupsAgain] = useLoaded(() => call('user.groups', {}), []);
  const [users, again] = useLoaded(
    () =>
      call('user.list', {
        limit,
        ...(search === '' ? {} : { search }),
        ...(group === '' ? {} : { group }),
        ...(state === '' ? {} : { state }),
      }),
    [search, group, state, limit],
  );
  const mayWork = isAtLeast(me.role, 'operator');
  return (
    <>
      <div class="toolbar">
        <SearchBox label="Search name or group" search={setSearch} />
        <select aria-label="Group" value={group} onChange={(event) => setGroup(event.currentTarget.value)}>
          <option value="">all groups</option>
          {groups.state === 'here' &&
            groups.value.map(({ name, users: count }) => (
              <option key={name} value={name}>
                {name} ({count})
              </option>
            ))}
        </select>
        <select
          aria-label="State"
          value={state}
          onChange={(event) => setState(event.currentTarget.value as typeof state)}
        >
          <option value="">all states</option>
          <option value="enabled">enabled</option>
          <option value="disabled">disabled</option>
        </select>
        {mayWork && (
          <Button kind="main" onClick={() => setAdding(true)}>
            Add a user
          </Button>
        )}
      </div>
      <Show loaded={users} what="users" retry={again}>
        {(list) =>
          list.length === 0 ? (
            <Empty title="Nobody is like this">
              <p>{search !== '' || group !== '' || state !== '' ? 'Try another search.' : 'Add somebody to begin.'}</p>
            </Empty>
          ) : (
            <>
              <Table
                label="Users"
                rows={list}
                keyOf={({ name }) => name}
                columns={[
                  { title: 'Name', cell: ({ name }) => <a href={`#/users/${encodeURIComponent(name)}`}>{name}</a> },
                  { title: 'Groups', cell: ({ groups: own }) => (own.length === 0 ? '–' : own.join(', ')) },
                  {
                    title: 'State',
                    cell: ({ disabled, expiresAt }) =>
                      disabled ? (
                        <Badge tone="bad">disabled</Badge>
                      ) : expiresAt !== null && Date.parse(expiresAt) <= Date.now() ? (
                        <Badge tone="warn">expired</Badge>
                      ) : (
                        <Badge tone="good">enabled</Badge>
                      ),
                  },
                  { title: 'Source', cell: ({ source }) => source ?? 'here' },
                  { title: 'Devices', cell: ({ devices }) => String(devices), isNumber: true },
                ]}
              />
              {list.length === limit && limit < 1000 && (
                <p class="row">
                  <Button onClick={() => setLimit(Math.min(limit + PAGE, 1000))}>Show more</Button>
                </p>
              )}
              {limit >= 1000 && list.length === limit && (
                <p class="muted">The first 1,000 are shown. Search to find others.</p>
              )}
            </>
          )
        }
      </Show>
      {isAdding && mayWork && (
        <AddUser
          close={() => setAdding(false)}
          added={(name) => {
            groupsAgain();
            location.hash = `#/users/${encodeURIComponent(name)}?profile`;
          }}
        />
      )}
    </>
  );
}

function AddUser({ close, added }: { close: () => void; added: (name: string) => void }) {
  const [name, setName] = useState('');
  const [groups, setGroups] = useState('');
  const [password, setPassword] = useState('');
  return (
    <Dialog title="Add a user" close={close}>
      <Form
        button="Add user"
        cancel={close}
        submit={async () => {
          const made = await call('user.add', {
            name: name.trim(),
            groups: wordsOf(groups),
            ...(password === '' ? {} : { password }),
          });
          close();
          added(made.name);
        }}
      >
        <Field label="Name" hint="Letters, digits and . _ @ + -">
          {(props) => (
            <input
              {...props}
              required
              autoComplete="off"
              autoCapitalize="none"
              spellcheck={false}
              value={name}
              onInput={(event) => setName(event.currentTarget.value)}
            />
          )}
        </Field>
        <Field label="Groups" hint="Optional; separated by commas.">
          {(props) => (
            <input
              {...props}
              autoComplete="off"
              autoCapitalize="none"
              value={groups}
              onInput={(event) => setGroups(event.currentTarget.value)}
            />
          )}
        </Field>
        <Field label="Password" hint="Optional: only where logins ask for one. A profile is enough to connect.">
          {(props) => (
            <input
              {...props}
              type="password"
              autoComplete="new-password"
              value={password}
              onInput={(event) => setPassword(event.currentTarget.value)}
            />
          )}
        </Field>
      </Form>
    </Dialog>
  );
}
