"""The profiles as a locustfile: `locust -f loadtest/locustfile.py --profile NAME --headless --host http://...`.

`torpor load` starts it with a server beside it; `docs/loadtest.md` has both.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.observer import observer_of
from loadtest.profiles import DEFAULT, PARAMETERS, Profile, ProfileError, profile
from loadtest.shapes import ProfileShape
from loadtest.users import MediaPublisher, MediaSubscriber, RoomUser, TurnUser

EXIT_USAGE = 2
CONNECT_TIMEOUT = 5.0


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    for parameter in PARAMETERS.values():
        if parameter.name != "spawn_rate":  # Locust's own flag, read below
            parser.add_argument(parameter.flag, type=float, default=None, help=parameter.text)


@events.init.add_listener
def _choose(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return  # its master tells which profile it is
    options = environment.parsed_options
    assert options is not None
    try:
        chosen = profile(options.profile or DEFAULT, {name: getattr(options, name, None) for name in PARAMETERS})
        if environment.web_ui is None:
            check_address(environment.host)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(EXIT_USAGE)  # Locust would log an exception of a listener, and go on
    classes = {user.__name__: user for user in environment.user_classes}
    environment.user_classes[:] = [classes[name] for name in chosen.users]
    deal(chosen, classes)
    observer = observer_of(environment)
    observer.profile = chosen
    if isinstance(environment.shape_class, ProfileShape):
        environment.shape_class.observer = observer


def deal(chosen: Profile, classes: Mapping[str, type[User]]) -> None:
    """Tell Locust how many users of each class of a profile there are, and that publishers come first.

    Among equals it would put one publisher in the middle of its viewers: the half that had come before it would then
    join in one moment, instead of at the spawn rate.
    """
    first = [name for name in chosen.users if issubclass(classes[name], MediaPublisher)] or chosen.users
    for name, count in chosen.users.items():
        if chosen.shape == "constant" and name in first:
            classes[name].fixed_count = count  # these come before all that only have a weight
        else:
            classes[name].weight = count


def check_address(address: str | None) -> None:
    """See that a server is there before a crowd is sent to it.

    Raises:
        ProfileError: no address, or nothing accepts connections there.
    """
    if not address:
        raise ProfileError("no address: give --host http://...")
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme in ("https", "wss") else 80)
        socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise ProfileError(f"{address} cannot be reached: {error}") from error


class Shape(ProfileShape):
    """The profile's."""


class Talker(RoomUser):
    """Talks now and then, so that all members of a room together send at the room's rate."""

    def wait_time(self) -> float:
        """Exponential, as people who do not know of each other."""
        rate = self.observer.parameter("rate") / self.observer.parameter("members")
        return random.expovariate(rate) if rate else 3600.0

    def on_start(self) -> None:
        """Join, and let the first message come as late as any other: nobody starts in step."""
        super().on_start()
        self.idle(self.wait_time())

    @task
    def talk(self) -> None:
        """One message to everybody else."""
        self.broadcast(self.observer.parameter("size"))


class Sleeper(RoomUser):
    """Is connected, and nothing else."""

    @task
    def sleep(self) -> None:
        """Come back when the connection was lost."""
        self.idle(60)


class Visitor(RoomUser):
    """Wakes its room from time to time: an echo, then a message to everybody."""

    def wait_time(self) -> float:
        """Around the mean, from half of it to one and a half."""
        return float(self.observer.parameter("think")) * random.uniform(0.5, 1.5)

    def on_start(self) -> None:
        """Join; the first visit comes at any time."""
        super().on_start()
        self.idle(self.wait_time() * random.random())

    @task
    def visit(self) -> None:
        """The first answer after a silence is the time to wake."""
        self.echo(self.observer.parameter("size"))
        self.broadcast(self.observer.parameter("size"))


class Caller(RoomUser):
    """Uses a room as a service: requests over HTTP, echoes, writes."""

    def wait_time(self) -> float:
        """Exponential."""
        return random.expovariate(1 / self.observer.parameter("think"))

    @task(4)
    def request(self) -> None:
        """An HTTP request to the room."""
        self.get()

    @task(4)
    def call(self) -> None:
        """An echo."""
        self.echo(self.observer.parameter("size"))

    @task(2)
    def store(self) -> None:
        """A write that is answered once it is on disk."""
        self.write(self.observer.parameter("size"))


class Broadcaster(MediaPublisher):
    """Publishes one stream."""

    def on_start(self) -> None:
        """Join with the profile's height."""
        self.height = self.observer.parameter("height")
        super().on_start()

    @task
    def send(self) -> None:
        """It sends by itself."""
        self.hold(10)


class Viewer(MediaSubscriber):
    """Watches the stream; if there are several, all of them."""

    def on_start(self) -> None:
        """Join."""
        self.verify_every = self.observer.parameter("verify")
        self.until_done(lambda: self.subscribe(self.observer.parameter("publishers")))

    @task
    def watch(self) -> None:
        """It receives by itself."""
        self.hold(10)


class BrowserViewer(Viewer):
    """A real browser among the viewers: what it decodes and shows is counted apart."""

    browser = True


class Participant(MediaPublisher, MediaSubscriber):
    """Publishes audio and video, and sees everybody else."""

    def on_start(self) -> None:
        """Publish; once everybody has, subscribe to the others in one session."""
        self.height = self.observer.parameter("height")
        self.until_done(self.meet)

    def meet(self) -> None:
        """Both joins; what is done already is not done again."""
        if not self._sessions:
            self.publish()
        others = self.observer.parameter("publishers")
        if others > 1:
            self.subscribe(others, besides=self.title)

    @task
    def talk(self) -> None:
        """Media flows by itself."""
        self.hold(10)


class Speaker(Participant):
    """Publishes audio alone, and hears the other speakers."""

    video = None

    def on_start(self) -> None:
        """As a participant."""
        self.until_done(self.meet)


class Listener(Viewer):
    """Hears all speakers."""


class RelayedCall(TurnUser):
    """A call through TURN: packets on a schedule, each of which comes back."""

    @task
    def call(self) -> None:
        """Ten seconds of it."""
        self.echo(10, self.observer.parameter("pps"), self.observer.parameter("size"))
