"""The running numbers of a VP8 stream whose source changes, in both implementations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import pytest
from aiortc.codecs.vpx import VpxPayloadDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, on_both_cores

NOTHING = (-1, -1, -1, False)


def payload(
    picture: int | None = None,
    *,
    wide: bool = True,
    tl0: int | None = None,
    tid: int | None = None,
    key: int | None = None,
    body: bytes = b"\x01body",
) -> bytes:
    """One packet's payload, the first of its frame, with the numbers given."""
    present = (picture is not None) << 7 | (tl0 is not None) << 6 | (tid is not None) << 5 | (key is not None) << 4
    out = bytes([0x90, present])
    if picture is not None:
        out += (0x8000 | picture).to_bytes(2) if wide else bytes([picture])
    if tl0 is not None:
        out += bytes([tl0])
    if tid is not None or key is not None:
        out += bytes([(tid or 0) << 6 | (key or 0)])
    return out + body


class Stream:
    """A subscriber's stream: packets in, payloads out, with the numbers as the plane's ledger keeps them."""

    def __init__(self, core: ModuleType) -> None:
        self.core = core
        self.rewriter = core.Vp8Rewriter()

    def send(self, packet: bytes, *, late: bool = False) -> bytes:
        numbers = self.rewriter.number(packet, late=late)
        out: bytes = packet if numbers == NOTHING else self.core.write_vp8(packet, numbers)
        return out

    def switch(self) -> None:
        self.rewriter.switch()


