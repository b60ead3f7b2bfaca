from __future__ import annotations

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfu.ice import (
    ADDRESSES_MAX,
    AddressBuckets,
    Check,
    CheckGate,
    IceCredentials,
    IceLiteAgent,
    IceState,
    StateChanged,
    TupleSelected,
    TupleValidated,
)
from tests.support.ice_peer import check
from wire import stun
from wire.stun import Attr, MessageClass

WIFI = (0, "198.51.100.1", 4000)
LTE = (0, "203.0.113.9", 5000)


class Agent:
    """An agent behind its gate, fed with datagrams."""

    def __init__(self, now: float = 0.0) -> None:
        self.agent = IceLiteAgent(IceCredentials.generate(), now=now)
        self.gate = CheckGate()
        self.gate.add(self.agent)

    def receive(self, data: bytes, path: tuple[int, str, int] = WIFI, now: float = 0.0) -> bytes | None:
        verdict = self.gate.receive_datagram(data, path, now)
        if isinstance(verdict, Check):
            reply = self.agent.receive_check(verdict.request, verdict.ufrag, path, now)
            return self.gate.limit_errors(reply, data, path, now)
        return verdict

    def check(self, path: tuple[int, str, int] = WIFI, now: float = 0.0, **more: object) -> bytes | None:
        return self.receive(check(self.agent.local, **more), path, now)  # type: ignore[arg-type]


def code(reply: bytes | None) -> int | None:
    """The error code of a reply; 0 for success, None for silence."""
    if reply is None:
        return None
    message = stun.parse(reply)
    error = message.error()
    return 0 if error is None else error[0]


@pytest.fixture
def agent() -> Agent:
    return Agent()


class TestCredentials:
    """ICE-1."""

    def test_are_unique_and_long_enough(self) -> None:
        made = [IceCredentials.generate() for _ in range(2000)]
        assert len({c.ufrag for c in made}) == 2000
        assert len({c.pwd for c in made}) == 2000
        assert all(len(c.ufrag) >= 4 and len(c.pwd) >= 22 for c in made)
        letters = "".join(c.ufrag for c in made)
        assert len(set(letters)) == 62
        assert all(letters.count(letter) < 3 * len(letters) / 62 for letter in set(letters))

    def test_password_is_not_shown(self) -> None:
        credentials = IceCredentials.generate()
        assert credentials.pwd not in repr(credentials)


class TestChecks:
    """ICE-2 to ICE-4."""

    def test_good_one_is_answered_with_what_a_full_agent_needs(self, agent: Agent) -> None:
        request = check(agent.agent.local)
        reply = agent.receive(request)
        assert reply is not None
        message = stun.parse(reply)
        assert message.message_class == MessageClass.SUCCESS
        assert message.transaction_id == stun.parse(request).transaction_id
        assert str(message.address(Attr.XOR_MAPPED_ADDRESS)) == "198.51.100.1:4000"
        assert message.check_integrity(agent.agent.local.pwd.encode())
        assert message.has_fingerprint

    def test_ipv6_address_is_mapped(self, agent: Agent) -> None:
        reply = agent.check((1, "2001:db8::5", 6000))
        assert reply is not None
        assert str(stun.parse(reply).address(Attr.XOR_MAPPED_ADDRESS)) == "[2001:db8::5]:6000"

    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            ({"key": "wrong"}, 401),
            ({"username": "unknown:peer"}, 401),
            ({"username": ""}, 400),
            ({"integrity": False}, 400),
            ({"priority": False}, 400),
            ({"priority": False, "more": ((Attr.PRIORITY, b"12"),)}, 400),
            ({"more": ((Attr.NOMINATION, b"1"),)}, 400),
            ({"more": ((0x0019, b"abcd"),)}, 420),
            ({"controlled": True}, 487),
            ({"message_class": MessageClass.INDICATION}, None),
            ({"message_class": MessageClass.SUCCESS}, None),
            ({"method": stun.Method.ALLOCATE}, None),
        ],
    )
    def test_others_get_their_code_or_silence(self, agent: Agent, how: dict[str, object], expected: int | None) -> None:
        assert code(agent.check(**how)) == expected
        assert agent.agent.selected is None
        assert not agent.agent.events_received()

    def test_unknown_required_attributes_are_named(self, agent: Agent) -> None:
        reply = agent.check(more=((0x0019, b"abcd"), (0x7777, b"")))
        assert reply is not None
        assert stun.parse(reply).get(Attr.UNKNOWN_ATTRIBUTES) == bytes.fromhex("00197777")

    def test_what_follows_integrity_is_ignored(self, agent: Agent) -> None:
        """ICE-2: not fatal, and USE-CANDIDATE there moves nothing."""
        request = check(agent.agent.local)[:-8]
        request += bytes.fromhex("C0570004 00000001 00250000")
        request = request[:2] + (len(request) - 20 + 8).to_bytes(2, "big") + request[4:]
        request += bytes.fromhex("80280004") + stun.fingerprint(request).to_bytes(4, "big")
        assert code(agent.receive(request)) == 0

    def test_flipped_bit_is_dropped(self, agent: Agent) -> None:
        request = bytearray(check(agent.agent.local))
        request[-1] ^= 1
        assert agent.receive(bytes(request)) is None

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 20,
            bytes.fromhex("0001ffff2112a442") + b"x" * 12,
            bytes.fromhex("000100032112a442") + b"x" * 15,
            bytes.fromhex("000100042112a442") + b"x" * 12 + bytes.fromhex("0006ffff"),
            bytes.fromhex("0001000000000000") + b"x" * 12,
            bytes.fromhex("000100002112a442") + b"\0" * 12,
            bytes.fromhex("000100042112a442") + b"x" * 12 + bytes.fromhex("00080000"),
        ],
    )
    def test_malformed_is_dropped_or_400(self, agent: Agent, data: bytes) -> None:
        """Table 17 row 1."""
        assert code(agent.receive(data)) in (None, 400)

    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_no_mutation_of_a_check_gets_in(self, data: st.DataObject) -> None:
        """Before MESSAGE-INTEGRITY each bit counts: nothing but the original selects a tuple."""
        agent = Agent()
        original = check(agent.agent.local, nominate=True)
        mutated = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            mutated[-4:] = stun.fingerprint(bytes(mutated[:-8])).to_bytes(4, "big")
        assert code(agent.receive(bytes(mutated))) in (None, 0, 400, 401, 420, 487)
        assert agent.agent.selected is None or mutated[:-8] == original[:-8]


