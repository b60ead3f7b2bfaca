"""E6: credentials that live elsewhere."""

import pytest

from tests.support.turn_harness import UDP_RELAY, UNIX_TIME, Client, Harness, code
from turn.allocation import Transport
from turn.events import CredentialWanted
from turn.lookup import REMEMBERED_MAX, LookupPending, RemoteCredentials
from wire import stun
from wire.stun import Attr, Method


def waiting_client(harness: Harness, user: str = "zoe", **options: object) -> tuple[Client, bytes]:
    """A client whose Allocate waits for the look-up of its user."""
    client = Client(harness, user, "secret", **options)  # type: ignore[arg-type]
    client.learn_nonce()
    request = client.build(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
    assert client.send(request) is None
    return client, request


def answers(harness: Harness) -> list[int]:
    return [code(stun.parse(data)) for _, data in harness.server.messages_to_send()]


class TestLookup:
    def test_e6_the_request_waits_and_is_answered_once_the_password_is_known(self) -> None:
        harness = Harness(remote=True)
        client, _ = waiting_client(harness)
        assert harness.server.events_received() == [CredentialWanted("zoe")]
        assert harness.server.waiting() == {client.five_tuple}
        harness.remote.remember("zoe", "secret", harness.unix_time)
        harness.server.receive_credential("zoe", harness.now)
        assert answers(harness) == [0]
        assert harness.server.has_allocation(client.five_tuple)
        assert not harness.server.waiting()

    @pytest.mark.parametrize("password", [None, "another"])
    def test_e6_an_unknown_user_or_a_wrong_password_is_401(self, password: str | None) -> None:
        harness = Harness(remote=True)
        waiting_client(harness)
        harness.remote.remember("zoe", password, harness.unix_time)
        harness.server.receive_credential("zoe", harness.now)
        assert answers(harness) == [401]

    def test_e6_after_two_seconds_it_is_500_and_no_state_is_left(self) -> None:
        harness = Harness(remote=True)
        waiting_client(harness)
        assert harness.server.next_timeout() == harness.now + 2
        harness.advance(2)
        assert answers(harness) == [500]
        harness.server.receive_credential("zoe", harness.now)
        assert answers(harness) == []
        harness.close()

    def test_e6_a_request_sent_again_asks_and_answers_once(self) -> None:
        harness = Harness(remote=True)
        client, request = waiting_client(harness)
        assert client.send(request) is None
        assert len(harness.server.events_received()) == 1
        harness.remote.remember("zoe", "secret", harness.unix_time)
        harness.server.receive_credential("zoe", harness.now)
        assert answers(harness) == [0]

    def test_e6_an_allocation_keeps_its_credential_and_never_asks_again(self) -> None:
        harness = Harness(remote=True)
        client, _ = waiting_client(harness)
        harness.remote.remember("zoe", "secret", harness.unix_time)
        harness.server.receive_credential("zoe", harness.now)
        harness.server.messages_to_send()
        harness.server.events_received()
        harness.unix_time += 500
        harness.advance(500)
        assert code(client.refresh(600)) == 0
        assert harness.server.events_received() == []

    def test_e6_a_client_that_left_meanwhile_gets_no_allocation(self) -> None:
        harness = Harness(remote=True)
        client, _ = waiting_client(harness, transport=Transport.TCP)
        staying, _ = waiting_client(harness)
        assert len(harness.server.events_received()) == 1
        harness.server.receive_disconnect(client.five_tuple, harness.now)
        harness.remote.remember("zoe", "secret", harness.unix_time)
        harness.server.receive_credential("zoe", harness.now)
        assert not harness.server.has_allocation(client.five_tuple)
        assert harness.server.has_allocation(staying.five_tuple)
        assert answers(harness) == [0]

    def test_users_that_are_known_here_are_not_looked_up(self) -> None:
        harness = Harness(remote=True)
        assert code(Client(harness).allocate()) == 0
        assert not any(isinstance(event, CredentialWanted) for event in harness.server.events_received())


class TestBounds:
    def test_names_and_requests_are_bounded_and_beyond_it_is_500(self) -> None:
        harness = Harness(remote=True, errors_per_s=0)
        for n in range(256):
            waiting_client(harness, f"user{n}")
        client = Client(harness, "onemore", "x")
        client.learn_nonce()
        assert code(client.allocate()) == 500
        assert harness.server.live_counts()["lookups"] == 256
        for _ in range(15):
            waiting_client(harness, "user7", transport=Transport.TCP)
        client = Client(harness, "user7", "x")
        client.learn_nonce()
        assert code(client.allocate()) == 500
        harness.close()

    def test_a_forged_nonce_starts_no_lookup(self) -> None:
        harness = Harness(remote=True)
        client = Client(harness, "zoe", "x")
        client.nonce = b"obMatJos2gAAA" + b"A" * 24
        assert code(client.allocate()) == 438
        assert harness.server.events_received() == []

    def test_what_is_remembered_is_bounded_in_time_and_number_and_holds_no_password(self) -> None:
        remote = RemoteCredentials("r")
        remote.remember("zoe", "wonderland", UNIX_TIME)
        assert remote.find("zoe", UNIX_TIME + 29) is not None
        assert "wonderland" not in repr(vars(remote))
        with pytest.raises(LookupPending):
            remote.find("zoe", UNIX_TIME + 30)
        for n in range(REMEMBERED_MAX + 10):
            remote.remember(str(n), None, UNIX_TIME)
        assert len(remote._found) == REMEMBERED_MAX
        assert remote.find(str(REMEMBERED_MAX), UNIX_TIME) is None
