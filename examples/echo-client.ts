/**
 * A client that logs in with a profile and has payloads echoed: no TUN device, no root.
 *
 *   node --conditions=customvpn-source examples/echo-client.ts PROFILE [TEXT…]
 *
 * Prints one JSON object: what TLS negotiated, who it is, and each payload that came back with its round trip. Exits with 1
 * and `{"error":CODE}` when the gateway cannot be reached or refuses.
 */

import { isVpnError, readProfile, VpnClient } from 'customvpn';

const [file, ...texts] = process.argv.slice(2);
if (file === undefined) {
  console.error('usage: echo-client.ts PROFILE [TEXT…]');
  process.exit(64);
}

const profile = await readProfile(file);
const client = new VpnClient({
  serverHost: profile.server.hosts,
  serverPort: profile.server.port,
  serverName: profile.server.name,
  pins: profile.pins,
  ...(profile.ca === undefined ? {} : { ca: profile.ca }),
  // The device key lives as long as this object, so the token enrols a device that nobody sees again. A program that
  // comes back opens a key file instead, `deviceKey: await DeviceKey.open(path)`, and forgets the token in `onEnrolled`.
  ...(profile.token === undefined ? {} : { token: profile.token.reveal() }),
});

try {
  await client.connect({ once: true });
  const echoes = [];
  for (const text of texts.length > 0 ? texts : ['hello']) {
    const startedAt = performance.now();
    const echoed = await client.echo(new TextEncoder().encode(text));
    echoes.push({
      text: new TextDecoder().decode(echoed),
      ms: Math.round((performance.now() - startedAt) * 100) / 100,
    });
  }
  const { user, tls } = client.snapshot;
  console.log(JSON.stringify({ user, protocol: tls?.protocol, cipher: tls?.cipher, group: tls?.group, echoes }));
} catch (error) {
  console.log(JSON.stringify({ error: isVpnError(error) ? error.code : String(error) }));
  process.exitCode = 1;
} finally {
  await client.disconnect();
}
