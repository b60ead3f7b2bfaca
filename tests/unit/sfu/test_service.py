from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from sfu._dataplane import plane as dataplane
from sfu.dtls import DtlsAssociation, DtlsContext, DtlsState
from sfu.errors import InvalidParams, InvalidSessionDescription, LimitExceeded, SessionGone, UsageError
from sfu.events import SessionClosed, SessionConnected, SessionDisconnected, TrackPublished, TrackStalled, TrackStarted
from sfu.ice import IceCredentials
from sfu.messages import Location, SessionDescription, SessionId, TrackRequest, TracksResult, TrackStatus
from sfu.service import Sfu
from sfu.settings import SfuSettings
from tests.support.fake_plane import FakePlane
from tests.support.ice_peer import check
from tests.support.sdp_offers import Peer, load, offer, section
from wire import sdp, stun
from wire.sdp import MediaSection, Setup

APP = "app"
CERTIFICATE = DtlsContext()
PATH = (0, "198.51.100.7", 40_000)

QUICK = SfuSettings(pull_wait_s=0.05, transport_wait_s=0.05)


class Clock:
    """A hand-moved clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A service over a plane that forwards nothing."""

    def __init__(self, settings: SfuSettings = QUICK) -> None:
        self.plane = FakePlane()
        self.clock = Clock()
        self.sfu = Sfu(settings, clock=self.clock, make_plane=lambda *_: self.plane)  # type: ignore[arg-type,return-value]

    def advance(self, seconds: float) -> None:
        """Time passes and the timer fires."""
        self.clock.now += seconds
        self.sfu._wake()

    async def client(self, app: str = APP) -> Client:
        session_id, _ = await self.sfu.create_session(app)
        return Client(self, app, session_id)

    async def settle(self) -> None:
        """Let upcalls be drained."""
        for _ in range(4):
            await asyncio.sleep(0)


class Client:
    """A peer that signals, checks and shakes hands like a browser, over the fake plane."""

    def __init__(self, world: World, app: str, session_id: SessionId) -> None:
        self.world = world
        self.app = app
        self.id = session_id
        self.peer = Peer()
        self.dtls: DtlsAssociation | None = None
        self.remote: MediaSection | None = None

    def section(self, mid: str, kind: str = "video") -> MediaSection:
        return section(mid, kind, fingerprint=CERTIFICATE.fingerprint)

    async def publish(self, mid: str, name: str, kind: str = "video") -> TracksResult:
        result = await self.world.sfu.add_tracks(
            self.app,
            self.id,
            tracks=[TrackRequest(Location.LOCAL, mid, name)],
            offer=SessionDescription("offer", self.peer.offer(self.section(mid, kind))),
        )
        assert result.session_description is not None
        self.remote = sdp.parse(result.session_description.sdp).sections[0]
        return result

    async def pull(self, publisher: Client, *names: str, answer: bool = True) -> TracksResult:
        requests = [TrackRequest(Location.REMOTE, session_id=publisher.id, track_name=name) for name in names]
        result = await self.world.sfu.add_tracks(self.app, self.id, tracks=requests, offer=None)
        if result.session_description is not None and answer:
            text = self.peer.answer(result.session_description.sdp)
            await self.world.sfu.renegotiate(self.app, self.id, SessionDescription("answer", text))
        return result

    @property
    def credentials(self) -> IceCredentials:
        assert self.remote is not None
        return IceCredentials(self.remote.ice_ufrag or "", self.remote.ice_pwd or "")

    async def check(self, path: tuple[int, str, int] = PATH, **more: object) -> stun.Message | None:
        """Send a connectivity check; the reply."""
        self.world.plane.take_sent()
        data = check(self.credentials, **more)  # type: ignore[arg-type]
        self.world.plane.push(dataplane.STUN, 0, path, data, self.world.clock.now)
        await self.world.settle()
        replies = [data for data, to in self.world.plane.sent if to == path and data[0] < 4]
        return stun.parse(replies[0]) if replies else None

    async def connect(self, context: DtlsContext = CERTIFICATE) -> None:
        """ICE, then DTLS as the client."""
        assert await self.check(nominate=True) is not None
        self.dtls = DtlsAssociation(context, is_client=True, now=self.world.clock.now)
        await self.carry()

    async def carry(self) -> None:
        """Exchange DTLS datagrams until both are silent."""
        assert self.dtls is not None
        while datagrams := self.dtls.datagrams_to_send():
            self.world.plane.take_sent()
            for datagram in datagrams:
                self.world.plane.push(dataplane.DTLS, self.transport, PATH, datagram, self.world.clock.now)
            await self.world.settle()
            self.receive_sent()

    def receive_sent(self) -> None:
        assert self.dtls is not None
        for data, path in self.world.plane.take_sent():
            if path == PATH and 20 <= data[0] <= 63:
                self.dtls.receive_datagram(data, self.world.clock.now)

    @property
    def transport(self) -> int:
        return self.world.sfu._entries[self.id].session.transport.id

    @property
    def state(self) -> str:
        return self.world.sfu.session_stats(self.app, self.id).transport_state

    def live(self) -> None:
        """Every track of this session sends its first packet."""
        for number, track in self.world.plane.tracks.items():
            if track["transport"] == self.transport:
                self.world.plane.push(dataplane.STREAM_STARTED, number, "", 77)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.sfu.start()
    yield world
    await world.sfu.close()
    assert set(world.sfu.live_counts().values()) == {0}
    assert not world.plane.transports
    assert not world.plane.running


