"""What passed, by key and custom identifier: sums that only grow, in a bounded number of rows."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from tests.support.turn_harness import PEER, PEER_V6, Harness
from tests.support.turn_harness import Client as TurnClient
from tests.support.turn_sockets import Client, Peer, eventually, serving
from turn.errors import InvalidParams
from turn.events import AllocationClosed
from turn.routes import credentials_router
from turn.service import TurnService
from turn.usage import OTHERS, Party, RelayUsage, UsageLedger, add
from wire import stun
from wire.stun import Attr

KEY, TOKEN = "k" * 32, "t" * 64
OTHER, OTHER_TOKEN = "o" * 32, "u" * 64

usages = st.builds(RelayUsage, *[st.integers(0, 1 << 40)] * 4)
parties = st.builds(Party, st.sampled_from(["", "k"]), st.sampled_from(["", "a", "b", "c"]))


class TestLedger:
    def test_live_and_ended_add_up(self) -> None:
        ledger = UsageLedger()
        party = Party("key", "ada")
        ledger.open(party)
        assert ledger.sums([]) == {party: RelayUsage()}
        assert ledger.sums([(party, RelayUsage(1, 2, 3, 4))]) == {party: RelayUsage(1, 2, 3, 4)}
        ledger.close(party, RelayUsage(5, 2, 3, 4))
        assert ledger.sums([(party, RelayUsage(1, 1, 1, 1))]) == {party: RelayUsage(6, 3, 4, 5)}

    def test_beyond_the_bound_new_identifiers_share_a_row_of_their_key(self) -> None:
        ledger = UsageLedger(rows_max=1)
        for name in ("a", "b", "c"):
            ledger.open(Party("key", name))
            ledger.close(Party("key", name), RelayUsage(1, 1, 1, 1))
        assert ledger.sums([]) == {
            Party("key", "a"): RelayUsage(1, 1, 1, 1),
            Party("key", OTHERS): RelayUsage(2, 2, 2, 2),
        }

    @given(st.lists(st.tuples(parties, usages), max_size=30), st.integers(0, 5))
    def test_nothing_is_lost_and_the_rows_are_bounded(
        self, ended: list[tuple[Party, RelayUsage]], rows_max: int
    ) -> None:
        ledger = UsageLedger(rows_max)
        for party, usage in ended:
            ledger.open(party)
            before = ledger.sums([(party, usage)])
            ledger.close(party, usage)
            assert ledger.sums([]) == before
        rows = ledger.sums([])
        assert len(rows) <= rows_max + 2
        assert add(RelayUsage(), *rows.values()) == add(RelayUsage(), *(usage for _, usage in ended))


class TestService:
    async def test_what_a_credential_carries_is_its_keys_and_identifiers(self) -> None:
        async with serving(keys={KEY: TOKEN}) as service:
            issued = service.issue(3600, key_id=KEY, custom_identifier="ada")
            identity = {"username": issued.username, "password": issued.credential}
            peer = await Peer.open()
            async with Client.connected(service, **identity) as client:
                relayed = await client.allocate()
                assert await client.permit(peer.address) == 0
                client.send_indication(peer.address, b"12345")
                assert (await peer.receive())[0] == b"12345"
                peer.send(b"123", relayed)
                await client.receive()
                expected = RelayUsage(5, 1, 3, 1)
                assert service.stats().usage == {Party(KEY, "ada"): expected}
                (status,) = service.allocations(KEY)
                assert (status.username, status.identifier, status.transport) == (issued.username, "ada", "udp")
                assert status.relayed == (relayed,)
                assert (status.permissions, status.channels, status.usage) == (1, 0, expected)
                assert 590 < status.expires_in <= 600
                assert service.allocations(OTHER) == []
                service.revoke(KEY, issued.username)
                await eventually(lambda: service.allocations(KEY) == [])
                assert service.stats().usage == {Party(KEY, "ada"): expected}
            peer.close()
            await asyncio.sleep(0)
        assert service.allocations(KEY) == []
        assert service.stats().usage == {Party(KEY, "ada"): expected}

    async def test_users_and_the_gateway_have_no_key(self) -> None:
        async with serving(keys={KEY: TOKEN}) as service:
            for identity in ({}, service.issue(60)._asdict()):
                names = {"username": identity["username"], "password": identity["credential"]} if identity else {}
                async with Client.connected(service, **names) as client:
                    await client.allocate()
            assert set(service.stats().usage) == {Party("", "")}
            assert service.allocations(KEY) == []

    async def test_half_a_surrogate_pair_is_refused(self) -> None:
        async with serving() as service:
            with pytest.raises(InvalidParams):
                service.issue(60, custom_identifier="\ud800")


class TestRoute:
    async def call(self, service: TurnService, key_id: str, token: str) -> httpx.Response:
        app = FastAPI()
        app.include_router(credentials_router(service))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"Authorization": f"Bearer {token}"}
            return await client.get(f"/v1/turn/keys/{key_id}/allocations", headers=headers)

    async def test_a_key_sees_its_own_allocations_and_needs_its_token(self) -> None:
        async with serving(keys={KEY: TOKEN, OTHER: OTHER_TOKEN}) as service:
            issued = service.issue(3600, key_id=KEY, custom_identifier="ada")
            async with Client.connected(service, username=issued.username, password=issued.credential) as client:
                relayed = await client.allocate()
                answer = await self.call(service, KEY, TOKEN)
                assert answer.status_code == 200
                (allocation,) = answer.json()["allocations"]
                assert allocation["username"] == issued.username
                assert allocation["customIdentifier"] == "ada"
                assert allocation["relayed"] == [str(relayed)]
                assert allocation["bytesFromClient"] == 0
                assert (await self.call(service, OTHER, OTHER_TOKEN)).json() == {"allocations": []}
                assert (await self.call(service, KEY, OTHER_TOKEN)).status_code == 401
                assert (await self.call(service, "nobody", TOKEN)).status_code == 404


class TestDualAllocation:
    """RFC 8656 §8.2: one half may be deleted; what it carried still counts."""

    def test_the_usage_of_a_deleted_half_stays(self) -> None:
        harness = Harness(ipv6=True)
        client = TurnClient(harness)
        client.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, stun.uint32(2 << 24)))
        client.permit(PEER, PEER_V6)
        client.send_indication(PEER, b"123")
        client.send_indication(PEER_V6, b"12345")
        ((_, usage),) = harness.server.allocations()
        assert usage == RelayUsage(8, 2, 0, 0)
        client.refresh(0, (Attr.REQUESTED_ADDRESS_FAMILY, stun.uint32(2 << 24)))
        ((allocation, usage),) = harness.server.allocations()
        assert len(allocation.relays) == 1
        assert usage == RelayUsage(8, 2, 0, 0)
        client.refresh(0)
        closed = harness.server.events_received()[-1]
        assert isinstance(closed, AllocationClosed)
        assert closed.usage == RelayUsage(8, 2, 0, 0)
        harness.close()
