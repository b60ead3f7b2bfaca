from __future__ import annotations

import contextlib
import random

import pytest
from OpenSSL import SSL

from sfu.dtls import HANDSHAKE_BYTES_MAX, HANDSHAKE_TIMEOUT, MTU_BYTES, DtlsAssociation, DtlsContext, DtlsState
from sfu.srtp import PROFILES, SrtpProfile, split_keys
from wire.sdp import Fingerprint

SERVER, CLIENT = DtlsContext(), DtlsContext()


def with_profiles(names: bytes) -> DtlsContext:
    context = DtlsContext()
    context._context.set_tlsext_use_srtp(names)
    return context


class Pair:
    """Two associations and a wire between them that may lose datagrams."""

    def __init__(self, server: DtlsContext = SERVER, client: DtlsContext = CLIENT, *, loss: float = 0.0) -> None:
        self.now = 0.0
        self.loss = loss
        self.random = random.Random(1)
        self.server = DtlsAssociation(server, is_client=False, now=0.0, rtt=0.05)
        self.client = DtlsAssociation(client, is_client=True, now=0.0, rtt=0.05)
        self.sizes: list[int] = []

    def exchange(self) -> None:
        """Carry datagrams until both are silent."""
        while True:
            carried = 0
            for sender, receiver in ((self.client, self.server), (self.server, self.client)):
                for datagram in sender.datagrams_to_send():
                    carried += 1
                    self.sizes.append(len(datagram))
                    if self.random.random() >= self.loss:
                        receiver.receive_datagram(datagram, self.now)
            if not carried:
                return

    def run(self, until: float) -> None:
        """Let time pass, deadline by deadline."""
        self.exchange()
        while True:
            deadlines = [at for at in (self.client.next_timeout(), self.server.next_timeout()) if at is not None]
            if not deadlines or min(deadlines) > until:
                return
            self.now = max(self.now, min(deadlines))
            self.client.handle_timeout(self.now)
            self.server.handle_timeout(self.now)
            self.exchange()

    @property
    def established(self) -> bool:
        return self.client.state is self.server.state is DtlsState.ESTABLISHED


class TestHandshake:
    """DTLS-2 to DTLS-4."""

    def test_both_ends_derive_mirrored_keys(self) -> None:
        pair = Pair()
        pair.exchange()
        server, client = pair.server.keys([CLIENT.fingerprint]), pair.client.keys([SERVER.fingerprint])
        assert server is not None
        assert client is not None
        assert (server.send_key, server.receive_key) == (client.receive_key, client.send_key)
        assert server.profile == 7
        assert server.send_key.hex() not in repr(server)

    def test_datagrams_stay_within_the_mtu(self) -> None:
        pair = Pair()
        pair.exchange()
        assert max(pair.sizes) <= MTU_BYTES

    @pytest.mark.parametrize("loss", [0.1, 0.3, 0.5])
    def test_survives_loss(self, loss: float) -> None:
        for seed in range(10):
            pair = Pair(loss=loss)
            pair.random = random.Random(seed)
            pair.run(until=HANDSHAKE_TIMEOUT - 0.1)
            assert pair.established, f"seed {seed}"

    def test_first_retransmission_follows_the_round_trip_time(self) -> None:
        """max(50 ms, 1.5 RTT), doubling: far below OpenSSL's second."""
        client = DtlsAssociation(CLIENT, is_client=True, now=10.0, rtt=0.2)
        (hello,) = client.datagrams_to_send()
        assert client.next_timeout() == pytest.approx(10.3)
        client.handle_timeout(10.3)
        assert client.datagrams_to_send() == [hello]
        assert client.next_timeout() == pytest.approx(10.9)
        assert DtlsAssociation(CLIENT, is_client=True, now=0.0, rtt=0.001).next_timeout() == pytest.approx(0.05)

    def test_mostly_within_a_second_at_20_percent_loss(self) -> None:
        """DTLS-4, in simulated time."""
        times = []
        for seed in range(100):
            pair = Pair(loss=0.2)
            pair.random = random.Random(seed)
            pair.run(until=HANDSHAKE_TIMEOUT - 0.1)
            assert pair.established
            times.append(pair.now)
        assert sorted(times)[94] < 1.0

    def test_gives_up_after_30_s(self) -> None:
        pair = Pair(loss=1.0)
        pair.run(until=100.0)
        assert pair.now == pytest.approx(HANDSHAKE_TIMEOUT)
        assert pair.client.state is DtlsState.CLOSED
        assert pair.client.reason == "handshake timeout"
        assert pair.client.next_timeout() is None


class TestFingerprint:
    """DTLS-2: compared before keys are used."""

    def test_mismatch_closes_and_gives_no_keys(self) -> None:
        pair = Pair()
        pair.exchange()
        wrong = Fingerprint("sha-256", ":".join(["00"] * 32))
        assert pair.server.keys([wrong]) is None
        assert pair.server.state is DtlsState.CLOSED
        assert pair.server.reason == "fingerprint mismatch"

    def test_one_of_several_is_enough(self) -> None:
        pair = Pair()
        pair.exchange()
        assert pair.server.keys([Fingerprint("md5", "00"), CLIENT.fingerprint]) is not None

    def test_none_before_the_handshake_ends(self) -> None:
        assert Pair().server.keys([CLIENT.fingerprint]) is None

    def test_client_without_certificate_fails(self) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_tlsext_use_srtp(b"SRTP_AEAD_AES_128_GCM")
        bare = SSL.Connection(context, None)
        bare.set_connect_state()
        server = DtlsAssociation(SERVER, is_client=False, now=0.0, rtt=0.05)
        for _ in range(4):
            with contextlib.suppress(SSL.Error):
                bare.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                server.receive_datagram(bare.bio_read(65536), 0.0)
            for datagram in server.datagrams_to_send():
                bare.bio_write(datagram)
        assert server.state is DtlsState.CLOSED
        assert server.keys([CLIENT.fingerprint]) is None


