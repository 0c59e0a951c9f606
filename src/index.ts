/**
 * CustomVPN as a library: a VPN gateway and a VPN client that another program can run.
 *
 * ```ts
 * import { initGateway, VpnServer } from 'customvpn';
 *
 * await initGateway('state', { names: ['vpn.example.org'] });
 * const server = new VpnServer({ stateDir: 'state', names: ['vpn.example.org'], port: 443, tun: 'none' });
 * await server.start();
 * const { profile } = await server.administration['profile.create']({ user: 'alice' });
 * ```
 *
 * `VpnServer` is the gateway: `tun: 'kernel'` makes TUN devices, routes and packet rules (Linux, root); with `'none'` it
 * carries no packets but logins, control and echoes; devices of your own implement `TunDevice`. Its `administration` adds
 * users, makes profiles and revokes; its hooks authorise logins and learn of sessions. `VpnClient` logs in, stays
 * connected and comes back; what it does to its machine is a `ClientHost` that you hand in, or nothing. Every failure is a
 * `VpnError`, whose `code` is one of a closed list (docs/errors.md) and never changes its meaning.
 *
 * What is not exported here may change in any release. `examples/` holds programs that run.
 */

export { type Clock, ManualClock } from './base/clock.ts';
export { type ErrorCode, type ErrorDetails, type ErrorKind, isVpnError, VpnError } from './base/errors.ts';
export { createLogger, type LogFields, type Logger, type LogLevel, type LogOptions, Secret } from './base/log.ts';
export {
  type ClientOptions,
  type ClientSnapshot,
  type ClientState,
  VpnClient,
} from './client/client.ts';
export { DeviceKey } from './client/device-key.ts';
export type { ClientHost } from './client/machine.ts';
export type {
  CertificateInfo,
  DeviceInfo,
  GatewayApi,
  GatewayStatus,
  SessionInfo,
  UserInfo,
} from './control/operations.ts';
export { type Profile, parseProfile, readProfile, withoutToken, writeProfile } from './control/profile.ts';
export type { Administration } from './gateway/administration.ts';
export type { LoginFacts } from './gateway/auth/rights.ts';
export type { GatewayConfig, GatewayOptions } from './gateway/config.ts';
export type { EndedHookSession, GatewayHooks, HookPolicy, HookSession, HookVerdict } from './gateway/hooks.ts';
export { type InitOptions, initGateway } from './gateway/init.ts';
export { readGatewayConfig } from './gateway/layout.ts';
export {
  type PacketBuffer,
  type ServerConfig,
  type ServerHooks,
  type SessionFacts,
  type TunDevice,
  type TunReader,
  VpnServer,
} from './gateway/server.ts';
export type { WorkerDevices } from './gateway/worker/worker.ts';
export type { AcceptedConfig, ClientLimits, RefusedItem } from './protocol/config-check.ts';
export type { CloseReason } from './protocol/messages.ts';
export type { ChannelFacts } from './transport/channel.ts';
