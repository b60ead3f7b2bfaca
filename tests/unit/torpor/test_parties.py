"""From the command line and the file to classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.errors import StartRefused
from torpor.parties import load_parties, name_parties

CODE = """\
from partykit_compat import Server

class Chat(Server):
    class Inner(Server): ...

class ChatRoom2(Server): ...

class Helper: ...
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "rooms_for_a_test.py").write_text(CODE)
    (tmp_path / "empty_for_a_test.py").write_text("from partykit_compat import Server\n")
    yield "rooms_for_a_test"
    for name in set(sys.modules) - before:
        del sys.modules[name]


class TestNames:
    def test_the_first_without_a_name_is_main_the_others_are_called_as_their_class(self, module: str) -> None:
        assert name_parties([f"{module}:Chat", f"{module}:ChatRoom2", f"lobby={module}:Chat"]) == {
            "main": f"{module}:Chat",
            "chat-room2": f"{module}:ChatRoom2",
            "lobby": f"{module}:Chat",
        }

    def test_without_a_class_every_server_that_the_module_defines(self, module: str) -> None:
        for place in (module, f"{module}.py"):
            assert name_parties([place]) == {"main": f"{place}:Chat", "chat-room2": f"{place}:ChatRoom2"}

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["rooms_for_a_test:Chat", "main=rooms_for_a_test:ChatRoom2"], "two parties are called 'main'"),
            (["x=rooms_for_a_test"], "name each"),
            (["empty_for_a_test"], "defines no class"),
            (["nowhere.py"], "nowhere.py cannot be loaded: ModuleNotFoundError"),
        ],
    )
    def test_what_cannot_be_named_is_refused(self, arguments: list[str], reason: str) -> None:
        with pytest.raises(StartRefused, match=reason):
            name_parties(arguments)


class TestLoading:
    def test_classes_are_found_by_module_and_by_file(self, module: str) -> None:
        loaded = load_parties({"a": f"{module}:Chat", "b": f"{module}.py:Chat", "c": f"{module}:Chat.Inner"})
        assert loaded["a"] is loaded["b"]
        assert loaded["c"].__qualname__ == "Chat.Inner"

    @pytest.mark.parametrize("name", ["Helper", "Nobody", "Chat.Nobody", "Nobody.Chat"])
    def test_what_is_no_server_is_refused(self, module: str, name: str) -> None:
        with pytest.raises(StartRefused, match=f"party main: {module}:{name} is not a class"):
            load_parties({"main": f"{module}:{name}"})

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("x = 1\ndef half(:\n", r"SyntaxError: invalid syntax \(.*broken_for_a_test.py:2\)"),
            ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*broken_for_a_test.py:3\)"),
            ("import no_such_module\n", r"No module named 'no_such_module' \(.*broken_for_a_test.py:1\)"),
        ],
    )
    def test_code_that_fails_is_named_with_its_line(self, tmp_path: Path, code: str, reason: str) -> None:
        (tmp_path / "broken_for_a_test.py").write_text(code)
        with pytest.raises(StartRefused, match=reason):
            load_parties({"main": "broken_for_a_test:Chat"})

    def test_a_file_that_is_called_like_another_module_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "json.py").write_text(CODE)
        with pytest.raises(StartRefused, match="same module name"):
            load_parties({"main": "json.py:Chat"})
