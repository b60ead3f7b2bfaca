"""Connections to rooms: WebSockets that send on demand or on a schedule, and count what they receive.

Every broadcast carries its sender and a number that grows by one, so every receiver can tell what is missing: a hole
counts as lost until its message comes after all, as reordered. What a receiver can never see, that a sender's last
messages are missing, shows as `rooms.expected` above `rooms.delivered_here`: both count only messages between
connections of this engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect

from loadtest.engine.dialects import (
    BROADCAST,
    DIALECTS,
    ECHO,
    HEADER_LENGTH,
    WRITE,
    Dialect,
    compose,
    decompose,
    room_url,
)
from loadtest.figures import Figures

HANDSHAKES_MAX = 128
"""Under way at once; more wait for their turn, so that a crowd's arrival does not time out in our own queue."""
_PING = "ping"
_PONG = b"pong"


class RoomFailed(Exception):
    """What a user asked of a room did not work; the message is a reason that groups well in statistics."""


class Member(WSListener):
    """One connection to a room."""

    def __init__(self, rooms: Rooms, number: int, room: str, dialect: Dialect) -> None:
        self.number = number
        self.room = room
        self._sequences = {BROADCAST: 0, ECHO: 0, WRITE: 0}
        self.last_activity = time.monotonic()
        self.transport: WSTransport | None = None
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.leaving = False
        self.close_reason = ""
        self._rooms = rooms
        self._dialect = dialect
        self._seen: dict[int, int] = {}
        self._waiting: dict[tuple[str, int], asyncio.Future[float]] = {}
        self._pong: asyncio.Future[float] | None = None
        self._asking: tuple[bytes, asyncio.Future[float]] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self.transport = transport
        if not self._dialect.greets:
            self.joined.set_result(None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame has come: nearly always a broadcast, so that comes first."""
        if frame.msg_type is WSMsgType.CLOSE:
            self.close_reason = f"closed by the server with {getattr(frame.get_close_code(), 'value', '')}"
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        if frame.msg_type is not WSMsgType.TEXT:
            return
        now = time.monotonic_ns()
        payload = frame.get_payload_as_bytes()
        message = self._dialect.unwrap(payload)
        if message is None:
            self._protocol(transport, payload)
        elif (header := decompose(message)) is not None:
            self._receive(header.kind, header.sender, header.sequence, (now - header.sent_ns) / 1e9, len(message))
        elif message == _PONG and self._pong is not None and not self._pong.done():
            self._pong.set_result(now / 1e9)
        else:
            self._receive_other(message, now / 1e9)

    def _receive_other(self, message: bytes, now: float) -> None:
        """A message of the room's own, such as a test of somebody's real rooms gets."""
        self._rooms.received_other(len(message))
        if self._asking is not None and self._asking[0] in message and not self._asking[1].done():
            self._asking[1].set_result(now)

    def _protocol(self, transport: WSTransport, payload: bytes) -> None:
        if (answer := self._dialect.answer(payload)) is not None:
            transport.send(WSMsgType.TEXT, answer)
        if self._dialect.joined(payload) and not self.joined.done():
            self.joined.set_result(None)

    def _receive(self, kind: str, sender: int, sequence: int, delay: float, size: int) -> None:
        if kind == BROADCAST:
            self._rooms.delivered(sender, delay, size)
            last = self._seen.get(sender)
            if last is None or sequence == last + 1:
                self._seen[sender] = sequence
            elif sequence > last:
                self._rooms.lost(sequence - last - 1)
                self._seen[sender] = sequence
            else:
                self._rooms.reordered()
        elif (waiting := self._waiting.pop((kind, sequence), None)) is not None and not waiting.done():
            waiting.set_result(delay)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection has ended, whoever ended it."""
        reason = self.close_reason or "connection lost"
        asking = None if self._asking is None else self._asking[1]
        for future in (self.joined, self._pong, asking, *self._waiting.values()):
            if future is not None and not future.done():
                future.set_exception(RoomFailed(reason))
                future.exception()  # nobody may be waiting
        self._rooms.gone(self, "" if self.leaving else reason)

    def send(self, kind: str, size: int) -> int:
        """Send one load message now; returns its number. Raises `RoomFailed` when the connection has ended."""
        self._sequences[kind] += 1
        self.say(compose(kind, self.number, self._sequences[kind], time.monotonic_ns(), size))
        return self._sequences[kind]

    def say(self, text: str) -> None:
        """Send any text. Raises `RoomFailed` when the connection has ended."""
        if self.transport is None or self.transport.is_disconnected:
            raise RoomFailed(self.close_reason or "connection lost")
        self.transport.send(WSMsgType.TEXT, self._dialect.wrap(text))
        self.last_activity = time.monotonic()

    async def ask(self, text: str, answer: str, within: float) -> float:
        """Send any text and wait for a message that contains `answer`; the seconds that took. Raises as `echo`."""
        if self._asking is not None:
            raise RoomFailed("asked twice at once")
        waiting: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._asking = answer.encode(), waiting
        sent_at = time.monotonic()
        try:
            self.say(text)
            async with asyncio.timeout(within):
                return await waiting - sent_at
        except TimeoutError:
            raise RoomFailed(f"no answer within {within:g} s") from None
        finally:
            self._asking = None

    async def echo(self, kind: str, size: int, within: float) -> float:
        """Send a message that comes back, an echo or a write; the seconds that took.

        Raises:
            RoomFailed: the connection has ended, or nothing came in time.
        """
        key = kind, self.send(kind, size)
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within):
                delay: float = await waiting
                return delay
        except TimeoutError:
            raise RoomFailed(f"no echo within {within:g} s") from None
        finally:
            self._waiting.pop(key, None)

    async def ping(self, within: float) -> float:
        """Send `ping`, wait for `pong`; the seconds that took. Raises as `echo`."""
        pong = self._pong = asyncio.get_running_loop().create_future()
        sent_at = time.monotonic()
        try:
            self.say(_PING)
            async with asyncio.timeout(within):
                received_at: float = await pong
                return received_at - sent_at
        except TimeoutError:
            raise RoomFailed(f"no pong within {within:g} s") from None
        finally:
            self._pong = None


