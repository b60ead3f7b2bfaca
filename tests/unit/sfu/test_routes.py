"""The session API over HTTP, against a media side that only remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from sfu.errors import InvalidSessionDescription, LimitExceeded, SfuError, TransportNotReady
from sfu.messages import (
    Kind,
    Location,
    Ordering,
    SessionDescription,
    SessionId,
    SimulcastPreference,
    TrackRequest,
    TrackResult,
    TracksResult,
)
from sfu.routes import BearerCheck, BodyLimits, SessionApi, api_router, read_body
from tests.support.fake_sfu import ANSWER, OFFER, FakeSfu
from torpor.app import build_app, on_sfu_error
from torpor.config import DEVELOPMENT_APP_ID as APP
from torpor.config import DEVELOPMENT_APP_SECRET as SECRET
from torpor.config import DemoSettings, HttpSettings, Secret, Settings
from torpor.figures import Figures
from torpor.health import Health

BEARER = {"authorization": f"Bearer {SECRET}"}
BASE = f"/v1/apps/{APP}"
BODY_MAX = 1024 * 1024
OFFER_JSON = {"type": "offer", "sdp": OFFER.sdp}
ANSWER_JSON = {"type": "answer", "sdp": ANSWER.sdp}


@pytest.fixture(scope="module")
def served() -> tuple[FastAPI, FakeSfu]:
    """One application for all tests here: it keeps no state besides the throttle's, which is by session id."""
    sfu = FakeSfu()
    http = HttpSettings(body_max_bytes=BODY_MAX, body_timeout=1.0)
    settings = Settings(http=http, demo=DemoSettings(enabled=True), configured_apps={APP: Secret(SECRET)})
    return build_app(settings, sfu, health=Health(), figures=Figures(sfu)), sfu  # type: ignore[arg-type]


@pytest.fixture
def sfu(served: tuple[FastAPI, FakeSfu]) -> FakeSfu:
    served[1].forget()
    return served[1]


@pytest.fixture
def app(served: tuple[FastAPI, FakeSfu], sfu: FakeSfu) -> FastAPI:
    return served[0]


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=BEARER) as client:
        yield client


@pytest.fixture
async def session(client: httpx.AsyncClient) -> str:
    response = await client.post(f"{BASE}/sessions/new")
    return f"{BASE}/sessions/{response.json()['sessionId']}"


