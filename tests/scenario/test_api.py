"""The session API on the real media side, in one process; nothing of it is left when it closes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from sfu.service import Sfu, SfuSettings
from torpor.app import build_app
from torpor.config import Secret, Settings
from torpor.figures import Figures
from torpor.health import Health

SECRETS = {"alpha": "a" * 64, "beta": "b" * 64}


@pytest.fixture
async def sfu() -> AsyncIterator[Sfu]:
    """Afterwards every live count is zero."""
    sfu = Sfu(SfuSettings(threads=1))
    await sfu.start()
    try:
        yield sfu
    finally:
        await sfu.close()
    assert {kind: count for kind, count in sfu.live_counts().items() if count} == {}


@pytest.fixture
async def client(sfu: Sfu) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(configured_apps={app_id: Secret(secret) for app_id, secret in SECRETS.items()})
    app = build_app(settings, sfu, health=Health(), figures=Figures(sfu))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {SECRETS['alpha']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1/apps/", headers=headers) as client:
        yield client


async def new_session(client: httpx.AsyncClient) -> str:
    response = await client.post("alpha/sessions/new")
    assert response.status_code == 201
    return str(response.json()["sessionId"])


class TestApps:
    async def test_sessions_of_one_app_do_not_exist_for_another(self, client: httpx.AsyncClient) -> None:
        session_id = await new_session(client)
        headers = {"authorization": f"Bearer {SECRETS['beta']}"}
        assert (await client.get(f"beta/sessions/{session_id}", headers=headers)).status_code == 410
        assert (await client.get(f"alpha/sessions/{session_id}")).status_code == 200

    async def test_one_apps_secret_does_not_open_another(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("beta/sessions/new")).status_code == 401


class TestOrder:
    """Offer and answer come in turns; what is out of turn changes nothing."""

    async def test_an_answer_to_no_offer_is_406(self, client: httpx.AsyncClient) -> None:
        session_id = await new_session(client)
        body = {"sessionDescription": {"type": "answer", "sdp": "v=0\r\n"}}
        response = await client.put(f"alpha/sessions/{session_id}/renegotiate", json=body)
        assert response.status_code == 406
        assert response.json()["errorCode"] == "invalid_session_description"

    async def test_a_pull_of_what_nobody_publishes_fails_as_an_item(self, client: httpx.AsyncClient) -> None:
        session_id = await new_session(client)
        body = {"tracks": [{"location": "remote", "sessionId": "f" * 32, "trackName": "camera"}]}
        response = await client.post(f"alpha/sessions/{session_id}/tracks/new", json=body)
        assert response.status_code == 200
        (item,) = response.json()["tracks"]
        assert item["errorCode"] == "not_found_track_error"
        assert "mid" not in item
        assert response.json()["requiresImmediateRenegotiation"] is False

    async def test_an_sdp_that_is_none_is_406_and_the_session_goes_on(self, client: httpx.AsyncClient) -> None:
        session_id = await new_session(client)
        body = {
            "sessionDescription": {"type": "offer", "sdp": "this is no SDP"},
            "tracks": [{"location": "local", "mid": "0", "trackName": "camera"}],
        }
        response = await client.post(f"alpha/sessions/{session_id}/tracks/new", json=body)
        assert response.status_code == 406
        assert set(response.json()) == {"errorCode", "errorDescription"}
        assert (await client.get(f"alpha/sessions/{session_id}")).json()["tracks"] == []
