"""The plane's methods as Python's control code sees them: ids, limits, errors, tuples, upcalls, life cycle."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    AUDIO,
    EXTENSIONS,
    GCM_128,
    VIDEO,
    SrtpPeer,
    VideoSource,
    binding_request,
    codec,
    publish_video,
    pull_video,
)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0, max_transports=3, stun_per_address_per_s=1000)
    plane.start()
    yield plane
    plane.close()


class TestLifeCycle:
    def test_close_is_idempotent_and_leaves_no_thread_or_descriptor(self) -> None:
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        plane = Plane(["127.0.0.1", "::1"], 0, threads=3)
        plane.start()
        publish_video(SrtpPeerless(plane))
        plane.close()
        plane.close()
        assert plane.drain() == []
        for call in (plane.fileno, plane.stats, plane.add_transport, plane.latency_histogram, plane.start):
            with pytest.raises((ValueError, RuntimeError)):
                call()
        assert not plane.send_datagram(b"\x16", (0, "127.0.0.1", 9))
        assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)

    def test_a_plane_that_was_never_closed_frees_itself(self) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        plane = Plane(["127.0.0.1"], 0)
        plane.add_transport()
        del plane
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_a_taken_port_is_an_error_that_leaks_nothing(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            descriptors = len(os.listdir("/proc/self/fd"))
            with pytest.raises(OSError) as caught:
                Plane(["127.0.0.1"], taken.getsockname()[1])
            assert caught.value.errno == errno.EADDRINUSE
            assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_all_addresses_share_one_port(self) -> None:
        plane = Plane(["127.0.0.1", "127.0.0.2", "::1"], 0, threads=2)
        try:
            assert 0 < plane.port < 65536
        finally:
            plane.close()

    def test_wrong_arguments_make_nothing(self) -> None:
        with pytest.raises(TypeError):
            Plane()  # type: ignore[call-arg]

    @pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 65}, {"max_tuples_per_transport": 0}])
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\d"):
            Plane(["127.0.0.1"], 0, **options)


class SrtpPeerless:
    """What `publish_video` needs of a peer, without a socket."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.transport = plane.add_transport()


