/**
 * Passkeys, as the browser makes and uses them.
 *
 * Hides WebAuthn's buffers. A passkey stands for password and second factor at once, so the authenticator has to verify its user.
 */

/** What the gateway asks an authenticator. */
export interface PasskeyQuestion {
  readonly challenge: string;
  readonly host: string;
  readonly algorithms: readonly number[];
  readonly timeoutMs: number;
}

/** Whether this browser knows passkeys at all. */
export const knowsPasskeys = typeof PublicKeyCredential === 'function';

/** Makes a passkey for somebody. */
export async function makePasskey(user: string, question: PasskeyQuestion) {
  const { challenge, host, algorithms, timeoutMs } = question;
  const made = await ask(() =>
    navigator.credentials.create({
      publicKey: {
        challenge: bytesOf(challenge),
        rp: { id: host, name: `CustomVPN at ${host}` },
        // Not the name itself: an authenticator keeps one passkey for each id, and names come again.
        user: { id: crypto.getRandomValues(new Uint8Array(32)), name: user, displayName: user },
        pubKeyCredParams: algorithms.map((alg) => ({ type: 'public-key', alg })),
        authenticatorSelection: { residentKey: 'required', userVerification: 'required' },
        attestation: 'none',
        timeout: timeoutMs,
      },
    }),
  );
  const response = made.response as AuthenticatorAttestationResponse;
  const publicKey = response.getPublicKey();
  if (publicKey === null) throw new Error('This authenticator’s kind of key is not taken. Try another one.');
  return {
    clientData: textOf(response.clientDataJSON),
    authenticatorData: textOf(response.getAuthenticatorData()),
    publicKey: textOf(publicKey),
  };
}

/** Has somebody choose and use a passkey. */
export async function usePasskey({ challenge, host, timeoutMs }: PasskeyQuestion) {
  const used = await ask(() =>
    navigator.credentials.get({
      publicKey: { challenge: bytesOf(challenge), rpId: host, userVerification: 'required', timeout: timeoutMs },
    }),
  );
  const response = used.response as AuthenticatorAssertionResponse;
  return {
    id: textOf(used.rawId),
    clientData: textOf(response.clientDataJSON),
    authenticatorData: textOf(response.authenticatorData),
    signature: textOf(response.signature),
  };
}

async function ask(work: () => Promise<Credential | null>): Promise<PublicKeyCredential> {
  try {
    const answer = await work();
    if (answer !== null) return answer as PublicKeyCredential;
  } catch (error) {
    // Browsers say no more, so that no page learns what passkeys there are.
    if ((error as Error).name !== 'NotAllowedError') throw error;
  }
  throw new Error('That was called off, took too long, or there is no passkey for this page here.');
}

function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (character) => character.charCodeAt(0));
}

function textOf(buffer: ArrayBuffer): string {
  const text = btoa(String.fromCharCode(...new Uint8Array(buffer)));
  return text.replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}
