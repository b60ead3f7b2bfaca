"""The ceiling as a server process: binds, prints its port, reads keys from stdin, forwards until it is ended."""

from __future__ import annotations

import json
import socket
import sys

from pylibsrtp import Policy, Session
from pylibsrtp._binding import ffi, lib

from benchmarks._ceiling.loop import forward

SOL_UDP, UDP_GRO = 17, 104
GCM_128 = Policy.SRTP_PROFILE_AEAD_AES_128_GCM


def session(key: bytes, *, inbound: bool) -> Session:
    """An SRTP context for any SSRC of one direction."""
    direction = Policy.SSRC_ANY_INBOUND if inbound else Policy.SSRC_ANY_OUTBOUND
    return Session(Policy(key=key, ssrc_type=direction, srtp_profile=GCM_128))


def main() -> None:
    """Configuration on stdin: [[publisher's key, [[key, ssrc, host, port], ...]], ...], keys in hex."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(SOL_UDP, UDP_GRO, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
    listener.bind((sys.argv[1], 0))
    print(listener.getsockname()[1], flush=True)

    kept: list[Session] = []

    def context(key: str, *, inbound: bool) -> int:
        kept.append(session(bytes.fromhex(key), inbound=inbound))
        return int(ffi.cast("uintptr_t", kept[-1]._srtp[0]))

    sources = [
        (
            context(publisher_key, inbound=True),
            [
                (
                    context(key, inbound=False),
                    ssrc,
                    int.from_bytes(socket.inet_aton(host), sys.byteorder),
                    port,
                )
                for key, ssrc, host, port in destinations
            ],
        )
        for publisher_key, destinations in json.loads(sys.stdin.readline())
    ]
    address = {
        name: int(ffi.cast("uintptr_t", ffi.addressof(lib, name))) for name in ("srtp_unprotect", "srtp_protect")
    }
    forward(listener.fileno(), sources, address["srtp_unprotect"], address["srtp_protect"])


if __name__ == "__main__":
    main()
