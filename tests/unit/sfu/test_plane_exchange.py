"""Peers that are relays of this process: their datagrams come and go in memory, and nothing else differs."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator

import pytest

from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    Rtp,
    SrtpPeer,
    VideoSource,
    binding_request,
    empty_rr,
    nack,
    publish_video,
    pull_video,
)
from wire._batch.exchange import CAPACITY, End, Exchange

WORKERS = 2
MEDIA = ("192.0.2.7", 8787), ("2001:db8::7", 8787)
Address = tuple[str, int]


class Relays:
    """The other plane, played by the test: hands datagrams over for addresses that it makes up."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.arrived: dict[tuple[int, Address], deque[tuple[Address, bytes]]] = defaultdict(deque)

    def receive(self) -> None:
        for worker in range(WORKERS):
            for _, source, to, data in self.end.take(worker):
                self.arrived[worker, to].append((source, data))


class RelayedPeer(SrtpPeer):
    """A peer behind a relay of worker `worker`, whose datagrams go to thread `thread` of the plane."""

    ports = iter(range(50_000, 60_000))

    def __init__(
        self, plane: Plane, relays: Relays, *, worker: int = 0, thread: int = 0, media: Address = MEDIA[0]
    ) -> None:
        self.relays, self.worker, self.thread, self.media = relays, worker, thread, media
        self.relayed = ("2001:db8::99" if ":" in media[0] else "198.51.100.9", next(self.ports))
        super().__init__(plane)

    def open(self) -> None:
        """There is no socket."""

    def close(self) -> None:
        """Nor anything to close."""

    def send_raw(self, data: bytes) -> None:
        while self.relays.end.post(self.worker, self.thread, self.relayed, self.media, data) == "full":
            time.sleep(0.001)

    def datagrams(self, timeout: float) -> Iterator[bytes]:
        end = time.monotonic() + timeout
        box = self.relays.arrived[self.worker, self.relayed]
        self.relays.receive()
        while not box and time.monotonic() < end:
            time.sleep(0.001)
            self.relays.receive()
        while box:
            source, data = box.popleft()
            assert source == self.media, "an answer comes from where the peer sent to"
            yield data


@pytest.fixture
def exchange() -> tuple[End, End]:
    """For one forwarding thread."""
    return make_exchange(1)


def make_exchange(threads: int) -> tuple[End, End]:
    near, far = Exchange(threads, WORKERS).ends()
    near.bind(MEDIA)
    far.open()
    return near, far


@pytest.fixture
def plane(exchange: tuple[End, End]) -> Iterator[Plane]:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    plane = Plane(("127.0.0.1",), 0, exchange=exchange[0])
    plane.start()
    yield plane
    plane.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def relays(exchange: tuple[End, End]) -> Relays:
    return Relays(exchange[1])


class TestMedia:
    @pytest.mark.parametrize("media", MEDIA, ids=["ipv4", "ipv6"])
    def test_media_repair_and_reports_pass_without_a_socket(self, plane: Plane, relays: Relays, media: Address) -> None:
        with RelayedPeer(plane, relays, media=media) as publisher, RelayedPeer(plane, relays, worker=1) as subscriber:
            track = publish_video(publisher, rtx=1112)
            pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            sent = source.send(key=True, size=20, lose=(7,))
            subscriber.wait(lambda: len(subscriber.rtp) == 19)
            publisher.wait(lambda: publisher.rtcp)  # a NACK of ours
            publisher.send(sent[7])
            subscriber.wait(lambda: len(subscriber.rtp) == 20)
            assert {p.payload for p in subscriber.rtp} == {p.payload for p in sent}
            subscriber.send_rtcp(nack(subscriber.ssrc, subscriber.rtp[0].ssrc, subscriber.rtp[3].seq))
            raw = len(subscriber.raw)
            subscriber.wait(lambda: len(subscriber.raw) > raw)
            stats = plane.stats()
            assert stats["datagrams_in"] == stats["datagrams_out"] == 0
            assert stats["in_memory_in"] > 20
            assert stats["in_memory_out"] > 20
            assert plane.latency_histogram() != [0] * 32

    def test_relayed_and_direct_peers_are_in_one_call(self, plane: Plane, relays: Relays) -> None:
        with RelayedPeer(plane, relays) as relayed, SrtpPeer(plane) as direct:
            up, down = publish_video(relayed), publish_video(direct, 2222)
            pull_video(direct, up)
            pull_video(relayed, down)
            one, two = VideoSource(relayed, 1111), VideoSource(direct, 2222)
            for n in range(5):
                one.send(key=n == 0, size=10)
                two.send(key=n == 0, size=10)
            for peer, source in ((direct, one), (relayed, two)):
                peer.wait(lambda p=peer: len(p.rtp) == 50)  # type: ignore[misc]
                assert [p.payload for p in peer.rtp] == [p.payload for p in source.sent]

    def test_three_threads_reach_relays_of_either_worker(self) -> None:
        near, far = make_exchange(3)
        plane = Plane(("127.0.0.1",), 0, threads=3, exchange=near)
        plane.start()
        relays = Relays(far)
        try:
            peers = [RelayedPeer(plane, relays, worker=n % WORKERS, thread=n % 3) for n in range(7)]
            publisher, *subscribers = peers
            assert {plane.transport_stats(p.transport)["thread"] for p in subscribers} == {0, 1, 2}
            track = publish_video(publisher)
            for subscriber in subscribers:
                pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            for n in range(10):
                source.send(key=n == 0, size=10)
            for subscriber in subscribers:
                subscriber.wait(lambda s=subscriber: len(s.rtp) == 100)  # type: ignore[misc]
                assert [p.payload for p in subscriber.rtp] == [p.payload for p in source.sent]
        finally:
            plane.close()

    def test_what_comes_to_another_thread_is_handed_to_the_owner(self) -> None:
        near, far = make_exchange(2)
        plane = Plane(("127.0.0.1",), 0, threads=2, exchange=near)
        plane.start()
        relays = Relays(far)
        try:
            publisher, subscriber = (RelayedPeer(plane, relays, thread=0) for _ in range(2))
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            publisher.thread = 1
            publisher.relayed = ("198.51.100.10", 50_000)  # another relay, after an ICE restart
            plane.select_tuple(publisher.transport, publisher.learn_path())
            source.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert plane.transport_stats(publisher.transport)["thread"] == 0
        finally:
            plane.close()


