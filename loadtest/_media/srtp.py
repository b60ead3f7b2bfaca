"""libsrtp as bundled in the `pylibsrtp` wheel: sessions made here; its functions called per packet by address."""

from __future__ import annotations

from pylibsrtp._binding import ffi, lib

WINDOW = 1024  # packets a late one may be behind the newest

# IANA "DTLS-SRTP Protection Profiles" to libsrtp's.
_PROFILES: dict[int, int] = {
    1: lib.srtp_profile_aes128_cm_sha1_80,
    7: lib.srtp_profile_aead_aes_128_gcm,
    8: lib.srtp_profile_aead_aes_256_gcm,
}


def function_address(name: str) -> int:
    """Address of one of libsrtp's functions, callable from any thread without the GIL."""
    return int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))


def create_session(profile: int, key: bytes, *, inbound: bool) -> int:
    """A session for any SSRC of one direction; the caller owns the handle until `destroy_session`.

    Raises:
        ValueError: not a profile we speak.
        MemoryError: libsrtp could not make it.
    """
    if profile not in _PROFILES:
        raise ValueError(f"SRTP profile {profile}")
    policy = ffi.new("srtp_policy_t *")
    lib.srtp_crypto_policy_set_from_profile_for_rtp(ffi.addressof(policy.rtp), _PROFILES[profile])
    lib.srtp_crypto_policy_set_from_profile_for_rtcp(ffi.addressof(policy.rtcp), _PROFILES[profile])
    policy.ssrc.type = lib.ssrc_any_inbound if inbound else lib.ssrc_any_outbound
    master = ffi.new("unsigned char[]", key)
    policy.key = master
    policy.window_size = WINDOW
    policy.allow_repeat_tx = 0 if inbound else 1  # a resend without RTX repeats the same bytes
    session = ffi.new("srtp_t *")
    status = lib.srtp_create(session, policy)
    if status != lib.srtp_err_status_ok:
        raise MemoryError(f"srtp_create: status {status}")
    return int(ffi.cast("uintptr_t", session[0]))


def destroy_session(handle: int) -> None:
    """Free a session that no thread uses any more; 0 is ignored."""
    if handle:
        lib.srtp_dealloc(ffi.cast("srtp_t", handle))
