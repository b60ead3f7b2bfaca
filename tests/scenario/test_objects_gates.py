"""What may come in and what may go out; names carry the ids of the behaviours in the objects contract (G-…)."""

import asyncio
import contextlib
from typing import Any

import pytest

from objects.errors import CriticalSectionTimeout, LimitExceeded, ObjectReset, QueueFull
from objects.limits import Limits
from objects.state import DurableObject
from objects.websocket import WebSocket
from tests.unit.objects import conftest
from tests.unit.objects.fakes import World, commits_stalled, spin

world = conftest.world


class Base(DurableObject):
    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.notes: list[Any] = []

    async def noted(self) -> list[Any]:
        return self.notes

    async def note(self, what: Any) -> None:
        self.notes.append(what)

    async def ping(self) -> str:
        return "pong"


class TestInputGate:
    async def test_g01_events_that_read_then_write_lose_no_update(self, world: World) -> None:
        class Counter(Base):
            async def increment(self) -> int:
                count = (await self.ctx.storage.get("n") or 0) + 1
                await self.ctx.storage.put("n", count)
                return count

        stub = world.serve(Counter).get_by_name("a")
        counts = await asyncio.gather(*(stub.increment() for _ in range(50)))
        assert sorted(counts) == list(range(1, 51))

    async def test_calls_on_one_stub_start_in_the_order_made_awaited_or_not(self, world: World) -> None:
        stub = world.serve(Base).get_by_name("a")
        calls = [stub.note(n) for n in range(100)]
        assert await stub.noted() == list(range(100))
        await asyncio.gather(*calls)

    async def test_a_critical_section_stops_handlers_that_are_under_way(self, world: World) -> None:
        begin, go = asyncio.Event(), asyncio.Event()

        class Sectioned(Base):
            async def slow(self) -> None:
                self.notes.append("slow waits")
                await begin.wait()
                self.notes.append("slow goes on")

            async def section(self) -> None:
                await self.ctx.block_concurrency_while(self.inside)
                self.notes.append("after the section")

            async def inside(self) -> None:
                self.notes.append("section")
                begin.set()
                await go.wait()
                self.notes.append("section ends")

        stub = world.serve(Sectioned).get_by_name("a")
        calls = [stub.slow(), stub.section(), stub.note("queued")]
        await world.host.settle()
        go.set()
        await asyncio.gather(*calls)
        # Whoever awaited the section goes first, then those who waited, in order.
        assert await stub.noted() == [
            "slow waits",
            "section",
            "section ends",
            "after the section",
            "queued",
            "slow goes on",
        ]

    async def test_tasks_born_in_a_section_go_on_in_it(self, world: World) -> None:
        class Sectioned(Base):
            async def section(self) -> list[int]:
                return await self.ctx.block_concurrency_while(self.inside)

            async def inside(self) -> list[int]:
                async def one(n: int) -> int:
                    await asyncio.sleep(0.001)
                    return n

                async with asyncio.timeout(5):
                    return list(await asyncio.gather(*(one(n) for n in range(5))))

        assert await world.serve(Sectioned).get_by_name("a").section() == [0, 1, 2, 3, 4]

    async def test_sections_that_wait_go_ahead_of_events_that_wait(self, world: World) -> None:
        go = asyncio.Event()

        class Sectioned(Base):
            async def section(self, name: str) -> None:
                async def inside() -> None:
                    self.notes.append(name)
                    await go.wait()

                await self.ctx.block_concurrency_while(inside)

            async def two(self) -> None:
                first = self.ctx.block_concurrency_while(go.wait)

                async def second() -> None:
                    self.notes.append("second section")

                await asyncio.gather(first, self.ctx.block_concurrency_while(second))

        stub = world.serve(Sectioned).get_by_name("a")
        two = stub.two()
        await world.host.settle()
        event = stub.note("event")
        await spin()
        go.set()
        await asyncio.gather(two, event)
        assert await stub.noted() == ["second section", "event"]

    async def test_callbacks_of_calls_made_inside_a_section_are_let_in(self, world: World) -> None:
        class Asker(Base):
            async def ask(self, name: str) -> Any:
                async def inside() -> Any:
                    return await self.env["ns"].get_by_name(name).call_back(self.secret)

                return await self.ctx.block_concurrency_while(inside)

            def secret(self) -> str:
                return "from inside"

            async def call_back(self, function: Any) -> Any:
                return await function()

        env: dict[str, Any] = {}
        env["ns"] = world.serve(Asker, env)
        assert await env["ns"].get_by_name("a").ask("b") == "from inside"

    async def test_such_a_callback_may_start_tasks_and_sections_of_its_own(self, world: World) -> None:
        class Asker(Base):
            async def ask(self, name: str) -> Any:
                async def inside() -> Any:
                    return await self.env["ns"].get_by_name(name).call_back(self.answer)

                return await self.ctx.block_concurrency_while(inside)

            async def answer(self) -> list[Any]:
                async def section() -> str:
                    return "section"

                return await asyncio.gather(asyncio.sleep(0, "task"), self.ctx.block_concurrency_while(section))

            async def call_back(self, function: Any) -> Any:
                return await function()

        env: dict[str, Any] = {}
        env["ns"] = world.serve(Asker, env)
        async with asyncio.timeout(5):
            assert await env["ns"].get_by_name("a").ask("b") == ["task", "section"]


