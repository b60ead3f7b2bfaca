"""`gather.pxd` behind a Python class, for tests."""


cdef class Gathering:
    cdef Gather gather

    def __cinit__(self, int longest):
        self.gather.longest = longest
        self.gather.since = self.gather.count = self.gather.wait = 0

    def wait(self, int64_t received, int64_t now):
        return gather_wait(&self.gather, received, now)
