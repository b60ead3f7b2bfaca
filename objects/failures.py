"""Exceptions that leave the object they were raised in: by type name and message, nothing else.

Builtin exceptions and those of `errors` come out as what they were; any other as a `RemoteError` with its name. No
traceback and no reference to the object's data goes along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from objects import errors
from objects.errors import ObjectError, RemoteError, UsageError
from objects.ids import ObjectId

ESCAPES = (KeyboardInterrupt, SystemExit)
"""What asyncio lets through to whoever runs the loop: raised by code of an object it would end the server."""
FAILURES = (Exception, *ESCAPES)
"""What code of an object may raise: a failure of its handler, whatever it is. Cancellation is none."""

_BUILTIN_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ConnectionError,
    EOFError,
    Exception,
    FileExistsError,
    FileNotFoundError,
    IndexError,
    KeyError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    OSError,
    OverflowError,
    PermissionError,
    RecursionError,
    RuntimeError,
    TimeoutError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
_ERRORS: Mapping[str, Callable[[str], Exception]] = {kind.__name__: kind for kind in _BUILTIN_ERRORS} | {
    name: kind
    for name, kind in vars(errors).items()
    # Only those that can be made from one message.
    if isinstance(kind, type) and issubclass(kind, ObjectError) and kind is not RemoteError
}


def as_exception(error: BaseException) -> Exception:
    """Return the exception that stands for a failure inside the runtime; the failure is its cause."""
    if isinstance(error, Exception):
        return error
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    stand_in.__cause__ = error
    return stand_in


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return the type name and message that stand for an exception on the wire."""
    if isinstance(error, RemoteError):
        return error.kind, error.message
    # str(KeyError("a")) has quotes of its own, which would pile up at every hop.
    only = error.args[0] if len(error.args) == 1 else None
    return type(error).__name__, only if isinstance(only, str) else str(error)


def rebuild_error(name: str, message: str) -> Exception:
    """Return an exception of the named standard type, or a `RemoteError` that carries the name."""
    kind = _ERRORS.get(name)
    return kind(message) if kind is not None else RemoteError(name, message)


def for_callers(error: BaseException, object_id: ObjectId | None) -> Exception:
    """Return what a caller of the object gets for an exception inside it.

    Errors of ours go as they are; others are copied by type name and message, with `remote` set: no traceback, no
    reference to the object's data leaves it.
    """
    if isinstance(error, ObjectError) and not isinstance(error, UsageError):
        if error.object_key is None and object_id is not None:
            error.object_key = object_id.key
        return error
    copy: Any = rebuild_error(*describe_error(error))
    copy.remote = True
    copy.object_key = None if object_id is None else object_id.key
    exception: Exception = copy
    return exception