class TestConnect:
    async def test_check_and_handshake_bring_media_keys(self, world: World) -> None:
        """ICE-8: the client sent no candidate."""
        client = await world.client()
        await client.publish("0", "camera")
        assert client.state == "new"
        await client.check(nominate=True)
        assert client.state == "connecting"
        async with world.sfu.subscribe_events(APP) as events:
            await client.connect()
            assert await anext(events) == SessionConnected(client.id, world.clock.now)
        transport = world.plane.transports[client.transport]
        assert transport["selected"] == PATH
        assert transport["keys"][0] == 7
        assert client.dtls is not None
        assert client.dtls.state is DtlsState.ESTABLISHED
        stats = world.sfu.session_stats(APP, client.id)
        assert (stats.transport_state, stats.address_family) == ("connected", "ipv4")

    async def test_dtls_from_an_unchecked_address_is_dropped(self, world: World) -> None:
        """DTLS-4, DMX-3."""
        client = await world.client()
        await client.publish("0", "camera")
        hello = DtlsAssociation(CERTIFICATE, is_client=True, now=0.0).datagrams_to_send()[0]
        world.plane.push(dataplane.DTLS, client.transport, PATH, hello, 0.0)
        await world.settle()
        assert not world.plane.sent

    async def test_handshake_may_come_before_the_answer(self, world: World) -> None:
        """The answer that names the fingerprint travels by HTTP and may be late: keys wait for it."""
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "camera")
        publisher.live()
        await world.settle()
        result = await subscriber.pull(publisher, "camera", answer=False)
        assert result.session_description is not None
        offered = sdp.parse(result.session_description.sdp)
        subscriber.remote = offered.sections[0]
        await subscriber.connect()
        assert world.plane.transports[subscriber.transport]["keys"] is None
        text = subscriber.peer.answer(result.session_description.sdp)
        own = ":".join(["AB"] * 32)
        answer = SessionDescription("answer", text.replace(own, CERTIFICATE.fingerprint.value))
        await world.sfu.renegotiate(APP, subscriber.id, answer)
        assert world.plane.transports[subscriber.transport]["keys"] is not None

    async def test_wrong_certificate_closes_the_session(self, world: World) -> None:
        """DTLS-2: no key reaches the plane."""
        client = await world.client()
        await client.publish("0", "camera")
        async with world.sfu.subscribe_events(APP) as events:
            await client.connect(DtlsContext())
            seen = [await anext(events), await anext(events)]
        assert seen[-1] == SessionClosed(client.id, "fingerprint mismatch", world.clock.now)
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(APP, client.id)

    async def test_passive_peer_gets_our_client_hello(self, world: World) -> None:
        client = await world.client()
        text = client.peer.offer(dataclasses.replace(client.section("0"), setup=Setup.PASSIVE))
        result = await world.sfu.add_tracks(
            APP,
            client.id,
            tracks=[TrackRequest(Location.LOCAL, "0", "camera")],
            offer=SessionDescription("offer", text),
        )
        assert result.session_description is not None
        client.remote = sdp.parse(result.session_description.sdp).sections[0]
        assert client.remote.setup == "active"
        await client.check(nominate=True)
        client.dtls = DtlsAssociation(CERTIFICATE, is_client=False, now=0.0)
        client.receive_sent()
        await client.carry()
        assert client.state == "connected"

    async def test_lost_flight_is_sent_again_by_the_timer(self, world: World) -> None:
        client = await world.client()
        await client.publish("0", "camera")
        await client.check(nominate=True)
        client.dtls = DtlsAssociation(CERTIFICATE, is_client=True, now=0.0)
        for datagram in client.dtls.datagrams_to_send():
            world.plane.push(dataplane.DTLS, client.transport, PATH, datagram, 0.0)
        await world.settle()
        first = world.plane.take_sent()[1:]
        world.advance(0.15)
        assert world.plane.take_sent() == first

    async def test_stun_errors_are_limited(self, world: World) -> None:
        """ICE-3, table 17 row 2."""
        client = await world.client()
        await client.publish("0", "camera")
        for port in range(500):
            data = check(client.credentials, key="guess")
            world.plane.push(dataplane.STUN, 0, (0, "192.0.2.66", port), data, 0.0)
        for _ in range(20):
            await world.settle()
        assert len(world.plane.take_sent()) == 10
        world.advance(1.0)
        assert await client.check(nominate=True) is not None

    async def test_ice_restart_in_the_middle_of_the_handshake(self, world: World) -> None:
        """Table 17 row 18."""
        client = await world.client()
        await client.publish("0", "camera")
        await client.check(nominate=True)
        client.dtls = DtlsAssociation(CERTIFICATE, is_client=True, now=0.0)
        (hello,) = client.dtls.datagrams_to_send()
        world.plane.push(dataplane.DTLS, client.transport, PATH, hello, 0.0)
        await world.settle()
        flight = world.plane.take_sent()
        for ufrag in ("again", "and again"):
            client.peer.sections = [dataclasses.replace(s, ice_ufrag=ufrag) for s in client.peer.sections]
            answer = await world.sfu.renegotiate(APP, client.id, SessionDescription("offer", client.peer.offer()))
            assert answer is not None
            client.remote = sdp.parse(answer.sdp).sections[0]
        assert await client.check(nominate=True) is not None
        world.plane.sent = flight
        client.receive_sent()
        await client.carry()
        assert client.state == "connected"

    async def test_media_moves_with_use_candidate(self, world: World) -> None:
        """ICE-5: no handshake, no other change."""
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        lte = (0, "203.0.113.9", 5000)
        await client.check(lte)
        assert world.plane.transports[client.transport]["selected"] == PATH
        await client.check(lte, nominate=True)
        assert world.plane.transports[client.transport]["selected"] == lte
        assert [data for data, _ in world.plane.sent if data[0] >= 20] == []

    async def test_ice_restart_routes_both_pairs_until_the_new_one_is_used(self, world: World) -> None:
        """ICE-7."""
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        old = client.credentials
        client.peer.sections = [dataclasses.replace(s, ice_ufrag="again") for s in client.peer.sections]
        answer = await world.sfu.renegotiate(APP, client.id, SessionDescription("offer", client.peer.offer()))
        assert answer is not None
        assert world.sfu.live_counts()["ufrags"] == 2
        reply = await client.check()
        assert reply is not None
        assert reply.error() is None
        client.remote = sdp.parse(answer.sdp).sections[0]
        assert client.credentials.ufrag != old.ufrag
        await client.check(nominate=True)
        assert world.sfu.live_counts()["ufrags"] == 1
        assert client.state == "connected"


