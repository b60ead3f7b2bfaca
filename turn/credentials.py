"""Who may use the server: static users, time-limited REST names, credentials issued by the HTTP API (E1 to E7).

Only derived keys are kept (I7): MD5 and SHA-256 of `user:realm:password` (RFC 8489 §9.2.2, §18.5.1). Expiry is wall
clock time, because names and tokens carry it between machines; it is turned into monotonic time once, when an
allocation is made (G7).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from turn.errors import ConfigurationError, InvalidParams, UnknownCredential
from turn.revocations import Revocations

REST_TTL_MAX = 48 * 3600.0  # E2
IDENTIFIER_BYTES_MAX = 128

_TOKEN_BYTES = 48  # 96 hex digits, the size that clients of the original service see
_MAC_BYTES = 16
_HEAD_BYTES = 1 + 5 + 8  # version, expiry, key tag
_VERSION = 1


class KeyPair(NamedTuple):
    """The integrity keys of one password, by PASSWORD-ALGORITHM."""

    md5: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Credential:
    """A username that may be used, and with which keys."""

    username: str
    quota_identity: str | None
    """Whose quota its allocations count against; None: this username from this client address (E7)."""
    keys: tuple[KeyPair, ...] = field(repr=False)
    """More than one while shared secrets rotate (E3)."""
    expires_at: float | None = None
    """Unix time; None: never."""
    strict_expiry: bool = False
    """Whether allocations end when the credential does (E4)."""


class CredentialSource(Protocol):
    """Where usernames are looked up."""

    def find(self, username: str, unix_time: float) -> Credential | None:
        """The credential of `username` if it is valid at `unix_time`. Cheap: called once per request."""


def opaque_string(text: str) -> str:
    """RFC 8265 §4.2 (OpaqueString): spaces become U+0020, NFC, no control, format or unassigned characters.

    Raises:
        ValueError: empty, or a character that the profile forbids.
    """
    mapped = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
    prepared = unicodedata.normalize("NFC", mapped)
    if not prepared or any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in prepared):
        raise ValueError("not an opaque string")
    return prepared


def derive_keys(username: str, realm: str, password: str) -> KeyPair:
    """The long-term keys (I6). The MD5 one is what every deployed client uses."""
    text = f"{username}:{realm}:{password}".encode()
    return KeyPair(hashlib.md5(text, usedforsecurity=False).digest(), hashlib.sha256(text).digest())


def userhash(username: str, realm: str) -> bytes:
    """USERHASH of a user (RFC 8489 §14.4), 32 bytes."""
    return hashlib.sha256(f"{opaque_string(username)}:{opaque_string(realm)}".encode()).digest()


class StaticUsers:
    """Users from the settings (E5). The passwords are forgotten once the keys are derived."""

    def __init__(self, passwords: Mapping[str, str], realm: str) -> None:
        self._users: dict[str, Credential] = {}
        self._by_hash: dict[bytes, str] = {}
        for name, password in passwords.items():
            try:
                user = opaque_string(name)
                keys = derive_keys(user, realm, opaque_string(password))
            except ValueError:
                raise ConfigurationError("users: a name or password has characters that RFC 8265 forbids") from None
            self._users[user] = Credential(user, user, (keys,))
            self._by_hash[userhash(user, realm)] = user

    def __len__(self) -> int:
        return len(self._users)

    def find(self, username: str, unix_time: float) -> Credential | None:
        """See `CredentialSource`."""
        return self._users.get(username)

    def username_of(self, digest: bytes) -> str | None:
        """The user behind a USERHASH (I9)."""
        return self._by_hash.get(digest)


class RestSecrets:
    """`expiry[:id]`, password base64(HMAC-SHA1(secret, username)) (draft-uberti-behave-turn-rest-00; E1 to E3)."""

    def __init__(
        self,
        shared_secrets: Sequence[str],
        realm: str,
        *,
        separator: str = ":",
        ttl_max: float = REST_TTL_MAX,
        strict_expiry: bool = False,
    ) -> None:
        self._secrets = tuple(secret.encode() for secret in shared_secrets)
        self._realm = realm
        self._separator = separator
        self._ttl_max = ttl_max
        self._strict_expiry = strict_expiry

    def find(self, username: str, unix_time: float) -> Credential | None:
        """See `CredentialSource`. Refuses expiries that are past, not a number, or further away than `ttl_max` (E2)."""
        expiry, _, identity = username.partition(self._separator)
        if not self._secrets or not (expiry.isascii() and expiry.isdigit()) or len(expiry) > 15:
            return None
        expires_at = float(expiry)
        if not unix_time < expires_at <= unix_time + self._ttl_max:
            return None
        keys = tuple(derive_keys(username, self._realm, rest_password(secret, username)) for secret in self._secrets)
        return Credential(username, f"rest:{identity}" if identity else None, keys, expires_at, self._strict_expiry)


def rest_password(secret: bytes, username: str) -> str:
    """The password that belongs to a REST username."""
    return base64.b64encode(hmac.digest(secret, username.encode(), "sha1")).decode()


class IssuedCredential(NamedTuple):
    """What the HTTP API hands out."""

    username: str
    credential: str
    expires_at: float


class CredentialIssuer:
    """Credentials of the HTTP API: sealed, not stored; a revoked one is remembered until it would have expired.

    The username is hex of version, expiry, tag of the API key, salt, the custom identifier if any, and a MAC; the
    password is another MAC over it. Both come from one secret, so that a restart (with the same secret) and other
    nodes of a fleet accept them, and an unlimited number may be handed out.
    """

    def __init__(self, secret: bytes, realm: str, revocations: Revocations | None = None) -> None:
        if len(secret) < 16:
            raise ConfigurationError("credential_secret: at least 16 bytes")
        self._name_key = hmac.digest(secret, b"turn credential name", "sha256")
        self._password_key = hmac.digest(secret, b"turn credential password", "sha256")
        self._realm = realm
        self._revocations = Revocations() if revocations is None else revocations

    def issue(
        self, key_id: str, ttl: float, unix_time: float, custom_identifier: str | None = None
    ) -> IssuedCredential:
        """A new credential, valid for `ttl` seconds.

        Raises:
            InvalidParams: `custom_identifier` is longer than `IDENTIFIER_BYTES_MAX` in UTF-8, or no Unicode text.
        """
        try:
            identifier = (custom_identifier or "").encode()
        except UnicodeEncodeError:  # JSON can name half of a surrogate pair
            raise InvalidParams("customIdentifier is not Unicode text") from None
        if len(identifier) > IDENTIFIER_BYTES_MAX:
            raise InvalidParams(f"customIdentifier is longer than {IDENTIFIER_BYTES_MAX} bytes")
        expires_at = int(unix_time + ttl)
        head = bytes((_VERSION,)) + expires_at.to_bytes(5, "big") + key_tag(key_id)
        salt = secrets.token_bytes(_TOKEN_BYTES - _HEAD_BYTES - _MAC_BYTES)
        body = head + salt + identifier
        username = (body + hmac.digest(self._name_key, body, "sha256")[:_MAC_BYTES]).hex()
        return IssuedCredential(username, self._password(username), expires_at)

    def find(self, username: str, unix_time: float) -> Credential | None:
        """See `CredentialSource`."""
        token = self._open(username)
        if token is None or username in self._revocations:
            return None
        expires_at = int.from_bytes(token[1:6], "big")
        if unix_time >= expires_at:
            return None
        keys = (derive_keys(username, self._realm, self._password(username)),)
        return Credential(username, f"issued:{username}", keys, expires_at, strict_expiry=True)

    def party_of(self, username: str) -> tuple[bytes, str] | None:
        """The tag of the key under which `username` was issued, and its custom identifier; None: not issued here."""
        token = self._open(username)
        if token is None:
            return None
        return token[6:_HEAD_BYTES], token[_TOKEN_BYTES - _MAC_BYTES :].decode(errors="replace")

    def revoke(self, key_id: str, username: str, unix_time: float) -> None:
        """Let `username` end now. Its allocations are the server's business.

        Raises:
            UnknownCredential: not issued here, or not under `key_id`.
            OSError: in force, but not on disk.
        """
        token = self._open(username)
        if token is None or not hmac.compare_digest(token[6:_HEAD_BYTES], key_tag(key_id)):
            raise UnknownCredential("no such credential under this key")
        self._revocations.add(username, int.from_bytes(token[1:6], "big"), unix_time)

    def _open(self, username: str) -> bytes | None:
        """The sealed bytes without their MAC, or None when we did not make them. One spelling per credential only."""
        if not 2 * _TOKEN_BYTES <= len(username) <= 2 * (_TOKEN_BYTES + IDENTIFIER_BYTES_MAX):
            return None
        try:
            token = bytes.fromhex(username)
        except ValueError:
            return None
        body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
        if token.hex() != username or body[0] != _VERSION:
            return None
        if not hmac.compare_digest(mac, hmac.digest(self._name_key, body, "sha256")[:_MAC_BYTES]):
            return None
        return body

    def _password(self, username: str) -> str:
        return hmac.digest(self._password_key, username.encode(), "sha384").hex()


def key_tag(key_id: str) -> bytes:
    """How a credential names its key: 8 bytes."""
    return hashlib.sha256(key_id.encode()).digest()[:8]


class CredentialChain:
    """Several sources; the first that knows the username decides."""

    def __init__(self, sources: Iterable[CredentialSource]) -> None:
        self._sources = tuple(sources)

    def find(self, username: str, unix_time: float) -> Credential | None:
        """See `CredentialSource`."""
        for source in self._sources:
            if (credential := source.find(username, unix_time)) is not None:
                return credential
        return None
