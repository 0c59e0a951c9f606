/**
 * `customvpn client status`: how a client is, for eyes, once or again and again.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { ClientStatus } from '../control/operations.ts';
import { bad, dim, facts, formatAge, formatBytes, good, type OutputOptions, warning } from './output.ts';

const WATCH_MS = 1000;
/** Cursor to the corner, and everything behind it away. */
const CLEAR = '\u001b[H\u001b[J';

export function formatStatus(status: ClientStatus): string {
  const state = status.state === 'connected' ? good(status.state) : warning(status.state);
  return [
    facts([
      ['profile', status.name],
      ['state', `${state}${status.since === null ? '' : ` for ${formatAge(status.since)}`}`],
      ['server', `${status.server}${status.verified ? '' : ` ${bad('NOT VERIFIED')}`}`],
      ['user', status.user ?? undefined],
      ['addresses', status.addresses.join(', ')],
      ['device', status.device === null ? undefined : `${status.device}${deviceKind(status)}`],
      ['routes', status.mode === 'full' ? 'all traffic' : status.routes.join(', ') || 'none'],
      ['behind it', status.networks.map(networkWords).join(', ') || undefined],
      ['for', enclosedWords(status)],
      ['dns', dnsWords(status)],
      ['kill switch', KILL_SWITCH_WORDS[status.killSwitch]],
      ['tls', status.tls === null ? undefined : `${status.tls.protocol}, ${status.tls.cipher}, ${status.tls.group}`],
      ['connections', status.channels > 1 ? `${status.channels} for data` : undefined],
      ['traffic', `${formatBytes(status.sentBytes)} sent, ${formatBytes(status.receivedBytes)} received`],
      ['round trip', status.roundTripMs === null ? undefined : `${status.roundTripMs.toFixed(1)} ms`],
      ['rekeys', rekeyWords(status)],
      ['reconnects', status.reconnects === 0 ? undefined : String(status.reconnects)],
      ['last error', status.lastError === null ? undefined : `${status.lastError.message} (${status.lastError.code})`],
    ]),
    ...status.notes.map((note) => `${warning('note')} ${note}`),
    ...status.refused.map(({ item, why }) => `${warning('refused')} ${item}: ${why}`),
  ].join('\n');
}

function networkWords({ network, seenAs }: ClientStatus['networks'][number]): string {
  return network === seenAs ? network : `${network} (seen as ${seenAs})`;
}

/** What was agreed with the server; nothing yet while there is no session. */
function deviceKind({ state, superPackets }: ClientStatus): string {
  if (state !== 'connected') return '';
  return superPackets ? ' (super-packets)' : ' (plain)';
}

const KILL_SWITCH_WORDS = {
  open: undefined,
  closed: 'closed: nothing leaves outside the tunnel',
  portal: warning('OPEN for a captive portal'),
} as const;

function rekeyWords({ rekeys, rekeyGaps }: ClientStatus): string | undefined {
  if (rekeys === 0) return undefined;
  return rekeyGaps === 0 ? String(rekeys) : `${rekeys}, ${warning(`${rekeyGaps} with a gap`)}`;
}

function enclosedWords({ namespace }: ClientStatus): string | undefined {
  if (namespace === null) return undefined;
  const { commands, path } = namespace;
  return `${commands} ${commands === 1 ? 'command' : 'commands'} of client exec, in the network namespace ${path}`;
}

function dnsWords({ dns, state, namespace }: ClientStatus): string | undefined {
  if (state !== 'connected' || dns.servers.length === 0) return undefined;
  if (namespace !== null) return dns.servers.join(', ');
  const names = dns.all ? 'all names' : dns.domains.join(', ') || 'nothing';
  const keeper = dns.keeper === 'both' ? 'systemd-resolved, resolv.conf' : dns.keeper;
  return `${dns.servers.join(', ')} for ${names} (${keeper})`;
}

/** Shows the status each second, on one screen where there is a terminal, until the program is interrupted. */
export async function watchStatus(look: () => Promise<readonly ClientStatus[]>, options: OutputOptions): Promise<void> {
  const isScreen = process.stdout.isTTY === true && options.json !== true;
  let before: ReadonlyMap<number, ClientStatus> = new Map();
  let shownAt = performance.now();
  for (;;) {
    const found = await look();
    const now = performance.now();
    const text =
      options.json === true
        ? JSON.stringify(found)
        : found.length === 0
          ? warning('no client is running')
          : found
              .map((status) => `${formatStatus(status)}${rates(before.get(status.pid), status, now - shownAt)}`)
              .join('\n\n');
    process.stdout.write(`${isScreen ? CLEAR : ''}${text}\n${isScreen || options.json === true ? '' : '\n'}`);
    if (isScreen) process.stdout.write(dim('\nCtrl-C ends this'));
    before = new Map(found.map((status) => [status.pid, status]));
    shownAt = now;
    await sleep(WATCH_MS);
  }
}

function rates(before: ClientStatus | undefined, now: ClientStatus, passedMs: number): string {
  if (before === undefined || passedMs <= 0) return '';
  const rate = (from: number, to: number) => `${formatBytes(Math.round(((to - from) * 1000) / passedMs))}/s`;
  const sent = rate(before.sentBytes, now.sentBytes);
  return `\n${facts([['now', `${sent} sent, ${rate(before.receivedBytes, now.receivedBytes)} received`]])}`;
}
