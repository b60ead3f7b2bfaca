from collections.abc import Collection, Iterable
from typing import Final

from hibernation._sockets.rows import Rows

SENT: Final = 0
QUEUED: Final = 1
DROPPED: Final = 2
GONE: Final = 3

class Outgoing(Rows):
    """What leaves. Nothing here blocks, and a row that is gone is not an error."""

    def send(self, handle: int, message: str | bytes) -> int:
        """Write one message, or queue what the socket does not take.

        Returns:
            SENT, QUEUED, DROPPED (the slow policy was applied), or GONE (closing, closed or broken).

        Raises:
            TypeError: neither str nor bytes.
            UnicodeEncodeError: lone surrogates.
        """

    def broadcast(self, handles: Iterable[int], message: str | bytes) -> int:
        """Write one message to many from one encoded buffer; returns how many got it written or queued."""

    def broadcast_group(
        self, group: int, message: str | bytes, tag: bytes | None = None, without: Collection[int] = ...
    ) -> int:
        """`broadcast` to the sockets of a group, with `tag`, except the handles in `without`."""

    def cork(self, handle: int) -> None:
        """Let what is sent to an open socket gather, up to 16 KiB, and write it at `uncork`, or when another is corked.

        For the answers to several messages of one read. Call `uncork` before control goes back to the loop.
        """

    def uncork(self) -> None:
        """Write what has gathered."""

    def buffered(self, handle: int) -> int:
        """Bytes sent that the kernel has not taken; 0 for an unknown row."""

    def notify_writable(self, handle: int) -> bool:
        """Report WRITABLE once the socket's queue is empty. False: it is now."""
