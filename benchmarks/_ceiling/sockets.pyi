def serve(listener: int, answer: bytes, reply: bytes, fan_out: bool) -> None:
    """Run a bare epoll loop on a listening socket until killed."""
