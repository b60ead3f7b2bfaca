"""A server that is going to be killed: says what it has acknowledged, line by line, until then.

Run as a module it waits for `[mode, folder]` lines and forks a process for each, so that a round costs no start-up.
Lines out: {"pid"}, {"ack": [object, number]}, {"state": {object: keys}}, {"ended"}.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from objects.embedded import LocalDrivers
from objects.host import ObjectHost
from objects.namespace import ObjectNamespace
from objects.state import AlarmInfo, DurableObject

OBJECTS = 6


class Ledger(DurableObject):
    """Each step writes a key and sets an alarm; each alarm writes a key."""

    async def step(self, number: int) -> None:
        count = self.ctx.storage.kv.get("count") or 0
        self.ctx.storage.kv.put("count", count + 1)  # type: ignore[operator]
        await self.ctx.storage.put(f"op{number}", "x" * (number % 7) * 200)
        # More would go over the limit of alarms that stand.
        if len(await self.ctx.storage.list_alarms()) < 90:
            await self.ctx.storage.put(f"alarm{number}", 1)
            await self.ctx.storage.set_alarm(self.env() + number % 30, f"{number}")

    async def alarm(self, info: AlarmInfo) -> None:
        await self.ctx.storage.put(f"ran{info.name}", 1)

    async def keys(self) -> list[str]:
        return list(await self.ctx.storage.list())

    async def check(self) -> None:
        ops = await self.ctx.storage.list(prefix="op")
        count = await self.ctx.storage.get("count") or 0
        assert len(ops) == count, f"{len(ops)} steps, but a count of {count}: a batch was torn"


def say(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


async def serve(mode: str, folder: Path) -> None:
    drivers = LocalDrivers(folder)
    host = ObjectHost(drivers.ports, secret=b"s" * 16)
    ledgers = host.register("ledger", Ledger, drivers.ports.clock.unix_ms)
    host.start()
    if mode == "load":
        await load(ledgers, int.from_bytes(os.urandom(5), "big"))
    while await drivers.ports.alarms.due(1 << 60, 1):  # noqa: ASYNC110  # the store has no event to wait for
        await asyncio.sleep(0.01)
    for name in map(str, range(OBJECTS)):
        stub = ledgers.get_by_name(name)
        await stub.check()
        say(state={name: await stub.keys()})
    await host.stop()
    drivers.close()


async def load(ledgers: ObjectNamespace, start: int) -> None:
    numbers = itertools.count(start)

    async def one(name: str) -> None:
        stub = ledgers.get_by_name(name)
        while True:
            number = next(numbers)
            await stub.step(number)
            say(ack=[name, number])

    await asyncio.gather(*(one(str(n)) for n in range(OBJECTS)))


def main() -> None:
    for line in sys.stdin:
        mode, folder = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(serve(mode, Path(folder)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        say(pid=pid)
        say(ended=os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
