from collections.abc import Iterable
from typing import Any

class Rows:
    """Where sockets live. `handle` names a row for ever: after the row is free it finds nothing.

    Methods that ask about a row, and `label`, `attach`, `assign`, raise `KeyError` for a handle or group that is gone.
    """

    max_sockets: int
    max_frame_bytes: int
    max_message_bytes: int
    max_inbound_bytes: int
    """All frames and messages in pieces together; the socket that would pass it is closed with 1013."""
    max_outbound_bytes: int
    """All outgoing queues together; beyond it the slow policy applies to the socket in question."""
    queue_bytes: int
    """Default limit of one outgoing queue. An empty queue takes one message of any size."""
    deflate_bytes: int
    """Messages of at least this size are compressed where permessage-deflate was agreed."""
    tick: float
    """Seconds of one slot of the timer wheel: how late a timeout may be."""
    close_timeout: float
    """Seconds to wait for the peer's close frame, and again for its end of the connection."""
    message_timeout: float
    """Seconds a frame or message may stay incomplete; then 1008. 0: for ever."""
    ping_interval: float
    """Seconds of silence before a ping. 0: never ping."""
    ping_timeout: float
    """Seconds of silence after that ping before the peer counts as gone."""
    idle_timeout: float
    """Seconds without a message before close 1001. 0: for ever. Pongs are not messages."""

    def __init__(
        self,
        *,
        max_sockets: int = 1_000_000,
        max_frame_bytes: int = 1_048_576,
        max_message_bytes: int = 1_048_576,
        max_inbound_bytes: int = 268_435_456,
        max_outbound_bytes: int = 268_435_456,
        queue_bytes: int = 1_048_576,
        deflate_bytes: int = 1024,
        tick: float = 0.5,
        close_timeout: float = 5.0,
        message_timeout: float = 30.0,
        ping_interval: float = 20.0,
        ping_timeout: float = 20.0,
        idle_timeout: float = 0.0,
    ) -> None: ...
    def fileno(self) -> int:
        """The epoll descriptor: readable when `process` has work, or `next_timeout` came nearer. Owned by the table."""

    def counters(self) -> dict[str, int]:
        """Gauges `rows`, `groups`, `inbound_bytes`, `outbound_bytes` (zero when all is quiet), and totals."""

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` (absolute, in the clock of `now`); None while no row waits for a time.

        Ask after `process` and after `handle_timeout`; what else brings it nearer makes `fileno()` readable. O(1).
        """

    def add_group(self, owner: object = None) -> int:
        """A group of sockets with common auto-responses and slow policy. Group 0 always exists: sockets of no object.

        Args:
            owner: kept for `owner` until `remove_group`.
        """

    def remove_group(self, group: int) -> None:
        """Forget an empty group and its rules. Raises `ValueError` while it has sockets."""

    def assign(self, handle: int, group: int) -> None:
        """Move a socket to a group, as its newest."""

    def set_slow_policy(self, group: int, queue_bytes: int, close: bool) -> None:
        """What to do with a frame that would make a queue longer than `queue_bytes`: close with 1013, or drop it."""

    def set_auto_responses(
        self, group: int, rules: Iterable[tuple[str | bytes, str | bytes, bool, bytes | None]]
    ) -> None:
        """Replace the group's rules: request, response, prefix match, tag. The first that fits answers."""

    def hold_group(self, group: int, held: bool) -> None:
        """`hold` for all sockets of the group, present and future."""

    def rows(self, group: int, tag: bytes | None = None) -> list[int]:
        """Handles of the group's sockets, oldest first. O(n) over the group."""

    def count(self, group: int, tag: bytes | None = None) -> int:
        """How many `rows` would return; O(1) without a tag."""

    def label(self, handle: int, tags: Iterable[bytes], info: bytes) -> None:
        """Keep tags (at most 255) and a description with the row, replacing what was there."""

    def labels(self, handle: int) -> tuple[list[bytes], bytes]:
        """What `label` kept."""

    def attach(self, handle: int, value: bytes | None) -> None:
        """Keep a copy of `value` with the row."""

    def attachment(self, handle: int) -> bytes | None:
        """A fresh copy of what `attach` kept."""

    def ready_state(self, handle: int) -> int:
        """0 connecting, 1 open, 2 closing, 3 closed or unknown."""

    def group(self, handle: int) -> int:
        """The socket's group; 0 for a row that is gone."""

    def owner(self, handle: int) -> Any:
        """What the socket's group was made with; None for a row that is gone, and in group 0."""

    def handles(self) -> list[int]:
        """Every row there is, whatever its state or group."""

    def last_seen(self, handle: int) -> float:
        """When the last byte arrived, in the clock of `now`."""

    def auto_response_at(self, handle: int) -> float | None:
        """When a rule last matched, in the clock of `now`."""
