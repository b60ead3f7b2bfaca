"""TURN under load: allocations over UDP, TCP or TLS that send traffic through a peer socket of ours which echoes.

Client → server → peer → server → client: each packet is relayed both ways, and its round trip timed by our own clock.
Plain asyncio: some ten thousand packets a second on one core. `send_lag` says when that is too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.histogram import Histogram
from loadtest.media.figures import Mergeable
from loadtest.media.turn_calls import TurnCalls
from loadtest.media.turn_server import Transport, TurnServer
from loadtest.turn_client import TurnFailedError, TurnRequests, channel_data
from wire.stun import Method

__all__ = ["Transport", "TurnFailedError", "TurnFigures", "TurnRelay", "TurnServer", "open_relay"]

LOST_AFTER: Final = 2.0  # seconds without an echo
REFRESH_INTERVAL: Final = 240.0  # permissions last 300 s, channels and allocations 600 s
SIZE_MIN: Final = 16
_CHANNEL: Final = 0x4000
_MARK: Final = struct.Struct("!QQ")
_FRAME_MAX: Final = 65536 + 24
_CONNECT_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class TurnFigures(Mergeable):
    """Of one relay, or of several merged."""

    relays: int = 0
    allocate_seconds: Histogram = field(default_factory=Histogram)
    """From the first byte sent to the relayed address, handshakes of TCP and TLS included."""
    sent: int = 0
    echoed: int = 0
    """Packets that came back: client → relay → peer → relay → client."""
    lost: int = 0
    """Sent, and not back within two seconds."""
    bytes: int = 0
    """Echoed, payload."""
    refreshes: int = 0
    failures: int = 0
    """Refreshes, permissions or bindings that were refused."""
    round_trip: Histogram = field(default_factory=Histogram)
    send_lag: Histogram = field(default_factory=Histogram)
    """How late packets left against schedule."""


class TurnRelay:
    """One allocation with a channel to a peer socket that echoes. Made by `open_relay`.

    Attributes:
        allocate_seconds: from the first byte sent to the relayed address.
        relayed: that address.
    """

    def __init__(self, server: TurnServer, carrier: _Carrier, echo: _Echo) -> None:
        self.allocate_seconds = 0.0
        self.relayed = ("", 0)
        self._server, self._carrier, self._echo = server, carrier, echo
        self._calls = TurnCalls(server, carrier.send, reliable=server.transport != "udp")
        carrier.relay = self
        self._refreshing: asyncio.Task[None] | None = None
        self._sent_at: dict[int, float] = {}
        self._number = 0
        self._counts = {"sent": 0, "echoed": 0, "lost": 0, "bytes": 0, "refreshes": 0, "failures": 0}
        self._round_trip, self._lag = Histogram(), Histogram()

    async def echo(self, *, seconds: float, pps: float, size: int = 200) -> None:
        """Send packets of `size` bytes on schedule for `seconds`, through the channel; counts what comes back.

        Raises:
            ValueError: no rate, or less than 16 bytes, which number and time take.
        """
        if pps <= 0 or size < SIZE_MIN:
            raise ValueError(f"{pps} packets/s of {size} bytes")
        begun = time.monotonic()  # the loop's own clock counts whole milliseconds on uvloop
        for index in range(int(seconds * pps)):
            due = begun + index / pps
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            elif index % 16 == 0:
                await asyncio.sleep(0)  # behind schedule; others must run, too
            now = time.monotonic()
            self._lag.record(now - due)
            self._forget_lost(now)
            self._sent_at[self._number] = now
            payload = _MARK.pack(self._number, time.monotonic_ns()).ljust(size, b"\xa5")
            self._number += 1
            self._counts["sent"] += 1
            self._carrier.send(channel_data(_CHANNEL, payload) + b"\0" * (-size % 4 if self._carrier.stream else 0))
        await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))

    def figures(self) -> TurnFigures:
        """Counters so far."""
        with contextlib.suppress(RuntimeError):
            self._forget_lost(time.monotonic())
        allocate = Histogram()
        allocate.record(self.allocate_seconds)
        copies = [Histogram.from_json(h.to_json()) for h in (self._round_trip, self._lag)]
        return TurnFigures(
            relays=1, allocate_seconds=allocate, **self._counts, round_trip=copies[0], send_lag=copies[1]
        )

    async def refresh(self) -> None:
        """Prolong allocation, permission and channel now; by itself it happens every 240 s.

        Raises:
            TurnFailedError: refused.
        """
        try:
            await self._calls.call(Method.REFRESH, TurnRequests.lifetime(600))
            await self._calls.call(Method.CREATE_PERMISSION, [], (self._echo.address[0], 0))
            await self._calls.call(Method.CHANNEL_BIND, TurnRequests.channel(_CHANNEL), self._echo.address)
            self._counts["refreshes"] += 1
        except TurnFailedError:
            self._counts["failures"] += 1
            raise

    async def close(self) -> None:
        """Release the allocation. Idempotent."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None
        if self._carrier.is_open:
            with contextlib.suppress(TurnFailedError):
                await self._calls.call(Method.REFRESH, TurnRequests.lifetime(0))
        self._carrier.close()
        self._echo.close()

    async def start(self, begun: float) -> None:
        """Allocate, permit, bind. `begun`: loop time when the transport was begun. Raises `TurnFailedError`."""
        family = socket.AF_INET6 if ":" in self._echo.address[0] else socket.AF_INET
        reply = await self._calls.call(Method.ALLOCATE, TurnRequests.allocation(600, family))
        self.relayed = TurnRequests.relayed(reply)
        self.allocate_seconds = time.monotonic() - begun
        await self._calls.call(Method.CREATE_PERMISSION, [], (self._echo.address[0], 0))
        await self._calls.call(Method.CHANNEL_BIND, TurnRequests.channel(_CHANNEL), self._echo.address)
        self._refreshing = asyncio.create_task(self._keep())

    def receive(self, data: bytes) -> None:
        """One message of the server: an answer, or ChannelData."""
        if data[0] < 4:
            self._calls.receive(data)
            return
        channel, size = struct.unpack_from("!HH", data)
        if channel != _CHANNEL or size < _MARK.size or len(data) < 4 + size:
            return
        number, _ = _MARK.unpack_from(data, 4)
        sent_at = self._sent_at.pop(number, None)
        if sent_at is not None:
            self._counts["echoed"] += 1
            self._counts["bytes"] += size
            self._round_trip.record(time.monotonic() - sent_at)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL)
            with contextlib.suppress(TurnFailedError):
                await self.refresh()

    def _forget_lost(self, now: float) -> None:
        """In order of sending: the oldest first."""
        while self._sent_at:
            number = next(iter(self._sent_at))
            if now - self._sent_at[number] < LOST_AFTER:
                return
            del self._sent_at[number]
            self._counts["lost"] += 1


