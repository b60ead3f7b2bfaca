"""Calls between objects: any public method or property of a remote object, as if it were here, but awaited.

**By value**: what `codec` carries. **By reference**: functions, instances of `RpcTarget`, and stubs. The receiver gets
a stub, and a call on it runs where the original is. That is also how rights are passed on: who has a stub may call it.

**Pipelining**: the result of a call is a promise that can be called through before it has arrived:
`await room.user("ann").rename("Ann")` is one round trip, and if the first call fails so does the second.

**Order**: calls on one stub start in the order they were made, awaited or not. They leave when what the caller wrote
before is durable, and results come back when what the callee wrote is.

**Release**: a stub that arrived as an argument ends when the call returns (`dup()` it to keep it); one that arrived in
a result ends with `with stub:`, `stub.dispose()`, `async with obj.method() as result:`, or with the instance that
received it. While others hold stubs of an object's functions, it stays in memory.

    promise ─invoke─▶ Call ─caller's output gate─▶ Receiver.submit ─callee's input gate─▶ walk path, call
       ▲                                                                                     │
       └──────────── decoded in the caller ◀── callee's output gate ◀── encoded in the callee ┘
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from objects import codec
from objects.blockers import RPC_CALL, RPC_STUB
from objects.errors import Disconnected, LimitExceeded, NotExposed, NotSerializable, StubDisposed
from objects.failures import FAILURES, for_callers
from objects.gates import Section, Stage
from objects.instance import Instance, State
from objects.mailbox import Event
from objects.scope import current_scope
from objects.state import DurableObject

log = logging.getLogger("torpor.objects")

MAX_CALL_BYTES = 32 * 1024 * 1024
"""Arguments of one call, or one result, serialized."""
MAX_PATH = 64
"""Attributes between a stub and what is called."""

RESERVED = frozenset({"fetch", "alarm", "before_leave", "dup", "dispose"}) | {
    f"web_socket_{event}" for event in ("connect", "message", "close", "error")
}
"""Handlers are called by the runtime alone."""

Work = Callable[[Instance | None, Any], Coroutine[Any, Any, Any]]


class RpcTarget:
    """Base of classes whose instances travel by reference; their public methods and properties can be called."""

    def on_disposed(self) -> None:
        """Nobody holds this stub of it any more; once per time the object was sent. Exceptions are logged."""


class Receiver(Protocol):
    """Something that can be called, wherever it is."""

    def submit(self, work: Work, reply: asyncio.Future[Any], size: int, *, pipelined: bool = False) -> None:
        """Run `work(instance, target)` where the target is, and give its result to `reply`; never raises."""


# ── what travels ────────────────────────────────────────────────────────────────────────────────────────────────────


class Export:
    """One function or target that was sent out of its instance (None: out of code that belongs to no object)."""

    def __init__(self, target: Any, owner: Instance | None, section: Section | None) -> None:
        self.target = target
        self.references = 1
        self._owner = owner
        self._section = section
        self._context = contextvars.copy_context() if owner is None else None
        if owner is not None:
            owner.blockers.add(RPC_STUB)

    def submit(self, work: Work, reply: asyncio.Future[Any], size: int, *, pipelined: bool = False) -> None:
        """Run a call on the target, as work of the section it was sent from."""
        owner = self._owner
        if owner is None:
            task = asyncio.Task(work(None, self.target), loop=asyncio.get_running_loop(), context=self._context)
            task.add_done_callback(lambda task: _pass_on(task, reply))
        elif owner.state is State.GONE:
            _fail(reply, Disconnected("the object that made this stub is gone"))
        else:
            run = _bind(work, self.target)
            owner.submit(Event("callback", run, reply, size=size, section=self._section))

    def release(self) -> None:
        """Drop one reference; the last one ends the export."""
        self.references -= 1
        if self.references:
            return
        disposed = getattr(self.target, "on_disposed", None) if isinstance(self.target, RpcTarget) else None
        owner = self._owner
        if owner is not None and owner.state is not State.GONE:
            if disposed is not None:
                root = owner.input.root
                owner.tasks.spawn(_notify(disposed), root, context=owner.tasks.context_of(root), name="on_disposed")
            owner.blockers.remove(RPC_STUB)
        elif owner is None and disposed is not None:
            asyncio.get_running_loop().call_soon(_log_failure, disposed)


@dataclass(slots=True)
class Payload:
    """A serialized value and what it refers to."""

    data: bytes
    references: list[Any] = field(default_factory=list)
    """An `Export`, of which this payload holds one reference, or an object's stub."""

    def discard(self) -> None:
        """Nobody will read it."""
        references, self.references = self.references, []
        for reference in references:
            if isinstance(reference, Export):
                reference.release()


