"""Locust users for rooms, media and relays. Import them in a locustfile of your own and write `@task`s:

    from locust import between, task
    from loadtest.users import RoomUser

    class Chatter(RoomUser):
        wait_time = between(1, 5)

        @task
        def chat(self):
            self.broadcast(size=200)

Every method blocks its greenlet only; the engine does the work and takes the time. What fails is a failure in Locust's
statistics, with its reason, and raises `CallFailed`, which ends the task; Locust then waits and goes on. Names there:

| type | names |
|---|---|
| WS | `connect`, `reconnect`, `send`, `deliver`, `echo`, `wake`, `write`, `ping`, `ask`, `connection` (lost) |
| HTTP | method and path of the room |
| MEDIA | `publish`, `subscribe`, `first frame`, `frame delay`, `session` (ended) |
| TURN | `allocate`, `relay`, `round trip` |

`deliver`, `frame delay` and `round trip` come from the engine's histograms, once a second, and are not in "Aggregated".
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from locust import User, events
from locust.env import Environment

from loadtest import options, webui
from loadtest.engine.dialects import ECHO, WRITE, DialectName, room_url
from loadtest.engine.remote import CALL_TIMEOUT, CallFailed, EngineGone
from loadtest.observer import Observer, observer_of

__all__ = ["CallFailed", "LoadUser", "MediaPublisher", "MediaSubscriber", "RoomUser", "TurnUser"]

events.init_command_line_parser.add_listener(options.add)


@events.init.add_listener
def _observe(environment: Environment, **_: Any) -> None:
    """Whatever locustfile imports these users: the engine, the figures and the tab of the web UI come with them."""
    options.complete(environment.parsed_options)
    observer = observer_of(environment)
    if environment.web_ui is not None:
        webui.extend(environment, observer)


BACKOFF = (1.0, 2.0, 5.0)
"""Seconds before a connection is tried again; the last for all further attempts."""


class LoadUser(User):
    """What all users here have in common: a number, and an engine that is asked in Locust's terms."""

    abstract = True
    request_type: ClassVar[str] = ""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.observer: Observer = observer_of(environment)
        self.number: int = self.observer.next_user(type(self).__name__)
        """Counts users of this class from 0, over all workers of a distributed run."""

    @property
    def address(self) -> str:
        """Address of the server under test: Locust's `--host`, or the class's `host`."""
        address: str | None = self.environment.host or self.host
        if not address:
            raise CallFailed("no address: give --host")
        return address.rstrip("/")

    def ask_engine(
        self, name: str, operation: str, *arguments: Any, timed: Any = None, within: float = CALL_TIMEOUT
    ) -> Any:
        """Have the engine do something, and enter it in Locust's statistics under `name`.

        Args:
            timed: from the operation's value to its seconds; None: it has no time of its own.
            within: seconds after which an engine that says nothing counts as gone.

        Raises:
            CallFailed: it did not work; it is entered as a failure.
        """
        value: Any = None
        failure: CallFailed | None = None
        began = time.monotonic()
        try:
            value = self.observer.engine.call(operation, *arguments, within=within)
        except EngineGone as error:
            failure = CallFailed(str(error))
        except CallFailed as error:
            failure = error
        seconds = time.monotonic() - began if failure else (timed(value) if timed else None)
        self.enter(name, seconds, failure)
        if failure is not None:
            raise failure
        return value

    def until_done(self, action: Callable[[], object]) -> None:
        """Do what makes this user ready, again after a while when it fails: a user that is not there is no load."""
        for attempt in itertools.count():
            try:
                action()
                break
            except CallFailed:
                gevent.sleep(BACKOFF[min(attempt, len(BACKOFF) - 1)])
        self.observer.ready()

    def enter(self, name: str, seconds: float | None, failure: Exception | str | None = None, length: int = 0) -> None:
        """Enter something in Locust's statistics."""
        self.environment.events.request.fire(
            request_type=self.request_type,
            name=name,
            response_time=None if seconds is None else seconds * 1000,
            response_length=length,
            exception=CallFailed(failure) if isinstance(failure, str) else failure,
            context=self.context(),
        )


