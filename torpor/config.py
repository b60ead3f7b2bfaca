"""The settings: one frozen tree with defaults, documented where they are declared.

`sources.py` fills it: defaults < `torpor.toml` < `TORPOR_*` environment < command line. The same name everywhere:
`[http] port` in the file is `TORPOR_HTTP_PORT` in the environment and `--http-port` on the command line. Units are in
the names; a plain number is seconds. Rules that join several settings are in `Settings.problems`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from objects.ports import MAX_CONNECTIONS
from partykit_compat.names import is_party_name
from turn.errors import ConfigurationError
from turn.policy import parse_range
from turn.settings import REALM_BYTES_MAX

# Public on purpose: they work on loopback only (`Settings.refusal`). Lengths as the original API's: 32 and 64.
DEVELOPMENT_APP_ID = "0123456789abcdef0123456789abcdef"
DEVELOPMENT_APP_SECRET = "development-secret-for-loopback-only-never-use-it-anywhere-else."  # noqa: S105

APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
SECRET_LENGTH_MIN = 32
BLOCKING_TIMEOUT_MIN = 0.1  # less would end handlers that only wait for a busy machine
TOO_SHORT = f"a secret needs at least {SECRET_LENGTH_MIN} printable ASCII characters"
PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)+\Z")
RESERVED_PREFIXES = ("/v1", "/apps", "/healthz", "/metrics", "/parties", "/party")


class Secret:
    """A string that does not print. Compare and use `value` only where it is checked."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def setting(default: Any, text: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A dataclass field with its documentation and, for numbers, its inclusive bounds.

    `Any` because a field specifier has the type of the field it is assigned to.
    """
    return field(default=default, metadata={"text": text, "least": least, "most": most})


def secret_table(text: str) -> Any:
    """A dataclass field that is a table of names and secrets, in the file only."""
    return field(default_factory=dict, metadata={"text": text, "least": None, "most": None})


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The TCP port: HTTP API, pages, WebSockets."""

    host: str = setting("127.0.0.1", "IP address to bind; `0.0.0.0` or `::` for all")
    port: int = setting(8787, "TCP port; 0 lets the system choose", least=0, most=65535)
    tls_certificate: Path | None = setting(None, "PEM file, leaf first; makes the port HTTPS")  # noqa: RUF009
    tls_key: Path | None = setting(None, "PEM file of the private key, unencrypted")  # noqa: RUF009
    body_max_bytes: int = setting(2 * 1024 * 1024, "Largest request body; above it 413", least=1024 * 1024, most=2**28)
    body_timeout: float = setting(15.0, "Time for a request body to arrive; then 408", least=1, most=600)
    header_max_bytes: int = setting(32 * 1024, "Largest request head; above it 431", least=4096, most=2**20)
    header_timeout: float = setting(10.0, "Time for a request head to arrive; then the connection is closed", least=1)
    keep_alive_timeout: int = setting(15, "An idle connection is closed after this", least=1, most=3600)
    connections_max: int = setting(10_000, "Open HTTP connections; more are closed at once", least=10)
    cors_origins: tuple[str, ...] = setting(("*",), "Origins that may call the API from a page; `*` for all")
    trusted_proxies: tuple[str, ...] = setting(
        (), "Peers whose `X-Forwarded-*` headers count, as addresses or networks"
    )
    access_log: bool = setting(False, "Log one line per request")


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """The UDP port: STUN, DTLS, SRTP of all sessions."""

    enabled: bool = setting(True, "Serve media sessions; false for a node that has other duties")
    addresses: tuple[str, ...] = setting((), "IP addresses to bind; empty: `http.host`")
    port: int | None = setting(None, "UDP port; absent: the number of `http.port`; 0: any", least=0, most=65535)
    announced_addresses: tuple[str, ...] = setting((), "Addresses told to clients; needed behind NAT; empty: our own")
    threads: int = setting(0, "Forwarding threads; 0: one per core", least=0, most=256)
    sessions_max: int = setting(10_000, "Sessions at once; more are refused with 429", least=1, most=1_000_000)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """STUN and TURN, for clients that UDP does not reach: one port for UDP and TCP, one for TLS."""

    enabled: bool | None = setting(
        None, "Serve it; absent: in development, and when somebody has a key or secret of it"
    )
    addresses: tuple[str, ...] = setting((), "IP addresses to bind; empty: those of media")
    port: int | None = setting(
        None, "UDP and TCP port; absent: 3478, in development any if that is taken; 0: any", least=0, most=65535
    )
    tls_port: int | None = setting(
        None, "TCP port with TLS, when there is a certificate; absent: 5349, as above; 0: any", least=0, most=65535
    )
    tls_certificate: Path | None = setting(None, "PEM file, leaf first; absent: that of HTTP")  # noqa: RUF009
    tls_key: Path | None = setting(None, "PEM file of the private key, unencrypted; absent: that of HTTP")  # noqa: RUF009
    udp: bool = setting(True, "Serve clients over UDP")
    tcp: bool = setting(True, "Serve clients over TCP")
    public_host: str = setting("", "Host in the urls that clients get, a name of the certificate; empty: an address")
    announced_addresses: tuple[str, ...] = setting(
        (), "Addresses of relays as told to clients, one per family; needed behind NAT; empty: those of media"
    )
    relay_addresses: tuple[str, ...] = setting(
        (), "IP addresses of relays; the first of each family counts; empty: as `turn.addresses`"
    )
    relay_port_min: int = setting(49152, "Lowest port of a relay", least=1024, most=65535)
    relay_port_max: int = setting(65535, "Highest port of a relay", least=1024, most=65535)
    tcp_relays: bool = setting(False, "Relays that reach peers over TCP (RFC 6062), for clients over TCP and TLS")
    threads: int = setting(0, "Relay threads; 0: one per core", least=0, most=256)
    gather_us_max: int = setting(
        500, "Under load, packets gather in the kernel so many microseconds before a relay thread takes them; 0: never",
        least=0, most=1000,
    )  # fmt: skip
    tls_record_per_message: bool = setting(
        False, "One TLS record per message of data, for clients that take one message per read (coturn's load client)"
    )
    media_in_memory: bool = setting(
        True, "Hand packets between relays and our own media side over in memory; false: through the network"
    )
    realm: str = setting("torpor", f"Named in challenges, 1 to {REALM_BYTES_MAX} bytes")
    keys: Mapping[str, Secret] = secret_table("Key id to token: who may have credentials made over HTTP")
    users: Mapping[str, Secret] = secret_table("User name to password, for clients with fixed credentials")
    shared_secrets: tuple[Secret, ...] = setting((), "Secrets of back ends that make `expiry:id` names by themselves")
    credential_secret: Secret | None = setting(None, "Seals credentials; absent: a restart ends those handed out")  # noqa: RUF009
    revocations_file: Path | None = setting(None, "Keeps revocations over restarts; with a `credential_secret`")  # noqa: RUF009
    credential_ttl: float = setting(86400.0, "Life of a credential when a request names none", least=1)
    credential_ttl_max: float = setting(172800.0, "Longest life of a credential that may be asked for", least=1)
    allow_peers: tuple[str, ...] = setting((), "Private addresses, networks or ranges that clients may reach by relay")
    deny_peers: tuple[str, ...] = setting((), "Public ones that they may not")
    allow_loopback_peers: bool = setting(False, "Let clients reach services of this machine: for tests")
    allocations_max: int = setting(
        4096, "Relays at once; each is a file descriptor; more: 508", least=1, most=1_000_000
    )
    allocations_per_user: int = setting(64, "Per credential; more: 486", least=1)
    allocations_per_source: int = setting(
        256, "Per client IPv4 address, maybe a whole office, or IPv6 /64; more: 486", least=1
    )
    connections_max: int = setting(4096, "TCP and TLS connections; more are closed at once", least=1, most=1_000_000)
    connections_per_source: int = setting(256, "Per client IPv4 address or IPv6 /64", least=1)
    peer_connections_max: int = setting(
        1024, "Connections of TCP relays with peers; each is a file descriptor; more: 508", least=1, most=1_000_000
    )
    peer_connections_per_allocation: int = setting(32, "Of one TCP relay", least=1)
    requests_per_s: float = setting(
        50.0, "Requests of a UDP source address or a connection; more are dropped; 0: no limit", least=0
    )
    errors_per_s: float = setting(
        10.0, "Challenges and errors to a UDP source address without credentials, twice that in a burst; 0: no limit",
        least=0,
    )  # fmt: skip
    allocation_bps_max: int = setting(0, "Bits a second through one relay, each way; 0: no limit", least=0)
    user_bps_max: int = setting(0, "Bits a second of one credential, each way; 0: no limit", least=0)
    total_bps_max: int = setting(0, "Bits a second of all, each way; 0: no limit", least=0)
    allocation_pps_max: int = setting(0, "Datagrams a second through one relay, each way; 0: no limit", least=0)
    audit_log: bool = setting(False, "Log each relay's begin and end: user, addresses, bytes")


