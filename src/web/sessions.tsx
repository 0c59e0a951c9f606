/**
 * Who is connected, as it changes.
 */

import { useEffect, useMemo, useState } from 'preact/hooks';
import type { SessionInfo } from '../control/operations.ts';
import { call, isAtLeast, listen, type Me } from './api.ts';
import { age, Badge, Button, bytes, Confirm, Empty, Loading, SearchBox, Table } from './ui.tsx';

/** More rows are nothing that anybody reads: there is the search. */
const MAX_ROWS = 200;

type Change =
  | { readonly all: readonly SessionInfo[] }
  | { readonly changed: readonly SessionInfo[]; readonly removed: string[] };

export function Sessions({ me }: { me: Me }) {
  const [sessions, setSessions] = useState<ReadonlyMap<string, SessionInfo>>();
  const [isLive, setLive] = useState(true);
  const [search, setSearch] = useState('');
  const [chosen, setChosen] = useState<SessionInfo>();
  useEffect(
    () =>
      listen(
        ['sessions'],
        (_, data) => {
          const change = data as Change;
          setSessions((former) => {
            if ('all' in change) return new Map(change.all.map((session) => [session.id, session]));
            const next = new Map(former);
            for (const session of change.changed) next.set(session.id, session);
            for (const id of change.removed) next.delete(id);
            return next;
          });
        },
        setLive,
      ),
    [],
  );
  const found = useMemo(() => {
    const wanted = search.toLowerCase();
    return [...(sessions?.values() ?? [])].filter(({ id, user, device, peer, addresses }) =>
      [id, user, device, peer, ...addresses].some((text) => text.toLowerCase().includes(wanted)),
    );
  }, [sessions, search]);
  if (sessions === undefined) return <Loading what="sessions" />;
  return (
    <>
      <div class="toolbar">
        <SearchBox label="Search name, device or address" search={setSearch} />
        <span role="status" class="muted">
          {isLive ? `${found.length} of ${sessions.size} sessions` : 'The connection is lost; trying again …'}
        </span>
      </div>
      {found.length === 0 ? (
        <Empty title={sessions.size === 0 ? 'Nobody is connected' : 'Nothing like this is connected'}>
          {sessions.size === 0 && (
            <p>
              Sessions appear here as they begin. <a href="#/users">Give somebody a profile</a>
            </p>
          )}
        </Empty>
      ) : (
        <Table
          label="Sessions"
          rows={found.slice(0, MAX_ROWS)}
          keyOf={({ id }) => id}
          columns={[
            { title: 'User', cell: ({ user }) => <a href={`#/users/${encodeURIComponent(user)}`}>{user}</a> },
            {
              title: 'Device',
              cell: ({ device }) =>
                device === '' ? (
                  <span class="muted">by token</span>
                ) : (
                  <span class="mono" title={device}>
                    {device.slice(0, 8)}
                  </span>
                ),
            },
            { title: 'Address', cell: ({ addresses }) => <span class="mono">{addresses.join(' ') || '–'}</span> },
            { title: 'From', cell: ({ peer }) => <span class="mono">{peer}</span> },
            {
              title: 'State',
              cell: ({ waiting }) => <Badge tone={waiting ? 'warn' : 'good'}>{waiting ? 'waits' : 'up'}</Badge>,
            },
            { title: 'For', cell: ({ since }) => age(since), isNumber: true },
            { title: 'Received', cell: ({ receivedBytes }) => bytes(receivedBytes), isNumber: true },
            { title: 'Sent', cell: ({ sentBytes }) => bytes(sentBytes), isNumber: true },
            {
              title: '',
              cell: (session) =>
                isAtLeast(me.role, 'operator') && (
                  <Button
                    kind="quiet"
                    aria-label={`End the session of ${session.user}`}
                    onClick={() => setChosen(session)}
                  >
                    End
                  </Button>
                ),
            },
          ]}
        />
      )}
      {found.length > MAX_ROWS && <p class="muted">The first {MAX_ROWS} are shown. Search to find others.</p>}
      {chosen !== undefined && (
        <Confirm
          title={`End the session of ${chosen.user}?`}
          button="End session"
          close={() => setChosen(undefined)}
          act={async () => void (await call('session.kick', { id: chosen.id }))}
        >
          <p>
            Its connections are cut at once. The client may log in again; to keep it out, revoke the device or disable
            the user.
          </p>
        </Confirm>
      )}
    </>
  );
}
