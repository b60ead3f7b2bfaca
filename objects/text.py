"""Text that leaves the process: a Python string may hold half of a surrogate pair, which no encoding has."""

from __future__ import annotations

from objects.errors import UsageError


def utf8_size(text: str, what: str) -> int:
    """Return the bytes that `text` has in UTF-8.

    Raises:
        UsageError: it has a lone surrogate; `what` names the argument.
    """
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} with a lone surrogate at {error.start} is not text") from None