@dataclass(frozen=True, slots=True)
class RoomSettings:
    """Rooms: where they keep their data, and what one, all, or a client may use up. Which: the table `[parties]`."""

    folder: Path = setting(Path(".torpor"), "Folder of their storage; one server at a time may use it")  # noqa: RUF009
    allowed_origins: tuple[str, ...] = setting(
        ("*",), "Origins whose pages may connect and make requests; `*` for all, in development all of this machine"
    )
    admin_token: Secret | None = setting(None, "Bearer of `GET /v1/rooms`; absent: in development the app secret")  # noqa: RUF009
    idle_timeout: float = setting(10.0, "A room with nothing to do leaves memory after this", least=0.1, most=3600)
    awake_max: int = setting(50_000, "Rooms in memory at once; what would wake one more gets 503", least=1)
    connections_max: int = setting(100_000, "WebSockets at once; more get 503", least=1, most=10_000_000)
    connections_per_room: int = setting(
        MAX_CONNECTIONS, "WebSockets of one room; more get 503", least=1, most=MAX_CONNECTIONS
    )
    connections_per_address: int = setting(0, "WebSockets of one client address; more get 429; 0: no limit", least=0)
    messages_per_second: int = setting(
        0, "Of one WebSocket, those answered without waking not counted; above it close 1008; 0: no limit", least=0
    )
    handshakes_per_second: float = setting(100.0, "Per client address; more get 429; 0: no limit", least=0)
    message_max_bytes: int = setting(1024 * 1024, "Largest WebSocket message; above it close 1009", least=1024)
    queue_max_bytes: int = setting(
        1024 * 1024, "Unsent bytes of a slow client; above it `slow_clients` applies", least=1024
    )
    slow_clients: Literal["close", "drop-newest"] = setting(
        "close", "`close`: 1013; `drop-newest`: what does not fit is lost to that client, and counted"
    )
    message_timeout: float = setting(
        30.0, "A message begun must be whole after this, else close 1008; 0: no limit", least=0
    )
    silence_timeout: float = setting(
        0.0, "A WebSocket without a message for this long is closed with 1001; 0: never", least=0
    )
    compression: bool = setting(False, "Agree to permessage-deflate, without context takeover")
    blocking_timeout: float = setting(
        5.0, "Code that holds the server up this long without an await is stopped, its room reset; 0: never", least=0
    )
    ping_interval: float = setting(20.0, "A ping is sent after this much silence; 0: never", least=0, most=3600)
    storage_max_bytes: int = setting(10 * 1024**3, "Size of one room's file; above it writing fails", least=2**20)
    closes_per_second: int = setting(1000, "At stop WebSockets are closed so fast, as clients come back alike", least=1)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The browser gateway: pages use partytracks without a back end of their own and without a bearer."""

    enabled: bool | None = setting(None, "Serve it; absent: only in development")
    prefix: str = setting("/partytracks", "Path before `/sessions/...`")
    app_id: str | None = setting(None, "App that its sessions belong to; absent: the only one configured")
    lock: bool = setting(True, "Tie each session to the browser that made it, by cookie")
    allowed_origins: tuple[str, ...] = setting((), "Origins besides its own that may use it; `*` for all")


@dataclass(frozen=True, slots=True)
class EventSettings:
    """`GET /v1/apps/{appId}/events`."""

    listeners_max: int = setting(16, "Listeners at once per app", least=1, most=10_000)
    queue_max: int = setting(256, "Events waiting for a slow listener; then it is dropped", least=8, most=100_000)
    heartbeat: float = setting(15.0, "A comment is sent after this much silence", least=0.1, most=300)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The pages at `/` and the room list they need."""

    enabled: bool | None = setting(None, "Serve them; absent: only in development")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "Least severe level that is written")
    format: Literal["text", "json"] = setting("text", "`text`: key=value; `json`: one object per line")


