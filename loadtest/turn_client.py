"""A TURN client (RFC 8656): `TurnRequests` without I/O, and on it `TurnClient`, which is blocking and speaks UDP."""

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
_TRIES = 3  # unauthenticated, then with the nonce, then once more when it was stale


class TurnFailedError(Exception):
    """The server refused (`code`), or did not answer (`code` 0)."""

    def __init__(self, method: int, code: int, reason: str) -> None:
        super().__init__(f"TURN method {method:#05x}: {code} {reason}")
        self.code = code


class TurnRequests:
    """Requests of one client, with long-term credentials (RFC 8489 §9.2). No I/O: bytes out, answers in."""

    def __init__(self, username: str, password: str) -> None:
        self._username, self._password = username, password
        self._realm = self._nonce = b""
        self._key = b""

    def serialize(
        self, method: int, attributes: list[tuple[int, bytes]], peer: tuple[str, int] | None = None
    ) -> tuple[bytes, bytes]:
        """The transaction's id, and a request as far authenticated as the server has asked for so far."""
        transaction = secrets.token_bytes(12)
        if peer is not None:
            attributes = [*attributes, (Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, transaction))]
        if self._key:
            attributes = [
                *attributes,
                (Attr.USERNAME, self._username.encode()),
                (Attr.REALM, self._realm),
                (Attr.NONCE, self._nonce),
            ]
        data = stun.serialize(method, stun.MessageClass.REQUEST, transaction, attributes, key=self._key or None)
        return transaction, data

    def accept(self, method: int, reply: stun.Message) -> bool:
        """True: success. False: it asked for credentials or a newer nonce, and the next request will have them.

        Raises:
            TurnFailedError: refused.
        """
        if reply.message_class == stun.MessageClass.SUCCESS:
            return True
        code, reason = reply.error() or (0, "no ERROR-CODE")
        if code not in (401, 438):
            raise TurnFailedError(method, code, reason)
        self._nonce = reply.get(Attr.NONCE) or b""
        self._realm = reply.get(Attr.REALM) or self._realm
        # The long-term key is MD5 by the standard (RFC 8489 §9.2.2).
        text = b":".join([self._username.encode(), self._realm, self._password.encode()])
        self._key = hashlib.md5(text, usedforsecurity=False).digest()
        return False

    @staticmethod
    def allocation(lifetime: int, family: int = socket.AF_INET) -> list[tuple[int, bytes]]:
        """Attributes of an Allocate request for a UDP relay of one address family."""
        attributes = [(int(Attr.REQUESTED_TRANSPORT), _UDP), (int(Attr.LIFETIME), stun.uint32(lifetime))]
        if family == socket.AF_INET6:
            attributes.append((int(Attr.REQUESTED_ADDRESS_FAMILY), b"\x02\0\0\0"))
        return attributes

    @staticmethod
    def relayed(reply: stun.Message) -> tuple[str, int]:
        """The relayed address in a successful answer. Raises `TurnFailedError`: there is none."""
        address = reply.address(Attr.XOR_RELAYED_ADDRESS)
        if address is None:
            raise TurnFailedError(Method.ALLOCATE, 0, "no XOR-RELAYED-ADDRESS")
        return str(address.ip), address.port

    @staticmethod
    def channel(number: int) -> list[tuple[int, bytes]]:
        """Attributes of a ChannelBind request."""
        return [(Attr.CHANNEL_NUMBER, number.to_bytes(2, "big") + b"\0\0")]

    @staticmethod
    def lifetime(seconds: int) -> list[tuple[int, bytes]]:
        """Attributes of a Refresh request; 0 ends the allocation."""
        return [(Attr.LIFETIME, stun.uint32(seconds))]


def channel_data(number: int, payload: bytes) -> bytes:
    """A ChannelData message (RFC 8656 §12.4); UDP needs no padding."""
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


class TurnClient:
    """One allocation over UDP, blocking, one socket. `relayed` is its public address once `allocate` returned."""

    def __init__(self, server: tuple[str, int], username: str, password: str, *, host: str = "") -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.connect(server)
        self._requests = TurnRequests(username, password)
        self._channels = 0
        self.relayed: tuple[str, int] = ("", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def allocate(self, lifetime: int = 600) -> tuple[str, int]:
        """The relayed address of a new UDP allocation. Raises `TurnFailedError`."""
        self.relayed = TurnRequests.relayed(self._call(Method.ALLOCATE, TurnRequests.allocation(lifetime)))
        return self.relayed

    def permit(self, peer_host: str) -> None:
        """Let a peer's address send in, for 300 s."""
        self._call(Method.CREATE_PERMISSION, [], peer=(peer_host, 0))

    def bind_channel(self, peer: tuple[str, int]) -> int:
        """The number of a channel to `peer`, for 600 s."""
        number = _FIRST_CHANNEL + self._channels
        self._channels += 1
        self._call(Method.CHANNEL_BIND, TurnRequests.channel(number), peer=peer)
        return number

    def refresh(self, lifetime: int = 600) -> None:
        """Prolong the allocation; 0 ends it."""
        self._call(Method.REFRESH, TurnRequests.lifetime(lifetime))

    def close(self) -> None:
        """Release the allocation, without waiting for the answer, and free the socket."""
        if self.relayed[1]:
            self.socket.send(self._requests.serialize(Method.REFRESH, TurnRequests.lifetime(0))[1])
        self.socket.close()

    channel_data = staticmethod(channel_data)

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

    def _call(
        self, method: int, attributes: list[tuple[int, bytes]], peer: tuple[str, int] | None = None
    ) -> stun.Message:
        for _ in range(_TRIES):
            reply = self._exchange(method, *self._requests.serialize(method, attributes, peer))
            if self._requests.accept(method, reply):
                return reply
        raise TurnFailedError(method, 401, "credentials refused")

    def _exchange(self, method: int, transaction: bytes, request: bytes) -> stun.Message:
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
