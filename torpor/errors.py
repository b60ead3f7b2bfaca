"""Errors of `torpor`, all of them an operator's to mend: the command line prints one line and exits with 2.

TorporError
├── SettingError        a key is unknown, has a bad value, or contradicts another
├── StartRefused        the settings are valid but unsafe to serve with, or an address, class or folder cannot be used
└── ServerUnreachable   a command needs a running server, and it does not answer
"""

from __future__ import annotations


class TorporError(Exception):
    """Base of all errors here."""


class SettingError(TorporError):
    """A setting cannot be used.

    Args:
        key: dotted name of the setting, as `http.port`.
        source: where the value came from: a file, an environment variable or a flag.
        reason: what is wrong, without the value when that is a secret.
    """

    def __init__(self, key: str, source: str, reason: str) -> None:
        super().__init__(key, source, reason)
        self.key = key
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.reason}"


class StartRefused(TorporError):
    """Serving would be unsafe or is impossible; the message says why and what to change."""


class ServerUnreachable(TorporError):
    """A running server is needed and does not answer as it should; the message says where it was sought."""
