"""The relay plane with sockets and threads. Call every method from one thread; `receive` when `fileno` is
readable."""

from collections.abc import Sequence

from turn._relay.table import RelayTable
from turn.tls import TlsStream
from wire._batch.exchange import End

class Plane(RelayTable):
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
        stream_queue_bytes: int = 262144,
        gather_us: int = 0,
        tls_record_per_message: bool = False,
        exchange: End | None = None,
    ) -> None:
        """The sockets come with `start`.

        Args:
            relays_max: relay sockets at once; with them the descriptors are bounded.
            gather_us: under load a thread lets packets gather this long, at most 1000 us, before it takes them; 0: never.
            exchange: with another plane of this process, for as many threads as `workers`: what relays send to an
                address that it bound, and what it sends to relays, passes in memory.
        """

    def start(self, listeners: Sequence[Sequence[int]]) -> None:
        """Start the threads. `listeners[worker][address]` are bound UDP sockets, the caller's to close after `close`.

        Raises:
            OSError: no descriptors or no threads are left; call `close`.
        """

    def close(self) -> None:
        """Join the threads and free every relay. Idempotent."""

    def fileno(self) -> int:
        """An eventfd: readable when there is something to fetch."""

    def open_relay(self, host: str, port: int) -> int | None:
        """A bound socket, silent until started; None when the port, the descriptors or the relays are taken."""

    def start_stream_relay(self, handle: int, worker: int, connection: int, user: int) -> None:
        """Let the relay serve a TCP or TLS connection, named by a number of the caller's."""

    def receive(self) -> tuple[list[tuple[int, int, str, int, bytes]], list[tuple[int, bytes, bool]]]:
        """What waits for Python.

        Returns:
            Control messages of UDP clients: worker, listener, host, port, message. At most 64 per worker: call again
            until there are none. And of stream clients: connection, whole messages for it if it is not adopted nor
            paused, whether to release it.
        """

    def send_to_client(self, worker: int, listener: int, host: str, port: int, data: bytes) -> None:
        """An answer, at once, from the socket that was asked (T9). Lost when the socket buffer is full."""

    def receive_stream(self, worker: int, connection: int, messages: list[bytes]) -> list[bytes]:
        """Whole messages of a connection: data is relayed at once, control messages are returned."""

    def pause_stream(self, worker: int, connection: int, paused: bool) -> None:
        """Of a connection that Python has: output waits in the plane and is dropped, message by message, beyond the
        limit (T4)."""

    def adopt_stream(self, worker: int, connection: int, fd: int, session: TlsStream | None) -> bool:
        """Let the relay thread read and write a socket, until `release_stream`; the caller keeps it open so long.

        Data is relayed. When something else comes, or the end, `receive` says so.

        Args:
            worker: of the connection.
            connection: its number.
            fd: non-blocking; between two messages.
            session: of TLS, established; nothing else may use it until `release_stream`.

        Returns:
            False, with nothing changed, if no relay serves the connection or it cannot be watched.
        """

    def release_stream(self, worker: int, connection: int) -> tuple[bytes, bytes]:
        """Take socket and session back: what the client said and nobody handled, bytes not yet sent. Of TLS, the session
        may know more of the former, and messages for the client come by `receive`.

        Raises:
            KeyError: it is not adopted.
        """

    def stalled_streams(self, seconds: float) -> list[int]:
        """Adopted connections with a message that has been unfinished for longer than that (T2)."""
