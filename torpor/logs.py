"""Structured logs on standard error: one line per event, `text` (key=value) or `json`.

A log call has a constant message and its values in `extra`; both formats write those as fields. No secret, no address
of a client and no SDP is logged above debug.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from torpor.config import LogSettings

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


TRACEBACKS_PER_S = 10
"""Of one message of one logger: room code that raises on what a client sends must not let that client fill a disk."""


class TracebackLimit(logging.Filter):
    """Lets so many records with tracebacks through a second; the next second's first says how many it left out."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._seen: Counter[tuple[str, object]] = Counter()
        self._left_out: Counter[tuple[str, object]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        if not record.exc_info:
            return True
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._left_out = self._seen - Counter(dict.fromkeys(self._seen, TRACEBACKS_PER_S))
            self._seen = Counter()
        what = (record.name, record.msg)
        self._seen[what] += 1
        if left_out := self._left_out.pop(what, 0):
            record.left_out = left_out
        return self._seen[what] <= TRACEBACKS_PER_S


def configure(settings: LogSettings, *, audit: bool = False) -> None:
    """Send every logger's lines through one handler. Replaces what was configured before.

    Args:
        settings: format, and the least severe level.
        audit: also say who used a TURN relay, with addresses.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(TracebackLimit())
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=settings.level.upper(), force=True)
    logging.getLogger("turn.audit").setLevel(logging.INFO if audit else logging.WARNING)
    # Its start and stop messages repeat ours, and what it warns of, any stranger can cause as often as they like.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    yield "time", datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    yield "level", record.levelname.lower()
    yield "logger", record.name
    yield "event", record.getMessage()
    yield from ((name, value) for name, value in vars(record).items() if name not in _STANDARD)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; a traceback is one string in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = dict(_fields(record))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


class TextFormatter(logging.Formatter):
    """Time, then key=value; values with spaces, quotes or control characters are JSON strings. Tracebacks follow."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        (_, time), *rest = _fields(record)
        line = " ".join([time, *(f"{name}={_text(value)}" for name, value in rest)])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _text(value: Any) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(c in text for c in ' "=')
    return text if plain else orjson.dumps(text).decode()
