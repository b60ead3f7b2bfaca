"""An exchange: what one plane sends to another of its process arrives once, whole, in order, or is refused."""

from __future__ import annotations

import gc
import os
import select
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire._batch.exchange import CAPACITY, DATAGRAM_BYTES_MAX, End, Exchange

ONE, TWO = ("192.0.2.1", 50000), ("2001:db8::2", 8787)


@pytest.fixture
def ends() -> tuple[End, End]:
    one, two = Exchange(1, 1).ends()
    two.open()
    return one, two


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


class TestDatagrams:
    def test_source_destination_thread_and_bytes_arrive(self) -> None:
        one, two = Exchange(2, 3).ends()
        two.open()
        assert one.post(1, 2, ONE, TWO, b"there") == "posted"
        assert (two.take(0), two.take(1)) == ([], [])
        assert two.take(2) == [(1, ONE, TWO, b"there")]
        assert two.take(2) == []

    def test_both_directions_are_apart(self) -> None:
        one, two = Exchange(1, 1).ends()
        one.open()
        two.open()
        one.post(0, 0, ONE, TWO, b"there")
        two.post(0, 0, TWO, ONE, b"back")
        assert two.take(0) == [(0, ONE, TWO, b"there")]
        assert one.take(0) == [(0, TWO, ONE, b"back")]

    @pytest.mark.parametrize("size", [0, 1, DATAGRAM_BYTES_MAX])
    def test_any_length_up_to_the_limit_passes(self, ends: tuple[End, End], size: int) -> None:
        data = os.urandom(size)
        assert ends[0].post(0, 0, ONE, TWO, data) == "posted"
        assert ends[1].take(0)[0][3] == data

    def test_above_the_limit_is_refused(self, ends: tuple[End, End]) -> None:
        with pytest.raises(ValueError, match="2049 bytes; at most 2048"):
            ends[0].post(0, 0, ONE, TWO, bytes(DATAGRAM_BYTES_MAX + 1))

    @pytest.mark.parametrize(("thread", "far"), [(-1, 0), (1, 0), (0, -1), (0, 1)])
    def test_a_thread_that_is_not_there_is_refused(self, ends: tuple[End, End], thread: int, far: int) -> None:
        with pytest.raises(ValueError, match="no such thread"):
            ends[0].post(thread, far, ONE, TWO, b"")


class TestBounds:
    def test_a_full_inbox_takes_no_more_until_one_is_taken(self, ends: tuple[End, End]) -> None:
        one, two = ends
        assert {one.post(0, 0, ONE, TWO, b"%d" % n) for n in range(CAPACITY)} == {"posted"}
        assert one.post(0, 0, ONE, TWO, b"late") == "full"
        assert two.take(0, 1)[0][3] == b"0"
        assert one.post(0, 0, ONE, TWO, b"now") == "posted"
        assert one.post(0, 0, ONE, TWO, b"late") == "full"
        assert [data for *_, data in two.take(0)] == [*(b"%d" % n for n in range(1, CAPACITY)), b"now"]

    @given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, CAPACITY)), max_size=30))
    def test_any_run_of_posts_and_takes_is_a_bounded_queue(self, steps: list[tuple[bool, int]]) -> None:
        """Over many laps of the ring, against a list."""
        one, two = Exchange(1, 1).ends()
        two.open()
        model: list[bytes] = []
        sent = 0
        for post, count in steps:
            if post:
                for _ in range(count):
                    data = sent.to_bytes(4, "big")
                    sent += 1
                    fits = len(model) < CAPACITY
                    assert one.post(0, 0, ONE, TWO, data) == ("posted" if fits else "full")
                    if fits:
                        model.append(data)
            else:
                assert [data for *_, data in two.take(0, count)] == model[:count]
                del model[:count]

    def test_addresses_are_bounded_and_checked(self) -> None:
        one, two = Exchange(1, 1).ends()
        with pytest.raises(ValueError, match="17 addresses; at most 16"):
            one.bind([ONE] * 17)
        with pytest.raises(ValueError, match="not an address"):
            one.bind([("nowhere", 1)])
        two.open()
        with pytest.raises(ValueError, match="in use"):
            one.bind([ONE])

    @pytest.mark.parametrize("threads", [0, 257])
    def test_so_are_threads(self, threads: int) -> None:
        with pytest.raises(ValueError, match=f"{threads} threads"):
            Exchange(1, threads)


