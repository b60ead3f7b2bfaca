"""Where a TURN server is, and who we are to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Transport = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True, slots=True)
class TurnServer:
    """Where a TURN server listens, and credentials for it.

    Args:
        host: an IP address, v4 or v6.
        transport: towards the server; relayed traffic is UDP in any case.
    """

    host: str
    port: int
    username: str
    password: str
    transport: Transport = "udp"
