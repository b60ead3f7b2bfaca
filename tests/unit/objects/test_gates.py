import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objects.errors import LimitExceeded
from objects.gates import MAX_NESTED_SECTIONS, InputGate, OutputGate, Section, gated


class Turns:
    """The part of a loop that a gate needs, run by hand."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.queue.append(callback)

    def run(self) -> None:
        for _ in range(10_000):
            if not self.queue:
                return
            self.queue.popleft()()
        raise AssertionError("the gate never comes to rest")


class TestInputGate:
    def test_work_passes_at_once_when_nobody_waits(self) -> None:
        gate, log = InputGate(Turns().call_soon), []
        gate.admit(gate.root, lambda: log.append(1))
        assert log == [1]

    def test_during_a_section_others_wait_in_order_and_its_own_work_passes(self) -> None:
        turns, log = Turns(), []
        gate = InputGate(turns.call_soon)
        sections: list[Section] = []
        gate.begin(gate.root, sections.append)
        for n in range(3):
            gate.admit(gate.root, lambda n=n: log.append(n))  # type: ignore[misc]
        turns.run()
        gate.admit(sections[0], lambda: log.append("inside"))
        assert log == ["inside"]
        gate.end(sections[0])
        turns.run()
        assert log == ["inside", 0, 1, 2]

    def test_a_section_that_is_ready_goes_ahead_of_the_queue(self) -> None:
        turns, log = Turns(), []
        gate = InputGate(turns.call_soon)
        first: list[Section] = []
        second: list[Section] = []
        gate.begin(gate.root, first.append)
        gate.admit(gate.root, lambda: log.append("event"))
        gate.begin(gate.root, second.append)
        gate.end(first[0])
        turns.run()
        assert (len(second), log) == (1, [])
        gate.end(second[0])
        turns.run()
        assert log == ["event"]

    def test_a_section_begun_inside_another_may_outlive_it(self) -> None:
        turns, log = Turns(), []
        gate = InputGate(turns.call_soon)
        outer: list[Section] = []
        inner: list[Section] = []
        gate.begin(gate.root, outer.append)
        gate.begin(outer[0], inner.append)
        gate.admit(gate.root, lambda: log.append("event"))
        gate.end(outer[0])
        turns.run()
        assert log == []
        assert gate.active is inner[0]
        gate.end(inner[0])
        turns.run()
        assert log == ["event"]
        assert gate.active is gate.root

    def test_work_of_a_section_that_has_ended_belongs_to_the_one_around_it(self) -> None:
        turns, log = Turns(), []
        gate = InputGate(turns.call_soon)
        sections: list[Section] = []
        gate.begin(gate.root, sections.append)
        gate.end(sections[0])
        turns.run()
        gate.admit(sections[0], lambda: log.append(1))
        assert log == [1]

    def test_64_levels_and_no_more(self) -> None:
        gate = InputGate(Turns().call_soon)
        sections = [gate.root]
        for _ in range(MAX_NESTED_SECTIONS):
            gate.begin(sections[-1], sections.append)
        with pytest.raises(LimitExceeded):
            gate.begin(sections[-1], sections.append)
        assert gate.active is sections[-1]

    def test_a_broken_gate_lets_nobody_in(self) -> None:
        turns, log = Turns(), []
        gate = InputGate(turns.call_soon)
        sections: list[Section] = []
        gate.begin(gate.root, sections.append)
        gate.admit(gate.root, lambda: log.append(1))
        gate.break_()
        assert not gate.is_open
        gate.end(sections[0])
        turns.run()
        assert log == []

    @given(st.lists(st.sampled_from(["admit", "begin", "nest", "end", "end awaited", "turn"]), max_size=40))
    def test_whatever_happens_sections_exclude_each_other_and_events_keep_their_order(self, actions: list[str]) -> None:
        turns = Turns()
        gate = InputGate(turns.call_soon)
        live: list[Section] = []
        started: list[int] = []
        admitted = begun = entered = 0

        def enter(section: Section) -> None:
            nonlocal entered
            entered += 1
            assert section.parent is (live[-1] if live else gate.root)
            live.append(section)

        def start(n: int) -> None:
            assert not live, "an event got in during a section"
            started.append(n)

        for action in actions:
            if action == "admit":
                at_once, before = gate.is_open, len(started)
                gate.admit(gate.root, lambda n=admitted: start(n))  # type: ignore[misc]
                assert len(started) - before == at_once
                admitted += 1
            elif action == "begin":
                gate.begin(gate.root, enter)
                begun += 1
            elif action == "nest" and live:
                gate.begin(live[-1], enter)
                begun += 1
            elif action == "end" and live:
                gate.end(live.pop())
            elif action == "end awaited" and live:
                waiter: Any = object()  # nobody comes for it
                gate.end(live.pop(), waiter)
            elif action == "turn" and turns.queue:
                turns.queue.popleft()()
        while live or turns.queue:
            turns.run()
            if live:
                gate.end(live.pop())
        assert started == list(range(admitted))
        assert entered == begun
        assert gate.is_open


class TestGated:
    async def test_steps_wait_while_another_section_is_active(self) -> None:
        gate, log = InputGate(asyncio.get_running_loop().call_soon), []
        sections: list[Section] = []

        async def work() -> str:
            log.append("first step")
            await asyncio.sleep(0)
            log.append("second step")
            return "done"

        task = asyncio.ensure_future(gated(work(), gate, gate.root))
        await asyncio.sleep(0)
        gate.begin(gate.root, sections.append)
        for _ in range(10):
            await asyncio.sleep(0)
        assert log == ["first step"]
        gate.end(sections[0])
        assert await task == "done"

    async def test_cancellation_reaches_the_code_inside(self) -> None:
        gate, log = InputGate(asyncio.get_running_loop().call_soon), []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cleaned up")

        task = asyncio.ensure_future(gated(work(), gate, gate.root))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["cleaned up"]

    async def test_timeouts_and_groups_work_inside(self) -> None:
        gate = InputGate(asyncio.get_running_loop().call_soon)

        async def work() -> str:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            async with asyncio.TaskGroup() as group:
                one = group.create_task(asyncio.sleep(0, "one"))
            return one.result()

        assert await gated(work(), gate, gate.root) == "one"

    async def test_when_the_gate_breaks_code_ends_whatever_it_catches(self) -> None:
        gate, log = InputGate(asyncio.get_running_loop().call_soon), []

        async def stubborn() -> None:
            for _ in range(2):
                try:
                    await asyncio.sleep(0)
                except BaseException:
                    log.append("caught")
            await asyncio.sleep(0)
            log.append("never")

        task = asyncio.ensure_future(gated(stubborn(), gate, gate.root))
        await asyncio.sleep(0)
        gate.break_()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["caught", "caught"]


class TestOutputGate:
    def test_open_when_nothing_is_locked(self) -> None:
        gate, log = OutputGate(), []
        assert gate.is_open
        gate.pass_(lambda: log.append(1))
        assert log == [1]

    @given(st.lists(st.one_of(st.just("lock"), st.just("send"), st.integers(1, 20))))
    def test_output_leaves_in_order_and_never_before_its_writes(self, actions: list[Any]) -> None:
        gate = OutputGate()
        locked = confirmed = 0
        sent: list[int] = []
        needs: list[int] = []
        for action in actions:
            if action == "lock":
                locked += 1
                gate.lock(locked)
            elif action == "send":
                needs.append(locked)
                gate.pass_(partial(sent.append, len(needs) - 1))
            elif action <= locked:
                confirmed = max(confirmed, action)
                gate.confirm(action)
            assert sent == [n for n, need in enumerate(needs) if need <= confirmed]
            assert gate.held == len(needs) - len(sent)

    def test_output_of_an_earlier_moment_leaves_with_its_own_writes(self) -> None:
        gate, log = OutputGate(), []
        gate.lock(1)
        mark = gate.mark()
        gate.lock(2)
        gate.pass_(lambda: log.append("late"))
        gate.pass_(lambda: log.append("early"), mark)
        gate.confirm(1)
        assert log == ["early"]
        gate.confirm(2)
        assert log == ["early", "late"]

    async def test_a_broken_gate_drops_what_it_holds_and_fails_those_who_wait(self) -> None:
        gate, log = OutputGate(), []
        gate.lock(1)
        gate.pass_(lambda: log.append(1))
        waiter = asyncio.ensure_future(gate.wait())
        await asyncio.sleep(0)
        gate.break_(OSError("disk"))
        gate.break_(OSError("again"))
        gate.confirm(1)
        gate.pass_(lambda: log.append(2))
        for one in (waiter, gate.wait()):
            with pytest.raises(OSError, match="disk"):
                await one
        assert log == []
        assert not gate.is_open