def pack(value: object) -> Payload:
    """Serialize a value in the context of the code that sends it.

    Raises:
        NotSerializable: it holds something that travels neither by value nor by reference.
        LimitExceeded: more than 32 MiB.
    """
    scope = current_scope.get()
    references: list[Any] = []
    numbers: dict[int, int] = {}

    def reference(item: object) -> int | None:
        if id(item) in numbers:
            return numbers[id(item)]
        sent: Any
        if isinstance(item, RpcStub):
            sent = item._export()
            sent.references += 1
        elif isinstance(item, TravelsAsItself):
            sent = item
        elif isinstance(item, RpcPromise):
            raise NotSerializable("await a promise before sending its value")
        elif isinstance(item, RpcTarget) or (callable(item) and not isinstance(item, type)):
            sent = Export(item, scope.instance if scope else None, scope.section if scope else None)
        else:
            return None
        references.append(sent)
        numbers[id(item)] = len(references) - 1
        return len(references) - 1

    try:
        return Payload(codec.encode(value, limit=MAX_CALL_BYTES, reference=reference), references)
    except BaseException:
        Payload(b"", references).discard()
        raise


def unpack(payload: Payload) -> tuple[Any, list[RpcStub]]:
    """Return the value and the stubs in it, which belong to the running code's instance from now on."""
    stubs: dict[int, RpcStub] = {}
    references, payload.references = payload.references, []

    def resolve(number: int) -> object:
        reference = references[number]
        if not isinstance(reference, Export):
            return reference
        if number not in stubs:
            stubs[number] = RpcStub(reference)
        return stubs[number]

    return codec.decode(payload.data, resolve=resolve), list(stubs.values())


# ── the caller's side ───────────────────────────────────────────────────────────────────────────────────────────────


class TravelsAsItself:
    """Base of stubs that are names, such as those of objects: sending one sends the name."""


class RpcStub:
    """A function or target somewhere else. Call it, or call its methods; release it when done."""

    def __init__(self, export: Export) -> None:
        self._exported: Export | None = export
        self._loop = asyncio.get_running_loop()
        scope = current_scope.get()
        self._holder = scope.instance if scope is not None else None
        if self._holder is not None:
            self._holder.stubs.add(self)

    def __getattr__(self, name: str) -> RpcPromise:
        if name.startswith("_"):
            raise AttributeError(name)
        return RpcPromise(self._export(), (name,))

    def __call__(self, *args: Any, **kwargs: Any) -> RpcPromise:
        """Call the function that this stands for."""
        return RpcPromise(self._export(), ())(*args, **kwargs)

    def dup(self) -> RpcStub:
        """Return another handle on the same target, to be released by itself."""
        export = self._export()
        export.references += 1
        return RpcStub(export)

    def dispose(self) -> None:
        """Release; may be called again."""
        export, self._exported = self._exported, None
        if self._holder is not None:
            self._holder.stubs.discard(self)
        if export is not None:
            export.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dispose()

    def __del__(self) -> None:
        # Forgotten. Garbage may be collected by any thread, so the loop's own has to do the rest.
        if self._exported is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._exported.release)

    def _export(self) -> Export:
        if self._exported is None:
            raise StubDisposed("the stub was released, or the call that lent it has returned")
        return self._exported


