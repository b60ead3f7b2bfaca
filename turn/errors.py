"""Errors of `turn`.

TurnError
├── StunRefusal         a request is answered with an error response; carries the code
├── ConfigurationError  the settings contradict each other or the machine; the server does not start
├── StreamError         a client's byte stream left the framing; its connection is closed
├── UnknownCredential   a username that this server did not issue, or not under this key (HTTP 404)
└── InvalidParams       a value of the HTTP API outside its limits (HTTP 406)
"""

from __future__ import annotations

from collections.abc import Sequence


class TurnError(Exception):
    """Base of all errors here."""


class StunRefusal(TurnError):
    """The request is answered with ERROR-CODE `code` and `attributes` (RFC 8489 §14.8, RFC 8656 §19)."""

    def __init__(self, code: int, attributes: Sequence[tuple[int, bytes]] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.attributes = attributes

    def __str__(self) -> str:
        return f"refused with {self.code}"


class ConfigurationError(TurnError):
    """The settings cannot be served; the message names the setting."""


class StreamError(TurnError):
    """A byte that starts neither STUN nor ChannelData: the framing is lost for good."""


class UnknownCredential(TurnError):
    """No credential of this name was issued under this key."""


class InvalidParams(TurnError):
    """A field of an API request is outside its limits; the message names it."""
