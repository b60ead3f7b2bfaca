"""A load test of your own rooms: here the chat of `examples/rooms/chat.py`, with people who come, talk, lurk and leave.

    torpor serve examples/rooms/chat.py
    locust -f examples/load/locustfile.py --host http://127.0.0.1:8787 -u 50 -r 10 -t 30s --headless --report chat.html

Without `--headless`, Locust's web UI is at http://127.0.0.1:8089. `--processes 4` spreads people over four processes.
"""

import json

from locust import between, task

from loadtest.users import RoomUser


class Chatter(RoomUser):
    """Says something every few seconds; the room answers everybody, the speaker too."""

    wait_time = between(1, 5)
    weight = 3
    room_path = "/parties/main/{room}?name=Ada"

    def room(self) -> str:
        """Ten people a room."""
        return f"chat-{self.number // 10}"

    @task(5)
    def talk(self) -> None:
        """Timed from here until the message comes back: `WS talk` in the statistics."""
        text = f"hello from {self.number}"
        self.ask(text, answer=json.dumps(text), name="talk")

    @task
    def come_again(self) -> None:
        """As when a phone changes networks."""
        self.disconnect()
        self.idle(2)
        self.connect("connect again")


class Lurker(RoomUser):
    """Listens, and says nothing."""

    room_path = "/parties/main/{room}?name=Lurker"

    def room(self) -> str:
        """The rooms of the chatters."""
        return f"chat-{self.number // 10}"

    @task
    def lurk(self) -> None:
        """A quiet minute."""
        self.idle(60)
