"""`MediaClient`: the plane, its thread, and what Python does for connected peers: consent, DTLS alerts, pictures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from loadtest._media import srtp
from loadtest._media.plane import UPCALL_DIRECT, UPCALL_MEDIA, Plane
from loadtest.histogram import Histogram
from loadtest.media.clips import Clip
from loadtest.media.figures import ClientFigures
from loadtest.media.payloads import MAGIC, TAIL_BYTES
from loadtest.media.peer import MediaPeer
from loadtest.media.relay import RelayedPeer
from loadtest.media.turn_server import TurnServer

CONSENT_INTERVAL: Final = 5.0  # RFC 7675 §5.1, times 0.8 to 1.2
CONSENT_TIMEOUT: Final = 30.0
_TICK: Final = 0.25
_PRIORITY: Final = -5  # nice
_UPCALL_BYTES: Final = 4096
_UPCALL_BUFFER_BYTES: Final = 4 * 1024 * 1024
_UPCALL_HEAD: Final = struct.Struct("!II")
_PREFIX: Final = struct.Struct("!I")


class Link:
    """One connected peer, served by the plane until `close`.

    Attributes:
        id: the plane's.
        failure: why it is dead, or empty.
        on_media: called with (stream, seq, marker, timestamp, payload) for streams that are handed up.
    """

    def __init__(self, plane: Plane, peer: MediaPeer, *, transport_cc_id: int) -> None:
        assert peer.keys is not None
        self._plane = plane
        self.peer = peer
        self.failure = ""
        self.on_media: Callable[[int, int, bool, int, bytes], None] | None = None
        self.next_check = time.monotonic() + CONSENT_INTERVAL * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)
        self._sending = srtp.create_session(peer.keys.profile, peer.keys.send, inbound=False)
        self._receiving = srtp.create_session(peer.keys.profile, peer.keys.receive, inbound=True)
        self.id = plane.add_peer(
            peer.socket.fileno(),
            *peer.target,
            channel=peer.channel,
            sending=self._sending,
            receiving=self._receiving,
            ssrc=secrets.randbelow(2**31) + 1,
            transport_cc_id=transport_cc_id,
        )

    def check(self, now: float) -> None:
        """Keep consent fresh, and see whether it was lost."""
        if self.peer.closed_by_server:
            self.failure = self.failure or "closed by the server"
        elif now - self.peer.consent_at > CONSENT_TIMEOUT:
            self.failure = self.failure or "consent lost: no answer to checks for 30 s"
        elif now >= self.next_check:
            self.next_check = now + CONSENT_INTERVAL * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)
            with contextlib.suppress(OSError):
                self.peer.check()

    def close(self) -> None:
        """Take it from the plane, say close_notify, free the keys."""
        self._plane.remove_peer(self.id)
        self.peer.close()
        srtp.destroy_session(self._sending)
        srtp.destroy_session(self._receiving)


def _run(plane: Plane) -> None:
    """The thread goes before the joining of others in this process, where the system lets it."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
    plane.run()


class MediaClient:
    """All media of one process: an asynchronous context manager.

    Args:
        host: local address to send from; its family decides between IPv4 and IPv6.
        relay: send and receive all media through allocations on this TURN server.
    """

    def __init__(self, *, host: str = "127.0.0.1", relay: TurnServer | None = None) -> None:
        self.host = host
        self._relay = relay
        self._links: dict[int, Link] = {}
        self._clips: dict[tuple[str, int], int] = {}
        self._dropped = 0
        self.decode_seconds = 0.0
        self._plane: Plane | None = None
        self._thread: threading.Thread | None = None
        self._consent: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._upcalls, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._upcalls.setblocking(False)
        self._writer.setblocking(False)
        self._writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UPCALL_BUFFER_BYTES)
        self._plane = Plane(self._writer.fileno(), magic=MAGIC, tail_bytes=TAIL_BYTES)
        self._thread = threading.Thread(target=_run, args=(self._plane,), name="media plane", daemon=True)
        self._thread.start()
        asyncio.get_running_loop().add_reader(self._upcalls, self._read_upcalls)
        self._consent = asyncio.create_task(self._keep_consent())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._consent is not None
        assert self._thread is not None
        self._consent.cancel()
        for link in list(self._links.values()):
            self.release(link)
        asyncio.get_running_loop().remove_reader(self._upcalls)
        self.plane.stop()
        await asyncio.to_thread(self._thread.join)
        self._upcalls.close()
        self._writer.close()

    @property
    def plane(self) -> Plane:
        """Of a started client."""
        assert self._plane is not None
        return self._plane

    def new_peer(self) -> MediaPeer:
        """One that connects as this client is told to: directly, or through the relay."""
        return MediaPeer(host=self.host) if self._relay is None else RelayedPeer(self._relay, host=self.host)

    def serve(self, peer: MediaPeer, *, transport_cc_id: int) -> Link:
        """Hand a connected peer to the plane. Add its streams, then `plane.start_peer`."""
        link = Link(self.plane, peer, transport_cc_id=transport_cc_id)
        self._links[link.id] = link
        return link

    def release(self, link: Link) -> None:
        """Close a link. Idempotent."""
        if self._links.pop(link.id, None) is link:
            self._dropped += link.peer.dropped()
            link.close()

    def clip(self, clip: Clip) -> int:
        """The plane's id of a clip, which is copied there once."""
        key = clip.codec, clip.height
        if key not in self._clips:
            frames = [[(payload.data, payload.clock) for payload in frame] for frame in clip.payloads()]
            self._clips[key] = self.plane.add_clip(
                frames, clip.keyframes, clip.frames_per_second, clip.clock_rate, clip.codec == "VP8"
            )
        return self._clips[key]

    def figures(self) -> ClientFigures:
        """The client's own share so far."""
        values = self.plane.figures()
        return ClientFigures(
            seconds=values["seconds"],
            cpu_seconds=values["cpu_seconds"],
            sent=values["sent"],
            received=values["received"],
            dropped_sending=values["dropped_sending"],
            dropped_receiving=self._dropped + sum(link.peer.dropped() for link in self._links.values()),
            schedules_dropped=values["schedules_dropped"],
            send_lag=Histogram.from_json(values["lag"]),
            decode_seconds=self.decode_seconds,
        )

    async def _keep_consent(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for link in list(self._links.values()):
                link.check(now)

    def _read_upcalls(self) -> None:
        for _ in range(256):
            try:
                message = self._upcalls.recv(_UPCALL_BYTES)
            except BlockingIOError:
                return
            kind, peer = _UPCALL_HEAD.unpack_from(message)
            link = self._links.get(peer)
            if link is None:
                continue
            data = message[_UPCALL_HEAD.size :]
            if kind == UPCALL_MEDIA:
                if link.on_media is not None:
                    stream, seq = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
                    link.on_media(stream, seq, bool(data[4]), _PREFIX.unpack_from(data, 8)[0], data[12:])
            elif kind == UPCALL_DIRECT and isinstance(link.peer, RelayedPeer):
                link.peer.receive_from_relay(data)
            else:
                link.peer.receive(data)
