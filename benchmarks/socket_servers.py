"""The servers of `bench_sockets`, each in a process of its own: `python -m benchmarks.socket_servers NAME`.

All answer a text message with the same payload; a message that is `go` is answered by one message of 64 bytes to every
other connection. The first line they print is their port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

PAYLOAD = "x" * 64
FRAME = b"\x81\x40" + PAYLOAD.encode()


def listen() -> socket.socket:
    """A listening socket on a port of the system's choice, which is printed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    return listener


def ceiling(fan_out: bool) -> Callable[[], None]:
    """The bare loop."""

    def run() -> None:
        from benchmarks._ceiling.sockets import serve

        serve(listen().detach(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n", FRAME, fan_out)

    return run


async def torpor() -> None:
    """The whole path: uvicorn, endpoint, table, dispatcher; objects are a function. `x...` is also an auto-response
    of connections that ask for `/auto`."""
    import uvicorn

    from hibernation._sockets.table import SocketTable
    from hibernation.dispatcher import Dispatcher
    from hibernation.endpoint import UPGRADE_EXTENSION, HandshakeSettings, websocket_protocol
    from hibernation.manager import HibernationManager
    from hibernation.service import SocketService
    from objects.ids import IdFactory
    from objects.ports import AutoResponse, Delivery, MessageReceived, UpgradeAccepted

    loop = asyncio.get_running_loop()

    class Clock:
        def monotonic(self) -> float:
            return loop.time()

        def unix_ms(self) -> int:
            return round(time.time() * 1000)

        def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
            return loop.call_later(delay, callback)

    ids = IdFactory("bench", bytes(16))
    rooms = {"/auto": ids.from_name("auto"), "/": ids.from_name("echo")}
    table = SocketTable()
    manager = HibernationManager(table, Clock())

    class Objects:
        async def connect(self, object_id: Any, request: Any) -> UpgradeAccepted:
            manager.accept(object_id, request.connection_id, (), True)
            if object_id == rooms["/auto"] and not manager.auto_responses(object_id):
                manager.set_auto_responses(object_id, [AutoResponse(PAYLOAD, PAYLOAD)])
            return UpgradeAccepted()

        def deliver(self, object_id: Any, event: Any, settled: Callable[[Delivery], None]) -> None:
            if isinstance(event, MessageReceived):
                if event.data == "go":
                    manager.broadcast(object_id, PAYLOAD, exclude=[event.connection_id])
                else:
                    manager.send(event.connection_id, event.data)
            loop.call_soon(settled, Delivery.DISPATCHED)

    service = SocketService(manager, Dispatcher(manager, Objects()))
    service.start()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await scope["extensions"][UPGRADE_EXTENSION].hand_to(rooms[scope["path"]])

    protocol = websocket_protocol(service, HandshakeSettings(rate_per_address=0))
    config = uvicorn.Config(application, ws=protocol, lifespan="off", log_config=None)
    await uvicorn.Server(config).serve(sockets=[listen()])


async def websockets_server() -> None:
    """The `websockets` package, compression off as with the others."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve
    from websockets.exceptions import ConnectionClosed

    everyone: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        everyone.add(connection)
        try:
            async for message in connection:
                if message == "go":
                    broadcast(everyone - {connection}, PAYLOAD)
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            everyone.discard(connection)

    async with serve(handler, sock=listen(), compression=None):
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
            if event["text"] == "go":
                for other in everyone - {send}:
                    await other({"type": "websocket.send", "text": PAYLOAD})
            else:
                await send({"type": "websocket.send", "text": event["text"]})
        everyone.discard(send)

    config = uvicorn.Config(
        application, ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off", log_config=None
    )
    await uvicorn.Server(config).serve(sockets=[listen()])


async def picows_server() -> None:
    """picows, if installed."""
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
            if payload == b"go":
                for other in everyone:
                    if other is not transport:
                        other.send(picows.WSMsgType.TEXT, PAYLOAD.encode())
            else:
                transport.send(picows.WSMsgType.TEXT, payload)

    server = await picows.ws_create_server(lambda request: Listener(), sock=listen())
    await server.serve_forever()


SERVERS: dict[str, Callable[[], None] | Callable[[], Coroutine[Any, Any, None]]] = {
    "epoll": ceiling(fan_out=False),
    "epoll-fan-out": ceiling(fan_out=True),
    "torpor": torpor,
    "picows": picows_server,
    "uvicorn": uvicorn_server,
    "websockets": websockets_server,
}


def main() -> None:
    """Run the server that the first argument names, on uvloop."""
    import uvloop

    server = SERVERS[sys.argv[1]]
    coroutine = server()
    if coroutine is not None:
        uvloop.run(coroutine)


if __name__ == "__main__":
    main()
