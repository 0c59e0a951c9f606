/**
 * Who did what: the audit record, filtered, and as a file.
 */

import { useEffect, useState } from 'preact/hooks';
import type { AuditRecordInfo } from '../control/operations.ts';
import { call, listen } from './api.ts';
import { Button, Empty, Moment, SearchBox, Show, saveFile, Table, useLoaded } from './ui.tsx';

const PAGE = 100;
const KINDS = [
  'login',
  'session',
  'user',
  'device',
  'password',
  'totp',
  'access',
  'operator',
  'policy',
  'ban',
  'certificate',
];
const MAX_DETAILS = 240;
const MAX_EXPORT = 10_000;

export function AuditRecord() {
  const [search, setSearch] = useState('');
  const [event, setEvent] = useState('');
  const [older, setOlder] = useState<AuditRecordInfo[]>([]);
  const [isBusy, setBusy] = useState(false);
  const [hasNews, setNews] = useState(false);
  const filter = { ...(search === '' ? {} : { search }), ...(event === '' ? {} : { event }) };
  const [records, again] = useLoaded(async () => {
    setOlder([]);
    setNews(false);
    return (await call('audit.list', { ...filter, limit: PAGE })).reverse();
  }, [search, event]);
  useEffect(() => listen(['audit'], () => setNews(true)), []);
  const save = async (): Promise<void> => {
    setBusy(true);
    const all = await call('audit.list', { ...filter, limit: MAX_EXPORT }).finally(() => setBusy(false));
    saveFile('audit.jsonl', all.map((record) => `${JSON.stringify(record)}\n`).join(''), 'application/x-ndjson');
  };
  const more = async (last: AuditRecordInfo): Promise<void> => {
    setBusy(true);
    const next = await call('audit.list', { ...filter, before: last.id, limit: PAGE }).finally(() => setBusy(false));
    setOlder([...older, ...next.reverse()]);
  };
  return (
    <>
      <div class="toolbar">
        <SearchBox label="Search the record" search={setSearch} />
        <select aria-label="Kind of event" value={event} onChange={(change) => setEvent(change.currentTarget.value)}>
          <option value="">all events</option>
          {KINDS.map((kind) => (
            <option key={kind}>{kind}</option>
          ))}
        </select>
        <Button busy={isBusy} onClick={save}>
          Export
        </Button>
        <span role="status">
          {hasNews && (
            <Button kind="quiet" onClick={again}>
              Show what is new
            </Button>
          )}
        </span>
      </div>
      <Show loaded={records} what="the record" retry={again}>
        {(newest) => {
          const rows = [...newest, ...older];
          const last = rows.at(-1);
          if (last === undefined) return <Empty title="Nothing like this is on record" />;
          return (
            <>
              <Table
                label="Audit record, newest first"
                rows={rows}
                keyOf={({ id }) => id}
                columns={[
                  { title: 'When', cell: ({ at }) => <Moment at={at} /> },
                  { title: 'Event', cell: ({ event: name }) => <span class="mono">{name}</span> },
                  { title: 'User', cell: ({ user }) => user ?? '–' },
                  { title: 'From', cell: ({ source }) => <span class="mono">{source ?? '–'}</span> },
                  { title: 'What', cell: detailsOf },
                ]}
              />
              {rows.length % PAGE === 0 && (
                <p class="row">
                  <Button busy={isBusy} onClick={() => more(last)}>
                    Show older
                  </Button>
                </p>
              )}
            </>
          );
        }}
      </Show>
    </>
  );
}

function detailsOf({ reason, detail, device }: AuditRecordInfo): string {
  const text = [
    ...(reason === null ? [] : [reason]),
    ...(device === null ? [] : [`device ${device.slice(0, 8)}`]),
    ...Object.entries(detail)
      .filter(([, value]) => value !== '')
      .map(([key, value]) => `${key} ${value}`),
  ].join(', ');
  // The whole is in the export.
  return text.length > MAX_DETAILS ? `${text.slice(0, MAX_DETAILS)} …` : text;
}
