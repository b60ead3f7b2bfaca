"""A light WebRTC peer: real ICE checks, DTLS and SRTP keys, and nothing that decodes.

It talks to servers that are ICE-lite (ours, and peers configured so): the server's candidates are in its description,
and our address is learnt from our checks. Connecting is asyncio. Once connected, `socket` and `keys` are there for a
loop that sends or counts packets as fast as it likes; STUN and DTLS that it meets go to `receive`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time

from loadtest.media import sdp
from loadtest.media.dtls import DtlsClient, HandshakeFailed, SrtpKeys
from wire import stun
from wire.errors import WireError

_CHECK_INTERVAL = 0.1  # seconds between checks while connecting
_FIRST_REPEAT, _REPEAT_MAX = 0.05, 1.0  # seconds before a DTLS flight is sent again, as browsers do
_PRIORITY = (110 << 24) + (65535 << 8) + 255  # a peer-reflexive candidate (RFC 8445 §5.1.2.1)
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_SO_RCVBUFFORCE, _SO_MEMINFO, _MEMINFO_DROPS = 33, 55, 8  # asm-generic/socket.h, linux/sock_diag.h


class ConnectFailed(Exception):
    """ICE or DTLS did not finish in time, or the server refused."""


class MediaPeer:
    """One peer on one UDP socket. Exchange descriptions with the server's API, then `connect`; `close` at the end.

    Attributes:
        ufrag, password: our ICE credentials.
        keys: SRTP keys, once connected.
        target: where datagrams go; known to `connect`.
        channel: the TURN channel they go through, 0 for none.
        consent_at: monotonic time of the last answered check (RFC 7675).
    """

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        self.ufrag = secrets.token_urlsafe(6)
        self.password = secrets.token_urlsafe(18)
        self.keys: SrtpKeys | None = None
        self.target: tuple[str, int] = ("", 0)
        self.channel = 0
        self.consent_at = 0.0
        self._tie_breaker = secrets.token_bytes(8)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(self._family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((host, 0))
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except OSError:  # not root: what rmem_max allows
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._dtls: DtlsClient | None = None
        self._checked: asyncio.Future[None] | None = None
        self._handshaken: asyncio.Future[None] | None = None
        self._remote: sdp.RemoteDescription | None = None

    @property
    def closed_by_server(self) -> bool:
        """Whether it said close_notify."""
        return self._dtls is not None and self._dtls.closed

    def dropped(self) -> int:
        """Datagrams that the kernel threw away because nobody read the socket in time."""
        if self.socket.fileno() < 0:
            return 0
        info = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        return int.from_bytes(info[4 * _MEMINFO_DROPS : 4 * _MEMINFO_DROPS + 4], "little")

    async def connect(self, remote: sdp.RemoteDescription, within: float = 10.0) -> SrtpKeys:
        """Check until the server answers, nominate, shake hands. Raises `ConnectFailed`."""
        loop = asyncio.get_running_loop()
        self._remote = remote
        self._checked, self._handshaken = loop.create_future(), loop.create_future()
        candidate = next((c for c in remote.candidates if (":" in c[0]) == (self._family == socket.AF_INET6)), None)
        if candidate is None:
            raise ConnectFailed("the server's description has no candidate of our address family")
        try:
            async with asyncio.timeout(within):
                await self._open_path(candidate)
                loop.add_reader(self.socket, self._read)
                while not self._checked.done():
                    self.check()
                    await asyncio.wait([self._checked], timeout=_CHECK_INTERVAL)
                self._checked.result()
                self._dtls = DtlsClient(remote.fingerprint)
                self._dtls.start()
                self._flush()
                await self._repeat_flights(self._dtls, self._handshaken)
                self._handshaken.result()
        except (TimeoutError, HandshakeFailed, OSError) as error:
            raise ConnectFailed(str(error) or f"no answer within {within} s") from error
        finally:
            loop.remove_reader(self.socket)
        assert self._dtls.keys is not None
        self.keys = self._dtls.keys
        return self.keys

    def check(self) -> None:
        """Send one connectivity (or, later, consent) check; nominates at once, as an ICE-lite server allows."""
        assert self._remote is not None
        request = stun.serialize(
            stun.Method.BINDING,
            stun.MessageClass.REQUEST,
            secrets.token_bytes(12),
            [
                (stun.Attr.USERNAME, f"{self._remote.ufrag}:{self.ufrag}".encode()),
                (stun.Attr.PRIORITY, stun.uint32(_PRIORITY)),
                (stun.Attr.ICE_CONTROLLING, self._tie_breaker),
                (stun.Attr.USE_CANDIDATE, b""),
            ],
            key=self._remote.password.encode(),
            with_fingerprint=True,
        )
        self._send(request)

    def receive(self, data: bytes) -> None:
        """One datagram from the server; what is neither STUN nor DTLS is ignored."""
        if data[:1] <= b"\x03":
            with contextlib.suppress(WireError):
                self._receive_stun(stun.parse(data))
        elif 20 <= data[0] <= 63 and self._dtls is not None:
            self._receive_dtls(data)

    def close(self) -> None:
        """Say close_notify, so that the server frees the session now, and free the socket. Idempotent."""
        if self.socket.fileno() >= 0 and self._dtls is not None:
            self._dtls.close()
            with contextlib.suppress(OSError):
                self._flush()
        self.socket.close()

    async def _open_path(self, candidate: tuple[str, int]) -> None:
        """Make datagrams go to the server's candidate."""
        self.target = candidate
        self.socket.connect(candidate)

    async def _repeat_flights(self, dtls: DtlsClient, handshaken: asyncio.Future[None]) -> None:
        """What is not answered goes out again: a first flight may come before the server is ready for it."""
        flight, interval = dtls.last_flight, _FIRST_REPEAT
        while not handshaken.done():
            await asyncio.wait([handshaken], timeout=interval)
            if dtls.last_flight is not flight:
                flight, interval = dtls.last_flight, _FIRST_REPEAT
            elif not handshaken.done():
                interval = min(2 * interval, _REPEAT_MAX)
                for datagram in flight:
                    self._send(datagram)

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.socket.send(data)

    def _read(self) -> None:
        for _ in range(64):
            try:
                data = self.socket.recv(65535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if data:
                self._receive_datagram(data)

    def _receive_datagram(self, data: bytes) -> None:
        self.receive(data)

    def _receive_stun(self, message: stun.Message) -> None:
        assert self._remote is not None
        assert self._checked is not None
        if message.message_class == stun.MessageClass.REQUEST:
            # A full agent checks us too: it may send only once we have answered (RFC 7675).
            if message.check_integrity(self.password.encode()):
                mapped = stun.xor_address(self.target, message.transaction_id)
                reply = [(stun.Attr.XOR_MAPPED_ADDRESS, mapped)]
                self._send(stun.success_response(message, reply, key=self.password.encode()))
        elif message.message_class == stun.MessageClass.SUCCESS:
            if message.check_integrity(self._remote.password.encode()):
                self.consent_at = time.monotonic()
                if not self._checked.done():
                    self._checked.set_result(None)
        elif message.message_class == stun.MessageClass.ERROR and not self._checked.done():
            self._checked.set_exception(HandshakeFailed(f"check refused: {message.error()}"))

    def _receive_dtls(self, data: bytes) -> None:
        assert self._dtls is not None
        assert self._handshaken is not None
        try:
            self._dtls.receive_datagram(data)
        except HandshakeFailed as error:
            if not self._handshaken.done():
                self._handshaken.set_exception(error)
            return
        self._flush()
        if self._dtls.keys is not None and not self._handshaken.done():
            self._handshaken.set_result(None)

    def _flush(self) -> None:
        assert self._dtls is not None
        for datagram in self._dtls.datagrams_to_send():
            self._send(datagram)
