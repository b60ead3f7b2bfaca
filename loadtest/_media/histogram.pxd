"""The buckets of `loadtest.histogram`, counted without the GIL. Durations are microseconds."""

from libc.stdint cimport int64_t, uint32_t

cdef extern from *:
    int leading_zeros "__builtin_clzll"(unsigned long long v) noexcept nogil

cdef enum:
    SUB_BUCKETS = 16
    OCTAVES = 27
    BUCKETS = 432

cdef struct Buckets:
    int64_t sum
    int64_t max
    uint32_t counts[BUCKETS]


cdef inline int bucket_of(int64_t us) noexcept nogil:
    cdef int octave
    if us < 1:
        return 0
    octave = 63 - leading_zeros(us)
    if octave >= OCTAVES:
        return BUCKETS - 1
    return octave * SUB_BUCKETS + <int>((us >> (octave - 4) if octave >= 4 else us << (4 - octave)) & (SUB_BUCKETS - 1))


cdef inline void buckets_record(Buckets *b, int64_t us) noexcept nogil:
    if us < 0:
        us = 0
    b.counts[bucket_of(us)] += 1
    b.sum += us
    if us > b.max:
        b.max = us


cdef inline dict buckets_json(const Buckets *b):
    """As `Histogram.from_json` reads it."""
    cdef int i
    counts = {str(i): b.counts[i] for i in range(BUCKETS) if b.counts[i]}
    return {"counts": counts, "sum": b.sum / 1e6, "max": b.max / 1e6}
