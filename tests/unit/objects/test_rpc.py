import asyncio
import gc
from datetime import UTC, datetime
from typing import Any

import pytest

from objects.errors import (
    Disconnected,
    LimitExceeded,
    NotExposed,
    NotSerializable,
    ObjectReset,
    RemoteError,
    StubDisposed,
)
from objects.rpc import RpcTarget
from objects.state import DurableObject
from tests.unit.objects.fakes import World, commits_stalled, spin


class Item(RpcTarget):
    def __init__(self, log: list[Any], name: str) -> None:
        self.log = log
        self.label = name

    @property
    def name(self) -> str:
        return self.label

    def upper(self) -> str:
        return self.label.upper()

    async def rename(self, name: str) -> "Item":
        self.label = name
        return self

    def fail(self) -> None:
        raise ValueError("item fails")

    def on_disposed(self) -> None:
        self.log.append(f"disposed {self.label}")


class Odd(Exception):
    pass


class Shop(DurableObject):
    limit = 5

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.attribute = "private to the instance"
        self.kept: Any = None

    @property
    def size(self) -> int:
        return 3

    @property
    async def later(self) -> int:
        await asyncio.sleep(0)
        return 4

    @staticmethod
    def static() -> str:
        return "static"

    async def echo(self, *args: Any, **kwargs: Any) -> Any:
        return [*args, kwargs]

    def plain(self) -> int:
        return 1

    async def item(self, name: str) -> Item:
        return Item(self.env["log"], name)

    async def box(self) -> dict[str, Any]:
        return {"item": Item(self.env["log"], "boxed"), "price": 3}

    async def call(self, function: Any, *args: Any) -> Any:
        return await function(*args)

    async def keep(self, function: Any, dup: bool) -> None:
        self.kept = function.dup() if dup else function

    async def call_kept(self) -> Any:
        return await self.kept("kept")

    async def drop_kept(self) -> None:
        self.kept.dispose()

    async def forward(self, name: str, function: Any) -> Any:
        return await self.env["ns"].get_by_name(name).call(function, "forwarded")

    async def peer(self, name: str) -> Any:
        return self.env["ns"].get_by_name(name)

    async def who(self) -> str | None:
        return self.ctx.id.name

    async def bad_result(self) -> Any:
        return object()

    async def fail(self, kind: str) -> None:
        raise {"odd": Odd("strange"), "key": KeyError("k"), "group": ExceptionGroup("g", [ValueError()])}[kind]

    async def abort(self) -> None:
        self.ctx.abort("gone")

    async def hang(self) -> Item:
        await asyncio.Event().wait()
        raise AssertionError

    async def write_and_make(self) -> Item:
        await self.ctx.storage.put("k", 1)
        return Item(self.env["log"], "made")

    async def blockers(self) -> dict[str, int]:
        return self.ctx.hibernation_blockers()

    async def nothing(self) -> None: ...

    def _private(self) -> None: ...


class Bench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.log: list[Any] = []
        env: dict[str, Any] = {"log": self.log}
        self.namespace = env["ns"] = world.serve(Shop, env)
        self.shop = self.namespace.get_by_name("shop")


@pytest.fixture
async def bench(world: World) -> Bench:
    return Bench(world)


class TestExposure:
    async def test_public_methods_and_properties_of_the_class(self, bench: Bench) -> None:
        shop = bench.shop
        assert await shop.size == 3
        assert await shop.later == 4
        assert await shop.plain() == 1
        assert await shop.static() == "static"

    @pytest.mark.parametrize(
        "name",
        ["attribute", "env", "ctx", "limit", "nope", "dup", "dispose", "alarm", "web_socket_message", "mro"],
    )
    async def test_nothing_else(self, bench: Bench, name: str) -> None:
        with pytest.raises(NotExposed):
            await getattr(bench.shop, name)
        with pytest.raises(NotExposed):
            await getattr(bench.shop, name)()

    @pytest.mark.parametrize("name", ["_private", "__class__x", "__init_subclass__x"])
    async def test_private_names_do_not_leave(self, bench: Bench, name: str) -> None:
        with pytest.raises(AttributeError):
            getattr(bench.shop, name)
        with pytest.raises(AttributeError):
            getattr(bench.shop.plain(), name)

    async def test_what_is_not_callable(self, bench: Bench) -> None:
        with pytest.raises(NotExposed, match="size"):
            await bench.shop.size()


