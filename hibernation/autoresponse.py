"""Replies without waking: rules checked and handed to the table, replies kept back while a gated message waits.

The table matches and answers by itself. Only while the object holds a connection (a message of it waits for the output
gate) does a matched reply come up here, so that it follows that message instead of overtaking it (W-12).
"""

from __future__ import annotations

from collections.abc import Sequence

from objects.errors import LimitExceeded
from objects.ports import MAX_AUTO_RESPONSE_BYTES, MAX_AUTO_RESPONSES, AutoResponse, ConnectionId, Frame

MAX_KEPT_REPLIES = 64
"""Replies of one connection that wait for a gate; a client that asks more often gets no answer to the rest."""

TableRule = tuple[str | bytes, str | bytes, bool, bytes | None]


def table_rules(rules: Sequence[AutoResponse]) -> list[TableRule]:
    """Return the rules as the socket table takes them.

    Raises:
        LimitExceeded: over 16 rules, or over 2,048 bytes in a request or a response.
    """
    if len(rules) > MAX_AUTO_RESPONSES:
        raise LimitExceeded("auto-response rules", MAX_AUTO_RESPONSES, len(rules))
    for rule in rules:
        for frame in (rule.request, rule.response):
            size = len(frame.encode() if isinstance(frame, str) else frame)
            if size > MAX_AUTO_RESPONSE_BYTES:
                raise LimitExceeded("bytes of an auto-response", MAX_AUTO_RESPONSE_BYTES, size)
    return [
        (rule.request, rule.response, rule.match == "prefix", None if rule.tag is None else rule.tag.encode())
        for rule in rules
    ]


class Holds:
    """Who is held, how often, and the replies that wait meanwhile. Empty for a hibernating object."""

    __slots__ = ("_counts", "_replies")

    def __init__(self) -> None:
        self._counts: dict[ConnectionId | None, int] = {}
        self._replies: dict[ConnectionId, list[Frame]] = {}

    def hold(self, connection_id: ConnectionId | None) -> bool:
        """Count one more hold of a connection, or of the whole object; True if it is the first."""
        count = self._counts.get(connection_id, 0)
        self._counts[connection_id] = count + 1
        return count == 0

    def release(self, connection_id: ConnectionId | None) -> bool:
        """Count one less; True if it was the last."""
        count = self._counts.get(connection_id, 0)
        if count > 1:
            self._counts[connection_id] = count - 1
            return False
        return self._counts.pop(connection_id, None) is not None

    def holds(self, connection_id: ConnectionId) -> bool:
        """Return whether replies on this connection have to wait."""
        return connection_id in self._counts or None in self._counts

    def keep(self, connection_id: ConnectionId, reply: Frame) -> bool:
        """Keep a reply until the holds end; False if it had to be dropped."""
        replies = self._replies.setdefault(connection_id, [])
        if len(replies) >= MAX_KEPT_REPLIES:
            return False
        replies.append(reply)
        return True

    def free_replies(self) -> list[tuple[ConnectionId, list[Frame]]]:
        """Take the replies of all connections that are not held any more."""
        free = [connection_id for connection_id in self._replies if not self.holds(connection_id)]
        return [(connection_id, self._replies.pop(connection_id)) for connection_id in free]

    def clear(self) -> list[ConnectionId | None]:
        """End all holds; returns who was held. The replies are free now."""
        held = list(self._counts)
        self._counts.clear()
        return held

    def forget(self, connection_id: ConnectionId) -> None:
        """The connection is gone."""
        self._counts.pop(connection_id, None)
        self._replies.pop(connection_id, None)
