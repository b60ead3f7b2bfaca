"""Connection: a room's end of a WebSocket, with an id, a state and tags that survive hibernation."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from objects.ports import Frame, ReadyState
from objects.websocket import WebSocket

_ID_ALPHABET = string.ascii_letters + string.digits + "_-"
_ID_LENGTH = 21

_ID, _STATE = "id", "state"  # keys of the attachment: ours and the user's


def connection_id_of(url: str) -> str:
    """Return the id a client asks for with `_pk`: the first one that is not empty counts; without one, a new id.

    It is a name, not authentication: any client may ask for any id.
    """
    return given_id(url) or "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def given_id(url: str) -> str:
    """Return the id that a client asks for; empty if it asks for none."""
    query = url.partition("?")[2].partition("#")[0]  # `urlsplit` refuses some hosts that a client may claim
    return next((value for key, value in parse_qsl(query) if key == "_pk"), "")


class Connection:
    """One client of a room. Handles may be made anew at any time: compare them with `==`, keep data in `state`."""

    def __init__(self, ws: WebSocket) -> None:
        self._ws = ws

    @classmethod
    def begin(cls, ws: WebSocket, connection_id: str) -> Connection:
        """Give an accepted WebSocket its id."""
        ws.serialize_attachment({_ID: connection_id, _STATE: None})
        return cls(ws)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Connection) and other._ws.connection_id == self._ws.connection_id

    def __hash__(self) -> int:
        return hash(self._ws.connection_id)

    def __repr__(self) -> str:
        return f"<Connection {self.id!r} {self.ready_state.name.lower()}>"

    @property
    def id(self) -> str:
        """The client's `_pk`, or what it got instead. Several connections may have the same."""
        return str(self._data()[_ID])

    @property
    def uri(self) -> str:
        """The full URL of the upgrade request."""
        info = self._ws.info
        return "" if info is None else info.url

    @property
    def tags(self) -> list[str]:
        """Its tags, the id first."""
        info = self._ws.info
        return [] if info is None else list(info.tags)

    @property
    def state(self) -> Any:
        """The last value set, a fresh copy; None at first. Lost with the connection."""
        return self._data()[_STATE]

    def set_state(self, value: Any | Callable[[Any], Any]) -> Any:
        """Keep a value with the connection, or what a function makes of the last one; returns the new state.

        Raises:
            LimitExceeded: over 16,384 bytes serialized, id included; the old state is kept.
            NotSerializable: of a type that cannot be kept.
        """
        data = self._data()
        state = value(data[_STATE]) if callable(value) else value
        self._ws.serialize_attachment({_ID: data[_ID], _STATE: state})
        return state

    @property
    def ready_state(self) -> ReadyState:
        """The state, numbered as in browsers."""
        return self._ws.ready_state

    @property
    def web_socket(self) -> WebSocket:
        """What it is made of."""
        return self._ws

    def send(self, message: Frame) -> None:
        """Send text (str) or bytes; nothing happens once the connection has ended.

        Raises:
            UsageError: after `close`, or neither text nor bytes; half of a surrogate pair is no text.
        """
        self._ws.send(message)

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Close behind what was sent; a second call does nothing.

        Raises:
            UsageError: a code that may not be sent, a reason without a code or over 123 bytes.
        """
        self._ws.close(code, reason)

    @property
    def is_known(self) -> bool:
        """Whether it was ever given to `on_connect`; False for one that was closed for its tags."""
        return self._ws.deserialize_attachment() is not None

    def _data(self) -> dict[str, Any]:
        data = self._ws.deserialize_attachment()
        if isinstance(data, dict) and _ID in data and _STATE in data:
            return data
        return {_ID: next(iter(self.tags), ""), _STATE: None}  # someone wrote to the attachment itself