class RoomUser(LoadUser):
    """One connection to a room: there from start to stop, and again when it was lost.

    Attributes:
        dialect, room_path: how to talk to the server and where its rooms are; None: as the command line says.
        connect_within: seconds for a connection.
        answer_within: seconds for an echo, a write, a ping or an answer.
        hibernates_after: seconds of a room's silence after which an echo counts as waking it.
    """

    abstract = True
    request_type = "WS"
    dialect: DialectName | None = None
    room_path: str | None = None
    connect_within: float = 30.0
    answer_within: float = 15.0
    hibernates_after: float = 12.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._connection: int | None = None
        self._lost = Event()
        self._failed_attempts = 0

    def room(self) -> str:
        """Name of this user's room; by default users are spread evenly over the rooms of the profile."""
        return f"room-{self.number % self.observer.parameter('rooms')}"

    def on_start(self) -> None:
        """Join."""
        self.until_done(self.connect)

    def on_stop(self) -> None:
        """Leave in order, unless everybody does."""
        if not self.observer.stopping:
            self.disconnect()

    @property
    def connected(self) -> bool:
        """Whether the connection is there."""
        return self._connection is not None

    def connect(self, name: str = "connect") -> None:
        """Connect to the room. Raises `CallFailed`."""
        given = self.environment.parsed_options
        arguments = (
            self.address,
            self.room_path or getattr(given, "room_path", None) or "/parties/main/{room}",
            self.room(),
            self.dialect or getattr(given, "dialect", None) or "text",
            self.connect_within,
        )
        number, _ = self.ask_engine(name, "rooms.open", *arguments, timed=lambda value: value[1])
        self._connection = number
        self._lost.clear()
        self._failed_attempts = 0
        self.observer.engine.watch(number, self._ended)

    def disconnect(self) -> None:
        """Leave in order. Nothing happens without a connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.observer.engine.unwatch(connection)
            with contextlib.suppress(CallFailed, EngineGone):
                self.observer.engine.call("rooms.close", connection)

    def broadcast(self, size: int = 64) -> None:
        """Send a message of `size` bytes to everybody else in the room; how long it takes to each is `deliver`."""
        self.ask_engine("send", "rooms.broadcast", self._present(), size)

    def stream(self, rate: float, seconds: float, size: int = 64) -> None:
        """Broadcast `rate` messages a second, paced by the engine: for rates beyond some hundred a second in all."""
        within = seconds + CALL_TIMEOUT
        self.ask_engine("stream", "rooms.stream", self._present(), rate, seconds, size, within=within)

    def echo(self, size: int = 64, name: str = "echo") -> float:
        """Have the room send a message back; the seconds that took. After a long silence it counts as a wake-up."""
        return self._echo(name, ECHO, size)

    def write(self, size: int = 64, name: str = "write") -> float:
        """Have the room store a message and send it back once it is on disk; the seconds that took."""
        return self._echo(name, WRITE, size)

    def _echo(self, name: str, kind: str, size: int) -> float:
        connection = self._present()
        began = time.monotonic()
        try:
            seconds, silent = self.observer.engine.call("rooms.echo", connection, kind, size, self.answer_within)
        except (CallFailed, EngineGone) as error:
            self.enter(name, time.monotonic() - began, str(error))
            raise CallFailed(str(error)) from None
        woke = name == "echo" and silent >= self.hibernates_after
        self.enter("wake" if woke else name, seconds)
        self.observer.record(f"rooms.{'wake' if woke else name}", seconds)
        return float(seconds)

    def ping(self) -> float:
        """Send `ping` and wait for `pong`; the seconds that took."""
        seconds: float = self.ask_engine(
            "ping", "rooms.ping", self._present(), self.answer_within, timed=lambda value: value
        )
        self.observer.record("rooms.ping", seconds)
        return seconds

    def say(self, text: str, name: str = "send") -> None:
        """Send any text: for rooms that speak a protocol of their own."""
        self.ask_engine(name, "rooms.say", self._present(), text)

    def ask(self, text: str, answer: str, name: str = "ask") -> float:
        """Send any text and wait for a message that contains `answer`; the seconds that took."""
        seconds: float = self.ask_engine(
            name, "rooms.ask", self._present(), text, answer, self.answer_within, timed=lambda value: value
        )
        return seconds

    def idle(self, seconds: float, ping_every: float = 0) -> None:
        """Stay connected and quiet; with `ping_every` send a ping so often. Ends early when the connection is lost."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._lost.wait(min(left, ping_every) if ping_every else left):
                self._present()
                return
            if ping_every and end - time.monotonic() > 0:
                self.ping()

    def get(self, path: str | None = None) -> int:
        """An HTTP GET of the room's address, or of another path; returns the status. 400 and above is a failure."""
        given = self.environment.parsed_options
        template = path or self.room_path or getattr(given, "room_path", None) or "/parties/main/{room}"
        url = room_url(self.address, template, self.room(), websocket=False)
        began = time.monotonic()
        failure: str | None = None
        status, length, seconds = 0, 0, 0.0
        try:
            status, length, seconds = self.observer.engine.call("rooms.request", "GET", url, self.answer_within)
            failure = f"status {status}" if status >= 400 else None
        except (CallFailed, EngineGone) as error:
            failure, seconds = str(error), time.monotonic() - began
        self.environment.events.request.fire(
            request_type="HTTP",
            name=f"GET {template}",
            response_time=seconds * 1000,
            response_length=length,
            exception=CallFailed(failure) if failure else None,
            context=self.context(),
        )
        if failure:
            raise CallFailed(failure)
        self.observer.record("rooms.http", seconds)
        return int(status)

    def _present(self) -> int:
        """The connection; a lost one is made again first."""
        while self._connection is None:
            self._try("reconnect")
        return self._connection

    def _try(self, name: str) -> bool:
        try:
            self.connect(name)
        except CallFailed:
            gevent.sleep(BACKOFF[min(self._failed_attempts, len(BACKOFF) - 1)])
            self._failed_attempts += 1
            return False
        return True

    def _ended(self, reason: str) -> None:
        self._connection = None
        self._lost.set()
        self.enter("connection", None, reason)


