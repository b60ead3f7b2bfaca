"""The browser gateway, realtime-api.md section 10.7: what partytracks' own back end does, without one."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from http.cookies import SimpleCookie

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfu.errors import InvalidSessionDescription, LimitExceeded
from sfu.gateway import _encode, _sign, cookie_name, is_local_name, is_valid_token, make_token
from sfu.messages import SessionId
from tests.support.fake_sfu import FakeSfu
from torpor.app import build_app
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, GatewaySettings, HttpSettings, Secret, Settings
from torpor.figures import Figures
from torpor.health import Health

SECRET = DEVELOPMENT_APP_SECRET
PREFIX = "/partytracks"
HERE = "http://127.0.0.1:8787"


@pytest.fixture
def sfu() -> FakeSfu:
    return FakeSfu()


@asynccontextmanager
async def browser(
    sfu: FakeSfu, settings: Settings | None = None, base_url: str = HERE
) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(settings or Settings(), sfu, health=Health(), figures=Figures(None))  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        yield client


def gateway(**options: object) -> Settings:
    """Production: one configured app, HTTP on all addresses, the gateway switched on."""
    return Settings(
        http=HttpSettings(host="0.0.0.0"),
        gateway=GatewaySettings(enabled=True, **options),  # type: ignore[arg-type]
        configured_apps={"app": Secret("s" * 64)},
    )


class TestSessions:
    async def test_a_new_session_is_200_and_sets_the_cookie(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            response = await client.post(f"{PREFIX}/sessions/new?", headers={"origin": HERE})
        assert response.status_code == 200
        session_id = response.json()["sessionId"]
        cookie = SimpleCookie(response.headers["set-cookie"])[cookie_name(session_id)]
        assert is_valid_token(cookie.value, session_id, SECRET)
        assert cookie["path"] == PREFIX
        assert cookie["httponly"]
        assert cookie["samesite"].lower() == "strict"
        assert sfu.calls == [("create_session", DEVELOPMENT_APP_ID, None, None, False)]

    async def test_the_whole_session_works_with_the_cookie_and_without_a_bearer(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            session_id = (await client.post(f"{PREFIX}/sessions/new")).json()["sessionId"]
            session = f"{PREFIX}/sessions/{session_id}"
            body = {"tracks": [{"location": "local", "mid": "0", "trackName": "t"}], "force": True}
            answer = {"sessionDescription": {"type": "answer", "sdp": "v=0"}}
            responses = [
                await client.get(session),
                await client.get(f"{session}/stats"),
                await client.post(f"{session}/tracks/new", json=body),
                await client.put(f"{session}/renegotiate", json=answer),
                await client.put(f"{session}/tracks/update", json=body),
                await client.put(f"{session}/tracks/close", json=body),
            ]
        assert [response.status_code for response in responses] == [200] * 6

    async def test_without_the_cookie_it_is_plainly_unauthorized(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            session_id = (await client.post(f"{PREFIX}/sessions/new")).json()["sessionId"]
            client.cookies.clear()
            response = await client.get(f"{PREFIX}/sessions/{session_id}")
        assert (response.status_code, response.text) == (401, "unauthorized")
        assert response.headers["content-type"].startswith("text/plain")
        assert [call[0] for call in sfu.calls] == ["create_session"]

    async def test_one_sessions_cookie_does_not_open_another(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            mine = (await client.post(f"{PREFIX}/sessions/new")).json()["sessionId"]
            token = client.cookies[cookie_name(mine)]
            other = "f" * 32
            headers = {"cookie": f"{cookie_name(other)}={token}"}
            assert (await client.get(f"{PREFIX}/sessions/{other}", headers=headers)).status_code == 401

    async def test_without_the_lock_no_cookie_is_needed(self, sfu: FakeSfu) -> None:
        async with browser(sfu, gateway(lock=False), "https://rtc.example") as client:
            session_id = (await client.post(f"{PREFIX}/sessions/new")).json()["sessionId"]
            client.cookies.clear()
            assert (await client.get(f"{PREFIX}/sessions/{session_id}")).status_code == 200

    async def test_a_third_party_session_cannot_be_had_without_a_bearer(self, sfu: FakeSfu) -> None:
        """Such a session makes the server call out to an address that the caller chooses."""
        async with browser(sfu) as client:
            await client.post(f"{PREFIX}/sessions/new?thirdparty=true&correlationId=c")
        assert sfu.calls == [("create_session", DEVELOPMENT_APP_ID, None, "c", False)]

    async def test_a_full_server_answers_in_plain_text_since_only_that_is_tried_again(self, sfu: FakeSfu) -> None:
        """Section 10.5: JSON without `sessionId` sends partytracks to `/sessions/undefined` for ever."""
        sfu.error = LimitExceeded("too many sessions")
        async with browser(sfu) as client:
            response = await client.post(f"{PREFIX}/sessions/new")
        assert response.status_code == 503
        assert response.headers["content-type"].startswith("text/plain")
        assert response.headers["retry-after"] == "1"
        assert "set-cookie" not in response.headers

    async def test_a_bad_offer_is_reported_as_usual(self, sfu: FakeSfu) -> None:
        sfu.error = InvalidSessionDescription("no such line")
        async with browser(sfu) as client:
            response = await client.post(f"{PREFIX}/sessions/new")
        assert response.status_code == 406
        assert response.json()["errorCode"] == "invalid_session_description"

    async def test_one_address_makes_so_many_sessions_at_once(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            statuses = [(await client.post(f"{PREFIX}/sessions/new")).status_code for _ in range(100)]
        assert statuses[:20] == [200] * 20
        assert 503 in statuses


class TestCookieSecurity:
    """`Secure` unless the request came by plain HTTP to this very machine, where Safari would drop the cookie."""

    @pytest.mark.parametrize(
        ("url", "secure"),
        [
            ("http://127.0.0.1:8787", False),
            ("http://localhost:8787", False),
            ("http://[::1]:8787", False),
            ("https://localhost:8787", True),
            ("http://rtc.example", True),
            ("https://rtc.example", True),
            ("http://127.0.0.1.evil.example", True),
        ],
    )
    async def test_secure(self, sfu: FakeSfu, url: str, secure: bool) -> None:
        async with browser(sfu, gateway(), url) as client:
            response = await client.post(f"{PREFIX}/sessions/new")
        assert ("; Secure" in response.headers["set-cookie"]) is secure


class TestIceServers:
    async def test_only_servers_that_listen_are_listed(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            response = await client.get(f"{PREFIX}/generate-ice-servers")
        assert (response.status_code, response.json()) == (200, {"iceServers": []})

    async def test_one_address_gets_so_many_a_second(self, sfu: FakeSfu) -> None:
        async with browser(sfu) as client:
            answers = [await client.get(f"{PREFIX}/generate-ice-servers") for _ in range(60)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 20 <= sum(answer.status_code == 200 for answer in answers) <= 40
        assert refused


class TestOrigins:
    """The gateway acts for the app without asking who is there: only our own pages may use it."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"origin": HERE},
            {"origin": "HTTP://127.0.0.1:8787"},
            {"sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
        ],
    )
    async def test_our_own_pages_and_what_is_no_page_pass(self, sfu: FakeSfu, headers: dict[str, str]) -> None:
        async with browser(sfu) as client:
            assert (await client.get(f"{PREFIX}/generate-ice-servers", headers=headers)).status_code == 200
            assert (await client.post(f"{PREFIX}/sessions/new", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "http://127.0.0.1:9999"},
            {"origin": "null"},
            {"origin": ""},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ],
    )
    async def test_pages_of_others_do_not(self, sfu: FakeSfu, headers: dict[str, str]) -> None:
        async with browser(sfu) as client:
            session_id = (await client.post(f"{PREFIX}/sessions/new")).json()["sessionId"]
            responses = [
                await client.post(f"{PREFIX}/sessions/new", headers=headers),
                await client.get(f"{PREFIX}/sessions/{session_id}", headers=headers),
                await client.get(f"{PREFIX}/generate-ice-servers", headers=headers),
            ]
        assert [response.status_code for response in responses] == [403] * 3
        assert {response.json()["errorCode"] for response in responses} == {"forbidden"}
        assert "access-control-allow-origin" not in responses[0].headers

    async def test_a_foreign_name_that_resolves_to_this_machine_is_not_our_own(self, sfu: FakeSfu) -> None:
        """DNS rebinding: the page and the request then share an origin, and only the name tells."""
        async with browser(sfu, base_url="http://evil.example:8787") as client:
            response = await client.post(f"{PREFIX}/sessions/new", headers={"origin": "http://evil.example:8787"})
        assert response.status_code == 403
        assert response.json()["errorCode"] == "forbidden"
        assert sfu.calls == []

    async def test_listed_origins_pass_and_are_told_so(self, sfu: FakeSfu) -> None:
        settings = gateway(allowed_origins=("https://app.example",))
        async with browser(sfu, settings, "https://rtc.example") as client:
            mine = await client.post(f"{PREFIX}/sessions/new", headers={"origin": "https://app.example"})
            other = await client.post(f"{PREFIX}/sessions/new", headers={"origin": "https://b.example"})
            preflight = await client.options(f"{PREFIX}/sessions/x", headers={"origin": "https://app.example"})
        assert (mine.status_code, other.status_code, preflight.status_code) == (200, 403, 204)
        assert mine.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"

    async def test_a_star_lets_everybody_in(self, sfu: FakeSfu) -> None:
        async with browser(sfu, gateway(allowed_origins=("*",)), "https://rtc.example") as client:
            response = await client.post(f"{PREFIX}/sessions/new", headers={"origin": "https://any.example"})
        assert response.status_code == 200

    @pytest.mark.parametrize(
        ("host", "local"),
        [
            ("localhost", True),
            ("localhost:8787", True),
            ("a.localhost", True),
            ("127.0.0.1", True),
            ("127.9.9.9:1", True),
            ("[::1]:8787", True),
            ("", False),
            ("localhost.evil.example", False),
            ("127.0.0.1.evil.example", False),
            ("10.0.0.1", False),
            ("[::1", False),
            ("user@localhost:x", False),
        ],
    )
    def test_names_of_this_machine(self, host: str, local: bool) -> None:
        assert is_local_name(host) is local


