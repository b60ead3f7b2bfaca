"""Batched UDP: what goes in comes out, in order, whatever the kernel makes of it (IO-1 to IO-3)."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from wire._batch.udp import BatchedUdp

SO_NO_CHECK = 11  # a socket that sends no checksums refuses UDP_SEGMENT


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
        for sock in (one, two):
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        yield one, two


def collect(receiver: BatchedUdp) -> list[tuple[bytes, str, int]]:
    out: list[tuple[bytes, str, int]] = []
    while batch := receiver.receive():
        out += batch
    return out


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("gso", [False, True])
def test_datagrams_of_any_length_arrive_whole_and_in_order(
    pair: tuple[socket.socket, socket.socket], gso: bool, gro: bool
) -> None:
    one, two = pair
    generator = random.Random(3)
    sender, receiver = BatchedUdp(one.fileno(), gso=gso), BatchedUdp(two.fileno(), gro=gro)
    for _ in range(30):
        sent = []
        for _ in range(generator.randrange(1, 90)):
            sent.append(generator.randbytes(generator.choice((1, 2, 100, 1100, 1100, 1100, 1452, 1453, 9000))))
            sender.queue(sent[-1], *two.getsockname()[:2])
        sender.flush()
        got = collect(receiver)
        assert [data for data, _, _ in got] == sent
        assert {(host, port) for _, host, port in got} == {one.getsockname()[:2]}


def test_a_run_of_one_length_leaves_in_one_call(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    sender, receiver = BatchedUdp(one.fileno()), BatchedUdp(two.fileno(), gro=True)
    for length in [1000] * 40 + [10]:
        sender.queue(bytes(length), *two.getsockname()[:2])
    sender.flush()
    counters = sender.counters()
    assert (counters["calls"], counters["trains"], counters["train_datagrams"]) == (1, 1, 41)
    assert len(collect(receiver)) == 41


def test_trains_end_at_64_segments_and_at_65507_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    sender, receiver = BatchedUdp(one.fileno()), BatchedUdp(two.fileno())
    for length in [1400] * 100 + [50] * 100:
        sender.queue(bytes(length), *two.getsockname()[:2])
    sender.flush()
    assert sender.counters()["trains"] == 5  # 46 + 46 + 8 with one of 50, then 64 and 35
    assert sender.counters()["gso_refused"] == 0
    assert len(collect(receiver)) == 200


def test_a_refused_train_goes_as_singles_and_the_socket_is_not_asked_again() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        two.bind(("127.0.0.1", 0))
        one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sender, receiver = BatchedUdp(one.fileno()), BatchedUdp(two.fileno())
        for turn in range(3):
            sent = [bytes([turn, i]) * 300 for i in range(40)]
            for data in sent:
                sender.queue(data, *two.getsockname())
            sender.flush()
            assert [data for data, _, _ in collect(receiver)] == sent
        assert sender.counters()["gso"] == 0
        assert sender.counters()["gso_refused"] == 1
        assert sender.counters()["dropped_error"] == 0


def test_destinations_interleave_without_mixing(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    with socket.socket(one.family, socket.SOCK_DGRAM) as three:
        three.bind((one.getsockname()[0], 0))
        sender = BatchedUdp(one.fileno())
        for i in range(100):
            sender.queue(bytes([i]) * 200, *(two if i % 2 else three).getsockname()[:2])
        sender.flush()
        assert [data[0] for data, _, _ in collect(BatchedUdp(two.fileno()))] == list(range(1, 100, 2))
        assert [data[0] for data, _, _ in collect(BatchedUdp(three.fileno()))] == list(range(0, 100, 2))


def test_a_full_arena_flushes_by_itself(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    sender, receiver = BatchedUdp(one.fileno(), arena_bytes=65_536), BatchedUdp(two.fileno())
    sent = [bytes([i]) * 1300 for i in range(200)]
    for data in sent:
        sender.queue(data, *two.getsockname()[:2])
    sender.flush()
    assert [data for data, _, _ in collect(receiver)] == sent


def test_an_unreachable_destination_costs_only_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    """IO-3"""
    one, two = pair
    sender, receiver = BatchedUdp(one.fileno()), BatchedUdp(two.fileno())
    other = "::1" if one.family == socket.AF_INET else "127.0.0.1"  # an address of the wrong family cannot be sent to
    for i in range(10):
        sender.queue(bytes([i]) * 100, *two.getsockname()[:2])
        sender.queue(b"x" * 100, other, 9)
    sender.flush()
    assert len(collect(receiver)) == 10
    assert sender.counters()["dropped_error"] == 10


@pytest.mark.parametrize(("host", "port"), [("nowhere", 1), ("127.0.0.1", 70_000), ("", 5), ("::1%eth", 5)])
def test_what_is_not_an_address_is_refused(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(ValueError, match=r"\w"):
        BatchedUdp(one.fileno()).queue(b"x", host, port)


@pytest.mark.parametrize("size", [0, 65_508])
def test_sizes_that_are_no_datagram_are_refused(size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(ValueError, match="bytes"):
        BatchedUdp(one.fileno()).queue(bytes(size), "127.0.0.1", 5)
