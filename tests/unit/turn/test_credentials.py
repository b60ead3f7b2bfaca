import base64
import hashlib
import hmac
from dataclasses import replace

import pytest

from turn.credentials import (
    CredentialChain,
    CredentialIssuer,
    RestSecrets,
    StaticUsers,
    derive_keys,
    userhash,
)
from turn.errors import ConfigurationError, InvalidParams, UnknownCredential
from turn.settings import TurnSettings

NOW = 1_800_000_000.0
SECRET = b"0123456789abcdef"


class TestStaticUsers:
    """E5."""

    def test_e5_keys_per_realm_and_no_password_is_kept(self) -> None:
        """I7: nothing that is stored, printed or pickled holds the password."""
        users = StaticUsers({"alice": "wonderland"}, "example.org")
        found = users.find("alice", NOW)
        assert found is not None
        assert found.keys == (derive_keys("alice", "example.org", "wonderland"),)
        assert found.expires_at is None
        assert "wonderland" not in repr(vars(users)) + repr(found)

    def test_unknown(self) -> None:
        assert StaticUsers({"alice": "x"}, "r").find("bob", NOW) is None

    def test_names_are_prepared(self) -> None:
        users = StaticUsers({"cafe\u0301": "x"}, "r")
        assert users.find("caf\u00e9", NOW) is not None
        assert users.username_of(userhash("caf\u00e9", "r")) == "caf\u00e9"

    def test_a_name_that_the_profile_forbids_stops_the_start(self) -> None:
        with pytest.raises(ConfigurationError):
            StaticUsers({"a\tb": "x"}, "r")


class TestRestSecrets:
    """draft-uberti-behave-turn-rest-00."""

    def test_e1_password_is_base64_of_the_hmac(self) -> None:
        name = f"{int(NOW) + 60}:carol"
        password = base64.b64encode(hmac.new(b"north", name.encode(), hashlib.sha1).digest()).decode()
        found = RestSecrets(["north"], "r").find(name, NOW)
        assert found is not None
        assert found.keys == (derive_keys(name, "r", password),)
        assert found.expires_at == int(NOW) + 60

    @pytest.mark.parametrize(
        "name",
        [
            f"{int(NOW)}:x", f"{int(NOW) - 1}:x", "0:x", "-1:x", "+1900000000:x", "1900000000.5:x", "", ":x",
            "x:1900000000", f"{int(NOW) + 48 * 3600 + 1}:x", "9" * 400 + ":x", "١٩٠٠٠٠٠٠٠٠:x",
            " 1800000060:x", "1_800_000_060:x",
        ],
    )  # fmt: skip
    def test_e2_expired_far_away_or_not_a_number_is_refused(self, name: str) -> None:
        assert RestSecrets(["north"], "r").find(name, NOW) is None

    def test_e2_the_last_allowed_second(self) -> None:
        assert RestSecrets(["north"], "r").find(f"{int(NOW) + 48 * 3600}", NOW) is not None

    def test_e3_every_secret_counts_while_they_rotate(self) -> None:
        name = f"{int(NOW) + 60}:x"
        both = RestSecrets(["old", "new"], "r").find(name, NOW)
        new = RestSecrets(["new"], "r").find(name, NOW)
        assert both is not None
        assert new is not None
        assert len(both.keys) == 2
        assert new.keys == both.keys[1:]

    def test_without_secrets_no_name_is_valid(self) -> None:
        assert RestSecrets([], "r").find(f"{int(NOW) + 60}:x", NOW) is None

    def test_another_separator(self) -> None:
        found = RestSecrets(["s"], "r", separator="-").find(f"{int(NOW) + 60}-carol", NOW)
        assert found is not None
        assert found.quota_identity == "rest:carol"