class TestConsent:
    """ICE-6 and realtime-api.md §1."""

    async def test_sending_stops_30_s_after_the_last_check(self, world: World) -> None:
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        client.live()
        await world.settle()
        async with world.sfu.subscribe_events(APP) as events:
            world.advance(12.9)
            assert client.state == "connected"
            world.advance(0.1)
            assert client.state == "disconnected"
            assert await anext(events) == SessionDisconnected(client.id, world.clock.now)
            await client.check()
            assert await anext(events) == SessionConnected(client.id, world.clock.now)
            world.advance(30.0)
            closed = [await anext(events) for _ in range(3)][-1]
        assert closed == SessionClosed(client.id, "connectivity lost", world.clock.now)

    async def test_a_session_may_be_kept_longer_than_its_consent(self) -> None:
        world = World(dataclasses.replace(QUICK, disconnected_session_s=60.0, inactive_track_s=100.0))
        await world.sfu.start()
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        world.advance(31.0)
        assert client.state == "disconnected"
        assert world.plane.transports[client.transport]["sending"] is False
        await client.check()
        assert world.plane.transports[client.transport]["sending"] is True
        await world.sfu.close()

    async def test_close_notify_closes_at_once(self, world: World) -> None:
        """DTLS-5, rule 11."""
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        assert client.dtls is not None
        client.dtls.close(0.0)
        await client.carry()
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(APP, client.id)
        assert not world.plane.tracks

    async def test_our_close_sends_close_notify(self, world: World) -> None:
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        await world.sfu.close()
        client.receive_sent()
        assert client.dtls is not None
        assert client.dtls.reason == "close_notify"

    async def test_ten_thousand_sessions_cost_one_timer(self) -> None:
        world = World(dataclasses.replace(QUICK, sessions_max=10_000))
        await world.sfu.start()
        before = len(asyncio.all_tasks())
        for _ in range(10_000):
            await world.sfu.create_session(APP)
        assert len(asyncio.all_tasks()) == before
        assert world.sfu.live_counts()["deadlines"] == 10_000
        with pytest.raises(LimitExceeded):
            await world.sfu.create_session(APP)
        world.advance(300.0)
        assert set(world.sfu.live_counts().values()) == {0}
        await world.sfu.close()

    async def test_a_jump_of_the_clock_closes_what_is_due_and_nothing_else(self, world: World) -> None:
        """Table 17 row 20: a process that stood still catches up in one turn."""
        old = await world.client()
        world.clock.now += 299.0
        young = await world.client()
        world.advance(2.0)
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(APP, old.id)
        assert world.sfu.tracks_of(APP, young.id) == ()


