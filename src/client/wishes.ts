/**
 * What a profile and the command line ask of the tunnel, in the terms of the host's plan; the command line wins.
 *
 * Hides the profile's texts, and how a person is asked about networks that both the machine and the tunnel have.
 */

import { isVpnError, VpnError } from '../base/errors.ts';
import type { Profile } from '../control/profile.ts';
import { parseIp, parsePrefix } from '../ip/address.ts';
import type { ClientLimits } from '../protocol/config-check.ts';
import type { Overlap, OverlapChoice, TunnelWishes } from './host-plan.ts';
import type { AnswerSteps } from './login-answers.ts';
import { describeOverlaps, type TunnelHostOptions } from './tunnel-host.ts';

/** What the command line may say; left out: what the profile says. */
export interface TunnelFlags {
  mode?: 'full' | 'split';
  lan?: boolean;
  overlap?: OverlapChoice | 'stop';
  killSwitch?: boolean;
  /** Milliseconds. */
  portalMs?: number;
  /** Networks behind this machine. */
  networks?: readonly string[];
  /** Whether a person can be asked. */
  isAsked?: boolean;
}

/**
 * What the tunnel's host is opened with.
 *
 * @throws {VpnError} ERR_USAGE when a kill switch is wanted for a split tunnel, or anything but a split one over Ethernet, or
 *   networks behind the machine with either
 */
export function hostWishes(
  { tunnel }: Profile,
  flags: TunnelFlags,
  answer: AnswerSteps | undefined,
  signal: AbortSignal,
): Pick<TunnelHostOptions, 'device' | 'wishes' | 'overlap' | 'ask' | 'closing' | 'portalMs'> {
  const closing = tunnel.killSwitch === 'off' && flags.killSwitch === true ? 'on' : tunnel.killSwitch;
  const mode = flags.mode ?? tunnel.mode;
  if (closing !== 'off' && mode === 'split') {
    throw new VpnError(
      'ERR_USAGE',
      'a kill switch lets nothing out but the tunnel, so it needs a full one: leave out --split, or the kill switch',
    );
  }
  if (tunnel.device === 'tap' && (closing !== 'off' || mode === 'full')) {
    throw new VpnError(
      'ERR_USAGE',
      'the profile bridges Ethernet (tunnel.device = "tap"), which has no full tunnel and no kill switch: leave out --full and --kill-switch',
    );
  }
  const networks = flags.networks ?? tunnel.networks;
  if (networks.length > 0 && (closing !== 'off' || tunnel.device === 'tap')) {
    throw new VpnError(
      'ERR_USAGE',
      tunnel.device === 'tap'
        ? 'a bridged network reaches what is behind this machine by itself: leave out tunnel.networks and --network'
        : 'a kill switch lets nothing through to the networks behind this machine: leave it out, or tunnel.networks and --network',
    );
  }
  const wishes: TunnelWishes = {
    mode: closing === 'off' ? mode : 'full',
    include: tunnel.include.map(parsePrefix),
    exclude: tunnel.exclude.map(parsePrefix),
    lan: flags.lan ?? tunnel.lan,
    dns: tunnel.dns.map(parseIp),
  };
  const ask = flags.isAsked === true && answer !== undefined ? { ask: askAbout(answer, signal) } : {};
  const portal = flags.portalMs === undefined ? {} : { portalMs: flags.portalMs };
  return { device: tunnel.device, wishes, overlap: flags.overlap ?? tunnel.overlap, closing, ...ask, ...portal };
}

/** Whether the profile's tunnel can be one for commands. @throws {VpnError} ERR_UNSUPPORTED */
export function checkEnclosure({ tunnel }: Profile): void {
  if (tunnel.device !== 'tap') return;
  throw new VpnError(
    'ERR_UNSUPPORTED',
    'the profile bridges Ethernet (tunnel.device = "tap"), and client exec gives commands a network of IP packets: connect the whole machine with client up, or use a gateway that routes',
  );
}

/** What the gateway may push: as far as the profile allows it and the tunnel is to have it. */
export function pushLimits({ allow, tunnel }: Profile, flags: TunnelFlags): Partial<ClientLimits> {
  return {
    defaultRoute: allow.fullTunnel && (flags.mode ?? tunnel.mode) !== 'split',
    maxRoutes: allow.maxRoutes,
    dns: allow.dns,
    networks: (flags.networks ?? tunnel.networks).map(parsePrefix),
    ...(allow.dnsDomains === undefined ? {} : { domains: allow.dnsDomains }),
  };
}

function askAbout(answer: AnswerSteps, signal: AbortSignal): NonNullable<TunnelHostOptions['ask']> {
  return async (overlaps) => {
    const standard: OverlapChoice = overlaps.every(({ isPrivate }: Overlap) => isPrivate) ? 'local' : 'tunnel';
    const prompt =
      `${describeOverlaps(overlaps)}. local: they stay as they are; tunnel: they go into the tunnel; stop: change nothing. ` +
      `What shall be (local, tunnel, stop)? [${standard}]`;
    const { ask } = await answer([{ kind: 'ask', prompt, echo: true }], signal).catch((error: unknown) => {
      // Somebody was there, and would not.
      if (isVpnError(error) && error.details.declined === true) return { ask: 'stop' };
      throw error;
    });
    const choice = (typeof ask === 'string' ? ask : '').trim().toLowerCase() || standard;
    if (choice === 'local' || choice === 'tunnel' || choice === 'stop') return choice;
    throw new VpnError('ERR_USAGE', `expected local, tunnel or stop, got "${choice}"`);
  };
}
