"""Parts of the plane by themselves, for tests that compare them with a plain twin; and the comparison of pictures."""

FLAG_END: int

def squared_error(a: bytes, a_stride: int, b: bytes, width: int, height: int, row_step: int) -> float:
    """Mean squared difference of two 8-bit planes over every `row_step`-th row; `b` has rows of `width` bytes.

    Raises:
        ValueError: a plane is smaller than the picture.
    """

def flags_of(codec: int, payload: bytes) -> int:
    """What a payload's first bytes tell (`frames.pxd`)."""

def bucket_of(us: int) -> int:
    """The bucket of `histogram.pxd`."""

class Reception:
    """One received stream (`reception.pxd`), with the clock (microseconds) passed in."""

    def __init__(self, video: bool, asks: bool, has_rtx: bool, clock_rate: int) -> None: ...
    def take(self, seq: int, timestamp: int, flags: int, size: int, repaired: bool, now: int) -> bool:
        """True: new."""

    def due(self, now: int) -> tuple[list[int], int]:
        """(numbers to ask for, when to call again or 0)."""

    def wants_key(self, now: int) -> bool: ...
    def figures(self) -> dict[str, int]: ...

class ArrivalLog:
    """Transport-wide feedback (`arrivals.pxd`)."""

    def record(self, seq: int, now: int) -> None: ...
    def write(self, sender: int, media: int) -> bytes:
        """The next report, or empty."""
