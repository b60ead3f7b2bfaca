"""A process of objects for tests: `python -m tests.support.objects_process SOCKET FOLDER NAME`, until killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from hibernation.link import join
from hibernation.objects_end import ObjectsEnd
from objects.clock import SystemClock
from objects.embedded import LocalDrivers
from objects.host import ObjectHost
from objects.state import DurableObject
from objects.websocket import WebSocket

SECRET = b"0123456789abcdef"


class Counter(DurableObject):
    """Counts messages in its storage, and says which process it lives in."""

    async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
        self.ctx.accept_web_socket(ws, ["kept"])

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        count = (await self.ctx.storage.get("count") or 0) + 1
        await self.ctx.storage.put("count", count)
        ws.send(f"{self.env} {message!s} {count} {self.ctx.get_tags(ws)}")


async def main(path: Path, folder: Path, name: str) -> None:
    clock = SystemClock()
    end = ObjectsEnd(clock.unix_ms)
    link = await join(end, path)
    drivers = LocalDrivers(folder, connections=end, clock=clock)
    host = ObjectHost(drivers.ports, secret=SECRET)
    host.register("rooms", Counter, name)
    host.start()
    end.waker = host
    link.begin()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