@on_both_cores
class TestSwitching:
    """COD-1."""

    def test_nothing_is_written_before_the_source_changes(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.switch()  # the first source
        for picture in (7, 8, 3000):
            assert stream.rewriter.number(payload(picture, tl0=picture % 256, tid=0, key=1)) == NOTHING

    def test_every_number_goes_on_by_one(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(100, tl0=9, tid=0, key=30))
        stream.switch()
        assert stream.send(payload(20_000, tl0=200, tid=1, key=4)) == payload(101, tl0=10, tid=1, key=31)
        assert stream.send(payload(20_001, tl0=201, tid=0, key=5)) == payload(102, tl0=11, tid=0, key=0)

    def test_all_packets_of_a_picture_have_its_number(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(100))
        stream.switch()
        assert [stream.send(payload(picture)) for picture in (5, 5, 6)] == [payload(p) for p in (101, 101, 102)]

    def test_a_late_packet_has_the_number_of_its_picture(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(100, tl0=1))
        stream.switch()
        stream.send(payload(5, tl0=7))
        stream.send(payload(9, tl0=9))
        assert stream.send(payload(6, tl0=8), late=True) == payload(102, tl0=3)
        assert stream.send(payload(10, tl0=10)) == payload(106, tl0=5)

    def test_a_late_packet_before_the_first_change_is_not_the_newest(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(100))
        stream.send(payload(98), late=True)
        stream.switch()
        assert stream.send(payload(5)) == payload(101)

    def test_the_numbers_wrap(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(0x7FFF, tl0=255, key=31))
        stream.switch()
        assert stream.send(payload(50, tl0=50, key=5)) == payload(0, tl0=0, key=0)

    def test_narrow_numbers_stay_narrow_among_themselves(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(126, wide=False))
        stream.switch()
        assert [stream.send(payload(p, wide=False)) for p in (3, 4)] == [payload(p, wide=False) for p in (127, 0)]

    def test_where_widths_differ_the_stream_becomes_wide_for_good(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(127, wide=False))
        stream.switch()
        assert stream.send(payload(9000)) == payload(128)
        stream.switch()
        # One byte longer than it came, and on from 129 although its own numbers wrap at 128.
        assert [stream.send(payload(p, wide=False)) for p in (127, 0, 1)] == [payload(p) for p in (129, 130, 131)]
        assert stream.send(payload(127, wide=False), late=True) == payload(129)

    def test_numbers_that_a_source_lacks_go_on_with_the_next_that_has_them(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(100, tl0=20))
        stream.switch()
        assert stream.send(b"\x10\x00plain") == b"\x10\x00plain"
        assert stream.send(payload(tl0=90)) == payload(tl0=21)
        stream.switch()
        assert stream.send(payload(7, tl0=3, key=17)) == payload(101, tl0=22, key=17)  # the first KEYIDX: as it comes

    def test_temporal_id_and_sync_bit_stay(self, core: ModuleType) -> None:
        stream = Stream(core)
        stream.send(payload(1))
        stream.switch()
        packet = payload(10, tl0=1, tid=2, body=b"")
        packet = packet[:-1] + bytes([packet[-1] | 0x20])
        out = stream.send(packet)
        assert out[-1] == packet[-1]

    @pytest.mark.parametrize("cut", [b"", b"\x80", b"\x80\x80", b"\x80\x80\x81", b"\x80\xf0\x01\x02"])
    def test_what_is_cut_off_is_left_alone(self, core: ModuleType, cut: bytes) -> None:
        stream = Stream(core)
        stream.send(payload(100))
        stream.switch()
        assert stream.send(cut) == cut
        assert core.write_vp8(cut, (1, 2, 3, True)) == cut

    def test_only_the_descriptor_is_touched(self, core: ModuleType) -> None:
        """Payloads may be encrypted end to end."""
        stream = Stream(core)
        secret = bytes(range(256))
        stream.send(payload(5, wide=False, tl0=4, key=3, body=secret))
        stream.switch()
        assert stream.send(payload(700, tl0=4, key=3, body=secret)).endswith(secret)


@dataclass(frozen=True)
class Layer:
    """A source that numbers its pictures by itself."""

    picture: int
    tl0: int
    key: int
    wide: bool

    def packet(self, n: int) -> bytes:
        """The n-th picture's only packet."""
        picture = (self.picture + n) % (1 << (15 if self.wide else 7))
        return payload(picture, wide=self.wide, tl0=(self.tl0 + n) % 256, tid=0, key=(self.key + n) % 32)


layers = st.builds(Layer, st.integers(0, 127), st.integers(0, 255), st.integers(0, 31), st.booleans())
stays = st.lists(
    st.tuples(layers, st.lists(st.sampled_from(["send"] * 6 + ["lose", "delay"]), min_size=1, max_size=40)),
    min_size=1,
    max_size=6,
)


@on_both_cores
@settings(max_examples=150)
@given(stays=stays)
def test_numbers_grow_by_one_a_picture_whatever_is_lost_late_or_switched(
    core: ModuleType, stays: list[tuple[Layer, list[str]]]
) -> None:
    """COD-1, CACHE-5. A picture lost upstream leaves its hole; a decoder reads what goes out."""
    stream = Stream(core)
    sent: list[tuple[int, bytes]] = []  # place in the order of pictures, what went out
    resent: list[tuple[bytes, tuple[int, int, int, bool], bytes]] = []
    place = -1
    for layer, fates in stays:
        stream.switch()
        delayed: list[tuple[int, bytes]] = []
        for n, fate in enumerate(["send", *fates, "send"]):  # the first is the key frame that the switch waited for
            place += 1
            if fate == "delay":
                delayed.append((place, layer.packet(n)))
            elif fate == "send":
                arrivals = [(place, layer.packet(n), False), *((p, packet, True) for p, packet in delayed)]
                delayed.clear()
                for at, packet, late in arrivals:
                    numbers = stream.rewriter.number(packet, late=late)
                    out = packet if numbers == NOTHING else core.write_vp8(packet, numbers)
                    sent.append((at, out))
                    resent.append((packet, numbers, out))
    for packet, numbers, out in resent:
        assert (packet if numbers == NOTHING else core.write_vp8(packet, numbers)) == out
    read = [(at, *VpxPayloadDescriptor.parse(out)) for at, out in sorted(sent)]
    for (at, before, _), (next_at, after, rest) in pairwise(read):
        assert (after.picture_id - before.picture_id - (next_at - at)) % 128 == 0
        assert (after.tl0picidx - before.tl0picidx - (next_at - at)) % 256 == 0
        assert (after.keyidx - before.keyidx - (next_at - at)) % 32 == 0
        assert rest == b"\x01body"
    wide = [at for at, out in sorted(sent) if out[2] & 0x80]
    if wide:  # from there on every number has 15 bits, and none jumps
        after_wide = [(at, VpxPayloadDescriptor.parse(out)[0].picture_id) for at, out in sorted(sent) if at >= wide[0]]
        assert all(out[2] & 0x80 for at, out in sent if at >= wide[0])
        for (at, before), (next_at, after) in pairwise(after_wide):
            assert (after - before - (next_at - at)) % (1 << 15) == 0


operations = st.lists(
    st.tuples(
        st.sampled_from(["switch", "late", "send", "send", "send"]),
        st.binary(max_size=6) | st.builds(payload, st.integers(0, 127), wide=st.booleans(), tl0=st.integers(0, 255)),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(operations=operations)
def test_both_write_the_same(operations: list[tuple[str, bytes]]) -> None:
    streams = [Stream(core) for core in CORES.values()]
    for what, packet in operations:
        if what == "switch":
            for stream in streams:
                stream.switch()
        else:
            a, b = (stream.send(packet, late=what == "late") for stream in streams)
            assert a == b


@settings(max_examples=300)
@given(
    packet=st.binary(max_size=12),
    numbers=st.tuples(st.integers(-1, 0x7FFF), st.integers(-1, 255), st.integers(-1, 31), st.just(True)),
)
def test_both_write_any_numbers_alike(packet: bytes, numbers: tuple[int, int, int, bool]) -> None:
    a, b = (core.write_vp8(packet, numbers) for core in CORES.values())
    assert a == b
