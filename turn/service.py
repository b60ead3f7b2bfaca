"""TurnService: the package's facade and its shell. Builds the parts from the settings and runs them."""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from OpenSSL import SSL

from turn.allocations import Redirect
from turn.auth import Authenticator
from turn.credentials import (
    CredentialChain,
    CredentialIssuer,
    CredentialSource,
    IssuedCredential,
    RestSecrets,
    StaticUsers,
    key_tag,
)
from turn.endpoint import TurnEndpoint
from turn.errors import ConfigurationError, InvalidParams, UsageError
from turn.events import (
    AllocationClosed,
    AllocationCreated,
    AllocationEnded,
    AllocationStarted,
    CredentialWanted,
    Event,
    PeerJoined,
)
from turn.interfaces import expand, machine_addresses, parse_address, parse_endpoint
from turn.lookup import LOOKUP_TIMEOUT, RemoteCredentials
from turn.peer_endpoint import PeerEndpoint
from turn.policy import PeerPolicy
from turn.relaypool import RelayAddress
from turn.relayports import PortPool
from turn.relays import PlaneRelays, make_plane
from turn.revocations import Revocations
from turn.server import TurnServer
from turn.settings import TurnSettings
from turn.tls import server_context
from turn.usage import Party, RelayUsage, UsageLedger
from wire.exchange import End
from wire.stun import IPAddress, TransportAddress

__all__ = ["IceServer", "TurnService", "TurnSettings", "TurnStats"]

logger = logging.getLogger(__name__)
audit = logging.getLogger("turn.audit")

_DESCRIPTOR_MARGIN = 256


@dataclass(frozen=True, slots=True)
class IceServer:
    """One entry of `iceServers`."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TurnStats:
    """Counters since the start, and live objects, for metrics."""

    counters: Mapping[str, int]
    live: Mapping[str, int]
    usage: Mapping[Party, RelayUsage]
    """What passed, by key and custom identifier; that of live allocations included."""


@dataclass(frozen=True, slots=True)
class AllocationStatus:
    """A live allocation, as its key's owner may see it."""

    username: str
    identifier: str
    """The custom identifier of its credential."""
    transport: str
    """Between client and server: `udp`, `tcp` or `tls`."""
    client: TransportAddress
    relayed: tuple[TransportAddress, ...]
    expires_in: float
    """Seconds, unless it is refreshed."""
    permissions: int
    channels: int
    usage: RelayUsage


