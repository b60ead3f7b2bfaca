"""SRTP protection profiles and the split of exported keying material (RFC 5764 §4.2, RFC 7714 §12; rule DTLS-3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SrtpProfile:
    """One `use_srtp` profile; sizes in bytes."""

    number: int
    """The IANA protection profile number."""
    name: str
    """As OpenSSL spells it."""
    key_bytes: int
    salt_bytes: int

    @property
    def material_bytes(self) -> int:
        """What to export: two keys and two salts."""
        return 2 * (self.key_bytes + self.salt_bytes)


# In our order of preference. AES_CM_128_HMAC_SHA1_32 is refused: its tag is too short.
PROFILES: Final = (
    SrtpProfile(7, "SRTP_AEAD_AES_128_GCM", 16, 12),
    SrtpProfile(8, "SRTP_AEAD_AES_256_GCM", 32, 12),
    SrtpProfile(1, "SRTP_AES128_CM_SHA1_80", 16, 14),
)


@dataclass(frozen=True, slots=True)
class SrtpKeys:
    """Master keys with their salts, as the data plane takes them."""

    profile: int
    send_key: bytes
    receive_key: bytes

    def __repr__(self) -> str:
        """The profile alone: keys are secrets."""
        return f"SrtpKeys(profile={self.profile})"


def split_keys(profile: SrtpProfile, material: bytes, *, is_client: bool) -> SrtpKeys:
    """Cut `material` (client key, server key, client salt, server salt) for our role in the handshake."""
    key, salt = profile.key_bytes, profile.salt_bytes
    client = material[:key] + material[2 * key : 2 * key + salt]
    server = material[key : 2 * key] + material[2 * key + salt : 2 * (key + salt)]
    send, receive = (client, server) if is_client else (server, client)
    return SrtpKeys(profile.number, send, receive)
