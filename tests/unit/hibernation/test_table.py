"""The life of a row: opening, sending, slow receivers, answers without waking, timers, endings."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from hibernation._sockets.outgoing import DROPPED, GONE, QUEUED, SENT
from hibernation._sockets.table import CLOSED, FAILED, MESSAGE, REPLY, WRITABLE, SocketTable
from tests.support.sockets import ANSWER, Peer, drain, frame

QUEUE = 300_000  # bytes; more than a socket pair holds by itself


@pytest.fixture
def table() -> Iterator[SocketTable]:
    """A table that must be empty when the test is over."""
    table = SocketTable(queue_bytes=QUEUE, max_frame_bytes=1 << 24, max_message_bytes=1 << 24)
    yield table
    for handle in table.handles():
        table.abort(handle)
        table.release(handle)
    counters = table.counters()
    assert {name: counters[name] for name in ("rows", "inbound_bytes", "outbound_bytes")} == {
        "rows": 0,
        "inbound_bytes": 0,
        "outbound_bytes": 0,
    }
    assert table.next_timeout() is None


@pytest.fixture
def peer(table: SocketTable) -> Iterator[Peer]:
    peer = Peer(table)
    yield peer
    peer.close()


class Packets:
    """A client that sees each write of the table as one packet."""

    def __init__(self, table: SocketTable) -> None:
        theirs, self.raw = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.raw.setblocking(False)
        self.table = table
        self.handle = table.adopt(theirs.detach(), 100.0)
        table.open(self.handle, ANSWER, 100.0)
        assert self.read() == [ANSWER]

    def read(self) -> list[bytes]:
        packets = []
        with contextlib.suppress(BlockingIOError):
            while packet := self.raw.recv(100_000):
                packets.append(packet)
        return packets

    def close(self) -> None:
        self.raw.close()
        drain(self.table)
        self.table.release(self.handle)


def fill(peer: Peer) -> int:
    """Send until the socket takes no more; returns how many messages of 50,000 bytes that were."""
    count = 1
    while peer.table.send(peer.handle, bytes(50_000)) == SENT:
        count += 1
    return count


class TestOpening:
    def test_what_is_sent_before_the_answer_follows_it_in_order(self, table: SocketTable) -> None:
        peer = Peer(table, opened=False)
        assert table.ready_state(peer.handle) == 0
        assert table.send(peer.handle, "one") == QUEUED
        assert table.broadcast([peer.handle], "two") == 1
        table.close(peer.handle, 4001, "kicked")
        table.open(peer.handle, ANSWER, 100.0)
        data = peer.raw.recv(4096)
        assert data == ANSWER + b"\x81\x03one" + b"\x81\x03two" + b"\x88\x08\x0f\xa1kicked"
        assert table.ready_state(peer.handle) == 2
        peer.close()

    def test_nothing_is_read_before_the_answer(self, table: SocketTable) -> None:
        peer = Peer(table, opened=False)
        assert peer.write(frame(1, b"early")) == []
        table.open(peer.handle, ANSWER, 100.0)
        assert drain(table) == [(MESSAGE, peer.handle, "early", None)]
        peer.close()

    def test_a_client_that_leaves_before_the_answer_is_reported(self, table: SocketTable) -> None:
        peer = Peer(table, opened=False)
        peer.close()
        assert drain(table) == [(CLOSED, peer.handle, 1006, "")]
        table.open(peer.handle, ANSWER, 100.0)
        table.refuse(peer.handle, b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert table.counters()["rows"] == 0

    def test_a_refusal_arrives_whole_and_frees_the_row(self, table: SocketTable) -> None:
        peer = Peer(table, opened=False)
        table.send(peer.handle, "never")
        table.refuse(peer.handle, b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert peer.raw.recv(4096) == b"HTTP/1.1 403 Forbidden\r\n\r\n"
        assert peer.raw.recv(1) == b""
        peer.close()
        assert drain(table) == []
        assert table.counters()["rows"] == 0

    def test_a_full_table_leaves_the_descriptor_to_the_caller(self) -> None:
        table = SocketTable(max_sockets=1)
        peer = Peer(table)
        other, end = socket.socketpair()
        with pytest.raises(OverflowError):
            table.adopt(other.fileno(), 100.0)
        other.close()
        end.close()
        peer.close()

    def test_a_descriptor_that_cannot_be_watched_is_refused(self, table: SocketTable) -> None:
        with open(os.devnull) as file, pytest.raises(OSError, match="epoll"):
            table.adopt(file.fileno(), 100.0)
        assert table.counters()["rows"] == 0

    def test_a_handle_finds_nothing_after_its_row_was_used_again(self, table: SocketTable) -> None:
        first = Peer(table)
        table.abort(first.handle)
        table.release(first.handle)
        second = Peer(table)
        assert first.handle & 0xFFFFFFFF == second.handle & 0xFFFFFFFF
        assert table.send(first.handle, "stray") == GONE
        assert table.ready_state(first.handle) == 3
        with pytest.raises(KeyError):
            table.labels(first.handle)
        assert second.texts() == []
        first.close()
        second.close()


class TestSending:
    def test_a_message_is_written_at_once_and_costs_no_queue(self, peer: Peer) -> None:
        assert peer.table.send(peer.handle, "héllo") == SENT
        assert peer.table.buffered(peer.handle) == 0
        assert peer.texts() == ["héllo"]

    def test_only_text_and_bytes_are_messages(self, peer: Peer) -> None:
        with pytest.raises(TypeError):
            peer.table.send(peer.handle, 5)  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            peer.table.send(peer.handle, "\ud800")

    def test_a_full_socket_queues_and_the_rest_arrives_in_order(self, peer: Peer) -> None:
        count = fill(peer)
        assert peer.table.send(peer.handle, "last") == QUEUED
        assert peer.table.notify_writable(peer.handle)
        events = []
        while peer.table.buffered(peer.handle):
            peer.read()
            events += peer.table.process(100.0)
        peer.read()
        assert events == [(WRITABLE, peer.handle, None, None)]
        assert not peer.table.notify_writable(peer.handle)
        assert [len(item.data) for item in peer.frames] == [50_000] * count + [4]
        assert peer.table.counters()["outbound_bytes"] == 0

    def test_a_slow_client_is_closed_with_1013_and_its_queue_emptied(self, table: SocketTable, peer: Peer) -> None:
        fill(peer)
        results = [table.send(peer.handle, bytes(50_000)) for _ in range(10)]
        assert results[:4] == [QUEUED] * 4
        assert DROPPED in results
        assert results[-1] == GONE
        assert table.ready_state(peer.handle) == 2
        assert table.counters()["outbound_bytes"] < 60_000
        assert table.counters()["closed_slow"] == 1
        while peer.protocol.close_rcvd is None:
            peer.read()
            table.process(100.0)
        assert peer.protocol.close_rcvd.code == 1013

    def test_the_other_policy_drops_the_newest_frame_and_keeps_the_client(self, table: SocketTable) -> None:
        group = table.add_group()
        table.set_slow_policy(group, 100_000, False)
        peer = Peer(table, group=group)
        fill(peer)
        results = [table.send(peer.handle, bytes(50_000)) for _ in range(5)]
        assert results[-1] == DROPPED
        assert table.ready_state(peer.handle) == 1
        assert table.buffered(peer.handle) <= 150_000
        assert table.counters()["dropped_frames"] == results.count(DROPPED)
        peer.close()

    def test_an_empty_queue_takes_one_message_of_any_size(self, table: SocketTable, peer: Peer) -> None:
        assert table.send(peer.handle, bytes(5_000_000)) == QUEUED
        while table.buffered(peer.handle):
            peer.read()
            table.process(100.0)
        peer.read()
        assert [len(item.data) for item in peer.frames] == [5_000_000]

    def test_a_broken_connection_swallows_frames_and_is_then_reported_once(self, peer: Peer) -> None:
        peer.close()
        assert {peer.table.send(peer.handle, "x") for _ in range(3)} == {GONE}
        assert drain(peer.table) == [(CLOSED, peer.handle, 1006, "")]

    @settings(max_examples=30)
    @given(st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=70_000)), min_size=1, max_size=8))
    def test_everything_sent_to_a_reading_client_arrives(self, messages: list[str | bytes]) -> None:
        table = SocketTable(queue_bytes=1 << 24)
        peer = Peer(table)
        for message in messages:
            assert table.send(peer.handle, message) in (SENT, QUEUED)
        while table.buffered(peer.handle):
            peer.read()
            table.process(100.0)
        peer.read()
        got = [bytes(item.data).decode() if item.opcode is Opcode.TEXT else bytes(item.data) for item in peer.frames]
        assert got == messages
        peer.close()


class TestOwners:
    def test_a_socket_belongs_to_the_owner_of_its_group_as_long_as_it_is_in_it(self, table: SocketTable) -> None:
        owners = [object() for _ in range(40)]  # more than there is room for at first
        groups = [table.add_group(owner) for owner in owners]
        peers = [Peer(table, group=group) for group in groups]
        assert [table.owner(peer.handle) for peer in peers] == owners
        table.assign(peers[0].handle, 0)
        table.release(peers[1].handle)
        assert [table.owner(peer.handle) for peer in peers[:3]] == [None, None, owners[2]]
        assert table.owner(peers[0].handle + 1_000_000) is None
        for peer in peers:
            peer.close()

    def test_a_group_that_is_removed_leaves_its_owner_alone(self, table: SocketTable) -> None:
        owner = ["something"]
        before = sys.getrefcount(owner)
        group = table.add_group(owner)
        table.remove_group(group)
        assert sys.getrefcount(owner) == before
        assert table.add_group() == group
        peer = Peer(table, group=group)
        assert table.owner(peer.handle) is None
        peer.close()


class TestBroadcast:
    def test_every_socket_of_the_group_gets_it_except_those_left_out(self, table: SocketTable) -> None:
        group = table.add_group()
        peers = [Peer(table, group=group) for _ in range(4)]
        stranger = Peer(table)
        table.label(peers[1].handle, [b"red", b"blue"], b"")
        table.label(peers[2].handle, [b"blue"], b"")
        assert table.broadcast_group(group, "all") == 4
        assert table.broadcast_group(group, "red", b"red") == 1
        assert table.broadcast_group(group, "blue", b"blue", frozenset([peers[1].handle])) == 1
        assert table.broadcast([peers[0].handle, stranger.handle, 12345], b"\x01") == 2
        assert [peer.texts() for peer in peers] == [["all"], ["all", "red"], ["all", "blue"], ["all"]]
        assert [bytes(item.data) for item in stranger.read()] == [b"\x01"]
        for peer in [*peers, stranger]:
            peer.close()

    def test_slow_receivers_share_the_one_encoded_frame(self, table: SocketTable) -> None:
        group = table.add_group()
        peers = [Peer(table, group=group) for _ in range(3)]
        for peer in peers:
            fill(peer)
        message = bytes(100_000)
        assert table.broadcast_group(group, message) == 3
        for peer in peers:
            while table.buffered(peer.handle):
                peer.read()
                table.process(100.0)
            peer.read()
            assert bytes(peer.frames[-1].data) == message
            peer.close()

    def test_closing_sockets_get_nothing(self, table: SocketTable) -> None:
        group = table.add_group()
        peer = Peer(table, group=group)
        table.close(peer.handle, 1000)
        assert table.broadcast_group(group, "late") == 0
        peer.close()


class TestCork:
    def test_what_is_sent_meanwhile_leaves_in_one_write(self, table: SocketTable) -> None:
        one, two = Packets(table), Packets(table)
        table.cork(one.handle)
        assert table.send(one.handle, "a") == SENT
        assert table.broadcast([one.handle, two.handle], "b") == 2
        table.send(two.handle, "c")
        assert (table.buffered(one.handle), table.buffered(two.handle)) == (6, 0)
        assert (one.read(), two.read()) == ([], [b"\x81\x01b", b"\x81\x01c"])
        table.close(one.handle, 1000)
        table.uncork()
        assert one.read() == [b"\x81\x01a\x81\x01b\x88\x02\x03\xe8"]
        assert table.buffered(one.handle) == 0
        for client in (one, two):
            client.close()

    def test_another_takes_its_place(self, table: SocketTable) -> None:
        one, two = Packets(table), Packets(table)
        table.cork(one.handle)
        table.send(one.handle, "a")
        table.cork(two.handle)
        assert one.read() == [b"\x81\x01a"]
        table.send(one.handle, "b")
        table.send(two.handle, "c")
        assert (one.read(), two.read()) == ([b"\x81\x01b"], [])
        table.cork(12345)  # of nobody
        assert two.read() == [b"\x81\x01c"]
        for client in (one, two):
            client.close()

    @pytest.mark.parametrize("sizes", [[16_000, 300, 16_000], [100, 20_000, 100], [9_000, 9_000, 9_000]])
    def test_more_than_16_kib_leaves_before_in_order(self, table: SocketTable, sizes: list[int]) -> None:
        peer = Peer(table)
        table.cork(peer.handle)
        for size in sizes:
            table.send(peer.handle, "x" * size)
        table.uncork()
        assert [len(text) for text in peer.texts()] == sizes
        peer.close()

    def test_a_full_socket_gets_it_behind_what_waits(self, table: SocketTable) -> None:
        peer = Peer(table)
        count = fill(peer)
        table.cork(peer.handle)
        assert table.send(peer.handle, "late") == QUEUED
        table.uncork()
        while table.buffered(peer.handle):
            peer.read()
            table.process(100.0)
        peer.read()
        assert [len(item.data) for item in peer.frames] == [50_000] * count + [4]
        peer.close()

    @pytest.mark.parametrize("end", ["abort", "release"])
    def test_it_has_left_when_the_connection_is_cut(self, table: SocketTable, end: str) -> None:
        client = Packets(table)
        table.cork(client.handle)
        table.send(client.handle, "last")
        getattr(table, end)(client.handle)
        assert client.raw.recv(4096) == b"\x81\x04last"
        assert client.raw.recv(4096) == b""
        client.close()
        other = Packets(table)  # in the same row
        table.send(other.handle, "hi")
        table.uncork()
        assert other.read() == [b"\x81\x02hi"]
        other.close()


class TestAnswersWithoutWaking:
    @pytest.fixture
    def group(self, table: SocketTable) -> int:
        group = table.add_group()
        table.set_auto_responses(
            group,
            [
                ("ping", "pong", False, None),
                (b"\x01", b"\x02", False, None),
                ("time:", b"binary", True, None),
                ("vip", "welcome", False, b"vip"),
            ],
        )
        return group

    def test_rules_answer_text_and_bytes_each_in_its_kind(self, table: SocketTable, group: int) -> None:
        peer = Peer(table, group=group)
        assert peer.write(frame(1, b"ping") + frame(2, b"\x01") + frame(1, b"time:now"), 105.0) == []
        assert [(item.opcode, bytes(item.data)) for item in peer.read()] == [(1, b"pong"), (2, b"\x02"), (2, b"binary")]
        assert table.auto_response_at(peer.handle) == 105.0
        assert table.counters()["auto_responses"] == 3
        peer.close()

    def test_anything_else_is_a_message(self, table: SocketTable, group: int) -> None:
        """W-10: the same bytes as binary, or a space more, do not match."""
        peer = Peer(table, group=group)
        events = peer.write(frame(2, b"ping") + frame(1, b"ping ") + frame(1, b"\x01") + frame(1, b"tim"))
        assert [event[2] for event in events] == [b"ping", "ping ", "\x01", "tim"]
        assert table.auto_response_at(peer.handle) is None
        peer.close()

    def test_the_answers_to_what_came_together_leave_in_one_write_in_order(
        self, table: SocketTable, group: int
    ) -> None:
        client = Packets(table)
        table.assign(client.handle, group)
        client.raw.send(frame(1, b"ping") * 3 + frame(9, b"?") + frame(1, b"hello") + frame(1, b"ping"))
        assert [event[2] for event in table.process(101.0)] == ["hello"]
        assert client.read() == [b"\x81\x04pong" * 3 + b"\x8a\x01?" + b"\x81\x04pong"]
        client.raw.send(frame(1, b"ping") + frame(8, b"\x03\xe8"))
        table.process(102.0)
        assert client.raw.recv(4096) == b"\x81\x04pong" + b"\x88\x02\x03\xe8"
        client.close()

    def test_more_answers_than_the_socket_takes_arrive_in_order(self, table: SocketTable, group: int) -> None:
        table.set_auto_responses(group, [("p", "a" * 1000, False, None), ("q", "b" * 2000, False, None)])
        peer = Peer(table, group=group)
        for _ in range(10):
            peer.write(frame(1, b"p") + frame(1, b"q") + frame(1, b"q"))
        assert table.buffered(peer.handle) == 0
        texts = []
        peer.write((frame(1, b"p") + frame(1, b"q")) * 100)
        assert table.buffered(peer.handle) > 0
        while True:
            texts += peer.texts()
            drain(table)
            if not table.buffered(peer.handle):
                break
        texts += peer.texts()
        assert texts == ["a" * 1000, "b" * 2000, "b" * 2000] * 10 + ["a" * 1000, "b" * 2000] * 100
        peer.close()

    def test_a_fragmented_request_matches_too(self, table: SocketTable, group: int) -> None:
        peer = Peer(table, group=group)
        assert peer.write(frame(1, b"pi", fin=False) + frame(0, b"ng")) == []
        assert peer.texts() == ["pong"]
        peer.close()

    def test_a_rule_with_a_tag_is_for_sockets_with_that_tag(self, table: SocketTable, group: int) -> None:
        plain, vip = Peer(table, group=group), Peer(table, group=group)
        table.label(vip.handle, [b"x", b"vip"], b"")
        assert [event[2] for event in plain.write(frame(1, b"vip"))] == ["vip"]
        assert vip.write(frame(1, b"vip")) == []
        assert vip.texts() == ["welcome"]
        plain.close()
        vip.close()

    def test_a_reply_queues_behind_unsent_messages(self, table: SocketTable, group: int) -> None:
        peer = Peer(table, group=group)
        fill(peer)
        table.send(peer.handle, "before")
        peer.write(frame(1, b"ping"))
        while table.buffered(peer.handle):
            peer.read()
            table.process(100.0)
        peer.read()
        assert [bytes(item.data) for item in peer.frames[-2:]] == [b"before", b"pong"]
        peer.close()

    def test_changing_the_rules_does_not_disturb_a_reply_under_way(self, table: SocketTable, group: int) -> None:
        """W-13."""
        peer = Peer(table, group=group)
        fill(peer)
        peer.write(frame(1, b"ping"))
        table.set_auto_responses(group, [])
        while table.buffered(peer.handle):
            peer.read()
            table.process(100.0)
        peer.read()
        assert bytes(peer.frames[-1].data) == b"pong"
        assert [event[2] for event in peer.write(frame(1, b"ping"))] == ["ping"]
        peer.close()

    def test_after_our_close_there_is_no_reply_but_the_time_moves(self, table: SocketTable, group: int) -> None:
        peer = Peer(table, group=group)
        table.close(peer.handle, 1000)
        assert peer.write(frame(1, b"ping"), 107.0) == []
        assert table.auto_response_at(peer.handle) == 107.0
        assert peer.texts() == []
        peer.close()

    def test_a_held_socket_hands_its_replies_up(self, table: SocketTable, group: int) -> None:
        peer = Peer(table, group=group)
        table.hold(peer.handle, True)
        assert peer.write(frame(1, b"ping")) == [(REPLY, peer.handle, "pong", None)]
        table.hold(peer.handle, False)
        table.hold_group(group, True)
        assert peer.write(frame(2, b"\x01")) == [(REPLY, peer.handle, b"\x02", None)]
        table.hold_group(group, False)
        assert peer.write(frame(1, b"ping")) == []
        assert peer.texts() == ["pong"]
        peer.close()

    def test_pings_are_answered_with_their_payload_and_without_an_event(self, peer: Peer) -> None:
        assert peer.write(frame(9, b"pp") + frame(10, b"unasked")) == []
        assert [(item.opcode, bytes(item.data)) for item in peer.read()] == [(Opcode.PONG, b"pp")]

    def test_a_flood_of_pings_from_a_client_that_does_not_read_stays_bounded(self, peer: Peer) -> None:
        for _ in range(100):
            peer.write(frame(9, b"x" * 125) * 100)
        assert peer.table.counters()["outbound_bytes"] < 20_000
        assert peer.table.ready_state(peer.handle) == 1


class TestClosing:
    def test_a_clients_close_is_echoed_at_once_and_reported(self, table: SocketTable, peer: Peer) -> None:
        peer.protocol.send_close(4321, "foo")
        assert peer.flush() == [(CLOSED, peer.handle, 4321, "foo")]
        peer.read()
        assert peer.protocol.close_rcvd is not None
        assert (peer.protocol.close_rcvd.code, peer.protocol.close_rcvd.reason) == (4321, "foo")
        assert table.ready_state(peer.handle) == 3
        assert peer.write(frame(1, b"late")) == []

    def test_a_bare_close_is_answered_too(self, table: SocketTable, peer: Peer) -> None:
        """Party 29: both Yjs providers close so."""
        assert peer.write(frame(8)) == [(CLOSED, peer.handle, 1005, "")]
        assert peer.raw.recv(100) == b"\x88\x00"
        assert peer.raw.recv(1) == b""

    def test_our_close_waits_for_the_clients_answer(self, table: SocketTable, peer: Peer) -> None:
        table.close(peer.handle, 4001, "bye")
        table.close(peer.handle, 4002, "ignored")
        assert table.send(peer.handle, "late") == GONE
        assert table.ready_state(peer.handle) == 2
        peer.read()
        assert peer.write(frame(1, b"still") + frame(8, b"\x0f\xa1bye")) == [
            (MESSAGE, peer.handle, "still", None),
            (CLOSED, peer.handle, 4001, "bye"),
        ]

    def test_a_client_that_never_answers_is_cut_after_the_timeout(self, table: SocketTable, peer: Peer) -> None:
        table.close(peer.handle, 1000)
        table.process(100.0)
        assert table.handle_timeout(104.0) == []
        assert table.handle_timeout(106.0) == [(CLOSED, peer.handle, 1006, "")]
        assert peer.raw.recv(100) == b"\x88\x02\x03\xe8"
        assert peer.raw.recv(1) == b""

    def test_a_client_that_goes_on_talking_after_the_end_is_cut(self, table: SocketTable, peer: Peer) -> None:
        peer.write(frame(8))
        for _ in range(40):
            peer.write(bytes(50_000))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            peer.raw.send(b"x")

    def test_a_client_that_keeps_its_end_open_is_freed_after_the_timeout(self, table: SocketTable, peer: Peer) -> None:
        peer.write(frame(8))
        table.release(peer.handle)
        assert table.counters()["rows"] == 1
        assert table.handle_timeout(106.0) == []
        assert table.counters()["rows"] == 0

    def test_a_lost_client_is_1006_once(self, table: SocketTable, peer: Peer) -> None:
        peer.close()
        assert drain(table) == [(CLOSED, peer.handle, 1006, "")]
        assert drain(table) == []
        assert table.ready_state(peer.handle) == 3

    def test_labels_and_attachment_stay_until_release(self, table: SocketTable, peer: Peer) -> None:
        table.label(peer.handle, [b"a"], b"info")
        table.attach(peer.handle, b"kept")
        peer.close()
        drain(table)
        assert table.labels(peer.handle) == ([b"a"], b"info")
        assert table.attachment(peer.handle) == b"kept"
        table.release(peer.handle)
        with pytest.raises(KeyError):
            table.attachment(peer.handle)

    def test_an_abort_is_abrupt_and_silent(self, table: SocketTable, peer: Peer) -> None:
        table.abort(peer.handle)
        assert drain(table) == []
        assert peer.raw.recv(10) == b""

    @pytest.mark.parametrize(
        ("code", "reason"), [(999, ""), (1004, ""), (1005, ""), (1006, ""), (1015, ""), (5000, ""), (0, "why")]
    )
    def test_codes_that_may_not_be_sent_are_refused(self, peer: Peer, code: int, reason: str) -> None:
        with pytest.raises(ValueError):
            peer.table.close(peer.handle, code, reason)
        assert peer.table.ready_state(peer.handle) == 1

    def test_a_reason_has_123_bytes(self, peer: Peer) -> None:
        with pytest.raises(ValueError):
            peer.table.close(peer.handle, 1000, "é" * 62)
        peer.table.close(peer.handle, 1000, "é" * 61)
        peer.read()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.reason == "é" * 61


class TestTimers:
    def test_a_silent_client_is_pinged_and_lives_if_anything_comes(self) -> None:
        table = SocketTable(ping_interval=20.0, ping_timeout=20.0, tick=0.5)
        peer = Peer(table)
        assert table.next_timeout() is not None
        assert table.handle_timeout(119.0) == []
        assert peer.raw.recv(2) if _waiting(peer) else b"" == b""
        assert table.handle_timeout(121.0) == []
        assert peer.raw.recv(2) == b"\x89\x00"
        peer.write(frame(10), 130.0)
        assert table.handle_timeout(149.0) == []
        assert not _waiting(peer)
        table.handle_timeout(151.0)
        assert peer.raw.recv(2) == b"\x89\x00"
        assert table.counters()["pings_sent"] == 2
        peer.close()

    def test_a_client_that_answers_no_ping_is_gone(self) -> None:
        table = SocketTable(ping_interval=20.0, ping_timeout=10.0)
        peer = Peer(table)
        events = [event for now in range(100, 140) for event in table.handle_timeout(float(now))]
        assert events == [(CLOSED, peer.handle, 1006, "")]
        assert peer.raw.recv(100) == b"\x89\x00\x88\x18\x03\xf3keepalive ping timeout"
        table.release(peer.handle)
        table.handle_timeout(145.0)
        assert table.counters()["rows"] == 0
        peer.close()

    def test_a_client_that_only_pongs_is_idle(self) -> None:
        table = SocketTable(ping_interval=0.0, idle_timeout=60.0)
        peer = Peer(table)
        peer.write(frame(1, b"x"), 110.0)
        for now in range(111, 170, 5):
            peer.write(frame(10), float(now))
            assert table.handle_timeout(float(now)) == []
        assert table.handle_timeout(171.0) == []
        peer.read()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1001
        peer.close()

    def test_a_paused_client_is_not_blamed_for_our_silence(self) -> None:
        table = SocketTable(ping_interval=20.0, ping_timeout=10.0, idle_timeout=30.0)
        peer = Peer(table)
        table.pause(peer.handle)
        assert [event for now in range(100, 300) for event in table.handle_timeout(float(now))] == []
        table.resume(peer.handle, 300.0)
        assert peer.write(frame(1, b"x"), 300.0) == [(MESSAGE, peer.handle, "x", None)]
        peer.close()

    @pytest.mark.parametrize("limits", [{"idle_timeout": 30.0}, {"message_timeout": 30.0}, {}])
    def test_the_silence_of_a_paused_client_begins_when_it_is_read_again(self, limits: dict[str, float]) -> None:
        """Whatever moment the table has seen last: it may be long ago."""
        table = SocketTable(ping_interval=20.0, ping_timeout=5.0, **limits)
        peer = Peer(table)
        assert peer.write(frame(1, b"unfinished")[:-3], 100.0) == []
        table.pause(peer.handle)
        assert table.handle_timeout(119.0) == []
        table.resume(peer.handle, 148.0)
        assert table.handle_timeout(149.0) == []
        peer.read()
        assert peer.protocol.close_rcvd is None
        assert table.counters()["pings_sent"] == 0
        assert table.handle_timeout(167.0) == []
        assert table.counters()["pings_sent"] == 0
        table.handle_timeout(169.0)
        assert table.counters()["pings_sent"] == 1
        peer.close()

    def test_without_timeouts_no_row_waits_for_a_time(self) -> None:
        table = SocketTable(ping_interval=0.0)
        peer = Peer(table)
        assert table.next_timeout() is None
        peer.close()

    def test_a_table_where_nothing_happens_asks_for_nothing(self) -> None:
        table = SocketTable(ping_interval=0.0)
        peers = [Peer(table) for _ in range(100)]
        for peer in peers:
            peer.write(frame(1, b"hello"))
            table.send(peer.handle, "hello")
        assert table.next_timeout() is None
        assert not rings(table)
        for peer in peers:
            peer.close()

    def test_patience_with_a_close_counts_from_the_close_and_not_from_the_last_event(self) -> None:
        """Nobody has told the table the time for hours: it asks for it."""
        table = SocketTable(ping_interval=0.0, close_timeout=5.0)
        peer = Peer(table, 100.0)
        assert table.next_timeout() is None
        table.close(peer.handle, 1000)
        assert rings(table)
        assert table.handle_timeout(10_000.0) == []
        assert table.process(10_000.0) == []
        assert not rings(table)
        due = table.next_timeout()
        assert due is not None
        assert 10_005.0 <= due <= 10_005.5
        assert table.handle_timeout(10_004.9) == []
        assert table.handle_timeout(due) == [(CLOSED, peer.handle, 1006, "")]
        assert table.next_timeout() is None
        peer.close()

    def test_patience_with_a_slow_client_counts_from_the_message_that_was_too_much(self) -> None:
        table = SocketTable(ping_interval=0.0, close_timeout=5.0, queue_bytes=1000)
        peer = Peer(table, 100.0)
        while table.send(peer.handle, bytes(50_000)) != DROPPED:
            pass
        assert rings(table)
        table.process(10_000.0)
        due = table.next_timeout()
        assert due is not None
        assert 10_005.0 <= due <= 10_005.5
        assert table.handle_timeout(due) == [(CLOSED, peer.handle, 1006, "")]
        peer.close()

    def test_a_refused_client_has_its_time_from_the_refusal(self) -> None:
        table = SocketTable(ping_interval=0.0, close_timeout=5.0)
        peer = Peer(table, 100.0, opened=False)
        table.refuse(peer.handle, b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert rings(table)
        table.process(10_000.0)
        table.handle_timeout(10_004.9)
        assert table.counters()["rows"] == 1
        table.handle_timeout(10_005.5)
        assert table.counters()["rows"] == 0
        peer.close()

    def test_a_row_that_ends_before_the_time_is_told_needs_none(self) -> None:
        table = SocketTable(ping_interval=0.0)
        peers = [Peer(table) for _ in range(3)]
        for peer in peers:
            table.close(peer.handle)
        for i in (1, 0, 2):
            table.release(peers[i].handle)
        assert table.process(10_000.0) == []
        assert table.next_timeout() is None
        assert table.counters()["rows"] == 0
        for peer in peers:
            peer.close()

    def test_the_bell_rings_only_for_what_is_nearer_than_was_told(self) -> None:
        table = SocketTable(ping_interval=20.0, close_timeout=60.0)
        first = Peer(table, 100.0)
        assert rings(table)
        table.process(100.0)
        told = table.next_timeout()
        assert told is not None
        assert 120.0 <= told <= 120.5
        second = Peer(table, 110.0)
        assert not rings(table)
        assert table.next_timeout() == told
        for peer in (first, second):
            peer.close()

    @settings(max_examples=50)
    @given(st.lists(st.floats(0.0, 400.0), min_size=1, max_size=20))
    def test_driven_only_when_it_asks_each_row_is_served_at_its_time(self, begun: list[float]) -> None:
        """And is looked at no oftener than once in the wheel's 255 s, or once per row and deadline."""
        table = SocketTable(ping_interval=300.0, ping_timeout=1e9, tick=0.5)
        coming = sorted(begun)
        here: list[tuple[float, Peer]] = []
        calls = 0
        while coming or here:
            due = table.next_timeout()
            if due is None or (coming and coming[0] < due):
                here.append((coming[0], Peer(table, coming.pop(0))))
                continue
            calls += 1
            table.handle_timeout(due)
            for at, peer in here[:]:
                if _waiting(peer):
                    assert at + 300.0 <= due <= at + 300.5
                    table.abort(peer.handle)
                    peer.close()
                    here.remove((at, peer))
                else:
                    assert due < at + 300.5
        assert table.next_timeout() is None
        assert calls <= 2 * len(begun)

    @settings(max_examples=50)
    @given(st.lists(st.floats(0.1, 700.0), min_size=1, max_size=30))
    def test_a_timeout_is_never_early_and_late_by_a_tick_at_most(self, steps: list[float]) -> None:
        """However time moves, also past the wheel's horizon of 256 s and over several turns at once."""
        table = SocketTable(ping_interval=300.0, ping_timeout=1e9, tick=0.5)
        peer = Peer(table, 100.0)
        now, pinged = 100.0, False
        for step in steps:
            now += step
            table.handle_timeout(now)
            pinged = pinged or _waiting(peer)
            assert pinged or now < 400.0 + 0.5 + 1e-6
            assert not pinged or now >= 400.0 - 1e-6
        peer.close()


