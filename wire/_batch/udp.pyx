"""`udp.pxd` behind a Python class. The forwarding threads cimport the functions instead."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

cdef class BatchedUdp:
    cdef Socket socket
    cdef Receiver receiver
    cdef Sender sender

    def __cinit__(self, int fd, *, bint gso=True, bint gro=False, int arena_bytes=512 * 1024):
        self.socket.fd = fd
        self.socket.gso = gso
        self.socket.gso_refused = 0
        if arena_bytes < TRAIN_BYTES_MAX:
            raise ValueError(f"the arena must hold one datagram of {TRAIN_BYTES_MAX} bytes")
        if not receiver_init(&self.receiver) or not sender_init(&self.sender, arena_bytes):
            raise MemoryError
        if gro:
            enable_gro(fd)

    def __dealloc__(self):
        receiver_destroy(&self.receiver)
        sender_destroy(&self.sender)

    def queue(self, bytes data, str host, int port, *, bint keep=False):
        cdef Address to
        cdef uint8_t *room
        cdef uint32_t size
        if not 1 <= len(data) <= TRAIN_BYTES_MAX:
            raise ValueError(f"datagram of {len(data)} bytes")
        size = <uint32_t>len(data)
        parse_address(&to, host, port)
        room = sender_room(&self.sender, size)
        if room == NULL:
            with nogil:
                sender_flush(&self.sender)
            room = sender_room(&self.sender, size)
        memcpy(room, PyBytes_AS_STRING(data), size)
        sender_commit(&self.sender, &self.socket, &to, size, keep, 0, NULL)

    def flush(self):
        with nogil:
            sender_flush(&self.sender)

    def receive(self):
        cdef Datagram d
        cdef int i, n, at, size
        with nogil:
            n = receive_batch(&self.receiver, self.socket.fd)
        out = []
        for i in range(n):
            received(&self.receiver, i, &d)
            host, port = format_address(d.source)
            at = 0
            while at < d.size or d.size == 0:
                size = min(d.segment_size, d.size - at)
                out.append((PyBytes_FromStringAndSize(<char *>d.data + at, size), host, port))
                at += size
                if d.size == 0:
                    break
        return out

    def counters(self):
        return {**self.sender.counters, "gso": int(self.socket.gso), "gso_refused": self.socket.gso_refused}