class Rooms:
    """All connections of an engine.

    Args:
        figures: where everything is counted.
        first_number: number of the first connection; engines of one test must not share numbers.
        ended: told of a connection that ended otherwise than by `close`, and why.
    """

    def __init__(self, figures: Figures, first_number: int, ended: Callable[[int, str], None]) -> None:
        self._figures = figures
        self._ended = ended
        self._next_number = self._first_number = first_number
        self._members: dict[int, Member] = {}
        self._sizes: dict[str, int] = {}
        self._handshakes = asyncio.Semaphore(HANDSHAKES_MAX)
        self._http: aiohttp.ClientSession | None = None
        self._sending = asyncio.Event()
        self._sending.set()

    # Counting, called by members.

    def delivered(self, sender: int, delay: float, size: int) -> None:
        """A broadcast has arrived."""
        counters = self._figures.counters
        counters["rooms.delivered"] = counters.get("rooms.delivered", 0) + 1
        counters["rooms.bytes_received"] = counters.get("rooms.bytes_received", 0) + size
        if self._first_number <= sender < self._next_number:
            counters["rooms.delivered_here"] = counters.get("rooms.delivered_here", 0) + 1
        self._figures.time("rooms.delivery").record(delay)

    def lost(self, messages: int) -> None:
        """A hole in a sender's numbers."""
        self._figures.add("rooms.lost", messages)

    def reordered(self) -> None:
        """A message that filled a hole."""
        self._figures.add("rooms.reordered")
        self._figures.add("rooms.lost", -1)

    def received_other(self, size: int) -> None:
        """A message that is none of ours."""
        self._figures.add("rooms.received_other")
        self._figures.add("rooms.bytes_received", size)

    def gone(self, member: Member, reason: str) -> None:
        """A connection has ended; `reason` is empty when we wanted it."""
        if self._members.pop(member.number, None) is not None:
            self._sizes[member.room] -= 1
            if reason:
                self._figures.add("rooms.connections_lost")
                self._ended(member.number, reason)

    # What users ask for.

    def settle(self) -> None:
        """No new messages until `resume`; what is under way is still received, and then the figures are final."""
        self._sending.clear()

    def resume(self) -> None:
        """Messages go out again."""
        self._sending.set()

    async def open(self, url: str, path: str, room: str, dialect: str, within: float) -> tuple[int, float]:
        """Connect to a room; returns the connection's number and the seconds from the first byte to being joined.

        Raises:
            RoomFailed: refused, unreachable or too slow.
        """
        member = Member(self, self._next_number, room, DIALECTS[dialect])
        self._next_number += 1

        async with self._handshakes:
            began = time.monotonic()
            try:
                async with asyncio.timeout(within):
                    await ws_connect(
                        lambda: member,
                        room_url(url, path, room),
                        websocket_handshake_timeout=within,
                        read_buffer_init_size=2048,
                        max_redirects=0,
                        use_aiofastnet=False,
                    )
                    self._members[member.number] = member
                    self._sizes[room] = self._sizes.get(room, 0) + 1
                    await member.joined
            except (WSError, OSError, TimeoutError, ValueError) as error:
                if member.transport is not None:
                    member.leaving = True
                    member.transport.disconnect(graceful=False)
                raise RoomFailed(_reason(error, within)) from error
        seconds = time.monotonic() - began
        self._figures.record("rooms.connect", seconds)
        return member.number, seconds

    def member(self, number: int) -> Member:
        """A connection by its number.

        Raises:
            RoomFailed: it has ended.
        """
        try:
            return self._members[number]
        except KeyError:
            raise RoomFailed("connection lost") from None

    async def broadcast(self, number: int, size: int) -> None:
        """Send a message to everybody else in the room. Raises `RoomFailed`."""
        await self._sending.wait()
        member = self.member(number)
        member.send(BROADCAST, max(size, HEADER_LENGTH))
        self._figures.add("rooms.sent")
        self._figures.add("rooms.expected", self._sizes[member.room] - 1)

    async def echo(self, number: int, kind: str, size: int, within: float) -> tuple[float, float]:
        """Send what comes back; the seconds that took, and how long this connection had been silent before.

        Raises:
            RoomFailed: see `Member.echo`.
        """
        member = self.member(number)
        silent = time.monotonic() - member.last_activity
        return await member.echo(kind, max(size, HEADER_LENGTH), within), silent

    async def say(self, number: int, text: str) -> None:
        """Send any text. Raises `RoomFailed`."""
        await self._sending.wait()
        self.member(number).say(text)

    async def stream(self, number: int, rate: float, seconds: float, size: int) -> int:
        """Broadcast on a schedule of `rate` a second; how many were sent. Late ones are caught up, their lag is kept.

        Raises:
            RoomFailed: the connection ended.
        """
        began = time.monotonic()  # the loop's own clock counts whole milliseconds
        total = max(1, round(rate * seconds))
        for index in range(total):
            due = began + index / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self._sending.is_set():
                self._figures.record("engine.send_lag", time.monotonic() - due)
            await self.broadcast(number, size)
        return total

    async def request(self, method: str, url: str, within: float) -> tuple[int, int, float]:
        """One HTTP request: status, length of the body, seconds. Raises `RoomFailed`."""
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=256)
            self._http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        began = time.monotonic()
        try:
            async with self._http.request(method, url, timeout=aiohttp.ClientTimeout(total=within)) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RoomFailed(f"{type(error).__name__}: {error}") from error
        return response.status, len(body), time.monotonic() - began

    def close(self, number: int) -> None:
        """Leave in order. Nothing happens when the connection has ended."""
        member = self._members.get(number)
        if member is not None and member.transport is not None:
            member.leaving = True
            member.transport.send_close(WSCloseCode.OK)
            member.transport.disconnect()

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self._members)

    async def leave(self) -> None:
        """Leave everything, a batch at a time, so that nobody is cut off for our being slow."""
        for index, number in enumerate(list(self._members)):
            self.close(number)
            if index % HANDSHAKES_MAX == 0:
                await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Leave everything, and free what is shared."""
        await self.leave()
        if self._http is not None:
            await self._http.close()


def _reason(error: Exception, within: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not connected within {within:g} s"
    if isinstance(error, WSHandshakeError) and error.response is not None:
        return f"refused with {int(error.response.status)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


__all__ = ["Member", "RoomFailed", "Rooms"]
