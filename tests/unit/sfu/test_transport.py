from __future__ import annotations

import pytest

from sfu.dtls import DtlsAssociation, DtlsContext
from sfu.errors import InvalidSessionDescription
from sfu.ice import Check, CheckGate, IceCredentials
from sfu.transport import (
    RemoteParameters,
    Transport,
    TransportClosed,
    TransportConnected,
    TransportState,
    candidates,
)
from tests.support.fake_plane import FakePlane
from tests.support.ice_peer import check
from wire.sdp import Fingerprint, Setup

SERVER, CLIENT, OTHER = DtlsContext(), DtlsContext(), DtlsContext()
PATH = (0, "198.51.100.7", 40_000)


def remote(
    fingerprint: Fingerprint = CLIENT.fingerprint, *, ufrag: str = "peer", setup: Setup = Setup.ACTPASS
) -> RemoteParameters:
    return RemoteParameters(ufrag, "p" * 22, (fingerprint,), setup)


class World:
    """A transport and the peer's end of it."""

    def __init__(self) -> None:
        self.plane = FakePlane()
        self.transport = Transport(self.plane, SERVER, now=0.0)  # type: ignore[arg-type]
        self.gate = CheckGate()
        self.gate.add(self.transport.agent)

    def apply(self, parameters: RemoteParameters) -> None:
        self.transport.check_remote(parameters)
        self.transport.apply_remote(parameters, self.transport.agent.local, now=0.0)

    def check(self) -> None:
        verdict = self.gate.receive_datagram(check(self.transport.agent.local, nominate=True), PATH, 0.0)
        assert isinstance(verdict, Check)
        assert self.transport.receive_check(verdict, PATH, 0.0)

    def handshake(self, context: DtlsContext = CLIENT) -> DtlsAssociation:
        peer = DtlsAssociation(context, is_client=True, now=0.0)
        while datagrams := peer.datagrams_to_send():
            for datagram in datagrams:
                self.transport.receive_dtls(datagram, PATH, 0.0)
            for datagram, _ in self.transport.datagrams_to_send():
                peer.receive_datagram(datagram, 0.0)
        return peer

    @property
    def keys(self) -> object:
        return self.plane.transports[self.transport.id]["keys"]


@pytest.fixture
def world() -> World:
    return World()


class TestCandidates:
    """ICE-10, RFC 8445 §5.1.2.1."""

    def test_one_per_address_best_first(self) -> None:
        first, second = candidates(["203.0.113.5", "2001:DB8::0:1"], 3478)
        assert first == f"1 1 udp {126 << 24 | 65535 << 8 | 255} 203.0.113.5 3478 typ host"
        assert second == f"2 1 udp {126 << 24 | 65534 << 8 | 255} 2001:db8::1 3478 typ host"

    def test_a_name_is_no_address(self) -> None:
        """ICE-8: no lookup, ever."""
        with pytest.raises(ValueError, match="does not appear to be"):
            candidates(["localhost"], 1)


class TestRoles:
    """DTLS-1."""

    def test_role_change_alone_is_refused(self, world: World) -> None:
        world.apply(remote(setup=Setup.ACTIVE))
        world.check()
        world.handshake()
        with pytest.raises(InvalidSessionDescription):
            world.transport.check_remote(remote(setup=Setup.PASSIVE))
        world.transport.check_remote(remote(setup=Setup.ACTIVE))
        world.transport.check_remote(remote())

    @pytest.mark.parametrize(
        "changed", [remote(ufrag="new", setup=Setup.PASSIVE), remote(OTHER.fingerprint, setup=Setup.PASSIVE)]
    )
    def test_role_may_change_with_a_restart_or_a_fingerprint(self, world: World, changed: RemoteParameters) -> None:
        world.apply(remote())
        world.check()
        world.handshake()
        world.transport.check_remote(changed)

    def test_later_answer_of_passive_keeps_the_association(self, world: World) -> None:
        """Native stacks answer `passive` to our later `actpass` (realtime-api.md §2)."""
        world.apply(remote())
        world.check()
        world.handshake()
        keys = world.keys
        world.transport.apply_remote(remote(setup=Setup.PASSIVE), world.transport.agent.local, now=0.0)
        assert world.keys == keys
        assert not world.transport.is_dtls_client
        assert world.transport.state is TransportState.CONNECTED


class TestFingerprintChange:
    """RFC 8842 §4: another certificate, another association."""

    def test_new_certificate_gets_new_keys(self, world: World) -> None:
        world.apply(remote())
        world.check()
        world.handshake()
        before = world.keys
        world.apply(remote(OTHER.fingerprint))
        world.handshake(OTHER)
        assert world.keys != before
        assert world.transport.events_received() == [TransportConnected(), TransportConnected()]

    def test_old_certificate_is_refused_afterwards(self, world: World) -> None:
        world.apply(remote())
        world.check()
        world.apply(remote(OTHER.fingerprint))
        world.handshake(CLIENT)
        assert world.keys is None
        assert world.transport.events_received() == [TransportClosed("fingerprint mismatch")]


class TestEnd:
    def test_nothing_is_taken_after_the_end(self, world: World) -> None:
        world.apply(remote())
        world.check()
        world.transport.close(0.0)
        world.transport.close(0.0)
        verdict = world.gate.receive_datagram(check(world.transport.agent.local), PATH, 0.0)
        assert isinstance(verdict, Check)
        assert world.transport.receive_check(verdict, PATH, 0.0) is None
        world.handshake()
        assert world.keys is None
        assert world.transport.next_timeout() is None
        assert world.transport.events_received() == [TransportClosed("closed here")]

    def test_credentials_stay_out_of_repr(self, world: World) -> None:
        parameters = RemoteParameters("peer", "s3cret" * 4, (), Setup.ACTPASS)
        assert "s3cret" not in repr(parameters)
        assert isinstance(world.transport.agent.local, IceCredentials)
