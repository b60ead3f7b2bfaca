"""A TLS client that can do what Python's `ssl` cannot: take new keys (RFC 8446 §4.6.3), say goodbye and stay.

The system's OpenSSL, through ctypes, between a TCP connection and a socket of plain bytes.
"""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import socket
from typing import Any

_CHUNK = 16384
_KEY_UPDATE_REQUESTED = 1


def _library() -> Any:
    library = ctypes.CDLL(ctypes.util.find_library("ssl"))
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


class TlsTunnel:
    """`plain` is where the client of a test speaks; bytes written there leave as TLS records, at once."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int = 0) -> None:
        """Connects and shakes hands; blocks."""
        self._ssl = _library()
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect(address)
        self.socket.setblocking(True)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        method = ctypes.c_void_p(self._ssl.TLS_client_method())
        self._context = ctypes.c_void_p(self._ssl.SSL_CTX_new(method))
        self._session = ctypes.c_void_p(self._ssl.SSL_new(self._context))
        assert self._ssl.SSL_set_fd(self._session, self.socket.fileno()) == 1
        assert self._ssl.SSL_connect(self._session) == 1
        self.socket.setblocking(False)
        self.plain, self._inside = socket.socketpair()
        for sock in (self.plain, self._inside):
            sock.setblocking(False)

    def start(self) -> None:
        """Carry bytes both ways."""
        asyncio.get_running_loop().add_reader(self._inside, self._send)
        self.resume()

    def pause(self) -> None:
        """Do not read what the server sends."""
        asyncio.get_running_loop().remove_reader(self.socket)

    def resume(self) -> None:
        """Read it again."""
        asyncio.get_running_loop().add_reader(self.socket, self._receive)

    def update_keys(self) -> bool:
        """Take new keys and ask for the server's. False: the connection takes nothing more."""
        assert self._ssl.SSL_key_update(self._session, _KEY_UPDATE_REQUESTED) == 1
        return bool(self._ssl.SSL_do_handshake(self._session) == 1)

    def write(self, data: bytes) -> bool:
        """A record of its own. False: the connection takes nothing more."""
        return bool(self._ssl.SSL_write(self._session, data, len(data)) == len(data))

    def say_goodbye(self) -> None:
        """close_notify, and nothing else."""
        self._ssl.SSL_shutdown(self._session)

    def _send(self) -> None:
        while data := self._read_plain():
            assert self.write(data)

    def _read_plain(self) -> bytes:
        try:
            return self._inside.recv(_CHUNK)
        except BlockingIOError:
            return b""

    def _receive(self) -> None:
        buffer = ctypes.create_string_buffer(_CHUNK)
        while (size := self._ssl.SSL_read(self._session, buffer, _CHUNK)) > 0:
            self._inside.send(buffer.raw[:size])
        if self._ssl.SSL_get_error(self._session, size) != 2:  # SSL_ERROR_WANT_READ
            self.pause()
            self._inside.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Free everything; the connection is cut without a goodbye."""
        self.pause()
        asyncio.get_running_loop().remove_reader(self._inside)
        self._ssl.SSL_free(self._session)
        self._ssl.SSL_CTX_free(self._context)
        for sock in (self.socket, self._inside, self.plain):
            sock.close()