class TestCriticalSections:
    async def test_a_section_goes_on_and_keeps_the_object_when_its_caller_gives_up(self, world: World) -> None:
        go = asyncio.Event()

        class Sectioned(Base):
            async def section(self) -> None:
                await self.ctx.block_concurrency_while(self.inside)

            async def inside(self) -> None:
                await go.wait()
                self.notes.append("done")

        stub = world.serve(Sectioned).get_by_name("a")

        async def caller() -> None:
            await stub.section()

        call = asyncio.ensure_future(caller())
        await world.host.settle()
        call.cancel()
        await world.advance(20)
        assert world.host.awake()[stub.id.key]["task"] == 1
        go.set()
        assert await stub.noted() == ["done"]
        await world.advance(11)
        assert world.awake() == 0

    async def test_g02_a_section_that_raises_resets_the_object_once(self, world: World) -> None:
        class Failing(Base):
            async def fail(self) -> None:
                self.notes.append("before")
                with contextlib.suppress(BaseException):
                    await self.ctx.block_concurrency_while(self.inside)
                self.notes.append("never")

            async def inside(self) -> None:
                raise ValueError("broken inside")

        stub = world.serve(Failing).get_by_name("a")
        call, queued = stub.fail(), stub.noted()
        for one in (call, queued):
            with pytest.raises(ObjectReset, match="ValueError: broken inside") as caught:
                await one
            assert caught.value.retryable
            assert caught.value.object_reset
        assert await stub.noted() == []

    async def test_g03_a_section_over_thirty_seconds_is_overload(self, world: World) -> None:
        class Stuck(Base):
            async def stick(self) -> None:
                await self.ctx.block_concurrency_while(asyncio.Event().wait)

        stub = world.serve(Stuck).get_by_name("a")
        call, queued = stub.stick(), stub.noted()
        await world.advance(29.9)
        assert world.awake() == 1
        await world.advance(0.2)
        for one in (call, queued):
            with pytest.raises(CriticalSectionTimeout) as caught:
                await one
            assert caught.value.overloaded
            assert caught.value.object_reset
        assert await stub.noted() == []

    @pytest.mark.parametrize("depth", [64, 65])
    async def test_g04_sections_nest_64_deep(self, world: World, depth: int) -> None:
        class Nesting(Base):
            async def nest(self, left: int) -> str:
                if not left:
                    return "bottom"
                try:
                    section = self.ctx.block_concurrency_while(lambda: self.nest(left - 1))
                except LimitExceeded:
                    return "refused"
                return await section

        stub = world.serve(Nesting).get_by_name("a")
        assert await stub.nest(depth) == ("bottom" if depth == 64 else "refused")
        assert await stub.ping() == "pong"
        assert world.awake() == 1

    async def test_what_a_section_started_and_left_goes_on_outside(self, world: World) -> None:
        go = asyncio.Event()

        class Leaving(Base):
            async def leave(self) -> None:
                await self.ctx.block_concurrency_while(self.inside)

            async def inside(self) -> None:
                self.kept = asyncio.create_task(self.straggler())

            async def straggler(self) -> None:
                await go.wait()
                self.notes.append("adopted")

        stub = world.serve(Leaving).get_by_name("a")
        await stub.leave()
        go.set()
        await world.host.settle()
        assert await stub.noted() == ["adopted"]


