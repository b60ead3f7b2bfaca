"""TLS of one connection over memory buffers: bytes of the wire in, bytes of the client out (T5, T6).

`receive_data(wire)` gives what the client said; then `data_to_send()`. One `send_message` is one TLS record, if it has
no more than 16 KiB. No sockets, no time.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

ALPN = ("stun.turn", "stun.nat-discovery")  # RFC 7443
_READ_BYTES = 16384  # a record holds no more


class TlsStream:
    """The server's side of one connection: handshake, then records."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "established", "finished")

    established: bool
    """The handshake is done."""
    finished: bool
    """The client said goodbye; nothing more comes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False
        self.finished = False

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the wire; returns what the client said, in order.

        Raises:
            ssl.SSLError: not TLS, or a version or certificate that does not suit. An alert may wait in `data_to_send`.
        """
        incoming, read = self._incoming, self._tls.read
        incoming.write(data)
        pieces: list[bytes] = []
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            while record := read(_READ_BYTES):
                pieces.append(record)
                if not incoming.pending:  # asking for a record that is not there costs an exception
                    break
            else:
                self.finished = True  # the client's close_notify
        except ssl.SSLWantReadError:
            pass
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send_message(self, message: bytes) -> None:
        """Queue one message. Only once `established`."""
        self._tls.write(message)

    def close(self) -> None:
        """Queue a goodbye behind what was queued before. The other side's is not waited for."""
        if self.established:
            with suppress(ssl.SSLError):
                self._tls.unwrap()

    def data_to_send(self) -> bytes:
        """Bytes for the wire since asked last."""
        return self._outgoing.read() if self._outgoing.pending else b""


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the protocol names of STUN and TURN; a client without ALPN is served too (T5).

    Raises:
        OSError, ssl.SSLError: the files cannot be read or do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(list(ALPN))
    return context


def reload_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Put what the files hold now in force for new connections.

    Raises:
        OSError, ssl.SSLError: as `server_context`; what was in force stays.
    """
    server_context(certificate, key)  # a context that refused a key would have the new certificate with the old one
    context.load_cert_chain(certificate, key)
