import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextvars import Context, ContextVar
from typing import Any

import pytest

from objects.firststep import FirstSteps, Started

label: ContextVar[str] = ContextVar("label", default="none")


Ending = asyncio.Task[Any] | None


class Taker:
    """Takes first steps outside of any task, as a loop's callback does, and lets what waits go on."""

    def __init__(self) -> None:
        self.steps = FirstSteps()

    async def take(self, coro: Coroutine[Any, Any, Any], context: Context | None = None) -> Ending:
        result: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            assert self.steps.ready
            try:
                started = self.steps.take(context or Context(), lambda _, coro: coro, None, coro)
            except BaseException as error:
                result.set_exception(error)
                return
            if started is not None:
                started.go_on(lambda awaited, error: drive(started, awaited, error))
            result.set_result(started and started.task)

        self.steps.prepare()
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(callback)
        return await result


async def drive(started: Started, awaited: Any, error: BaseException | None) -> Any:
    """What `gates.gated` does, without a gate."""

    class Driven:
        def __await__(self) -> Any:
            at, thrown = awaited, error
            while True:
                try:
                    if thrown is None:
                        yield at
                except BaseException as caught:
                    thrown = caught
                try:
                    at = started.send(None) if thrown is None else started.throw(thrown)
                except StopIteration as stop:
                    return stop.value
                thrown = None

    return await Driven()


async def end(task: Ending) -> Any:
    assert task is not None
    return await task


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
    assert await end(started) == "done"
    assert len(set(tasks)) == 1


async def test_a_future_that_several_await_wakes_all(taker: Taker) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def code() -> str:
        return await future

    one, two = await taker.take(code()), await taker.take(code())
    here = asyncio.ensure_future(code())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(future.set_result, "all")
    assert await asyncio.gather(end(one), end(two), here) == ["all"] * 3


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

    assert await end(await taker.take(late())) == "timed out"
    assert await end(await taker.take(group())) == 3


async def test_each_step_runs_in_the_context_given(taker: Taker) -> None:
    context = Context()
    context.run(label.set, "mine")

    async def code() -> list[str]:
        seen = [label.get()]
        label.set("changed")
        await asyncio.sleep(0)
        return [*seen, label.get()]

    assert await end(await taker.take(code(), context)) == ["mine", "changed"]
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

    task = await taker.take(code())
    assert task is not None
    if when == "before it goes on":
        task.cancel()
    else:
        asyncio.get_running_loop().call_later(0.001, task.cancel)
    assert await end(task) == "ended"
    assert seen == ["cancelled"]


async def test_code_that_cancels_its_own_task_does_not_end_those_after_it(taker: Taker) -> None:
    async def code() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    assert await taker.take(code()) is None
    assert await taker.take(nothing()) is None


async def test_code_that_cancels_its_own_task_and_waits_gets_the_cancellation(taker: Taker) -> None:
    async def code() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return "cancelled"
        return "never"

    assert await end(await taker.take(code())) == "cancelled"


async def test_it_is_ready_when_its_spare_task_has_begun() -> None:
    steps = FirstSteps()
    assert not steps.ready
    steps.prepare()
    assert not steps.ready
    await asyncio.sleep(0)
    assert steps.ready
    await steps.close()
    assert not steps.ready