class TestSelection:
    """ICE-5."""

    def test_first_good_tuple_is_selected(self, agent: Agent) -> None:
        agent.check()
        assert agent.agent.events_received() == [
            TupleValidated(WIFI),
            TupleSelected(WIFI),
            StateChanged(IceState.CONNECTED),
        ]

    def test_second_tuple_waits_for_use_candidate(self, agent: Agent) -> None:
        agent.check()
        agent.agent.events_received()
        agent.check(LTE)
        assert agent.agent.events_received() == [TupleValidated(LTE)]
        agent.check(LTE, nominate=True)
        assert agent.agent.events_received() == [TupleSelected(LTE)]

    def test_higher_renomination_moves_and_a_late_lower_one_does_not(self, agent: Agent) -> None:
        agent.check(more=((Attr.NOMINATION, stun.uint32(1)),))
        agent.check(LTE, more=((Attr.NOMINATION, stun.uint32(2)),))
        assert agent.agent.selected == LTE
        agent.check(WIFI, nominate=True, more=((Attr.NOMINATION, stun.uint32(1)),))
        assert agent.agent.selected == LTE

    def test_oldest_unselected_goes_at_eight(self, agent: Agent) -> None:
        paths = [(0, "198.51.100.1", 4000 + n) for n in range(10)]
        for path in paths:
            agent.check(path)
        assert agent.agent.tuples == (paths[0], *paths[3:])
        assert agent.agent.selected == paths[0]

    def test_wrong_key_moves_nothing(self, agent: Agent) -> None:
        """Table 17 row 2."""
        agent.check()
        for n in range(200):
            agent.check((0, "192.0.2.66", n), key="guess", nominate=True)
        assert agent.agent.selected == WIFI
        assert agent.agent.tuples == (WIFI,)


