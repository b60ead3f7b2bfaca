"""STUN messages: parse, serialize, integrity and fingerprint (RFC 8489), with the attributes of ICE and TURN.

What is here: bytes to values and back. What is not: transactions, retransmission, and any opinion on which method,
class or attribute is allowed; those belong to the ICE agent and the TURN server.

`parse` checks the frame: header, length, every attribute inside the message, FINGERPRINT. It does not check
integrity: authenticate with `Message.check_integrity` once the key is known, before believing any attribute. Only the
attributes that integrity covers are visible (RFC 8489 §14.5), so what follows MESSAGE-INTEGRITY cannot be obeyed by
mistake.

    request = stun.parse(datagram)                                        # StunError: drop
    if not request.check_integrity(key): ...
    reply = stun.success_response(
        request, [(Attr.XOR_MAPPED_ADDRESS, stun.xor_address(source, request.transaction_id))], key=key)
"""

from __future__ import annotations

import hmac
import struct
import zlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from wire.errors import StunAttributeError, StunError

IPAddress = IPv4Address | IPv6Address
AttributeList = Iterable[tuple[int, bytes]]

MAGIC_COOKIE = 0x2112A442
HEADER_BYTES = 20
TRANSACTION_ID_BYTES = 12
ATTRIBUTES_MAX = 64  # no message of ICE or TURN needs a third of it; bounds the work per datagram

_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")
_FINGERPRINT_XOR = 0x5354554E  # §14.7
_FINGERPRINT_BYTES = 8
_SHA1_BYTES = 20
_SHA256_BYTES = 32
_REASON_BYTES_MAX = 508  # 127 characters of UTF-8 at most (§14.8)
_FAMILY_IPV4 = 1
_FAMILY_IPV6 = 2

_HEADER = struct.Struct("!HHI12s")
_TYPE_LENGTH = struct.Struct("!HH")


class Method(IntEnum):
    """Methods of RFC 8489 §18.2, RFC 8656 §17 and RFC 6062 §6.1."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


class MessageClass(IntEnum):
    """RFC 8489 §5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Attr(IntEnum):
    """Attribute types of RFC 8489 §18.3, RFC 8445 §20.1, RFC 8656 §18, RFC 6062, RFC 7635 and RFC 8016.

    Below 0x8000 a receiver must understand the attribute or refuse the request (420).
    """

    MAPPED_ADDRESS = 0x0001
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    REALM = 0x0014
    NONCE = 0x0015
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_ADDRESS_FAMILY = 0x0017
    EVEN_PORT = 0x0018
    REQUESTED_TRANSPORT = 0x0019
    DONT_FRAGMENT = 0x001A
    ACCESS_TOKEN = 0x001B
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    RESERVATION_TOKEN = 0x0022
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    CONNECTION_ID = 0x002A
    ADDITIONAL_ADDRESS_FAMILY = 0x8000
    ADDRESS_ERROR_CODE = 0x8001
    PASSWORD_ALGORITHMS = 0x8002
    ALTERNATE_DOMAIN = 0x8003
    ICMP = 0x8004
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A
    THIRD_PARTY_AUTHORIZATION = 0x802E
    MOBILITY_TICKET = 0x8030
    NOMINATION = 0xC001  # draft-thatcher-ice-renomination, as browsers send it


_MESSAGE_INTEGRITY = int(Attr.MESSAGE_INTEGRITY)
_MESSAGE_INTEGRITY_SHA256 = int(Attr.MESSAGE_INTEGRITY_SHA256)
_FINGERPRINT = int(Attr.FINGERPRINT)


