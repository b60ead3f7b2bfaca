"""The load tests' media client against our server: what it reports must be what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtest.media import dtls
from loadtest.media.client import MediaClient
from loadtest.media.source import MediaSource
from loadtest.media.target import MediaFailed, PublicationRef
from loadtest.media.torpor import TorporTarget
from tests.support.lossy_proxy import LossyProxy, lossy_proxy
from tests.support.server import Server, running_server

SECONDS = 3.0


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[MediaClient]:
    async with MediaClient() as started:
        yield started
        assert started.plane.figures()["peers"] == 0, "leaving frees everything"
        assert started.plane.figures()["timers"] == 0


@asynccontextmanager
async def target(server: Server, client: MediaClient, proxy: LossyProxy | None = None) -> AsyncIterator[TorporTarget]:
    redirect = proxy.redirect if proxy is not None else None
    made = TorporTarget(client, server.url, server.app_id, server.app_secret, redirect=redirect)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize(
    "source",
    [MediaSource(video="VP8"), MediaSource(video="H264"), MediaSource(video="VP8", height=720, simulcast=True)],
    ids=["vp8", "h264", "simulcast"],
)
async def test_media_arrives_whole_and_shows_the_pictures_that_were_encoded(
    server: Server, client: MediaClient, source: MediaSource
) -> None:
    async with target(server, client) as torpor:
        publication = await torpor.publish(source)
        ref = PublicationRef.from_json(publication.ref.to_json())
        subscription = await torpor.subscribe([ref], verify=True)
        assert await subscription.wait_for_media() < 5
        await asyncio.sleep(SECONDS)
        await subscription.leave()
        received, sent = subscription.figures(), publication.figures()
        assert received.tracks == 2
        assert received.silent_tracks == 0
        assert received.pictures.checked > 30
        assert received.pictures.wrong == 0
        for figures in (received.audio, received.video):
            assert figures.lost_after_repair == 0
            assert figures.packets + figures.padding == figures.expected
            assert figures.delay.count > 30
            assert 0 < figures.delay.quantile(0.5) < 1
        assert sent.audio.frames >= received.audio.frames > 0
        assert sent.video.reports_received > 0
        assert sent.video.round_trip.count > 0


@pytest.mark.parametrize("profile", [b"SRTP_AES128_CM_SHA1_80", b"SRTP_AEAD_AES_256_GCM"], ids=["cm", "gcm-256"])
async def test_every_srtp_profile_carries_media_and_repairs(
    server: Server, client: MediaClient, profile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtls, "PROFILES", {profile: dtls.PROFILES[profile]})
    dtls._context.cache_clear()
    try:
        async with (
            lossy_proxy(server.udp_port, loss_down=0.1, seed=5) as proxy,
            target(server, client) as clean,
            target(server, client, proxy) as lossy,
        ):
            publication = await clean.publish(MediaSource())
            subscription = await lossy.subscribe([publication.ref], verify=True)
            await subscription.wait_for_media()
            await asyncio.sleep(1.5)
            await subscription.leave()
            assert publication._link.peer.keys.profile == dtls.PROFILES[profile][0]  # type: ignore[attr-defined]
            assert subscription.figures().video.recovered > 0
            assert subscription.figures().pictures.wrong == 0
    finally:
        dtls._context.cache_clear()


async def test_a_subscriber_gets_the_layer_it_asks_for(server: Server, client: MediaClient) -> None:
    async with target(server, client) as torpor:
        publication = await torpor.publish(MediaSource(audio=False, height=720, simulcast=True))
        subscriptions = [await torpor.subscribe([publication.ref], rid=rid) for rid in ("f", "h", "q")]
        for subscription in subscriptions:
            await subscription.wait_for_media()
        await asyncio.sleep(2.0)
        full, half, quarter = (s.figures().video.bytes for s in subscriptions)
        assert full > 1.5 * half > 1.5 * 1.5 * quarter > 0


async def test_media_over_ipv6() -> None:
    async with (
        running_server("--media-addresses", "::1") as server,
        MediaClient(host="::1") as client,
        target(server, client) as torpor,
    ):
        publication = await torpor.publish(MediaSource())
        subscription = await torpor.subscribe([publication.ref])
        await subscription.wait_for_media()
        assert subscription.figures().silent_tracks == 0


async def test_one_subscription_takes_many_publications(server: Server, client: MediaClient) -> None:
    async with target(server, client) as torpor:
        publications = [await torpor.publish(MediaSource(height=180)) for _ in range(5)]
        subscription = await torpor.subscribe([p.ref for p in publications])
        await subscription.wait_for_media()
        figures = subscription.figures()
        assert (figures.tracks, figures.silent_tracks) == (10, 0)
        assert figures.audio.first_frame.count == figures.video.first_frame.count == 5


async def test_loss_towards_the_subscriber_is_repaired_and_never_seen_by_the_publisher(
    server: Server, client: MediaClient
) -> None:
    """NACK sent for gaps, answered from the server's cache; SHLD-1."""
    async with lossy_proxy(server.udp_port, loss_down=0.1, seed=7) as proxy, target(server, client) as clean:
        publication = await clean.publish(MediaSource(audio=False, height=720))
        async with target(server, client, proxy) as lossy:
            subscription = await lossy.subscribe([publication.ref], verify=True)
            await subscription.wait_for_media()
            await asyncio.sleep(SECONDS)
            await subscription.leave()
            video = subscription.figures().video
        assert video.lost_before_repair > 0.03 * video.expected
        assert video.lost_after_repair <= 0.005 * video.expected
        assert video.recovered == video.lost_before_repair - video.lost_after_repair
        assert video.nacks_sent >= video.recovered
        assert publication.figures().video.nacks_received == 0
        assert subscription.figures().pictures.wrong == 0


