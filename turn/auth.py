"""The long-term credential mechanism: challenges, nonces, and the order of checks (RFC 8489 §9.2; rules I, L, N).

Nothing is stored per challenge. A nonce carries its issue time and a MAC that binds it to the client's transport
address and to the security features that it advertises, so that a forged, borrowed or bid-down nonce is noticed
before any user is looked up.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from turn.allocation import Allocation, FiveTuple
from turn.credentials import Credential, CredentialSource, KeyPair, StaticUsers
from turn.errors import StunRefusal
from wire.errors import StunAttributeError
from wire.stun import Attr, Message

NONCE_LIFETIME = 600.0  # N3; at most 3600
NONCE_KEY_LIFETIME = 86400.0  # N6
USERNAME_BYTES_MAX = 508  # S7
TEXT_CHARACTERS_MAX = 127  # REALM, NONCE, SOFTWARE: fewer than 128 characters

_COOKIE = "obMatJos2"
_MAC_BYTES = 12  # with 4 bytes of time and 2 of salt: base64 without padding
_PASSWORD_ALGORITHMS_BIT = 1 << 23
_USERNAME_ANONYMITY_BIT = 1 << 22
_ALGORITHM_MD5 = 1
_ALGORITHM_SHA256 = 2
# Both algorithms, the stronger first, without parameters (RFC 8489 §14.11).
PASSWORD_ALGORITHMS = bytes((0, _ALGORITHM_SHA256, 0, 0, 0, _ALGORITHM_MD5, 0, 0))
_NO_KEYS = (KeyPair(bytes(16), bytes(32)),)


class NonceSource:
    """Makes and checks nonces; keeps two keys and nothing else (N1 to N7)."""

    def __init__(
        self,
        features: int,
        *,
        lifetime: float = NONCE_LIFETIME,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._prefix = _COOKIE + base64.b64encode(features.to_bytes(3, "big")).decode()
        self._lifetime = lifetime
        self._token_bytes = token_bytes
        self._keys = [token_bytes(32)]
        self._rotate_at: float | None = None

    def make(self, five_tuple: FiveTuple, now: float) -> bytes:
        """A nonce for this client alone, good for the configured lifetime."""
        self._rotate(now)
        issued = int(now).to_bytes(4, "big") + self._token_bytes(2)
        mac = self._mac(self._keys[0], five_tuple, issued)
        return self._prefix.encode() + base64.urlsafe_b64encode(issued + mac)

    def check(self, nonce: str, five_tuple: FiveTuple, now: float) -> bool | None:
        """Whether `nonce` is still fresh; None when we never gave it to this client."""
        self._rotate(now)
        if not nonce.startswith(self._prefix):
            return None
        opaque = nonce[len(self._prefix) :]
        if len(opaque) != (4 + 2 + _MAC_BYTES) * 4 // 3:
            return None
        try:
            token = base64.b64decode(opaque, altchars=b"-_", validate=True)
        except ValueError:
            return None
        issued, mac = token[:6], token[6:]
        if not any(hmac.compare_digest(mac, self._mac(key, five_tuple, issued)) for key in self._keys):
            return None
        return now <= int.from_bytes(issued[:4], "big") + self._lifetime

    def _mac(self, key: bytes, five_tuple: FiveTuple, issued: bytes) -> bytes:
        return hmac.digest(key, f"{five_tuple}|{self._prefix}|".encode() + issued, "sha256")[:_MAC_BYTES]

    def _rotate(self, now: float) -> None:
        if self._rotate_at is None:
            self._rotate_at = now + NONCE_KEY_LIFETIME
        elif now >= self._rotate_at:
            self._keys = [self._token_bytes(32), self._keys[0]]
            self._rotate_at = now + NONCE_KEY_LIFETIME


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A request whose integrity holds."""

    credential: Credential
    key: bytes = field(repr=False)
    """The key that fitted; the response is signed with it."""
    sha256: bool
    """Whether the response is signed with MESSAGE-INTEGRITY-SHA256 (I8)."""


