/**
 * Services: which protocols and ports a rule speaks of.
 *
 * Hides their text form and what covers what. A protocol whose ports cannot be told is met only by services that name no
 * port, so that no unknown header can pass for a known one.
 */

import { VpnError } from '../base/errors.ts';

export const ICMP4 = 1;
export const TCP = 6;
export const UDP = 17;
export const ICMP6 = 58;

/** Port ranges include both ends. */
export type Service =
  | { readonly kind: 'any' }
  | { readonly kind: 'ports'; readonly protocol: number; readonly low: number; readonly high: number }
  /** Any other IP protocol as a whole. */
  | { readonly kind: 'protocol'; readonly protocol: number }
  /** ICMP of the packet's version; `echo`: only echo requests. */
  | { readonly kind: 'icmp'; readonly echo: boolean };

/** What of a packet a service can speak of. */
export interface Transport {
  /** Of the header behind all extension headers. */
  readonly protocol: number;
  /** TCP and UDP: the destination port. */
  readonly port?: number;
  /** ICMP: whether it is an echo request. */
  readonly isEcho?: boolean;
}

const MAX_PORT = 65_535;
const PORT_PROTOCOLS: Readonly<Record<string, number>> = { tcp: TCP, udp: UDP };

/**
 * Reads `any`, `tcp`, `udp`, `tcp/443`, `udp/5000-5010`, `icmp`, `icmp/echo` or `ip/NUMBER`.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function parseService(text: string): Service {
  if (text === 'any') return { kind: 'any' };
  if (text === 'icmp') return { kind: 'icmp', echo: false };
  if (text === 'icmp/echo') return { kind: 'icmp', echo: true };
  const [, name = '', low = '', high = low] = /^(tcp|udp|ip)(?:\/(\d{1,5})(?:-(\d{1,5}))?)?$/.exec(text) ?? [];
  const protocol = Object.hasOwn(PORT_PROTOCOLS, name) ? PORT_PROTOCOLS[name] : undefined;
  if (protocol !== undefined && low === '') return { kind: 'ports', protocol, low: 0, high: MAX_PORT };
  if (protocol !== undefined && Number(low) >= 1 && Number(low) <= Number(high) && Number(high) <= MAX_PORT) {
    return { kind: 'ports', protocol, low: Number(low), high: Number(high) };
  }
  if (name === 'ip' && low !== '' && high === low && Number(low) <= 255) return serviceOfProtocol(Number(low));
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `expected a named service, or any, tcp/443, udp/5000-5010, icmp, icmp/echo or ip/47, found ${JSON.stringify(text)}`,
  );
}

export function formatService(service: Service): string {
  switch (service.kind) {
    case 'any':
      return 'any';
    case 'icmp':
      return service.echo ? 'icmp/echo' : 'icmp';
    case 'protocol':
      return `ip/${service.protocol}`;
    case 'ports': {
      const { protocol, low, high } = service;
      const name = protocol === TCP ? 'tcp' : 'udp';
      if (low === 0 && high === MAX_PORT) return name;
      return `${name}/${low === high ? low : `${low}-${high}`}`;
    }
  }
}

/** Whether a packet of that transport, of IP version 4 or 6, is of the service. */
export function serviceMatches(service: Service, version: 4 | 6, { protocol, port, isEcho }: Transport): boolean {
  switch (service.kind) {
    case 'any':
      return true;
    case 'ports':
      return protocol === service.protocol && port !== undefined && port >= service.low && port <= service.high;
    case 'protocol':
      return protocol === service.protocol;
    case 'icmp':
      return protocol === (version === 4 ? ICMP4 : ICMP6) && (!service.echo || isEcho === true);
  }
}

/** Whether whatever is of `inner` is of `outer`. */
export function serviceCovers(outer: Service, inner: Service): boolean {
  if (outer.kind === 'any') return true;
  if (outer.kind === 'icmp') return inner.kind === 'icmp' && (!outer.echo || inner.echo);
  if (outer.kind === 'protocol') return inner.kind === 'protocol' && inner.protocol === outer.protocol;
  return (
    inner.kind === 'ports' && inner.protocol === outer.protocol && inner.low >= outer.low && inner.high <= outer.high
  );
}

function serviceOfProtocol(protocol: number): Service {
  if (protocol === TCP || protocol === UDP) return { kind: 'ports', protocol, low: 0, high: MAX_PORT };
  return { kind: 'protocol', protocol };
}
