"""The application as a whole: health, metrics, pages, and what the edge adds to every answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files

import httpx
import pytest
from fastapi import FastAPI

import torpor
from sfu.service import SfuStats
from tests.support.fake_sfu import FakeSfu
from torpor.app import build_app
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, HttpSettings, MediaSettings, Secret, Settings
from torpor.figures import Figures, media_families
from torpor.health import Health
from torpor.lifespan import media_settings
from torpor.metrics import CONTENT_TYPE, render

PRODUCTION = Settings(http=HttpSettings(host="0.0.0.0"), configured_apps={"app": Secret("s" * 64)})


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def app(health: Health) -> FastAPI:
    sfu = FakeSfu()
    return build_app(Settings(), sfu, health=health, figures=Figures(sfu))  # type: ignore[arg-type]


def connect(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as client:
        yield client


class TestHealth:
    async def test_serving_is_200_with_the_version(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/healthz")
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "version": torpor.__version__}

    async def test_draining_is_503(self, client: httpx.AsyncClient, health: Health) -> None:
        health.drain()
        response = await client.get("/healthz")
        assert response.status_code == 503
        assert response.json()["status"] == "draining"


class TestMetrics:
    async def test_all_figures_are_there_in_the_text_format(self, client: httpx.AsyncClient) -> None:
        await client.get("/healthz")
        await client.get("/invented/path/1")
        await client.post(
            f"/v1/apps/{DEVELOPMENT_APP_ID}/sessions/new",
            headers={"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"},
        )
        response = await client.get("/metrics")
        assert response.headers["content-type"] == CONTENT_TYPE
        lines = response.text.splitlines()
        assert f'torpor_info{{version="{torpor.__version__}"}} 1' in lines
        assert 'torpor_http_requests_total{route="/healthz",method="GET",status="200"} 1' in lines
        assert 'torpor_http_requests_total{route="unmatched",method="GET",status="404"} 1' in lines
        new = "/v1/apps/{appId}/sessions/new"
        assert f'torpor_http_requests_total{{route="{new}",method="POST",status="201"}} 1' in lines
        assert 'torpor_media_drops_total{reason="no_keys"} 2' in lines
        assert "torpor_media_rtp_in_total 7" in lines
        assert "# TYPE torpor_media_cache_bytes gauge" in lines
        assert 'torpor_media_live{kind="sessions"} 1' in lines
        assert 'torpor_media_forward_seconds_bucket{le="1e-06"} 1' in lines
        assert 'torpor_media_forward_seconds_bucket{le="+Inf"} 6' in lines
        assert "torpor_media_forward_seconds_count 6" in lines
        assert 'torpor_event_loop_lag_seconds_bucket{le="+Inf"} 0' in lines

    async def test_each_name_is_declared_once(self, client: httpx.AsyncClient) -> None:
        text = (await client.get("/metrics")).text
        names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
        assert len(names) == len(set(names))
        assert names == re.findall(r"^# HELP (\S+)", text, re.MULTILINE)

    def test_an_empty_histogram_of_the_plane_is_still_valid(self) -> None:
        text = render(media_families(SfuStats({}, {}, (0,), (0,))))
        assert 'torpor_media_forward_seconds_bucket{le="+Inf"} 0' in text


class TestPages:
    async def test_the_page_has_a_policy_that_lets_it_work_and_nothing_else(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-cache"

    async def test_every_file_has_its_type(self, client: httpx.AsyncClient) -> None:
        types = {".html": "text/html; ", ".js": "text/javascript; ", ".css": "text/css; ", ".svg": "image/svg+xml"}
        names = [entry.name for entry in files("torpor.web").iterdir() if "." in entry.name]
        served = [name for name in names if any(name.endswith(suffix) for suffix in types)]
        assert "index.html" in served
        for name in served:
            response = await client.get(f"/{name}")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(types[f".{name.rpartition('.')[2]}"])

    async def test_a_page_obeys_its_own_policy(self, client: httpx.AsyncClient) -> None:
        """No inline script or style, no other host: the browser would refuse them."""
        text = (await client.get("/")).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", text)
        assert not re.search(r"<style|\sstyle=|\son\w+=", text)
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", text)

    async def test_a_browser_that_has_the_file_gets_304(self, client: httpx.AsyncClient) -> None:
        etag = (await client.get("/")).headers["etag"]
        for header in (etag, f'"other", W/{etag}', "*"):
            response = await client.get("/", headers={"if-none-match": header})
            assert (response.status_code, response.content) == (304, b"")
        assert (await client.get("/", headers={"if-none-match": '"other"'})).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/__init__.py", "/..%2fpyproject.toml", "/%2e%2e/README.md", "/nothing.js", "/app.js/x", "/.js"]
    )
    async def test_nothing_else_of_the_disk_is_served(self, client: httpx.AsyncClient, path: str) -> None:
        response = await client.get(path)
        assert response.status_code == 404
        assert response.json()["errorCode"] == "not_found"


class TestWhatIsServed:
    @pytest.mark.parametrize("path", ["/", "/app.js", "/partytracks/generate-ice-servers"])
    async def test_development_pages_are_not_in_production(self, path: str) -> None:
        app = build_app(PRODUCTION, FakeSfu(), health=Health(), figures=Figures(None))  # type: ignore[arg-type]
        async with connect(app) as client:
            assert (await client.get(path)).status_code == 404

    async def test_the_development_secret_opens_nothing_in_production(self) -> None:
        app = build_app(PRODUCTION, FakeSfu(), health=Health(), figures=Figures(None))  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"}
        async with connect(app) as client:
            for app_id, status in ((DEVELOPMENT_APP_ID, 404), ("app", 401)):
                response = await client.post(f"/v1/apps/{app_id}/sessions/new", headers=headers)
                assert response.status_code == status

    async def test_without_media_there_are_no_sessions(self) -> None:
        app = build_app(Settings(), None, health=Health(), figures=Figures(None))
        async with connect(app) as client:
            assert (await client.post(f"/v1/apps/{DEVELOPMENT_APP_ID}/sessions/new")).status_code == 404
            assert "torpor_media" not in (await client.get("/metrics")).text


class TestMediaSettings:
    def test_the_udp_port_has_the_number_of_the_tcp_port_unless_told(self) -> None:
        assert media_settings(Settings(), 4321).port == 4321
        assert media_settings(Settings(media=MediaSettings(port=5)), 4321).port == 5
        assert media_settings(Settings(), 1).listen_addresses == ("127.0.0.1",)

    def test_threads_follow_the_cores_unless_told(self) -> None:
        assert media_settings(Settings(), 1).threads >= 1
        assert media_settings(Settings(media=MediaSettings(threads=7)), 1).threads == 7