class Authenticator:
    """Answers one question: whose request is this? Raises `StunRefusal` with 400, 401 or 438 otherwise."""

    def __init__(
        self,
        realm: str,
        credentials: CredentialSource,
        *,
        users: StaticUsers | None = None,
        nonce_lifetime: float = NONCE_LIFETIME,
        wall_clock: Callable[[], float],
    ) -> None:
        """Build.

        Args:
            realm: what clients are told.
            credentials: every source of usernames.
            users: the static users among them, if *all* usernames are static: only then can a USERHASH be resolved,
                and only then is username anonymity offered (I9).
            nonce_lifetime: in seconds.
            wall_clock: unix time, for credentials that expire.
        """
        self._realm = realm
        self._credentials = credentials
        self._users = users
        self._wall_clock = wall_clock
        features = _PASSWORD_ALGORITHMS_BIT | (_USERNAME_ANONYMITY_BIT if users is not None else 0)
        self._nonces = NonceSource(features, lifetime=nonce_lifetime)

    def authenticate(
        self,
        message: Message,
        five_tuple: FiveTuple,
        allocation: Allocation | None,
        now: float,
        *,
        also: FiveTuple | None = None,
    ) -> Authenticated:
        """Check the request in the order of RFC 8489 §9.2.4 (rows L1 to L9).

        Args:
            message: the request.
            five_tuple: how it came.
            allocation: what exists on that 5-tuple; its owner's cached credential outlives an expiry (E4).
            now: monotonic clock, in seconds.
            also: a connection of the same client whose nonce it may use.

        Raises:
            StunRefusal: with everything that the response needs.
        """
        if not (message.has_integrity or message.has_integrity_sha256):
            raise self._challenge(401, five_tuple, now)
        try:
            username = message.text(Attr.USERNAME, USERNAME_BYTES_MAX)
            realm = _short_text(message, Attr.REALM)
            nonce = _short_text(message, Attr.NONCE)
        except StunAttributeError:
            raise StunRefusal(400) from None
        digest = message.get(Attr.USERHASH)
        if (username is None and digest is None) or realm is None or nonce is None:
            raise StunRefusal(400)
        fresh = self._nonces.check(nonce, five_tuple, now)
        if fresh is None and also is not None:
            fresh = self._nonces.check(nonce, also, now)
        if fresh is None:
            raise self._challenge(438, five_tuple, now)
        algorithm, sha256_response = _chosen_algorithm(message)

        if username is None and digest is not None and self._users is not None:
            username = self._users.username_of(digest)
        credential = None if username is None or realm != self._realm else self._find(username, allocation)
        # An unknown user costs the same HMAC as a known one and gets the same answer (X17).
        key = _fitting_key(message, credential.keys if credential else _NO_KEYS, algorithm)
        if credential is None or key is None:
            raise self._challenge(401, five_tuple, now)
        if not fresh:
            raise self._challenge(438, five_tuple, now)
        return Authenticated(credential, key, sha256_response)

    def seconds_left(self, credential: Credential) -> float | None:
        """How long `credential` is valid yet; None: for ever."""
        return None if credential.expires_at is None else credential.expires_at - self._wall_clock()

    def _find(self, username: str, allocation: Allocation | None) -> Credential | None:
        if allocation is not None and allocation.username == username and not allocation.credential.strict_expiry:
            return allocation.credential
        return self._credentials.find(username, self._wall_clock())

    def _challenge(self, code: int, five_tuple: FiveTuple, now: float) -> StunRefusal:
        return StunRefusal(
            code,
            (
                (Attr.REALM, self._realm.encode()),
                (Attr.NONCE, self._nonces.make(five_tuple, now)),
                (Attr.PASSWORD_ALGORITHMS, PASSWORD_ALGORITHMS),
            ),
        )


def _short_text(message: Message, attribute: int) -> str | None:
    text = message.text(attribute)
    if text is not None and len(text) > TEXT_CHARACTERS_MAX:
        raise StunAttributeError(attribute)
    return text


def _chosen_algorithm(message: Message) -> tuple[int, bool]:
    """The password algorithm, and whether the response is signed with SHA-256. Clients before RFC 8489 send neither
    attribute (L3); sending one without the other, or a list that is not ours, is a bid-down (L4)."""
    offered = message.get(Attr.PASSWORD_ALGORITHMS)
    chosen = message.get(Attr.PASSWORD_ALGORITHM)
    if offered is None and chosen is None:
        return _ALGORITHM_MD5, False
    if chosen is None or offered != PASSWORD_ALGORITHMS or len(chosen) != 4 or chosen[2:] != b"\0\0":
        raise StunRefusal(400)
    algorithm = int.from_bytes(chosen[:2], "big")
    if algorithm not in (_ALGORITHM_MD5, _ALGORITHM_SHA256):
        raise StunRefusal(400)
    return algorithm, True


def _fitting_key(message: Message, keys: tuple[KeyPair, ...], algorithm: int) -> bytes | None:
    """The key under which the integrity holds; of two integrity attributes only the SHA-256 one decides (L9)."""
    check = message.check_integrity_sha256 if message.has_integrity_sha256 else message.check_integrity
    for pair in keys:
        key = pair.sha256 if algorithm == _ALGORITHM_SHA256 else pair.md5
        if check(key):
            return key
    return None
