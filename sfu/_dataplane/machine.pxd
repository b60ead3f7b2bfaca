"""What the C side needs from the machine: byte order, atomics, the clock, cheap randomness. Allocates nothing, needs no GIL.

Times are microseconds of CLOCK_MONOTONIC in an int64 (`_us` is left out of names here: everything is microseconds).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <time.h>
    #include <stdint.h>
    static inline int64_t torpor_clock(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    static inline uint64_t torpor_wall_ntp(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return ((uint64_t)(t.tv_sec + 2208988800LL) << 32) | (((uint64_t)t.tv_nsec << 32) / 1000000000ULL);
    }
    #define torpor_load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define torpor_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    #define torpor_add(p, v) __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL)
    #define torpor_exchange(p, v) __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL)
    #define torpor_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define torpor_prefetch(p) __builtin_prefetch(p)
    """
    int64_t clock_us "torpor_clock"() noexcept nogil
    uint64_t wall_ntp "torpor_wall_ntp"() noexcept nogil
    int load_int "torpor_load"(int *p) noexcept nogil
    void store_int "torpor_store"(int *p, int v) noexcept nogil
    int add_int "torpor_add"(int *p, int v) noexcept nogil
    int exchange_int "torpor_exchange"(int *p, int v) noexcept nogil
    uint32_t load_u32 "torpor_load"(uint32_t *p) noexcept nogil
    void store_u32 "torpor_store"(uint32_t *p, uint32_t v) noexcept nogil
    uint64_t load_u64 "torpor_load"(uint64_t *p) noexcept nogil
    void store_u64 "torpor_store"(uint64_t *p, uint64_t v) noexcept nogil
    int64_t load_i64 "torpor_load"(int64_t *p) noexcept nogil
    void store_i64 "torpor_store"(int64_t *p, int64_t v) noexcept nogil
    int64_t add_i64 "torpor_add"(int64_t *p, int64_t v) noexcept nogil
    void fence "torpor_fence"() noexcept nogil
    void prefetch "torpor_prefetch"(const void *p) noexcept nogil


cdef inline uint16_t read16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t read24(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]


cdef inline uint32_t read32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t read64(const uint8_t *p) noexcept nogil:
    return (<uint64_t>read32(p) << 32) | read32(p + 4)


cdef inline void write16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline void write24(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 16)
    p[1] = <uint8_t>(v >> 8)
    p[2] = <uint8_t>v


cdef inline void write32(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v


cdef inline void write64(uint8_t *p, uint64_t v) noexcept nogil:
    write32(p, <uint32_t>(v >> 32))
    write32(p + 4, <uint32_t>v)


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    """A full-avalanche mix (the finalizer of splitmix64), for hash tables keyed by what peers choose."""
    x ^= x >> 30
    x *= <uint64_t>0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t next_random(uint64_t *state) noexcept nogil:
    """splitmix64: jitter of timers only. Anything a peer must not guess comes from `secrets`."""
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    return mix64(state[0])