def rings(table: SocketTable) -> bool:
    """Whether the table wants to be called."""
    return bool(select.select([table.fileno()], [], [], 0)[0])


def _waiting(peer: Peer) -> bool:
    try:
        return bool(peer.raw.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


class TestPausing:
    def test_a_paused_socket_is_not_read(self, peer: Peer) -> None:
        peer.table.pause(peer.handle)
        assert peer.write(frame(1, b"a") + frame(1, b"b")) == []
        peer.table.resume(peer.handle, 100.0)
        assert [event[2] for event in drain(peer.table)] == ["a", "b"]

    def test_a_paused_socket_that_hangs_up_keeps_what_it_sent(self, peer: Peer) -> None:
        peer.table.pause(peer.handle)
        peer.write(frame(1, b"last words"))
        peer.close()
        assert drain(peer.table) == []
        peer.table.resume(peer.handle, 100.0)
        assert [event[0] for event in drain(peer.table)] == [MESSAGE, CLOSED]

    def test_one_read_reports_a_bounded_number_of_messages(self, table: SocketTable, peer: Peer) -> None:
        peer.raw.send(frame(1) * 20_000)
        assert len(table.process(100.0)) <= 16_384 // 6 + 1


class TestGroups:
    def test_lists_are_oldest_first_and_by_tag(self, table: SocketTable) -> None:
        group = table.add_group()
        peers = [Peer(table, group=group) for _ in range(3)]
        for i, peer in enumerate(peers):
            table.label(peer.handle, [b"all", b"odd" if i % 2 else b"even"], b"")
        handles = [peer.handle for peer in peers]
        assert table.rows(group) == handles
        assert table.rows(group, b"even") == [handles[0], handles[2]]
        assert table.rows(group, b"eve") == []
        assert (table.count(group), table.count(group, b"odd"), table.count(group, b"none")) == (3, 1, 0)
        table.assign(handles[1], 0)
        assert table.rows(group) == [handles[0], handles[2]]
        for peer in peers:
            peer.close()

    def test_a_group_with_sockets_stays_and_its_number_is_used_again(self, table: SocketTable) -> None:
        group = table.add_group()
        peer = Peer(table, group=group)
        with pytest.raises(ValueError):
            table.remove_group(group)
        table.abort(peer.handle)
        table.release(peer.handle)
        table.remove_group(group)
        with pytest.raises(KeyError):
            table.count(group)
        assert table.add_group() == group
        with pytest.raises(ValueError):
            table.remove_group(0)
        peer.close()

    def test_many_groups_and_rows_come_and_go(self, table: SocketTable) -> None:
        groups = [table.add_group() for _ in range(100)]
        assert len(set(groups)) == 100
        for group in groups[::2]:
            table.remove_group(group)
        assert table.counters()["groups"] == 50
        again = [table.add_group() for _ in range(50)]
        assert sorted(again) == sorted(groups[::2])

    def test_a_protocol_error_on_one_socket_leaves_the_others_alone(self, table: SocketTable) -> None:
        group = table.add_group()
        good, bad = Peer(table, group=group), Peer(table, group=group)
        assert [event[0] for event in bad.write(frame(3))] == [FAILED]
        assert good.write(frame(1, b"fine")) == [(MESSAGE, good.handle, "fine", None)]
        good.close()
        bad.close()
