from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.support.turn_harness import UNIX_TIME
from turn.routes import credentials_router
from turn.service import TurnService, TurnSettings

KEY, OTHER = "k" * 32, "o" * 32
TOKEN, OTHER_TOKEN = "t" * 64, "u" * 64
BASE = f"/v1/turn/keys/{KEY}/credentials"


class Api:
    def __init__(self, service: TurnService, client: httpx.AsyncClient) -> None:
        self.service = service
        self.client = client
        self.unix_time = UNIX_TIME

    async def post(self, path: str, content: str = "", *, token: str = TOKEN, base: str = BASE) -> httpx.Response:
        return await self.client.post(base + path, content=content, headers={"Authorization": f"Bearer {token}"})

    def known(self, username: str) -> bool:
        return self.service._issuer.find(username, self.unix_time) is not None


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    settings = TurnSettings(port=0, keys={KEY: TOKEN, OTHER: OTHER_TOKEN}, allocations_max=16, connections_max=16)
    clock = [UNIX_TIME]
    service = TurnService(settings, wall_clock=lambda: clock[0])
    await service.start()
    app = FastAPI()
    app.include_router(credentials_router(service))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield Api(service, client)
    await service.close()


class TestGenerateIceServers:
    """realtime-api §11."""

    async def test_answers_201_with_a_list_of_a_stun_and_a_turn_entry(self, api: Api) -> None:
        response = await api.post("/generate-ice-servers", '{"ttl": 86400}')
        assert response.status_code == 201
        assert response.headers["content-type"] == "application/json"
        stun, turn = response.json()["iceServers"]
        port = api.service.port
        assert stun == {"urls": [f"stun:127.0.0.1:{port}"]}
        assert turn["urls"] == [f"turn:127.0.0.1:{port}?transport=udp", f"turn:127.0.0.1:{port}?transport=tcp"]
        assert len(turn["username"]) == 96
        assert len(turn["credential"]) == 96
        assert api.known(turn["username"])

    @pytest.mark.parametrize("body", ["", "{}", '{"ttl": null, "unknown": [1]}', " \n"])
    async def test_the_body_may_be_absent_or_say_nothing(self, api: Api, body: str) -> None:
        response = await api.post("/generate-ice-servers", body)
        assert response.status_code == 201
        username = response.json()["iceServers"][1]["username"]
        api.unix_time = UNIX_TIME + 86399
        assert api.known(username)
        api.unix_time = UNIX_TIME + 86400
        assert not api.known(username)

    async def test_two_calls_give_two_credentials(self, api: Api) -> None:
        answers = [(await api.post("/generate-ice-servers")).json()["iceServers"][1] for _ in range(2)]
        assert answers[0]["username"] != answers[1]["username"]
        assert answers[0]["credential"] != answers[1]["credential"]

    async def test_a_custom_identifier_is_accepted_up_to_128_bytes(self, api: Api) -> None:
        response = await api.post("/generate-ice-servers", '{"customIdentifier": "%s"}' % ("x" * 128))
        username = response.json()["iceServers"][1]["username"]
        assert len(username.encode()) <= 508
        assert api.known(username)
        refused = await api.post("/generate-ice-servers", '{"customIdentifier": "%s"}' % ("x" * 129))
        assert (refused.status_code, refused.json()["errorCode"]) == (406, "invalid_params")

    @pytest.mark.parametrize("ttl", ["172801", "0", "-5", "1e300", "NaN"])
    async def test_a_ttl_outside_the_limits_is_406(self, api: Api, ttl: str) -> None:
        response = await api.post("/generate-ice-servers", f'{{"ttl": {ttl}}}')
        assert (response.status_code, response.json()["errorCode"]) == (406, "invalid_params")

    @pytest.mark.parametrize(
        "body", ["{", "[]", "7", '{"ttl": "60"}', '{"ttl": true}', '{"customIdentifier": 7}', "[" * 9000]
    )
    async def test_a_body_of_another_shape_is_400(self, api: Api, body: str) -> None:
        response = await api.post("/generate-ice-servers", body)
        assert (response.status_code, response.json()["errorCode"]) == (400, "decoding_error")

    async def test_a_large_body_is_413(self, api: Api) -> None:
        response = await api.post("/generate-ice-servers", " " * 16385)
        assert (response.status_code, response.json()["errorCode"]) == (413, "payload_too_large")


class TestGenerate:
    async def test_answers_201_with_one_object(self, api: Api) -> None:
        response = await api.post("/generate", '{"ttl": 60}')
        assert response.status_code == 201
        server: dict[str, Any] = response.json()["iceServers"]
        assert [url.split(":")[0] for url in server["urls"]] == ["stun", "turn", "turn"]
        assert api.known(server["username"])


class TestAuthorization:
    @pytest.mark.parametrize("path", ["/generate-ice-servers", "/generate", "/someone/revoke"])
    async def test_a_wrong_or_missing_bearer_is_401_and_an_unknown_key_404(self, api: Api, path: str) -> None:
        for token in ("", "wrong", OTHER_TOKEN):
            response = await api.post(path, token=token)
            assert (response.status_code, response.json()["errorCode"]) == (401, "unauthorized")
        unknown = await api.post(path, base="/v1/turn/keys/nobody/credentials")
        assert (unknown.status_code, unknown.json()["errorCode"]) == (404, "not_found")


class TestRevoke:
    async def test_answers_204_without_a_body_and_the_credential_is_dead(self, api: Api) -> None:
        username = (await api.post("/generate")).json()["iceServers"]["username"]
        response = await api.post(f"/{username}/revoke")
        assert (response.status_code, response.content) == (204, b"")
        assert not api.known(username)
        assert (await api.post(f"/{username}/revoke")).status_code == 204

    async def test_another_key_cannot_revoke_it(self, api: Api) -> None:
        username = (await api.post("/generate")).json()["iceServers"]["username"]
        base = f"/v1/turn/keys/{OTHER}/credentials"
        assert (await api.post(f"/{username}/revoke", token=OTHER_TOKEN, base=base)).status_code == 404
        assert api.known(username)

    async def test_a_name_that_was_never_issued_is_404(self, api: Api) -> None:
        for name in ("alice", "00" * 48, "zz" * 48):
            assert (await api.post(f"/{name}/revoke")).status_code == 404
