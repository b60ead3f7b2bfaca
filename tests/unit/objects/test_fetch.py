import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from objects.errors import UsageError
from objects.fetch import fetch
from objects.http import MAX_BODY_BYTES, HttpRequest, HttpResponse
from objects.limits import Limits
from objects.state import DurableObject
from tests.unit.objects.fakes import World, commits_stalled, spin


class Site(DurableObject):
    async def fetch(self, request: HttpRequest) -> HttpResponse:
        path = request.url.partition("//")[2].partition("/")[2]
        if path.startswith("echo"):
            return HttpResponse.of(
                {
                    "method": request.method,
                    "url": request.url,
                    "body": await request.text(),
                    "x": request.header("X-Test"),
                    "client": request.client,
                }
            )
        if path == "stream":
            return HttpResponse(self.count(), 201, (("x-a", "1"), ("x-a", "2"), ("connection", "close")))
        if path == "write":
            await self.ctx.storage.put("k", 1)
            return HttpResponse(b"written")
        if path == "abort":
            self.ctx.abort("no")
        if path == "slow":
            await asyncio.Event().wait()
        if path == "wrong":
            return "not a response"  # type: ignore[return-value]
        if path == "abort-in-body":
            return HttpResponse(self.aborting())
        raise ValueError("secret detail")

    async def count(self) -> AsyncIterator[bytes]:
        for n in range(10):
            await self.ctx.storage.put("n", n)
            self.env.append(n)
            yield b"%d" % n

    async def aborting(self) -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.01)
        self.ctx.abort("in the body")


@pytest.fixture
async def env() -> list[Any]:
    return []


@pytest.fixture
async def client(world: World, env: list[Any]) -> AsyncIterator[httpx.AsyncClient]:
    site = world.serve(Site, env).get_by_name("site")

    async def route(request: Request) -> Response:
        return await fetch(site, request)

    app = Starlette(routes=[Route("/{path:path}", route, methods=["GET", "POST"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:
        yield client


async def test_request_and_response_pass_as_they_are(client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo/a%2Fb?q=%20&q=2", content="bödy", headers={"x-test": "v"})
    assert answer.json() == {
        "method": "POST",
        "url": "http://host/echo/a%2Fb?q=%20&q=2",
        "body": "bödy",
        "x": "v",
        "client": "127.0.0.1",
    }
    assert answer.headers["content-type"] == "application/json"


async def test_a_body_is_streamed_and_repeated_headers_stay_repeated(client: httpx.AsyncClient) -> None:
    answer = await client.get("/stream")
    assert (answer.status_code, answer.text) == (201, "0123456789")
    assert answer.headers.get_list("x-a") == ["1", "2"]
    assert "connection" not in answer.headers


async def test_a_slow_reader_holds_the_objects_iterator_up(world: World, env: list[Any]) -> None:
    stub = world.serve(Site, env).get_by_name("site")
    response = await stub.fetch("http://host/stream")
    await world.host.settle()
    assert 4 <= len(env) <= 6
    assert world.host.awake()[stub.id.key] == {"body": 1}
    assert await response.read() == b"0123456789"
    await world.host.settle()
    assert world.host.awake()[stub.id.key] == {}


async def test_a_reader_that_leaves_ends_the_iterator(world: World, env: list[Any]) -> None:
    stub = world.serve(Site, env).get_by_name("site")
    response = await stub.fetch("http://host/stream")
    stream = response.stream()
    assert await anext(stream) == b"0"
    await stream.aclose()  # type: ignore[attr-defined]
    await response.body.aclose() if hasattr(response.body, "aclose") else None
    await world.host.settle()
    await world.host.settle()
    assert len(env) < 10


async def test_the_answer_waits_for_the_commit(world: World, env: list[Any]) -> None:
    stub = world.serve(Site, env).get_by_name("site")
    await stub.fetch("http://host/echo")
    with commits_stalled(world) as release:
        answer = asyncio.ensure_future(stub.fetch("http://host/write"))
        await spin()
        assert not answer.done()
        release()
    assert (await answer).body == b"written"


async def test_a_reset_in_the_middle_of_a_body_is_not_an_end(world: World, env: list[Any]) -> None:
    stub = world.serve(Site, env).get_by_name("site")
    response = await stub.fetch("http://host/abort-in-body")
    with pytest.raises(Exception, match="reset"):
        await response.read()


@pytest.mark.parametrize(
    ("path", "status"), [("raise", 500), ("wrong", 500), ("abort", 503)], ids=["raises", "no response", "reset"]
)
async def test_failures_tell_no_details(client: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await client.get(f"/{path}")
    assert answer.status_code == status
    assert "secret" not in answer.text


async def test_overload_is_503_with_retry_after(world: World, client: httpx.AsyncClient) -> None:
    world.host.limits = Limits(events_per_10_s=1)
    assert (await client.get("/echo")).status_code == 200
    answer = await client.get("/echo")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_class_without_fetch(world: World) -> None:
    class Plain(DurableObject):
        pass

    with pytest.raises(UsageError, match="fetch"):
        await world.serve(Plain).get_by_name("a").fetch("http://host/")


async def test_reading_a_body_into_memory_is_bounded() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    with pytest.raises(UsageError, match=str(MAX_BODY_BYTES)):
        await HttpRequest("/", body=endless()).read()


def test_responses_of_values() -> None:
    assert HttpResponse.of("é").headers == (("content-type", "text/plain; charset=utf-8"),)
    assert HttpResponse.of(b"x", headers={"Content-Type": "a/b"}).headers == (("Content-Type", "a/b"),)
    with pytest.raises(UsageError):
        HttpResponse.of("", 99)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(
    world: World, env: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    parts = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(parts)

    scope = {
        "type": "http", "method": "POST", "path": "/echo", "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"host")], "server": ("host", 80), "client": ("192.0.2.1", 1),
    }  # fmt: skip
    answer = await fetch(world.serve(Site, env).get_by_name("site"), Request(scope, receive))
    assert answer.status_code == 503
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