class TestCredentialIssuer:
    def test_issued_names_are_valid_for_their_time_and_end_allocations_with_it(self) -> None:
        issuer = CredentialIssuer(SECRET, "r")
        issued = issuer.issue("key", 60, NOW)
        found = issuer.find(issued.username, NOW + 59)
        assert found is not None
        assert found.keys == (derive_keys(issued.username, "r", issued.credential),)
        assert found.strict_expiry
        assert issuer.find(issued.username, NOW + 60) is None

    def test_another_process_with_the_same_secret_accepts_them(self) -> None:
        issued = CredentialIssuer(SECRET, "r").issue("key", 60, NOW)
        found = CredentialIssuer(SECRET, "r").find(issued.username, NOW)
        assert found is not None
        assert found.keys == (derive_keys(issued.username, "r", issued.credential),)
        assert CredentialIssuer(b"another-secret-of-16", "r").find(issued.username, NOW) is None

    def test_any_changed_digit_is_refused(self) -> None:
        issuer = CredentialIssuer(SECRET, "r")
        name = issuer.issue("key", 60, NOW, "someone").username
        for at in range(len(name)):
            changed = name[:at] + ("0" if name[at] != "0" else "1") + name[at + 1 :]
            assert issuer.find(changed, NOW) is None

    def test_g6_default_ports(self) -> None:
        assert (TurnSettings().port, TurnSettings().tls_port) == (3478, 5349)

    @pytest.mark.parametrize(
        "change", [str.upper, lambda n: n + " ", lambda n: " ".join(n), lambda n: n[:-2], lambda n: n * 4]
    )
    def test_one_spelling_per_credential(self, change: object) -> None:
        """A second spelling would outlive the revocation of the first."""
        issuer = CredentialIssuer(SECRET, "r")
        assert callable(change)
        assert issuer.find(change(issuer.issue("key", 60, NOW).username), NOW) is None

    def test_revocation_needs_the_key_it_was_issued_under(self) -> None:
        issuer = CredentialIssuer(SECRET, "r")
        issued = issuer.issue("key", 60, NOW)
        with pytest.raises(UnknownCredential):
            issuer.revoke("other", issued.username, NOW)
        with pytest.raises(UnknownCredential):
            issuer.revoke("key", "00" * 48, NOW)
        assert issuer.find(issued.username, NOW) is not None
        issuer.revoke("key", issued.username, NOW)
        assert issuer.find(issued.username, NOW) is None

    def test_revocations_are_forgotten_once_the_credential_has_expired_anyway(self) -> None:
        issuer = CredentialIssuer(SECRET, "r")
        for n in range(10):
            issuer.revoke("key", issuer.issue("key", 60, NOW + n).username, NOW + n)
        assert len(issuer._revocations) == 10
        issuer.revoke("key", issuer.issue("key", 60, NOW + 100).username, NOW + 100)
        assert len(issuer._revocations) == 1

    def test_identifiers_have_a_limit_and_secrets_a_minimum(self) -> None:
        with pytest.raises(InvalidParams):
            CredentialIssuer(SECRET, "r").issue("key", 60, NOW, "é" * 65)
        with pytest.raises(ConfigurationError):
            CredentialIssuer(b"short", "r")


def test_a_chain_asks_each_source_in_turn() -> None:
    chain = CredentialChain([StaticUsers({"a": "1"}, "r"), StaticUsers({"a": "2", "b": "2"}, "r")])
    first = chain.find("a", NOW)
    assert first is not None
    assert first.keys == (derive_keys("a", "r", "1"),)
    assert chain.find("b", NOW) is not None
    assert chain.find("c", NOW) is None


class TestSettings:
    def test_secrets_are_not_printed(self) -> None:
        """I7, X22."""
        settings = TurnSettings(
            users={"a": "wonderland"},
            rest_secrets=("north-secret",),
            keys={"k": "token-x"},
            credential_secret="sealing",
        )
        assert not any(secret in repr(settings) for secret in ("wonderland", "north-secret", "token-x", "sealing"))

    @pytest.mark.parametrize(
        "change",
        [
            {"realm": ""}, {"realm": "r" * 25}, {"nonce_lifetime": 3601.0}, {"nonce_lifetime": 0.0},
            {"listen_addresses": ()}, {"channels_max": 0}, {"permissions_max": 1025}, {"lifetime_max": 599},
            {"credential_ttl": 0.0}, {"threads": 0},
            {"credential_ttl": 200000.0}, {"allocations_max": 0},
        ],
    )  # fmt: skip
    def test_what_cannot_be_served_stops_the_start(self, change: dict[str, object]) -> None:
        TurnSettings().check()
        with pytest.raises(ConfigurationError):
            replace(TurnSettings(), **change).check()  # type: ignore[arg-type]
