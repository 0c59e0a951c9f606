/**
 * One user: what they may do, what they log in with, their devices, and the profile to give them.
 */

import { useState } from 'preact/hooks';
import type { UserDetails } from '../control/operations.ts';
import { call, isAtLeast, type Me, type Output, read } from './api.ts';
import { DeviceTable } from './devices.tsx';
import { Codes } from './login.tsx';
import {
  Badge,
  Button,
  Confirm,
  Copy,
  Dialog,
  Empty,
  Field,
  Form,
  Moment,
  QrCode,
  Show,
  saveFile,
  Table,
  useLoaded,
} from './ui.tsx';
import { wordsOf } from './users.tsx';

type Open = 'profile' | 'groups' | 'password' | 'totp' | 'totpRemove' | 'disable' | 'delete' | undefined;

export function User({ me, name, givesProfile }: { me: Me; name: string; givesProfile: boolean }) {
  const [user, again] = useLoaded(() => read('user.show', { name }), [name]);
  const [open, setOpen] = useState<Open>(givesProfile ? 'profile' : undefined);
  // Looked at again in any case: what was refused because somebody else was faster is there then.
  const close = (): void => {
    setOpen(undefined);
    again();
  };
  return (
    <Show loaded={user} what={name} retry={again}>
      {({ value: shown, tag }) => (
        <>
          <Facts user={shown} />
          {isAtLeast(me.role, 'operator') && (
            <div class="toolbar">
              <Button kind="main" onClick={() => setOpen('profile')}>
                Give a profile
              </Button>
              <Button onClick={() => setOpen('groups')}>Change groups</Button>
              <Button onClick={() => setOpen('password')}>
                {shown.passwordSetAt === null ? 'Set a password' : 'Reset password'}
              </Button>
              <Button onClick={() => setOpen('totp')}>
                {shown.totp ? 'Renew second factor' : 'Set up second factor'}
              </Button>
              {shown.totp && <Button onClick={() => setOpen('totpRemove')}>Remove second factor</Button>}
              {shown.disabled ? (
                <Button
                  onClick={async () => {
                    await call('user.enable', { name }, { ifMatch: tag });
                    again();
                  }}
                >
                  Enable
                </Button>
              ) : (
                <Button onClick={() => setOpen('disable')}>Disable</Button>
              )}
              <Button kind="danger" onClick={() => setOpen('delete')}>
                Delete
              </Button>
            </div>
          )}
          <section aria-labelledby="devices">
            <h2 id="devices">Devices</h2>
            {shown.devices.length === 0 ? (
              <Empty title="No devices yet">
                <p>The first appears when {name} connects with a profile.</p>
              </Empty>
            ) : (
              <DeviceTable devices={shown.devices} me={me} changed={again} />
            )}
          </section>
          {shown.passkeys.length > 0 && <Passkeys user={shown} me={me} changed={again} />}
          {shown.tokens.length > 0 && <Tokens user={shown} me={me} changed={again} />}
          {open === 'profile' && <GiveProfile name={name} close={close} />}
          {open === 'groups' && <Groups user={shown} tag={tag} close={close} done={close} />}
          {open === 'password' && <Password user={shown} tag={tag} close={close} done={close} />}
          {open === 'totp' && <SecondFactor user={shown} tag={tag} close={close} />}
          {open === 'totpRemove' && (
            <Confirm
              title={`Remove the second factor of ${name}?`}
              button="Remove"
              close={close}
              act={async () => {
                await call('user.totpRemove', { name }, { ifMatch: tag });
                again();
              }}
            >
              <p>
                Where logins ask for a code, {name} cannot log in until there is a new one. Recovery codes are void.
              </p>
            </Confirm>
          )}
          {open === 'disable' && (
            <Confirm
              title={`Disable ${name}?`}
              button="Disable user"
              close={close}
              act={async () => {
                await call('user.disable', { name }, { ifMatch: tag });
                again();
              }}
            >
              <p>
                All sessions end at once, and no login is accepted until you enable the user again. Nothing is deleted.
              </p>
            </Confirm>
          )}
          {open === 'delete' && (
            <Confirm
              title={`Delete ${name}?`}
              button="Delete user"
              close={close}
              act={async () => {
                await call('user.delete', { name }, { ifMatch: tag });
                location.hash = '#/users';
              }}
            >
              <p>All sessions end at once. The account and its devices are gone for good; the audit record stays.</p>
            </Confirm>
          )}
        </>
      )}
    </Show>
  );
}