class TestIdsAndLimits:
    def test_ids_are_positive_and_never_reused(self, plane: Plane) -> None:
        seen = set()
        for _ in range(5):
            transport = plane.add_transport()
            seen.add(transport)
            plane.remove_transport(transport)
        assert len(seen) == 5
        assert min(seen) > 0

    def test_unknown_ids_raise(self, plane: Plane) -> None:
        path = (0, "127.0.0.1", 9)
        transport = plane.add_transport()
        plane.remove_transport(transport)
        for call in (
            lambda: plane.remove_transport(transport),
            lambda: plane.add_tuple(transport, path),
            lambda: plane.select_tuple(transport, path),
            lambda: plane.set_keys(transport, GCM_128, bytes(28), bytes(28)),
            lambda: plane.set_sending(transport, True),
            lambda: plane.transport_stats(transport),
            lambda: plane.add_track(transport, mid="0", video=True, codecs=VIDEO, extensions={}),
            lambda: plane.add_forwarder(transport, mid="0", video=True, ssrc=1, rtx_ssrc=0, cname="", extensions={}),
            lambda: plane.update_track(99, codecs=VIDEO, extensions={}),
            lambda: plane.remove_track(99),
            lambda: plane.request_keyframe(99),
            lambda: plane.track_stats(99),
            lambda: plane.set_source(99, 0, payload_types={}, rtx_payload_types={}),
            lambda: plane.set_paused(99, True),
            lambda: plane.remove_forwarder(99),
            lambda: plane.forwarder_stats(99),
        ):
            with pytest.raises(KeyError):
                call()

    def test_removing_a_transport_removes_what_hangs_on_it(self, plane: Plane) -> None:
        peer = SrtpPeerless(plane)
        track = publish_video(peer)  # type: ignore[arg-type]
        forwarder = pull_video(peer, track)  # type: ignore[arg-type]
        plane.remove_transport(peer.transport)
        with pytest.raises(KeyError):
            plane.track_stats(track)
        with pytest.raises(KeyError):
            plane.forwarder_stats(forwarder)
        stats = plane.stats()
        assert (stats["transports"], stats["tracks"], stats["forwarders"], stats["cache_bytes"]) == (0, 0, 0, 0)

    def test_a_full_plane_says_so(self, plane: Plane) -> None:
        for _ in range(3):
            plane.add_transport()
        with pytest.raises(OverflowError):
            plane.add_transport()

    def test_an_out_ssrc_serves_once_in_a_transports_life(self, plane: Plane) -> None:
        """SRTP-4"""
        peer = SrtpPeerless(plane)
        track = publish_video(peer)  # type: ignore[arg-type]
        plane.remove_forwarder(pull_video(peer, track, 5, rtx=6))  # type: ignore[arg-type]
        for ssrc, rtx in ((5, 0), (7, 6), (0, 0), (8, 8)):
            with pytest.raises(ValueError, match="SSRC"):
                pull_video(peer, track, ssrc, rtx=rtx)  # type: ignore[arg-type]

    def test_values_out_of_range(self, plane: Plane) -> None:
        peer = SrtpPeerless(plane)
        transport = peer.transport
        track = publish_video(peer)  # type: ignore[arg-type]
        forwarder = pull_video(peer, track)  # type: ignore[arg-type]
        common: dict[str, Any] = {"mid": "0", "video": True, "codecs": VIDEO, "extensions": EXTENSIONS}
        for call in (
            lambda: plane.add_track(transport, **{**common, "mid": "m" * 33}),
            lambda: plane.add_track(transport, **{**common, "codecs": {128: codec(0, 90000)}}),
            lambda: plane.add_track(transport, **{**common, "codecs": {96: codec(0, 0)}}),
            lambda: plane.add_track(transport, **{**common, "extensions": {0: dataplane.EXT_MID}}),
            lambda: plane.add_track(transport, **common, rids=[str(n) for n in range(9)]),
            lambda: plane.add_track(transport, **common, rids=["r" * 17]),
            lambda: plane.set_keys(transport, 2, bytes(28), bytes(28)),
            lambda: plane.set_keys(transport, GCM_128, bytes(27), bytes(27)),
            lambda: plane.add_tuple(transport, (7, "127.0.0.1", 5)),
            lambda: plane.add_tuple(transport, (0, "example.org", 5)),
            lambda: plane.add_tuple(transport, (0, "127.0.0.1", 65536)),
            lambda: plane.set_source(forwarder, track, payload_types={96: 200}, rtx_payload_types={}),
            lambda: plane.set_source(
                forwarder,
                plane.add_track(transport, mid="a", video=False, codecs=AUDIO, extensions={}),
                payload_types={},
                rtx_payload_types={},
            ),
        ):
            with pytest.raises(ValueError, match=r"\w"):
                call()
        assert plane.forwarder_stats(forwarder)["waiting"] == 1


class TestTuples:
    def test_the_oldest_unselected_tuple_makes_room(self, plane: Plane) -> None:
        """ICE-5: at most 8."""
        with SrtpPeer(plane) as peer:
            others = []
            for _ in range(8):
                other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                other.bind(("127.0.0.1", 0))
                others.append(other)
                plane.add_tuple(peer.transport, (peer.path[0], *other.getsockname()))
            assert plane.transport_stats(peer.transport)["tuples"] == 8
            plane.drain()
            owners = []
            for sender in (peer.socket, others[0], others[1], others[7]):
                request = binding_request()
                sender.sendto(request, peer.target)
                owners.append(next_upcall(plane)[1])
            assert owners == [peer.transport, 0, peer.transport, peer.transport]
            for other in others:
                other.close()

    def test_a_tuple_belongs_to_the_transport_that_proved_it_last(self, plane: Plane) -> None:
        with SrtpPeer(plane) as peer:
            other = plane.add_transport()
            plane.add_tuple(other, peer.path)
            plane.drain()
            peer.send_raw(binding_request())
            assert next_upcall(plane)[1] == other
            assert plane.transport_stats(peer.transport)["tuples"] == 0