async def open_relay(server: TurnServer, *, host: str = "", peer_host: str = "") -> TurnRelay:
    """Connect, allocate, and bind a channel to a new peer socket.

    Args:
        host: local address towards the server; empty: the kernel's choice.
        peer_host: where the echoing peer listens; decides the relay's address family. The server must allow it, and
            servers refuse their own addresses: so by default 127.0.0.2 for a server on 127.0.0.1, else the address of
            ours from which the server is reached.

    Raises:
        TurnFailedError: not connected, or refused.
    """
    loop = asyncio.get_running_loop()
    echo = _Echo()
    await loop.create_datagram_endpoint(lambda: echo, local_addr=(peer_host or _beside(server.host), 0))
    begun = time.monotonic()
    try:
        carrier = await _connect(server, host)
    except BaseException:
        echo.close()
        raise
    relay = TurnRelay(server, carrier, echo)
    try:
        await relay.start(begun)
    except BaseException:
        carrier.close()
        echo.close()
        raise
    return relay


def _beside(server_host: str) -> str:
    """An address of ours that a server there can reach, and that is not its own if we have another."""
    address = ipaddress.ip_address(server_host)
    if address.version == 4 and address.is_loopback:
        return "127.0.0.2"
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server_host, 9))
        return str(probe.getsockname()[0])


async def _connect(server: TurnServer, host: str) -> _Carrier:
    loop = asyncio.get_running_loop()
    carrier = _Carrier(stream=server.transport != "udp")
    local = (host, 0) if host else None
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            if server.transport == "udp":
                address = (server.host, server.port)
                await loop.create_datagram_endpoint(lambda: carrier, remote_addr=address, local_addr=local)
            else:
                context = None
                if server.transport == "tls":
                    context = ssl.create_default_context()
                    context.check_hostname = False  # servers under test have certificates of their own making
                    context.verify_mode = ssl.CERT_NONE
                await loop.create_connection(lambda: carrier, server.host, server.port, ssl=context, local_addr=local)
    except (OSError, TimeoutError) as error:
        raise TurnFailedError(Method.ALLOCATE, 0, f"{server.transport}: {str(error) or 'not connected'}") from error
    return carrier


class _Carrier(asyncio.DatagramProtocol, asyncio.Protocol):
    """The transport to the server: datagrams, or a stream cut into messages (RFC 8656 §3.1, §12.5)."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self.relay: TurnRelay | None = None
        self._transport: Any = None
        self._rest = b""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, data: bytes) -> None:
        if not self.is_open:
            return
        if self.stream:
            self._transport.write(data)
        else:
            self._transport.sendto(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, _: Any) -> None:
        if self.relay is not None and len(data) >= 4:
            self.relay.receive(data)

    def error_received(self, _: Exception) -> None:
        """An ICMP error: requests run into their timeout, packets count as lost."""

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) - at >= 4:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            size = 20 + size if data[at] < 4 else (4 + size + 3) & ~3
            if len(data) - at < size:
                break
            if self.relay is not None:
                self.relay.receive(data[at : at + size])
            at += size
        self._rest = data[at:]
        if len(self._rest) > _FRAME_MAX:
            self.close()


class _Echo(asyncio.DatagramProtocol):
    """The peer: sends back what it gets."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.address = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, source: Any) -> None:
        if self._transport is not None:
            self._transport.sendto(data, source)

    def error_received(self, _: Exception) -> None:
        """An ICMP error of a relay that is gone."""

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
