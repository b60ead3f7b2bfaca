class Ticker:
    """Sends a signal to the thread that made it, again and again, by a POSIX timer.

    It needs neither a thread nor the interpreter's lock, so code that holds either does not delay it. A signal that is
    still to be handled when the next is due is sent once. It goes off with the process: a child does not inherit it.

    Raises:
        OSError: the kernel has no timer left.
    """

    def __init__(self, signum: int) -> None: ...
    def start(self, period_s: float) -> None:
        """Send the signal each `period_s` from now on.

        Raises:
            ValueError: not above 0, or over a day.
        """

    def stop(self) -> None:
        """Send no more; one that was sent is still handled. May be started again."""