class TestLife:
    def test_nothing_is_taken_before_somebody_receives_or_after(self) -> None:
        one, two = Exchange(1, 1).ends()
        assert one.post(0, 0, ONE, TWO, b"early") == "closed"
        two.open()
        assert one.post(0, 0, ONE, TWO, b"there") == "posted"
        two.close()
        assert one.post(0, 0, ONE, TWO, b"late") == "closed"

    def test_whoever_comes_next_starts_empty(self) -> None:
        one, two = Exchange(1, 1).ends()
        two.open()
        one.post(0, 0, ONE, TWO, b"for the one before")
        two.close()
        two.open()
        assert one.post(0, 0, ONE, TWO, b"there") == "posted"
        assert [data for *_, data in two.take(0)] == [b"there"]

    def test_an_end_has_one_receiver(self, ends: tuple[End, End]) -> None:
        with pytest.raises(ValueError, match="in use"):
            ends[1].open()

    def test_descriptors_go_with_the_last_end(self) -> None:
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        one, two = Exchange(3, 2).ends()
        assert len(os.listdir("/proc/self/fd")) == before + 5
        del one
        assert two.post(0, 2, ONE, TWO, b"") == "closed"
        del two
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


class TestWaking:
    def test_only_a_sleeper_is_woken_and_once(self, ends: tuple[End, End]) -> None:
        one, two = ends
        fd = two.wake_fileno(0)
        one.post(0, 0, ONE, TWO, b"awake")
        assert not readable(fd)
        assert not two.doze(0), "something waits: do not sleep"
        two.take(0)
        assert two.doze(0)
        one.post(0, 0, ONE, TWO, b"first")
        one.post(0, 0, ONE, TWO, b"second")
        assert os.eventfd_read(fd) == 1

    def test_no_datagram_waits_for_a_receiver_that_sleeps(self, ends: tuple[End, End]) -> None:
        """The receiver announces its sleep and looks again: between the two nothing gets lost, whatever the timing."""
        one, two = ends
        rounds = 20_000

        def send() -> None:
            for n in range(rounds):
                while one.post(0, 0, ONE, TWO, n.to_bytes(4, "big")) == "full":
                    pass

        sender = threading.Thread(target=send)
        sender.start()
        seen: list[int] = []
        while len(seen) < rounds:
            if two.doze(0):
                assert select.select([two.wake_fileno(0)], [], [], 5)[0], f"asleep after {len(seen)}"
                os.eventfd_read(two.wake_fileno(0))
            seen += [int.from_bytes(data, "big") for *_, data in two.take(0)]
        sender.join()
        assert seen == list(range(rounds))


class TestThreads:
    def test_many_senders_lose_nothing_and_each_keeps_its_order(self) -> None:
        senders, each = 4, 10_000
        one, two = Exchange(senders, 1).ends()
        two.open()
        full = [0] * senders

        def send(thread: int) -> None:
            for n in range(each):
                while one.post(thread, 0, (f"10.0.0.{thread}", 1), TWO, n.to_bytes(4, "big") * 100) == "full":
                    full[thread] += 1

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(senders)]
        for thread in threads:
            thread.start()
        seen: list[list[int]] = [[] for _ in range(senders)]
        while sum(map(len, seen)) < senders * each:
            for thread, source, to, data in two.take(0):
                assert source == (f"10.0.0.{thread}", 1)
                assert to == TWO
                assert data == data[:4] * 100
                seen[thread].append(int.from_bytes(data[:4], "big"))
        for joined in threads:
            joined.join()
        assert seen == [list(range(each))] * senders
        assert two.take(0) == []