async def test_loss_from_the_publisher_is_answered_from_its_history(server: Server, client: MediaClient) -> None:
    """Each NACK brings the packet as RTX; what the server forwards has no hole."""
    async with lossy_proxy(server.udp_port, loss_up=0.1, seed=3) as proxy, target(server, client, proxy) as lossy:
        publication = await lossy.publish(MediaSource(audio=False, height=720))
        async with target(server, client) as clean:
            subscription = await clean.subscribe([publication.ref], verify=True)
            await subscription.wait_for_media()
            await asyncio.sleep(SECONDS)
            await subscription.leave()
            received = subscription.figures()
        sent = publication.figures().video
        assert sent.nacks_received > 0.03 * sent.packets
        assert sent.resent == sent.nacks_received
        assert sent.reported_lost > 0
        assert received.video.lost_after_repair <= 0.005 * received.video.expected
        assert received.pictures.wrong == 0


async def test_a_key_frame_request_is_answered_by_jumping_to_one(server: Server, client: MediaClient) -> None:
    async with target(server, client) as torpor:
        publication = await torpor.publish(MediaSource(audio=False))
        await asyncio.sleep(0.7)
        subscription = await torpor.subscribe([publication.ref])
        # The next key frame of the clip is 1.3 s away: a first frame before that came of the request.
        assert await subscription.wait_for_media() < 1.0
        assert publication.figures().video.plis_received >= 1
        assert publication.figures().video.keyframes >= 2


async def test_what_the_server_refuses_fails_with_its_reason(server: Server, client: MediaClient) -> None:
    async with target(server, client) as torpor:
        with pytest.raises(MediaFailed, match="not_found_track_error"):
            await torpor.subscribe([PublicationRef("0" * 32, ("video-none",))])
    wrong = TorporTarget(client, server.url, server.app_id, "0" * 64)
    with pytest.raises(MediaFailed, match="401 unauthorized"):
        await wrong.publish(MediaSource())
    await wrong.close()


async def test_a_server_that_goes_away_is_told_by_both_sides(client: MediaClient) -> None:
    async with running_server() as server:
        torpor = TorporTarget(client, server.url, server.app_id, server.app_secret)
        publication = await torpor.publish(MediaSource(video=None))
        subscription = await torpor.subscribe([publication.ref])
        assert publication.failure == subscription.failure == ""
    for _ in range(100):
        if publication.failure and subscription.failure:
            break
        await asyncio.sleep(0.05)
    assert publication.failure == "closed by the server"
    await torpor.close()
