"""Transport: the one ICE-lite + DTLS + SRTP path of a session.

    NEW --first good check--> CONNECTING --DTLS done, fingerprint right--> CONNECTED <--checks--> DISCONNECTED
     |                            |                                            |                      |
     '----------------------------+--------- close_notify, failure, close() ---------------------------'--> CLOSED

Sending stops 30 s after the last check (ICE-6); the session decides how much longer it waits for the peer to return.

It joins `ice`, `dtls` and the data plane: validated tuples and keys go down to the plane, which moves the media.
In: `receive_check`, `receive_dtls`, `handle_timeout`. Out: `datagrams_to_send`, `events_received`, `next_timeout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from sfu.dtls import FINGERPRINT_MISMATCH, DtlsAssociation, DtlsContext, DtlsState
from sfu.errors import InvalidSessionDescription
from sfu.ice import Check, IceCredentials, IceLiteAgent, IceState, Path, StateChanged, TupleSelected, TupleValidated
from wire.sdp import Fingerprint, Setup

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane

_HOST_TYPE_PREFERENCE: Final = 126

REPLACEMENT_WINDOW: Final = 10.0
"""How long after `expect_replacement` the peer has for another association."""

_HANDSHAKE_RECORD: Final = 22
_CLIENT_HELLO: Final = 1


class TransportState(Enum):
    """What an operator sees of the path."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class TransportConnected:
    """Media may flow, for the first time or again."""


@dataclass(frozen=True, slots=True)
class TransportDisconnected:
    """Checks are missing; media still flows until consent ends."""


@dataclass(frozen=True, slots=True)
class TransportClosed:
    """Over, by the peer, by a failure or by us."""

    reason: str


TransportEvent: TypeAlias = TransportConnected | TransportDisconnected | TransportClosed


@dataclass(frozen=True, slots=True)
class RemoteParameters:
    """What the peer's description says about its end."""

    ufrag: str
    pwd: str
    fingerprints: tuple[Fingerprint, ...]
    setup: Setup

    def __repr__(self) -> str:
        """Without the password."""
        return f"RemoteParameters({self.ufrag!r}, {self.setup})"


def candidates(addresses: Sequence[str], port: int) -> tuple[str, ...]:
    """Our host candidates, one per announced address, best first (RFC 8445 §5.1.2.1; ICE-10)."""
    return tuple(
        f"{index + 1} 1 udp {_HOST_TYPE_PREFERENCE << 24 | (65535 - index) << 8 | 255} "
        f"{ip_address(address)} {port} typ host"
        for index, address in enumerate(addresses)
    )