function Facts({ user }: { user: UserDetails }) {
  const { groups, disabled, createdAt, expiresAt, source, passwordSetAt, totp, recoveryCodesLeft } = user;
  return (
    <dl class="facts card">
      <div>
        <dt>State</dt>
        <dd>{disabled ? <Badge tone="bad">disabled</Badge> : <Badge tone="good">enabled</Badge>}</dd>
      </div>
      <div>
        <dt>Groups</dt>
        <dd>{groups.length === 0 ? 'none' : groups.join(', ')}</dd>
      </div>
      <div>
        <dt>Password</dt>
        <dd>
          {source !== null ? (
            `judged by ${source}`
          ) : passwordSetAt === null ? (
            'none'
          ) : (
            <>
              set <Moment at={passwordSetAt} />
            </>
          )}
        </dd>
      </div>
      <div>
        <dt>Second factor</dt>
        <dd>{totp ? `yes, ${recoveryCodesLeft} recovery codes left` : 'none'}</dd>
      </div>
      <div>
        <dt>Since</dt>
        <dd>
          <Moment at={createdAt} />
        </dd>
      </div>
      <div>
        <dt>Ends</dt>
        <dd>{expiresAt === null ? 'never' : <Moment at={expiresAt} />}</dd>
      </div>
    </dl>
  );
}

/** A profile in every form in which somebody can be given one. */
function GiveProfile({ name, close }: { name: string; close: () => void }) {
  const [hours, setHours] = useState('72');
  const [approve, setApprove] = useState(false);
  const [made, setMade] = useState<Output<'profile.create'>>();
  if (made === undefined) {
    return (
      <Dialog title={`A profile for ${name}`} close={close}>
        <Form
          button="Make profile"
          cancel={close}
          submit={async () => setMade(await call('profile.create', { user: name, validHours: Number(hours), approve }))}
        >
          <p>A profile has everything that one device needs to connect. It can be used once.</p>
          <Field label="Can be used within">
            {(props) => (
              <select {...props} value={hours} onChange={(event) => setHours(event.currentTarget.value)}>
                <option value="1">an hour</option>
                <option value="24">a day</option>
                <option value="72">three days</option>
                <option value="336">two weeks</option>
              </select>
            )}
          </Field>
          <label class="check">
            <input type="checkbox" checked={approve} onChange={(event) => setApprove(event.currentTarget.checked)} />
            The device waits until somebody approves it here
          </label>
        </Form>
      </Dialog>
    );
  }
  const file = `${name}.toml`;
  return (
    <Dialog title={`The profile of ${name}`} close={close}>
      <p>
        Give it to {name} in one of these ways, over a channel that others cannot read: whoever has it first can connect
        in {name}’s name{made.expiresAt === null ? '' : ', until '}
        {made.expiresAt !== null && <Moment at={made.expiresAt} />}.
      </p>
      <h3>As a file</h3>
      <p class="row">
        <Button kind="main" onClick={() => saveFile(file, made.profile, 'application/toml')}>
          Save {file}
        </Button>
      </p>
      <h3>As a one-time link</h3>
      <p class="row">
        <code class="link">{made.link}</code>
        <Copy text={made.link} label="Copy link" />
      </p>
      <h3>As a QR code</h3>
      <QrCode text={made.link} label={`QR code with the profile of ${name}`} />
      <h3>Then, on their machine</h3>
      <pre>
        <code>sudo customvpn client up {file}</code>
      </pre>
      <p class="hint">
        Without root: <code>customvpn client proxy {file} --socks 127.0.0.1:1080</code>. The session appears under{' '}
        <a href="#/sessions">Sessions</a> at once.
      </p>
      <div class="actions">
        <Button kind="main" onClick={close}>
          Done
        </Button>
      </div>
    </Dialog>
  );
}

interface ChangeProps {
  readonly user: UserDetails;
  readonly tag: string;
  readonly close: () => void;
  readonly done: () => void;
}

function Groups({ user, tag, close, done }: ChangeProps) {
  const [text, setText] = useState(user.groups.join(', '));
  return (
    <Dialog title={`Groups of ${user.name}`} close={close}>
      <Form
        button="Save"
        cancel={close}
        submit={async () => {
          const wanted = wordsOf(text);
          const add = wanted.filter((group) => !user.groups.includes(group));
          const remove = user.groups.filter((group) => !wanted.includes(group));
          await call('user.regroup', { name: user.name, add, remove }, { ifMatch: tag });
          done();
        }}
      >
        <Field label="Groups" hint="Separated by commas. Sessions that prove too little for them end.">
          {(props) => (
            <input
              {...props}
              autoCapitalize="none"
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
            />
          )}
        </Field>
      </Form>
    </Dialog>
  );
}

