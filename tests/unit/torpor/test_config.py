"""Rules of the settings: what is safe to serve, what follows from what, which values cannot work together."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.config import (
    DEVELOPMENT_APP_ID,
    DEVELOPMENT_APP_SECRET,
    GatewaySettings,
    HttpSettings,
    MediaSettings,
    RelaySettings,
    Secret,
    Settings,
)

APPS = {"app": Secret("s" * 64)}
KEYS = {"key": Secret("t" * 64)}


class TestDevelopment:
    def test_loopback_without_apps_has_the_development_app_the_gateway_and_the_demo(self) -> None:
        settings = Settings()
        assert settings.development
        assert {key: secret.value for key, secret in settings.apps.items()} == {
            DEVELOPMENT_APP_ID: DEVELOPMENT_APP_SECRET
        }
        assert settings.gateway_enabled
        assert settings.gateway_app_id == DEVELOPMENT_APP_ID
        assert settings.demo_enabled
        assert settings.refusal() is None

    def test_its_credentials_are_as_long_as_real_ones(self) -> None:
        assert (len(DEVELOPMENT_APP_ID), len(DEVELOPMENT_APP_SECRET)) == (32, 64)

    def test_a_configured_app_ends_development(self) -> None:
        settings = Settings(configured_apps=APPS)
        assert not settings.development
        assert settings.apps == APPS
        assert not settings.gateway_enabled
        assert not settings.demo_enabled


class TestRefusal:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])
    def test_a_public_address_without_apps_is_refused(self, host: str) -> None:
        reason = Settings(http=HttpSettings(host=host)).refusal()
        assert reason is not None
        assert host in reason
        assert "TORPOR_APP_SECRET" in reason

    def test_the_public_secret_is_refused_on_a_public_address(self) -> None:
        apps = {"app": Secret(DEVELOPMENT_APP_SECRET)}
        assert Settings(http=HttpSettings(host="0.0.0.0"), configured_apps=apps).refusal() is not None
        assert Settings(configured_apps=apps).refusal() is None
        keys = {"key": Secret(DEVELOPMENT_APP_SECRET)}
        reachable = HttpSettings(host="0.0.0.0")
        assert Settings(http=reachable, configured_apps=APPS, turn=RelaySettings(keys=keys)).refusal() is not None
        assert Settings(configured_apps=APPS, turn=RelaySettings(keys=keys)).refusal() is None

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
    def test_loopback_is_served(self, host: str) -> None:
        assert Settings(http=HttpSettings(host=host)).refusal() is None

    def test_a_public_address_with_an_app_is_served(self) -> None:
        assert Settings(http=HttpSettings(host="0.0.0.0"), configured_apps=APPS).refusal() is None


class TestDerived:
    def test_media_follows_http_unless_told(self) -> None:
        assert Settings().media_addresses == ("127.0.0.1",)
        assert Settings(media=MediaSettings(addresses=("::1",))).media_addresses == ("::1",)


class TestTurn:
    def test_it_is_served_in_development_and_where_somebody_may_use_it(self) -> None:
        assert Settings().turn_enabled
        assert not Settings(configured_apps=APPS).turn_enabled
        for turn in (
            RelaySettings(keys=KEYS),
            RelaySettings(users={"ada": Secret("pass")}),
            RelaySettings(shared_secrets=(Secret("s" * 32),)),
            RelaySettings(enabled=True),
        ):
            assert Settings(configured_apps=APPS, turn=turn).turn_enabled
        assert not Settings(turn=RelaySettings(enabled=False)).turn_enabled

    def test_the_development_app_is_a_key_unless_there_are_others(self) -> None:
        assert Settings().turn_keys == {DEVELOPMENT_APP_ID: Secret(DEVELOPMENT_APP_SECRET)}
        assert Settings(turn=RelaySettings(keys=KEYS)).turn_keys == KEYS
        assert Settings(configured_apps=APPS).turn_keys == {}

    def test_it_is_where_media_is_unless_told(self) -> None:
        assert Settings().turn_addresses == ("127.0.0.1",)
        media = MediaSettings(addresses=("::1",))
        assert Settings(media=media).turn_addresses == ("::1",)
        assert Settings(media=media, turn=RelaySettings(addresses=("127.0.0.1",))).turn_addresses == ("127.0.0.1",)

    def test_without_a_certificate_of_its_own_it_has_that_of_http(self) -> None:
        one, two = Path("one"), Path("two")
        http = HttpSettings(tls_certificate=one, tls_key=one)
        assert Settings().turn_certificate is None
        assert Settings(http=http).turn_certificate == (one, one)
        own = RelaySettings(tls_certificate=two, tls_key=two)
        assert Settings(http=http, turn=own).turn_certificate == (two, two)


class TestProblems:
    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            (Settings(http=HttpSettings(host="localhost")), "http.host"),
            (Settings(http=HttpSettings(tls_certificate=Path(__file__))), "http.tls_certificate"),
            (Settings(http=HttpSettings(tls_certificate=Path("/no"), tls_key=Path("/no"))), "http.tls_certificate"),
            (Settings(http=HttpSettings(trusted_proxies=("10.0.0.0/33",))), "http.trusted_proxies"),
            (Settings(http=HttpSettings(cors_origins=("example.org",))), "http.cors_origins"),
            (Settings(media=MediaSettings(addresses=("eth0",))), "media.addresses"),
            (Settings(media=MediaSettings(announced_addresses=("me",))), "media.announced_addresses"),
            (Settings(configured_apps={"a/b": Secret("s" * 64)}), "apps"),
            (Settings(configured_apps={"app": Secret("short")}), "apps.app"),
            (Settings(configured_apps={"app": Secret("\u00e9" * 64)}), "apps.app"),
            (Settings(turn=RelaySettings(addresses=("eth0",))), "turn.addresses"),
            (Settings(turn=RelaySettings(relay_addresses=("eth0",))), "turn.relay_addresses"),
            (Settings(turn=RelaySettings(announced_addresses=("me",))), "turn.announced_addresses"),
            (Settings(turn=RelaySettings(allow_peers=("10.0.0.1/8",))), "turn.allow_peers"),
            (Settings(turn=RelaySettings(deny_peers=("example.org",))), "turn.deny_peers"),
            (Settings(turn=RelaySettings(tls_key=Path(__file__))), "turn.tls_certificate"),
            (Settings(turn=RelaySettings(tls_certificate=Path("/no"), tls_key=Path(__file__))), "turn.tls_certificate"),
            (Settings(turn=RelaySettings(keys={"a/b": Secret("t" * 64)})), "turn.keys"),
            (Settings(turn=RelaySettings(keys={"key": Secret("short")})), "turn.keys.key"),
            (Settings(turn=RelaySettings(shared_secrets=(Secret("short"),))), "turn.shared_secrets"),
            (Settings(turn=RelaySettings(credential_secret=Secret("short"))), "turn.credential_secret"),
            (Settings(turn=RelaySettings(users={"ada": Secret("")})), "turn.users"),
            (Settings(turn=RelaySettings(realm="r" * 25)), "turn.realm"),
            (Settings(turn=RelaySettings(realm="")), "turn.realm"),
            (Settings(turn=RelaySettings(relay_port_min=5000, relay_port_max=4000)), "turn.relay_port_min"),
            (Settings(turn=RelaySettings(credential_ttl=10.0, credential_ttl_max=5.0)), "turn.credential_ttl"),
            (Settings(turn=RelaySettings(udp=False, tcp=False)), "turn.udp"),
            (Settings(gateway=GatewaySettings(prefix="partytracks")), "gateway.prefix"),
            (Settings(gateway=GatewaySettings(prefix="/v1")), "gateway.prefix"),
            (Settings(gateway=GatewaySettings(prefix="/apps/x")), "gateway.prefix"),
            (Settings(gateway=GatewaySettings(prefix="/{x}")), "gateway.prefix"),
            (Settings(gateway=GatewaySettings(allowed_origins=("https://a/b",))), "gateway.allowed_origins"),
            (Settings(gateway=GatewaySettings(app_id="other")), "gateway.app_id"),
            (
                Settings(gateway=GatewaySettings(enabled=True), configured_apps={**APPS, "b": Secret("t" * 64)}),
                "gateway.app_id",
            ),
        ],
    )
    def test_each_is_reported_under_its_key(self, settings: Settings, key: str) -> None:
        assert key in [problem for problem, _ in settings.problems()]

    def test_the_defaults_have_none(self) -> None:
        assert list(Settings().problems()) == []


class TestSecret:
    def test_it_does_not_print(self) -> None:
        assert (
            "hidden"
            not in f"{Secret('hidden')!r} {Secret('hidden')} {Settings(configured_apps={'a': Secret('hidden')})}"
        )

    def test_equal_secrets_are_equal(self) -> None:
        assert Secret("a") == Secret("a")
        assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
        assert Secret("a") != "a"
