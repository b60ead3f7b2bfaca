import os
from pathlib import Path

import pytest

from tests.support.turn_sockets import serving
from turn.credentials import CredentialIssuer
from turn.revocations import Revocations

NOW = 1_800_000_000.0
SECRET = b"0123456789abcdef"


def test_a_revocation_outlives_a_restart_with_the_same_secret_and_file(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    revocations = Revocations(path)
    revocations.load(NOW)
    issuer = CredentialIssuer(SECRET, "r", revocations)
    issued, other = issuer.issue("key", 60, NOW, "carol@example.org"), issuer.issue("key", 60, NOW)
    issuer.revoke("key", issued.username, NOW)

    again = Revocations(path)
    again.load(NOW + 1)
    restarted = CredentialIssuer(SECRET, "r", again)
    assert restarted.find(issued.username, NOW + 1) is None
    assert restarted.find(other.username, NOW + 1) is not None


def test_the_file_is_private_and_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    Revocations(path).add("carol@example.org", NOW + 60, NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "carol" not in path.read_text()


def test_loading_drops_what_has_expired_and_what_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    revocations = Revocations(path)
    revocations.add("early", NOW + 10, NOW)
    revocations.add("late", NOW + 100, NOW)
    with path.open("a") as file:
        file.write("1800000100 abc")
    again = Revocations(path)
    again.load(NOW + 50)
    assert ("early" in again, "late" in again, len(again)) == (False, True, 1)
    assert len(path.read_text().splitlines()) == 1
    assert not list(tmp_path.glob("*.new"))


def test_a_name_is_written_once_and_an_expired_one_never(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    revocations = Revocations(path)
    for _ in range(3):
        revocations.add("name", NOW + 60, NOW)
    revocations.add("over", NOW, NOW)
    assert len(path.read_text().splitlines()) == len(revocations) == 1


def test_a_file_that_cannot_be_written_is_told_and_the_revocation_still_counts(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path / "missing" / "revoked")
    with pytest.raises(OSError):
        revocations.add("name", NOW + 60, NOW)
    assert "name" in revocations


def test_what_could_not_be_written_is_written_with_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    path = folder / "revoked"
    revocations = Revocations(path)
    with pytest.raises(OSError):
        revocations.add("name", NOW + 60, NOW)
    with pytest.raises(OSError):  # asking again is no success either
        revocations.add("name", NOW + 60, NOW)
    folder.mkdir()
    path.write_text("1800000060 abc")  # half a line, as a full disk leaves it
    revocations.add("other", NOW + 60, NOW)
    revocations.add("third", NOW + 60, NOW)
    again = Revocations(path)
    again.load(NOW)
    assert ("name" in again, "other" in again, "third" in again, len(again)) == (True, True, True, 3)


async def test_the_service_keeps_them(tmp_path: Path) -> None:
    options = {"credential_secret": "s" * 16, "keys": {"k": "t"}, "revocations_file": tmp_path / "revoked"}
    async with serving(**options) as service:
        username = service.issue(60, key_id="k").username
        service.revoke("k", username)
    async with serving(**options) as service:
        assert service._issuer.find(username, service._wall_clock()) is None
    assert os.listdir(tmp_path) == ["revoked"]
