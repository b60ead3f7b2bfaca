"""Storage against a model: random writes, transactions, aborts, hibernations and restarts."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objects.errors import ObjectReset
from objects.state import DurableObject
from objects.storage import Storage
from tests.unit.objects.fakes import World

keys = st.sampled_from("abc")
writes = st.lists(st.tuples(keys, st.none() | st.integers(0, 9)), max_size=3)
# An action's writes happen in one turn. The nested ones run in a transaction, and are undone if `fails`.
plans = st.tuples(writes, st.sampled_from(["none", "sync", "async"]), writes, st.booleans())
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), plans),
        st.tuples(st.just("abort"), plans),
        st.tuples(st.sampled_from(["hibernate", "restart", "wipe", "look"]), st.none()),
    ),
    max_size=12,
)
Plan = tuple[list[Any], str, list[Any], bool]


class Failure(Exception):
    pass


class Subject(DurableObject):
    async def write(self, plan: Plan) -> None:
        first, kind, nested, fails = plan
        storage = self.ctx.storage
        apply(storage, first)

        def inside() -> None:
            apply(storage, nested)
            if fails:
                raise Failure

        async def inside_later(_: Any) -> None:
            apply(storage, nested)
            await asyncio.sleep(0)
            if fails:
                raise Failure

        try:
            if kind == "sync":
                storage.transaction_sync(inside)
            elif kind == "async":
                await storage.transaction(inside_later)
        except Failure:
            pass

    async def abort(self, plan: Plan) -> None:
        # Without an await that suspends, none of this can have been committed.
        apply(self.ctx.storage, plan[0])
        self.ctx.abort("on purpose")

    async def wipe(self) -> None:
        await self.ctx.storage.delete_all()

    async def look(self) -> dict[str, Any]:
        return await self.ctx.storage.list()


def apply(storage: Storage, writes: list[Any]) -> None:
    for key, value in writes:
        if value is None:
            storage.kv.delete(key)
        else:
            storage.kv.put(key, value)


def model(state: dict[str, Any], writes: list[Any]) -> None:
    for key, value in writes:
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


async def run(actions: list[Any], folder: Path) -> None:
    world, state = World(folder), dict[str, Any]()
    stub = world.serve(Subject).get_by_name("subject")
    for action, plan in actions:
        match action:
            case "write":
                await stub.write(plan)
                first, kind, nested, fails = plan
                model(state, first)
                if kind != "none" and not fails:
                    model(state, nested)
            case "abort":
                with pytest.raises(ObjectReset):
                    await stub.abort(plan)
            case "hibernate":
                await world.host.force_hibernate(stub.id)
            case "restart":
                await world.restart()
                stub = world.host.namespaces["test"].get_by_name("subject")
            case "wipe":
                await stub.wipe()
                state.clear()
        assert await stub.look() == state
    await world.stop()


@settings(max_examples=40, deadline=None)
@given(steps)
def test_what_was_acknowledged_is_there_and_what_was_undone_is_not(actions: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(actions, Path(folder) / "data"))