class TestByValue:
    async def test_arguments_and_results_are_copies(self, bench: Bench) -> None:
        value = {"list": [1], "when": datetime.now(UTC), "error": ValueError("v"), "set": {1}, "bytes": b"x"}
        call = bench.shop.echo(value, key=2)
        value["list"] = "changed"
        [back, kwargs] = await call
        assert back["list"] == [1]
        assert kwargs == {"key": 2}
        assert isinstance(back["error"], ValueError)

    async def test_what_cannot_travel_is_refused_where_it_is_sent(self, bench: Bench) -> None:
        for bad in (object(), bench.shop.size, int):
            with pytest.raises(NotSerializable):
                bench.shop.echo(bad)
        with pytest.raises(NotSerializable):
            await bench.shop.bad_result()

    async def test_a_message_has_at_most_32_mib(self, bench: Bench) -> None:
        with pytest.raises(LimitExceeded):
            bench.shop.echo(b"x" * (32 * 1024 * 1024))


class TestErrors:
    async def test_standard_ones_keep_their_type_others_their_name(self, bench: Bench) -> None:
        with pytest.raises(KeyError) as caught:
            await bench.shop.fail("key")
        assert caught.value.args == ("k",)
        assert caught.value.remote  # type: ignore[attr-defined]
        assert caught.value.object_key == bench.shop.id.key  # type: ignore[attr-defined]
        with pytest.raises(RemoteError) as other:
            await bench.shop.fail("odd")
        assert (other.value.kind, other.value.message) == ("Odd", "strange")
        with pytest.raises(RemoteError, match="ExceptionGroup"):
            await bench.shop.fail("group")

    async def test_a_stub_works_again_after_an_error(self, bench: Bench) -> None:
        with pytest.raises(ObjectReset):
            await bench.shop.abort()
        assert await bench.shop.plain() == 1


class TestByReference:
    async def test_functions_run_where_they_are_from(self, bench: Bench) -> None:
        seen: list[Any] = []

        async def function(value: Any) -> Any:
            seen.append(value)
            return f"got {value}"

        assert await bench.shop.call(function, [1]) == "got [1]"
        assert await bench.shop.call(lambda: 7) == 7
        assert seen == [[1]]

    async def test_targets_become_stubs(self, bench: Bench) -> None:
        item = await bench.shop.item("ann")
        assert await item.name == "ann"
        assert await item.upper() == "ANN"
        renamed = await item.rename("bob")
        assert await item.name == "bob"
        with pytest.raises(NotExposed):
            await item.label
        with pytest.raises(ValueError, match="item fails"):
            await renamed.fail()
        item.dispose()
        renamed.dispose()

    async def test_an_objects_stub_travels_as_its_name(self, bench: Bench) -> None:
        peer = await bench.shop.peer("other")
        assert peer.id == bench.namespace.id_from_name("other")
        assert await peer.who() == "other"

    async def test_a_received_stub_can_be_passed_on(self, bench: Bench) -> None:
        assert await bench.shop.forward("other", lambda value: value + "!") == "forwarded!"

    async def test_errors_of_callbacks_come_through_both_ways(self, bench: Bench) -> None:
        def function() -> None:
            raise IndexError("in the caller")

        with pytest.raises(IndexError, match="in the caller"):
            await bench.shop.call(function)


class TestPipelining:
    async def test_a_chain_is_called_through_before_the_first_result_is_here(self, bench: Bench) -> None:
        item = bench.shop.item("ann")
        upper = item.rename("bob").upper()
        assert not item._call.reply.done()
        assert await upper == "BOB"
        assert bench.namespace.meter.calls == 1

    async def test_through_a_dict(self, bench: Bench) -> None:
        assert await bench.shop.box().item.upper() == "BOXED"
        assert await bench.shop.box().price == 3

    async def test_through_another_objects_stub(self, bench: Bench) -> None:
        assert await bench.shop.peer("other").who() == "other"
        assert await bench.shop.peer("other").item("x").upper() == "X"

    async def test_the_failure_of_the_first_fails_all(self, bench: Bench) -> None:
        chain = bench.shop.fail("key").anything().more
        with pytest.raises(KeyError):
            await chain

    async def test_a_plain_value_cannot_be_called_through(self, bench: Bench) -> None:
        with pytest.raises(NotExposed):
            await bench.shop.plain().bit_length()

    async def test_paths_have_at_most_64_attributes(self, bench: Bench) -> None:
        path: Any = bench.shop
        for _ in range(64):
            path = path.size
        with pytest.raises(LimitExceeded):
            _ = path.size

    async def test_a_reset_between_two_calls_fails_the_rest(self, bench: Bench) -> None:
        hanging = bench.shop.hang()
        chained = hanging.upper()
        await bench.world.host.settle()
        with pytest.raises(ObjectReset):
            await bench.shop.abort()
        for call in (hanging, chained):
            with pytest.raises(ObjectReset):
                await call


