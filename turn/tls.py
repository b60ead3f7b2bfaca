"""TLS of one connection over memory buffers: bytes of the wire in, bytes of the client out (T5, T6).

`receive_data(wire)` gives what the client said; then `data_to_send()`. One `send_message` is one TLS record, if it has
no more than 16 KiB. No sockets, no time.

OpenSSL is the one that `cryptography` bundles, as for DTLS, because its functions can be called by address: a relay
thread opens and seals records itself (`_relay/tls.pxd`), with the session that `lend` names.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.bindings._rust import _openssl
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from turn.errors import ConfigurationError, TlsError

ALPN = (b"stun.turn", b"stun.nat-discovery")  # RFC 7443
# What Python's own `ssl` offers for TLS 1.2: forward secrecy, authenticated or at least not SHA-1.
_CIPHERS = b"@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
_READ_BYTES = 16384  # a record holds no more


class TlsStream:
    """The server's side of one connection: handshake, then records."""

    __slots__ = ("_session", "established", "finished")

    established: bool
    """The handshake is done."""
    finished: bool
    """The client said goodbye; nothing more comes."""

    def __init__(self, context: SSL.Context) -> None:
        self._session = SSL.Connection(context, None)
        self._session.set_accept_state()
        self.established = False
        self.finished = False

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the wire, perhaps none; returns what the client said, in order.

        Raises:
            TlsError: not TLS, or a version or cipher that does not suit. An alert may wait in `data_to_send`.
        """
        session, pieces = self._session, []
        try:
            if data:
                session.bio_write(data)
            if not self.established:
                session.do_handshake()
                self.established = True
            while True:
                pieces.append(session.recv(_READ_BYTES))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.finished = True  # the client's close_notify
        except SSL.Error as error:
            raise TlsError(_reason(error)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send_message(self, message: bytes) -> None:
        """Queue one message. Only once `established`.

        Raises:
            TlsError: the connection is broken.
        """
        try:
            while message:
                message = message[self._session.send(message) :]
        except SSL.Error as error:
            raise TlsError(_reason(error)) from None

    def close(self) -> None:
        """Queue a goodbye behind what was queued before. The other side's is not waited for."""
        if self.established:
            with suppress(SSL.Error):
                self._session.shutdown()

    def data_to_send(self) -> bytes:
        """Bytes for the wire since asked last."""
        pieces = []
        with suppress(SSL.WantReadError):
            while True:
                pieces.append(self._session.bio_read(_READ_BYTES))
        return b"".join(pieces)

    def lend(self) -> tuple[int, int, int]:
        """Addresses of the session, of its incoming and of its outgoing memory buffer, for a relay thread.

        Until that has given the socket back, nothing else may be called here, and this object must be kept.
        """
        session = self._session
        lent = session._ssl, session._into_ssl, session._from_ssl
        return tuple(int(_openssl.ffi.cast("uintptr_t", pointer)) for pointer in lent)  # type: ignore[return-value]


def function_address(name: str) -> int:
    """Address of one of OpenSSL's functions, callable from any thread without the GIL."""
    ffi = _openssl.ffi
    return int(ffi.cast("uintptr_t", ffi.addressof(_openssl.lib, name)))


def server_context(certificate: str, key: str) -> SSL.Context:
    """TLS 1.2 or newer, with the protocol names of STUN and TURN; a client without ALPN is served too (T5).

    Raises:
        OSError: a file cannot be read.
        ConfigurationError: what is in them is no certificate and its key.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets carry what is resumed
    context.set_alpn_select_callback(_select_protocol)
    Path(certificate).open("rb").close()  # OpenSSL's error would not say that it is this file
    try:
        context.use_certificate_chain_file(certificate)
        # Not by OpenSSL, which would ask for a password on the terminal.
        private: Any = load_pem_private_key(Path(key).read_bytes(), password=None)
        context.use_privatekey(private)
        context.check_privatekey()
    except (SSL.Error, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"the certificate and its key cannot be used: {_reason(error)}") from None
    return context


def _reason(error: Exception) -> str:
    """Of OpenSSL's, the last word."""
    said = error.args[0] if error.args else None
    return str(said[-1][-1]) if isinstance(said, list) and said else str(error) or type(error).__name__


def _select_protocol(_: SSL.Connection, offered: list[bytes]) -> bytes | SSL._NoOverlappingProtocols:
    """As `ssl` does: a client that offers only other protocols is served without one."""
    return next((protocol for protocol in ALPN if protocol in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
