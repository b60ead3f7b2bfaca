"""The command line, without a server."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

import torpor
from torpor.cli import announce, run
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, HttpSettings, Secret, Settings
from torpor.lifespan import Ports
from torpor.sources import all_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TORPOR_CONFIG", "TORPOR_APP_ID", "TORPOR_APP_SECRET"):
        monkeypatch.delenv(name, raising=False)


class TestCheck:
    def test_it_prints_the_settings_in_force_as_a_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["check", "--port", "9", "--http-body-timeout", "3", "--log-level=debug"]) == 0
        document = tomllib.loads(capsys.readouterr().out)
        assert document["http"]["port"] == 9
        assert document["http"]["body_timeout"] == 3.0
        assert document["log"]["level"] == "debug"
        assert document["apps"] == {DEVELOPMENT_APP_ID: "***"}

    def test_what_would_be_refused_is_2_with_the_reason(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["check", "--host", "0.0.0.0"]) == 2
        assert "no app is configured" in capsys.readouterr().err

    def test_a_wrong_value_is_2_with_flag_and_key(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["check", "--port", "many"]) == 2
        assert capsys.readouterr().err == "torpor: --http-port: http.port: 'many' is not a whole number\n"

    def test_secrets_never_show(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TORPOR_APP_ID", "app")
        monkeypatch.setenv("TORPOR_APP_SECRET", "hunter2" * 8)
        monkeypatch.setenv("TORPOR_TURN_KEY_ID", "key")
        monkeypatch.setenv("TORPOR_TURN_KEY_TOKEN", "hunter2" * 8)
        monkeypatch.setenv("TORPOR_TURN_SHARED_SECRETS", "hunter2" * 8)
        monkeypatch.setenv("TORPOR_TURN_CREDENTIAL_SECRET", "hunter2" * 8)
        monkeypatch.setenv("TORPOR_ROOMS_ADMIN_TOKEN", "hunter2" * 8)
        assert run(["check"]) == 0
        assert "hunter2" not in "".join(capsys.readouterr())


class TestRooms:
    def test_classes_are_shown_by_check_which_loads_them(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "cli_rooms.py").write_text("from partykit_compat import Server\nclass Chat(Server): ...\n")
        assert run(["check", "--port", "9", "cli_rooms.py", "lobby=cli_rooms:Chat"]) == 0
        parties = tomllib.loads(capsys.readouterr().out)["parties"]
        assert parties == {"main": "cli_rooms.py:Chat", "lobby": "cli_rooms:Chat"}
        assert run(["check", "cli_rooms:Nobody"]) == 2
        assert "party main: cli_rooms:Nobody is not a class" in capsys.readouterr().err
        del sys.modules["cli_rooms"]

    def test_a_list_of_a_server_that_is_not_there_is_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["rooms", "--url", "http://127.0.0.1:9"]) == 2
        assert capsys.readouterr().err.startswith("torpor: http://127.0.0.1:9: ")

    def test_development_shows_where_rooms_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        announce(Settings(parties={"main": "app:Chat"}), Ports(8787))
        assert "room        http://127.0.0.1:8787/parties/main/<room>" in capsys.readouterr().out


class TestGrammar:
    def test_every_setting_has_a_flag_but_for_secrets(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run(["serve", "--help"])
        text = capsys.readouterr().out
        missing = [setting.key for setting in all_settings() if setting.flag not in text]
        secrets = ["turn.keys", "turn.users", "turn.shared_secrets", "turn.credential_secret", "rooms.admin_token"]
        assert missing == secrets

    @pytest.mark.parametrize("arguments", [[], ["dance"], ["serve", "--prot", "1"], ["serve", "--http-por", "1"]])
    def test_what_it_does_not_know_is_2(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        assert caught.value.code == 2

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"torpor {torpor.__version__}\n"


class TestOpenapi:
    def test_it_prints_the_document_whatever_the_settings_are(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORPOR_HTTP_PORT", "nonsense")
        assert run(["openapi"]) == 0
        assert json.loads(capsys.readouterr().out)["openapi"].startswith("3.1")


class TestAnnouncement:
    def test_development_shows_the_page_and_the_credentials(self, capsys: pytest.CaptureFixture[str]) -> None:
        announce(Settings(http=HttpSettings(host="::1")), Ports(8787, 8787, 3478))
        text = capsys.readouterr().out
        assert "http://[::1]:8787/\n" in text
        assert f"TORPOR_APP_ID={DEVELOPMENT_APP_ID}" in text
        assert f"TORPOR_APP_SECRET={DEVELOPMENT_APP_SECRET}" in text
        assert "TURN        port 3478" in text

    def test_production_shows_no_secret(self, capsys: pytest.CaptureFixture[str]) -> None:
        announce(Settings(configured_apps={"app": Secret("hunter2" * 8)}), Ports(8787))
        assert "hunter2" not in "".join(capsys.readouterr())
