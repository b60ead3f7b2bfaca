"""Socket addresses as the planes keep them: comparable as bytes. Nothing here allocates; only the last two need the GIL."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "sys/socket.h" nogil:
    enum: AF_INET, AF_INET6

cdef extern from "arpa/inet.h" nogil:
    int inet_pton(int family, const char *text, void *out) noexcept
    const char *inet_ntop(int family, const void *address, char *text, unsigned int size) noexcept

cdef struct Address:
    # A sockaddr_in or sockaddr_in6 with everything but family, port, address and scope zero: comparable as bytes.
    uint8_t raw[28]
    uint32_t length             # 16 or 28, 0: none


cdef inline void normalize_address(Address *a, uint32_t length) noexcept nogil:
    if length >= 28:
        memset(a.raw + 4, 0, 4)     # flow label
        a.length = 28
    elif length >= 16:
        memset(a.raw + 8, 0, 20)
        a.length = 16
    else:
        a.length = 0


cdef inline bint same_address(const Address *a, const Address *b) noexcept nogil:
    return a.length == b.length and memcmp(a.raw, b.raw, a.length) == 0


cdef inline int parse_address(Address *out, str host, int port) except -1:
    """An IPv4 or IPv6 address (with `%scope number`) and a port. Holds the GIL.

    Raises:
        ValueError: not an address or not a port.
    """
    cdef bytes text
    cdef uint32_t scope = 0
    cdef str address = host
    memset(out, 0, sizeof(Address))
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port {port}")
    if "%" in host:
        address, _, zone = host.partition("%")
        scope = int(zone)
    text = address.encode()
    if ":" in address:
        (<uint16_t *>out.raw)[0] = AF_INET6
        out.length = 28
        if inet_pton(AF_INET6, text, out.raw + 8) != 1:
            raise ValueError(f"not an address: {host!r}")
        memcpy(out.raw + 24, &scope, 4)
    else:
        (<uint16_t *>out.raw)[0] = AF_INET
        out.length = 16
        if inet_pton(AF_INET, text, out.raw + 4) != 1:
            raise ValueError(f"not an address: {host!r}")
    out.raw[2] = <uint8_t>(port >> 8)
    out.raw[3] = <uint8_t>port
    return 0


cdef inline tuple format_address(const Address *a):
    """(host, port). Holds the GIL."""
    cdef char text[64]
    cdef uint32_t scope = 0
    cdef int port = (a.raw[2] << 8) | a.raw[3]
    if a.length == 28:
        inet_ntop(AF_INET6, a.raw + 8, text, sizeof(text))
        memcpy(&scope, a.raw + 24, 4)
    else:
        inet_ntop(AF_INET, a.raw + 4, text, sizeof(text))
    host = text.decode()
    return (f"{host}%{scope}" if scope else host, port)