class Call:
    """One call on its way, and its result where it was made: later calls can start from that."""

    def __init__(self, receiver: Receiver, path: tuple[str, ...], arguments: Payload | None) -> None:
        loop = asyncio.get_running_loop()
        self.reply: asyncio.Future[Payload] = loop.create_future()
        self._value: asyncio.Future[Any] = loop.create_future()
        self._payload: Payload | None = None
        self._instance: Instance | None = None
        self._receiver = receiver
        self._path = path
        self._arguments = arguments
        scope = current_scope.get()
        if scope is None:
            self._leave()
            return
        blockers = scope.instance.blockers
        blockers.add(RPC_CALL)
        self.reply.add_done_callback(lambda _: blockers.remove(RPC_CALL))
        if scope.instance.state is State.GONE:
            _fail(self.reply, Disconnected("the calling object is gone"))
        scope.instance.output.pass_(self._leave, needed=Stage.SECTIONS)

    def submit(self, work: Work, reply: asyncio.Future[Any], size: int, *, pipelined: bool = True) -> None:
        """Start a call from the result of this one, in the instance that has it."""

        async def when_known(instance: Instance | None, _: Any) -> Any:
            target = await self._value
            if instance is not self._instance:
                raise Disconnected("the object was restarted between two calls of a chain")
            return await work(instance, target)

        self._receiver.submit(when_known, reply, size, pipelined=True)

    def _leave(self) -> None:
        size = 0 if self._arguments is None else len(self._arguments.data)
        self.reply.add_done_callback(self._give_up)
        self._receiver.submit(self._run, self.reply, size)

    def _give_up(self, reply: asyncio.Future[Payload]) -> None:
        # It failed before it could start: whoever waits for the value must know.
        if not self._value.done() and (reply.cancelled() or reply.exception() is not None):
            _fail(self._value, Disconnected("the call did not run") if reply.cancelled() else reply.exception())
        if self._arguments is not None:
            self._arguments.discard()
        if reply.cancelled() and self._payload is not None:
            self._payload.discard()

    async def _run(self, instance: Instance | None, target: Any) -> Payload:
        self._instance = instance
        try:
            value = await self._invoke(target)
        except Exception as error:
            _fail(self._value, error)
            raise
        if not self._value.done():
            self._value.set_result(value)
        self._payload = pack(value)
        if self.reply.cancelled():
            self._payload.discard()
        return self._payload

    async def _invoke(self, target: Any) -> Any:
        for name in self._path:
            target = member(target, name)
        if self._arguments is None:
            return await target if inspect.isawaitable(target) else target
        (args, kwargs), lent = unpack(self._arguments)
        try:
            if not callable(target):
                raise NotExposed(f"{'.'.join(self._path) or 'the value'} cannot be called")
            result = target(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        finally:
            for stub in lent:
                stub.dispose()


class RpcPromise:
    """A property that has not been read, or the result of a call that has been started. Await it once or often.

    An attribute of it, or a call of that, goes to where the value will be.
    """

    def __init__(self, receiver: Receiver, path: tuple[str, ...], call: Call | None = None) -> None:
        if len(path) > MAX_PATH:
            raise LimitExceeded("attributes in one call", MAX_PATH, len(path))
        self._receiver = receiver
        self._path = path
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._result: tuple[Any, list[RpcStub]] | None = None

    def __getattr__(self, name: str) -> RpcPromise:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._call is not None:
            return RpcPromise(self._call, (name,))
        return RpcPromise(self._receiver, (*self._path, name))

    def __call__(self, *args: Any, **kwargs: Any) -> RpcPromise:
        """Start the call, now: arguments are copied."""
        receiver, path = (self._receiver, self._path) if self._call is None else (self._call, ())
        return RpcPromise(receiver, path, Call(receiver, path, pack((list(args), kwargs))))

    def __await__(self) -> Generator[Any, None, Any]:
        if self._call is None:
            self._call = Call(self._receiver, self._path, None)
        if self._result is None:
            payload = yield from self._call.reply
            if self._result is None:
                self._result = unpack(payload)
        return self._result[0]

    async def __aenter__(self) -> Any:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        self.dispose()

    def dispose(self) -> None:
        """Release all stubs in the result."""
        if self._result is not None:
            for stub in self._result[1]:
                stub.dispose()

    def __del__(self) -> None:
        # Nobody awaited it: let go of the stubs in its result.
        call = self.__dict__.get("_call")
        if call is not None and self._result is None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call.reply.add_done_callback, _discard)


# ── the callee's side ───────────────────────────────────────────────────────────────────────────────────────────────


def member(target: Any, name: str) -> Any:
    """Return what a remote caller may reach under `name`: public methods and properties of the class, or a dict's item.

    Raises:
        NotExposed: anything else, such as attributes of the instance, private names, handlers, and what the base has.
    """
    if isinstance(target, RpcStub | RpcPromise | TravelsAsItself):
        return getattr(target, name)
    if isinstance(target, dict) and name in target:
        return target[name]
    if isinstance(target, RpcTarget | DurableObject) and not name.startswith("_") and name not in RESERVED:
        for cls in type(target).__mro__:
            if cls in (RpcTarget, DurableObject, object):
                continue
            attribute = vars(cls).get(name)
            if inspect.isfunction(attribute) or isinstance(attribute, property | staticmethod | classmethod):
                return attribute.__get__(target, type(target))
            if attribute is not None:
                break
    raise NotExposed(f"{type(target).__name__} has no public method or property {name!r}")


def _bind(work: Work, target: Any) -> Callable[[Instance], Coroutine[Any, Any, Any]]:
    return lambda instance: work(instance, target)


def _pass_on(task: asyncio.Task[Any], reply: asyncio.Future[Any]) -> None:
    if task.cancelled():
        _fail(reply, Disconnected("the call was cancelled"))
    elif (error := task.exception()) is not None:
        _fail(reply, for_callers(error, None))
    elif not reply.done():
        reply.set_result(task.result())


def _fail(future: asyncio.Future[Any], error: BaseException | None) -> None:
    if not future.done():
        assert error is not None
        future.set_exception(error)
        future.exception()  # nobody need be waiting


def _discard(reply: asyncio.Future[Payload]) -> None:
    if not reply.cancelled() and reply.exception() is None:
        reply.result().discard()


async def _notify(disposed: Callable[[], None]) -> None:
    _log_failure(disposed)


def _log_failure(disposed: Callable[[], None]) -> None:
    try:
        disposed()
    except FAILURES:
        log.exception("on_disposed raised")
