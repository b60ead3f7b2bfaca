"""Makes the plane's sockets and pollers. After that the threads use descriptors, not these objects."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence

SOCKET_BUFFER_BYTES = 8 * 1024 * 1024

_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_OMIT = 5
"""An ICMP message, which anyone can forge, must not change what we may send."""

_ATTEMPTS = 16


def bind_sockets(addresses: Sequence[str], port: int, threads: int) -> tuple[list[socket.socket], int]:
    """One socket per thread and address (thread by thread), all on one port, which is returned too.

    Threads share an address by SO_REUSEPORT: the system gives all datagrams of one remote tuple to the same one.

    Raises:
        OSError: an address cannot be bound.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        chosen = port or _free_port(addresses[0])
        made: list[socket.socket] = []
        try:
            for _ in range(threads):
                made.extend(_bound_socket(address, chosen) for address in addresses)
        except OSError:
            for sock in made:
                sock.close()
            if port or attempt == _ATTEMPTS:
                raise
        else:
            return made, chosen
    raise AssertionError("unreachable")


def open_poller(descriptors: Sequence[int]) -> int:
    """An epoll descriptor, level-triggered, whose events carry the readable descriptor. The caller closes it."""
    with select.epoll() as poller:
        for descriptor in descriptors:
            poller.register(descriptor, select.EPOLLIN)
        return os.dup(poller.fileno())


def watch(poller: int, descriptor: int) -> None:
    """Let an epoll descriptor of `open_poller` report `descriptor` too."""
    with select.epoll.fromfd(os.dup(poller)) as opened:
        opened.register(descriptor, select.EPOLLIN)


def _free_port(address: str) -> int:
    # Asked without SO_REUSEPORT: with it, the system may offer a port that another plane of this user shares already.
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _bound_socket(address: str, port: int) -> socket.socket:
    family = _family(address)
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
