"""Key frame requests and changes of source: sections 10 and 13 of the media rules."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from aiortc.codecs.vpx import VpxPayloadDescriptor
from pylibsrtp._binding import ffi

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    EXTENSIONS,
    VIDEO,
    Rtp,
    SrtpPeer,
    VideoSource,
    codec,
    count_plis,
    feed_video,
    fir,
    nack,
    nacked,
    pli,
    publish_video,
    pull_video,
    rtcp_packets,
    sender_report,
)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0, threads=request.param, stun_per_address_per_s=1000)
    plane.start()
    yield plane
    plane.close()


@contextmanager
def peers_of_two_threads(**settings: int) -> Iterator[tuple[SrtpPeer, SrtpPeer]]:
    """Two peers of a new plane, and a thread for each."""
    plane = Plane(["127.0.0.1"], 0, threads=2, stun_per_address_per_s=1000, **settings)
    plane.start()
    with ExitStack() as stack:
        stack.callback(plane.close)
        one = stack.enter_context(SrtpPeer(plane))
        while True:  # the kernel spreads them by their ports
            other = stack.enter_context(SrtpPeer(plane))
            if plane.transport_stats(other.transport)["thread"] != plane.transport_stats(one.transport)["thread"]:
                break
        yield one, other


def test_without_memory_for_caches_packets_still_cross_between_threads() -> None:
    with peers_of_two_threads(cache_bytes_max=0) as (publisher, subscriber):
        pull_video(subscriber, publish_video(publisher))
        source = VideoSource(publisher, 1111)
        source.send(key=True, size=3)
        subscriber.wait(lambda: len(subscriber.rtp) == 3)


class TestKeyframeRequests:
    def test_many_newcomers_make_few_requests(self, plane: Plane) -> None:
        """KF-1: at most one per 500 ms and layer."""
        with SrtpPeer(plane) as publisher:
            track = publish_video(publisher)
            source = VideoSource(publisher, 1111)
            source.send()
            subscribers = [SrtpPeer(plane) for _ in range(20)]
            for subscriber in subscribers:
                pull_video(subscriber, track)
            publisher.settle(0.3)
            assert count_plis(publisher.rtcp) == 1
            source.send(key=True)
            for subscriber in subscribers:
                subscriber.wait(lambda s=subscriber: s.rtp)  # type: ignore[misc]
                subscriber.close()
            publisher.settle(0.4)
            assert count_plis(publisher.rtcp) == 1  # the one held back was answered by the same key frame

    def test_a_subscribers_plis_and_firs_are_throttled(self, plane: Plane) -> None:
        """KF-4, section 17 row 10."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            before = count_plis(publisher.rtcp)
            for number in range(100):
                subscriber.send_rtcp(pli(subscriber.ssrc, 7777))
                subscriber.send_rtcp(fir(subscriber.ssrc, 7777, number))
            subscriber.send_rtcp(fir(subscriber.ssrc, 5, 1))
            publisher.wait(lambda: plane.forwarder_stats(forwarder)["plis_in"] == 200)
            publisher.settle(0.1)
            assert count_plis(publisher.rtcp) - before <= 2
            assert publisher.drops()["drop_rtcp_foreign"] == 1

    @pytest.mark.slow
    def test_a_request_repeats_until_a_key_frame_comes(self, plane: Plane) -> None:
        """KF-2"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            source = VideoSource(publisher, 1111)
            source.send()
            pull_video(subscriber, track)
            publisher.wait(lambda: count_plis(publisher.rtcp) == 2)
            source.send(key=True)
            publisher.settle(1.2)
            assert count_plis(publisher.rtcp) == 2

    @pytest.mark.slow
    def test_an_old_key_frame_sent_again_as_a_probe_is_no_answer(self, plane: Plane) -> None:
        """What came before is not newer for coming twice; the layer had nobody, so nothing of it was cached."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rtx=1112)
            source = VideoSource(publisher, 1111)
            [old] = source.send(key=True)
            source.send()
            publisher.wait(lambda: plane.track_stats(track)[0]["packets"] == 2)
            pull_video(subscriber, track)
            publisher.wait(lambda: count_plis(publisher.rtcp) == 1)
            publisher.send(Rtp(97, 1, old.timestamp, 1112, old.seq.to_bytes(2) + old.payload, True))
            publisher.wait(lambda: count_plis(publisher.rtcp) == 2)
            assert plane.track_stats(track)[0]["keyframes"] == 1
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            assert [p.payload for p in subscriber.rtp] == [source.sent[-1].payload]

    @pytest.mark.slow
    def test_a_key_frame_lost_between_threads_is_asked_for_again(self) -> None:
        """Its publisher's thread saw it; a subscriber in another one did not."""
        with peers_of_two_threads() as (publisher, subscriber):
            plane = publisher.plane
            track = publish_video(publisher)
            source = VideoSource(publisher, 1111)
            source.send()
            forwarder = pull_video(subscriber, track)
            publisher.wait(lambda: count_plis(publisher.rtcp) == 1)
            publisher.outgoing._cdata = ffi.new("char[]", 2048)  # it takes 1356 bytes by itself
            publisher.outgoing._buffer = ffi.buffer(publisher.outgoing._cdata)
            source.send(key=True, length=1600)  # too large for the cache, which is the way between threads
            subscriber.wait(lambda: subscriber.drops() == {"drop_ring_gone": 1})

            def asked_again() -> bool:
                source.send()
                publisher.settle(0.02)
                return count_plis(publisher.rtcp) == 2

            publisher.wait(asked_again)
            assert not subscriber.rtp
            assert plane.forwarder_stats(forwarder)["waiting"] == 1
            assert plane.stats()["keyframe_wait_seconds"] == 1
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            assert subscriber.rtp[0].payload == source.sent[-1].payload

    @pytest.mark.slow
    def test_fir_is_used_when_pli_was_not_negotiated(self, plane: Plane) -> None:
        """KF-3: one number per need."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = plane.add_track(
                publisher.transport,
                mid="0",
                video=True,
                codecs={96: {**codec(dataplane.CODEC_VP8, 90000, feedback=False), "fir": True}},
                extensions=EXTENSIONS,
                ssrcs=[(1111, 0)],
            )
            source = VideoSource(publisher, 1111)
            source.send()
            pull_video(subscriber, track)

            def firs() -> list[bytes]:
                return [p for c in publisher.rtcp for p in rtcp_packets(c) if p[1] == 206 and p[0] & 31 == 4]

            publisher.wait(lambda: len(firs()) == 2)
            assert {p[12:] for p in firs()} == {firs()[0][12:]}
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            plane.request_keyframe(track)
            publisher.wait(lambda: len(firs()) == 3)
            assert firs()[2][16] == firs()[0][16] + 1


class TestSetSource:
    def test_the_old_source_flows_until_the_new_ones_key_frame(self, plane: Plane) -> None:
        """SW-1, SW-3"""
        with SrtpPeer(plane) as one, SrtpPeer(plane) as two, SrtpPeer(plane) as subscriber:
            old, new = VideoSource(one, 1), VideoSource(two, 2, seq=60_000, timestamp=5)
            forwarder = pull_video(subscriber, publish_video(one, 1))
            target = publish_video(two, 2)
            old.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            new.send()
            feed_video(plane, forwarder, target)
            two.wait(lambda: count_plis(two.rtcp) == 1)
            new.send()
            subscriber.settle(0.03)
            old.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            new.send(key=True, size=2)
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            old.send(key=True)
            subscriber.settle(0.05)
            got = subscriber.rtp
            assert [p.payload for p in got[2:]] == [p.payload for p in new.sent[-2:]]
            assert [(p.seq - got[0].seq) & 0xFFFF for p in got] == [0, 1, 2, 3]
            step = (got[2].timestamp - got[1].timestamp) & 0xFFFFFFFF
            assert 0 < step < 90_000

    def test_a_cut_frame_leaves_one_number_out(self, plane: Plane) -> None:
        """SW-3"""
        with SrtpPeer(plane) as one, SrtpPeer(plane) as two, SrtpPeer(plane) as subscriber:
            old, new = VideoSource(one, 1), VideoSource(two, 2)
            forwarder = pull_video(subscriber, publish_video(one, 1))
            rest = old.frame(key=True, size=4)
            one.send(*rest[:2])
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            feed_video(plane, forwarder, publish_video(two, 2))
            new.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 3)
            one.send(*rest[2:])
            subscriber.settle(0.05)
            assert [(p.seq - subscriber.rtp[0].seq) & 0xFFFF for p in subscriber.rtp] == [0, 1, 3]

    def test_a_key_frame_whose_first_packet_is_repaired_arrives_whole(self, plane: Plane) -> None:
        """SW-4"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rtx=1112)
            source = VideoSource(publisher, 1111)
            source.send()
            pull_video(subscriber, track)
            first, *rest = source.send(key=True, size=4, lose=(0,))
            publisher.wait(lambda: any(nacked(c) for c in publisher.rtcp))
            payload = first.seq.to_bytes(2) + first.payload
            publisher.send(Rtp(97, 1, first.timestamp, 1112, payload))
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            assert [p.payload for p in subscriber.rtp] == [p.payload for p in (first, *rest)]
            source.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            assert [(p.seq - subscriber.rtp[0].seq) & 0xFFFF for p in subscriber.rtp] == [0, 1, 2, 3, 4]
            assert len({p.timestamp for p in subscriber.rtp}) == 2
            assert subscriber.drops() == {}

    def test_no_source_is_silence_and_a_new_one_goes_on_from_there(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            forwarder = pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            plane.set_source(forwarder, 0, payload_types={}, rtx_payload_types={})
            source.send(key=True)
            subscriber.settle(0.05)
            assert len(subscriber.rtp) == 1
            feed_video(plane, forwarder, track)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].seq - subscriber.rtp[0].seq) & 0xFFFF == 1

    def test_pause_and_resume_continue_at_a_key_frame(self, plane: Plane) -> None:
        """SW-7"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            plane.set_paused(forwarder, True)
            source.send(key=True)
            subscriber.settle(0.05)
            asked = count_plis(publisher.rtcp)
            plane.set_paused(forwarder, False)
            source.send()
            publisher.wait(lambda: count_plis(publisher.rtcp) == asked + 1)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert subscriber.rtp[1].payload == source.sent[-1].payload
            assert (subscriber.rtp[1].seq - subscriber.rtp[0].seq) & 0xFFFF == 1

    def test_a_removed_track_falls_silent_and_its_mid_can_come_back(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, mid="cam")
            forwarder = pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            source.extensions = {1: b"cam"}
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            plane.remove_track(track)
            source.send(key=True)
            subscriber.settle(0.05)
            assert len(subscriber.rtp) == 1
            again = plane.add_track(publisher.transport, mid="cam", video=True, codecs=VIDEO, extensions=EXTENSIONS)
            feed_video(plane, forwarder, again)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)


class TestTimestamps:
    """SW-2"""

    NTP = 3_900_000_000 << 32

    def switched(self, plane: Plane, offset_ms: int) -> tuple[SrtpPeer, SrtpPeer, VideoSource, VideoSource]:
        """Two layers of one publisher with sender reports; the target's capture clock lies `offset_ms` ahead."""
        publisher, subscriber = SrtpPeer(plane), SrtpPeer(plane)
        low, high = VideoSource(publisher, 10, timestamp=1_000_000), VideoSource(publisher, 20, timestamp=77)
        forwarder = pull_video(subscriber, publish_video(publisher, 10, mid="l"))
        target = publish_video(publisher, 20, mid="h")
        low.send(key=True)
        high.send()
        publisher.send_rtcp(sender_report(10, self.NTP, low.timestamp))
        publisher.send_rtcp(sender_report(20, self.NTP, high.timestamp - 90 * offset_ms))
        subscriber.wait(lambda: subscriber.rtp)
        feed_video(plane, forwarder, target)
        subscriber.settle(0.02)
        return publisher, subscriber, low, high

    def test_sender_reports_map_both_layers_to_one_clock(self, plane: Plane) -> None:
        publisher, subscriber, _, high = self.switched(plane, offset_ms=100)
        with publisher, subscriber:
            high.send(key=True)  # 33 ms after the packet its report was about
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            step = (subscriber.rtp[1].timestamp - subscriber.rtp[0].timestamp) & 0xFFFFFFFF
            assert abs(step - 90 * 100 - 3000) <= 2

    def test_a_little_behind_is_joined_with_one_frames_step(self, plane: Plane) -> None:
        publisher, subscriber, _, high = self.switched(plane, offset_ms=-33 - 40)
        with publisher, subscriber:
            high.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].timestamp - subscriber.rtp[0].timestamp) & 0xFFFFFFFF == 2970

    def test_far_behind_one_key_frame_is_skipped_and_the_next_taken(self, plane: Plane) -> None:
        publisher, subscriber, _, high = self.switched(plane, offset_ms=-500)
        with publisher, subscriber:
            high.send(key=True)
            subscriber.settle(0.05)
            assert len(subscriber.rtp) == 1
            high.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].timestamp - subscriber.rtp[0].timestamp) & 0xFFFFFFFF == 1


