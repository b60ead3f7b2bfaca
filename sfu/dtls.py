"""DTLS-SRTP: the handshake over memory buffers, fingerprints and keys (RFC 5764, 6347, 8122; rules DTLS-1..5).

    HANDSHAKE --finished--> ESTABLISHED --keys taken when a fingerprint is known and matches--> (same)
        |                        |
        '--30 s, bytes, alert----+--close_notify, wrong fingerprint--> CLOSED (reason)

OpenSSL does the cryptography. Two things it does not do here: cut its output into datagrams (a memory buffer has no
boundaries, so records are regrouped under the MTU), and start its retransmission timer below 1 s. So the last flight is
kept and sent again after `first_retransmit`, doubling; records that arrive twice fall to DTLS's own replay check.

In: `receive_datagram(data, now)`, `handle_timeout(now)`. Out: `datagrams_to_send()`, `next_timeout()`, `state`,
`keys()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from sfu.srtp import PROFILES, SrtpKeys, SrtpProfile, split_keys
from wire.sdp import Fingerprint

MTU_BYTES: Final = 1200
HANDSHAKE_TIMEOUT: Final = 30.0
HANDSHAKE_BYTES_MAX: Final = 64 * 1024
RETRANSMIT_MIN: Final = 0.05
RETRANSMIT_MAX: Final = 1.0
FINGERPRINT_MISMATCH: Final = "fingerprint mismatch"

_RECORD_HEADER_BYTES: Final = 13
_HANDSHAKE_CONTENT: Final = frozenset({20, 22})  # ChangeCipherSpec and Handshake (RFC 5246 §6.2.1)
_DTLS_1_2: Final = 0xFEFD
_LABEL: Final = b"EXTRACTOR-dtls_srtp"
_CIPHERS: Final = b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
_HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "sha-256": hashes.SHA256,
    "sha-384": hashes.SHA384,
    "sha-512": hashes.SHA512,
}


class DtlsState(Enum):
    """Where the association is."""

    HANDSHAKE = "handshake"
    ESTABLISHED = "established"
    CLOSED = "closed"


class DtlsContext:
    """Our certificate (ECDSA P-256, made anew at each start) and the settings every association shares."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "torpor")])
        # The wall clock is right here: certificates speak of dates. Nobody checks them (RFC 8842 relies on the
        # fingerprint), and a day of slack keeps a peer with a wrong clock.
        today = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=3650))
            .sign(key, hashes.SHA256())
        )
        self.fingerprint = Fingerprint("sha-256", _hex_pairs(certificate.fingerprint(hashes.SHA256())))
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_min_proto_version(_DTLS_1_2)
        # Records are cut by their 1.2 header; browsers fall back from 1.3 without a round trip.
        context.set_max_proto_version(_DTLS_1_2)
        context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_cipher_list(_CIPHERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # Self-signed by design; the fingerprint is compared before keys are used.
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.set_tlsext_use_srtp(":".join(profile.name for profile in PROFILES).encode())
        context.use_certificate(certificate)
        context.use_privatekey(key)
        self._context = context

    def connection(self) -> SSL.Connection:
        """A new association over memory buffers."""
        connection = SSL.Connection(self._context, None)
        connection.set_ciphertext_mtu(MTU_BYTES)
        return connection


class DtlsAssociation:
    """One handshake and what comes after it, with one peer.

    `fingerprints` may be set at any time before or after the handshake; `keys` gives nothing before one matched.
    """

    def __init__(self, context: DtlsContext, *, is_client: bool, now: float, rtt: float = 0.1) -> None:
        self.is_client = is_client
        self.state = DtlsState.HANDSHAKE
        self.reason: str | None = None
        """Why it is CLOSED."""
        self._ssl = context.connection()
        self._deadline = now + HANDSHAKE_TIMEOUT
        self._received_bytes = 0
        self._out: list[bytes] = []
        self._flight: list[bytes] = []
        self._retransmit_after = max(RETRANSMIT_MIN, 1.5 * rtt)
        self._retransmit_at: float | None = None
        self._repeated_at = now
        if is_client:
            self._ssl.set_connect_state()
            self._advance(now)
        else:
            self._ssl.set_accept_state()

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Feed one datagram from the validated path.

        Application data (SCTP) is read and dropped: there is no data channel association behind it.
        """
        if self.state is DtlsState.CLOSED or not data:
            return
        if self.state is DtlsState.ESTABLISHED:
            self._repeat_final_flight(data, now)
        else:
            self._received_bytes += len(data)
            if self._received_bytes > HANDSHAKE_BYTES_MAX:
                self._fail("handshake above its size limit")
                return
        self._ssl.bio_write(data)
        self._advance(now)

    def _repeat_final_flight(self, data: bytes, now: float) -> None:
        """The peer still speaks of the handshake, so our last flight was lost (RFC 6347 §4.2.4).

        OpenSSL would notice by itself, unless the peer repeats its records unchanged: then they are replays to it.
        """
        if data[0] in _HANDSHAKE_CONTENT and now < self._deadline and now - self._repeated_at >= RETRANSMIT_MIN:
            self._repeated_at = now
            self._out += self._flight

    def _advance(self, now: float) -> None:
        try:
            if self.state is DtlsState.HANDSHAKE:
                self._ssl.do_handshake()
                self._establish()
            while True:
                self._ssl.recv(2048)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self._collect(now)
            self._fail("close_notify")
            return
        except SSL.Error:
            self._collect(now)
            self._fail("handshake failed" if self.state is DtlsState.HANDSHAKE else "alert")
            return
        self._collect(now)

    def _establish(self) -> None:
        self.state = DtlsState.ESTABLISHED
        if self._profile() is None:
            self._fail("no common SRTP profile")

    def _collect(self, now: float) -> None:
        """Move what OpenSSL wrote to `_out`; in the handshake it is the new last flight."""
        handshaking = self._retransmit_at is not None or self.state is DtlsState.HANDSHAKE
        written = bytearray()
        try:
            while True:
                written += self._ssl.bio_read(16384)
        except SSL.WantReadError:
            pass
        datagrams = list(_datagrams(bytes(written)))
        self._out += datagrams
        if handshaking and datagrams:
            self._flight = datagrams
            self._retransmit_at = now + self._retransmit_after
        if self.state is not DtlsState.HANDSHAKE:
            self._retransmit_at = None  # whoever sends last repeats only on demand

    def _profile(self) -> SrtpProfile | None:
        name = self._ssl.get_selected_srtp_profile().decode()
        return next((profile for profile in PROFILES if profile.name == name), None)

    def keys(self, fingerprints: Iterable[Fingerprint]) -> SrtpKeys | None:
        """The SRTP keys, once ESTABLISHED with a peer whose certificate matches one of `fingerprints`.

        A mismatch closes the association: state CLOSED, None returned (DTLS-2).
        """
        if self.state is not DtlsState.ESTABLISHED:
            return None
        if not self._matches(fingerprints):
            self._fail(FINGERPRINT_MISMATCH)
            return None
        profile = self._profile()
        assert profile is not None, "checked when the handshake ended"
        material = self._ssl.export_keying_material(_LABEL, profile.material_bytes)
        return split_keys(profile, material, is_client=self.is_client)

    def _matches(self, fingerprints: Iterable[Fingerprint]) -> bool:
        certificate = self._ssl.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return False
        return any(
            fingerprint.algorithm in _HASHES
            and _hex_pairs(certificate.fingerprint(_HASHES[fingerprint.algorithm]())) == fingerprint.value
            for fingerprint in fingerprints
        )

    def handle_timeout(self, now: float) -> None:
        """Resend the last flight, or give up after 30 s."""
        if self.state is not DtlsState.HANDSHAKE:
            return
        if now >= self._deadline:
            self._fail("handshake timeout")
        elif self._retransmit_at is not None and now >= self._retransmit_at:
            self._out += self._flight
            self._retransmit_after = min(2 * self._retransmit_after, RETRANSMIT_MAX)
            self._retransmit_at = now + self._retransmit_after

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        if self.state is not DtlsState.HANDSHAKE:
            return None
        return self._deadline if self._retransmit_at is None else min(self._deadline, self._retransmit_at)

    def datagrams_to_send(self) -> list[bytes]:
        """Take what is to be sent, each within the MTU."""
        out, self._out = self._out, []
        return out

    def close(self, now: float) -> None:
        """Send close_notify if there is someone to read it. Idempotent."""
        if self.state is DtlsState.ESTABLISHED:
            with contextlib.suppress(SSL.Error):
                self._ssl.shutdown()
            self._collect(now)
        self._fail("closed here")

    def _fail(self, reason: str) -> None:
        if self.state is not DtlsState.CLOSED:
            self.state = DtlsState.CLOSED
            self.reason = reason
            self._flight = []
            self._retransmit_at = None


def _datagrams(written: bytes) -> Iterator[bytes]:
    """Group whole records into datagrams of at most `MTU_BYTES`; OpenSSL already keeps each record below it."""
    start = offset = 0
    while offset < len(written):
        end = offset + _RECORD_HEADER_BYTES + int.from_bytes(written[offset + 11 : offset + 13], "big")
        if end - start > MTU_BYTES and offset > start:
            yield written[start:offset]
            start = offset
        offset = end
    if start < len(written):
        yield written[start:]


def _hex_pairs(digest: bytes) -> str:
    return digest.hex(":").upper()
