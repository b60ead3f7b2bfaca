"""Many handshakes at once, by raw non-blocking sockets: `python -m tests.support.flood <port> <count>`.

Prints, as JSON, how many answers began with which status, and the seconds from a start that all senders share until the
last connect was begun and until the last answer came.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter

REQUEST = (
    b"GET /parties/main/flood HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
BATCH = 100
"""Connects between two looks at what came."""


def flood(port: int, count: int, timeout: float = 180.0) -> dict[str, object]:
    """Begin `count` connects as fast as this process can; returns when each has its answer, or its end."""
    poller = select.epoll()
    sockets: dict[int, socket.socket] = {}
    statuses: Counter[str] = Counter()

    def look(wait: float) -> None:
        for descriptor, events in poller.poll(wait):
            if events & select.EPOLLOUT and not events & (select.EPOLLERR | select.EPOLLHUP):
                sockets[descriptor].send(REQUEST)
                poller.modify(descriptor, select.EPOLLIN)
                continue
            try:
                answer = sockets[descriptor].recv(4096)
            except OSError:
                answer = b""
            statuses[answer[9:12].decode("latin-1")] += 1
            poller.unregister(descriptor)
            sockets.pop(descriptor).close()

    began = time.monotonic()
    for number in range(count):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        sockets[one.fileno()] = one
        poller.register(one, select.EPOLLOUT)
        if number % BATCH == BATCH - 1:
            look(0)
    begun = time.monotonic()
    while sockets and time.monotonic() < began + timeout:
        look(0.1)
    return {"statuses": statuses, "begun_s": begun - began, "answered_s": time.monotonic() - began}


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(flood(int(sys.argv[1]), int(sys.argv[2]))))
