"""Which object's code is running: a context variable, and the task factory that makes tasks belong to their object.

Code of an object may use plain asyncio: `create_task`, `gather`, `TaskGroup`, `timeout`. The host installs a task
factory that looks at the context a task is born in. If that is an object's, the task's steps pass the object's input
gate, in the section it was born in, and it counts as a blocker of hibernation until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objects.gates import Section
    from objects.instance import Instance


@dataclass(frozen=True, slots=True)
class Scope:
    """An instance, and the critical section that the running code belongs to."""

    instance: Instance
    section: Section


current_scope: ContextVar[Scope | None] = ContextVar("current_scope", default=None)


def install(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Make tasks born in objects belong to them, on top of what factory the loop has; return how to undo it."""
    previous: Any = loop.get_task_factory()  # its signature differs between Python versions

    def make(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context | None = None, **options: Any
    ) -> asyncio.Future[Any]:
        scope = current_scope.get() if context is None else context.get(current_scope)
        if scope is not None:
            return scope.instance.tasks.spawn(coro, scope.section, context=context, name=options.get("name"))
        if context is not None:
            options["context"] = context
        if previous is not None:
            task: asyncio.Future[Any] = previous(loop, coro, **options)
            return task
        return asyncio.Task(coro, loop=loop, **options)

    factory: Any = make
    loop.set_task_factory(factory)

    def undo() -> None:
        if loop.get_task_factory() is make:
            loop.set_task_factory(previous)

    return undo
