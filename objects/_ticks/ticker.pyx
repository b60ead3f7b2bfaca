"""`ticker.pyi` is the contract."""

from cpython.exc cimport PyErr_SetFromErrno

cdef extern from *:
    """
    #include <signal.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef sigev_notify_thread_id
    #define sigev_notify_thread_id _sigev_un._tid
    #endif

    static int timer_for_this_thread(int signum, timer_t *timer) {
        struct sigevent event;
        memset(&event, 0, sizeof event);
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = signum;
        event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
        return timer_create(CLOCK_MONOTONIC, &event, timer);
    }

    static int timer_every(timer_t timer, long long ns) {
        struct timespec period = {ns / 1000000000, ns % 1000000000};
        struct itimerspec times = {period, period};
        return timer_settime(timer, 0, &times, NULL);
    }
    """
    ctypedef void *timer_t
    int timer_for_this_thread(int signum, timer_t *timer) nogil
    int timer_every(timer_t timer, long long ns) nogil
    int timer_delete(timer_t timer) nogil


cdef class Ticker:
    cdef timer_t timer
    cdef bint exists

    def __cinit__(self, int signum):
        if timer_for_this_thread(signum, &self.timer) != 0:
            PyErr_SetFromErrno(OSError)
        self.exists = True

    def start(self, double period_s):
        if not 0 < period_s <= 86_400:
            raise ValueError(f"a period of {period_s} s")
        timer_every(self.timer, max(1, <long long>(period_s * 1e9)))

    def stop(self):
        timer_every(self.timer, 0)

    def __dealloc__(self):
        if self.exists:
            timer_delete(self.timer)
