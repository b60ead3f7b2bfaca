"""The servers of `bench_sockets`: Torpor and workerd with the load room, and without rooms a bare epoll loop, picows,
uvicorn and `websockets`.

Those without rooms keep to the contract of the load room as if all were in one (see `loadtest.peers`): they run here,
each as `python -m benchmarks.socket_servers NAME PORT` on uvloop.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks import machine
from loadtest.peers.process import ServerProcess, free_port
from loadtest.peers.torpor import TorporServer
from loadtest.peers.workerd import WorkerdServer

PAYLOAD = "e" * 64
PONG = b"\x81\x04pong"


def frame(text: str) -> bytes:
    """A server's frame of a short text."""
    return b"\x81" + bytes([len(text)]) + text.encode()


class Local(ServerProcess):
    """One of `SERVERS`, which has no rooms."""

    room_path = "/"

    def __init__(self, name: str, core: int) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "benchmarks.socket_servers", name, str(self.port)]
        super().__init__(name, command, self._listens, core=core, folder=machine.ROOT)

    async def _listens(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True


def make(name: str, core: int = 0) -> Any:
    """A server by its name in the tables, not started: a `ServerProcess` with `port` and `room_path`."""
    if name == "workerd":
        return WorkerdServer(core=core)
    if name == "torpor":
        # Rooms only; pings off, as nobody else in the tables sends any; no limit on what one client address may do.
        settings = {"MEDIA_ENABLED": "false", "TURN_ENABLED": "false", "ROOMS_PING_INTERVAL": "0"}
        return TorporServer(core=core, environment={f"TORPOR_{key}": value for key, value in settings.items()})
    return Local(name, core)


# ── in the servers' processes ───────────────────────────────────────────────────────────────────────────────────────


def listen() -> socket.socket:
    """The listening socket."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=4096)
    listener.setblocking(False)
    return listener


def ceiling(reply: bytes, fan_out: bool) -> Callable[[], None]:
    """The bare loop."""

    def run() -> None:
        from benchmarks._ceiling.sockets import serve

        serve(listen().detach(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n", reply, fan_out)

    return run


async def websockets_server() -> None:
    """The `websockets` package, compression off as with the others."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve
    from websockets.exceptions import ConnectionClosed

    everyone: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        everyone.add(connection)
        try:
            async for message in connection:
                if str(message).startswith("b"):
                    broadcast(everyone - {connection}, message)
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            everyone.discard(connection)

    async with serve(handler, sock=listen(), compression=None, ping_interval=None):
        await asyncio.Future()


async def uvicorn_server() -> None:
    """uvicorn with its own sans-I/O WebSocket protocol."""
    import uvicorn

    everyone: set[Any] = set()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        everyone.add(send)
        while (event := await receive())["type"] == "websocket.receive":
            if event["text"].startswith("b"):
                for other in everyone - {send}:
                    await other({"type": "websocket.send", "text": event["text"]})
            else:
                await send({"type": "websocket.send", "text": event["text"]})
        everyone.discard(send)

    config = uvicorn.Config(
        application,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
    )
    await uvicorn.Server(config).serve(sockets=[listen()])


async def picows_server() -> None:
    """picows: frames in Cython, handlers called directly."""
    import picows

    everyone: set[Any] = set()

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_connected(self, transport: Any) -> None:
            everyone.add(transport)

        def on_ws_disconnected(self, transport: Any) -> None:
            everyone.discard(transport)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type != picows.WSMsgType.TEXT:
                return
            payload = frame.get_payload_as_bytes()
            if payload.startswith(b"b"):
                for other in everyone:
                    if other is not transport:
                        other.send(picows.WSMsgType.TEXT, payload)
            else:
                transport.send(picows.WSMsgType.TEXT, payload)

    server = await picows.ws_create_server(lambda request: Listener(), sock=listen())
    await server.serve_forever()


SERVERS: dict[str, Callable[[], None] | Callable[[], Coroutine[Any, Any, None]]] = {
    "epoll": ceiling(frame(PAYLOAD), fan_out=False),
    "epoll-pong": ceiling(PONG, fan_out=False),
    "epoll-fan-out": ceiling(frame("b" * 64), fan_out=True),
    "picows": picows_server,
    "uvicorn": uvicorn_server,
    "websockets": websockets_server,
}


def main() -> None:
    """Run the server that the first argument names."""
    import resource

    import uvloop

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = SERVERS[sys.argv[1]]
    coroutine = server()
    if coroutine is not None:
        uvloop.run(coroutine)


if __name__ == "__main__":
    main()
