"""Thousands of TURN clients on one socket: each has an address of its own in 127.0.0.0/8, all have one port.

Linux takes a datagram's source address from IP_PKTINFO, and tells by it which address a datagram came to.
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from loadtest.turn_client import TurnRequests
from wire import stun
from wire.stun import Attr, Method

IP_PKTINFO = 8  # linux/in.h; not in Python's `socket` before 3.12
WINDOW = 64
"""Requests under way."""
RETRY = 0.5
PATIENCE = 60.0


class Crowd:
    """`size` clients of one server. Blocking: give it a thread of its own.

    Args:
        size: up to 60,000.
        port: of the server on 127.0.0.1.
        username, password: of all.
    """

    def __init__(self, size: int, port: int, username: str, password: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setblocking(False)
        self._socket.bind(("0.0.0.0", 0))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._server = ("127.0.0.1", port)
        self.clients = [TurnRequests(username, password) for _ in range(size)]

    def close(self) -> None:
        self._socket.close()

    def request(
        self, method: Method, attributes: list[tuple[int, bytes]], who: Iterable[int] | None = None
    ) -> dict[int, stun.Message]:
        """One request of each client, answering challenges; every client's answer.

        Raises:
            TurnFailedError: one was refused.
            TimeoutError: not all were answered in a minute.
        """
        todo = list(range(len(self.clients)) if who is None else who)
        todo.reverse()
        under_way: dict[int, tuple[bytes, bytes, float]] = {}
        answers: dict[int, stun.Message] = {}
        until = time.monotonic() + PATIENCE
        while todo or under_way:
            now = time.monotonic()
            if now > until:
                raise TimeoutError(f"{len(todo) + len(under_way)} clients have no answer")
            while todo and len(under_way) < WINDOW:
                number = todo.pop()
                transaction, data = self.clients[number].serialize(method, attributes)
                under_way[number] = (transaction, data, now)
                self._send(number, data)
            for number, (transaction, data, sent_at) in list(under_way.items()):
                if now - sent_at > RETRY:
                    under_way[number] = (transaction, data, now)
                    self._send(number, data)
            for number, data in self._receive():
                message = stun.parse(data)
                if number not in under_way or under_way[number][0] != message.transaction_id:
                    continue
                del under_way[number]
                if self.clients[number].accept(method, message):
                    answers[number] = message
                else:
                    todo.append(number)
        return answers

    def challenge(self) -> None:
        """One request that asks for nothing but a challenge."""
        self._send(0, stun.serialize(Method.REFRESH, stun.MessageClass.REQUEST, secrets.token_bytes(12), []))

    def _send(self, number: int, data: bytes) -> None:
        source = struct.pack("!I", 0x7F010001 + number)
        information = struct.pack("=I4s4s", 0, source, bytes(4))
        self._socket.sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, information)], 0, self._server)

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        if not self._poll.poll(50):
            return
        for _ in range(WINDOW):
            try:
                data, control, _, _ = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            for level, kind, value in control:
                if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    yield struct.unpack("!I", value[8:12])[0] - 0x7F010001, data


def relayed_address(answer: stun.Message) -> stun.TransportAddress:
    address = answer.address(Attr.XOR_RELAYED_ADDRESS)
    assert address is not None
    return address