class TestSimulcast:
    RIDS = ("h", "m", "l")

    def layers(self, publisher: SrtpPeer) -> dict[str, VideoSource]:
        sources = {rid: VideoSource(publisher, 100 + i, seq=7000 * i, timestamp=i) for i, rid in enumerate(self.RIDS)}
        for rid, source in sources.items():
            source.extensions = {1: b"0", 2: rid.encode()}
        return sources

    def send_until(self, subscriber: SrtpPeer, sources: list[VideoSource], condition: Callable[[], object]) -> None:
        """Key frames of each source until `condition`; a layer is chosen only after its first packet."""
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            for source in sources:
                source.send(key=True)
            subscriber.settle(0.02)

    def test_each_layer_is_announced_and_the_wished_one_forwarded(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            pull_video(subscriber, track, rid="m")
            self.send_until(subscriber, list(sources.values()), lambda: subscriber.rtp)
            started = [u[2:] for u in plane.drain() if u[0] == dataplane.STREAM_STARTED]
            assert sorted(started) == [("h", 100), ("l", 102), ("m", 101)]
            assert {s["rid"]: s["ssrc"] for s in plane.track_stats(track)} == {"h": 100, "m": 101, "l": 102}
            subscriber.settle(0.05)
            assert subscriber.rtp[-1].payload == sources["m"].sent[-1].payload
            assert all(2 not in p.extensions for p in subscriber.rtp)

    @pytest.mark.slow
    def test_a_dead_layer_moves_its_subscribers_and_its_return_brings_them_back(self, plane: Plane) -> None:
        """LAY-1"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            forwarder = pull_video(subscriber, track, rid="h")
            for rid, layer in (("h", 0), ("l", 2), ("h", 0)):
                self.send_until(
                    subscriber, [sources[rid]], lambda n=layer: plane.forwarder_stats(forwarder)["layer"] == n
                )
            numbers = [p.seq for p in subscriber.rtp]
            assert [(b - a) & 0xFFFF for a, b in itertools.pairwise(numbers)] == [1] * (len(numbers) - 1)

    @pytest.mark.slow
    @pytest.mark.parametrize("probe", ["padding", "repeats"])
    def test_probes_do_not_keep_a_layer_alive_that_has_stopped(self, plane: Plane, probe: str) -> None:
        """A layer that its encoder has stopped still lends its SSRCs to probes: padding, or old packets as RTX."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            forwarder = pull_video(subscriber, track, rid="h")
            self.send_until(subscriber, [sources["h"]], lambda: plane.forwarder_stats(forwarder)["layer"] == 0)
            last = sources["h"].sent[-1]
            rtx = itertools.count()

            def moved() -> bool:
                if probe == "padding":
                    publisher.send(Rtp(96, sources["h"].seq, last.timestamp, last.ssrc, padding=200))
                    sources["h"].seq += 1
                else:
                    payload = (last.seq & 0xFFFF).to_bytes(2) + last.payload
                    publisher.send(Rtp(97, next(rtx), last.timestamp, 200, payload, True, {1: b"0", 3: b"h"}))
                return plane.forwarder_stats(forwarder)["layer"] == 2

            self.send_until(subscriber, [sources["l"]], moved)

    @pytest.mark.slow
    def test_a_stopped_layer_gives_way_to_the_next_one_down_and_the_last_to_the_first(self, plane: Plane) -> None:
        """realtime-api.md §8, `ridNotAvailable: asciibetical`."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            forwarder = pull_video(subscriber, track, rid="m")
            for alive, layer in (("hml", 1), ("hl", 2), ("h", 0), ("hm", 1)):
                self.send_until(
                    subscriber,
                    [sources[rid] for rid in alive],
                    lambda n=layer: plane.forwarder_stats(forwarder)["layer"] == n,
                )

    @pytest.mark.slow
    def test_without_fallback_nothing_but_the_wished_layer_is_sent(self, plane: Plane) -> None:
        """realtime-api.md §8, `ridNotAvailable: none`."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            forwarder = pull_video(subscriber, track, rid="h", fallback=False)
            alive = [sources["m"], sources["l"]]
            started = time.monotonic()
            self.send_until(subscriber, alive, lambda: time.monotonic() - started > 0.3)
            assert not subscriber.rtp
            self.send_until(subscriber, [*alive, sources["h"]], lambda: subscriber.rtp)
            assert plane.forwarder_stats(forwarder)["layer"] == 0
            # The layer stops, is declared dead, and returns.
            started = time.monotonic()
            self.send_until(subscriber, alive, lambda: time.monotonic() - started > 2.7)
            ours = {p.payload for p in sources["h"].sent}
            assert all(p.payload in ours for p in subscriber.rtp)
            got = len(subscriber.rtp)
            self.send_until(subscriber, [*alive, sources["h"]], lambda: len(subscriber.rtp) > got)
            assert subscriber.rtp[-1].payload == sources["h"].sent[-1].payload

    def test_a_wish_for_a_silent_layer_without_fallback_ends_the_one_playing(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            low = self.layers(publisher)["l"]
            forwarder = pull_video(subscriber, track, rid="l", fallback=False)
            self.send_until(subscriber, [low], lambda: subscriber.rtp)
            subscriber.settle(0.05)
            got = len(subscriber.rtp)
            feed_video(plane, forwarder, track, rid="h", fallback=False)
            low.send(key=True)
            subscriber.settle(0.1)
            assert len(subscriber.rtp) == got
            feed_video(plane, forwarder, track, rid="h")
            self.send_until(subscriber, [low], lambda: len(subscriber.rtp) > got)

    def test_without_a_wish_the_first_live_layer_in_order_is_taken(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rids=self.RIDS)
            sources = self.layers(publisher)
            forwarder = pull_video(subscriber, track)
            for rid, layer in (("l", 2), ("m", 1), ("h", 0)):
                self.send_until(
                    subscriber, [sources[rid]], lambda n=layer: plane.forwarder_stats(forwarder)["layer"] == n
                )


class TestVp8Numbers:
    """COD-1, CACHE-5: what a decoder reads goes on over a change of source, in resends too."""

    @staticmethod
    def described(source: VideoSource, picture: int, *, size: int = 1) -> list[Rtp]:
        """A key frame whose packets carry a PictureID of 15 bits, or 7 below 128, and a TL0PICIDX."""
        number = (0x8000 | picture).to_bytes(2) if picture > 127 else bytes([picture])
        packets = source.frame(key=True, size=size)
        for i, packet in enumerate(packets):
            lead = bytes([0x90 if i == 0 else 0x80, 0xC0]) + number + bytes([picture & 0xFF])
            packet.payload = lead + packet.payload[1:]
        source.sent += packets
        return packets

    @pytest.mark.parametrize("rtx", [0, 7778], ids=["without RTX", "with RTX"])
    def test_numbers_go_on_and_a_resend_has_those_of_the_first_time(self, plane: Plane, rtx: int) -> None:
        with SrtpPeer(plane) as one, SrtpPeer(plane) as two, SrtpPeer(plane) as subscriber:
            old, new = VideoSource(one, 1), VideoSource(two, 2)
            forwarder = pull_video(subscriber, publish_video(one, 1), rtx=rtx)
            target = publish_video(two, 2)
            one.send(*self.described(old, 3000))
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            assert subscriber.rtp[0].payload == old.sent[0].payload
            feed_video(plane, forwarder, target, rtx=rtx != 0)
            two.send(*self.described(new, 5, size=2), *self.described(new, 6), *self.described(new, 8))
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            read = [VpxPayloadDescriptor.parse(p.payload) for p in subscriber.rtp]
            assert [d.picture_id for d, _ in read] == [3000, 3001, 3001, 3002, 3004]
            assert [(d.tl0picidx - 3000) % 256 for d, _ in read] == [0, 1, 1, 2, 4]
            assert [rest for _, rest in read[1:]] == [p.payload[4:] for p in new.sent]
            time.sleep(0.12)
            packet = subscriber.rtp[2]
            raw = [data for data in subscriber.raw if data[1] & 127 == 100]
            subscriber.send_rtcp(nack(subscriber.ssrc, 7777, packet.seq))
            if rtx:
                subscriber.wait(lambda: len(subscriber.rtp) == 6)
                assert subscriber.rtp[5].payload == packet.seq.to_bytes(2) + packet.payload
            else:
                subscriber.wait(lambda: len([d for d in subscriber.raw if d[1] & 127 == 100]) == 6)
                assert [d for d in subscriber.raw if d[1] & 127 == 100][5] == raw[2]

    def test_a_pause_leaves_no_hole_in_the_numbers(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            publisher.send(*self.described(source, 200))
            subscriber.wait(lambda: subscriber.rtp)
            plane.set_paused(forwarder, True)
            publisher.send(*self.described(source, 201))
            subscriber.settle(0.05)
            plane.set_paused(forwarder, False)
            publisher.send(*self.described(source, 300))
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert VpxPayloadDescriptor.parse(subscriber.rtp[1].payload)[0].picture_id == 201
