"""A bare forwarder: what the machine allows when there is nothing but crypto, copies and system calls."""

def forward(
    fd: int, sources: list[tuple[int, list[tuple[int, int, int, int]]]], unprotect: int, protect: int
) -> None: ...