class TestOwnMistakes:
    async def test_end_the_session_they_hit_and_no_other(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        hit, spared = await world.client(), await world.client()
        await hit.publish("0", "camera")
        await spared.publish("0", "camera")

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(world.sfu._entries[hit.id].session, "receive_check", broken)
        assert await hit.check() is None
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(APP, hit.id)
        assert await spared.check() is not None
        assert "internal error" in caplog.text

    async def test_in_a_timer_leave_the_others_their_deadlines(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hit, spared = await world.client(), await world.client()

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(world.sfu._entries[hit.id].session, "handle_timeout", broken)
        world.advance(300.0)
        assert world.sfu.live_counts()["sessions"] == 0
        assert spared.id not in world.sfu._entries


class TestPullWaits:
    """realtime-api.md §4: hold a pull, and return as soon as packets appear."""

    async def test_returns_when_the_first_packet_does(self) -> None:
        world = World(SfuSettings(pull_wait_s=60.0))
        await world.sfu.start()
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "camera")
        pull = asyncio.create_task(subscriber.pull(publisher, "camera"))
        await world.settle()
        assert world.sfu.live_counts()["waiters"] == 1
        assert not pull.done()
        publisher.live()
        async with asyncio.timeout(5):
            result = await pull
        assert result.tracks[0].error_code is None
        await world.sfu.close()

    async def test_waits_for_a_track_that_is_published_meanwhile(self) -> None:
        world = World(SfuSettings(pull_wait_s=60.0))
        await world.sfu.start()
        publisher, subscriber = await world.client(), await world.client()
        pull = asyncio.create_task(subscriber.pull(publisher, "camera"))
        await world.settle()
        await publisher.publish("0", "camera")
        publisher.live()
        async with asyncio.timeout(5):
            assert (await pull).tracks[0].error_code is None
        await world.sfu.close()

    async def test_ends_at_once_when_the_publisher_goes(self) -> None:
        world = World(SfuSettings(pull_wait_s=60.0))
        await world.sfu.start()
        publisher, subscriber = await world.client(), await world.client()
        pull = asyncio.create_task(subscriber.pull(publisher, "camera"))
        await world.settle()
        world.advance(299.0)
        await subscriber.world.sfu.update_tracks(APP, subscriber.id, [TrackRequest(Location.REMOTE, "9")])
        world.advance(1.0)
        async with asyncio.timeout(5):
            assert (await pull).tracks[0].error_code == "not_found_track_error"
        await world.sfu.close()

    async def test_fails_per_item_in_the_end(self, world: World) -> None:
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "silent")
        result = await subscriber.pull(publisher, "silent", "unknown")
        assert [item.error_code for item in result.tracks] == ["empty_track_error", "not_found_track_error"]
        assert world.sfu.live_counts()["waiters"] == 0

    async def test_cancelled_request_leaves_no_waiter(self, world: World) -> None:
        publisher, subscriber = await world.client(), await world.client()
        pull = asyncio.create_task(subscriber.pull(publisher, "camera"))
        await world.settle()
        pull.cancel()
        await asyncio.wait((pull,))
        assert world.sfu.live_counts()["waiters"] == 0

    async def test_second_pull_waits_for_the_first_answer(self) -> None:
        """10.2: one offer at a time, and both succeed."""
        world = World(SfuSettings(transport_wait_s=60.0))
        await world.sfu.start()
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "camera")
        publisher.live()
        await world.settle()
        first = await subscriber.pull(publisher, "camera", answer=False)
        second = asyncio.create_task(subscriber.pull(publisher, "camera"))
        await world.settle()
        assert not second.done()
        assert first.session_description is not None
        text = subscriber.peer.answer(first.session_description.sdp)
        await world.sfu.renegotiate(APP, subscriber.id, SessionDescription("answer", text))
        async with asyncio.timeout(5):
            assert (await second).tracks[0].mid == "1"
        await world.sfu.close()

    async def test_unanswered_offer_is_included_in_the_next(self, world: World) -> None:
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "camera")
        publisher.live()
        await world.settle()
        await subscriber.pull(publisher, "camera", answer=False)
        second = await subscriber.pull(publisher, "camera")
        assert second.session_description is not None
        assert len(sdp.parse(second.session_description.sdp).sections) == 2
        assert len(world.plane.forwarders) == 2


