"""An exchange: datagrams between two planes of this process, without the network.

Make one with the number of threads of each side, give each plane its end. One side `bind`s addresses: what the other
sends to these goes through memory. Bounded: CAPACITY datagrams wait for each thread, more are dropped and counted by
their sender. The planes' threads use `inbox.pxd`; here is what Python does.
"""

from collections.abc import Sequence
from typing import Final, Literal

CAPACITY: Final[int]
DATAGRAM_BYTES_MAX: Final[int]

class Exchange:
    def __init__(self, threads: int, far_threads: int) -> None:
        """Raises `ValueError` for less than 1 or more than 256 threads on a side."""

    def ends(self) -> tuple[End, End]:
        """Of the first and of the second side. Each keeps the exchange alive."""

class End:
    """One side. A plane holds it from its start to its close; one plane at a time."""

    def bind(self, addresses: Sequence[tuple[str, int]]) -> None:
        """The addresses, 16 at most, at which the other side finds this one. Before either plane starts.

        Raises:
            ValueError: too many, not an address, or a plane runs.
        """

    @property
    def threads(self) -> int:
        """Of this side; the plane that takes the end must have as many."""

    # As the planes' threads do it.
    def open(self) -> None:
        """Begin to receive. Raises `ValueError` when somebody does."""

    def close(self) -> None:
        """Receive no more."""

    def post(
        self, thread: int, far_thread: int, source: tuple[str, int], to: tuple[str, int], data: bytes
    ) -> Literal["posted", "full", "closed"]:
        """Send from a thread of this side to one of the other."""

    def take(self, thread: int, limit: int = ...) -> list[tuple[int, tuple[str, int], tuple[str, int], bytes]]:
        """What waits for a thread: sending thread, source, destination, data."""

    def doze(self, thread: int) -> bool:
        """Announce sleep: the next post makes `wake_fileno` readable. False: something waits already."""

    def wake_fileno(self, thread: int) -> int:
        """An eventfd."""
