import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

import pytest

from objects.firststep import FirstSteps, Started

label: ContextVar[str] = ContextVar("label", default="none")


class Taker:
    """Takes first steps outside of any task, as a loop's callback does."""

    def __init__(self) -> None:
        self.steps = FirstSteps()

    async def take(self, coro: Coroutine[Any, Any, Any], context: Context | None = None) -> Started | None:
        result: asyncio.Future[Started | None] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            assert self.steps.ready
            try:
                result.set_result(self.steps.take(coro, context or Context()))
            except BaseException as error:
                result.set_exception(error)

        self.steps.prepare()
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(callback)
        return await result

    async def finish(self, started: Started | None) -> Any:
        """Drive it to its end in its task, as `gates.gated` does without a gate."""
        assert started is not None

        class Driven:
            def __await__(self) -> Any:
                awaited, error = begin
                while True:
                    try:
                        if error is None:
                            yield awaited
                    except BaseException as caught:
                        error = caught
                    try:
                        awaited = started.send(None) if error is None else started.throw(error)
                    except StopIteration as stop:
                        return stop.value
                    error = None

        async def rest(awaited: Any, error: BaseException | None) -> Any:
            nonlocal begin
            begin = awaited, error
            return await Driven()

        begin: tuple[Any, BaseException | None]
        started.go_on(rest)
        return await started.task


@pytest.fixture
async def taker() -> AsyncIterator[Taker]:
    taker = Taker()
    yield taker
    await taker.steps.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def nothing() -> None:
    pass


async def test_code_that_never_waits_ends_at_once_and_leaves_the_spare_task(taker: Taker) -> None:
    seen: list[Any] = []

    async def code() -> None:
        seen.append(asyncio.current_task())

    assert await taker.take(code()) is None
    assert await taker.take(code()) is None
    assert seen[0] is seen[1] is not None


async def test_code_that_waits_goes_on_in_the_task_it_began_in(taker: Taker) -> None:
    tasks: list[Any] = []

    async def code() -> str:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0.001)
        tasks.append(asyncio.current_task())
        return "done"

    started = await taker.take(code())
    assert await taker.take(nothing()) is None  # others have a spare of their own
    assert await taker.finish(started) == "done"
    assert len(set(tasks)) == 1


async def test_a_future_that_several_await_wakes_all(taker: Taker) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def code() -> str:
        return await future

    one, two = await taker.take(code()), await taker.take(code())
    here = asyncio.ensure_future(code())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(future.set_result, "all")
    assert await asyncio.gather(taker.finish(one), taker.finish(two), here) == ["all"] * 3


async def test_timeouts_and_task_groups_begun_in_the_first_step_work_later(taker: Taker) -> None:
    async def late() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "never"

    async def group() -> int:
        async with asyncio.TaskGroup() as tasks:
            one, two = tasks.create_task(asyncio.sleep(0.001, 1)), tasks.create_task(asyncio.sleep(0, 2))
        return one.result() + two.result()

    assert await taker.finish(await taker.take(late())) == "timed out"
    assert await taker.finish(await taker.take(group())) == 3


async def test_each_step_runs_in_the_context_given(taker: Taker) -> None:
    context = Context()
    context.run(label.set, "mine")

    async def code() -> list[str]:
        seen = [label.get()]
        label.set("changed")
        await asyncio.sleep(0)
        return [*seen, label.get()]

    assert await taker.finish(await taker.take(code(), context)) == ["mine", "changed"]
    assert context[label] == "changed"
    assert label.get() == "none"


async def test_an_exception_of_the_first_step_is_the_caller_s(taker: Taker) -> None:
    async def code() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await taker.take(code())
    assert await taker.take(nothing()) is None


@pytest.mark.parametrize("when", ["before it goes on", "while it waits"])
async def test_cancelling_its_task_is_thrown_into_it(taker: Taker, when: str) -> None:
    seen: list[str] = []

    async def code() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
        return "ended"

    started = await taker.take(code())
    assert started is not None
    if when == "before it goes on":
        started.task.cancel()
    else:
        asyncio.get_running_loop().call_later(0.001, started.task.cancel)
    assert await taker.finish(started) == "ended"
    assert seen == ["cancelled"]


async def test_code_that_cancels_its_own_task_does_not_end_those_after_it(taker: Taker) -> None:
    async def code() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    assert await taker.take(code()) is None
    assert await taker.take(nothing()) is None


async def test_it_is_not_ready_inside_a_task_or_before_its_spare_has_begun() -> None:
    steps = FirstSteps()
    assert not steps.ready
    await asyncio.sleep(0)
    assert not steps.ready  # this is a task
    ready: list[bool] = []
    await outside(lambda: ready.append(steps.ready))
    assert ready == [True]
    await steps.close()


async def outside(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
