/**
 * The machines that people connect with.
 */

import { useState } from 'preact/hooks';
import type { DeviceInfo } from '../control/operations.ts';
import { call, isAtLeast, type Me } from './api.ts';
import {
  Badge,
  Button,
  Confirm,
  Dialog,
  Empty,
  Field,
  Form,
  Moment,
  SearchBox,
  Show,
  Table,
  useLoaded,
} from './ui.tsx';

const PAGE = 100;
const TONES = { active: 'good', enrolling: 'plain', pending: 'warn', revoked: 'bad' } as const;
const WORDS = { active: 'active', enrolling: 'enrolled', pending: 'waits for approval', revoked: 'revoked' } as const;

export function Devices({ me }: { me: Me }) {
  const [search, setSearch] = useState('');
  const [state, setState] = useState<DeviceInfo['state'] | ''>('');
  const [limit, setLimit] = useState(PAGE);
  const [devices, again] = useLoaded(
    () => call('device.list', { search, limit, ...(state === '' ? {} : { state }) }),
    [search, state, limit],
  );
  return (
    <>
      <div class="toolbar">
        <SearchBox label="Search name, user or id" search={setSearch} />
        <select
          aria-label="State"
          value={state}
          onChange={(event) => setState(event.currentTarget.value as DeviceInfo['state'] | '')}
        >
          <option value="">all states</option>
          {Object.entries(WORDS).map(([value, word]) => (
            <option key={value} value={value}>
              {word}
            </option>
          ))}
        </select>
      </div>
      <Show loaded={devices} what="devices" retry={again}>
        {(list) =>
          list.length === 0 ? (
            <Empty title={search === '' && state === '' ? 'No devices yet' : 'No device is like this'}>
              <p>A device appears when somebody connects with a profile for the first time.</p>
            </Empty>
          ) : (
            <>
              <DeviceTable devices={list} me={me} changed={again} withUser />
              {list.length === limit && limit < 1000 && (
                <p class="row">
                  <Button onClick={() => setLimit(Math.min(limit + PAGE, 1000))}>Show more</Button>
                </p>
              )}
            </>
          )
        }
      </Show>
    </>
  );
}

/** Devices, and what can be done with them. */
export function DeviceTable({
  devices,
  me,
  changed,
  withUser = false,
}: {
  devices: readonly DeviceInfo[];
  me: Me;
  changed: () => void;
  withUser?: boolean;
}) {
  const [renamed, setRenamed] = useState<DeviceInfo>();
  const [revoked, setRevoked] = useState<DeviceInfo>();
  const mayWork = isAtLeast(me.role, 'operator');
  return (
    <>
      <Table
        label="Devices"
        rows={devices}
        keyOf={({ id }) => id}
        columns={[
          { title: 'Name', cell: ({ name }) => name },
          ...(withUser
            ? [
                {
                  title: 'User',
                  cell: ({ user }: DeviceInfo) => <a href={`#/users/${encodeURIComponent(user)}`}>{user}</a>,
                },
              ]
            : []),
          { title: 'State', cell: ({ state }) => <Badge tone={TONES[state]}>{WORDS[state]}</Badge> },
          {
            title: 'Last seen',
            cell: ({ lastSeenAt }) => (lastSeenAt === null ? 'never' : <Moment at={lastSeenAt} />),
          },
          { title: 'Id', cell: ({ id }) => <span class="mono">{id.slice(0, 8)}</span> },
          {
            title: '',
            cell: (device) =>
              mayWork &&
              device.state !== 'revoked' && (
                <span class="row">
                  {device.state === 'pending' && (
                    <Button
                      kind="main"
                      aria-label={`Approve ${device.name}`}
                      onClick={async () => {
                        await call('device.approve', { id: device.id });
                        changed();
                      }}
                    >
                      Approve
                    </Button>
                  )}
                  <Button kind="quiet" aria-label={`Rename ${device.name}`} onClick={() => setRenamed(device)}>
                    Rename
                  </Button>
                  <Button kind="quiet" aria-label={`Revoke ${device.name}`} onClick={() => setRevoked(device)}>
                    Revoke
                  </Button>
                </span>
              ),
          },
        ]}
      />
      {renamed !== undefined && <Rename device={renamed} changed={changed} close={() => setRenamed(undefined)} />}
      {revoked !== undefined && (
        <Confirm
          title={`Revoke ${revoked.name}?`}
          button="Revoke device"
          close={() => setRevoked(undefined)}
          act={async () => {
            await call('device.revoke', { id: revoked.id });
            changed();
          }}
        >
          <p>
            It is cut off at once and never let in again. Its owner needs a new profile to connect from that machine.
          </p>
        </Confirm>
      )}
    </>
  );
}

function Rename({ device, changed, close }: { device: DeviceInfo; changed: () => void; close: () => void }) {
  const [name, setName] = useState(device.name);
  return (
    <Dialog title={`Rename ${device.name}`} close={close}>
      <Form
        button="Rename"
        cancel={close}
        submit={async () => {
          await call('device.rename', { id: device.id, name });
          changed();
          close();
        }}
      >
        <Field label="Name">
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
  );
}
