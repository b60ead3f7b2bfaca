"""Batched UDP on a socket that the caller owns: the same code that the forwarding threads run, for tests and benchmarks."""

class BatchedUdp:
    """Queue datagrams and flush them as trains; receive many per call. Holds no reference to the socket."""

    def __init__(self, fd: int, *, gso: bool = True, gro: bool = False, arena_bytes: int = 512 * 1024) -> None: ...
    def queue(self, data: bytes, host: str, port: int, *, keep: bool = False) -> None:
        """Send with the next `flush` (at once when the arena is full). `keep`: not to be dropped on a full buffer.

        Raises:
            ValueError: not an IP address, or not 1 to 65,507 bytes.
        """

    def flush(self) -> None: ...
    def receive(self) -> list[tuple[bytes, str, int]]:
        """What waits, at most 64 datagrams (more when the kernel coalesced them), in order; never blocks."""

    def counters(self) -> dict[str, int]:
        """calls, datagrams, bytes, trains, train_datagrams, dropped_blocked, held, dropped_error, gso, gso_refused."""
