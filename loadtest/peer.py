"""A light WebRTC peer: real ICE checks, DTLS and SRTP, and nothing that decodes.

It talks to servers that are ICE-lite (ours, and peers configured so): the server's candidates are in its description,
and our address is learnt from our checks. Connecting is asyncio; once connected, `socket` and `keys` are there for a
loop that sends or counts packets as fast as it likes.
"""

from __future__ import annotations

import asyncio
import secrets
import socket

from loadtest import sdp
from loadtest.dtls import DtlsClient, HandshakeFailed, SrtpKeys
from wire import stun

_CHECK_INTERVAL = 0.1  # seconds between checks while connecting
_PRIORITY = (110 << 24) + (65535 << 8) + 255  # a peer-reflexive candidate (RFC 8445 §5.1.2.1)


class ConnectFailed(Exception):
    """ICE or DTLS did not finish in time, or the server refused."""


class MediaPeer:
    """One peer on one UDP socket. Use `offer`/`answer` with the server's API, then `connect`; `close` at the end."""

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        self.ufrag = secrets.token_urlsafe(6)
        self.password = secrets.token_urlsafe(18)
        self.keys: SrtpKeys | None = None
        self._tie_breaker = secrets.token_bytes(8)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(self._family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((host, 0))
        self._dtls: DtlsClient | None = None
        self._checked: asyncio.Future[None] | None = None
        self._handshaken: asyncio.Future[None] | None = None
        self._remote: sdp.RemoteDescription | None = None

    def describe(self, sections: list[sdp.Section], *, offer: bool) -> str:
        """Our SDP. We are always the DTLS client: `actpass` in an offer to a server that answers passive."""
        return sdp.serialize(sections, ufrag=self.ufrag, password=self.password, setup="actpass" if offer else "active")

    async def connect(self, remote: sdp.RemoteDescription, within: float = 10.0) -> SrtpKeys:
        """Check until the server answers, nominate, shake hands. Raises `ConnectFailed`."""
        loop = asyncio.get_running_loop()
        self._remote = remote
        self._checked, self._handshaken = loop.create_future(), loop.create_future()
        address = next((c for c in remote.candidates if (":" in c[0]) == (self._family == socket.AF_INET6)), None)
        if address is None:
            raise ConnectFailed("the server's description has no candidate of our address family")
        self.socket.connect(address)
        loop.add_reader(self.socket, self._receive)
        try:
            async with asyncio.timeout(within):
                while not self._checked.done():
                    self.check()
                    await asyncio.wait([self._checked], timeout=_CHECK_INTERVAL)
                self._checked.result()
                self._dtls = DtlsClient(remote.fingerprint)
                self._dtls.start()
                self._flush()
                while not self._handshaken.done():
                    await asyncio.wait([self._handshaken], timeout=_CHECK_INTERVAL)
                    self._dtls.handle_timeout()
                    self._flush()
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
        self.socket.send(request)

    def close(self) -> None:
        """Say close_notify, so that the server frees the session now, and free the socket. Idempotent."""
        if self._dtls is not None:
            self._dtls.close()
            self._flush()
        self.socket.close()

    def _receive(self) -> None:
        for _ in range(64):
            try:
                data = self.socket.recv(65535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if data[:1] <= b"\x03":
                self._receive_stun(data)
            elif 20 <= data[0] <= 63 and self._dtls is not None:
                self._receive_dtls(data)

    def _receive_stun(self, data: bytes) -> None:
        assert self._remote is not None
        assert self._checked is not None
        message = stun.parse(data)
        if message.message_class == stun.MessageClass.REQUEST:
            # A full agent checks us too: it may send only once we have answered (RFC 7675).
            if message.check_integrity(self.password.encode()):
                mapped = stun.xor_address(self.socket.getpeername()[:2], message.transaction_id)
                reply = [(stun.Attr.XOR_MAPPED_ADDRESS, mapped)]
                self.socket.send(stun.success_response(message, reply, key=self.password.encode()))
        elif not self._checked.done():
            if message.message_class == stun.MessageClass.SUCCESS:
                if message.check_integrity(self._remote.password.encode()):
                    self._checked.set_result(None)
            elif message.message_class == stun.MessageClass.ERROR:
                self._checked.set_exception(HandshakeFailed(f"check refused: {message.error()}"))

    def _receive_dtls(self, data: bytes) -> None:
        assert self._dtls is not None
        assert self._handshaken is not None
        if self._handshaken.done():
            return
        try:
            self._dtls.receive_datagram(data)
        except HandshakeFailed as error:
            self._handshaken.set_exception(error)
            return
        self._flush()
        if self._dtls.keys is not None:
            self._handshaken.set_result(None)

    def _flush(self) -> None:
        assert self._dtls is not None
        for datagram in self._dtls.datagrams_to_send():
            self.socket.send(datagram)