class TurnService:
    """A STUN and TURN server with its credentials. `start`, then `close`; both on one event loop."""

    def __init__(
        self,
        settings: TurnSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        find_password: Callable[[str], Awaitable[str | None]] | None = None,
        exchange: End | None = None,
        on_allocation: Callable[[str, AllocationStarted | AllocationEnded], None] = lambda key_id, event: None,
    ) -> None:
        """Check and compile the settings; touches no socket.

        Args:
            settings: checked here.
            clock: monotonic seconds, as `time.monotonic`.
            wall_clock: unix time, for credentials that expire.
            find_password: asked for users that nothing else knows: the password, or None. It has two seconds, then the
                client is told to try again (500); what it brings is kept for 30 s (E6).
            exchange: with the plane of a service of this process, for `settings.threads`: relays that may reach one of
                the addresses that it bound reach it in memory.
            on_allocation: told of allocations by credentials of a key, with the key's id.

        Raises:
            ConfigurationError: naming the setting.
        """
        settings.check()
        self.settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        secret = settings.credential_secret.encode() or secrets.token_bytes(32)
        self._revocations = Revocations(settings.revocations_file)
        self._issuer = CredentialIssuer(secret, settings.realm, self._revocations)
        self._users = StaticUsers(settings.users, settings.realm)
        self._remote = RemoteCredentials(settings.realm)
        self._find_password = find_password
        self._exchange = exchange
        self._on_allocation = on_allocation
        self._lookups: set[asyncio.Task[None]] = set()
        self._lookups_failed = 0
        self._endpoint: TurnEndpoint | None = None
        self._host = ""
        self._own: set[IPAddress] = set()
        self._relay_ips: list[IPAddress] = []
        self._peers: PeerEndpoint | None = None
        self._server: TurnServer | None = None
        self._final: TurnStats | None = None
        self._key_ids = {key_tag(key_id): key_id for key_id in settings.keys}
        self._ledger = UsageLedger()

    # Life.

    async def start(self) -> None:
        """Bind, start the relay threads and begin to serve.

        Raises:
            OSError: an address cannot be bound, or the certificate or the revocations not be read.
            ConfigurationError: this machine cannot serve the settings, or certificate and key do not fit together.
        """
        if self._endpoint is not None:
            raise UsageError("started already")
        settings = self.settings
        self._revocations.load(self._wall_clock())
        machine = machine_addresses()
        listen = expand(settings.listen_addresses, machine)
        relay_hosts = expand(settings.relay_addresses, machine) or listen
        relays = [self._relay_address(ip) for ip in relay_hosts]
        _ensure_descriptors(settings, len({ip.version for ip in relay_hosts}))
        tls = self._tls_context()
        self._own = machine | set(listen)
        first = str(listen[0])
        self._host = settings.public_host or settings.external_addresses.get(first, first)
        self._relay_ips = [ip for relay in relays for ip in (relay.local, relay.external)]
        policy = self._policy(settings)
        plane = make_plane(settings, len({ip.version for ip in relay_hosts}), self._exchange)
        adapter = PlaneRelays(plane)
        self._peers = PeerEndpoint(settings, clock=self._clock) if settings.tcp_relays else None
        self._server = TurnServer(settings, self._authenticator(), policy, adapter, relays, tcp=self._peers)
        endpoint = TurnEndpoint(
            settings,
            listen,
            self._server,
            plane,
            adapter,
            peers=self._peers,
            on_event=self._event_happened,
            clock=self._clock,
        )
        await endpoint.start(tls)
        self._endpoint = endpoint
        _warn_of_loopback(settings)

    async def close(self) -> None:
        """End every allocation and free everything. Idempotent."""
        if self._endpoint is not None:
            endpoint = self._endpoint
            for task in self._lookups:
                task.cancel()
            await endpoint.close()
            self._final = self.stats()
            self._endpoint = None
            self._server = None

    def drain(self, redirect: Redirect | None = None) -> None:
        """Take no new allocations (R3); `live_counts` tells when the last one is gone."""
        if self._server is not None:
            self._server.drain(redirect)

    def reload_certificate(self) -> None:
        """Read certificate and key again; connections go on (T5).

        Raises:
            OSError, ConfigurationError: the files cannot be used; the old ones stay in force.
        """
        if self._endpoint is not None and (tls := self._tls_context()) is not None:
            self._endpoint.tls = tls

    def _tls_context(self) -> SSL.Context | None:
        certificate, key = self.settings.tls_certificate, self.settings.tls_key
        return None if certificate is None or key is None else server_context(str(certificate), str(key))

    def reload_peers(self, *, allow: Sequence[str], deny: Sequence[str], allow_loopback: bool) -> None:
        """Change which peers relays may reach. What runs and is denied now stops at once (D5).

        Args:
            allow: as `TurnSettings.allow_peers`.
            deny: as `TurnSettings.deny_peers`.
            allow_loopback: as `TurnSettings.allow_loopback_peers`.

        Raises:
            ConfigurationError: naming the range; what was in force stays.
        """
        settings = replace(
            self.settings, allow_peers=tuple(allow), deny_peers=tuple(deny), allow_loopback_peers=allow_loopback
        )
        self._running().reload_policy(self._policy(settings))
        self.settings = settings
        _warn_of_loopback(settings)

    # What others ask.

    @property
    def port(self) -> int:
        """UDP and TCP port in use, after `start`."""
        return self._running().port

    @property
    def tls_port(self) -> int:
        """TLS port in use, 0 without TLS."""
        return self._running().tls_port

    def stats(self) -> TurnStats:
        """Counters and live objects; after `close`, the last ones."""
        if self._endpoint is None or self._server is None:
            return self._final or TurnStats({}, {}, {})
        counters = {f"requests_{name}": count for name, count in self._server.counters.items()}
        counters |= {f"plane_{name}": count for name, count in self._endpoint.plane_counters().items()}
        counters |= dict(self._endpoint.counters) | {"lookups_failed": self._lookups_failed}
        if self._peers is not None:
            counters |= dict(self._peers.counters)
        live = [(self._party(a.credential.username), usage) for a, usage in self._server.allocations()]
        return TurnStats(counters, self._endpoint.live_counts(), self._ledger.sums(live))

    def allocations(self, key_id: str) -> list[AllocationStatus]:
        """The live allocations of the credentials that were handed out under `key_id`."""
        if self._server is None:
            return []
        now = self._clock()
        found = []
        for allocation, usage in self._server.allocations():
            party = self._party(allocation.username)
            if party.key_id == key_id:
                found.append(
                    AllocationStatus(
                        allocation.username,
                        party.identifier,
                        allocation.five_tuple.transport.value,
                        allocation.five_tuple.client,
                        tuple(relay.external for relay in allocation.relays),
                        max(0.0, allocation.expires_at - now),
                        sum(len(relay.permissions.live(now)) for relay in allocation.relays),
                        len(allocation.channels.live(now)),
                        usage,
                    )
                )
        return found

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind; all 0 after `close`."""
        if self._endpoint is not None:
            return self._endpoint.live_counts()
        return dict(self._final.live) if self._final else {}

    # Credentials.

    def key_token(self, key_id: str) -> str | None:
        """The bearer token of an API key; None when there is no such key."""
        return self.settings.keys.get(key_id)

    def ice_servers(
        self, ttl: float | None = None, *, key_id: str = "", custom_identifier: str | None = None
    ) -> tuple[IceServer, ...]:
        """A STUN entry, and a TURN entry with a new credential, listing only what listens.

        Args:
            ttl: seconds, up to `credential_ttl_max`; None: `credential_ttl`.
            key_id: under which the credential can be revoked.
            custom_identifier: whom it is for.

        Raises:
            InvalidParams: `ttl` or `custom_identifier` is outside its limits.
        """
        issued = self.issue(ttl, key_id=key_id, custom_identifier=custom_identifier)
        stun, turn = self.urls()
        servers = [IceServer(stun)] if stun else []
        return (*servers, IceServer(turn, issued.username, issued.credential))

    def issue(
        self, ttl: float | None = None, *, key_id: str = "", custom_identifier: str | None = None
    ) -> IssuedCredential:
        """A new credential; see `ice_servers`."""
        seconds = self.settings.credential_ttl if ttl is None else ttl
        if not 0 < seconds <= self.settings.credential_ttl_max:
            raise InvalidParams(f"ttl must be above 0 and at most {self.settings.credential_ttl_max:.0f} s")
        return self._issuer.issue(key_id, seconds, self._wall_clock(), custom_identifier)

    def revoke(self, key_id: str, username: str) -> None:
        """End a credential and its allocations.

        Raises:
            UnknownCredential: not issued here under this key.
            OSError: it is ended, but a restart would bring it back: `revocations_file` cannot be written.
        """
        try:
            self._issuer.revoke(key_id, username, self._wall_clock())
        finally:
            # Nobody else's allocations: without UnknownCredential the name is one that this key issued.
            if self._endpoint is not None and username in self._revocations:
                self._endpoint.revoke(username)

    def urls(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """`stun:` and `turn:` urls, in the order in which clients should try them."""
        endpoint = self._running()
        host = f"[{self._host}]" if ":" in self._host else self._host
        stun = [f"stun:{host}:{endpoint.port}"] if self.settings.udp else []
        turn = [f"turn:{host}:{endpoint.port}?transport=udp"] if self.settings.udp else []
        if self.settings.tcp:
            turn.append(f"turn:{host}:{endpoint.port}?transport=tcp")
        if endpoint.tls_port:
            turn.append(f"turns:{host}:{endpoint.tls_port}?transport=tcp")
        return tuple(stun), tuple(turn)

    def _party(self, username: str) -> Party:
        """Who answers for a credential. Those of users and shared secrets have no key, and no identifier here."""
        found = self._issuer.party_of(username)
        return Party("", "") if found is None else Party(self._key_ids.get(found[0], ""), found[1])

    # Building.

    def _running(self) -> TurnEndpoint:
        if self._endpoint is None:
            raise UsageError("not started")
        return self._endpoint

    def _authenticator(self) -> Authenticator:
        settings = self.settings
        rest = RestSecrets(
            settings.rest_secrets,
            settings.realm,
            separator=settings.rest_separator,
            ttl_max=settings.rest_ttl_max,
            strict_expiry=settings.strict_expiry,
        )
        sources: list[CredentialSource] = [self._users, rest, self._issuer]
        if self._find_password is not None:
            sources.append(self._remote)
        # I9: names that cannot be enumerated cannot be found by their hash.
        static_only = bool(self._users) and not settings.rest_secrets and not settings.keys and not self._find_password
        return Authenticator(
            settings.realm,
            CredentialChain(sources),
            users=self._users if static_only else None,
            nonce_lifetime=settings.nonce_lifetime,
            wall_clock=self._wall_clock,
        )

    def _policy(self, settings: TurnSettings) -> PeerPolicy:
        external = {parse_address("external_addresses", ip) for ip in settings.external_addresses.values()}
        return PeerPolicy(
            allowed=settings.allow_peers,
            denied=settings.deny_peers,
            allow_loopback=settings.allow_loopback_peers,
            own_addresses=self._own | external,
            relay_addresses=self._relay_ips,
            allowed_endpoints=[parse_endpoint(text) for text in settings.allow_endpoints],
            denied_ports=settings.deny_peer_ports,
            min_port=settings.min_peer_port,
        )

    def _relay_address(self, ip: IPAddress) -> RelayAddress:
        external = self.settings.external_addresses.get(str(ip))
        return RelayAddress(
            ip,
            ip if external is None else parse_address("external_addresses", external),
            PortPool(self.settings.relay_port_min, self.settings.relay_port_max),
        )

    def _look_up(self, username: str) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(username))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    async def _ask(self, username: str) -> None:
        assert self._find_password is not None
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                password = await self._find_password(username)
        except Exception as error:  # somebody else's code; its clients get 500 when their time is over
            self._lookups_failed += 1
            logger.debug("a credential look-up failed: %s", type(error).__name__)
            return
        self._remote.remember(username, password, self._wall_clock())
        if self._endpoint is not None:
            self._endpoint.credential_found(username)

    def _event_happened(self, event: Event) -> None:
        """The audit log (X22): identity, addresses, bytes; off unless the operator turns that logger on."""
        if isinstance(event, PeerJoined):
            return
        name = event.username.encode("unicode_escape").decode()
        match event:
            case CredentialWanted(username):
                self._look_up(username)
            case AllocationCreated(five_tuple, username, relayed):
                party = self._party(username)
                self._ledger.open(party)
                if party.key_id:
                    transport, client = five_tuple.transport.value, str(five_tuple.client)
                    started = AllocationStarted(
                        username, party.identifier, transport, client, tuple(map(str, relayed)), self._clock()
                    )
                    self._on_allocation(party.key_id, started)
                audit.info("allocated user=%s client=%s relay=%s", name, five_tuple, ",".join(map(str, relayed)))
            case AllocationClosed(five_tuple, username, reason, usage):
                party = self._party(username)
                self._ledger.close(party, usage)
                if party.key_id:
                    ended = AllocationEnded(
                        username,
                        party.identifier,
                        str(five_tuple.client),
                        reason.value,
                        usage.bytes_from_client,
                        usage.bytes_to_client,
                        self._clock(),
                    )
                    self._on_allocation(party.key_id, ended)
                audit.info(
                    "closed user=%s client=%s reason=%s from_client=%d to_client=%d",
                    name, five_tuple, reason.value, usage.bytes_from_client, usage.bytes_to_client,
                )  # fmt: skip


def _warn_of_loopback(settings: TurnSettings) -> None:
    if settings.allow_loopback_peers:
        logger.warning("loopback peers are allowed: clients can reach services on this machine")


def _ensure_descriptors(settings: TurnSettings, families: int) -> None:
    """X20: room for every allocation and connection, or no start."""
    needed = settings.allocations_max * families + settings.connections_max + _DESCRIPTOR_MARGIN
    needed += settings.peer_connections_max if settings.tcp_relays else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ConfigurationError(f"allocations_max needs {needed} file descriptors; the limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
