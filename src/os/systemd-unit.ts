/**
 * The systemd units of a gateway and of clients: started at boot, watched, and without any right that they do not need.
 *
 * Hides systemd's words. Pure text. What the gateway may do is what its room `os` does: make TUN devices, addresses, routes and
 * one nftables table, set a few network sysctls, bind a port below 1024, start processes as users without rights; and write
 * its state directory, nothing else.
 */

export interface UnitOptions {
  /** Absolute path of the program `customvpn`. */
  readonly program: string;
  /** Absolute path of the state directory. */
  readonly state: string;
  /** Absolute path of the configuration, where it is not in the state directory. */
  readonly config?: string | undefined;
  /** It comes with a package, and is there before anybody has made a gateway: then it is not started, and that is no failure. */
  readonly isPackaged?: boolean;
}

/** The text of a `.service` file. */
export function gatewayUnit({ program, state, config, isPackaged = false }: UnitOptions): string {
  const where = `--state ${word(state)}`;
  const run = config === undefined ? where : `${where} --config ${word(config)}`;
  return `[Unit]
Description=CustomVPN gateway
After=network-online.target nss-lookup.target
Wants=network-online.target
${isPackaged ? `ConditionPathExists=${word(config ?? `${state}/server.toml`)}\n` : ''}
[Service]
Type=notify
NotifyAccess=main
ExecStartPre=${word(program)} server run ${run} --check
ExecStart=${word(program)} server run ${run}
ExecReload=${word(program)} server reload ${where}
Restart=on-failure
RestartSec=1
# Bad usage or configuration does not mend itself.
RestartPreventExitStatus=64 78
WatchdogSec=30
TimeoutStartSec=60
TimeoutStopSec=30
LimitNOFILE=1048576

# Devices, addresses, routes, nftables, sysctls of the network; the port. Then what it takes to start processes as other
# users without any right, to end them, to give auth the certificates and to read them afterwards.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL CAP_CHOWN CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectSystem=strict
ReadWritePaths=${quote(state)}
ProtectHome=read-only
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
# The second for the cages of its processes.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
`;
}

export interface ClientUnitOptions {
  /** Absolute path of the program `customvpn`. */
  readonly program: string;
  /** Absolute path of the clients' state directory. */
  readonly state: string;
}

/** The text of `customvpn-client@.service`: a client for the imported profile that is the instance's name. */
export function clientUnit({ program, state }: ClientUnitOptions): string {
  return `[Unit]
Description=CustomVPN client for profile %i
After=network.target nss-lookup.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=${word(program)} client up %i --foreground --state ${word(state)}
Restart=on-failure
RestartSec=2
# Bad usage, a bad profile and a refused login do not mend themselves.
RestartPreventExitStatus=64 77 78
WatchdogSec=60
TimeoutStartSec=60
TimeoutStopSec=15

# TUN device, addresses, routes and rules, packet marks, nftables.
CapabilityBoundingSet=CAP_NET_ADMIN
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
# Not /etc: where systemd-resolved does not run, name servers are set in /etc/resolv.conf.
ProtectSystem=yes
ReadWritePaths=${quote(state)}
ProtectHome=read-only
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
`;
}

export interface KillSwitchUnitOptions {
  /** Absolute path of the program `customvpn`. */
  readonly program: string;
  /** Absolute path of the profile. */
  readonly profile: string;
}

/**
 * The text of a `.service` file that closes a kill switch before any network is configured, and leaves it closed when it
 * is stopped. After the machine's own packet filter, whose start may flush all tables.
 */
export function killSwitchUnit({ program, profile }: KillSwitchUnitOptions): string {
  return `[Unit]
Description=CustomVPN kill switch of ${quote(profile)}
DefaultDependencies=no
After=local-fs.target nftables.service firewalld.service ufw.service
Before=network-pre.target
Wants=network-pre.target
RequiresMountsFor=${quote(profile)} ${quote(program)}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=${word(program)} client kill-switch close ${word(profile)}
CapabilityBoundingSet=CAP_NET_ADMIN CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
RestrictAddressFamilies=AF_NETLINK AF_UNIX
UMask=0077

[Install]
WantedBy=sysinit.target
`;
}

/** One word of a command line in a unit file, where `$` begins a variable (systemd.service(5)). */
function word(text: string): string {
  return quote(text.replaceAll('$', () => '$$'));
}

/** A word of a unit file, whatever is in it (systemd.syntax(7)); `%` begins a specifier (systemd.unit(5)). */
function quote(text: string): string {
  const escaped = text.replace(/[\\"]/g, '\\$&').replaceAll('%', '%%');
  return /^[A-Za-z0-9_./%-]+$/.test(escaped) ? escaped : `"${escaped}"`;
}
