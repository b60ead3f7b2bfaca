"""STUN and TURN as part of the server: what `turn` needs of the settings, and how it starts.

Clients that UDP does not reach come to the media side through a relay of ours. So the media side's own address and
port are a peer that relays may reach, although addresses of this machine are otherwise none.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from sfu.service import Sfu
from torpor.addresses import announced_addresses
from torpor.config import Secret, Settings
from torpor.errors import StartRefused
from turn.errors import ConfigurationError
from turn.service import TurnService
from turn.settings import TurnSettings
from wire.exchange import End, Exchange

logger = logging.getLogger("torpor")

DEFAULT_PORT, DEFAULT_TLS_PORT = 3478, 5349


def media_exchange(settings: Settings) -> tuple[End | None, End | None]:
    """The media side's end and the relays' end of what passes between them in memory; `None` when nothing does."""
    if not (settings.media.enabled and settings.turn_enabled and settings.turn.media_in_memory):
        return None, None
    return Exchange(media_threads(settings), turn_threads(settings)).ends()


def media_threads(settings: Settings) -> int:
    """Forwarding threads."""
    return settings.media.threads or len(os.sched_getaffinity(0))


def turn_threads(settings: Settings) -> int:
    """Relay threads."""
    return settings.turn.threads or len(os.sched_getaffinity(0))


async def start_turn(settings: Settings, sfu: Sfu | None, exchange: End | None = None) -> TurnService:
    """A started TURN server. `exchange`: the relays' end of `media_exchange`.

    In development a port that is taken is no reason not to start: unless the settings name it, any other will do, since
    clients are told.

    Raises:
        StartRefused: the settings cannot be served, or an address cannot be bound.
    """
    wanted = turn_settings(settings, tuple(media_endpoints(sfu)))
    attempts = [wanted]
    if settings.development:
        attempts.append(
            dataclasses.replace(
                wanted,
                port=settings.turn.port or 0,
                tls_port=settings.turn.tls_port or 0,
            )
        )
    for attempt in attempts:
        try:
            # A key with the id of an app is the app's: its listeners hear of its relays.
            turn = TurnService(attempt, exchange=exchange, on_allocation=sfu.tell if sfu else _nobody)
            await turn.start()
        except ConfigurationError as error:
            raise StartRefused(f"turn: {error}") from error
        except OSError as error:
            if error.filename is not None:
                raise StartRefused(f"turn: {error}") from error
            if error.errno == errno.EADDRINUSE and attempt is not attempts[-1]:
                continue
            where = ", ".join(attempt.listen_addresses)
            ports = f"port {attempt.port}" + (f" or {attempt.tls_port}" if attempt.tls_certificate else "")
            raise StartRefused(f"cannot listen on {where}, TURN {ports}: {error}") from error
        relays = ", ".join(attempt.external_addresses.get(host, host) for host in attempt.relay_addresses)
        extra = {"turn_port": turn.port, "tls_port": turn.tls_port or None, "host": attempt.public_host}
        logger.info("turn", extra={**extra, "relays": relays, "threads": attempt.threads})
        return turn
    raise AssertionError("the last attempt returns or raises")


def turn_settings(settings: Settings, endpoints: Sequence[str]) -> TurnSettings:
    """What TURN needs of the settings.

    Args:
        settings: checked ones.
        endpoints: `address:port` of the media side.

    Raises:
        StartRefused: no route tells which address of this machine relays should have.
    """
    own = settings.turn
    listen = announced_addresses(settings.turn_addresses, (), setting="turn.addresses")
    relays = first_of_each_family(
        announced_addresses(own.relay_addresses, (), setting="turn.relay_addresses") if own.relay_addresses else listen
    )
    announced = first_of_each_family(own.announced_addresses or settings.media.announced_addresses)
    external = {relays[version]: address for version, address in announced.items() if version in relays}
    certificate, key = settings.turn_certificate or (None, None)
    return TurnSettings(
        listen_addresses=settings.turn_addresses,
        port=DEFAULT_PORT if own.port is None else own.port,
        tls_port=DEFAULT_TLS_PORT if own.tls_port is None else own.tls_port,
        udp=own.udp,
        tcp=own.tcp,
        tls_certificate=certificate,
        tls_key=key,
        public_host=own.public_host or next(iter(announced.values()), listen[0]),
        relay_addresses=tuple(relays.values()),
        external_addresses=external,
        relay_port_min=own.relay_port_min,
        relay_port_max=own.relay_port_max,
        tcp_relays=own.tcp_relays,
        threads=turn_threads(settings),
        gather_us_max=own.gather_us_max,
        tls_record_per_message=own.tls_record_per_message,
        requests_per_s=own.requests_per_s,
        errors_per_s=own.errors_per_s,
        errors_burst=max(2 * own.errors_per_s, 1.0),
        realm=own.realm,
        users=_values(own.users),
        rest_secrets=tuple(secret.value for secret in own.shared_secrets),
        keys=_values(settings.turn_keys),
        credential_secret="" if own.credential_secret is None else own.credential_secret.value,
        revocations_file=own.revocations_file,
        credential_ttl=own.credential_ttl,
        credential_ttl_max=own.credential_ttl_max,
        allow_peers=own.allow_peers,
        deny_peers=own.deny_peers,
        allow_loopback_peers=own.allow_loopback_peers,
        allow_endpoints=tuple(endpoints),
        allocations_max=own.allocations_max,
        allocations_per_user=own.allocations_per_user,
        allocations_per_source=own.allocations_per_source,
        connections_max=own.connections_max,
        connections_per_source=own.connections_per_source,
        peer_connections_max=own.peer_connections_max,
        peer_connections_per_allocation=own.peer_connections_per_allocation,
        allocation_bps_max=own.allocation_bps_max,
        user_bps_max=own.user_bps_max,
        total_bps_max=own.total_bps_max,
        allocation_pps_max=own.allocation_pps_max,
    )


def media_endpoints(sfu: Sfu | None) -> Iterator[str]:
    """Where the started media side can be reached, by clients' candidates and by its own sockets."""
    for host, port in sfu.settings.endpoints(sfu.port) if sfu is not None else ():
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _nobody(key_id: str, event: object) -> None:
    """Without the media side there are no apps to tell."""


def ice_servers(turn: TurnService | None, app_id: str) -> list[Mapping[str, Any]]:
    """The `iceServers` of an RTCPeerConnection: what listens now, and a new credential, of the app's key if any."""
    if turn is None:
        return []
    return [
        {name: value for name, value in dataclasses.asdict(server).items() if value is not None}
        for server in turn.ice_servers(key_id=app_id if turn.key_token(app_id) is not None else "")
    ]


def first_of_each_family(addresses: Sequence[str]) -> dict[int, str]:
    """IP version to the first address of it."""
    found: dict[int, str] = {}
    for address in addresses:
        found.setdefault(ip_address(address).version, address)
    return found


def _values(secrets: Mapping[str, Secret]) -> dict[str, str]:
    return {name: secret.value for name, secret in secrets.items()}
