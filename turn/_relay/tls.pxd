"""A client's TLS in a relay thread: OpenSSL as `cryptography` bundles it, called by address without the GIL (T6).

Ownership: `turn.tls.TlsStream` owns a session, and the plane keeps that while a stream is adopted. Meanwhile Python does not
touch it: only one thread uses it at a time, under the shard's lock. The handshake is over by then, so that nothing here
calls back into Python.
"""

from libc.stdint cimport uint32_t

from turn._relay.stream cimport Buffer, Tls, consume, message_size, waiting

ctypedef int (*tls_transfer)(void *of, void *data, int size) noexcept nogil

cdef enum:
    SSL_ERROR_WANT_READ = 2     # <openssl/ssl.h>
    RECORD_MAX = 16 * 1024      # RFC 8446 §5.1; one SSL_write takes no more
    OPENED_NOTHING = 0
    OPENED_END = -1             # a goodbye or an error: Python finds it again

cdef struct TlsFunctions:
    tls_transfer read           # SSL_read
    tls_transfer write          # SSL_write
    tls_transfer take           # BIO_read
    tls_transfer put            # BIO_write
    int (*get_error)(void *ssl, int result) noexcept nogil
    void (*clear_errors)() noexcept nogil


cdef inline int tls_open(const TlsFunctions *call, Tls *tls, void *out, int size) noexcept nogil:
    """The next of what the client said, OPENED_NOTHING until more records arrive, or OPENED_END."""
    cdef int n = call.read(tls.ssl, out, size)
    if n > 0:
        return n
    if call.get_error(tls.ssl, n) == SSL_ERROR_WANT_READ:
        return OPENED_NOTHING
    call.clear_errors()         # OpenSSL keeps them per thread, and the next call would be blamed
    return OPENED_END


cdef inline uint32_t record_size(const Buffer *messages, bint one) noexcept nogil:
    """Bytes of the first message, and of those behind it that fit into the same record: whole ones, whoever has the session next."""
    cdef uint32_t size = message_size(messages.data + messages.at), more
    while not one and size < waiting(messages):
        more = message_size(messages.data + messages.at + size)
        if size + more > RECORD_MAX:
            break
        size += more
    return size


cdef inline bint tls_seal(const TlsFunctions *call, Tls *tls, Buffer *messages, bint record_per_message) noexcept nogil:
    """About a record's worth of the messages that wait into `outgoing`, at least one. False: the session is broken."""
    cdef uint32_t size, piece, sealed = 0
    while waiting(messages) and sealed < RECORD_MAX:
        size = record_size(messages, record_per_message)
        sealed += size
        while size:
            piece = min(size, RECORD_MAX)
            if call.write(tls.ssl, messages.data + messages.at, <int>piece) != <int>piece:
                call.clear_errors()
                return False
            consume(messages, piece)
            size -= piece
    return True
