"""The relay tables: commands of the control plane, and the decisions behind them (see `turn.ports.RelayPlane`).

Handles are numbers; hosts are IP literals; times are seconds of the monotonic clock. A handle that was closed raises
KeyError; a command that finds no memory raises MemoryError and has changed nothing.
"""

from collections.abc import Collection, Iterable

REASON_NAMES: tuple[str, ...]

class RelayTable:
    def __init__(
        self,
        *,
        relays_max: int,
        workers: int = 1,
        channel_max: int = 0x4FFF,
        allocation_bps: float = 0,
        user_bps: float = 0,
        total_bps: float = 0,
        allocation_pps: float = 0,
        bindings_per_s: float = 0,
        requests_per_s: float = 0,
    ) -> None: ...
    def add_relay(self, host: str, port: int) -> int:
        """A relay without a socket."""

    def close_relay(self, handle: int) -> tuple[int, int, int, int]:
        """Free everything of it. Returns bytes and packets from the client, bytes and packets to it."""

    def usage(self, handle: int) -> tuple[int, int, int, int]:
        """The same, while it lives."""

    def start_relay(self, handle: int, worker: int, listener: int, host: str, port: int, user: int) -> None:
        """Let it serve the client at this address of this listener; `user` shares a bandwidth limit."""

    def permit(self, handle: int, host: str, expires_at: float) -> None: ...
    def forbid(self, handle: int, host: str) -> None: ...
    def bind_channel(self, handle: int, number: int, host: str, port: int, expires_at: float) -> None: ...
    def deny_peer_ports(self, ports: Collection[int]) -> None: ...
    def restrict_address(self, host: str) -> None: ...
    def set_port(self, host: str, port: int, allowed: bool) -> None: ...
    def counters(self) -> dict[str, int]:
        """Drops by reason."""

    def live_counts(self) -> dict[str, int]: ...
    def from_client(self, listener: int, host: str, port: int, data: bytes, now: float) -> tuple[object, ...]:
        """("drop", reason), ("control", message), ("client", message) or ("peer", handle, host, port, payload, DF)."""

    def from_peer(self, handle: int, host: str, port: int, payload: bytes, now: float) -> tuple[object, ...]: ...
    def cut(self, pieces: Iterable[bytes]) -> tuple[list[bytes], bool, bytes]:
        """Whole messages of a stream that comes in these pieces, whether foreign bytes broke it, and what is left."""
