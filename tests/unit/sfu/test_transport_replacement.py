"""A peer that builds its end of the transport anew under the same credentials, as libwebrtc does."""

from __future__ import annotations

import pytest

from sfu.dtls import DtlsAssociation, DtlsContext, DtlsState
from sfu.ice import Check, CheckGate, Path
from sfu.transport import (
    REPLACEMENT_WINDOW,
    RemoteParameters,
    Transport,
    TransportClosed,
    TransportConnected,
    TransportState,
)
from tests.support.fake_plane import FakePlane
from tests.support.ice_peer import check
from wire.sdp import Setup

SERVER, CLIENT, STRANGER = DtlsContext(), DtlsContext(), DtlsContext()
OLD = (0, "198.51.100.7", 40_000)
NEW = (0, "198.51.100.7", 40_001)


class World:
    """A transport over a plane that forwards nothing, and the peer's end of it."""

    def __init__(self) -> None:
        self.plane = FakePlane()
        self.transport = Transport(self.plane, SERVER, now=0.0)  # type: ignore[arg-type]
        self.gate = CheckGate()
        self.gate.add(self.transport.agent)
        remote = RemoteParameters("peer", "p" * 22, (CLIENT.fingerprint,), Setup.ACTPASS)
        self.transport.apply_remote(remote, self.transport.agent.local, now=0.0)
        self.now = 0.0

    def check(self, path: Path) -> None:
        verdict = self.gate.receive_datagram(check(self.transport.agent.local, nominate=True), path, self.now)
        assert isinstance(verdict, Check)
        assert self.transport.receive_check(verdict, path, self.now)

    def connect(self, path: Path, context: DtlsContext = CLIENT) -> DtlsAssociation:
        """ICE, then DTLS as the client; returns the client's end."""
        self.check(path)
        peer = DtlsAssociation(context, is_client=True, now=self.now)
        self.carry(peer, path)
        return peer

    def carry(self, peer: DtlsAssociation, path: Path) -> None:
        while datagrams := peer.datagrams_to_send():
            for datagram in datagrams:
                self.transport.receive_dtls(datagram, path, self.now)
            for datagram, to in self.transport.datagrams_to_send():
                if to == path:
                    peer.receive_datagram(datagram, self.now)

    def close(self, peer: DtlsAssociation, path: Path) -> None:
        peer.close(self.now)
        self.carry(peer, path)

    def wait(self, until: float) -> None:
        """Let time pass, with a check in time for consent."""
        while (at := self.transport.next_timeout()) is not None and at <= until:
            self.now = max(at, self.now)
            self.transport.handle_timeout(self.now)
        self.now = until

    @property
    def on_the_plane(self) -> dict[str, object]:
        state: dict[str, object] = self.plane.transports[self.transport.id]
        return state


@pytest.fixture
def world() -> World:
    return World()


class TestWithAnOfferThatEndsTheBundleCarrier:
    """Realtime API §2: the BUNDLE tag moves, the session survives."""

    def test_a_new_association_from_another_port_takes_over(self, world: World) -> None:
        world.connect(OLD)
        keys = world.on_the_plane["keys"]
        world.transport.expect_replacement(now=world.now)
        again = world.connect(NEW)
        assert again.state is DtlsState.ESTABLISHED
        assert world.transport.state is TransportState.CONNECTED
        assert world.on_the_plane["keys"] != keys
        assert world.on_the_plane["selected"] == NEW
        assert world.on_the_plane["sending"] is True

    @pytest.mark.parametrize("goodbye_first", [True, False])
    def test_the_old_associations_close_notify_ends_nothing(self, world: World, goodbye_first: bool) -> None:
        old = world.connect(OLD)
        world.transport.expect_replacement(now=world.now)
        if goodbye_first:
            world.close(old, OLD)
            assert world.on_the_plane["sending"] is False
        again = world.connect(NEW)
        if not goodbye_first:
            world.close(old, OLD)
        world.wait(REPLACEMENT_WINDOW + 1)
        assert again.state is DtlsState.ESTABLISHED
        assert world.transport.state is TransportState.CONNECTED
        assert world.transport.events_received() == [TransportConnected(), TransportConnected()]

    def test_nothing_new_in_time_is_the_end(self, world: World) -> None:
        old = world.connect(OLD)
        world.transport.expect_replacement(now=world.now)
        world.close(old, OLD)
        assert world.transport.state is TransportState.CONNECTING
        world.wait(REPLACEMENT_WINDOW)
        assert world.transport.state is TransportState.CLOSED
        assert world.transport.events_received()[-1] == TransportClosed("close_notify")

    def test_another_certificate_is_refused(self, world: World) -> None:
        """DTLS-2 holds for every association."""
        world.connect(OLD)
        world.transport.expect_replacement(now=world.now)
        world.connect(NEW, STRANGER)
        assert world.transport.state is TransportState.CLOSED
        assert world.transport.events_received()[-1] == TransportClosed("fingerprint mismatch")

    def test_the_windows_end_leaves_a_transport_that_stayed_as_it_was(self, world: World) -> None:
        world.connect(OLD)
        world.transport.expect_replacement(now=world.now)
        world.wait(REPLACEMENT_WINDOW)
        assert world.transport.state is TransportState.CONNECTED


class TestWithoutOne:
    def test_close_notify_closes_at_once(self, world: World) -> None:
        """DTLS-5."""
        world.close(world.connect(OLD), OLD)
        assert world.transport.state is TransportState.CLOSED

    def test_close_notify_closes_at_once_after_the_window(self, world: World) -> None:
        old = world.connect(OLD)
        world.transport.expect_replacement(now=world.now)
        world.wait(REPLACEMENT_WINDOW)
        world.close(old, OLD)
        assert world.transport.state is TransportState.CLOSED

    def test_a_second_client_hello_changes_nothing(self, world: World) -> None:
        """DTLS-5: handled as a retransmission; the association and its keys stay."""
        world.connect(OLD)
        keys = world.on_the_plane["keys"]
        world.connect(NEW)
        assert world.transport.state is TransportState.CONNECTED
        assert world.on_the_plane["keys"] == keys