class TestUpcalls:
    def test_dtls_comes_up_with_its_path_and_the_answer_goes_back(self, plane: Plane) -> None:
        with SrtpPeer(plane) as peer:
            record = bytes([22, 254, 253]) + bytes(40)
            peer.send_raw(record)
            kind, transport, path, data, received_at = next_upcall(plane)
            assert (kind, transport, data) == (dataplane.DTLS, peer.transport, record)
            assert path == peer.path
            assert received_at > 0
            assert plane.send_datagram(b"\x16answer", path)
            peer.socket.settimeout(5)
            data, source = peer.socket.recvfrom(100)
            assert (data, source) == (b"\x16answer", ("127.0.0.1", plane.port))

    def test_owned_tuples_come_before_strangers_and_the_limit_holds(self, plane: Plane) -> None:
        with SrtpPeer(plane) as peer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(5):
                stranger.sendto(binding_request(), peer.target)
            for _ in range(5):
                peer.send_raw(binding_request())
            peer.wait(lambda: plane.stats()["stun_in"] == 11)
            first = plane.drain(7)
            assert [bool(u[1]) for u in first] == [True] * 5 + [False] * 2
            assert select.select([plane.fileno()], [], [], 0)[0]
            assert len(plane.drain()) == 3
            assert plane.drain() == []
            assert not select.select([plane.fileno()], [], [], 0)[0]

    def test_a_flood_of_strangers_cannot_displace_owned_tuples(self) -> None:
        plane = Plane(["127.0.0.1"], 0, upcall_slots=256, stun_per_address_per_s=1_000_000)
        plane.start()
        try:
            with SrtpPeer(plane) as peer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for _ in range(20):
                    for _ in range(50):
                        stranger.sendto(binding_request() + bytes(1000), peer.target)
                    peer.settle(0.005)
                peer.wait(lambda: plane.stats()["drop_upcall_full"] > 0)
                peer.send_raw(binding_request())
                peer.wait(lambda: plane.drain(1)[0][1] == peer.transport)
        finally:
            plane.close()

    def test_records_of_every_length_survive_the_rings_end(self, plane: Plane) -> None:
        with SrtpPeer(plane) as peer:
            for turn in range(3000):
                record = bytes([22]) + turn.to_bytes(4) * (4 + turn % 300)
                peer.send_raw(record)
                if turn % 20 == 19:
                    got: list[bytes] = []
                    peer.wait(lambda got=got: got.extend(u[3] for u in plane.drain()) or len(got) == 20)  # type: ignore[misc]
                    assert got[-1] == record


def next_upcall(plane: Plane) -> Any:
    for _ in range(100):
        select.select([plane.fileno()], [], [], 0.05)
        for upcall in plane.drain(1):
            return upcall
    raise AssertionError("no upcall")


class TestUpdates:
    def test_a_single_layer_can_become_simulcast(self, plane: Plane) -> None:
        peer = SrtpPeerless(plane)
        track = publish_video(peer)  # type: ignore[arg-type]
        plane.update_track(track, codecs=VIDEO, extensions=EXTENSIONS, rids=("h", "m", "l"))
        assert [s["rid"] for s in plane.track_stats(track)] == ["h", "m", "l"]
        with pytest.raises(ValueError, match="layers"):
            plane.update_track(track, codecs=VIDEO, extensions=EXTENSIONS, rids=tuple("abcdef"))

    def test_new_layers_and_payload_types_take_effect_on_a_live_track(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=("h",))
            forwarder = pull_video(subscriber, track, rid="l")
            source = VideoSource(publisher, 50)
            source.extensions = {1: b"0", 2: b"l"}
            source.send(key=True)
            subscriber.wait(lambda: subscriber.drops() == {"drop_unbound": 1})
            plane.update_track(track, codecs=VIDEO, extensions=EXTENSIONS, rids=("h", "l"))
            for _ in range(2):
                source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert plane.forwarder_stats(forwarder)["layer"] == 1
            moved = VideoSource(publisher, 50, payload_type=120, seq=source.seq)
            plane.update_track(track, codecs={120: VIDEO[96]}, extensions=EXTENSIONS, rids=("h", "l"))
            plane.set_source(forwarder, track, rid="l", payload_types={120: 100}, rtx_payload_types={})
            got = len(subscriber.rtp)
            moved.send()
            subscriber.wait(lambda: len(subscriber.rtp) == got + 1)
            assert subscriber.rtp[-1].payload_type == 100
            source.seq = moved.seq
            source.send()
            subscriber.wait(lambda: subscriber.drops().get("drop_payload_type") == 1)