class TestPresence:
    """The gateway has no bearer, so it is there only where that is meant."""

    async def test_a_production_server_has_none_unless_told(self, sfu: FakeSfu) -> None:
        settings = Settings(configured_apps={"app": Secret("s" * 64)})
        async with browser(sfu, settings) as client:
            assert (await client.post(f"{PREFIX}/sessions/new")).status_code == 404

    async def test_its_prefix_can_be_chosen(self, sfu: FakeSfu) -> None:
        async with browser(sfu, gateway(prefix="/rtc/tracks"), "https://rtc.example") as client:
            response = await client.post("/rtc/tracks/sessions/new")
            assert response.status_code == 200
            assert "Path=/rtc/tracks" in response.headers["set-cookie"]
            assert (await client.post(f"{PREFIX}/sessions/new")).status_code == 404


class TestTokens:
    """RFC 7519 with HS256 (RFC 7515 A.1)."""

    ID = SessionId("5f0c" * 8)

    def test_a_token_is_what_any_jwt_library_makes(self) -> None:
        token = make_token(self.ID, "key", issued_at=1_700_000_000)
        header, payload, signature = token.split(".")
        assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "HS256", "typ": "JWT"}
        claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        assert json.loads(claims) == {"sessionId": self.ID, "iat": 1_700_000_000}
        expected = hmac.new(b"key", f"{header}.{payload}".encode(), sha256).digest()
        assert base64.urlsafe_b64decode(signature + "=") == expected

    def test_the_signature_of_the_rfcs_example_is_right(self) -> None:
        """RFC 7515 A.1.1, whose key is given in base64url."""
        key = base64.urlsafe_b64decode(
            "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
        )
        signed = (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        )
        assert _sign(signed, key) == "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"

    def test_another_key_another_session_or_another_algorithm_is_invalid(self) -> None:
        token = make_token(self.ID, "key", issued_at=1)
        assert is_valid_token(token, self.ID, "key")
        assert not is_valid_token(token, self.ID, "other")
        assert not is_valid_token(token, "other", "key")
        unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        assert not is_valid_token(f"{unsigned}.{token.split('.')[1]}.", self.ID, "key")

    @given(st.text(max_size=200))
    def test_nonsense_is_invalid_and_raises_nothing(self, text: str) -> None:
        assert not is_valid_token(text, self.ID, "key")

    @given(st.integers(0, 200), st.integers(1, 255))
    def test_a_changed_character_is_invalid(self, position: int, change: int) -> None:
        token = make_token(self.ID, "key", issued_at=1)
        position %= len(token)
        changed = token[:position] + chr(ord(token[position]) ^ change) + token[position + 1 :]
        assert not is_valid_token(changed, self.ID, "key")

    @pytest.mark.parametrize("payload", [b"", b"[]", b"7", b'"x"', b"\xff", b'{"iat":1}'])
    def test_a_signed_payload_of_another_shape_is_invalid(self, payload: bytes) -> None:
        signed = ".".join((_encode(b'{"alg":"HS256"}'), _encode(payload)))
        assert not is_valid_token(f"{signed}.{_sign(signed, 'key')}", self.ID, "key")
