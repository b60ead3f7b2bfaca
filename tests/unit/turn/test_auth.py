import hmac
import itertools
import os
from collections.abc import Callable

import pytest

from tests.support import stun_vectors as vectors
from tests.support.turn_harness import PEER, REALM, UDP_RELAY, UNIX_TIME, Client, Harness, address, code
from turn.allocation import FiveTuple, Transport
from turn.auth import PASSWORD_ALGORITHMS, NonceSource
from turn.credentials import derive_keys, opaque_string, rest_password, userhash
from wire import stun
from wire.stun import Attr, Message, MessageClass, Method

FIVE_TUPLE = FiveTuple(Transport.UDP, address("9.9.9.9", 1000), address("198.41.0.4", 3478))


def echoes_identity(answer: Message) -> bool:
    return Attr.USERNAME in answer or Attr.USERHASH in answer


def is_full_challenge(answer: Message) -> bool:
    return (
        answer.text(Attr.REALM) == REALM
        and (answer.get(Attr.NONCE) or b"").startswith(b"obMatJos2")
        and answer.get(Attr.PASSWORD_ALGORITHMS) == PASSWORD_ALGORITHMS
        and not answer.has_integrity
    )


class TestOrderOfChecks:
    """RFC 8489 §9.2.4, rows L1 to L9."""

    def test_l1_no_integrity_is_401_with_a_challenge(self) -> None:
        answer = Client(Harness()).learn_nonce()
        assert is_full_challenge(answer)
        assert not echoes_identity(answer)

    @pytest.mark.parametrize("missing", ["username", "realm", "nonce"])
    def test_l2_integrity_without_identity_realm_or_nonce_is_400(self, missing: str) -> None:
        answer = Client(Harness()).allocate(**{missing: None})
        assert code(answer) == 400
        assert not echoes_identity(answer)
        assert Attr.REALM not in answer
        assert Attr.NONCE not in answer

    def test_l3_a_client_before_rfc_8489_is_served_with_md5_and_sha1(self) -> None:
        answer = Client(Harness()).allocate()
        assert code(answer) == 0
        assert answer.has_integrity
        assert not answer.has_integrity_sha256

    @pytest.mark.parametrize(
        "attributes",
        [
            [(Attr.PASSWORD_ALGORITHM, b"\0\2\0\0")],
            [(Attr.PASSWORD_ALGORITHMS, PASSWORD_ALGORITHMS)],
            [(Attr.PASSWORD_ALGORITHM, b"\0\1\0\0"), (Attr.PASSWORD_ALGORITHMS, b"\0\1\0\0")],
            [(Attr.PASSWORD_ALGORITHM, b"\0\3\0\0"), (Attr.PASSWORD_ALGORITHMS, PASSWORD_ALGORITHMS)],
            [(Attr.PASSWORD_ALGORITHM, b"\0\2"), (Attr.PASSWORD_ALGORITHMS, PASSWORD_ALGORITHMS)],
        ],
    )
    def test_l4_algorithm_and_list_that_do_not_fit_ours_are_400(self, attributes: list[tuple[int, bytes]]) -> None:
        assert code(Client(Harness()).allocate(*attributes)) == 400

    @pytest.mark.parametrize("user", ["nobody", "1700000000:late", "00" * 48])
    def test_l5_an_unknown_user_is_401_with_a_fresh_challenge(self, user: str) -> None:
        client = Client(Harness(), user, "x")
        client.learn_nonce()
        client.harness.now += 1
        answer = client.allocate()
        assert code(answer) == 401
        assert is_full_challenge(answer)
        assert answer.get(Attr.NONCE) != client.nonce

    def test_l5_an_unknown_userhash_is_401_too(self) -> None:
        answer = Client(Harness()).allocate((Attr.USERHASH, bytes(32)), username=None)
        assert code(answer) == 401

    def test_l5_another_realm_is_401(self) -> None:
        assert code(Client(Harness()).allocate(realm=b"elsewhere")) == 401

    def test_l6_a_wrong_password_is_401(self) -> None:
        answer = Client(Harness(), "alice", "wrong").allocate()
        assert code(answer) == 401
        assert is_full_challenge(answer)

    def test_l7_n3_a_stale_nonce_is_438_and_the_allocation_lives_on(self) -> None:
        harness = Harness(lifetime_max=3600)
        client = Client(harness)
        client.allocate((Attr.LIFETIME, stun.uint32(3600)))
        client.permit(PEER)
        harness.advance(600)
        assert code(client.refresh(3600)) == 0
        harness.advance(1)
        answer = client.refresh(3600)
        assert code(answer) == 438
        assert is_full_challenge(answer)
        assert harness.server.has_allocation(client.five_tuple)
        client.nonce = answer.get(Attr.NONCE) or b""
        assert code(client.refresh(3600)) == 0

    def test_l8_a_wrong_password_with_a_stale_nonce_is_401(self) -> None:
        client = Client(Harness(), "alice", "wrong")
        client.learn_nonce()
        client.harness.advance(601)
        assert code(client.allocate()) == 401

    def test_l9_of_two_integrity_attributes_only_sha256_decides(self) -> None:
        client = Client(Harness())
        client.learn_nonce()
        good = derive_keys("alice", REALM, "wonderland").md5
        for key, sha256_key, expected in ((b"wrong", good, 0), (good, b"wrong", 401)):
            data = stun.serialize(
                Method.ALLOCATE,
                MessageClass.REQUEST,
                os.urandom(12),
                [
                    (Attr.REQUESTED_TRANSPORT, UDP_RELAY),
                    (Attr.USERNAME, b"alice"),
                    (Attr.REALM, REALM.encode()),
                    (Attr.NONCE, client.nonce),
                ],
                key=key,
                sha256_key=sha256_key,
            )
            assert code(client.send(data)) == expected
            client.refresh(0)

    @pytest.mark.parametrize(
        ("algorithm", "key"), [("sha256", lambda keys: keys.sha256), ("md5", lambda keys: keys.md5)]
    )
    def test_i6_i8_password_algorithms_choose_the_key_and_sha256_signs_the_answer(
        self, algorithm: str, key: Callable[[object], bytes]
    ) -> None:
        client = Client(Harness(), algorithm=algorithm)
        answer = client.allocate()
        assert code(answer) == 0
        assert not answer.has_integrity
        assert answer.check_integrity_sha256(key(derive_keys("alice", REALM, "wonderland")))

    def test_i2_a_truncated_sha256_is_401(self) -> None:
        client = Client(Harness(), algorithm="sha256")
        client.learn_nonce()
        whole = client.build(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
        for size in (16, 20, 28):
            cut = whole[: -(36 - 4 - size)]
            cut = cut[: -size - 2] + size.to_bytes(2, "big") + cut[-size:]
            data = cut[:2] + (len(cut) - 20).to_bytes(2, "big") + cut[4:]
            assert code(client.send(data)) == 401

    @pytest.mark.parametrize("challenge_first", [True, False])
    def test_i8_errors_after_authentication_are_signed_and_challenges_are_not(self, challenge_first: bool) -> None:
        client = Client(Harness())
        answer = client.learn_nonce() if challenge_first else client.refresh()
        assert answer.has_integrity is not challenge_first

    @pytest.mark.parametrize(
        ("attribute", "value", "name"),
        [
            (Attr.USERNAME, b"u" * 509, "username"),
            (Attr.USERNAME, b"\xff\xfe", "username"),
            (Attr.REALM, b"r" * 128, "realm"),
            (Attr.REALM, b"\xc3", "realm"),
            (Attr.NONCE, b"n" * 128, "nonce"),
            (Attr.NONCE, b"\xff", "nonce"),
        ],
    )
    def test_s7_text_that_is_too_long_or_not_utf8_is_400(self, attribute: int, value: bytes, name: str) -> None:
        assert code(Client(Harness()).allocate(**{name: value})) == 400

    def test_s7_usernames_up_to_508_bytes_are_looked_up(self) -> None:
        assert code(Client(Harness()).allocate(username=b"u" * 508)) == 401

    def test_x17_unknown_user_and_wrong_password_get_the_same_answer(self) -> None:
        answers = []
        for user in ("alice", "nobody"):
            client = Client(Harness(), user, "wrong")
            answer = client.allocate()
            answers.append([(kind, len(value)) for kind, value in answer.attributes] + [answer.error()])
        assert answers[0] == answers[1]


def test_i3_integrity_and_nonces_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    original = hmac.compare_digest

    def compare_digest(a: bytes, b: bytes) -> bool:
        compared.append(len(b))
        return original(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert code(Client(Harness()).allocate()) == 0
    assert code(Client(Harness(), algorithm="sha256").allocate()) == 0
    assert {12, 20, 32} <= set(compared)  # nonce, SHA-1, SHA-256


class TestUserhash:
    """RFC 8489 §14.4, rule I9."""

    def test_i9_static_users_only_offer_anonymity_and_resolve_hashes(self) -> None:
        client = Client(Harness(static_only=True))
        client.learn_nonce()
        assert client.nonce.startswith(b"obMatJos2wAAA")
        answer = client.allocate((Attr.USERHASH, client.userhash), username=None)
        assert code(answer) == 0
        assert not echoes_identity(answer)
        assert code(client.refresh(600)) == 0

    def test_i9_with_names_that_cannot_be_enumerated_anonymity_is_not_offered(self) -> None:
        client = Client(Harness())
        client.learn_nonce()
        assert client.nonce.startswith(b"obMatJos2gAAA")
        assert code(client.allocate((Attr.USERHASH, client.userhash), username=None)) == 401

    def test_i9_published_value(self) -> None:
        message = stun.parse(vectors.LONG_TERM_SHA256_REQUEST)
        assert userhash(vectors.LONG_TERM_USER, vectors.LONG_TERM_REALM) == message.get(Attr.USERHASH)


class TestKeys:
    """RFC 8489 §9.2.2, §18.5.1; rule I6."""

    def test_i6_check_value(self) -> None:
        assert derive_keys("user", "realm", "pass").md5.hex() == "8493fbc53ba582fb4c044c456bdc40eb"

    def test_i6_published_requests_verify_under_the_derived_keys(self) -> None:
        keys = derive_keys(vectors.LONG_TERM_USER, vectors.LONG_TERM_REALM, vectors.LONG_TERM_PASSWORD)
        assert stun.parse(vectors.LONG_TERM_REQUEST).check_integrity(keys.md5)
        assert stun.parse(vectors.LONG_TERM_SHA256_REQUEST).check_integrity_sha256(keys.sha256)

    def test_opaque_string_maps_spaces_and_composes(self) -> None:
        assert opaque_string("a\u3000b") == "a b"
        assert opaque_string("cafe\u0301") == "caf\u00e9"
        assert opaque_string("マトリックス") == "マトリックス"

    @pytest.mark.parametrize("text", ["", "tab\t", "a\x00", "soft\u00adhyphen", "\ue000", "\u2028", "\ud800"])
    def test_opaque_string_refuses_what_the_profile_forbids(self, text: str) -> None:
        with pytest.raises(ValueError):
            opaque_string(text)


class TestNonce:
    """Rules N1 to N7."""

    def source(self, **options: float) -> NonceSource:
        return NonceSource(1 << 23, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("features", "text"), [(1 << 23, "gAAA"), (3 << 22, "wAAA"), (0, "AAAA")])
    def test_n1_cookie_and_feature_bits(self, features: int, text: str) -> None:
        nonce = NonceSource(features).make(FIVE_TUPLE, 0.0).decode()
        assert nonce.startswith("obMatJos2" + text)
        assert len(nonce) < 128
        assert nonce.isascii()

    def test_n2_no_two_clients_share_a_nonce_or_may_use_each_others(self) -> None:
        source = self.source()
        tuples = [
            FIVE_TUPLE._replace(client=address("9.9.9.9", 1001)),
            FIVE_TUPLE._replace(client=address("9.9.9.8", 1000)),
            FIVE_TUPLE._replace(transport=Transport.TCP),
            FIVE_TUPLE._replace(server=address("198.41.0.5", 3478)),
            FIVE_TUPLE,
        ]
        nonces = [source.make(t, 5.0).decode() for t in tuples]
        assert len(set(nonces)) == len(nonces)
        for (i, five_tuple), (k, nonce) in itertools.product(enumerate(tuples), enumerate(nonces)):
            assert source.check(nonce, five_tuple, 5.0) is (True if i == k else None)

    def test_n3_fresh_for_the_lifetime_then_stale(self) -> None:
        source = self.source(lifetime=600.0)
        nonce = source.make(FIVE_TUPLE, 1000.0).decode()
        assert source.check(nonce, FIVE_TUPLE, 1600.0) is True
        assert source.check(nonce, FIVE_TUPLE, 1601.0) is False

    def test_n5_a_forged_nonce_is_438_before_any_user_is_looked_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        client = Client(Harness(), "nobody", "x")
        monkeypatch.setattr(client.harness.authenticator, "_find", lambda *_: pytest.fail("looked up"))
        client.nonce = b"obMatJos2gAAA" + b"A" * 24
        assert code(client.allocate()) == 438

    def test_n6_keys_rotate_daily_and_the_previous_one_is_still_good(self) -> None:
        source = NonceSource(0, lifetime=3600.0)
        source.make(FIVE_TUPLE, 0.0)
        late = source.make(FIVE_TUPLE, 86000.0).decode()
        key = source._keys[0]
        assert source.check(late, FIVE_TUPLE, 86401.0) is True
        assert source._keys[1] == key
        assert source.check(late, FIVE_TUPLE, 2 * 86400.0 + 2) is None
        assert len(source._keys) == 2

    def test_n6_keys_come_from_the_system(self) -> None:
        """CVE-2025-69217: a weak generator made nonces and ports predictable; for ports see A22."""
        asked: list[int] = []

        def token_bytes(size: int) -> bytes:
            asked.append(size)
            return os.urandom(size)

        NonceSource(0, token_bytes=token_bytes)
        assert asked == [32]

    def test_n7_altered_feature_bits_are_438(self) -> None:
        client = Client(Harness())
        client.learn_nonce()
        client.nonce = client.nonce.replace(b"obMatJos2gAAA", b"obMatJos2AAAA")
        assert code(client.allocate()) == 438

    def test_any_changed_character_is_noticed(self) -> None:
        source = self.source()
        nonce = source.make(FIVE_TUPLE, 0.0).decode()
        for at in range(len(nonce)):
            changed = nonce[:at] + ("A" if nonce[at] != "A" else "B") + nonce[at + 1 :]
            assert source.check(changed, FIVE_TUPLE, 0.0) is None, at
        for text in ("", "x", nonce + "A", nonce[:-1], nonce[:13] + "é" * 24, nonce[:13] + "=" * 24):
            assert source.check(text, FIVE_TUPLE, 0.0) is None

    def test_n4_thousands_of_strangers_leave_nothing_behind(self) -> None:
        harness = Harness()
        request = stun.serialize(
            Method.ALLOCATE, MessageClass.REQUEST, b"x" * 12, [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)]
        )
        before = harness.server.live_counts()
        buckets = len(harness.server._error_limiter._slots)
        for n in range(5000):
            source = address(f"9.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1 + n % 60000)
            harness.receive(request, FIVE_TUPLE._replace(client=source))
        assert harness.server.live_counts() == before
        assert harness.server.next_timeout() is None
        assert len(harness.server._error_limiter._slots) == buckets


class TestRestAndIssuedNames:
    """E1 to E4 through the whole server."""

    def client(self, harness: Harness, username: str) -> Client:
        return Client(harness, username, rest_password(b"north", username))

    def test_e1_a_time_limited_name_with_the_derived_password_is_accepted(self) -> None:
        assert code(self.client(Harness(), f"{int(UNIX_TIME) + 60}:carol").allocate()) == 0

    def test_e2_once_expired_it_is_401(self) -> None:
        harness = Harness()
        client = self.client(harness, f"{int(UNIX_TIME) + 60}:carol")
        harness.unix_time += 60
        assert code(client.allocate()) == 401

    def test_e4_by_default_a_call_goes_on_after_the_name_expired_but_not_for_ever(self) -> None:
        harness = Harness(session_max=7200.0)
        client = self.client(harness, f"{int(UNIX_TIME) + 60}:carol")
        client.allocate()
        for _ in range(7200 // 300 - 1):
            harness.advance(300)
            harness.unix_time += 300
            client.nonce = b""
            assert code(client.refresh(600)) == 0
        harness.advance(301)
        assert not harness.server.has_allocation(client.five_tuple)

    def test_e4_strict_expiry_closes_the_allocation_with_the_name(self) -> None:
        harness = Harness(strict_expiry=True)
        client = self.client(harness, f"{int(UNIX_TIME) + 700}:carol")
        client.allocate()
        harness.advance(500)
        harness.unix_time += 500
        answer = client.refresh(600)
        assert answer.uint(Attr.LIFETIME) == 200
        harness.advance(199)
        assert harness.server.has_allocation(client.five_tuple)
        harness.unix_time += 201
        client.nonce = b""
        assert code(client.refresh(600)) == 401
        harness.advance(1)
        assert not harness.server.has_allocation(client.five_tuple)

    def test_issued_credentials_work_until_they_are_revoked(self) -> None:
        harness = Harness()
        issued = harness.issuer.issue("key", 3600, UNIX_TIME)
        client = Client(harness, issued.username, issued.credential)
        assert code(client.allocate()) == 0
        harness.issuer.revoke("key", issued.username, UNIX_TIME)
        harness.server.revoke(issued.username)
        assert not harness.server.has_allocation(client.five_tuple)
        assert code(client.allocate()) == 401

    def test_e7_a_fresh_name_of_the_same_id_shares_the_quota(self) -> None:
        harness = Harness(allocations_per_user=1)
        assert code(self.client(harness, f"{int(UNIX_TIME) + 60}:carol").allocate()) == 0
        assert code(self.client(harness, f"{int(UNIX_TIME) + 61}:carol").allocate()) == 486
        assert code(self.client(harness, f"{int(UNIX_TIME) + 61}:dave").allocate()) == 0

    def test_e7_without_an_id_the_name_and_the_address_are_the_identity(self) -> None:
        harness = Harness(allocations_per_user=1)
        name = f"{int(UNIX_TIME) + 60}"
        codes = [
            code(Client(harness, name, rest_password(b"north", name), host=host).allocate())
            for host in ("9.9.9.1", "9.9.9.1", "9.9.9.2")
        ]
        assert codes == [0, 486, 0]

    @pytest.mark.parametrize("name", ["%s%n%x", "'; drop table users; --", "${jndi:ldap://x}", "a\nb"])
    def test_names_are_data_never_format_strings(self, name: str) -> None:
        """GHSA-4g7c-p5wg-j4hp, GHSA-v8hj-2xx7-xmp5, CVE-2018-4056."""
        assert code(Client(Harness(), name, "x").allocate()) == 401