@dataclass(frozen=True, slots=True)
class ShutdownSettings:
    """What SIGTERM and SIGINT do."""

    delay: float = setting(0.0, "Keep serving this long with `/healthz` at 503, for balancers", least=0, most=3600)
    timeout: int = setting(10, "Requests in flight get this long, then are cut", least=1, most=3600)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator may choose. Built by `sources.load`, immutable afterwards."""

    http: HttpSettings = field(default_factory=HttpSettings)
    media: MediaSettings = field(default_factory=MediaSettings)
    turn: RelaySettings = field(default_factory=RelaySettings)
    rooms: RoomSettings = field(default_factory=RoomSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    events: EventSettings = field(default_factory=EventSettings)
    demo: DemoSettings = field(default_factory=DemoSettings)
    log: LogSettings = field(default_factory=LogSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    configured_apps: Mapping[str, Secret] = field(default_factory=dict)
    """App id to secret, as configured; `apps` is what is served."""
    parties: Mapping[str, str] = field(default_factory=dict)
    """Party name to `module:Class`, the rooms that are served; without any, there is no room side."""

    @property
    def on_loopback(self) -> bool:
        """Whether nothing but this machine can reach HTTP."""
        return ipaddress.ip_address(self.http.host).is_loopback

    @property
    def development(self) -> bool:
        """Loopback without configured apps: the development app, the gateway and the demo are there."""
        return self.on_loopback and not self.configured_apps

    @property
    def apps(self) -> Mapping[str, Secret]:
        """App id to secret, as served."""
        if self.development:
            return {DEVELOPMENT_APP_ID: Secret(DEVELOPMENT_APP_SECRET)}
        return self.configured_apps

    @property
    def media_addresses(self) -> tuple[str, ...]:
        """Where UDP is bound."""
        return self.media.addresses or (self.http.host,)

    @property
    def media_port(self) -> int:
        """The UDP port; 0 lets the system choose."""
        return self.http.port if self.media.port is None else self.media.port

    @property
    def turn_enabled(self) -> bool:
        """Whether STUN and TURN are served: not where nobody could get a credential, unless told."""
        if self.turn.enabled is not None:
            return self.turn.enabled
        return self.development or bool(self.turn.keys or self.turn.users or self.turn.shared_secrets)

    @property
    def turn_keys(self) -> Mapping[str, Secret]:
        """Key id to token, as served: in development the app's id and secret are a TURN key too."""
        return self.apps if self.development and not self.turn.keys else self.turn.keys

    @property
    def turn_addresses(self) -> tuple[str, ...]:
        """Where STUN and TURN are bound."""
        return self.turn.addresses or self.media_addresses

    @property
    def turn_certificate(self) -> tuple[Path, Path] | None:
        """Certificate and key of TURN over TLS, if it is served."""
        own = self.turn.tls_certificate, self.turn.tls_key
        certificate, key = own if any(own) else (self.http.tls_certificate, self.http.tls_key)
        return None if certificate is None or key is None else (certificate, key)

    @property
    def rooms_admin_token(self) -> Secret | None:
        """Who may list the rooms; None: nobody."""
        if self.rooms.admin_token is None and self.development:
            return self.apps[DEVELOPMENT_APP_ID]
        return self.rooms.admin_token

    @property
    def gateway_enabled(self) -> bool:
        """Whether the browser gateway is served."""
        return self.development if self.gateway.enabled is None else self.gateway.enabled

    @property
    def demo_enabled(self) -> bool:
        """Whether the pages and the demo's room list are served."""
        return self.development if self.demo.enabled is None else self.demo.enabled

    @property
    def gateway_app_id(self) -> str:
        """The app that gateway sessions belong to. Only when the gateway is enabled."""
        return self.gateway.app_id or next(iter(self.apps))

    def refusal(self) -> str | None:
        """Why serving with these settings would be unsafe, or `None`."""
        if self.on_loopback:
            return None
        reachable = f"http.host is {self.http.host}, which others can reach, and"
        if not self.configured_apps:
            return (
                f"{reachable} no app is configured. Set TORPOR_APP_ID and TORPOR_APP_SECRET, or [apps] in torpor.toml."
            )
        for what, secrets in (("an app", self.configured_apps), ("a TURN key", self.turn.keys)):
            if any(secret.value == DEVELOPMENT_APP_SECRET for secret in secrets.values()):
                return f"{reachable} {what} has the public development secret."
        return None

    def problems(self) -> Iterator[tuple[str, str]]:
        """`(key, reason)` for each value or combination that cannot work."""
        yield from self._http_problems()
        for address in (*self.media.addresses, *self.media.announced_addresses):
            if not _is_address(address):
                key = "media.addresses" if address in self.media.addresses else "media.announced_addresses"
                yield key, f"{address!r} is not an IP address"
        yield from _secret_problems("apps", "app id", self.configured_apps)
        yield from self._turn_problems()
        yield from self._room_problems()
        yield from self._gateway_problems()

    def _http_problems(self) -> Iterator[tuple[str, str]]:
        if not _is_address(self.http.host):
            yield "http.host", f"{self.http.host!r} is not an IP address"
        yield from _certificate_problems("http", self.http.tls_certificate, self.http.tls_key)
        for proxy in self.http.trusted_proxies:
            if not _is_network(proxy):
                yield "http.trusted_proxies", f"{proxy!r} is not an IP address or network"
        for origin in self.http.cors_origins:
            if not _is_origin(origin):
                yield "http.cors_origins", f"{origin!r} is neither '*' nor an origin like 'https://example.org'"

    def _turn_problems(self) -> Iterator[tuple[str, str]]:
        turn = self.turn
        for name in ("addresses", "relay_addresses", "announced_addresses"):
            for address in getattr(turn, name):
                if not _is_address(address):
                    yield f"turn.{name}", f"{address!r} is not an IP address"
        for name in ("allow_peers", "deny_peers"):
            for peers in getattr(turn, name):
                try:
                    parse_range(peers)
                except ConfigurationError as error:
                    yield f"turn.{name}", str(error)
        yield from _certificate_problems("turn", turn.tls_certificate, turn.tls_key)
        yield from _secret_problems("turn.keys", "key id", turn.keys)
        for index, secret in enumerate((*turn.shared_secrets, *filter(None, [turn.credential_secret]))):
            if not _is_long_enough(secret):
                key = "turn.shared_secrets" if index < len(turn.shared_secrets) else "turn.credential_secret"
                yield key, TOO_SHORT
        if any(not password.value for password in turn.users.values()) or "" in turn.users:
            yield "turn.users", "a user has a name and a password"
        if not 0 < len(turn.realm.encode()) <= REALM_BYTES_MAX:
            yield "turn.realm", f"needs 1 to {REALM_BYTES_MAX} bytes"
        if turn.relay_port_min > turn.relay_port_max:
            yield "turn.relay_port_min", "is above turn.relay_port_max"
        if turn.credential_ttl > turn.credential_ttl_max:
            yield "turn.credential_ttl", "is above turn.credential_ttl_max"
        if not (turn.udp or turn.tcp or self.turn_certificate):
            yield "turn.udp", "neither UDP nor TCP nor TLS is left: set turn.enabled to false"

    def _room_problems(self) -> Iterator[tuple[str, str]]:
        for name in self.parties:
            if not is_party_name(name):
                yield f"parties.{name}", "a party is named by 1 to 64 lower-case letters, digits, '-' or '_'"
        for origin in self.rooms.allowed_origins:
            if not _is_origin(origin):
                yield "rooms.allowed_origins", f"{origin!r} is neither '*' nor an origin like 'https://example.org'"
        if 0 < self.rooms.blocking_timeout < BLOCKING_TIMEOUT_MIN:
            yield "rooms.blocking_timeout", f"must be 0, for never, or at least {BLOCKING_TIMEOUT_MIN}"
        if self.rooms.admin_token is not None and not _is_long_enough(self.rooms.admin_token):
            yield "rooms.admin_token", TOO_SHORT

    def _gateway_problems(self) -> Iterator[tuple[str, str]]:
        prefix = self.gateway.prefix
        if not PREFIX.match(prefix) or any(f"{prefix}/".startswith(f"{r}/") for r in RESERVED_PREFIXES):
            yield "gateway.prefix", f"{prefix!r} must be a path such as '/partytracks' and none of {RESERVED_PREFIXES}"
        for origin in self.gateway.allowed_origins:
            if not _is_origin(origin):
                yield "gateway.allowed_origins", f"{origin!r} is neither '*' nor an origin like 'https://example.org'"
        if not _is_address(self.http.host) or not self.gateway_enabled or not self.apps:
            return
        if self.gateway.app_id is None and len(self.apps) != 1:
            yield "gateway.app_id", "several apps are configured: say which one the gateway serves"
        if self.gateway.app_id is not None and self.gateway.app_id not in self.apps:
            yield "gateway.app_id", f"no app {self.gateway.app_id!r} is configured"


def _secret_problems(key: str, what: str, secrets: Mapping[str, Secret]) -> Iterator[tuple[str, str]]:
    for name, secret in secrets.items():
        if not APP_ID.match(name):
            yield key, f"{what} {name!r} is not 1 to 64 letters, digits, '-' or '_'"
        if not _is_long_enough(secret):
            yield f"{key}.{name}", TOO_SHORT


def _certificate_problems(section: str, certificate: Path | None, key: Path | None) -> Iterator[tuple[str, str]]:
    if (certificate is None) != (key is None):
        yield f"{section}.tls_certificate", "tls_certificate and tls_key go together"
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        if path is not None and not path.is_file():
            yield f"{section}.{name}", f"no such file: {path}"


def _is_long_enough(secret: Secret) -> bool:
    return len(secret.value) >= SECRET_LENGTH_MIN and secret.value.isascii() and secret.value.isprintable()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_origin(text: str) -> bool:
    return text == "*" or re.match(r"https?://[^/?#\s@]+\Z", text) is not None
