from objects.state import DurableObject, ObjectState
from tests.unit.objects.fakes import World


class Counter(DurableObject):
    def __init__(self, ctx: ObjectState, env: object) -> None:
        super().__init__(ctx, env)
        self.count = ctx.storage.kv.get("count") or 0

    async def increment(self, by: int = 1) -> int:
        self.count += by
        await self.ctx.storage.put("count", self.count)
        return self.count


async def test_smoke(world: World) -> None:
    ns = world.serve(Counter)
    stub = ns.get_by_name("a")
    assert await stub.increment() == 1
    assert await stub.increment(2) == 3
    await world.advance(11)
    assert world.awake() == 0
    assert await stub.increment() == 4
    await world.restart()
    assert await world.host.namespaces["test"].get_by_name("a").increment() == 5
