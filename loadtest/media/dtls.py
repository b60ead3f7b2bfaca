"""A DTLS-SRTP client over memory buffers (RFC 5764): handshake in, SRTP keys out. No socket, no clock of its own."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

# IANA "DTLS-SRTP Protection Profiles": number, master key length and salt length in bytes.
PROFILES = {
    b"SRTP_AEAD_AES_128_GCM": (7, 16, 12),
    b"SRTP_AEAD_AES_256_GCM": (8, 32, 12),
    b"SRTP_AES128_CM_SHA1_80": (1, 16, 14),
}

_RECORD_HEADER_BYTES = 13
_MTU_BYTES = 1200


class HandshakeFailed(Exception):
    """The server refused the handshake, or its certificate is not the one its description announced."""


@dataclass(frozen=True, slots=True)
class SrtpKeys:
    """What the handshake agreed on: `profile` is the IANA number, keys are master key followed by salt."""

    profile: int
    send: bytes
    receive: bytes


@functools.cache
def _context() -> tuple[SSL.Context, str]:
    """One certificate and context for all peers of this process: a load generator need not be anonymous."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "load")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    context = SSL.Context(SSL.DTLS_METHOD)
    context.use_certificate(certificate)
    context.use_privatekey(key)
    # The certificate is checked against the description's fingerprint once the handshake is done (RFC 8122).
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    context.set_tlsext_use_srtp(b":".join(PROFILES))
    return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def fingerprint() -> str:
    """SHA-256 of our certificate, as an `a=fingerprint` line writes it."""
    return _context()[1]


class DtlsClient:
    """The active side of one handshake."""

    def __init__(self, remote_fingerprint: str) -> None:
        self._remote_fingerprint = remote_fingerprint.upper()
        self._ssl = SSL.Connection(_context()[0], None)
        self._ssl.set_ciphertext_mtu(_MTU_BYTES)
        self._ssl.set_connect_state()
        self.keys: SrtpKeys | None = None
        self.closed = False
        """Whether the server said close_notify, or an alert ended the association."""
        self.last_flight: list[bytes] = []
        """What the server has not answered yet. OpenSSL would repeat it after a second; browsers do after 50 ms."""

    def start(self) -> None:
        """Make the ClientHello available to `datagrams_to_send`."""
        self._step()

    def receive_datagram(self, data: bytes) -> None:
        """Feed one datagram; `keys` is set once the handshake is complete. Raises `HandshakeFailed`."""
        self._ssl.bio_write(data)
        self._step()

    def close(self) -> None:
        """Queue close_notify."""
        if self.keys is not None:
            self._ssl.shutdown()

    def datagrams_to_send(self) -> list[bytes]:
        """Whole records, packed into datagrams of at most 1200 bytes where they fit."""
        datagrams: list[bytes] = []
        for record in self._records():
            if datagrams and len(datagrams[-1]) + len(record) <= _MTU_BYTES:
                datagrams[-1] += record
            else:
                datagrams.append(record)
        if datagrams and self.keys is None:
            self.last_flight = datagrams
        return datagrams

    def _records(self) -> Iterator[bytes]:
        try:
            data = self._ssl.bio_read(65536)
        except SSL.WantReadError:
            return
        while data:
            end = _RECORD_HEADER_BYTES + int.from_bytes(data[11:13], "big")
            yield data[:end]
            data = data[end:]

    def _step(self) -> None:
        if self.keys is not None:
            self._read()
            return
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            raise HandshakeFailed(str(error)) from error
        certificate = self._ssl.get_peer_certificate(as_cryptography=True)
        if certificate is None or certificate.fingerprint(hashes.SHA256()).hex(":").upper() != self._remote_fingerprint:
            raise HandshakeFailed("the server's certificate does not match a=fingerprint")
        profile, key_bytes, salt_bytes = PROFILES[self._ssl.get_selected_srtp_profile()]
        material = self._ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key_bytes + salt_bytes))
        keys, salts = material[: 2 * key_bytes], material[2 * key_bytes :]
        # RFC 5764 §4.2: client key, server key, client salt, server salt.
        self.keys = SrtpKeys(profile, keys[:key_bytes] + salts[:salt_bytes], keys[key_bytes:] + salts[salt_bytes:])

    def _read(self) -> None:
        """After the handshake nothing comes but alerts, and flights of a server that missed our last one."""
        try:
            self._ssl.recv(_MTU_BYTES)
        except SSL.WantReadError:
            return
        except SSL.Error:
            self.closed = True