class TestDisposal:
    async def test_a_lent_stub_ends_with_the_call_unless_dupped(self, bench: Bench) -> None:
        await bench.shop.keep(lambda x: x, dup=False)
        with pytest.raises(StubDisposed):
            await bench.shop.call_kept()
        await bench.shop.keep(lambda x: x, dup=True)
        assert await bench.shop.call_kept() == "kept"

    async def test_the_target_is_told_once_after_the_last_dup(self, bench: Bench) -> None:
        item = await bench.shop.item("ann")
        again = item.dup()
        item.dispose()
        item.dispose()
        assert await again.name == "ann"
        with pytest.raises(StubDisposed):
            item.upper()
        await bench.world.host.settle()
        assert bench.log == []
        again.dispose()
        await bench.world.host.settle()
        assert bench.log == ["disposed ann"]

    async def test_a_result_is_released_as_a_whole(self, bench: Bench) -> None:
        async with bench.shop.box() as box:
            assert await box["item"].upper() == "BOXED"
        with pytest.raises(StubDisposed):
            box["item"].upper()
        with await bench.shop.item("ann") as item:
            assert await item.name == "ann"
        await bench.world.host.settle()
        assert bench.log == ["disposed boxed", "disposed ann"]

    async def test_live_stubs_keep_the_object_awake_and_forgotten_ones_do_not(self, bench: Bench) -> None:
        item = await bench.shop.item("ann")
        await bench.world.advance(60)
        assert bench.world.host.awake() == {bench.shop.id.key: {"rpc_stub": 1}}
        del item
        bench.shop.item("never awaited")
        gc.collect()
        await bench.world.host.settle()
        await bench.world.advance(11)
        assert bench.world.awake() == 0

    async def test_stubs_an_instance_holds_end_with_it(self, bench: Bench) -> None:
        other = bench.namespace.get_by_name("other")

        async def hand_over(obj: Any) -> None: ...

        class Holder(Shop):
            async def take(self) -> None:
                self.kept = await self.env["ns"].get_by_name("other").item("held")

        await bench.world.host.replace("test", Holder)
        await bench.shop.take()
        assert await other.blockers() == {"event": 1, "rpc_stub": 1}
        with pytest.raises(ObjectReset):
            await bench.shop.abort()
        await bench.world.host.settle()
        assert bench.log == ["disposed held"]

    async def test_a_stub_outlives_its_object_as_an_error(self, bench: Bench) -> None:
        item = await bench.shop.item("ann")
        with pytest.raises(ObjectReset):
            await bench.shop.abort()
        with pytest.raises(Disconnected):
            await item.upper()
        item.dispose()


class TestCallers:
    async def test_an_outgoing_call_is_a_blocker_until_answered(self, bench: Bench) -> None:
        go = asyncio.Event()
        call = bench.shop.call(go.wait)
        await bench.world.host.settle()
        assert bench.world.host.awake()[bench.shop.id.key] == {"event": 1, "rpc_call": 1}
        go.set()
        assert await call is True

    async def test_a_cancelled_caller_does_not_disturb_the_object(self, bench: Bench) -> None:
        call = asyncio.ensure_future(_awaited(bench.shop.hang()))
        await bench.world.host.settle()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await bench.shop.plain() == 1
        assert bench.namespace.meter.errors == 0

    async def test_stubs_in_a_result_that_nobody_waits_for_any_more_are_released(self, bench: Bench) -> None:
        await bench.shop.plain()
        with commits_stalled(bench.world) as release:
            await bench.world.host.settle()
            call = asyncio.ensure_future(_awaited(bench.shop.write_and_make()))
            await spin()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            release()
        await bench.world.host.settle()
        assert bench.log == ["disposed made"]
        assert bench.world.host.awake() == {bench.shop.id.key: {}}


async def _awaited(promise: Any) -> Any:
    return await promise
