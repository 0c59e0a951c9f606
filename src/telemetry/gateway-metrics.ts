/**
 * The metrics of a gateway: every name, its type, its labels and what it says.
 *
 * The single source for what is exposed and for docs/metrics.md. Labels have few values, all chosen by us: none names a
 * user, a device, an address or a session, and none comes from a peer or from a worker.
 */

import type { Catalogue } from './exposition.ts';

export const GATEWAY_METRICS = {
  customvpn_info: { type: 'gauge', labels: ['version'], help: 'Always 1; the version is in the label.' },
  customvpn_start_time_seconds: { type: 'gauge', labels: [], help: 'When the gateway was started, Unix time.' },
  customvpn_sessions: {
    type: 'gauge',
    labels: ['worker', 'state'],
    help: 'Sessions; state is connected, or waiting for a client that has lost its connection.',
  },
  customvpn_pool_leases: { type: 'gauge', labels: [], help: 'Leases of the address pool that are held.' },
  customvpn_pool_size: { type: 'gauge', labels: [], help: 'Leases that there can be.' },
  customvpn_logins_total: {
    type: 'counter',
    labels: ['worker', 'result'],
    help: 'Logins by result: accepted, or refused with whatever came to nothing before a session.',
  },
  customvpn_resumes_total: { type: 'counter', labels: ['worker'], help: 'Sessions that their clients have resumed.' },
  customvpn_refusals_total: {
    type: 'counter',
    labels: ['worker', 'code'],
    help: 'Connections that came to nothing, by error or reject code; other is what has no code of its own.',
  },
  customvpn_bans: {
    type: 'gauge',
    labels: ['kind'],
    help: 'Sources, names and devices that are banned for failed logins.',
  },
  customvpn_connections_total: {
    type: 'counter',
    labels: ['worker', 'outcome'],
    help: 'TCP connections by what became of them before their first message.',
  },
  customvpn_handshakes_in_flight: { type: 'gauge', labels: ['worker'], help: 'TLS handshakes that are not complete.' },
  customvpn_handshake_seconds: {
    type: 'histogram',
    labels: ['worker'],
    help: 'Time from the first byte that was read to the end of the TLS handshake.',
  },
  customvpn_handshake_failures_total: {
    type: 'counter',
    labels: ['worker', 'code'],
    help: 'TLS handshakes and PROXY headers that failed, by error code.',
  },
  customvpn_bytes_total: {
    type: 'counter',
    labels: ['worker', 'direction'],
    help: 'Bytes of packets in the tunnels: received from clients, sent to clients.',
  },
  customvpn_packets_total: {
    type: 'counter',
    labels: ['worker', 'direction'],
    help: 'Packets in the tunnels; a super-packet is one.',
  },
  customvpn_drops_total: {
    type: 'counter',
    labels: ['worker', 'reason'],
    help: 'Packets dropped by workers, by reason.',
  },
  customvpn_kernel_packets_total: {
    type: 'counter',
    labels: ['rule'],
    help: 'Packets that the kernel refused or masked, by rule.',
  },
  customvpn_queue_bytes: { type: 'gauge', labels: ['worker'], help: 'Bytes that wait in the queues of sessions.' },
  customvpn_queue_memory_bytes: { type: 'gauge', labels: ['worker'], help: 'Memory that these queues hold.' },
  customvpn_queue_delay_seconds: {
    type: 'gauge',
    labels: ['worker'],
    help: 'How long the packet has waited that has waited longest in any queue.',
  },
  customvpn_queue_signals_total: {
    type: 'counter',
    labels: ['worker', 'cause'],
    help: 'Flows told to slow down, because their queue was long in time or in length.',
  },
  customvpn_queue_marked_packets_total: {
    type: 'counter',
    labels: ['worker'],
    help: 'Packets that were told of congestion by a mark (ECN).',
  },
  customvpn_round_trip_seconds: {
    type: 'gauge',
    labels: ['worker', 'quantile'],
    help: 'Round trips of the connected sessions, as their last pings saw them: 0.5, 0.9 and 1.',
  },
  customvpn_rekeys_total: { type: 'counter', labels: ['worker'], help: 'Connections changed for ones with new keys.' },
  customvpn_rekey_gaps_total: {
    type: 'counter',
    labels: ['worker'],
    help: 'Of these, such as may have lost packets.',
  },
  customvpn_data_connections_total: {
    type: 'counter',
    labels: ['worker'],
    help: 'Data connections that were attached to sessions.',
  },
  customvpn_proxy_streams_total: {
    type: 'counter',
    labels: ['worker'],
    help: 'Connections made for users of the proxy.',
  },
  customvpn_proxy_streams: { type: 'gauge', labels: ['worker'], help: 'Connections of the proxy that are open.' },
  customvpn_proxy_refusals_total: { type: 'counter', labels: ['worker'], help: 'Requests that the proxy refused.' },
  customvpn_worker_up: { type: 'gauge', labels: ['worker'], help: '1 when the worker answers, else 0.' },
  customvpn_worker_starts_total: {
    type: 'counter',
    labels: ['worker'],
    help: 'How often the worker has been started; more than 1: it ended, or was replaced.',
  },
  customvpn_event_loop_delay_seconds: {
    type: 'histogram',
    labels: ['process'],
    help: 'How late a timer came that is due every second.',
  },
  customvpn_peak_bytes: {
    type: 'gauge',
    labels: ['process'],
    help: 'The most memory that was in use at once, as the kernel counts it.',
  },
  customvpn_heap_bytes: { type: 'gauge', labels: ['process'], help: 'Memory of JavaScript objects.' },
  customvpn_external_bytes: { type: 'gauge', labels: ['process'], help: 'Memory of buffers outside of that heap.' },
  customvpn_cpu_seconds_total: { type: 'counter', labels: ['process'], help: 'Processor time, user and system.' },
  customvpn_certificate_expiry_seconds: {
    type: 'gauge',
    labels: ['certificate'],
    help: 'When the first of its kind ends, Unix time: server, intermediate, authority, revocation_list.',
  },
  customvpn_store_latency_seconds: {
    type: 'gauge',
    labels: [],
    help: 'How long a look into the store took, made for this answer.',
  },
  customvpn_store_up: { type: 'gauge', labels: [], help: '1 when that look succeeded, else 0.' },
  customvpn_draining: { type: 'gauge', labels: [], help: '1 while the gateway lets nobody new in.' },
  customvpn_warnings: { type: 'gauge', labels: [], help: 'Warnings that server status shows.' },
  customvpn_webhook_events_total: {
    type: 'counter',
    labels: ['webhook', 'result'],
    help: 'Events that a webhook was told of, or that were put aside.',
  },
  customvpn_webhook_failures_total: {
    type: 'counter',
    labels: ['webhook'],
    help: 'Requests to a webhook that failed.',
  },
  customvpn_webhook_waiting: {
    type: 'gauge',
    labels: ['webhook'],
    help: 'Events that a webhook is still to be told of.',
  },
  customvpn_hook_calls_total: {
    type: 'counter',
    labels: ['hook', 'result'],
    help: 'Calls of the functions of hook.file, by what came of them: allowed, refused or failed.',
  },
  customvpn_otlp_requests_total: {
    type: 'counter',
    labels: ['signal', 'result'],
    help: 'Requests to the collector, by what was in them and whether it took them.',
  },
  customvpn_spans_dropped_total: { type: 'counter', labels: [], help: 'Spans for which there was no room.' },
} as const satisfies Catalogue;

/** Upper bounds of `customvpn_event_loop_delay_seconds`. */
export const LOOP_DELAY_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5];