class TestApi:
    async def test_session_id_is_32_lowercase_hex(self, world: World) -> None:
        ids = {(await world.sfu.create_session(APP, correlation_id="same"))[0] for _ in range(50)}
        assert len(ids) == 50
        assert all(len(i) == 32 and set(i) <= set("0123456789abcdef") for i in ids)

    async def test_session_is_gone_for_another_app(self, world: World) -> None:
        client = await world.client()
        other = "other app"
        request = [TrackRequest(Location.REMOTE, session_id=client.id, track_name="x")]
        description = SessionDescription("offer", offer(section("0")))
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(other, client.id)
        with pytest.raises(SessionGone):
            world.sfu.session_stats(other, client.id)
        with pytest.raises(SessionGone):
            await world.sfu.add_tracks(other, client.id, tracks=request, offer=None)
        with pytest.raises(SessionGone):
            await world.sfu.update_tracks(other, client.id, request)
        with pytest.raises(SessionGone):
            await world.sfu.close_tracks(other, client.id, mids=["0"], force=True, offer=None)
        with pytest.raises(SessionGone):
            await world.sfu.renegotiate(other, client.id, description)

    async def test_undefined_session_is_gone(self, world: World) -> None:
        """10.5: what a client calls after a failed `sessions/new`."""
        with pytest.raises(SessionGone):
            world.sfu.tracks_of(APP, SessionId("undefined"))

    async def test_pull_from_another_app_finds_nothing(self, world: World) -> None:
        publisher, stranger = await world.client(), await world.client("other app")
        await publisher.publish("0", "camera")
        publisher.live()
        await world.settle()
        result = await stranger.pull(publisher, "camera")
        assert result.tracks[0].error_code == "not_found_track_error"

    async def test_first_offer_may_come_with_the_session(self, world: World) -> None:
        """The legacy data-only offer."""
        session_id, answer = await world.sfu.create_session(
            APP, offer=SessionDescription("offer", load("chrome-156-data-only"))
        )
        assert answer is not None
        assert sdp.parse(answer.sdp).sections[0].is_data
        assert world.sfu.tracks_of(APP, session_id) == ()

    async def test_refused_first_offer_leaves_no_session(self, world: World) -> None:
        with pytest.raises(InvalidSessionDescription):
            await world.sfu.create_session(APP, offer=SessionDescription("offer", "v=0"))
        assert world.sfu.live_counts()["sessions"] == 0

    async def test_third_party_is_refused(self, world: World) -> None:
        with pytest.raises(InvalidParams):
            await world.sfu.create_session(APP, third_party=True)

    @pytest.mark.parametrize(
        ("tracks", "with_offer", "discover"),
        [
            ([], False, False),
            ([], True, False),
            ([], False, True),
            ([TrackRequest(Location.LOCAL, "0", "x")], True, True),
            ([TrackRequest(Location.LOCAL, "0", "x"), TrackRequest(Location.REMOTE)], True, False),
            ([TrackRequest(Location.REMOTE)] * 65, False, False),
            ([TrackRequest(Location.LOCAL, "0", "x")], False, False),
        ],
    )
    async def test_wrong_combinations_are_refused(
        self, world: World, tracks: list[TrackRequest], with_offer: bool, discover: bool
    ) -> None:
        client = await world.client()
        description = SessionDescription("offer", offer(section("0"))) if with_offer else None
        with pytest.raises(InvalidParams):
            await world.sfu.add_tracks(APP, client.id, tracks=tracks, offer=description, auto_discover=discover)

    async def test_remote_track_without_address_is_an_item_error(self, world: World) -> None:
        client = await world.client()
        result = await world.sfu.add_tracks(APP, client.id, tracks=[TrackRequest(Location.REMOTE)], offer=None)
        assert result.tracks[0].error_code == "not_found_track_error"

    async def test_close_and_update_check_their_arguments(self, world: World) -> None:
        client = await world.client()
        with pytest.raises(InvalidParams):
            await world.sfu.close_tracks(APP, client.id, mids=[], force=True, offer=None)
        with pytest.raises(InvalidParams):
            await world.sfu.close_tracks(APP, client.id, mids=["0"], force=False, offer=None)
        with pytest.raises(InvalidParams):
            await world.sfu.update_tracks(APP, client.id, [TrackRequest(Location.LOCAL, "0", "x")])

    async def test_publish_then_close_over_the_facade(self, world: World) -> None:
        client = await world.client()
        await client.publish("0", "camera")
        closed = await world.sfu.close_tracks(
            APP, client.id, mids=["0"], force=False, offer=SessionDescription("offer", client.peer.offer())
        )
        assert closed.session_description is not None
        assert world.sfu.tracks_of(APP, client.id)[0].status is TrackStatus.INACTIVE

    async def test_using_it_before_start_is_our_mistake(self) -> None:
        sfu = World().sfu
        with pytest.raises(UsageError):
            await sfu.create_session(APP)
        await sfu.close()


