"""What is due next: a binary heap of timers that live inside their owners, each knowing its place so that it can leave."""

from libc.stdint cimport int64_t
from libc.stdlib cimport realloc

cdef enum:
    ABSENT = -1

cdef struct Timer:
    int64_t due
    int place                   # in the heap, ABSENT: not armed
    int kind                    # the owner's meaning
    void *owner

cdef struct Heap:
    Timer **items
    int count
    int capacity


cdef inline void timer_init(Timer *t, int kind, void *owner) noexcept nogil:
    t.due = 0
    t.place = ABSENT
    t.kind = kind
    t.owner = owner


cdef inline bint heap_reserve(Heap *h, int count) noexcept nogil:
    """Room for `count` timers, made when owners are, so that arming never fails. False: no memory."""
    cdef Timer **grown
    cdef int capacity = h.capacity if h.capacity else 64
    if count <= h.capacity:
        return True
    while capacity < count:
        capacity *= 2
    grown = <Timer **>realloc(h.items, capacity * sizeof(Timer *))
    if grown == NULL:
        return False
    h.items = grown
    h.capacity = capacity
    return True


cdef inline void heap_put(Heap *h, int place, Timer *t) noexcept nogil:
    h.items[place] = t
    t.place = place


cdef inline void heap_up(Heap *h, int place) noexcept nogil:
    cdef Timer *t = h.items[place]
    cdef int parent
    while place > 0:
        parent = (place - 1) >> 1
        if h.items[parent].due <= t.due:
            break
        heap_put(h, place, h.items[parent])
        place = parent
    heap_put(h, place, t)


cdef inline void heap_down(Heap *h, int place) noexcept nogil:
    cdef Timer *t = h.items[place]
    cdef int child
    while True:
        child = 2 * place + 1
        if child >= h.count:
            break
        if child + 1 < h.count and h.items[child + 1].due < h.items[child].due:
            child += 1
        if h.items[child].due >= t.due:
            break
        heap_put(h, place, h.items[child])
        place = child
    heap_put(h, place, t)


cdef inline void timer_cancel(Heap *h, Timer *t) noexcept nogil:
    cdef int place = t.place
    if place == ABSENT:
        return
    t.place = ABSENT
    h.count -= 1
    if place == h.count:
        return
    t = h.items[h.count]
    heap_put(h, place, t)
    heap_up(h, place)
    heap_down(h, t.place)


cdef inline void timer_arm(Heap *h, Timer *t, int64_t due) noexcept nogil:
    """At `due`, whether it was armed before or not."""
    t.due = due
    if t.place == ABSENT:
        heap_put(h, h.count, t)
        h.count += 1
    heap_up(h, t.place)
    heap_down(h, t.place)
