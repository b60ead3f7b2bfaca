"""Parts of the plane by themselves, for tests that compare them with a plain twin; and the comparison of pictures."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from loadtest._media.arrivals cimport FEEDBACK_MAX, Arrivals, arrivals_init, arrivals_record, arrivals_write
from loadtest._media.frames cimport payload_flags
from loadtest._media.histogram cimport bucket_of as c_bucket_of
from loadtest._media.reception cimport (
    END, MISSING_MAX, Reception as CReception, reception_due, reception_init, reception_take, reception_wants_key,
)

FLAG_END = END


def squared_error(bytes a, int a_stride, bytes b, int width, int height, int row_step):
    """Mean squared difference of two 8-bit planes over every `row_step`-th row; `b` has rows of `width` bytes."""
    cdef const uint8_t *p = a
    cdef const uint8_t *q = b
    cdef int64_t total = 0, d
    cdef int x, y, rows = 0
    if width > a_stride or row_step < 1 or len(a) < a_stride * (height - 1) + width or len(b) < width * height:
        raise ValueError("planes smaller than the picture")
    with nogil:
        y = 0
        while y < height:
            rows += 1
            for x in range(width):
                d = p[y * a_stride + x] - q[y * width + x]
                total += d * d
            y += row_step
    return total / (rows * width)


def flags_of(int codec, bytes payload):
    """What a payload's first bytes tell (`frames.pxd`)."""
    return payload_flags(codec, payload, len(payload))


def bucket_of(int64_t us):
    """The bucket of `histogram.pxd`."""
    return c_bucket_of(us)


cdef class Reception:
    """One received stream (`reception.pxd`), with the clock passed in."""

    cdef CReception *r

    def __cinit__(self, bint video, bint asks, bint has_rtx, uint32_t clock_rate):
        self.r = <CReception *>calloc(1, sizeof(CReception))
        if self.r == NULL:
            raise MemoryError
        reception_init(self.r, video, asks, has_rtx, clock_rate)

    def __dealloc__(self):
        free(self.r)

    def take(self, int seq, uint32_t timestamp, int flags, uint32_t size, bint repaired, int64_t now):
        """True: new."""
        return reception_take(self.r, seq, timestamp, flags, size, repaired, now) == 1

    def due(self, int64_t now):
        """(numbers to ask for, when to call again or 0)."""
        cdef int64_t numbers[MISSING_MAX]
        cdef int64_t next_at = 0
        cdef int i
        cdef int count = reception_due(self.r, now, numbers, &next_at)
        return [numbers[i] & 0xFFFF for i in range(count)], next_at

    def wants_key(self, int64_t now):
        return reception_wants_key(self.r, now)

    def figures(self):
        cdef CReception *r = self.r
        return {
            "packets": r.packets, "given_up": r.given_up, "skipped": r.skipped, "recovered": r.recovered,
            "reordered": r.reordered, "duplicates": r.duplicates, "nacks": r.nacks, "frames": r.frames,
            "keyframes": r.keyframes, "broken": r.broken, "freezes": r.freezes, "freeze_time": r.freeze_time,
            "round_trip": r.round_trip, "missing": r.missing_count,
        }


cdef class ArrivalLog:
    """Transport-wide feedback (`arrivals.pxd`)."""

    cdef Arrivals log

    def __cinit__(self):
        arrivals_init(&self.log)

    def record(self, int seq, int64_t now):
        arrivals_record(&self.log, seq, now)

    def write(self, uint32_t sender, uint32_t media):
        """The next report, or empty."""
        cdef uint8_t out[FEEDBACK_MAX]
        cdef int size = arrivals_write(&self.log, out, sender, media)
        return (<char *>out)[:size]