class TestProfiles:
    """DTLS-3."""

    @pytest.mark.parametrize(
        ("offered", "number"),
        [
            (b"SRTP_AES128_CM_SHA1_80", 1),
            (b"SRTP_AEAD_AES_256_GCM", 8),
            (b"SRTP_AES128_CM_SHA1_80:SRTP_AEAD_AES_256_GCM:SRTP_AEAD_AES_128_GCM", 7),
            (b"SRTP_AES128_CM_SHA1_32:SRTP_AES128_CM_SHA1_80", 1),
        ],
    )
    def test_best_common_one_is_used(self, offered: bytes, number: int) -> None:
        client = with_profiles(offered)
        pair = Pair(client=client)
        pair.exchange()
        keys = pair.server.keys([client.fingerprint])
        assert keys is not None
        assert keys.profile == number

    def test_only_cm_32_fails_with_a_reason(self) -> None:
        pair = Pair(client=with_profiles(b"SRTP_AES128_CM_SHA1_32"))
        pair.exchange()
        assert pair.server.state is DtlsState.CLOSED
        assert pair.server.reason == "no common SRTP profile"

    @pytest.mark.parametrize("profile", PROFILES)
    def test_material_is_cut_as_rfc_5764_orders_it(self, profile: SrtpProfile) -> None:
        parts = [b"K" * profile.key_bytes, b"k" * profile.key_bytes, b"S" * profile.salt_bytes]
        material = b"".join([*parts, b"s" * profile.salt_bytes])
        keys = split_keys(profile, material, is_client=True)
        assert keys.send_key == b"K" * profile.key_bytes + b"S" * profile.salt_bytes
        assert keys.receive_key == b"k" * profile.key_bytes + b"s" * profile.salt_bytes


class TestEnd:
    """DTLS-5."""

    def test_close_notify_reaches_the_other_side(self) -> None:
        pair = Pair()
        pair.exchange()
        pair.client.close(1.0)
        pair.client.close(1.0)
        pair.exchange()
        assert pair.server.state is DtlsState.CLOSED
        assert pair.server.reason == "close_notify"

    def test_closing_in_the_handshake_is_silent(self) -> None:
        server = DtlsAssociation(SERVER, is_client=False, now=0.0, rtt=0.05)
        server.close(0.0)
        assert server.datagrams_to_send() == []
        server.receive_datagram(b"\x16" * 50, 0.0)
        assert server.state is DtlsState.CLOSED

    def test_second_hello_on_a_live_association_is_harmless(self) -> None:
        pair = Pair()
        pair.exchange()
        for hello in DtlsAssociation(CLIENT, is_client=True, now=0.0).datagrams_to_send():
            pair.server.receive_datagram(hello, 1.0)
        assert pair.server.state is DtlsState.ESTABLISHED
        assert pair.server.keys([CLIENT.fingerprint]) is not None


class TestHostility:
    """Table 17 row 3."""

    def test_handshake_bytes_are_bounded(self) -> None:
        server = DtlsAssociation(SERVER, is_client=False, now=0.0, rtt=0.05)
        fragment = bytes.fromhex("16fefd0000000000000000") + (500).to_bytes(2, "big") + b"\x01" + b"\xff" * 499
        for _ in range(2 * HANDSHAKE_BYTES_MAX // len(fragment)):
            server.receive_datagram(fragment, 0.0)
        assert server.state is DtlsState.CLOSED

    def test_any_bytes_end_in_a_state(self) -> None:
        rng = random.Random(3)
        (hello,) = DtlsAssociation(CLIENT, is_client=True, now=0.0).datagrams_to_send()
        for _ in range(300):
            server = DtlsAssociation(SERVER, is_client=False, now=0.0, rtt=0.05)
            mutated = bytearray(hello)
            for _ in range(rng.randrange(1, 8)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            server.receive_datagram(bytes(mutated[: rng.randrange(len(mutated) + 1)]), 0.0)
            server.receive_datagram(rng.randbytes(rng.randrange(100)), 0.0)
            assert server.state in (DtlsState.HANDSHAKE, DtlsState.CLOSED)

    def test_garbage_on_a_live_association_is_dropped(self) -> None:
        pair = Pair()
        pair.exchange()
        rng = random.Random(4)
        for _ in range(300):
            head = bytes.fromhex("17fefd0001") + rng.randbytes(6)
            pair.server.receive_datagram(head + (30).to_bytes(2, "big") + rng.randbytes(30), 1.0)
            pair.server.receive_datagram(rng.randbytes(rng.randrange(60)), 1.0)
        assert pair.server.state is DtlsState.ESTABLISHED
