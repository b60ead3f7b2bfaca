"""When a thread waits for packets to gather. The relay threads use `gather.pxd`; this is the same rule, for tests."""

class Gathering:
    def __init__(self, longest: int) -> None:
        """`longest`: us, 0 for never."""

    def wait(self, received: int, now: int) -> int:
        """How long to wait before the next receive. `received`: datagrams or trains since the last call; times in us."""