class Transport:
    """One path. `id` is the data plane's number for it."""

    def __init__(self, plane: Plane, context: DtlsContext, *, now: float) -> None:
        self.id = plane.add_transport()
        self.agent = IceLiteAgent(IceCredentials.generate(), now=now)
        self.remote: RemoteParameters | None = None
        self.state = TransportState.NEW
        self._plane = plane
        self._context = context
        self._dtls: DtlsAssociation | None = None
        self._dtls_path: Path | None = None
        self._keyed = False
        self._replaceable_until: float | None = None
        self._out: list[tuple[bytes, Path]] = []
        self._events: list[TransportEvent] = []

    @property
    def fingerprint(self) -> Fingerprint:
        """Of our certificate."""
        return self._context.fingerprint

    @property
    def is_dtls_client(self) -> bool:
        """Our role: server unless the peer's first description insisted on being the server."""
        return self._dtls is not None and self._dtls.is_client

    def check_remote(self, remote: RemoteParameters) -> None:
        """Whether `apply_remote` would accept the peer's new parameters.

        Raises:
            InvalidSessionDescription: the DTLS role changed without a new fingerprint or an ICE restart (DTLS-1).
        """
        known = self.remote
        if known is None or self._dtls is None or remote.setup is Setup.ACTPASS:
            return
        wanted_client = remote.setup is Setup.PASSIVE
        changed = remote.ufrag != known.ufrag or set(remote.fingerprints) != set(known.fingerprints)
        if wanted_client != self._dtls.is_client and not changed:
            raise InvalidSessionDescription("setup changed without a new fingerprint or an ICE restart")

    def credentials_for(self, remote: RemoteParameters) -> IceCredentials:
        """What our answer to an offer must say: the current ones, or new ones when the offer restarts ICE (ICE-7)."""
        known = self.remote
        restarts = known is not None and (remote.ufrag, remote.pwd) != (known.ufrag, known.pwd)
        return IceCredentials.generate() if restarts else self.agent.local

    def apply_remote(self, remote: RemoteParameters, credentials: IceCredentials, *, now: float) -> None:
        """Take the peer's parameters from a description that passed `check_remote`, with our own that answer them."""
        known, self.remote = self.remote, remote
        if credentials is not self.agent.local:
            self.agent.restart(credentials)
        if known is not None and set(remote.fingerprints) != set(known.fingerprints):
            # Another certificate is another association (RFC 8842 §4); the old one has nothing more to say.
            self._dtls = None
            self._keyed = False
        if self._dtls is None and remote.setup is Setup.PASSIVE:
            self._start_dtls(is_client=True, now=now)
        self._take_keys(now)

    def expect_replacement(self, *, now: float, within: float = REPLACEMENT_WINDOW) -> None:
        """The peer may build its end anew: same credentials, same certificate, another port and association.

        libwebrtc does so, against RFC 8842 §5.1, when the section that carries the BUNDLE group ends or another takes
        its place. Its close_notify does not end the transport then, and a ClientHello from another validated tuple
        begins another association, for the next `within` seconds.
        """
        if self._dtls is not None and not self._dtls.is_client:
            self._replaceable_until = now + within

    def _replace(self) -> None:
        """Forget the association and wait for the peer's next one."""
        self._dtls = None
        self._keyed = False
        self.state = TransportState.CONNECTING
        self._plane.set_sending(self.id, False)

    def _start_dtls(self, *, is_client: bool, now: float) -> None:
        if is_client and self.agent.selected is None:
            return  # begins with the first validated tuple
        self._dtls = DtlsAssociation(self._context, is_client=is_client, now=now)
        self._collect()

    def receive_check(self, check: Check, path: Path, now: float) -> bytes | None:
        """Let the agent judge a check and act on what follows. Returns the reply."""
        if self.state is TransportState.CLOSED:
            return None
        reply = self.agent.receive_check(check.request, check.ufrag, path, now)
        self._follow_agent(now)
        return reply

    def _follow_agent(self, now: float) -> None:
        for event in self.agent.events_received():
            match event:
                case TupleValidated(path):
                    self._plane.add_tuple(self.id, path)
                case TupleSelected(path):
                    self._plane.select_tuple(self.id, path)
                case StateChanged(IceState.CONNECTED):
                    self._connected_by_ice(now)
                case StateChanged(state):
                    if state is IceState.FAILED:
                        self._plane.set_sending(self.id, False)
                    if self.state is TransportState.CONNECTED:
                        self.state = TransportState.DISCONNECTED
                        self._events.append(TransportDisconnected())

    def _connected_by_ice(self, now: float) -> None:
        if self._keyed:
            self._enter_connected()
            return
        self.state = TransportState.CONNECTING
        if self._dtls is None and self.remote is not None and self.remote.setup is Setup.PASSIVE:
            self._start_dtls(is_client=True, now=now)

    def _enter_connected(self) -> None:
        self._plane.set_sending(self.id, True)
        self.state = TransportState.CONNECTED
        self._events.append(TransportConnected())

    def receive_dtls(self, data: bytes, path: Path, now: float) -> None:
        """Feed DTLS that came from a validated tuple; from any other it is dropped (DTLS-4).

        A ClientHello may arrive before the answer that names the fingerprint: the handshake goes on, keys wait.
        """
        if self.state is TransportState.CLOSED or path not in self.agent.tuples:
            return
        if self._replaceable_until is not None and path != self._dtls_path and _is_client_hello(data):
            self._replace()
        if self._dtls is None:
            self._dtls_path = path
            self._start_dtls(is_client=False, now=now)
        assert self._dtls is not None
        self._dtls.receive_datagram(data, now)
        self._take_keys(now)
        self._collect()
        self._follow_dtls(now)

    def _take_keys(self, now: float) -> None:
        if self._keyed or self._dtls is None or self.remote is None:
            return
        keys = self._dtls.keys(self.remote.fingerprints)
        if keys is None:
            self._follow_dtls(now)
            return
        self._plane.set_keys(self.id, keys.profile, keys.send_key, keys.receive_key)
        self._keyed = True
        self._enter_connected()

    def _follow_dtls(self, now: float) -> None:
        if self._dtls is None or self._dtls.state is not DtlsState.CLOSED:
            return
        if self._replaceable_until is not None and self._dtls.reason != FINGERPRINT_MISMATCH:
            # Said goodbye, or broken off in the middle of a handshake.
            self._replace()
        else:
            self._end(self._dtls.reason or "closed", now)

    def _collect(self) -> None:
        path = self.agent.selected
        if self._dtls is not None and path is not None:
            self._out += [(datagram, path) for datagram in self._dtls.datagrams_to_send()]

    def handle_timeout(self, now: float) -> None:
        """Notice missing checks, resend handshake flights."""
        if self.state is TransportState.CLOSED:
            return
        self.agent.handle_timeout(now)
        self._follow_agent(now)
        if self._dtls is not None:
            self._dtls.handle_timeout(now)
            self._collect()
            self._follow_dtls(now)
        if self._replaceable_until is not None and now >= self._replaceable_until:
            self._replaceable_until = None
            if self._dtls is None:
                self._end("close_notify", now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        if self.state is TransportState.CLOSED:
            return None
        handshake = self._dtls.next_timeout() if self._dtls is not None else None
        deadlines = (self.agent.next_timeout(), handshake, self._replaceable_until)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def close(self, now: float) -> None:
        """Say close_notify and end. The plane's transport stays until `release`. Idempotent."""
        self._end("closed here", now)

    def _end(self, reason: str, now: float) -> None:
        if self.state is TransportState.CLOSED:
            return
        if self._dtls is not None:
            self._dtls.close(now)
            self._collect()
        self.state = TransportState.CLOSED
        self._events.append(TransportClosed(reason))

    def release(self) -> None:
        """Free the plane's transport with all that hangs on it; call once, after `close`."""
        self._plane.remove_transport(self.id)

    def datagrams_to_send(self) -> list[tuple[bytes, Path]]:
        """Take the DTLS datagrams to send, with their paths."""
        out, self._out = self._out, []
        return out

    def events_received(self) -> list[TransportEvent]:
        """Take what happened since asked last, in order."""
        events, self._events = self._events, []
        return events


def _is_client_hello(data: bytes) -> bool:
    """Whether a datagram opens a handshake: a plain record, epoch 0 (RFC 6347 §4.1, §4.2.2)."""
    return len(data) > 13 and data[0] == _HANDSHAKE_RECORD and data[3:5] == b"\0\0" and data[13] == _CLIENT_HELLO
