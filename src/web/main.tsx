/**
 * The admin page: who is logged in, the sections, and which of them the address names.
 */

import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import 'uplot/dist/uPlot.min.css';
import './style.css';
import { logOut, type Me, whenLoggedOut, whoAmI } from './api.ts';
import { AuditRecord } from './audit.tsx';
import { Devices } from './devices.tsx';
import { Login, SetUp, Shield } from './login.tsx';
import { Overview } from './overview.tsx';
import { PolicySection } from './policy.tsx';
import { Sessions } from './sessions.tsx';
import { Settings } from './settings.tsx';
import { Failure, Loading } from './ui.tsx';
import { User } from './user.tsx';
import { Users } from './users.tsx';

const SECTIONS = [
  ['overview', 'Overview'],
  ['sessions', 'Sessions'],
  ['users', 'Users'],
  ['devices', 'Devices'],
  ['policy', 'Policy'],
  ['audit', 'Audit'],
  ['settings', 'Settings'],
] as const;
type Section = (typeof SECTIONS)[number][0];

interface Place {
  readonly section: Section;
  /** What of the section is meant, such as a user. */
  readonly item: string | undefined;
  readonly query: string;
}

function placeOf(hash: string): Place {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split('?', 2);
  const [name = '', ...rest] = path.split('/');
  const section = SECTIONS.find(([key]) => key === name)?.[0] ?? 'overview';
  try {
    return { section, item: rest.length === 0 ? undefined : decodeURIComponent(rest.join('/')), query };
  } catch {
    return { section, item: undefined, query };
  }
}

function useHash(): string {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = (): void => setHash(location.hash);
    addEventListener('hashchange', changed);
    return () => removeEventListener('hashchange', changed);
  }, []);
  return hash;
}

function Page() {
  const hash = useHash();
  const [me, setMe] = useState<Me | 'nobody' | 'unknown' | Error>('unknown');
  const [note, setNote] = useState<string>();
  const look = (): void => void whoAmI().then((known) => setMe(known ?? 'nobody'), setMe);
  useEffect(() => {
    look();
    whenLoggedOut(() => {
      setNote('You were logged out. Log in again to go on.');
      setMe('nobody');
    });
  }, []);
  useEffect(() => {
    if (hash !== '#refused') return;
    setNote('The login elsewhere does not let you in here. The audit record says why.');
    location.hash = '';
  }, [hash]);
  const token = /^#setup=([A-Za-z0-9_-]+)$/.exec(hash)?.[1];
  const entered = (known: Me): void => {
    setNote(undefined);
    setMe(known);
  };
  if (token !== undefined) return <SetUp token={token} entered={entered} />;
  if (me === 'unknown') {
    return (
      <main class="entrance">
        <Loading what="the page" />
      </main>
    );
  }
  if (me instanceof Error) {
    return (
      <main class="entrance">
        <Failure message={me.message} retry={look} />
      </main>
    );
  }
  if (me === 'nobody') return <Login entered={entered} note={note} />;
  return <Frame me={me} place={placeOf(hash)} leave={() => setMe('nobody')} />;
}

function Frame({ me, place, leave }: { me: Me; place: Place; leave: () => void }) {
  const heading = useRef<HTMLHeadingElement>(null);
  const [isOpen, setOpen] = useState(false);
  const title = place.item ?? SECTIONS.find(([key]) => key === place.section)?.[1] ?? '';
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = `${title} · ${me.gateway || 'CustomVPN'}`;
    setOpen(false);
    // A screen reader hears where it has come to; whoever has just logged in is left alone.
    if (!isFirst.current) heading.current?.focus();
    isFirst.current = false;
  }, [title]);
  return (
    <div class="frame">
      <button type="button" class="skip" onClick={() => heading.current?.focus()}>
        Skip to the content
      </button>
      <header class="side">
        <div class="brand">
          <Shield />
          <span>{me.gateway || 'CustomVPN'}</span>
        </div>
        <button
          type="button"
          class="button menu"
          aria-expanded={isOpen}
          aria-controls="sections"
          onClick={() => setOpen(!isOpen)}
        >
          Menu
        </button>
        <nav id="sections" aria-label="Sections" class={isOpen ? 'open' : ''}>
          <ul>
            {SECTIONS.map(([key, name]) => (
              <li key={key}>
                <a href={`#/${key}`} {...(place.section === key ? { 'aria-current': 'page' as const } : {})}>
                  {name}
                </a>
              </li>
            ))}
          </ul>
          <div class="who">
            <p>
              <strong>{me.user}</strong>
              <br />
              <span class="muted">{me.role}</span>
            </p>
            <button
              type="button"
              class="button quiet"
              onClick={async () => {
                await logOut().catch(() => {});
                leave();
              }}
            >
              Log out
            </button>
          </div>
        </nav>
      </header>
      <main id="content">
        {place.item !== undefined && (
          <p class="back">
            <a href={`#/${place.section}`}>← All {place.section}</a>
          </p>
        )}
        <h1 ref={heading} tabIndex={-1}>
          {title}
        </h1>
        <Content me={me} place={place} />
      </main>
    </div>
  );
}

function Content({ me, place: { section, item, query } }: { me: Me; place: Place }) {
  switch (section) {
    case 'overview':
      return <Overview />;
    case 'sessions':
      return <Sessions me={me} />;
    case 'users':
      if (item !== undefined) return <User key={item} me={me} name={item} givesProfile={query === 'profile'} />;
      return <Users key={query} me={me} adding={query === 'add'} />;
    case 'devices':
      return <Devices me={me} />;
    case 'policy':
      return <PolicySection me={me} />;
    case 'audit':
      return <AuditRecord />;
    case 'settings':
      return <Settings me={me} />;
  }
}

const root = document.getElementById('page');
if (root !== null) render(<Page />, root);
