"""The socket table, as Python sees it; `rows.pyi` and `outgoing.pyi` have the rest of the methods."""

from typing import Final

from hibernation._sockets.outgoing import Outgoing

MESSAGE: Final = 0
"""(MESSAGE, handle, str | bytes, None): one whole message that no rule answered."""
CLOSED: Final = 1
"""(CLOSED, handle, code, reason): the end, once. 1005: no status in the frame; 1006: no close frame at all."""
FAILED: Final = 2
"""(FAILED, handle, code, reason): the end, once: the peer broke a rule and was told so with this code."""
WRITABLE: Final = 3
"""(WRITABLE, handle, None, None): asked for by `notify_writable`."""
REPLY: Final = 4
"""(REPLY, handle, str | bytes, None): a rule matched on a held socket; send this behind what waits."""

Event = tuple[int, int, str | bytes | int | None, str | None]

class SocketTable(Outgoing):
    """Every server-side WebSocket after its handshake. One thread; the GIL is held; nothing blocks or calls back."""

    def adopt(self, fd: int, now: float, *, deflate: bool = False) -> int:
        """Take over a connected stream socket whose upgrade is not answered yet. The descriptor is ours from now on.

        Sends queue, nothing is read; a client that leaves is reported as CLOSED 1006.

        Raises:
            OverflowError: `max_sockets` are here. The descriptor stays the caller's.
            OSError: epoll refused it. The descriptor stays the caller's.
        """

    def open(self, handle: int, response: bytes, now: float) -> None:
        """Write the 101 answer, then what was sent meanwhile, and begin to read."""

    def refuse(self, handle: int, response: bytes) -> None:
        """Write an HTTP answer, end the connection, release the row. No event."""

    def release(self, handle: int) -> None:
        """Let go: the row leaves its group, its labels and attachment, and is free once the connection has ended.

        A connection that was not closed is cut.
        """

    def abort(self, handle: int) -> None:
        """Cut the connection without a close frame and without an event. Labels stay until `release`."""

    def close(self, handle: int, code: int = 0, reason: str = "") -> None:
        """Send a close frame behind everything sent before; code 0: without status. The second call is ignored.

        Raises:
            ValueError: a code outside 1000 to 4999 or one of 1004, 1005, 1006, 1015, a reason without a code or over 123 bytes.
        """

    def pause(self, handle: int) -> None:
        """Read nothing more; what arrives waits with the peer. At most what one read of 16 KiB held is still reported."""

    def resume(self, handle: int, now: float) -> None:
        """Read again. The time in which it was not read does not count as the peer's silence."""

    def hold(self, handle: int, held: bool) -> None:
        """Report auto-responses as REPLY instead of sending them."""

    def process(self, now: float) -> list[Event]:
        """Read and write what is ready, once per socket; returns what happened, in order per socket."""

    def handle_timeout(self, now: float) -> list[Event]:
        """Ping, give up and free what is due."""