class TestControl:
    def test_stun_and_dtls_are_answered_in_memory(self, plane: Plane, relays: Relays) -> None:
        with RelayedPeer(plane, relays, worker=1, media=MEDIA[1]) as peer:
            assert plane.send_datagram(b"\x16 a flight", peer.path)
            peer.wait(lambda: peer.raw)
            assert peer.raw == [b"\x16 a flight"]
            assert peer.path[1:] == peer.relayed
            assert plane.stats()["in_memory_out"] == 1

    def test_each_relay_has_its_own_budget_of_checks(self, plane: Plane, relays: Relays) -> None:
        """Relays share an address: one must not use up what the others need to get in."""
        greedy, modest = RelayedPeer(plane, relays), None
        for _ in range(300):
            relays.end.post(0, 0, ("198.51.100.9", 49_999), MEDIA[0], binding_request())
        modest = RelayedPeer(plane, relays)
        assert modest.path[1:] == modest.relayed
        greedy.wait(lambda: plane.stats()["drop_stun_budget"] > 200)

    def test_a_path_that_is_none_is_refused(self, plane: Plane) -> None:
        sockets = 1 + len(MEDIA) * WORKERS
        for index in (-1, sockets):
            with pytest.raises(ValueError, match=f"socket {index}"):
                plane.send_datagram(b"", (index, "192.0.2.1", 1))
            with pytest.raises(ValueError, match=f"socket {index}"):
                plane.add_tuple(plane.add_transport(), (index, "192.0.2.1", 1))

    def test_an_address_that_is_not_ours_is_dropped(self, plane: Plane, relays: Relays) -> None:
        relays.end.post(0, 0, ("198.51.100.9", 1), ("192.0.2.7", 8788), binding_request())
        deadline = time.monotonic() + 5
        while plane.stats()["drop_malformed"] == 0:
            assert time.monotonic() < deadline
        assert plane.drain() == []


class TestBounds:
    def test_a_relay_that_takes_nothing_costs_counted_drops(self, plane: Plane, relays: Relays) -> None:
        with SrtpPeer(plane) as publisher, RelayedPeer(plane, relays, worker=1) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=10)
            subscriber.wait(lambda: len(subscriber.rtp) == 10)
            for _ in range(CAPACITY // 10 + 20):
                source.send(size=10)
                if plane.stats()["drop_inbox_full"]:
                    break
                time.sleep(0.001)
            assert plane.stats()["drop_inbox_full"] > 0
            # Back again, it gets whole frames, from the next one on.
            subscriber.settle(0.05)
            subscriber.rtp.clear()
            source.send(size=10)
            sent = source.send(size=10)
            subscriber.wait(lambda: len(subscriber.rtp) >= 10)
            assert [p.payload for p in subscriber.rtp[-10:]] == [p.payload for p in sent]

    def test_relays_that_stopped_cost_nothing_but_a_count(self, plane: Plane, relays: Relays) -> None:
        with SrtpPeer(plane) as publisher, RelayedPeer(plane, relays) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            relays.end.close()
            assert not plane.send_datagram(b"\x16", subscriber.path)
            VideoSource(publisher, 1111).send(key=True, size=3)
            publisher.wait(lambda: plane.stats()["drop_inbox_closed"] >= 3)

    def test_the_end_of_the_plane_closes_its_inboxes_and_the_next_opens_them(self, exchange: tuple[End, End]) -> None:
        near, far = exchange
        for _ in range(2):
            plane = Plane(("127.0.0.1",), 0, exchange=near)
            assert far.post(0, 0, ("198.51.100.9", 1), MEDIA[0], b"early") == "closed"
            plane.start()
            with RelayedPeer(plane, Relays(far)) as peer:
                peer.send(Rtp(96, 1, 1, 1111))
                peer.send_rtcp(empty_rr(peer.ssrc))
            plane.close()
            assert far.post(0, 0, ("198.51.100.9", 1), MEDIA[0], b"late") == "closed"

    def test_a_closed_plane_answers_nobody(self, exchange: tuple[End, End]) -> None:
        near, far = exchange
        plane = Plane(("127.0.0.1",), 0, exchange=near)
        plane.start()
        with RelayedPeer(plane, Relays(far)) as peer:
            plane.close()
            with pytest.raises(ValueError, match="the plane is closed"):
                plane.send_datagram(b"", peer.path)

    def test_an_exchange_for_another_number_of_threads_is_refused(self, exchange: tuple[End, End]) -> None:
        with pytest.raises(ValueError, match="an exchange for 1 threads"):
            Plane(("127.0.0.1",), 0, threads=2, exchange=exchange[0])