class TestOutputGate:
    async def test_an_answer_waits_for_the_writes_before_it_and_not_for_later_ones(self, world: World) -> None:
        class Writing(Base):
            async def write(self) -> str:
                await self.ctx.storage.put("k", 1)
                return "written"

        stub = world.serve(Writing).get_by_name("a")
        assert await stub.write() == "written"
        with commits_stalled(world) as release:
            ping = stub.ping()
            write = stub.write()
            late = stub.ping()
            await spin()
            assert await ping == "pong"
            assert not write._call.reply.done()
            assert not late._call.reply.done()
            release()
        assert await asyncio.gather(write, late) == ["written", "pong"]

    async def test_calls_to_others_wait_too(self, world: World) -> None:
        class Writing(Base):
            async def write_and_tell(self) -> None:
                await self.ctx.storage.put("k", 1)
                await self.env["ns"].get_by_name("b").note("told")

        env: dict[str, Any] = {}
        env["ns"] = namespace = world.serve(Writing, env)
        await namespace.get_by_name("b").ping()
        with commits_stalled(world) as release:
            call = namespace.get_by_name("a").write_and_tell()
            await world.drivers.ports.storage.bookmarks(namespace.id_from_name("a"))
            await spin()
            assert await namespace.get_by_name("b").noted() == []
            release()
        await call
        assert await namespace.get_by_name("b").noted() == ["told"]

    async def test_a_commit_over_thirty_seconds_is_overload_and_a_reset(self, world: World) -> None:
        class Writing(Base):
            async def write(self) -> None:
                await self.ctx.storage.put("k", 1)

        stub = world.serve(Writing).get_by_name("a")
        await stub.ping()
        engine: Any = world.drivers.ports.storage
        commit, engine.commit = engine.commit, lambda *arguments: None
        call = stub.write()
        await spin()
        await world.clock.advance(31, spin)
        with pytest.raises(Exception, match="over 30 s") as caught:
            await call
        engine.commit = commit
        assert caught.value.overloaded  # type: ignore[attr-defined]
        assert await stub.ping() == "pong"


class TestReset:
    async def test_abort_ends_all_callers_with_the_reason_and_cannot_be_caught(self, world: World) -> None:
        class Aborting(Base):
            async def wait(self) -> None:
                await asyncio.Event().wait()

            async def abort(self) -> None:
                with contextlib.suppress(BaseException):
                    self.ctx.abort("on purpose")
                await asyncio.sleep(0)
                self.env.append("went on")

        env: list[str] = []
        stub = world.serve(Aborting, env).get_by_name("a")
        calls = [stub.wait(), stub.abort(), stub.wait()]
        for call in calls:
            with pytest.raises(ObjectReset, match="on purpose"):
                await call
        await world.host.settle()
        assert env == []
        assert await stub.ping() == "pong"
        assert world.host.namespaces["test"].meter.resets == 1

    async def test_a_constructor_that_fails_fails_those_who_wait_and_the_next_starts_clean(self, world: World) -> None:
        class Failing(Base):
            def __init__(self, ctx: Any, env: Any) -> None:
                super().__init__(ctx, env)
                env.append("tried")
                if len(env) == 1:
                    raise RuntimeError("not yet")

        stub = world.serve(Failing, []).get_by_name("a")
        first, second = stub.ping(), stub.ping()
        for call in (first, second):
            with pytest.raises(RuntimeError, match="not yet") as caught:
                await call
            assert caught.value.remote  # type: ignore[attr-defined]
            assert caught.value.object_reset  # type: ignore[attr-defined]
        assert await stub.ping() == "pong"

    async def test_a_handlers_exception_reaches_the_caller_and_resets_nothing(self, world: World) -> None:
        class Raising(Base):
            async def fail(self) -> None:
                self.notes.append("kept")
                raise KeyError("missing")

        stub = world.serve(Raising).get_by_name("a")
        with pytest.raises(KeyError, match="missing") as caught:
            await stub.fail()
        assert caught.value.remote  # type: ignore[attr-defined]
        assert caught.value.__traceback__ is not None
        assert await stub.noted() == ["kept"]


class TestOverload:
    @pytest.mark.parametrize(
        ("limits", "payload"),
        [
            (Limits(queued_events=3), ""),
            (Limits(queued_bytes=350), "x" * 100),
            (Limits(events_per_10_s=5), ""),
        ],
        ids=["too many", "too many bytes", "too many in ten seconds"],
    )
    async def test_too_much_is_refused_and_the_rest_is_served(self, world: World, limits: Limits, payload: str) -> None:
        world.host.limits = limits
        go = asyncio.Event()

        class Blocked(Base):
            async def block(self) -> None:
                await self.ctx.block_concurrency_while(go.wait)

            async def take(self, payload: str) -> None: ...

        stub = world.serve(Blocked).get_by_name("a")
        block = stub.block()
        await world.host.settle()
        calls = [stub.take(payload) for _ in range(10)]
        await spin()
        go.set()
        results = await asyncio.gather(block, *calls, return_exceptions=True)
        refused = [r for r in results if isinstance(r, QueueFull)]
        assert 0 < len(refused) < 10
        assert [r for r in results if isinstance(r, Exception)] == refused
        assert all(r.overloaded and not r.retryable for r in refused)

    async def test_when_the_oldest_has_waited_too_long_new_ones_are_refused(self, world: World) -> None:
        go = asyncio.Event()

        class Blocked(Base):
            async def block(self) -> None:
                await self.ctx.block_concurrency_while(go.wait)

        world.host.limits = Limits(queue_age_s=5)
        stub = world.serve(Blocked).get_by_name("a")
        block, waits = stub.block(), stub.ping()
        await world.advance(5.1)
        with pytest.raises(QueueFull, match="too long"):
            await stub.ping()
        go.set()
        assert await waits == "pong"
        await block
        assert await stub.ping() == "pong"