def assert_error(response: httpx.Response, status: int, code: str) -> str:
    """Every error is a JSON object of exactly these two keys; returns the description."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"errorCode", "errorDescription"}
    assert body["errorCode"] == code
    return str(body["errorDescription"])


class TestAuthentication:
    """Section 1: a bearer per app; `not_found` is an unknown app."""

    async def test_the_apps_secret_is_accepted_whatever_the_scheme_is_spelled_like(
        self, client: httpx.AsyncClient
    ) -> None:
        response = await client.post(f"{BASE}/sessions/new", headers={"authorization": f"bearer {SECRET}"})
        assert response.status_code == 201

    @pytest.mark.parametrize("header", [None, "", SECRET, "Bearer", "Bearer wrong", f"Basic {SECRET}", "Bearer \u00e9"])
    async def test_anything_else_is_unauthorized_and_reaches_nothing(
        self, client: httpx.AsyncClient, sfu: FakeSfu, header: str | None
    ) -> None:
        del client.headers["authorization"]
        headers = {} if header is None else {"authorization": header.encode()}
        response = await client.post(f"{BASE}/sessions/new", headers=headers)
        assert_error(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert sfu.calls == []

    async def test_an_unknown_app_is_not_found(self, client: httpx.AsyncClient) -> None:
        assert_error(await client.post("/v1/apps/nobody/sessions/new"), 404, "not_found")

    async def test_a_stranger_is_refused_before_the_body_is_read(self, app: FastAPI) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body of an unauthenticated request was read")

        async def send(message: Any) -> None:
            sent.append(message)

        path = f"{BASE}/sessions/new"
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "scheme": "http"}
        await app(scope, receive, send)
        assert sent[0]["status"] == 401


class TestSessions:
    """Section 3."""

    async def test_a_new_session_is_201_and_has_only_an_id(self, client: httpx.AsyncClient, sfu: FakeSfu) -> None:
        response = await client.post(f"{BASE}/sessions/new")
        assert response.status_code == 201
        assert response.json() == {"sessionId": next(iter(sfu.sessions))}
        assert sfu.calls == [("create_session", APP, None, None, False)]

    @pytest.mark.parametrize("query", ["?", "?streamDebug", "?foo=1&correlationId="])
    async def test_other_parameters_and_a_bare_question_mark_are_ignored(
        self, client: httpx.AsyncClient, query: str
    ) -> None:
        assert (await client.post(f"{BASE}/sessions/new{query}")).status_code == 201

    async def test_correlation_id_and_thirdparty_are_passed_on(self, client: httpx.AsyncClient, sfu: FakeSfu) -> None:
        await client.post(f"{BASE}/sessions/new?correlationId=call-7&thirdparty=true")
        assert sfu.calls == [("create_session", APP, None, "call-7", True)]

    async def test_a_meaningless_thirdparty_is_invalid(self, client: httpx.AsyncClient) -> None:
        text = assert_error(await client.post(f"{BASE}/sessions/new?thirdparty=maybe"), 406, "invalid_params")
        assert "thirdparty" in text

    async def test_an_offer_is_answered(self, client: httpx.AsyncClient, sfu: FakeSfu) -> None:
        response = await client.post(f"{BASE}/sessions/new", json={"sessionDescription": OFFER_JSON})
        assert response.json() == {"sessionId": next(iter(sfu.sessions)), "sessionDescription": ANSWER_JSON}
        assert sfu.calls[0][2] == OFFER

    @pytest.mark.parametrize(
        "content_type", [None, "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data"]
    )
    async def test_a_body_is_json_under_any_content_type(
        self, client: httpx.AsyncClient, sfu: FakeSfu, content_type: str | None
    ) -> None:
        headers = {} if content_type is None else {"content-type": content_type}
        body = b'{"sessionDescription":{"type":"offer","sdp":"v=0"},"unknown":{"x":1}}'
        response = await client.post(f"{BASE}/sessions/new", content=body, headers=headers)
        assert response.status_code == 201
        assert sfu.calls[0][2] == SessionDescription("offer", "v=0")

    async def test_both_sides_tracks_are_listed_without_absent_keys(
        self, client: httpx.AsyncClient, session: str
    ) -> None:
        response = await client.get(session)
        assert response.status_code == 200
        assert response.json() == {
            "tracks": [
                {"location": "local", "mid": "0", "trackName": "camera", "status": "active"},
                {"location": "remote", "mid": "1", "trackName": "mic", "sessionId": "ff" * 16, "status": "inactive"},
            ],
            "dataChannels": [],
        }

    async def test_figures_of_a_session(self, client: httpx.AsyncClient, session: str) -> None:
        body = (await client.get(f"{session}/stats")).json()
        assert body["transportState"] == "connected"
        assert body["transport"] == {"rtt": 0.01}
        assert body["tracks"][0]["layers"] == [{"rid": "h", "packets": 12, "rtt": 0.02}]

    @pytest.mark.parametrize("session_id", ["undefined", "f" * 32, "-x", "a" * 129, "%00", "a.b"])
    @pytest.mark.parametrize(
        ("method", "rest"),
        [
            ("GET", ""),
            ("GET", "/stats"),
            ("PUT", "/renegotiate"),
            ("POST", "/tracks/new"),
            ("PUT", "/tracks/update"),
            ("PUT", "/tracks/close"),
        ],
    )
    async def test_a_session_that_is_not_there_is_gone_and_the_error_has_no_tracks(
        self, client: httpx.AsyncClient, method: str, rest: str, session_id: str
    ) -> None:
        """Section 10.5: a client that lost its session id calls `/sessions/undefined/...` for ever."""
        body = {
            "tracks": [{"location": "local", "mid": "0"}],
            "sessionDescription": {"type": "offer", "sdp": "v=0"},
        }
        response = await client.request(method, f"{BASE}/sessions/{session_id}{rest}", json=body)
        assert_error(response, 410, "session_error")

    async def test_an_answer_is_acknowledged_with_an_empty_object(
        self, client: httpx.AsyncClient, session: str, sfu: FakeSfu
    ) -> None:
        response = await client.put(
            f"{session}/renegotiate", json={"sessionDescription": {"type": "answer", "sdp": "v=0"}}
        )
        assert (response.status_code, response.json()) == (200, {})
        assert sfu.calls[-1][-1] == SessionDescription("answer", "v=0")

    async def test_an_offer_to_renegotiate_is_answered(self, client: httpx.AsyncClient, session: str) -> None:
        response = await client.put(f"{session}/renegotiate", json={"sessionDescription": OFFER_JSON})
        assert response.json() == {"sessionDescription": ANSWER_JSON}

    async def test_the_unversioned_alias_is_the_same(self, client: httpx.AsyncClient, sfu: FakeSfu) -> None:
        response = await client.post(f"/apps/{APP}/sessions/new?thirdparty=true")
        assert response.status_code == 201
        assert (await client.get(f"/apps/{APP}/sessions/{response.json()['sessionId']}")).status_code == 200


class TestTracks:
    """Sections 4 and 5."""

    async def test_what_a_client_publishes_reaches_the_session_word_for_word(
        self, client: httpx.AsyncClient, session: str, sfu: FakeSfu
    ) -> None:
        name = "{5c7e-\u00e9\U0001f600}"
        body = {
            "sessionDescription": OFFER_JSON,
            "tracks": [{"location": "local", "mid": "0", "trackName": name, "bidirectionalMediaStream": True, "x": 1}],
        }
        response = await client.post(f"{session}/tracks/new", json=body)
        assert response.status_code == 200
        assert response.json() == {
            "requiresImmediateRenegotiation": False,
            "tracks": [{"trackName": "camera", "mid": "0"}],
            "sessionDescription": ANSWER_JSON,
        }
        request = TrackRequest(Location.LOCAL, mid="0", track_name=name, bidirectional=True)
        assert sfu.calls[-1][3:] == ((request,), OFFER, False)

    async def test_what_a_client_pulls_reaches_the_session_with_its_preferences(
        self, client: httpx.AsyncClient, session: str, sfu: FakeSfu
    ) -> None:
        simulcast = {"preferredRid": "", "priorityOrdering": "asciibetical"}
        pull = {"location": "remote", "sessionId": "p", "trackName": "t", "kind": "video", "simulcast": simulcast}
        body = {"tracks": [pull]}
        await client.post(f"{session}/tracks/new", json=body)
        preference = SimulcastPreference("", Ordering.ASCIIBETICAL, Ordering.NONE)
        request = TrackRequest(
            Location.REMOTE, track_name="t", session_id=SessionId("p"), kind=Kind.VIDEO, simulcast=preference
        )
        assert sfu.calls[-1][3:] == ((request,), None, False)

    async def test_a_failed_pull_is_an_item_of_a_200_and_has_no_empty_mid(
        self, client: httpx.AsyncClient, session: str, sfu: FakeSfu
    ) -> None:
        """Rule 4: a top-level error on a pull freezes partytracks for good."""
        failed = TrackResult(
            track_name="t",
            session_id=SessionId("p"),
            error_code="not_found_track_error",
            error_description="gone",
        )
        sfu.result = TracksResult((failed,))
        body = {"tracks": [{"location": "remote", "sessionId": "p", "trackName": "t"}]}
        response = await client.post(f"{session}/tracks/new", json=body)
        assert response.status_code == 200
        assert response.json() == {
            "requiresImmediateRenegotiation": False,
            "tracks": [
                {"trackName": "t", "sessionId": "p", "errorCode": "not_found_track_error", "errorDescription": "gone"}
            ],
        }  # fmt: skip

    async def test_auto_discover_needs_no_tracks(self, client: httpx.AsyncClient, session: str, sfu: FakeSfu) -> None:
        sfu.result = TracksResult((TrackResult("n", "0", location=Location.LOCAL, kind=Kind.AUDIO),), True, OFFER)
        response = await client.post(
            f"{session}/tracks/new", json={"sessionDescription": OFFER_JSON, "autoDiscover": True}
        )
        assert response.json() == {
            "requiresImmediateRenegotiation": True,
            "tracks": [{"trackName": "n", "mid": "0", "location": "local", "kind": "audio"}],
            "sessionDescription": OFFER_JSON,
        }
        assert sfu.calls[-1][3:] == ((), OFFER, True)

    async def test_neither_tracks_nor_auto_discover_is_invalid(self, client: httpx.AsyncClient, session: str) -> None:
        text = assert_error(await client.post(f"{session}/tracks/new", json={}), 406, "invalid_params")
        assert text.startswith("tracks: ")

    async def test_64_tracks_are_taken_and_65_are_not(self, client: httpx.AsyncClient, session: str) -> None:
        tracks = [{"location": "local", "mid": str(i), "trackName": str(i)} for i in range(65)]
        assert (await client.post(f"{session}/tracks/new", json={"tracks": tracks[:64]})).status_code == 200
        text = assert_error(await client.post(f"{session}/tracks/new", json={"tracks": tracks}), 406, "invalid_params")
        assert text.startswith("tracks: ")

    async def test_an_update_needs_no_location(self, client: httpx.AsyncClient, session: str, sfu: FakeSfu) -> None:
        body = {"tracks": [{"mid": "3", "sessionId": "p", "trackName": "t", "simulcast": {"preferredRid": "b"}}]}
        response = await client.put(f"{session}/tracks/update", json=body)
        assert response.status_code == 200
        request = TrackRequest(
            Location.REMOTE, mid="3", track_name="t", session_id=SessionId("p"), simulcast=SimulcastPreference("b")
        )
        assert sfu.calls[-1][-1] == (request,)

    async def test_a_close_passes_mids_and_offer(self, client: httpx.AsyncClient, session: str, sfu: FakeSfu) -> None:
        body = {"tracks": [{"mid": "1"}, {"mid": "2"}], "force": False, "sessionDescription": OFFER_JSON}
        assert (await client.put(f"{session}/tracks/close", json=body)).json()["sessionDescription"] == ANSWER_JSON
        assert sfu.calls[-1][3:] == (("1", "2"), False, OFFER)

    async def test_a_forced_close_needs_no_sdp(self, client: httpx.AsyncClient, session: str, sfu: FakeSfu) -> None:
        await client.put(f"{session}/tracks/close", json={"tracks": [{"mid": "1"}], "force": True})
        assert sfu.calls[-1][3:] == (("1",), True, None)


class TestBodies:
    """Section 1: `decoding_error` for types, `invalid_params` for values; the text names the field."""

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"", "body: Invalid JSON"),
            (b"{", "body: Invalid JSON"),
            (b"\xff", "body: Invalid JSON"),
            (b"[]", "body: "),
            (b"null", "body: "),
            (b"[" * 100_000, "body: Invalid JSON: recursion limit"),
            (b'{"tracks":{}}', "tracks: "),
            (b'{"tracks":[7]}', "tracks[0]: "),
            (b'{"tracks":[{"location":"local","mid":3}]}', "tracks[0].mid: "),
            (b'{"tracks":[{"location":"local"},{"location":"local","trackName":"\\ud83d"}]}', "body: Invalid JSON"),
            (
                b'{"tracks":[{"location":"remote","simulcast":{"preferredRid":1}}]}',
                "tracks[0].simulcast.preferredRid: ",
            ),
            (b'{"autoDiscover":"yes"}', "autoDiscover: "),
            (b'{"sessionDescription":"v=0"}', "sessionDescription: "),
        ],
    )
    async def test_a_wrong_type_is_a_decoding_error(
        self, client: httpx.AsyncClient, session: str, body: bytes, text: str
    ) -> None:
        response = await client.post(f"{session}/tracks/new", content=body)
        assert assert_error(response, 400, "decoding_error").startswith(text)

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({"tracks": []}, "tracks: "),
            ({"tracks": [{"mid": "0"}]}, "tracks[0].location: "),
            ({"tracks": [{"location": "here"}]}, "tracks[0].location: "),
            ({"tracks": [{"location": "local", "trackName": ""}]}, "tracks[0].trackName: "),
            ({"tracks": [{"location": "local", "trackName": "x" * 1025}]}, "tracks[0].trackName: "),
            ({"tracks": [{"location": "local", "simulcast": {"ridNotAvailable": "x"}}]}, "tracks[0].simulcast.rid"),
            ({"sessionDescription": {"type": "offer"}}, "sessionDescription.sdp: "),
            ({"sessionDescription": {"type": "rollback", "sdp": "v=0"}}, "sessionDescription.type: "),
        ],
    )
    async def test_a_wrong_value_is_invalid(
        self, client: httpx.AsyncClient, session: str, body: Any, text: str
    ) -> None:
        response = await client.post(f"{session}/tracks/new", json=body)
        assert assert_error(response, 406, "invalid_params").startswith(text)

    async def test_null_counts_as_absent(self, client: httpx.AsyncClient, session: str, sfu: FakeSfu) -> None:
        body = {
            "sessionDescription": None,
            "tracks": [{"location": "local", "mid": None, "simulcast": None, "kind": None}],
        }
        assert (await client.post(f"{session}/tracks/new", json=body)).status_code == 200
        assert sfu.calls[-1][3] == (TrackRequest(Location.LOCAL),)

    async def test_names_of_our_code_mean_nothing_on_the_wire(self, client: httpx.AsyncClient, session: str) -> None:
        response = await client.post(f"{session}/tracks/new", json={"auto_discover": True})
        assert_error(response, 406, "invalid_params")

    async def test_a_body_of_one_mebibyte_is_read_and_one_more_byte_is_too_large(
        self, client: httpx.AsyncClient, session: str
    ) -> None:
        frame = b'{"tracks":[{"location":"local"}],"x":""}'
        full = frame[:-2] + b"x" * (BODY_MAX - len(frame)) + frame[-2:]
        assert (await client.post(f"{session}/tracks/new", content=full)).status_code == 200
        assert_error(await client.post(f"{session}/tracks/new", content=full + b" "), 413, "payload_too_large")

    async def test_a_body_without_a_length_is_refused_while_it_arrives(
        self, client: httpx.AsyncClient, session: str
    ) -> None:
        pieces = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal pieces
            while True:
                pieces += 1
                yield b" " * 65536

        request = Request({"type": "http", "headers": []}, receive=_receiver(endless()))
        with pytest.raises(SfuError) as caught:
            await read_body(request, BodyLimits(BODY_MAX, 5.0))
        assert caught.value.status == 413
        assert pieces == BODY_MAX // 65536 + 1

    async def test_a_body_that_does_not_arrive_times_out(self) -> None:
        async def silent() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        request = Request({"type": "http", "headers": []}, receive=_receiver(silent()))
        with pytest.raises(Exception, match="did not arrive in time") as caught:
            await read_body(request, BodyLimits(BODY_MAX, 0.01))
        assert getattr(caught.value, "status_code", None) == 408


def _receiver(chunks: AsyncIterator[bytes]) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(chunks), "more_body": True}

    return receive


class TestErrors:
    """Section 1: every answer is a JSON object, no redirect, CORS on all of them."""

    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (InvalidSessionDescription("m=video is odd"), 406, "invalid_session_description"),
            (TransportNotReady("not connected"), 425, "session_error"),
            (LimitExceeded("51 calls"), 429, "too_many_requests"),
            (SfuError("odd"), 500, "internal_error"),
            (RuntimeError("a secret detail"), 500, "internal_error"),
        ],
    )
    async def test_errors_of_the_session_have_their_status_and_code(
        self, client: httpx.AsyncClient, session: str, sfu: FakeSfu, error: Exception, status: int, code: str
    ) -> None:
        sfu.error = error
        response = await client.post(
            f"{session}/tracks/new", json={"tracks": [{"location": "local"}]}, headers={"origin": "https://a.example"}
        )
        assert "secret detail" not in assert_error(response, status, code)
        assert response.headers["access-control-allow-origin"] == "https://a.example"

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v1", 404, "not_found"),
            ("GET", "/v1/apps", 404, "not_found"),
            ("POST", f"{BASE}/sessions/new/", 404, "not_found"),
            ("POST", f"{BASE}/sessions", 404, "not_found"),
            ("GET", f"{BASE}/sessions/x/tracks/new", 405, "method_not_allowed"),
            ("PATCH", f"{BASE}/sessions/x", 405, "method_not_allowed"),
            ("POST", "/", 405, "method_not_allowed"),
            ("GET", "/nothing.js", 404, "not_found"),
        ],
    )
    async def test_unknown_routes_are_json_too_and_nothing_redirects(
        self, client: httpx.AsyncClient, method: str, path: str, status: int, code: str
    ) -> None:
        assert_error(await client.request(method, path), status, code)


class TestRate:
    """Limits: 50 calls a second, per session, none per app."""

    async def test_the_51st_call_in_an_instant_is_too_many_for_its_session_only(self, sfu: FakeSfu) -> None:
        api = SessionApi(sfu, BodyLimits(BODY_MAX, 1.0), clock=lambda: 7.0)  # type: ignore[arg-type]
        app = FastAPI()
        app.include_router(api_router(api, BearerCheck({APP: SECRET}), base="/v1"))
        app.add_exception_handler(SfuError, on_sfu_error)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=BEARER) as client:
            busy, calm = [
                f"{BASE}/sessions/{(await client.post(f'{BASE}/sessions/new')).json()['sessionId']}" for _ in range(2)
            ]
            assert {(await client.get(busy)).status_code for _ in range(50)} == {200}
            assert_error(await client.get(busy), 429, "too_many_requests")
            assert_error(await client.put(f"{busy}/renegotiate"), 429, "too_many_requests")
            assert (await client.get(calm)).status_code == 200


class TestCors:
    """Section 1: legacy examples call the API straight from a page."""

    async def test_a_preflight_is_answered_without_a_bearer(self, client: httpx.AsyncClient) -> None:
        del client.headers["authorization"]
        headers = {
            "origin": "https://a.example",
            "access-control-request-method": "PUT",
            "access-control-request-headers": "authorization,content-type",
        }
        response = await client.options(f"{BASE}/sessions/x/renegotiate", headers=headers)
        assert response.status_code == 204
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert {"GET", "POST", "PUT"} <= set(response.headers["access-control-allow-methods"].split(", "))
        assert response.headers["access-control-allow-headers"] == "authorization, content-type"
        assert response.headers["vary"] == "Origin"

    async def test_answers_allow_the_origin_and_vary_by_it(self, client: httpx.AsyncClient) -> None:
        response = await client.post(f"{BASE}/sessions/new", headers={"origin": "https://a.example"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert response.headers["vary"] == "Origin"

    async def test_without_an_origin_the_answer_still_varies(self, client: httpx.AsyncClient) -> None:
        response = await client.post(f"{BASE}/sessions/new")
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["vary"] == "Origin"

    async def test_an_origin_that_is_not_listed_is_not_allowed(self, sfu: FakeSfu) -> None:
        http = HttpSettings(cors_origins=("https://a.example",))
        settings = Settings(http=http, configured_apps={APP: Secret(SECRET)})
        app = build_app(settings, sfu, health=Health(), figures=Figures(None))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=BEARER) as client:
            listed = await client.post(f"{BASE}/sessions/new", headers={"origin": "https://a.example"})
            unlisted = await client.post(f"{BASE}/sessions/new", headers={"origin": "https://b.example"})
        assert listed.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in unlisted.headers
