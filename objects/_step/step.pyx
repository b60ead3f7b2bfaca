"""A message's handler, from the connections side to its first wait, and what it sends; see `step.pyi`."""

from asyncio.tasks import _enter_task, _leave_task
from types import CoroutineType

from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from objects.ports import MAX_MESSAGE_BYTES

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_NEXT

    PySendResult PyIter_Send(object coro, object value, PyObject **result) except <PySendResult>-1

cdef double WINDOW_S = 10.0
SURELY_SHORT = MAX_MESSAGE_BYTES // 4
cdef Py_ssize_t _SURELY_SHORT = SURELY_SHORT


cdef class EventRate:
    def __cinit__(self, Py_ssize_t most):
        self._most = most

    cpdef bint admit(self, double now) except -1:
        if now - self._since >= WINDOW_S:
            self._since = now
            self._count = 0
        self._count += 1
        return self._count <= self._most


cdef class Spare:
    pass


cdef class FirstStep:
    def take(self, context, code, first, second):
        return self._take(context, code, first, second)

    cdef object _take(self, object context, object code, object first, object second):
        cdef Spare spare = self._spare
        cdef PyObject *result = NULL
        cdef PySendResult outcome
        _enter_task(spare.loop, spare.task)
        try:
            PyContext_Enter(context)
            try:
                coro = code(first, second)
                if type(coro) is not CoroutineType:
                    coro = self._coroutine(coro)
                outcome = PyIter_Send(coro, None, &result)
            finally:
                PyContext_Exit(context)
        finally:
            _leave_task(spare.loop, spare.task)
            if spare.handed.done():  # it cancelled its own task
                self._replace()
        awaited = <object>result
        Py_DECREF(awaited)  # it was ours already
        return None if outcome == PYGEN_RETURN else self._waits(spare, coro, context, awaited)


cdef class Sender:
    @property
    def has_closed(self):
        return self._closing

    def send(self, message):
        cdef Py_ssize_t size = _SURELY_SHORT + 1
        if type(message) is str:
            size = len(<str>message)
        elif type(message) is bytes:
            size = len(<bytes>message)
        if size <= _SURELY_SHORT and self._has_been_open and not (self._closing or self.failed) and self._output.is_open:
            try:
                self._pass_on(self.connection_id, message)
            except UnicodeEncodeError:
                self._send_otherwise(message)  # which says why not
        else:
            self._send_otherwise(message)


cdef class ShortWay:
    def handle_now(self, connection_id, data):
        cdef FirstStep steps = self._first_steps
        cdef Sender ws
        cdef double now
        # An event that has been let in before has its first step before.
        if not self._running or self._unstarted or not steps.ready or not self.input.is_open:
            return False
        ws = self._sockets.get(connection_id) or self.socket(connection_id)
        now = self._now()
        if ws.stands_alone or not self._rate.admit(now):
            return False
        self._begun += 1
        self.meter.messages += 1
        self._step_began = now
        self._stepping = True
        started = None
        try:
            handler = getattr(self.object, "web_socket_message", None)
            if handler is not None:
                started = steps._take(PyContext_Copy(self._context), handler, ws, data)
        except BaseException as error:  # other connections' messages come after this one, whatever it is
            self._step_failed(error)
        finally:
            now = self._now()
            self._steps_s += now - self._step_began
            self._stepping = False
        if started is not None:
            self._go_on(started, len(data))
        elif self.output.is_open:
            self._last_event = now
        elif self._running:
            self._stay_until_durable()
        return True
