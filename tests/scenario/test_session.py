"""Two independent WebRTC clients (aiortc), one SFU, loopback: what `sfu` promises end to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import AudioStreamTrack

from sfu.events import Event, SessionClosed, SessionConnected, TrackStarted
from sfu.messages import Location, SessionDescription, SessionId, TrackRequest, TracksResult, TrackStatus
from sfu.service import Sfu
from sfu.settings import SfuSettings

APP = "app"


class Peer:
    """An aiortc connection and the session it talks to."""

    def __init__(self, sfu: Sfu, session_id: SessionId) -> None:
        self.sfu = sfu
        self.id = session_id
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.received: list[MediaStreamTrack] = []
        self.connection.on("track", self.received.append)

    async def publish(self, **tracks: MediaStreamTrack) -> TracksResult:
        transceivers = {
            name: self.connection.addTransceiver(track, direction="sendonly") for name, track in tracks.items()
        }
        await self.connection.setLocalDescription(await self.connection.createOffer())
        result = await self.sfu.add_tracks(
            APP,
            self.id,
            tracks=[TrackRequest(Location.LOCAL, t.mid, name) for name, t in transceivers.items()],
            offer=SessionDescription("offer", self.connection.localDescription.sdp),
        )
        assert result.session_description is not None
        await self.connection.setRemoteDescription(RTCSessionDescription(result.session_description.sdp, "answer"))
        return result

    async def pull(self, publisher: SessionId, *names: str) -> TracksResult:
        requests = [TrackRequest(Location.REMOTE, session_id=publisher, track_name=name) for name in names]
        result = await self.sfu.add_tracks(APP, self.id, tracks=requests, offer=None)
        if result.session_description is not None:
            await self.connection.setRemoteDescription(RTCSessionDescription(result.session_description.sdp, "offer"))
            await self.connection.setLocalDescription(await self.connection.createAnswer())
            answer = SessionDescription("answer", self.connection.localDescription.sdp)
            assert await self.sfu.renegotiate(APP, self.id, answer) is None
        return result


@pytest.fixture
async def sfu() -> AsyncIterator[Sfu]:
    sfu = Sfu(SfuSettings())
    await sfu.start()
    yield sfu
    await sfu.close()
    assert set(sfu.live_counts().values()) == {0}


@asynccontextmanager
async def peers(sfu: Sfu, count: int) -> AsyncIterator[list[Peer]]:
    made = [Peer(sfu, (await sfu.create_session(APP))[0]) for _ in range(count)]
    try:
        yield made
    finally:
        await asyncio.gather(*(peer.connection.close() for peer in made))


async def frames(track: MediaStreamTrack, count: int) -> None:
    """Receive and decode."""
    for _ in range(count):
        await asyncio.wait_for(track.recv(), 10)


async def test_video_and_audio_reach_a_subscriber(sfu: Sfu) -> None:
    async with peers(sfu, 2) as (alice, bob):
        await alice.publish(camera=VideoStreamTrack(), mic=AudioStreamTrack())
        # The pull comes before a single packet did: it is held, not refused (rule 7).
        result = await bob.pull(alice.id, "camera", "mic")
        assert [item.error_code for item in result.tracks] == [None, None]
        assert sorted(track.kind for track in bob.received) == ["audio", "video"]
        await asyncio.gather(*(frames(track, 10) for track in bob.received))
        stats = sfu.session_stats(APP, bob.id)
        assert stats.transport_state == "connected"
        assert stats.address_family == "ipv4"
        assert all(track.layers[0]["packets"] for track in stats.tracks)


async def test_one_track_fans_out_and_a_late_subscriber_starts_on_a_key_frame(sfu: Sfu) -> None:
    async with peers(sfu, 3) as (alice, bob, carol):
        await alice.publish(camera=VideoStreamTrack())
        await bob.pull(alice.id, "camera")
        await frames(bob.received[0], 15)
        await carol.pull(alice.id, "camera")
        await asyncio.gather(frames(bob.received[0], 5), frames(carol.received[0], 5))


async def test_pulled_mid_switches_to_another_publisher_without_sdp(sfu: Sfu) -> None:
    async with peers(sfu, 3) as (alice, bob, carol):
        await alice.publish(camera=VideoStreamTrack())
        await bob.publish(camera=VideoStreamTrack())
        await carol.pull(alice.id, "camera")
        await frames(carol.received[0], 5)
        request = TrackRequest(Location.REMOTE, "0", "camera", bob.id)
        result = await carol.sfu.update_tracks(APP, carol.id, [request])
        assert result.tracks[0].error_code is None
        assert result.session_description is None
        await alice.connection.close()
        await frames(carol.received[0], 20)
        assert sfu.tracks_of(APP, carol.id)[0].session_id == bob.id


async def test_closing_a_connection_ends_its_session_at_once(sfu: Sfu) -> None:
    """Rule 11: close_notify, not a 30 s timeout; its subscribers stay, without media."""
    async with peers(sfu, 2) as (alice, bob):
        await alice.publish(camera=VideoStreamTrack())
        await bob.pull(alice.id, "camera")
        await frames(bob.received[0], 3)
        async with sfu.subscribe_events(APP) as events:
            await alice.connection.close()
            async with asyncio.timeout(5):
                async for event in events:
                    if isinstance(event, SessionClosed):
                        break
        assert event == SessionClosed(alice.id, "close_notify", event.at)
        (state,) = sfu.tracks_of(APP, bob.id)
        assert state.status is TrackStatus.INACTIVE
        again = await bob.pull(alice.id, "camera")
        assert again.tracks[0].error_code == "not_found_track_error"


async def test_closing_the_service_tells_every_peer(sfu: Sfu) -> None:
    async with peers(sfu, 1) as (alice,):
        async with sfu.subscribe_events(APP) as events:
            await alice.publish(camera=VideoStreamTrack())
            seen: list[Event] = []
            async with asyncio.timeout(10):
                async for event in events:
                    seen.append(event)
                    if isinstance(event, TrackStarted):
                        break
        assert any(isinstance(event, SessionConnected) for event in seen)
        closed = asyncio.Event()

        @alice.connection.on("connectionstatechange")
        def changed() -> None:
            if alice.connection.connectionState in ("closed", "failed"):
                closed.set()

        await sfu.close()
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_session_publishes_and_pulls_over_one_transport(sfu: Sfu) -> None:
    async with peers(sfu, 2) as (alice, bob):
        await alice.publish(camera=VideoStreamTrack())
        await bob.publish(camera=VideoStreamTrack())
        await bob.pull(alice.id, "camera")
        await alice.pull(bob.id, "camera")
        await asyncio.gather(frames(alice.received[0], 5), frames(bob.received[0], 5))
        assert sfu.live_counts()["transports"] == 2


async def test_sections_are_recycled_with_a_real_client(sfu: Sfu) -> None:
    """SDP-7: five add/remove cycles, then the last track is sent.

    Whether it plays is Chromium's test: aiortc routes by the SSRCs that a section had when it was first received.
    """
    async with peers(sfu, 2) as (alice, bob):
        await alice.publish(camera=VideoStreamTrack())
        for _ in range(5):
            result = await bob.pull(alice.id, "camera")
            mid = result.tracks[0].mid
            assert mid is not None
            await sfu.close_tracks(APP, bob.id, mids=[mid], force=True, offer=None)
        await bob.pull(alice.id, "camera")
        assert len(bob.connection.getTransceivers()) <= 2
        async with asyncio.timeout(10):
            while not sfu.session_stats(APP, bob.id).tracks[0].layers[0]["packets"]:  # noqa: ASYNC110  # a counter
                await asyncio.sleep(0.05)
