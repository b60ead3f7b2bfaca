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

# Public on purpose: they work on loopback only (`Settings.refusal`). Lengths as the original API's: 32 and 64.
DEVELOPMENT_APP_ID = "0123456789abcdef0123456789abcdef"
DEVELOPMENT_APP_SECRET = "development-secret-for-loopback-only-never-use-it-anywhere-else."  # noqa: S105

APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
SECRET_LENGTH_MIN = 32
PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)+\Z")
RESERVED_PREFIXES = ("/v1", "/apps", "/healthz", "/metrics", "/parties", "/demo")


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
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    events: EventSettings = field(default_factory=EventSettings)
    demo: DemoSettings = field(default_factory=DemoSettings)
    log: LogSettings = field(default_factory=LogSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    configured_apps: Mapping[str, Secret] = field(default_factory=dict)
    """App id to secret, as configured; `apps` is what is served."""

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
        if not self.configured_apps:
            return (
                f"http.host is {self.http.host}, which others can reach, and no app is configured. "
                "Set TORPOR_APP_ID and TORPOR_APP_SECRET, or [apps] in torpor.toml."
            )
        if any(secret.value == DEVELOPMENT_APP_SECRET for secret in self.configured_apps.values()):
            return (
                f"http.host is {self.http.host}, which others can reach, and an app has the public development secret."
            )
        return None

    def problems(self) -> Iterator[tuple[str, str]]:
        """`(key, reason)` for each value or combination that cannot work."""
        yield from self._http_problems()
        for address in (*self.media.addresses, *self.media.announced_addresses):
            if not _is_address(address):
                key = "media.addresses" if address in self.media.addresses else "media.announced_addresses"
                yield key, f"{address!r} is not an IP address"
        for app_id, secret in self.configured_apps.items():
            if not APP_ID.match(app_id):
                yield "apps", f"app id {app_id!r} is not 1 to 64 letters, digits, '-' or '_'"
            if len(secret.value) < SECRET_LENGTH_MIN or not secret.value.isascii() or not secret.value.isprintable():
                yield f"apps.{app_id}", f"a secret needs at least {SECRET_LENGTH_MIN} printable ASCII characters"
        yield from self._gateway_problems()

    def _http_problems(self) -> Iterator[tuple[str, str]]:
        if not _is_address(self.http.host):
            yield "http.host", f"{self.http.host!r} is not an IP address"
        if (self.http.tls_certificate is None) != (self.http.tls_key is None):
            yield "http.tls_certificate", "tls_certificate and tls_key go together"
        for key, path in (("tls_certificate", self.http.tls_certificate), ("tls_key", self.http.tls_key)):
            if path is not None and not path.is_file():
                yield f"http.{key}", f"no such file: {path}"
        for proxy in self.http.trusted_proxies:
            if not _is_network(proxy):
                yield "http.trusted_proxies", f"{proxy!r} is not an IP address or network"
        for origin in self.http.cors_origins:
            if not _is_origin(origin):
                yield "http.cors_origins", f"{origin!r} is neither '*' nor an origin like 'https://example.org'"

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
