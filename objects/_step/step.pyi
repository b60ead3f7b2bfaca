"""The short way of a message: its handler's first step, and what that sends.

The commonest event of all, so it is compiled: nothing of ours runs between the connections side and the handler, and
between the handler and the connections side, but what is here. What is rare stays in the Python classes that derive
from these, and they hold the rules; here is no rule that they do not have.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVar

from objects.firststep import Started
from objects.gates import InputGate, OutputGate
from objects.metering import Meter
from objects.ports import ConnectionId, Frame
from objects.websocket import WebSocket

SURELY_SHORT: int
"""A message of so many characters is not too long, whichever they are."""

T = TypeVar("T")
U = TypeVar("U")

class EventRate:
    """Counts the events of one object.

    Args:
        most: how many may come within ten seconds.
    """

    def __init__(self, most: int) -> None: ...
    def admit(self, now: float) -> bool:
        """Count an event that has come; False if too many have."""

class Spare:
    """A task to take first steps in."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any]
    handed: asyncio.Future[None]
    """Done when the task is of no use to those who come next."""

class FirstStep:
    """Takes first steps; derived from by `firststep.FirstSteps`, which makes spare tasks."""

    ready: bool
    """Whether `take` may be called."""
    _spare: Spare | None

    def take(self, context: Context, code: Callable[[T, U], Awaitable[Any]], first: T, second: U) -> Started | None:
        """Run `code(first, second)` in `context` until it ends (None) or waits; raises what it raises.

        Only when `ready`, and outside of any task.
        """

class Sender:
    """A WebSocket as far as sending goes; derived from by `websocket.WebSocket`."""

    connection_id: ConnectionId
    failed: bool
    stands_alone: bool
    """Whether it was accepted without hibernation: its events go to its reader."""
    _closing: bool
    _has_been_open: bool
    """It can only end from here on, and a send after that is ignored."""
    _output: OutputGate
    _pass_on: Callable[[ConnectionId, Frame], None]

    @property
    def has_closed(self) -> bool:
        """Whether `close` was called in this life of the object; the peer may send until it has answered."""

    def send(self, message: Frame) -> None:
        """Queue a text (str) or binary (bytes) message; it leaves when what was written before is durable.

        Ignored if the connection is gone.

        Raises:
            UsageError: `close` was called, the socket is not accepted, or `message` is neither str nor bytes.
            LimitExceeded: more than 32 MiB.
        """

class ShortWay:
    """An instance as far as messages go that it can handle at once; derived from by `instance.Instance`."""

    object: Any
    """Of the user's class."""
    input: InputGate
    output: OutputGate
    meter: Meter
    _running: bool
    """Neither starting nor gone."""
    _stepping: bool
    """A message's handler takes its first step: an event, though nobody but its own code can see it."""
    _begun: int
    _unstarted: int
    """Events that the input gate has let in, and whose first step is still to come."""
    _last_event: float
    _step_began: float
    """The first step that is under way, or the part of it that is not in the meter."""
    _steps_s: float
    """Seconds of first steps that are not in the meter."""
    _rate: EventRate
    _first_steps: FirstStep
    _sockets: dict[ConnectionId, WebSocket]
    _context: Context
    _now: Callable[[], float]

    def handle_now(self, connection_id: ConnectionId, data: Frame) -> bool:
        """Run a message's handler up to where it first waits, unless something has to come before; see `ports.Waker`.

        As `Instance.submit`, but without a queue that nobody waits in and without a task for code that never waits.
        """
