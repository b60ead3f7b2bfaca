"""A data plane that forwards nothing and remembers everything it was told, for tests of the Python half.

It keeps the contract of `plane.pyi` where Python could break it: unknown ids raise KeyError, SSRCs must be new to a
transport's whole life, and everything added must be removed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from typing import Any


class FakePlane:
    """Takes the place of `sfu._dataplane.plane.Plane`."""

    def __init__(self, *, port: int = 40000, max_tracks: int = 10_000) -> None:
        self.port = port
        self.max_tracks = max_tracks
        self.sent: list[tuple[bytes, tuple[int, str, int]]] = []
        self.transports: dict[int, dict[str, Any]] = {}
        self.tracks: dict[int, dict[str, Any]] = {}
        self.forwarders: dict[int, dict[str, Any]] = {}
        self.running = False
        self._ids = itertools.count(1)
        self._upcalls: deque[tuple[Any, ...]] = deque()
        self._eventfd: int | None = None

    # -- life

    def start(self) -> None:
        self.running = True

    def close(self) -> None:
        self.running = False
        if self._eventfd is not None:
            os.close(self._eventfd)
            self._eventfd = None

    def fileno(self) -> int:
        if self._eventfd is None:
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        return self._eventfd

    def push(self, *upcall: Any) -> None:
        """Hand something up, as a forwarding thread would."""
        self._upcalls.append(upcall)
        os.eventfd_write(self.fileno(), 1)

    def drain(self, limit: int = 256) -> list[tuple[Any, ...]]:
        taken = [self._upcalls.popleft() for _ in range(min(limit, len(self._upcalls)))]
        if not self._upcalls and self._eventfd is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)
        return taken

    def send_datagram(self, data: bytes, path: tuple[int, str, int]) -> bool:
        self.sent.append((data, path))
        return True

    def take_sent(self) -> list[tuple[bytes, tuple[int, str, int]]]:
        sent, self.sent = self.sent, []
        return sent

    # -- graph

    def add_transport(self) -> int:
        number = next(self._ids)
        self.transports[number] = {"tuples": [], "selected": None, "keys": None, "sending": True, "ssrcs": set()}
        return number

    def remove_transport(self, transport: int) -> None:
        del self.transports[transport]
        self.tracks = {n: track for n, track in self.tracks.items() if track["transport"] != transport}
        self.forwarders = {n: f for n, f in self.forwarders.items() if f["transport"] != transport}

    def add_tuple(self, transport: int, path: tuple[int, str, int]) -> None:
        self.transports[transport]["tuples"].append(path)

    def select_tuple(self, transport: int, path: tuple[int, str, int]) -> None:
        assert path in self.transports[transport]["tuples"]
        self.transports[transport]["selected"] = path

    def set_keys(self, transport: int, profile: int, send_key: bytes, receive_key: bytes) -> None:
        self.transports[transport]["keys"] = (profile, send_key, receive_key)

    def set_sending(self, transport: int, sending: bool) -> None:
        self.transports[transport]["sending"] = sending

    def add_track(self, transport: int, **section: Any) -> int:
        assert transport in self.transports
        check_section(**section)
        if len(self.tracks) >= self.max_tracks:
            raise OverflowError("track table is full")
        number = next(self._ids)
        self.tracks[number] = {"transport": transport, **section}
        return number

    def update_track(self, track: int, **section: Any) -> None:
        check_section(mid=self.tracks[track]["mid"], **section)
        assert self.tracks[track]["rids"] == section["rids"]
        self.tracks[track].update(section)

    def remove_track(self, track: int) -> None:
        del self.tracks[track]

    def request_keyframe(self, track: int, rid: str = "") -> None:
        assert track in self.tracks

    def add_forwarder(self, transport: int, **section: Any) -> int:
        used = self.transports[transport]["ssrcs"]
        for ssrc in (section["ssrc"], section["rtx_ssrc"]):
            assert ssrc not in used or ssrc == 0, "SRTP-4"
            used.add(ssrc)
        number = next(self._ids)
        self.forwarders[number] = {"transport": transport, "source": None, "paused": False, **section}
        return number

    def set_source(self, forwarder: int, track: int, **how: Any) -> None:
        assert track == 0 or track in self.tracks
        self.forwarders[forwarder]["source"] = (track, how)

    def set_paused(self, forwarder: int, paused: bool) -> None:
        self.forwarders[forwarder]["paused"] = paused

    def remove_forwarder(self, forwarder: int) -> None:
        del self.forwarders[forwarder]

    # -- figures

    def stats(self) -> dict[str, int]:
        return {"packets_in": 0}

    def latency_histogram(self) -> list[int]:
        return [0] * 24

    def batch_histogram(self) -> list[int]:
        return [0] * 8

    def transport_stats(self, transport: int) -> dict[str, int | float]:
        return {"rtt": 0.0, "sending": int(self.transports[transport]["sending"])}

    def track_stats(self, track: int) -> list[dict[str, int | float | str]]:
        return [{"rid": rid, "packets": 0} for rid in self.tracks[track]["rids"] or ("",)]

    def forwarder_stats(self, forwarder: int) -> dict[str, int | float]:
        return {"packets": 0, "plis_in": 0} if forwarder in self.forwarders else {}


def check_section(*, mid: str, codecs: Any, extensions: Any, rids: Any, ssrcs: Any, video: bool = True) -> None:
    """The values that the real plane refuses with ValueError."""
    assert len(mid.encode()) <= 32
    assert len(rids) <= 8
    assert len(set(rids)) == len(rids)
    assert all(0 < len(rid) <= 16 for rid in rids)
    for payload_type, codec in codecs.items():
        assert 0 <= payload_type < 128
        assert -1 <= codec["apt"] < 128
        assert codec["clock_rate"] > 0
    assert all(1 <= wire_id <= 255 and internal > 0 for wire_id, internal in extensions.items())
    assert all(0 < media < 2**32 and 0 <= rtx < 2**32 for media, rtx in ssrcs)
    assert len(ssrcs) <= max(1, len(rids))
