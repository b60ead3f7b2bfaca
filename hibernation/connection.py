"""What a row remembers of its connection: `ConnectionInfo` packed beside the tags, unpacked only when asked for.

A hibernating connection has no Python object. Its tags and these few bytes lie in the socket table; everything here
survives hibernation and dies with the connection.
"""

from __future__ import annotations

from typing import cast

import orjson

from objects.ports import ConnectionId, ConnectionInfo

NO_CLOSE_FRAME = "WebSocket disconnected without sending Close frame."
"""The reason that goes with 1006."""


def pack_info(url: str, protocol: str | None, accepted_at_ms: int, client: str | None) -> bytes:
    """Serialize what is not a tag."""
    return orjson.dumps((url, protocol, accepted_at_ms, client))


def unpack_info(connection_id: ConnectionId, tags: list[bytes], packed: bytes) -> ConnectionInfo:
    """Parse what `pack_info` wrote, for the row with these tags."""
    url, protocol, accepted_at_ms, client = cast(tuple[str, str | None, int, str | None], orjson.loads(packed))
    return ConnectionInfo(
        connection_id, url, protocol, tuple(tag.decode() for tag in tags), accepted_at_ms=accepted_at_ms, client=client
    )
