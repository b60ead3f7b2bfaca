"""Defaults < file < environment < command line, and nothing unknown in any of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.config import LogSettings, RelaySettings, Secret, Settings
from torpor.errors import SettingError
from torpor.sources import all_settings, describe, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "torpor.toml"


def load_file(file: Path, text: str, **environment: str) -> Settings:
    file.write_text(text)
    return load(file=file, environment=environment, flags={})


class TestOrder:
    def test_each_source_beats_the_one_before(self, file: Path) -> None:
        text = "[http]\nport = 2\nbody_timeout = 2\nkeep_alive_timeout = 2\n"
        file.write_text(text)
        environment = {"TORPOR_HTTP_BODY_TIMEOUT": "3", "TORPOR_HTTP_KEEP_ALIVE_TIMEOUT": "3"}
        http = load(file=file, environment=environment, flags={"http.keep_alive_timeout": "4"}).http
        assert (http.header_timeout, http.port, http.body_timeout, http.keep_alive_timeout) == (10.0, 2, 3.0, 4)

    def test_without_any_source_there_are_the_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert load(file=None, environment={"HOME": "/", "PORT": "1"}, flags={}) == Settings()

    def test_a_file_in_the_working_directory_is_read(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text('[log]\nlevel = "debug"\n')
        monkeypatch.chdir(file.parent)
        assert load(file=None, environment={}, flags={}).log == LogSettings(level="debug")

    def test_the_environment_can_name_the_file(self, file: Path) -> None:
        file.write_text("[http]\nport = 5\n")
        assert load(file=None, environment={"TORPOR_CONFIG": str(file)}, flags={}).http.port == 5


class TestValues:
    def test_every_type_is_read_from_the_environment(self) -> None:
        environment = {
            "TORPOR_HTTP_PORT": "0",
            "TORPOR_HTTP_ACCESS_LOG": "Yes",
            "TORPOR_HTTP_CORS_ORIGINS": "https://a.example, https://b.example",
            "TORPOR_HTTP_TRUSTED_PROXIES": "",
            "TORPOR_MEDIA_PORT": "",
            "TORPOR_GATEWAY_ENABLED": "off",
            "TORPOR_GATEWAY_APP_ID": "",
            "TORPOR_EVENTS_HEARTBEAT": "0.5",
            "TORPOR_LOG_FORMAT": "json",
        }
        settings = load(file=Path("/dev/null"), environment=environment, flags={})
        assert settings.http.port == 0
        assert settings.http.access_log is True
        assert settings.http.cors_origins == ("https://a.example", "https://b.example")
        assert settings.http.trusted_proxies == ()
        assert settings.media.port is None
        assert settings.gateway.enabled is False
        assert settings.gateway.app_id is None
        assert settings.events.heartbeat == 0.5
        assert settings.log.format == "json"

    def test_every_type_is_read_from_the_file(self, file: Path) -> None:
        text = """
            [http]
            tls_certificate = "FILE"
            tls_key = "FILE"
            cors_origins = ["*"]
            access_log = true
            body_timeout = 5
            [apps]
            alpha = "SECRET"
            """.replace("FILE", str(file)).replace("SECRET", "a" * 64)
        settings = load_file(file, text, TORPOR_APP_ID="beta", TORPOR_APP_SECRET="b" * 64)
        assert settings.http.tls_key == file
        assert settings.http.body_timeout == 5.0
        assert isinstance(settings.http.body_timeout, float)
        assert settings.apps == {"alpha": Secret("a" * 64), "beta": Secret("b" * 64)}

    def test_secrets_of_turn_are_read_from_the_file_and_from_the_environment(self, file: Path) -> None:
        text = """
            [turn]
            shared_secrets = ["SECRET"]
            credential_secret = "SECRET"
            [turn.keys]
            alpha = "SECRET"
            [turn.users]
            ada = "lovelace"
            """.replace("SECRET", "a" * 64)
        turn = load_file(file, text, TORPOR_TURN_KEY_ID="beta", TORPOR_TURN_KEY_TOKEN="b" * 64).turn
        assert turn.keys == {"alpha": Secret("a" * 64), "beta": Secret("b" * 64)}
        assert turn.users == {"ada": Secret("lovelace")}
        assert turn.shared_secrets == (Secret("a" * 64),)
        assert turn.credential_secret == Secret("a" * 64)
        environment = {
            "TORPOR_TURN_SHARED_SECRETS": f"{'c' * 32},{'d' * 32}",
            "TORPOR_TURN_CREDENTIAL_SECRET": "e" * 32,
        }
        turn = load_file(file, text, **environment).turn
        assert turn.shared_secrets == (Secret("c" * 32), Secret("d" * 32))
        assert turn.credential_secret == Secret("e" * 32)

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("[http]\nprot = 1", "http.prot"),
            ("[htp]\nport = 1", "htp.port"),
            ("port = 1", "port"),
            ('[http]\nport = "1"', "http.port"),
            ("[http]\nport = 1.5", "http.port"),
            ("[http]\nport = true", "http.port"),
            ("[http]\nport = 65536", "http.port"),
            ("[http]\nbody_timeout = nan", "http.body_timeout"),
            ("[http]\nbody_timeout = 0", "http.body_timeout"),
            ("[http]\nhost = 7", "http.host"),
            ("[http]\naccess_log = 1", "http.access_log"),
            ('[http]\ncors_origins = "*"', "http.cors_origins"),
            ("[http]\ncors_origins = [1]", "http.cors_origins"),
            ("[http]\ntls_key = 1", "http.tls_key"),
            ('[log]\nlevel = "loud"', "log.level"),
            ("[apps]\na = 1", "apps.a"),
            ('[apps]\na = "short"', "apps.a"),
            ("[turn]\nkeys = 1", "turn.keys"),
            ("[turn.keys]\na = 1", "turn.keys.a"),
            ('[turn.keys]\na = "short"', "turn.keys.a"),
            ('[turn]\nshared_secrets = "a"', "turn.shared_secrets"),
            ("[turn]\ncredential_secret = 1", "turn.credential_secret"),
            ("[http", "file"),
        ],
    )
    def test_a_bad_file_is_an_error_that_names_key_and_file(self, file: Path, text: str, key: str) -> None:
        with pytest.raises(SettingError) as caught:
            load_file(file, text)
        assert (caught.value.key, caught.value.source) == (key, str(file))
        assert key in str(caught.value)

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("TORPOR_HTTP_PROT", "1"),
            ("TORPOR_PORT", "1"),
            ("TORPOR_TURN_KEYS", "a"),
            ("TORPOR_TURN_SHARED_SECRETS", "short"),
            ("TORPOR_HTTP_PORT", "x"),
            ("TORPOR_HTTP_PORT", ""),
            ("TORPOR_HTTP_ACCESS_LOG", "maybe"),
            ("TORPOR_LOG_LEVEL", "LOUD"),
            ("TORPOR_HTTP_HOST", "localhost"),
        ],
    )
    def test_a_bad_variable_is_an_error_that_names_it(self, variable: str, text: str) -> None:
        with pytest.raises(SettingError, match=variable):
            load(file=Path("/dev/null"), environment={variable: text}, flags={})

    @pytest.mark.parametrize("one", ["TORPOR_APP_ID", "TORPOR_APP_SECRET"])
    def test_id_and_secret_go_together(self, one: str) -> None:
        with pytest.raises(SettingError, match="go together"):
            load(file=Path("/dev/null"), environment={one: "x" * 32}, flags={})

    @pytest.mark.parametrize("one", ["TORPOR_TURN_KEY_ID", "TORPOR_TURN_KEY_TOKEN"])
    def test_key_and_token_go_together(self, one: str) -> None:
        with pytest.raises(SettingError, match="go together"):
            load(file=Path("/dev/null"), environment={one: "x" * 32}, flags={})

    def test_a_missing_file_is_an_error(self, file: Path) -> None:
        with pytest.raises(SettingError, match="No such file"):
            load(file=file, environment={}, flags={})

    def test_a_bad_secret_is_not_repeated(self, file: Path) -> None:
        with pytest.raises(SettingError) as caught:
            load_file(file, '[apps]\na = "hunter2"')
        assert "hunter2" not in str(caught.value)

    @given(st.dictionaries(st.sampled_from([s.variable for s in all_settings()]), st.text(max_size=20), max_size=3))
    def test_any_text_is_a_setting_or_a_setting_error(self, environment: dict[str, str]) -> None:
        try:
            settings = load(file=Path("/dev/null"), environment=environment, flags={})
        except SettingError:
            return
        assert not math.isnan(settings.http.body_timeout)


class TestDescription:
    def test_it_is_a_file_that_means_the_same(self, file: Path) -> None:
        settings = Settings()
        again = load_file(file, describe(settings, apps=[]))
        assert again == settings

    def test_secrets_are_masked_and_absence_is_explained(self) -> None:
        turn = RelaySettings(
            keys={"beta": Secret("a" * 64)}, shared_secrets=(Secret("a" * 64),), credential_secret=Secret("a" * 64)
        )
        settings = Settings(configured_apps={"alpha": Secret("a" * 64)}, turn=turn)
        text = describe(settings, apps=["alpha"])
        assert 'alpha = "***"' in text
        assert 'keys = {"beta" = "***"}\n' in text
        assert 'shared_secrets = ["***"]\ncredential_secret = "***"\n' in text
        assert "aaaa" not in text
        assert "# port is not set: " in text

    def test_names_are_the_same_everywhere(self) -> None:
        port = next(setting for setting in all_settings() if setting.key == "http.port")
        assert (port.variable, port.flag) == ("TORPOR_HTTP_PORT", "--http-port")
