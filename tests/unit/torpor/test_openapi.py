"""The OpenAPI document and the implementation say the same: routes both ways, and answers judged by their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from sfu.errors import LimitExceeded, SessionGone, SfuError, TransportNotReady
from sfu.messages import Kind, Location, SessionId, TrackResult, TracksResult
from tests.support.fake_sfu import ANSWER, OFFER, FakeSfu
from torpor.app import build_app
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, Settings
from torpor.figures import Figures
from torpor.health import Health
from torpor.openapi import document
from turn.service import TurnService, TurnSettings

BEARER = {"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"}
OFFER_JSON = {"type": "offer", "sdp": OFFER.sdp}
EVENTS = "/v1/apps/{appId}/events"


@pytest.fixture(scope="module")
def sfu() -> FakeSfu:
    return FakeSfu()


@pytest.fixture(scope="module")
def app(sfu: FakeSfu) -> FastAPI:
    turn = TurnService(TurnSettings())
    return build_app(Settings(), sfu, turn, health=Health(), figures=Figures(sfu))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def openapi(app: FastAPI) -> dict[str, Any]:
    # As a reader of the file sees it, not as Python objects that merely look like JSON.
    return dict(json.loads(json.dumps(document(app))))


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def schema_of(openapi: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return {**content["schema"], "components": openapi["components"]}


def assert_described(openapi: dict[str, Any], path: str, response: httpx.Response) -> None:
    """The answer's status is listed for its route, and its body is of that status's schema."""
    operation = openapi["paths"][path][response.request.method.lower()]
    assert str(response.status_code) in operation["responses"], (path, response.status_code)
    content = operation["responses"][str(response.status_code)]["content"]
    media_type = response.headers["content-type"].split(";")[0]
    assert media_type in content
    body = response.json() if media_type == "application/json" else response.text
    jsonschema.validate(body, schema_of(openapi, content[media_type]), cls=jsonschema.Draft202012Validator)


class TestDocument:
    def test_every_route_is_in_it_and_everything_in_it_is_a_route(self, app: FastAPI, openapi: dict[str, Any]) -> None:
        # The pages are no part of the API.
        routes = {
            (context.path, method)
            for context in iter_route_contexts(app.routes)
            if isinstance(context.original_route, APIRoute)
            for method in context.original_route.methods
        }
        assert routes == {(path, method) for path, method, _ in operations(openapi)}
        assert len(routes) > 20

    def test_operation_ids_are_unique_and_every_operation_is_summarised(self, openapi: dict[str, Any]) -> None:
        identifiers = [operation["operationId"] for _, _, operation in operations(openapi)]
        assert len(identifiers) == len(set(identifiers))
        assert all(operation["summary"] for _, _, operation in operations(openapi))

    def test_the_unversioned_alias_and_the_gateway_are_the_same_operations(self, openapi: dict[str, Any]) -> None:
        prefix = "/v1/apps/{appId}/sessions/"
        for path, method, operation in list(operations(openapi)):
            if path.startswith(prefix):
                alias = openapi["paths"][path.removeprefix("/v1")][method.lower()]
                gateway = openapi["paths"][f"/partytracks/sessions/{path.removeprefix(prefix)}"][method.lower()]
                assert alias.get("requestBody") == gateway.get("requestBody") == operation.get("requestBody")

    def test_every_reference_leads_somewhere_and_every_schema_is_used(self, openapi: dict[str, Any]) -> None:
        text = json.dumps(openapi)
        names = set(openapi["components"]["schemas"])
        used = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert used == names

    def test_every_schema_is_a_json_schema(self, openapi: dict[str, Any]) -> None:
        for schema in openapi["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)

    def test_bodies_and_answers_of_the_session_api_have_examples_that_are_valid(self, openapi: dict[str, Any]) -> None:
        for name, schema in openapi["components"]["schemas"].items():
            if name.endswith(("Request", "Response")):
                assert schema["examples"], name
                for example in schema["examples"]:
                    jsonschema.validate(
                        example,
                        {"$ref": f"#/components/schemas/{name}", "components": openapi["components"]},
                        cls=jsonschema.Draft202012Validator,
                    )

    def test_the_sessions_routes_need_the_bearer_and_the_others_do_not(self, openapi: dict[str, Any]) -> None:
        for path, _, operation in operations(openapi):
            guarded = "/apps/{appId}/" in path or "/turn/keys/{keyId}/" in path or path == "/v1/rooms"
            assert ("security" in operation) is guarded

    def test_the_file_in_docs_is_of_this_code(self, openapi: dict[str, Any]) -> None:
        """`make docs` writes it."""
        file = Path(__file__).parents[3] / "docs" / "openapi.json"
        assert json.loads(file.read_text()) == openapi, "run `make docs`"


CALLS = [
    ("POST", "/sessions/new", {"sessionDescription": OFFER_JSON}),
    ("GET", "/sessions/{sessionId}", None),
    ("GET", "/sessions/{sessionId}/stats", None),
    ("PUT", "/sessions/{sessionId}/renegotiate", {"sessionDescription": {"type": "answer", "sdp": "v=0"}}),
    ("POST", "/sessions/{sessionId}/tracks/new", {"tracks": [{"location": "local", "mid": "0", "trackName": "t"}]}),
    ("PUT", "/sessions/{sessionId}/tracks/update", {"tracks": [{"mid": "0"}]}),
    ("PUT", "/sessions/{sessionId}/tracks/close", {"tracks": [{"mid": "0"}], "force": True}),
]
BASES = ("/v1/apps/{appId}", "/apps/{appId}", "/partytracks")


@pytest.mark.parametrize("base", BASES)
class TestAnswers:
    @pytest.fixture
    async def client(self, app: FastAPI, sfu: FakeSfu, base: str) -> Any:
        sfu.forget()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {} if base == "/partytracks" else BEARER
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            yield client

    @staticmethod
    async def call(client: httpx.AsyncClient, base: str, path: str, method: str, body: Any, session: str) -> Any:
        url = f"{base}{path}".format(appId=DEVELOPMENT_APP_ID, sessionId=session)
        return await client.request(method, url, content=None if body is None else json.dumps(body))

    @pytest.mark.parametrize(
        "result",
        [
            TracksResult((TrackResult("t", "0"),), False, ANSWER),
            TracksResult((TrackResult("t", "0", SessionId("p"), Location.REMOTE, Kind.VIDEO),), True, OFFER),
            TracksResult((TrackResult(error_code="not_found_track_error", error_description="gone"),)),
        ],
    )
    async def test_successes(
        self, client: httpx.AsyncClient, sfu: FakeSfu, openapi: dict[str, Any], base: str, result: TracksResult
    ) -> None:
        sfu.result = result
        created = await self.call(client, base, "/sessions/new", "POST", None, "")
        for method, path, body in CALLS:
            response = await self.call(client, base, path, method, body, created.json()["sessionId"])
            assert response.is_success
            assert_described(openapi, base + path, response)

    @pytest.mark.parametrize("error", [SessionGone("gone"), LimitExceeded("full"), TransportNotReady("not yet")])
    async def test_errors_of_the_service(
        self, client: httpx.AsyncClient, sfu: FakeSfu, openapi: dict[str, Any], base: str, error: SfuError
    ) -> None:
        session = (await self.call(client, base, "/sessions/new", "POST", None, "")).json()["sessionId"]
        sfu.error = error
        for method, path, body in CALLS[1:]:
            response = await self.call(client, base, path, method, body, session)
            # Only what waits for a transport can find it not ready.
            if error.status != 425 or method != "GET":
                assert_described(openapi, base + path, response)

    async def test_errors_of_the_caller(self, client: httpx.AsyncClient, openapi: dict[str, Any], base: str) -> None:
        session = (await self.call(client, base, "/sessions/new", "POST", None, "")).json()["sessionId"]
        for method, path, body in CALLS:
            if body is not None:
                for wrong in ("{", json.dumps({"sessionDescription": {"type": "x"}}), " " * (3 * 1024 * 1024)):
                    url = f"{base}{path}".format(appId=DEVELOPMENT_APP_ID, sessionId=session)
                    response = await client.request(method, url, content=wrong)
                    assert response.is_error
                    assert_described(openapi, base + path, response)

    async def test_strangers(self, client: httpx.AsyncClient, openapi: dict[str, Any], base: str) -> None:
        client.headers["authorization"] = "Bearer wrong"
        for method, path, body in CALLS if base != "/partytracks" else CALLS[1:]:
            response = await self.call(client, base, path, method, body, "5f0c")
            assert response.status_code == 401
            assert_described(openapi, base + path, response)
