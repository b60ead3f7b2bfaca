"""Socket indices, the first part of a path: what a datagram came in on, and is answered on.

First the UDP sockets, thread by thread and address by address; then, when there is an exchange with another plane,
those in memory: by our thread, our address that the datagram was sent to, and the other plane's thread, where an
answer belongs. So an index says everything that the graph needs to know about where a peer is.
"""

from sfu._dataplane.graph cimport PlaneState
from wire._batch.udp cimport Socket


cdef inline int near_count(const PlaneState *plane) noexcept nogil:
    """Sockets in memory, per thread."""
    return plane.near.address_count * plane.far.threads if plane.near != NULL else 0


cdef inline int socket_count(const PlaneState *plane) noexcept nogil:
    return plane.thread_count * (plane.address_count + near_count(plane))


cdef inline bint is_near(const PlaneState *plane, int index) noexcept nogil:
    return index >= plane.thread_count * plane.address_count


cdef inline int near_index(const PlaneState *plane, int thread, int address, int far_thread) noexcept nogil:
    return (
        plane.thread_count * plane.address_count
        + (thread * plane.near.address_count + address) * plane.far.threads
        + far_thread
    )


cdef inline int thread_of(const PlaneState *plane, int index) noexcept nogil:
    cdef int real = plane.thread_count * plane.address_count
    return index // plane.address_count if index < real else (index - real) // near_count(plane)


cdef inline Socket *socket_of(PlaneState *plane, int thread, int index) noexcept nogil:
    """What `thread` sends on instead of the socket `index`, which may be another thread's: the same address."""
    cdef int real = plane.thread_count * plane.address_count
    if index < real:
        return &plane.threads[thread].sockets[index % plane.address_count]
    return &plane.near_sockets[thread * near_count(plane) + (index - real) % near_count(plane)]