class TestEvents:
    async def test_tell_the_story_of_a_track(self, world: World) -> None:
        client = await world.client()
        async with world.sfu.subscribe_events(APP) as events:
            await client.publish("0", "camera")
            (number,) = world.plane.tracks
            client.live()
            world.plane.push(dataplane.TRACK_STALLED, number)
            world.plane.push(dataplane.TRACK_RESUMED, number)
            world.plane.push(dataplane.TRACK_STALLED, 999)
            await world.settle()
            seen = [type(await anext(events)) for _ in range(4)]
        assert [kind.__name__ for kind in seen] == ["TrackPublished", "TrackStarted", "TrackStalled", "TrackResumed"]

    async def test_stalled_track_is_collected_unless_it_resumes(self, world: World) -> None:
        client = await world.client()
        await client.publish("0", "camera")
        await client.connect()
        (number,) = world.plane.tracks
        client.live()
        world.plane.push(dataplane.TRACK_STALLED, number)
        await world.settle()
        for _ in range(3):
            world.advance(9.0)
            await client.check()
        assert world.plane.tracks
        world.advance(1.0)
        assert not world.plane.tracks
        assert world.sfu.tracks_of(APP, client.id)[0].status is TrackStatus.INACTIVE

    async def test_stay_within_the_app(self, world: World) -> None:
        async with world.sfu.subscribe_events("other app") as events:
            await (await world.client()).publish("0", "camera")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(events)

    async def test_slow_listener_loses_the_oldest(self) -> None:
        world = World(dataclasses.replace(QUICK, event_queue_max=2))
        await world.sfu.start()
        client = await world.client()
        async with world.sfu.subscribe_events(APP) as events:
            await client.publish("0", "camera")
            (number,) = world.plane.tracks
            client.live()
            world.plane.push(dataplane.TRACK_STALLED, number)
            await world.settle()
            assert events.lost == 1
            assert [type(await anext(events)) for _ in range(2)] == [TrackStarted, TrackStalled]
        await world.sfu.close()

    async def test_end_when_the_service_closes(self, world: World) -> None:
        client = await world.client()
        async with world.sfu.subscribe_events(APP) as events:
            await client.publish("0", "camera")
            await world.sfu.close()
            seen = [event async for event in events]
        assert isinstance(seen[0], TrackPublished)
        assert isinstance(seen[-1], SessionClosed)


class TestStats:
    async def test_hold_plane_and_live_objects(self, world: World) -> None:
        publisher, subscriber = await world.client(), await world.client()
        await publisher.publish("0", "camera")
        publisher.live()
        await world.settle()
        await subscriber.pull(publisher, "camera")
        stats = world.sfu.stats()
        assert stats.counters == {"packets_in": 0}
        assert stats.live["sessions"] == 2
        assert stats.live["subscriptions"] == 1
        (track,) = world.sfu.session_stats(APP, subscriber.id).tracks
        assert track.layers[0]["plis_in"] == 0
        (track,) = world.sfu.session_stats(APP, publisher.id).tracks
        assert track.state.track_name == "camera"