class TransportAddress(NamedTuple):
    """An IP address and a port. Hashable; compares by value."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


class Message:
    """A parsed message. Made by `parse`; read-only by convention."""

    __slots__ = (
        "_integrity",
        "_integrity_sha256",
        "attributes",
        "has_fingerprint",
        "message_class",
        "method",
        "raw",
        "transaction_id",
    )

    method: int
    """12 bits; compare with `Method`."""
    message_class: int
    """2 bits; compare with `MessageClass`."""
    transaction_id: bytes
    """12 bytes."""
    attributes: list[tuple[int, bytes]]
    """Type and unpadded value of each visible attribute, in order; integrity and fingerprint are not among them."""
    has_fingerprint: bool
    """Whether a FINGERPRINT was present (and, having passed `parse`, right)."""
    raw: bytes
    """The whole message as received."""

    def __init__(
        self,
        raw: bytes,
        message_type: int,
        transaction_id: bytes,
        attributes: list[tuple[int, bytes]],
        integrity: tuple[int, bytes] | None,
        integrity_sha256: tuple[int, bytes] | None,
        has_fingerprint: bool,
    ) -> None:
        self.raw = raw
        self.method = message_type & 0x000F | (message_type & 0x00E0) >> 1 | (message_type & 0x3E00) >> 2
        self.message_class = message_type >> 4 & 1 | message_type >> 7 & 2
        self.transaction_id = transaction_id
        self.attributes = attributes
        self.has_fingerprint = has_fingerprint
        self._integrity = integrity
        self._integrity_sha256 = integrity_sha256

    def __repr__(self) -> str:
        """Method and class only: values may be credentials or payload."""
        return f"<stun.Message method={self.method:#05x} class={self.message_class} {len(self.raw)} bytes>"

    # Reading attributes. Of a repeated attribute only the first counts (RFC 8489 §14).

    def get(self, attribute: int) -> bytes | None:
        """The value of the first `attribute`, or None."""
        for found, value in self.attributes:
            if found == attribute:
                return value
        return None

    def get_all(self, attribute: int) -> list[bytes]:
        """Every value of `attribute`: XOR-PEER-ADDRESS in CreatePermission is the one that may repeat."""
        return [value for found, value in self.attributes if found == attribute]

    def __contains__(self, attribute: int) -> bool:
        return self.get(attribute) is not None

    def uint(self, attribute: int, size: int = 4) -> int | None:
        """The big-endian number of `size` bytes in `attribute`, or None when absent.

        Raises:
            StunAttributeError: the value has another size.
        """
        value = self.get(attribute)
        if value is None:
            return None
        if len(value) != size:
            raise StunAttributeError(attribute)
        return int.from_bytes(value, "big")

    def text(self, attribute: int, max_bytes: int = 763) -> str | None:
        """The UTF-8 text in `attribute`, or None when absent.

        Raises:
            StunAttributeError: not UTF-8, or longer than `max_bytes` (RFC 8489: 508 for USERNAME, 763 otherwise).
        """
        value = self.get(attribute)
        if value is None:
            return None
        if len(value) > max_bytes:
            raise StunAttributeError(attribute)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise StunAttributeError(attribute) from None

    def address(self, attribute: int) -> TransportAddress | None:
        """The XOR-ed address in `attribute` (XOR-MAPPED-, XOR-PEER-, XOR-RELAYED-ADDRESS), or None when absent.

        Raises:
            StunAttributeError: wrong size or unknown family.
        """
        value = self.get(attribute)
        if value is None:
            return None
        address = parse_xor_address(value, self.transaction_id)
        if address is None:
            raise StunAttributeError(attribute)
        return address

    def error(self) -> tuple[int, str] | None:
        """Code and reason phrase of ERROR-CODE, or None when absent.

        Raises:
            StunAttributeError: too short, not UTF-8, or a class outside 3..6 or a number above 99 (§14.8).
        """
        value = self.get(Attr.ERROR_CODE)
        if value is None:
            return None
        if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
            raise StunAttributeError(Attr.ERROR_CODE)
        try:
            return (value[2] & 7) * 100 + value[3], value[4:].decode()
        except UnicodeDecodeError:
            raise StunAttributeError(Attr.ERROR_CODE) from None

    def unknown_required(self, known: frozenset[int]) -> list[int]:
        """Types below 0x8000 that are not in `known`, each once, in order: the content of UNKNOWN-ATTRIBUTES (420)."""
        return list(dict.fromkeys(found for found, _ in self.attributes if found < 0x8000 and found not in known))

    # Integrity.

    @property
    def has_integrity(self) -> bool:
        """Whether there is a MESSAGE-INTEGRITY, right or wrong."""
        return self._integrity is not None

    @property
    def has_integrity_sha256(self) -> bool:
        """Whether there is a MESSAGE-INTEGRITY-SHA256, right or wrong."""
        return self._integrity_sha256 is not None

    def check_integrity(self, key: bytes) -> bool:
        """Whether MESSAGE-INTEGRITY is present and right for `key`, compared in constant time (RFC 8489 §14.5)."""
        return self._check(self._integrity, key, "sha1", _SHA1_BYTES)

    def check_integrity_sha256(self, key: bytes) -> bool:
        """The same for MESSAGE-INTEGRITY-SHA256 (§14.6). A truncated one is wrong: neither ICE nor TURN permits it."""
        return self._check(self._integrity_sha256, key, "sha256", _SHA256_BYTES)

    def _check(self, found: tuple[int, bytes] | None, key: bytes, digest: str, size: int) -> bool:
        if found is None or len(found[1]) != size:
            return False
        offset, received = found
        return hmac.compare_digest(received, _integrity(self.raw[:offset], key, digest, size))


def _integrity(message: bytes | bytearray, key: bytes, digest: str, size: int) -> bytes:
    """HMAC over `message`, which ends where the integrity attribute begins, with the length that includes it."""
    length = len(message) + 4 + size - HEADER_BYTES
    return hmac.digest(key, bytes(message[:2]) + length.to_bytes(2, "big") + message[4:], digest)


def parse(data: bytes) -> Message:
    """Parse one whole message: a datagram, or what the stream framing cut out.

    Args:
        data: exactly one message.

    Raises:
        StunError: not STUN, cookie-less (RFC 3489), a length that is not the size of `data` or not a multiple
            of 4, an attribute past the end, more than `ATTRIBUTES_MAX` attributes, a FINGERPRINT that is wrong or not
            last, an all-zero transaction id (no random source makes one). Drop it: nothing in it can be trusted
            enough to answer.
    """
    size = len(data)
    if size < HEADER_BYTES:
        raise StunError("shorter than the header")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if message_type > 0x3FFF or cookie != MAGIC_COOKIE:
        raise StunError("not STUN")
    if length & 3 or length != size - HEADER_BYTES:
        raise StunError("length field")
    if not any(transaction_id):
        raise StunError("transaction id")

    attributes: list[tuple[int, bytes]] = []
    integrity: tuple[int, bytes] | None = None
    integrity_sha256: tuple[int, bytes] | None = None
    has_fingerprint = False
    count = 0
    offset = HEADER_BYTES
    unpack = _TYPE_LENGTH.unpack_from
    while offset < size:
        # The length is a multiple of 4 and so is every step: a header of 4 bytes always fits here.
        attribute, value_size = unpack(data, offset)
        end = offset + 4 + value_size
        if end > size:
            raise StunError("attribute past the end")
        if (count := count + 1) > ATTRIBUTES_MAX:
            raise StunError("too many attributes")
        if attribute == _FINGERPRINT:
            if value_size != 4 or end != size:
                raise StunError("FINGERPRINT is not last")
            if int.from_bytes(data[end - 4 :], "big") != fingerprint(data[:offset]):
                raise StunError("FINGERPRINT is wrong")
            has_fingerprint = True
        elif integrity_sha256 is not None:
            pass  # §14.6: only FINGERPRINT is seen after it
        elif attribute == _MESSAGE_INTEGRITY_SHA256:
            integrity_sha256 = offset, data[offset + 4 : end]
        elif integrity is not None:
            pass  # §14.5: only the two above are seen after it
        elif attribute == _MESSAGE_INTEGRITY:
            integrity = offset, data[offset + 4 : end]
        else:
            attributes.append((attribute, data[offset + 4 : end]))
        offset = end + 3 & ~3
    return Message(data, message_type, transaction_id, attributes, integrity, integrity_sha256, has_fingerprint)


def fingerprint(message: bytes | bytearray) -> int:
    """The FINGERPRINT value (§14.7) over `message`, whose length field already counts the attribute."""
    return zlib.crc32(message) ^ _FINGERPRINT_XOR


def serialize(
    method: int,
    message_class: int,
    transaction_id: bytes,
    attributes: AttributeList,
    *,
    key: bytes | None = None,
    sha256_key: bytes | None = None,
    with_fingerprint: bool = False,
) -> bytes:
    """One message. Padding bytes are zero.

    Args:
        method: 12 bits.
        message_class: 2 bits.
        transaction_id: 12 bytes; unpredictable for a request (RFC 8489 §5), the request's own for a response.
        attributes: type and value, in order.
        key: adds MESSAGE-INTEGRITY under this key.
        sha256_key: adds MESSAGE-INTEGRITY-SHA256 under this key, after the former if both are asked for.
        with_fingerprint: adds FINGERPRINT, last.

    Raises:
        ValueError: the attributes exceed 65,535 bytes, or the transaction id does not have 12: our own mistake.
    """
    if len(transaction_id) != TRANSACTION_ID_BYTES:
        raise ValueError("a transaction id has 12 bytes")
    message_type = (
        method & 0x000F
        | (method & 0x0070) << 1
        | (method & 0x0F80) << 2
        | (message_class & 1) << 4
        | (message_class & 2) << 7
    )
    message = bytearray(message_type.to_bytes(2, "big"))
    message += b"\0\0"
    message += _COOKIE_BYTES
    message += transaction_id
    for attribute, value in attributes:
        _append(message, attribute, value)
    if key is not None:
        _append(message, _MESSAGE_INTEGRITY, _integrity(message, key, "sha1", _SHA1_BYTES))
    if sha256_key is not None:
        _append(message, _MESSAGE_INTEGRITY_SHA256, _integrity(message, sha256_key, "sha256", _SHA256_BYTES))
    length = len(message) - HEADER_BYTES + (_FINGERPRINT_BYTES if with_fingerprint else 0)
    if length > 0xFFFF:
        raise ValueError("the attributes exceed 65,535 bytes")
    message[2:4] = length.to_bytes(2, "big")
    if with_fingerprint:
        _append(message, _FINGERPRINT, fingerprint(message).to_bytes(4, "big"))
    return bytes(message)


def _append(message: bytearray, attribute: int, value: bytes) -> None:
    size = len(value)
    message += _TYPE_LENGTH.pack(attribute, size)
    message += value
    if size & 3:
        message += bytes(4 - (size & 3))


def success_response(
    request: Message,
    attributes: AttributeList,
    *,
    key: bytes | None = None,
    sha256_key: bytes | None = None,
    with_fingerprint: bool | None = None,
) -> bytes:
    """The success response to `request`; FINGERPRINT as the request had it, unless `with_fingerprint` says."""
    return serialize(
        request.method,
        MessageClass.SUCCESS,
        request.transaction_id,
        attributes,
        key=key,
        sha256_key=sha256_key,
        with_fingerprint=request.has_fingerprint if with_fingerprint is None else with_fingerprint,
    )


def error_response(
    request: Message,
    code: int,
    reason: str = "",
    attributes: AttributeList = (),
    *,
    key: bytes | None = None,
    sha256_key: bytes | None = None,
    with_fingerprint: bool | None = None,
) -> bytes:
    """The error response to `request`: ERROR-CODE first, then `attributes`.

    An empty `reason` keeps replies to strangers shorter than what they sent.
    """
    return serialize(
        request.method,
        MessageClass.ERROR,
        request.transaction_id,
        [(Attr.ERROR_CODE, error_code(code, reason)), *attributes],
        key=key,
        sha256_key=sha256_key,
        with_fingerprint=request.has_fingerprint if with_fingerprint is None else with_fingerprint,
    )


# Attribute values.


def uint32(value: int) -> bytes:
    """LIFETIME, PRIORITY and other 32-bit numbers."""
    return value.to_bytes(4, "big")


def uint64(value: int) -> bytes:
    """The tie-breaker in ICE-CONTROLLED and ICE-CONTROLLING."""
    return value.to_bytes(8, "big")


def error_code(code: int, reason: str = "") -> bytes:
    """ERROR-CODE and, for code 440 or 508 of one family, the tail of ADDRESS-ERROR-CODE (§14.8)."""
    return bytes((0, 0, code // 100, code % 100)) + reason.encode()[:_REASON_BYTES_MAX]


def unknown_attributes(attributes: Sequence[int]) -> bytes:
    """UNKNOWN-ATTRIBUTES (§14.9)."""
    return struct.pack(f"!{len(attributes)}H", *attributes)


def plain_address(address: tuple[str | IPAddress, int]) -> bytes:
    """ALTERNATE-SERVER, or MAPPED-ADDRESS for clients of RFC 3489 (§14.1, §14.15)."""
    ip, port = address
    if isinstance(ip, str):
        ip = ip_address(ip)
    return struct.pack("!BBH", 0, _FAMILY_IPV4 if ip.version == 4 else _FAMILY_IPV6, port) + ip.packed


def xor_address(address: tuple[str | IPAddress, int], transaction_id: bytes) -> bytes:
    """XOR-MAPPED-, XOR-PEER- or XOR-RELAYED-ADDRESS (§14.2). An IPv6 zone id is left out."""
    ip, port = address
    if isinstance(ip, str):
        ip = ip_address(ip)
    mask = _COOKIE_BYTES + transaction_id
    family = _FAMILY_IPV4 if ip.version == 4 else _FAMILY_IPV6
    packed = ip.packed
    xored = int.from_bytes(packed, "big") ^ int.from_bytes(mask[: len(packed)], "big")
    return struct.pack("!BBH", 0, family, port ^ MAGIC_COOKIE >> 16) + xored.to_bytes(len(packed), "big")


def parse_xor_address(value: bytes, transaction_id: bytes) -> TransportAddress | None:
    """The inverse of `xor_address`; None for a wrong size or an unknown family."""
    if len(value) < 4:
        return None
    family = value[1]
    port = int.from_bytes(value[2:4], "big") ^ MAGIC_COOKIE >> 16
    xored = int.from_bytes(value[4:], "big")
    if family == _FAMILY_IPV4 and len(value) == 8:
        return TransportAddress(IPv4Address(xored ^ MAGIC_COOKIE), port)
    if family == _FAMILY_IPV6 and len(value) == 20:
        mask = int.from_bytes(_COOKIE_BYTES + transaction_id, "big")
        return TransportAddress(IPv6Address(xored ^ mask), port)
    return None