function Password({ user, tag, close, done }: ChangeProps) {
  const [password, setPassword] = useState('');
  return (
    <Dialog title={`A new password for ${user.name}`} close={close}>
      <Form
        button="Set password"
        cancel={close}
        submit={async () => {
          await call('user.password', { name: user.name, password }, { ifMatch: tag });
          done();
        }}
      >
        <Field label="Password" hint="At least 10 characters. Sessions that used the old one end; passkeys stay.">
          {(props) => (
            <input
              {...props}
              required
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

function SecondFactor({ user, tag, close }: Omit<ChangeProps, 'done'>) {
  const [made, setMade] = useState<Output<'user.totp'>>();
  const { name } = user;
  if (made === undefined) {
    return (
      <Dialog title={`A second factor for ${name}`} close={close}>
        <Form
          button="Make it"
          cancel={close}
          submit={async () => setMade(await call('user.totp', { name }, { ifMatch: tag }))}
        >
          <p>
            {user.totp ? 'The one there is becomes void, with its recovery codes. ' : ''}You see a QR code to be scanned
            with {name}’s authenticator app, once.
          </p>
        </Form>
      </Dialog>
    );
  }
  return (
    <Dialog title={`The second factor of ${name}`} close={close}>
      <p>Have {name} scan this, and keep the recovery codes. Both are shown only now.</p>
      <QrCode text={made.uri} label={`QR code with the second factor of ${name}`} />
      <h3>Recovery codes</h3>
      <Codes codes={made.recoveryCodes} name={name} />
      <div class="actions">
        <Button kind="main" onClick={close}>
          Done
        </Button>
      </div>
    </Dialog>
  );
}

/** They stay when a password is reset: whoever helps somebody who has been broken into sees them here. */
function Passkeys({ user, me, changed }: { user: UserDetails; me: Me; changed: () => void }) {
  return (
    <section aria-labelledby="passkeys">
      <h2 id="passkeys">Passkeys</h2>
      <Table
        label="Passkeys"
        rows={user.passkeys}
        keyOf={({ id }) => id}
        columns={[
          { title: 'Name', cell: ({ name }) => name },
          { title: 'For', cell: ({ host }) => <span class="mono">{host}</span> },
          {
            title: 'Last used',
            cell: ({ lastUsedAt }) => (lastUsedAt === null ? 'never' : <Moment at={lastUsedAt} />),
          },
          {
            title: '',
            cell: ({ id, name }) =>
              isAtLeast(me.role, 'operator') && (
                <Button
                  kind="quiet"
                  aria-label={`Remove the passkey ${name}`}
                  onClick={async () => {
                    await call('passkey.remove', { id });
                    changed();
                  }}
                >
                  Remove
                </Button>
              ),
          },
        ]}
      />
    </section>
  );
}

function Tokens({ user, me, changed }: { user: UserDetails; me: Me; changed: () => void }) {
  return (
    <section aria-labelledby="tokens">
      <h2 id="tokens">Access tokens</h2>
      <Table
        label="Access tokens"
        rows={user.tokens}
        keyOf={({ id }) => id}
        columns={[
          { title: 'Name', cell: ({ name }) => name },
          { title: 'For', cell: ({ scopes }) => scopes.join(', ') },
          {
            title: 'Last used',
            cell: ({ lastUsedAt }) => (lastUsedAt === null ? 'never' : <Moment at={lastUsedAt} />),
          },
          {
            title: 'State',
            cell: ({ revokedAt }) =>
              revokedAt === null ? <Badge tone="good">good</Badge> : <Badge tone="bad">revoked</Badge>,
          },
          {
            title: '',
            cell: ({ id, name, revokedAt }) =>
              revokedAt === null &&
              isAtLeast(me.role, 'operator') && (
                <Button
                  kind="quiet"
                  aria-label={`Revoke the token ${name}`}
                  onClick={async () => {
                    await call('token.revoke', { id });
                    changed();
                  }}
                >
                  Revoke
                </Button>
              ),
          },
        ]}
      />
    </section>
  );
}
