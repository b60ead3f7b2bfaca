"""A TURN client over UDP (RFC 8656): allocate, permit, bind, refresh, release. Blocking, one socket, no threads."""

from __future__ import annotations

import hashlib
import secrets
import socket
from types import TracebackType
from typing import Self

from wire import stun
from wire.stun import Attr, Method

_UDP = b"\x11\0\0\0"  # REQUESTED-TRANSPORT: protocol 17
_ATTEMPTS = 5
_FIRST_CHANNEL = 0x4000


class TurnFailedError(Exception):
    """The server refused (`code`), or did not answer (`code` 0)."""

    def __init__(self, method: int, code: int, reason: str) -> None:
        super().__init__(f"TURN method {method:#05x}: {code} {reason}")
        self.code = code


class TurnClient:
    """One allocation. `relayed` is its public address once `allocate` returned."""

    def __init__(self, server: tuple[str, int], username: str, password: str, *, host: str = "") -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.connect(server)
        self._username, self._password = username, password
        self._realm = self._nonce = b""
        self._key = b""
        self._channels = 0
        self.relayed: tuple[str, int] = ("", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def allocate(self, lifetime: int = 600) -> tuple[str, int]:
        """The relayed address of a new UDP allocation. Raises `TurnFailedError`."""
        reply = self._call(Method.ALLOCATE, [(Attr.REQUESTED_TRANSPORT, _UDP), (Attr.LIFETIME, stun.uint32(lifetime))])
        address = reply.address(Attr.XOR_RELAYED_ADDRESS)
        assert address is not None
        self.relayed = str(address.ip), address.port
        return self.relayed

    def permit(self, peer_host: str) -> None:
        """Let a peer's address send in, for 300 s."""
        self._call(Method.CREATE_PERMISSION, [], peer=(peer_host, 0))

    def bind_channel(self, peer: tuple[str, int]) -> int:
        """The number of a channel to `peer`, for 600 s."""
        number = _FIRST_CHANNEL + self._channels
        self._channels += 1
        self._call(Method.CHANNEL_BIND, [(Attr.CHANNEL_NUMBER, number.to_bytes(2, "big") + b"\0\0")], peer=peer)
        return number

    def refresh(self, lifetime: int = 600) -> None:
        """Prolong the allocation; 0 ends it."""
        self._call(Method.REFRESH, [(Attr.LIFETIME, stun.uint32(lifetime))])

    def close(self) -> None:
        """Release the allocation, without waiting for the answer, and free the socket."""
        if self.relayed[1]:
            self.socket.send(self._request(Method.REFRESH, [(Attr.LIFETIME, stun.uint32(0))], secrets.token_bytes(12)))
        self.socket.close()

    @staticmethod
    def channel_data(number: int, payload: bytes) -> bytes:
        """A ChannelData message (§12.4); UDP needs no padding."""
        return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload

    @staticmethod
    def send_indication(peer: tuple[str, int], payload: bytes) -> bytes:
        """A Send indication (§11.1)."""
        transaction = secrets.token_bytes(12)
        return stun.serialize(
            Method.SEND,
            stun.MessageClass.INDICATION,
            transaction,
            [(Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, transaction)), (Attr.DATA, payload)],
        )

    def _request(
        self, method: int, attributes: list[tuple[int, bytes]], transaction: bytes, peer: tuple[str, int] | None = None
    ) -> bytes:
        if peer is not None:
            attributes = [*attributes, (Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, transaction))]
        if self._key:
            attributes = [
                *attributes,
                (Attr.USERNAME, self._username.encode()),
                (Attr.REALM, self._realm),
                (Attr.NONCE, self._nonce),
            ]
        return stun.serialize(method, stun.MessageClass.REQUEST, transaction, attributes, key=self._key or None)

    def _call(
        self, method: int, attributes: list[tuple[int, bytes]], peer: tuple[str, int] | None = None
    ) -> stun.Message:
        for _ in range(3):  # unauthenticated, then with the nonce, then once more when it was stale
            reply = self._exchange(method, attributes, peer)
            if reply.message_class == stun.MessageClass.SUCCESS:
                return reply
            code, reason = reply.error() or (0, "no ERROR-CODE")
            if code not in (401, 438):
                raise TurnFailedError(method, code, reason)
            self._nonce = reply.get(Attr.NONCE) or b""
            self._realm = reply.get(Attr.REALM) or self._realm
            # The long-term key is MD5 by the standard (RFC 8489 §9.2.2).
            text = b":".join([self._username.encode(), self._realm, self._password.encode()])
            self._key = hashlib.md5(text, usedforsecurity=False).digest()
        raise TurnFailedError(method, code, reason)

    def _exchange(self, method: int, attributes: list[tuple[int, bytes]], peer: tuple[str, int] | None) -> stun.Message:
        transaction = secrets.token_bytes(12)
        request = self._request(method, attributes, transaction, peer)
        timeout = 0.25
        for _ in range(_ATTEMPTS):
            self.socket.send(request)
            self.socket.settimeout(timeout)
            try:
                while True:
                    data = self.socket.recv(2048)
                    if data[0] < 4 and data[8:20] == transaction:
                        return stun.parse(data)
            except TimeoutError:
                timeout *= 2
        raise TurnFailedError(method, 0, "no answer")
