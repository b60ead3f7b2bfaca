"""What C needs from the machine: byte order, clocks, a mutex, epoll. Times are microseconds of CLOCK_MONOTONIC in an int64."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <time.h>
    #include <stdint.h>
    #include <pthread.h>
    static inline int64_t load_clock(clockid_t id) {
        struct timespec t;
        clock_gettime(id, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    static inline uint64_t load_ntp(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return ((uint64_t)(t.tv_sec + 2208988800LL) << 32) | (((uint64_t)t.tv_nsec << 32) / 1000000000ULL);
    }
    static inline void load_pause(void) {
        struct timespec t = {0, 20000};
        nanosleep(&t, 0);
    }
    #define load_get(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define load_add(p, v) __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL)
    """
    int64_t clock_us "load_clock"(int id) noexcept nogil
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID
    uint64_t wall_ntp "load_ntp"() noexcept nogil
    void pause_us "load_pause"() noexcept nogil
    int get_int "load_get"(int *p) noexcept nogil
    int add_int "load_add"(int *p, int v) noexcept nogil

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    int epoll_create1(int flags)
    int epoll_ctl(int fd, int operation, int target, epoll_event *event)
    int epoll_wait(int fd, epoll_event *events, int count, int timeout_ms)

cdef extern from "sys/eventfd.h" nogil:
    enum: EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int value, int flags)

cdef extern from "unistd.h" nogil:
    ssize_t c_read "read"(int fd, void *buffer, size_t size)
    ssize_t c_write "write"(int fd, const void *buffer, size_t size)
    int c_close "close"(int fd)


cdef inline int64_t now_us() noexcept nogil:
    return clock_us(CLOCK_MONOTONIC)


cdef inline uint16_t read16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t read32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t read64(const uint8_t *p) noexcept nogil:
    return (<uint64_t>read32(p) << 32) | read32(p + 4)


cdef inline void write16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline void write32(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v


cdef inline void write64(uint8_t *p, uint64_t v) noexcept nogil:
    write32(p, <uint32_t>(v >> 32))
    write32(p + 4, <uint32_t>v)
