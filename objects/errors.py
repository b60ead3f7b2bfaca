"""Errors of `objects`, with the flags that tell a caller what to do next.

ObjectError
├── UsageError                 a rule of the API was broken; nothing was changed
│   ├── InvalidObjectId        the string is not an id of this namespace
│   ├── LimitExceeded          a documented size or count was passed
│   │   └── TooManyConnections the object has all the connections that one may have
│   ├── NotSerializable        the value cannot be stored or sent
│   ├── SqlError               the statement is wrong or breaks a constraint
│   └── SqlForbidden           the statement is valid SQL that objects may not run
├── DecodeError                bytes are not what the codec writes
├── Disconnected               the instance went away: try again with a new stub, if that is safe
│   ├── ObjectReset            it was reset; `reason` says why
│   ├── EventTimeout           an event ran longer than its limit; the instance was reset
│   └── HostStopping           this process is shutting down
├── Overloaded                 do not retry at once
│   ├── QueueFull              too many events, too many bytes, too old, or too many in ten seconds
│   ├── CriticalSectionTimeout `block_concurrency_while` ran over its limit; the instance was reset
│   └── CommitTimeout          storage took over its limit; the instance was reset
├── StorageError               a commit failed or the file is unusable; the instance was reset
│   ├── StorageFull            no space left
│   ├── StorageLocked          another process holds the file
│   ├── StorageCorrupt         the file is damaged; it is left as found
│   └── Fenced                 another owner took the object over
├── NotExposed                 the method or property is not public on the remote object
├── StubDisposed               the stub was released
└── RemoteError                the callee raised something whose type this side does not know

An exception of user code that crosses a stub keeps its type if it is a builtin, and has `remote = True` set on it.
"""

from __future__ import annotations


class ObjectError(Exception):
    """Base of all errors here."""

    retryable = False
    """The instance went away; the same call may succeed with a new stub. Retry only what is idempotent."""
    overloaded = False
    """The object has more work than it can do: retrying makes it worse."""
    remote = False
    """It was raised by the callee, not on the way to it."""
    object_reset = False
    """The callee's instance was dropped; the next event runs its constructor anew."""
    object_key: str | None = None
    """Which object, as `ObjectId.key`."""


class UsageError(ObjectError):
    """A rule of the API was broken; nothing was changed."""


class InvalidObjectId(UsageError, ValueError):
    """The string is not an id of this namespace."""


class LimitExceeded(UsageError, ValueError):
    """A documented size or count was passed; nothing was changed.

    One that came from another object has only its sentence, in `what`.
    """

    def __init__(self, what: str, limit: int | None = None, actual: int | None = None) -> None:
        super().__init__(what, limit, actual)
        self.what = what
        self.limit = limit
        self.actual = actual

    def __str__(self) -> str:
        if self.limit is None:
            return self.what
        got = "" if self.actual is None else f", got {self.actual}"
        return f"{self.what}: the limit is {self.limit}{got}"


class TooManyConnections(LimitExceeded):
    """The object has all the connections that one may have; this one was not accepted."""


class NotSerializable(UsageError, TypeError):
    """The value cannot be stored or sent."""


class SqlError(UsageError):
    """The statement is wrong, has the wrong number of bindings, or breaks a constraint."""


class SqlForbidden(UsageError):
    """Valid SQL that objects may not run, such as ATTACH, BEGIN or a PRAGMA outside the allowed ones."""


class DecodeError(ObjectError, ValueError):
    """The bytes are not what the codec writes."""


class Disconnected(ObjectError):
    """The instance went away while, or before, it handled the call."""

    retryable = True


class ObjectReset(Disconnected):
    """The instance was reset: abort, failed constructor, failed critical section, code update."""

    object_reset = True


class EventTimeout(Disconnected):
    """An event ran longer than its limit; the instance was reset."""

    object_reset = True


class HostStopping(Disconnected):
    """This process is shutting down."""


class Overloaded(ObjectError):
    """The object has more work than it can do."""

    overloaded = True


class QueueFull(Overloaded):
    """Too many events waiting, too many bytes waiting, the oldest waits too long, or too many within ten seconds."""


class CriticalSectionTimeout(Overloaded):
    """`block_concurrency_while` ran over its limit; the instance was reset."""

    object_reset = True


class CommitTimeout(Overloaded):
    """Storage took longer than the commit limit; the instance was reset."""

    object_reset = True


class StorageError(ObjectError):
    """A commit failed or the file is unusable. The instance was reset to the last committed state."""

    object_reset = True


class StorageFull(StorageError):
    """No space left on the device, or the object reached its own limit."""


class StorageLocked(StorageError):
    """Another process holds the file or the data folder."""

    retryable = True


class StorageCorrupt(StorageError):
    """The file is damaged. It is left as found; restore a bookmark or a backup."""


class Fenced(StorageError):
    """Another owner took the object over; this instance must not answer any more."""

    retryable = True


class NotExposed(ObjectError, AttributeError):
    """The method or property is not public on the remote object."""


class StubDisposed(ObjectError):
    """The stub was released, or the call that lent it has returned."""


class RemoteError(ObjectError):
    """The callee raised something whose type this side does not know; `kind` is its class name."""

    remote = True

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
