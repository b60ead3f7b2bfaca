"""Jobs: the packets of a batch on their way from reception to forwarding, stream by stream, so that trains form.

A job's view points into a receive buffer, a parcel or a scratch slot: it lives until `run_jobs`.
"""

from sfu._dataplane.forward cimport forward_jobs
from sfu._dataplane.graph cimport (
    CROSS_PACKET, DROP_RING_FULL, JOBS_MAX, RING_PACKETS, CrossEntry, Fanout, Job, Stream, Thread,
)
from sfu._dataplane.machine cimport load_int
from sfu._dataplane.ops cimport count_drop, cross_begin, cross_commit, wake

cdef inline void cross_jobs(Thread *t, Stream *s) noexcept nogil:
    """Tell every other thread that has subscribers of `s`; it copies the packets from the cache."""
    cdef int to, at
    cdef CrossEntry *entry
    cdef Job *job
    for to in range(t.plane.thread_count):
        if to == t.index or load_int(&s.fanout[to].forwarders.count) == 0:
            continue
        at = s.fanout[t.index].first_job
        while at >= 0:
            job = &t.jobs[at]
            entry = cross_begin(t, to, RING_PACKETS)
            if entry == NULL:
                count_drop(t, DROP_RING_FULL)
                break
            entry.kind = CROSS_PACKET
            entry.stream = s.id
            entry.ext_seq = job.ext_seq
            entry.received = job.received
            entry.epoch = job.epoch
            entry.keyframe = job.keyframe
            entry.padding_only = job.padding_only
            entry.vp8 = job.vp8
            cross_commit(t, to)
            t.counters.crossed += 1
            at = job.next
        wake(&t.plane.threads[to])


cdef inline void run_jobs(Thread *t) noexcept nogil:
    """Forward what the batch decrypted so far."""
    cdef int i
    cdef Stream *s
    for i in range(t.touched_count):
        s = t.touched[i]
        if t.plane.thread_count > 1 and s.track.transport.owner == t.index:
            cross_jobs(t, s)
        forward_jobs(t, s)
        s.fanout[t.index].first_job = -1
    t.job_count = 0
    t.touched_count = 0


cdef inline Job *new_job(Thread *t) noexcept nogil:
    """The next job; what is queued goes first when all are taken."""
    if t.job_count == JOBS_MAX:
        run_jobs(t)
    return &t.jobs[t.job_count]


cdef inline void add_job(Thread *t, Stream *s) noexcept nogil:
    """Queue the job of `new_job` for `s`."""
    cdef Fanout *fanout = &s.fanout[t.index]
    t.jobs[t.job_count].next = -1
    if fanout.first_job < 0:
        fanout.first_job = t.job_count
        t.touched[t.touched_count] = s
        t.touched_count += 1
    else:
        t.jobs[fanout.last_job].next = t.job_count
    fanout.last_job = t.job_count
    t.job_count += 1