class _MediaUser(LoadUser):
    """A user with sessions: it holds them, and notices when one ends.

    Attributes:
        browser: be a page in headless Chromium (costs much of a core; with Torpor only) and not a light client.
    """

    abstract = True
    request_type = "MEDIA"
    check_every: float = 2.0
    browser: bool = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._sessions: list[int] = []

    def media_target(self) -> dict[str, str]:
        """The server, as the engine wants it described."""
        target = dict(self.observer.media_target(self.address))
        return target | {"kind": "chromium"} if self.browser else target

    def on_stop(self) -> None:
        """Leave in order, unless everybody does."""
        if not self.observer.stopping:
            self.leave()

    def leave(self) -> None:
        """End the sessions. Nothing happens without one."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            with contextlib.suppress(CallFailed, EngineGone):
                self.observer.engine.call("media.leave", session)

    def hold(self, seconds: float) -> None:
        """Stay in the sessions. Raises `CallFailed` when one has ended by itself."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            gevent.sleep(min(left, self.check_every))
            for session in list(self._sessions):
                try:
                    self.observer.engine.call("media.check", session)
                except CallFailed as error:
                    self._sessions.remove(session)
                    self.enter("session", None, str(error))
                    raise


class MediaPublisher(_MediaUser):
    """Publishes one source for as long as it lives, and announces it to subscribers under `stage`.

    Attributes:
        audio, video, height, simulcast: see `loadtest.media.source.MediaSource`.
    """

    abstract = True
    audio: bool = True
    video: str | None = "VP8"
    height: int = 360
    simulcast: bool = False

    @property
    def title(self) -> str:
        """Of this publication, unique in the test."""
        return f"{type(self).__name__}-{self.number}"

    def stage(self) -> str:
        """Under which name subscribers find this publication."""
        return "main"

    def publish(self) -> None:
        """Join and send. Raises `CallFailed`."""
        source = {"audio": self.audio, "video": self.video, "height": self.height, "simulcast": self.simulcast}
        target = self.media_target()
        session, ref, _ = self.ask_engine("publish", "media.publish", target, source, timed=lambda v: v[2])
        self._sessions.append(session)
        self.observer.announce(self.stage(), self.title, ref)

    def on_start(self) -> None:
        """Join."""
        self.until_done(self.publish)


class MediaSubscriber(_MediaUser):
    """Pulls what was announced under a stage, in one session.

    Attributes:
        rid: preferred simulcast layer; empty: the server chooses.
        verify_every: decode and compare the pictures of every so manieth user; 0: of none.
        first_frame_within: seconds until every track must have brought a frame.
        announced_within: seconds to wait for publications.
    """

    abstract = True
    rid: str = ""
    verify_every: int = 0
    first_frame_within: float = 20.0
    announced_within: float = 30.0

    def stage(self) -> str:
        """Whose publications are pulled."""
        return "main"

    def subscribe(self, publications: int, besides: str = "") -> None:
        """Wait until `publications` are announced, then pull all but the one called `besides`.

        Raises:
            CallFailed: none was announced in time, refused, or no media came.
        """
        refs = self.observer.publications(self.stage(), publications, besides, self.announced_within)
        if not refs:
            self.enter("subscribe", self.announced_within, "nothing was published")
            raise CallFailed("nothing was published")
        verify = bool(self.verify_every) and self.number % self.verify_every == 0
        arguments = (self.media_target(), refs, self.rid, verify, self.first_frame_within)
        value = self.ask_engine("subscribe", "media.subscribe", *arguments, timed=lambda v: v[1])
        self._sessions.append(value[0])
        self.enter("first frame", value[2])


class TurnUser(LoadUser):
    """One relay with an echoing peer behind it.

    Attributes:
        transport: towards the server: `udp`, `tcp` or `tls`.
    """

    abstract = True
    request_type = "TURN"
    transport: str = "udp"

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._relay: int | None = None

    def on_start(self) -> None:
        """Allocate."""
        self.until_done(self.allocate)

    def on_stop(self) -> None:
        """Release the relay, unless the test is over for all."""
        if self.observer.stopping:
            return
        relay, self._relay = self._relay, None
        if relay is not None:
            with contextlib.suppress(CallFailed, EngineGone):
                self.observer.engine.call("media.leave", relay)

    def allocate(self) -> None:
        """Make the relay. Raises `CallFailed`."""
        server = {**self.observer.turn_server(self.address), "transport": self.transport}
        self._relay, _ = self.ask_engine("allocate", "turn.open", server, timed=lambda value: value[1])

    def echo(self, seconds: float, pps: float, size: int = 160) -> None:
        """Send `pps` packets a second through the relay for so long; each that comes back is a `round trip`."""
        self.ask_engine("relay", "turn.echo", self._relay, seconds, pps, size, within=seconds + CALL_TIMEOUT)
