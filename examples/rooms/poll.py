"""A poll over HTTP that closes by itself: storage and an alarm. Whoever is connected sees the votes come in.

    torpor serve examples/rooms/poll.py
    curl -d '{"question": "Tea?", "options": ["yes", "no"], "seconds": 60}' 127.0.0.1:8787/parties/main/tea
    curl -d '{"vote": "yes"}' 127.0.0.1:8787/parties/main/tea
    curl 127.0.0.1:8787/parties/main/tea

What was answered is on disk, and the alarm fires after a restart, too.
"""

import json
import time
from typing import Any

from objects.http import HttpRequest, HttpResponse
from objects.ports import UpgradeRequest
from partykit_compat import Connection, Server

OPTIONS_MAX = 20
SECONDS_MAX = 7 * 24 * 3600


class Poll(Server):
    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        connection.send(json.dumps(await self.ctx.storage.get("poll")))

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        poll: dict[str, Any] | None = await self.ctx.storage.get("poll")
        if request.method == "GET":
            return HttpResponse.of(poll) if poll else HttpResponse.of({"error": "no such poll"}, 404)
        try:
            wanted = await request.json()
        except ValueError:
            wanted = None
        match wanted, poll:
            case {"question": str(question), "options": [*options], "seconds": int(seconds)}, None:
                if not (0 < len(options) <= OPTIONS_MAX and 0 < seconds <= SECONDS_MAX):
                    return HttpResponse.of({"error": "too many options or too long"}, 400)
                poll = {"question": question, "votes": {str(option): 0 for option in options}, "open": True}
                await self.ctx.storage.set_alarm((time.time() + seconds) * 1000)
            case {"vote": str(option)}, {"open": True, "question": question, "votes": votes} if option in votes:
                votes[option] += 1
                poll = {"question": question, "votes": votes, "open": True}
            case _:
                return HttpResponse.of({"error": "not now, or not an option"}, 400)
        await self.save(poll)
        return HttpResponse.of(poll)

    async def on_alarm(self) -> None:
        poll = await self.ctx.storage.get("poll")
        await self.save({**poll, "open": False})

    async def save(self, poll: dict[str, Any]) -> None:
        await self.ctx.storage.put("poll", poll)
        self.broadcast(json.dumps(poll))
