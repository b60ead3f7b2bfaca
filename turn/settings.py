"""Everything that can be set about TURN; limits carry the rule they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turn.allocation import LIFETIME_MAX
from turn.auth import NONCE_LIFETIME
from turn.credentials import REST_TTL_MAX
from turn.errors import ConfigurationError
from turn.policy import DENIED_PORTS

# The longest realm for which a 401 stays below four times the smallest request (X10).
REALM_BYTES_MAX = 24
NONCE_LIFETIME_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Seconds are floats without a unit in the name; sizes are bytes."""

    listen_addresses: tuple[str, ...] = ("127.0.0.1",)
    """IPv4 or IPv6 literals, one socket each, so that replies leave from the address that was asked (T9). `0.0.0.0`
    and `::` stand for every address of the machine."""
    port: int = 3478
    """UDP and TCP; 0 lets the system choose."""
    tls_port: int = 5349
    """TCP with TLS, when there is a certificate; 0 lets the system choose."""
    udp: bool = True
    tcp: bool = True
    tls_certificate: Path | None = None
    """PEM file, leaf first."""
    tls_key: Path | None = None
    public_host: str = ""
    """Host name or address in the urls handed to clients; empty: the first external or listen address."""

    relay_addresses: tuple[str, ...] = ()
    """Where relays are bound; empty: the listen addresses. The first of each family is used."""
    external_addresses: Mapping[str, str] = field(default_factory=dict)
    """Relay address → address that clients and peers are told, behind 1:1 NAT (A23)."""
    relay_port_min: int = 49152
    relay_port_max: int = 65535
    tcp_relays: bool = False
    """Whether clients over TCP and TLS may have relays that reach peers over TCP (RFC 6062)."""
    threads: int = 1
    """Relay threads."""
    gather_us_max: int = 500
    """Under load a relay thread lets packets gather this long before it takes them, so that it wakes less often. It is
    the most that is added to a packet's way; at low rates nothing is. 0: never."""

    realm: str = "torpor"
    """At most 24 bytes, so that a challenge cannot amplify (X10)."""
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Static users: name → password (E5)."""
    rest_secrets: tuple[str, ...] = field(default=(), repr=False)
    """Shared secrets of time-limited `expiry:id` names; all are valid, for rotation (E1, E3)."""
    rest_separator: str = ":"
    rest_ttl_max: float = REST_TTL_MAX
    strict_expiry: bool = False
    """Whether allocations of REST names end when the name expires (E4)."""
    session_max: float = 24 * 3600.0
    """How long an allocation outlives an expired REST name, from its Allocate on."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Key id → token of the HTTP API that hands out credentials."""
    credential_secret: str = field(default="", repr=False)
    """Seals the credentials handed out; empty: a random one, so that a restart ends them."""
    revocations_file: Path | None = None
    """Keeps revocations across restarts; wanted with a `credential_secret`, under which credentials outlive them."""
    credential_ttl: float = 86400.0
    """When a request names no `ttl`."""
    credential_ttl_max: float = 48 * 3600.0
    nonce_lifetime: float = NONCE_LIFETIME
    """At most 3600 s (N3)."""

    allow_peers: tuple[str, ...] = ()
    """Networks, addresses or ranges that lift a default denial; the most specific wins (X6)."""
    deny_peers: tuple[str, ...] = ()
    allow_loopback_peers: bool = False
    allow_endpoints: tuple[str, ...] = ()
    """`address:port` of our own services that peers may be, such as the SFU's."""
    deny_peer_ports: frozenset[int] = DENIED_PORTS
    min_peer_port: int = 1

    allocations_max: int = 4096
    """In total; beyond, 508 (A18). Each takes one descriptor per relayed address."""
    allocations_per_user: int = 64
    """486 beyond (A17)."""
    allocations_per_source: int = 256
    """Per client IPv4 address, which may be a whole office, or IPv6 /64."""
    permissions_max: int = 64
    """Per relayed address; 508 beyond (X14)."""
    channels_max: int = 64
    new_peers_per_s: float = 5.0
    """Per allocation (X15); 0: no limit."""
    new_peers_burst: float = 32.0
    lifetime_max: int = LIFETIME_MAX
    channel_extends_permission: bool = True
    """A bound channel keeps its peer permitted (P6)."""
    rfc5766_channel_numbers: bool = False
    """Channel numbers up to 0x7FFF for old clients (C1)."""

    allocation_bps_max: int = 0
    """Bits per second per allocation, each direction; 0: no limit (X16)."""
    user_bps_max: int = 0
    total_bps_max: int = 0
    allocation_pps_max: int = 0
    """Datagrams per second per allocation, each direction; 0: no limit."""

    errors_per_s: float = 10.0
    """Unauthenticated error replies per UDP source (X11)."""
    errors_burst: float = 20.0
    bindings_per_s: float = 100.0
    """Binding requests answered per UDP source (X12)."""
    requests_per_s: float = 50.0
    """Control requests handled per UDP source (X19)."""

    connections_max: int = 4096
    """TCP and TLS connections."""
    connections_per_source: int = 256
    """As above."""
    peer_connections_max: int = 1024
    """Of all TCP relays at once; each is a descriptor."""
    peer_connections_per_allocation: int = 32
    frame_timeout: float = 10.0
    """A started but unfinished message, or TLS handshake, closes the connection after this (T2, T5)."""
    idle_connection_timeout: float = 30.0
    """A connection without an allocation is closed after this (T2), and so is one that is being closed and whose client
    does not take what is left for it."""
    stream_queue_bytes: int = 256 * 1024
    """Output waiting for a slow TCP client; beyond, whole messages are dropped (T4)."""
    tls_record_per_message: bool = False
    """One TLS record for each message of data, for clients that take one message per read (T6); else what is ready
    together shares records, at a fraction of the CPU. Answers always have their own."""

    def check(self) -> None:
        """Refuse settings that cannot be served.

        Raises:
            ConfigurationError: naming the setting.
        """
        if not 0 < len(self.realm.encode()) <= REALM_BYTES_MAX:
            raise ConfigurationError(f"realm: 1 to {REALM_BYTES_MAX} bytes")
        if not 0 < self.nonce_lifetime <= NONCE_LIFETIME_MAX:
            raise ConfigurationError("nonce_lifetime: at most 3600 s")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigurationError("tls_certificate and tls_key belong together")
        if not self.listen_addresses:
            raise ConfigurationError("listen_addresses: at least one")
        if not (self.udp or self.tcp or self.tls_certificate):
            raise ConfigurationError("udp, tcp and tls_certificate: neither UDP nor TCP nor TLS is left")
        if not 0 < self.channels_max <= 1024 or not 0 < self.permissions_max <= 1024:
            raise ConfigurationError("channels_max and permissions_max: 1 to 1024")
        if not 600 <= self.lifetime_max <= 86400:
            raise ConfigurationError("lifetime_max: 600 to 86400 s")
        if not 0 < self.credential_ttl <= self.credential_ttl_max:
            raise ConfigurationError("credential_ttl: above 0 and not above credential_ttl_max")
        if not 0 <= self.gather_us_max <= 1000:
            raise ConfigurationError("gather_us_max: 0 to 1000 us")
        if self.peer_connections_max < 1 or self.peer_connections_per_allocation < 1:
            raise ConfigurationError("peer_connections_max and peer_connections_per_allocation: at least 1")
        if self.threads < 1 or self.allocations_max < 1:
            raise ConfigurationError("threads and allocations_max: at least 1")