class TestBackground:
    async def test_what_raises_behind_the_events_is_logged_with_its_object(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Busy(Base):
            async def busy(self) -> None:
                self.ctx.wait_until(self.fail("waited for"))
                self.ctx.set_timeout(lambda: self.fail("timed"), 1)

            async def fail(self, what: str) -> None:
                raise RuntimeError(what)

        stub = world.serve(Busy).get_by_name("a")
        await stub.busy()
        await world.advance(1.1)
        logged = [(record.getMessage(), str(record.exc_info and record.exc_info[1])) for record in caplog.records]
        assert logged == [
            (f"{stub.id.key}: work of wait_until raised", "waited for"),
            (f"{stub.id.key}: work of a timer raised", "timed"),
        ]


class TestIdleAccounting:
    async def test_blockers_have_names(self, world: World) -> None:
        go = asyncio.Event()

        class Busy(Base):
            async def busy(self) -> dict[str, int]:
                self.ctx.wait_until(go.wait())
                self.ctx.set_timeout(lambda: None, 100)
                await self.ctx.storage.put("k", 1)
                return self.ctx.hibernation_blockers()

        stub = world.serve(Busy).get_by_name("a")
        assert await stub.busy() == {"event": 1, "task": 1, "timer": 1, "storage": 1}
        assert world.host.awake() == {stub.id.key: {"task": 1, "timer": 1}}
        go.set()
        await world.advance(111)
        assert world.awake() == 0

    async def test_a_plain_task_counts(self, world: World) -> None:
        go = asyncio.Event()

        class Busy(Base):
            async def busy(self) -> None:
                self.task = asyncio.create_task(go.wait())  # type: ignore[arg-type]

        stub = world.serve(Busy).get_by_name("a")
        await stub.busy()
        await world.advance(60)
        assert world.host.awake() == {stub.id.key: {"task": 1}}
        go.set()
        await world.advance(11)
        assert world.awake() == 0

    async def test_times_under_way_are_in_the_usage(self, world: World) -> None:
        class Sleeping(Base):
            async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
                self.ctx.accept_web_socket(ws)

            async def nap(self) -> None:
                await self.ctx.sleep(5)

        namespace = world.serve(Sleeping)
        name = namespace.name
        stub = namespace.get_by_name("a")
        await world.connections.open(stub.id)
        await world.advance(4)
        assert world.host.usage()[name]["idle_s"] == pytest.approx(4)
        await world.advance(6 + 100)  # ten idle seconds, then out of memory
        assert world.awake() == 0
        assert world.host.usage()[name]["hibernated_s"] == pytest.approx(100, abs=0.1)
        call = stub.nap()
        await world.advance(3)
        usage = world.host.usage()[name]
        assert usage["active_s"] == pytest.approx(3, abs=0.1)
        assert usage["gb_seconds"] == pytest.approx(3 * 0.128, abs=0.02)
        assert usage["hibernated_s"] == pytest.approx(100, abs=0.1)
        assert (usage["wakes_connect"], usage["wakes_call"], usage["requests"]) == (1, 1, 2)
        await world.advance(3)
        await call

    async def test_metering_charges_work_and_not_the_countdown(self, world: World) -> None:
        class Sleeping(Base):
            async def nap(self) -> None:
                await self.ctx.sleep(5)

        namespace = world.serve(Sleeping)
        call = namespace.get_by_name("a").nap()
        await world.advance(20)
        await call
        meter = namespace.meter
        assert (meter.calls, meter.requests, meter.wakes) == (1, 1, {"call": 1})
        assert meter.active_s == pytest.approx(5)
        assert meter.idle_s == pytest.approx(10)
        assert meter.gb_seconds == pytest.approx(5 * 0.128)
        assert meter.numbers()["hibernations"] == 1
        assert meter.numbers()["wakes_call"] == 1
