"""A class of objects and how to reach them: ids, and stubs that send calls and requests to them.

Getting a stub does nothing; the first call creates the object. A stub stays usable: after an error, after hibernation
and after a reset the next call simply goes to the object as it is then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from objects.blockers import RPC_CALL
from objects.errors import InvalidObjectId, UsageError
from objects.failures import ESCAPES, as_exception
from objects.http import HttpRequest, HttpResponse, check_response
from objects.ids import IdFactory, ObjectId
from objects.instance import Instance
from objects.mailbox import Event
from objects.metering import Meter
from objects.pipe import sent_by
from objects.rpc import RpcPromise, TravelsAsItself, Work
from objects.scope import current_scope
from objects.state import DurableObject, ObjectState


class Submits(Protocol):
    """What a namespace needs of its host."""

    def submit(self, object_id: ObjectId, event: Event) -> None:
        """Queue an event for an object, waking it if need be."""


@dataclass(slots=True)
class ObjectClass:
    """What the objects of a namespace are made of."""

    cls: type[DurableObject]
    env: Any
    """Handed to every constructor; configuration, other namespaces."""

    def construct(self, instance: Instance) -> DurableObject:
        """Make the user's object for an instance."""
        try:
            return self.cls(ObjectState(instance), self.env)
        except ESCAPES as escape:
            raise as_exception(escape) from escape


class ObjectNamespace:
    """All objects of one class."""

    def __init__(self, name: str, kind: ObjectClass, host: Submits, secret: bytes) -> None:
        self.name = name
        self.kind = kind
        self.meter = Meter()
        self._host = host
        self._ids = IdFactory(name, secret)

    def id_from_name(self, name: str) -> ObjectId:
        """Return the id that `name` has for ever."""
        return self._ids.from_name(name)

    def new_unique_id(self) -> ObjectId:
        """Return an id that no name leads to; keep `str(id)`."""
        return self._ids.unique()

    def id_from_string(self, text: str) -> ObjectId:
        """Return the id that `str(id)` gave.

        Raises:
            InvalidObjectId: not an id of this namespace.
        """
        return self._ids.parse(text)

    def get(self, object_id: ObjectId) -> ObjectStub:
        """Return a stub, without doing anything.

        Raises:
            InvalidObjectId: the id belongs to another namespace.
        """
        if object_id.namespace != self.name:
            raise InvalidObjectId(f"this object id is not valid for namespace {self.name!r}")
        return ObjectStub(self._host, self.meter, object_id)

    def get_by_name(self, name: str) -> ObjectStub:
        """Return the stub of the object with this name."""
        return self.get(self.id_from_name(name))


class ObjectStub(TravelsAsItself):
    """A caller's handle on one object. Its attributes are the object's public methods and properties.

    A call that fails raises what the callee raised (by type, with `remote` set) or says what went wrong on the way:
    `retryable` errors may be tried again with backoff if the call is idempotent, `overloaded` ones not at once.
    """

    def __init__(self, host: Submits, meter: Meter, object_id: ObjectId) -> None:
        self.id = object_id
        self._host = host
        self._meter = meter

    def __repr__(self) -> str:
        return f"<ObjectStub {self.id.key}>"

    @property
    def name(self) -> str | None:
        """The name it was reached by."""
        return self.id.name

    def __getattr__(self, name: str) -> RpcPromise:
        if name.startswith("_"):
            raise AttributeError(name)
        return RpcPromise(self, (name,))

    async def fetch(self, request: HttpRequest | str) -> HttpResponse:
        """Send an HTTP request (a string is the URL of a GET) to the object's `fetch` handler.

        The response's head, and each piece of its body, leave when what was written before is durable. The object stays
        awake until the body has been read.

        Raises:
            UsageError: the class has no `fetch` handler.
            ObjectError: it was overloaded or reset.
        """
        if isinstance(request, str):
            request = HttpRequest(request)
        reply: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        size = len(request.body) if isinstance(request.body, bytes) else 0
        event = Event("fetch", lambda instance: _fetch(instance, request), reply, size=size)
        scope = current_scope.get()
        if scope is None:
            self._host.submit(self.id, event)
            return await reply
        with scope.instance.blockers.held(RPC_CALL):
            await scope.instance.output.wait()
            self._host.submit(self.id, event)
            return await reply

    def submit(self, work: Work, reply: asyncio.Future[Any], size: int, *, pipelined: bool = False) -> None:
        """Run a call on the object; see `rpc.Receiver`."""
        if not pipelined:
            self._meter.calls += 1
        run: Callable[[Instance], Any] = lambda instance: work(instance, instance.object)  # noqa: E731
        self._host.submit(self.id, Event("call", run, reply, size=size))


async def _fetch(instance: Instance, request: HttpRequest) -> HttpResponse:
    instance.meter.fetches += 1
    handler = getattr(instance.object, "fetch", None)
    if handler is None:
        raise UsageError(f"{type(instance.object).__name__} has no fetch() handler")
    answer = await handler(request)
    return sent_by(instance, check_response(answer, f"{type(instance.object).__name__}.fetch"))
