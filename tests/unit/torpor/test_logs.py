"""Two formats of the same fields: a line per event."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from torpor.logs import TRACEBACKS_PER_S, JsonFormatter, TextFormatter, TracebackLimit


def record(message: str, *args: Any, error: bool = False, **extra: Any) -> logging.LogRecord:
    logger = logging.getLogger("torpor.test")
    info = None
    if error:
        try:
            raise ValueError("broken")
        except ValueError:
            info = sys.exc_info()
    return logger.makeRecord(logger.name, logging.WARNING, "f.py", 1, message, args, info, extra=extra)


class TestJson:
    def test_a_line_is_an_object_of_the_fields(self) -> None:
        line = JsonFormatter().format(record("session closed", session="5f", reason="idle", seconds=1.5, nothing=None))
        fields = json.loads(line)
        assert fields.pop("time").endswith("Z")
        assert fields == {
            "level": "warning",
            "logger": "torpor.test",
            "event": "session closed",
            "session": "5f",
            "reason": "idle",
            "seconds": 1.5,
            "nothing": None,
        }

    def test_a_traceback_stays_on_the_line(self) -> None:
        line = JsonFormatter().format(record("failed", error=True))
        assert "\n" not in line
        assert "ValueError: broken" in json.loads(line)["exception"]

    def test_what_json_does_not_know_is_text(self) -> None:
        assert json.loads(JsonFormatter().format(record("x", path=object)))["path"].startswith("<class")


class TestText:
    def test_fields_are_key_equals_value(self) -> None:
        line = TextFormatter().format(record("serving", url="http://127.0.0.1:8787", udp_port=8787))
        assert (
            line.split(" ", 1)[1]
            == "level=warning logger=torpor.test event=serving url=http://127.0.0.1:8787 udp_port=8787"
        )

    @pytest.mark.parametrize("value", ["two words", 'a"quote', "a=b", "line\nfeed", "\x1b[31m", ""])
    def test_a_value_cannot_forge_a_field_or_a_line(self, value: str) -> None:
        line = TextFormatter().format(record("x", value=value))
        assert "\n" not in line
        assert "\x1b" not in line
        assert json.loads(line.rpartition("value=")[2] if "=" not in value else line.partition(" value=")[2]) == value

    def test_a_traceback_follows(self) -> None:
        assert "ValueError: broken" in TextFormatter().format(record("failed", error=True)).splitlines()[-1]


class TestTracebackLimit:
    """A client on whose messages room code raises cannot fill the disk."""

    def at(self, second: float, message: str = "on_message raised", *, error: bool = True) -> logging.LogRecord:
        made = record(message, error=error)
        made.created = second
        return made

    def test_a_flood_of_one_message_is_cut_and_counted(self) -> None:
        limit = TracebackLimit()
        written = sum(limit.filter(self.at(100.0 + n / 1000)) for n in range(500))
        assert written == TRACEBACKS_PER_S
        later = self.at(101.0)
        assert limit.filter(later)
        assert json.loads(JsonFormatter().format(later))["left_out"] == 500 - TRACEBACKS_PER_S
        again = self.at(101.1)
        assert limit.filter(again)
        assert "left_out" not in json.loads(JsonFormatter().format(again))

    def test_other_messages_and_lines_without_a_traceback_pass(self) -> None:
        limit = TracebackLimit()
        assert [limit.filter(self.at(100.0)) for _ in range(20)].count(True) == TRACEBACKS_PER_S
        assert limit.filter(self.at(100.5, "on_close raised"))
        assert all(limit.filter(self.at(100.5, error=False)) for _ in range(100))
