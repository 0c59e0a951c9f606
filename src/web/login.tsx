/**
 * The way in: a login, or the set-up link that makes the first administrator, step by step.
 */

import { useEffect, useRef, useState } from 'preact/hooks';
import { entrances, logIn, logInByCertificate, logInByPasskey, type Me, setUp } from './api.ts';
import { knowsPasskeys } from './passkey.ts';
import { Button, Copy, Failure, Field, Form, Loading, QrCode, saveFile, useLoaded } from './ui.tsx';

function Card({ title, step, children }: { title: string; step?: string; children: preact.ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), [title]);
  return (
    <main class="entrance">
      <div class="brand">
        <Shield /> CustomVPN
      </div>
      <section class="card">
        {step !== undefined && <p class="step">{step}</p>}
        <h1 ref={heading} tabIndex={-1}>
          {title}
        </h1>
        {children}
      </section>
    </main>
  );
}

export function Shield() {
  return (
    <svg class="shield" viewBox="0 0 32 32" aria-hidden="true">
      <path class="body" d="M16 2 4 7v9c0 7 5 12 12 14 7-2 12-7 12-14V7z" />
      <path class="tick" d="m10.5 16 4 4 7-8" />
    </svg>
  );
}

export function Login({ entered, note }: { entered: (me: Me) => void; note: string | undefined }) {
  const [user, setUser] = useState('');
  const [password, setPassword] = useState('');
  const [code, setCode] = useState('');
  return (
    <Card title="Log in">
      {note !== undefined && <p class="note">{note}</p>}
      <Form submit={async () => entered(await logIn(user, password, code))} button="Log in">
        <Field label="Name">
          {(props) => (
            <input
              {...props}
              required
              autoComplete="username"
              autoCapitalize="none"
              spellcheck={false}
              value={user}
              onInput={(event) => setUser(event.currentTarget.value)}
            />
          )}
        </Field>
        <Field label="Password">
          {(props) => (
            <input
              {...props}
              required
              type="password"
              autoComplete="current-password"
              value={password}
              onInput={(event) => setPassword(event.currentTarget.value)}
            />
          )}
        </Field>
        <Field label="Code" hint="From your authenticator app, or one of your recovery codes.">
          {(props) => <CodeInput {...props} value={code} change={setCode} />}
        </Field>
      </Form>
      <OtherWays entered={entered} />
    </Card>
  );
}

/** In by something else than a password, as far as there is anything. */
function OtherWays({ entered }: { entered: (me: Me) => void }) {
  const [offers] = useLoaded(entrances, []);
  const [wrong, setWrong] = useState('');
  const [isBusy, setBusy] = useState(false);
  if (offers.state !== 'here') return null;
  const { certificate, provider } = offers.value;
  const passkey = offers.value.passkey && knowsPasskeys;
  if (!passkey && certificate === null && provider === null) return null;
  const enter = async (way: () => Promise<Me>): Promise<void> => {
    setBusy(true);
    setWrong('');
    try {
      entered(await way());
    } catch (error) {
      setWrong((error as Error).message);
      setBusy(false);
    }
  };
  return (
    <section class="ways" aria-label="Other ways to log in">
      <p class="muted">or without a password</p>
      {passkey && (
        <Button busy={isBusy} onClick={() => enter(logInByPasskey)}>
          Log in with a passkey
        </Button>
      )}
      {certificate !== null && (
        <Button busy={isBusy} onClick={() => enter(logInByCertificate)}>
          Log in with the certificate of {certificate}
        </Button>
      )}
      {provider !== null && (
        <a class="button plain" href="/api/login/provider">
          Log in at {provider}
        </a>
      )}
      {wrong !== '' && (
        <p class="wrong" role="alert">
          {wrong}
        </p>
      )}
    </section>
  );
}

function CodeInput({ value, change, ...props }: { value: string; change: (code: string) => void; id: string }) {
  return (
    <input
      {...props}
      required
      class="code"
      autoComplete="one-time-code"
      autoCapitalize="none"
      spellcheck={false}
      value={value}
      onInput={(event) => change(event.currentTarget.value)}
    />
  );
}

export function SetUp({ token, entered }: { token: string; entered: (me: Me) => void }) {
  const [link] = useLoaded(() => setUp.begin(token), [token]);
  const [name, setName] = useState('');
  const [password, setPassword] = useState('');
  const [code, setCode] = useState('');
  const [factor, setFactor] = useState<{ uri: string; recoveryCodes: string[] }>();
  const [isSaved, setSaved] = useState(false);
  if (link.state === 'loading') {
    return (
      <Card title="Set up">
        <Loading what="the link" />
      </Card>
    );
  }
  if (link.state === 'failed') {
    return (
      <Card title="This link does not work">
        <Failure message={link.message} />
      </Card>
    );
  }
  if (factor === undefined) {
    return (
      <Card title="Welcome. Who are you?" step="Step 1 of 3">
        <p>This makes your account: the first that may do everything here.</p>
        <Form submit={async () => setFactor(await setUp.account(token, name, password))} button="Continue">
          <Field label="Name" hint="Letters, digits and . _ @ + -">
            {(props) => (
              <input
                {...props}
                required
                autoComplete="username"
                autoCapitalize="none"
                spellcheck={false}
                value={name}
                onInput={(event) => setName(event.currentTarget.value)}
              />
            )}
          </Field>
          <Field label="Password" hint="At least 10 characters. A sentence is best.">
            {(props) => (
              <input
                {...props}
                required
                type="password"
                minLength={10}
                autoComplete="new-password"
                value={password}
                onInput={(event) => setPassword(event.currentTarget.value)}
              />
            )}
          </Field>
        </Form>
      </Card>
    );
  }
  if (!isSaved) {
    return (
      <Card title="Keep your recovery codes" step="Step 2 of 3">
        <p>Each lets you in once in place of a code, should you lose your phone. They are shown only here.</p>
        <Codes codes={factor.recoveryCodes} name={name} />
        <div class="actions">
          <Button kind="main" onClick={() => setSaved(true)}>
            I have kept them
          </Button>
        </div>
      </Card>
    );
  }
  return (
    <Card title="Connect your authenticator app" step="Step 3 of 3">
      <p>Scan this with an app such as the one your phone has for codes, and type what it shows.</p>
      <QrCode text={factor.uri} label="QR code for your authenticator app" />
      <details>
        <summary>I cannot scan it</summary>
        <p>Enter this key by hand:</p>
        <code class="long">{new URL(factor.uri).searchParams.get('secret')}</code>
      </details>
      <Form
        submit={async () => {
          const me = await setUp.finish(token, code);
          location.hash = '#/overview';
          entered(me);
        }}
        button="Finish"
      >
        <Field label="Code">{(props) => <CodeInput {...props} value={code} change={setCode} />}</Field>
      </Form>
    </Card>
  );
}

/** Codes that are shown once. */
export function Codes({ codes, name }: { codes: readonly string[]; name: string }) {
  const text = codes.join('\n');
  return (
    <>
      <ul class="codes">
        {codes.map((code) => (
          <li key={code}>
            <code>{code}</code>
          </li>
        ))}
      </ul>
      <p class="row">
        <Copy text={text} label="Copy all" />
        <Button onClick={() => saveFile(`recovery-codes-${name}.txt`, `${text}\n`, 'text/plain')}>
          Save as a file
        </Button>
      </p>
    </>
  );
}
