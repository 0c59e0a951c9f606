/**
 * The first thing to see: does it work, who is here, what needs care. And, where nobody is here yet, what to do next.
 */

import { useEffect, useState } from 'preact/hooks';
import type { GatewayStatus } from '../control/operations.ts';
import { call, listen, type Output } from './api.ts';
import { Chart } from './chart.tsx';
import { age, Badge, bitRate, Empty, Show, useLoaded } from './ui.tsx';

type Health = Pick<GatewayStatus, 'sessions' | 'waiting' | 'warnings' | 'certificates' | 'pool' | 'since'>;
const LOOK_MS = 10_000;

export function Overview() {
  const [status, again] = useLoaded(() => call('server.status', {}, { background: true }), []);
  const [users] = useLoaded(() => call('user.list', { limit: 2 }, { background: true }), []);
  const [history, lookAgain] = useLoaded(() => call('server.history', {}, { background: true }), []);
  const [health, setHealth] = useState<Health>();
  useEffect(() => listen(['health'], (_, data) => setHealth(data as Health)), []);
  useEffect(() => {
    const timer = setInterval(lookAgain, LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  return (
    <Show loaded={status} what="the gateway's state" retry={again}>
      {(first) => {
        const now = { ...first, ...health };
        const isNew = users.state === 'here' && now.sessions === 0 && users.value.length < 2;
        return (
          <>
            {isNew && <FirstSteps />}
            <Warnings status={now} />
            <Show loaded={history} what="the last hour">
              {(value) => <Hour history={value} status={now} />}
            </Show>
            <Certificates status={now} />
          </>
        );
      }}
    </Show>
  );
}

function FirstSteps() {
  return (
    <section class="card steps" aria-labelledby="first">
      <h2 id="first">Three steps to the first connection</h2>
      <ol>
        <li>
          <strong>Add a user.</strong> A name is enough. <a href="#/users?add">Add a user</a>
        </li>
        <li>
          <strong>Give them their profile.</strong> The next page offers it as a file, a QR code or a link.
        </li>
        <li>
          <strong>Connect.</strong> On their machine: <code>customvpn client up NAME.toml</code>. They appear here at
          once.
        </li>
      </ol>
    </section>
  );
}

function Warnings({ status: { warnings } }: { status: GatewayStatus }) {
  if (warnings.length === 0) return null;
  return (
    <section class="card warnings" aria-labelledby="warnings">
      <h2 id="warnings">Needs care</h2>
      <ul>
        {warnings.map((text) => (
          <li key={text}>{text}</li>
        ))}
      </ul>
    </section>
  );
}

function Figure({ label, value, note }: { label: string; value: string; note?: string }) {
  return (
    <div class="figure">
      <dt>{label}</dt>
      <dd>
        {value}
        {note !== undefined && <small>{note}</small>}
      </dd>
    </div>
  );
}

function Hour({ history, status }: { history: Output<'server.history'>; status: GatewayStatus }) {
  const { samples, everySeconds } = history;
  const times = samples.map(({ at }) => Date.parse(at) / 1000);
  const rate = (key: 'receivedBytes' | 'sentBytes') => samples.map((sample) => (sample[key] * 8) / everySeconds);
  const sum = (key: 'accepted' | 'refused') => samples.reduce((total, sample) => total + sample[key], 0);
  const last = samples.at(-1);
  const throughput = ((last?.receivedBytes ?? 0) + (last?.sentBytes ?? 0)) / everySeconds;
  const accepted = sum('accepted');
  const refused = sum('refused');
  const [pool] = status.pool;
  return (
    <>
      <dl class="figures">
        <Figure
          label="Sessions"
          value={String(status.sessions)}
          {...(status.waiting > 0 ? { note: `${status.waiting} wait for their client` } : {})}
        />
        <Figure label="Throughput" value={bitRate(throughput)} note={`in the last ${everySeconds} s`} />
        <Figure label="Logins" value={String(accepted)} note={`${refused} refused in the last hour`} />
        <Figure
          label="Running for"
          value={age(status.since)}
          {...(pool === undefined ? {} : { note: `${pool.used} of ${pool.size} addresses in use` })}
        />
      </dl>
      {samples.length < 2 ? (
        <div class="card">
          <Empty title="The charts begin in a few seconds">
            <p>The gateway has just started. A point is added every {everySeconds} seconds, for an hour.</p>
          </Empty>
        </div>
      ) : (
        <div class="charts">
          <section class="card">
            <Chart
              label="Throughput"
              summary={`now ${bitRate(throughput)}`}
              times={times}
              lines={[
                { label: 'to clients', colour: '--chart-1', values: rate('sentBytes') },
                { label: 'from clients', colour: '--chart-2', values: rate('receivedBytes') },
              ]}
              format={(bits) => bitRate(bits / 8)}
              least={1000}
            />
          </section>
          <section class="card">
            <Chart
              label="Sessions"
              summary={`now ${status.sessions}`}
              times={times}
              lines={[{ label: 'connected', colour: '--chart-1', values: samples.map(({ sessions }) => sessions) }]}
              format={whole}
            />
          </section>
          <section class="card">
            <Chart
              label="Logins"
              summary={`${accepted} accepted and ${refused} refused in the last hour`}
              times={times}
              lines={[
                { label: 'accepted', colour: '--chart-1', values: samples.map((sample) => sample.accepted) },
                { label: 'refused', colour: '--chart-3', values: samples.map((sample) => sample.refused) },
              ]}
              format={whole}
            />
          </section>
        </div>
      )}
    </>
  );
}

const whole = (value: number): string => (Number.isInteger(value) ? String(value) : '');

function Certificates({ status: { certificates } }: { status: GatewayStatus }) {
  const newest = new Map(certificates.filter(({ revoked }) => !revoked).map((one) => [`${one.role} ${one.name}`, one]));
  const shown = [...newest.values()].toSorted((a, b) => a.daysLeft - b.daysLeft).slice(0, 6);
  if (shown.length === 0) return null;
  return (
    <section class="card" aria-labelledby="certificates">
      <h2 id="certificates">Certificates</h2>
      <ul class="plain">
        {shown.map(({ serial, role, name, daysLeft }) => (
          <li key={serial}>
            <Badge tone={daysLeft < 0 ? 'bad' : daysLeft < 30 ? 'warn' : 'good'}>
              {daysLeft < 0 ? 'ended' : `${daysLeft} days`}
            </Badge>
            <span>
              {role === 'ca' ? 'authority' : role} <strong>{name}</strong>
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}
