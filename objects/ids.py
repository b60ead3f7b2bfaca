"""Names and identities of objects.

An object is named for ever by 32 bytes, shown as 64 lowercase hex digits: 16 bytes that identify it inside its
namespace, then 16 bytes of MAC over them under the namespace's key. So an id is self-authenticating: a string from a
client is accepted only if this server made it for this namespace, and nobody can invent one.

    from_name("lobby")  → HMAC(key, name)[:16] + MAC      same name, same object, for ever
    unique()            → 16 random bytes      + MAC      the caller must keep the string
    parse("3f…")        → checked, never looked up

Making an id or parsing one never touches storage and never wakes anything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import NewType

from objects.errors import InvalidObjectId, UsageError
from objects.text import utf8_size

ObjectKey = NewType("ObjectKey", str)
"""`namespace/64 hex digits`: the object's identity as one string, for tables and logs."""

MAX_NAME_BYTES = 1024
"""A longer name still makes an id, but the object itself does not get to see it."""

_HALF = 16
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class ObjectId:
    """The identity of one object; compares and hashes by namespace and the 32 bytes, ignoring the name."""

    namespace: str
    digest: bytes
    name: str | None = field(default=None, compare=False)
    """Present only on ids made from a name: the digest cannot be turned back into it."""
    key: ObjectKey = field(init=False, repr=False, compare=False)
    """The identity as one string; kept, since every event looks its object up by it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", ObjectKey(f"{self.namespace}/{self.digest.hex()}"))

    def __str__(self) -> str:
        return self.digest.hex()

    def inside(self) -> ObjectId:
        """Return the id as the object itself sees it: without a name longer than 1,024 bytes of UTF-8."""
        if self.name is not None and len(self.name.encode()) > MAX_NAME_BYTES:
            return ObjectId(self.namespace, self.digest)
        return self


class IdFactory:
    """Makes and checks the ids of one namespace.

    Args:
        namespace: letters, digits, `_`, `-`, at most 64: it is also a folder name.
        secret: the server's secret, at least 16 bytes. Another secret gives other ids for the same names.

    Raises:
        UsageError: for a namespace or secret outside these limits.
    """

    def __init__(self, namespace: str, secret: bytes) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise UsageError(f"namespace {namespace!r} must be 1 to 64 letters, digits, '_' or '-'")
        if len(secret) < _HALF:
            raise UsageError("the secret that ids are made with must have at least 16 bytes")
        self.namespace = namespace
        # Two keys, so that a 16-byte name cannot be chosen to yield the MAC of another id.
        self._name_key = _hmac(secret, b"name\0" + namespace.encode())
        self._mac_key = _hmac(secret, b"mac\0" + namespace.encode())

    def from_name(self, name: str) -> ObjectId:
        """Return the id that `name` has had and will have for ever in this namespace.

        Raises:
            UsageError: no text.
        """
        utf8_size(name, "a name")
        head = _hmac(self._name_key, name.encode())[:_HALF]
        return ObjectId(self.namespace, head + self._mac(head), name)

    def unique(self) -> ObjectId:
        """Return an id nobody has; no name leads to it."""
        head = secrets.token_bytes(_HALF)
        return ObjectId(self.namespace, head + self._mac(head))

    def parse(self, text: str) -> ObjectId:
        """Return the id that `str(id)` gave, without its name.

        Raises:
            InvalidObjectId: not 64 lowercase hex digits, or not made for this namespace by this server.
        """
        if not _HEX_ID.fullmatch(text):
            raise InvalidObjectId("an object id is 64 lowercase hex digits")
        return self.from_digest(bytes.fromhex(text))

    def from_digest(self, digest: bytes, name: str | None = None) -> ObjectId:
        """Return the id of 32 stored bytes.

        Raises:
            InvalidObjectId: not made for this namespace by this server.
        """
        if len(digest) != 2 * _HALF or not hmac.compare_digest(self._mac(digest[:_HALF]), digest[_HALF:]):
            raise InvalidObjectId(f"this object id is not valid for namespace {self.namespace!r}")
        return ObjectId(self.namespace, digest, name)

    def _mac(self, head: bytes) -> bytes:
        return _hmac(self._mac_key, head)[:_HALF]


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