class TestConsent:
    """ICE-6, RFC 7675."""

    def test_silence_disconnects_then_fails(self, agent: Agent) -> None:
        agent.check(now=100.0)
        agent.agent.events_received()
        assert agent.agent.next_timeout() == 113.0
        agent.agent.handle_timeout(112.9)
        assert not agent.agent.events_received()
        agent.agent.handle_timeout(113.0)
        assert agent.agent.events_received() == [StateChanged(IceState.DISCONNECTED)]
        assert agent.agent.next_timeout() == 130.0
        agent.agent.handle_timeout(130.0)
        assert agent.agent.events_received() == [StateChanged(IceState.FAILED)]
        assert agent.agent.next_timeout() is None

    def test_a_late_stall_goes_straight_to_failed(self, agent: Agent) -> None:
        agent.check(now=100.0)
        agent.agent.handle_timeout(500.0)
        assert agent.agent.state is IceState.FAILED

    @pytest.mark.parametrize("silence", [14.0, 40.0])
    def test_one_check_brings_it_back(self, agent: Agent, silence: float) -> None:
        agent.check(now=100.0)
        agent.agent.handle_timeout(100.0 + silence)
        agent.agent.events_received()
        agent.check(now=100.0 + silence)
        assert agent.agent.events_received() == [StateChanged(IceState.CONNECTED)]

    def test_indications_and_wrong_keys_renew_nothing(self, agent: Agent) -> None:
        agent.check(now=100.0)
        agent.check(now=110.0, message_class=MessageClass.INDICATION)
        agent.check(now=110.0, key="wrong")
        assert agent.agent.consent_at == 100.0


class TestRestart:
    """ICE-7."""

    def test_old_pair_is_good_until_the_new_one_is_used(self, agent: Agent) -> None:
        old = agent.agent.local
        agent.check()
        agent.agent.restart(IceCredentials.generate())
        agent.gate.add(agent.agent)
        assert code(agent.receive(check(old), now=1.0)) == 0
        assert agent.agent.ufrags == (agent.agent.local.ufrag, old.ufrag)
        assert code(agent.check(LTE, nominate=True, now=2.0)) == 0
        assert agent.agent.ufrags == (agent.agent.local.ufrag,)
        assert agent.agent.selected == LTE
        assert agent.receive(check(old), now=3.0) is None

    def test_twice_at_once_keeps_the_pair_in_use(self, agent: Agent) -> None:
        """Table 17 row 18."""
        old = agent.agent.local
        agent.check()
        agent.agent.restart(IceCredentials.generate())
        agent.agent.restart(IceCredentials.generate())
        assert code(agent.receive(check(old), now=1.0)) == 0

    def test_old_pairs_key_does_not_open_the_new_ufrag(self, agent: Agent) -> None:
        old = agent.agent.local
        agent.agent.restart(IceCredentials.generate())
        agent.gate.add(agent.agent)
        assert code(agent.check(key=old.pwd)) == 401


class TestBudgets:
    """ICE-3."""

    def test_a_stranger_is_answered_ten_times_a_second(self, agent: Agent) -> None:
        replies = [
            agent.check((0, "192.0.2.66", port), now=second + port / 20_000, username="nobody:peer")
            for second in range(10)
            for port in range(1, 10_001, 20)
        ]
        assert sum(reply is not None for reply in replies) <= 110

    def test_others_behind_the_same_address_are_served(self, agent: Agent) -> None:
        for port in range(1, 1000):
            agent.check((0, WIFI[1], port), username="nobody:peer")
        assert code(agent.check(WIFI)) == 0

    def test_integrity_is_checked_at_most_fifty_times_a_second(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0
        original = stun.Message.check_integrity

        def counted(message: stun.Message, key: bytes) -> bool:
            nonlocal calls
            calls += 1
            return original(message, key)

        monkeypatch.setattr(stun.Message, "check_integrity", counted)
        for port in range(1, 2000):
            agent.check((0, "192.0.2.66", port), key="guess")
        assert calls == 50

    def test_a_flood_with_the_right_ufrag_does_not_starve_the_tuple_in_use(self, agent: Agent) -> None:
        agent.check(WIFI)
        for port in range(1, 1000):
            agent.check((0, "192.0.2.66", port), key="guess")
        assert code(agent.check(WIFI)) == 0

    def test_error_is_never_longer_than_its_request(self, agent: Agent) -> None:
        request = stun.serialize(stun.Method.BINDING, MessageClass.REQUEST, secrets.token_bytes(12), ())
        assert agent.receive(request) is None

    def test_table_of_addresses_is_bounded(self) -> None:
        buckets = AddressBuckets(10)
        for n in range(ADDRESSES_MAX + 100):
            buckets.take(f"host {n}", 0.0)
        assert len(buckets._buckets) == ADDRESSES_MAX

    def test_gate_forgets(self, agent: Agent) -> None:
        agent.gate.discard(agent.agent.local.ufrag)
        agent.gate.discard(agent.agent.local.ufrag)
        assert len(agent.gate) == 0
        assert code(agent.check()) == 401
