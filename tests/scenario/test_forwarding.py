"""A publisher, a hop and its subscribers over a lossy virtual network, with either implementation of the cores."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenario.forwarding import RTX_SSRC, SCAN, Hop, Publisher, Subscriber
from tests.support.dual import on_both_cores
from tests.support.network import Link, Network
from wire.rtp import RtpPacket


class Scene:
    """The parts, wired: publisher ⇄ hop ⇄ subscribers."""

    def __init__(
        self,
        core: ModuleType,
        *,
        seed: int = 0,
        first_seq: int = 1000,
        upstream: dict[str, object] | None = None,
    ) -> None:
        self.core = core
        self.network = Network(seed)
        self.uplink = self.network.link("up", lambda data, now: self.hop.receive_media(data, now), **(upstream or {}))  # type: ignore[arg-type]
        self.publisher = Publisher(self.uplink.send, first_seq=first_seq)
        back = self.network.link("up-rtcp", self.publisher.receive_datagram)
        self.hop = Hop(core, back.send)
        self.subscribers: list[Subscriber] = []
        self.downlinks: list[Link] = []

    def add_subscriber(self, *, hostile: bool = False, **conditions: object) -> Subscriber:
        index = len(self.subscribers)
        subscriber = Subscriber(index, hostile=hostile)
        down = self.network.link(f"down-{index}", subscriber.receive_datagram, **conditions)  # type: ignore[arg-type]
        self.hop.add_subscriber(subscriber, down.send)
        leg = self.hop.legs[index]
        up = self.network.link(f"down-{index}-rtcp", lambda data, now: self.hop.receive_feedback(leg, data, now))
        subscriber.send = up.send
        self.subscribers.append(subscriber)
        self.downlinks.append(down)
        return subscriber

    def publish(self, packets: int, *, interval: float = 0.005, settle: float = 3.0) -> None:
        """Send `packets` numbered payloads, and let all repair come to an end."""
        network, end = self.network, self.network.now + packets * interval
        for index in range(packets):
            payload = f"payload {self.publisher.next_seq + index}".encode()
            network.call_at(network.now + index * interval, lambda payload=payload: self.publisher.send_packet(payload))  # type: ignore[misc]
        network.call_every(SCAN, lambda: self.hop.scan(network.now), until=end + settle)
        for subscriber in self.subscribers:
            network.call_every(SCAN, lambda s=subscriber: s.scan(network.now), until=end + settle)  # type: ignore[misc]
        network.run()

    def payloads(self, subscriber: Subscriber) -> list[bytes]:
        return [subscriber.payloads[number] for number in sorted(subscriber.payloads)]

    def published(self) -> list[bytes]:
        packets = sorted(self.publisher.sent.values(), key=lambda packet: packet.timestamp)
        return [packet.payload for packet in packets]


@on_both_cores
class TestRepair:
    """Sections 6 to 8: every hop repairs its own losses."""

    def test_a_lossless_path_delivers_each_packet_once_and_asks_for_nothing(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(500)
        assert scene.payloads(subscriber) == scene.published()
        assert len(subscriber.arrivals) == 500
        assert scene.publisher.received == []

    @pytest.mark.parametrize("seed", range(3))
    def test_loss_reordering_and_duplicates_on_both_sides_are_repaired_in_full(
        self, core: ModuleType, seed: int
    ) -> None:
        bad: dict[str, object] = {"loss": 0.05, "jitter": 0.03, "duplicate": 0.02}
        scene = Scene(core, seed=seed, first_seq=65_000, upstream=bad)
        lossy = scene.add_subscriber(**bad)
        clean = scene.add_subscriber()
        scene.publish(1500)
        for subscriber in (lossy, clean):
            assert subscriber.missing() == []
            received = scene.payloads(subscriber)
            published = scene.published()
            # Reordering at the very start may put the first packets before the first that was forwarded.
            begin = published.index(received[0])
            end = published.index(received[-1]) + 1
            assert received == published[begin:end]
            assert begin <= 8
            assert end >= 1495

    def test_rx_2_over_the_wrap_exactly_the_lost_packet_is_missing(self, core: ModuleType) -> None:
        """65530..5 with 65534 lost, and its repairs too."""
        scene = Scene(core, first_seq=65_530)
        scene.publisher.send_rtx = lambda seq: None  # type: ignore[method-assign]
        scene.uplink.lose = {4}
        subscriber = scene.add_subscriber()
        scene.publish(12)
        assert set(scene.publisher.nacked) == {65_534}
        assert subscriber.missing() == [subscriber.lowest + 4]
        assert subscriber.highest - subscriber.lowest == 11
        assert scene.publisher.plis == 1

    def test_rx_2_after_a_jump_the_stream_restarts_and_out_numbers_go_on(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(20)
        scene.publisher.next_seq += 20_000
        scene.publish(20)
        assert scene.publisher.plis == 1
        assert scene.publisher.nacked == []
        # The packet that jumped is gone, the next one confirms; one number is skipped so that the decoder sees the cut.
        assert subscriber.highest - subscriber.lowest == 19 + 1 + 19
        assert scene.payloads(subscriber) == scene.published()[:20] + scene.published()[21:]

    def test_rx_3_probes_leave_no_hole(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(10)
        for _ in range(100):
            scene.publisher.send_packet(padding_bytes=200)
        scene.network.run()
        scene.publish(10)
        assert subscriber.highest - subscriber.lowest == 19
        assert subscriber.missing() == []
        assert len(subscriber.arrivals) == 20

    def test_rx_3_a_late_probe_fills_its_slot_with_padding(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(10)
        publisher, delayed = scene.publisher, []
        publisher.send = delayed.append
        publisher.send_packet(padding_bytes=200)
        publisher.send = scene.uplink.send
        publisher.send_packet(b"after")
        scene.network.run()
        assert subscriber.missing() == [subscriber.highest - 1]
        scene.uplink.send(delayed[0])
        scene.network.run()
        assert subscriber.missing() == []
        assert subscriber.payloads[subscriber.highest - 1] == b""

    def test_rtx_1_an_original_number_from_before_the_wrap_is_of_the_cycle_before(self, core: ModuleType) -> None:
        scene = Scene(core, first_seq=65_533)
        scene.uplink.lose = {2}  # 65535
        subscriber = scene.add_subscriber()
        scene.publish(7)
        assert set(scene.publisher.nacked) == {65_535}
        assert scene.payloads(subscriber) == scene.published()

    @pytest.mark.parametrize("payload", [b"", b"\x00"])
    def test_rtx_1_a_probe_on_the_repair_stream_is_ignored(self, core: ModuleType, payload: bytes) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(5)
        scene.uplink.send(RtpPacket(97, 1, 2, RTX_SSRC, payload).serialize())
        scene.network.run()
        assert len(subscriber.arrivals) == 5

    def test_rtx_2_a_nack_is_answered_under_the_repair_stream(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber(lose={5})
        scene.publish(20)
        (repair,) = subscriber.rtx_packets
        lost = subscriber.lowest + 5
        assert (repair.payload_type, repair.ssrc) == (97, subscriber.rtx_ssrc)
        assert int.from_bytes(repair.payload[:2]) == lost & 0xFFFF
        assert repair.payload[2:] == scene.published()[5]
        assert repair.timestamp == list(scene.publisher.sent.values())[5].timestamp
        assert scene.publisher.received == []

    def test_rtx_3_a_repair_ahead_of_all_originals_is_served(self, core: ModuleType) -> None:
        """10..12 are lost and the repair of 12 comes before 13; the subscriber loses its copy of 12."""
        scene = Scene(core)
        subscriber = scene.add_subscriber()
        scene.publish(10)
        scene.uplink.lose = range(10, 13)
        for _ in range(3):
            scene.publisher.send_packet(f"payload {scene.publisher.next_seq}".encode())
        scene.downlinks[0].lose = {10}
        scene.publisher.send_rtx(1012)
        scene.network.run()
        scene.publish(5)
        assert scene.payloads(subscriber) == scene.published()
        assert scene.publisher.nacked == [1010, 1011]
        assert subscriber.lowest + 12 in [
            (subscriber.lowest & ~0xFFFF) + int.from_bytes(p.payload[:2]) for p in subscriber.rtx_packets
        ]


@on_both_cores
class TestShield:
    """Section 9."""

    @settings(max_examples=8)
    @given(
        seed=st.integers(0, 1 << 30),
        upstream_loss=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
        downstream_loss=st.sampled_from([0.05, 0.3, 0.9]),
    )
    def test_shld_1_what_the_publisher_hears_does_not_depend_on_subscribers(
        self, core: ModuleType, seed: int, upstream_loss: float, downstream_loss: float
    ) -> None:
        heard = []
        for case in ("calm", "lossy", "hostile"):
            scene = Scene(core, seed=seed, upstream={"loss": upstream_loss, "jitter": 0.01})
            for _ in range(2):
                scene.add_subscriber(loss=0.0 if case == "calm" else downstream_loss, hostile=case == "hostile")
            scene.publish(120, settle=1.0)
            heard.append(scene.publisher.received)
        assert heard[0] == heard[1] == heard[2]
        assert heard[0] or upstream_loss < 0.1

    def test_shld_3_a_packet_lost_upstream_is_asked_for_once_whoever_asks(self, core: ModuleType) -> None:
        scene = Scene(core, upstream={"lose": {20}})
        for _ in range(100):
            scene.add_subscriber()
        asked: list[bytes] = []
        for subscriber in scene.subscribers:
            send = subscriber.send
            subscriber.send = lambda data, send=send: (asked.append(data), send(data))[1]  # type: ignore[misc, func-returns-value]
        scene.publish(60, settle=0.5)
        assert scene.publisher.nacked == [1020]
        assert len(asked) >= 100
        for subscriber in scene.subscribers:
            assert scene.payloads(subscriber) == scene.published()
            assert subscriber.arrivals.count(subscriber.lowest + 20) == 1
            assert subscriber.rtx_packets == []

    def test_a_hostile_subscriber_gets_no_more_than_five_copies_of_a_packet(self, core: ModuleType) -> None:
        scene = Scene(core)
        subscriber = scene.add_subscriber(hostile=True)
        scene.publish(300, settle=2.0)
        copies = [subscriber.arrivals.count(number) for number in subscriber.payloads]
        assert max(copies) <= 6
        assert scene.publisher.received == []
