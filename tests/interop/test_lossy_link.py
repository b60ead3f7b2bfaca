"""Bad links: a subscriber's is repaired by the server and unheard by the publisher, a publisher's once for everyone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiortc import RTCRtpSender

from tests.support.aiortc_peer import AiortcPeer, PulledTrack, loopback_only, open_peer, until
from tests.support.clips import EncodedTrack
from tests.support.figures import assert_no_media_state_left, drops, figures
from tests.support.light_peer import open_light_peer
from tests.support.lossy_proxy import lossy_proxy
from tests.support.server import Server, running_server
from wire.rtcp import Nack, ReceiverReport

__all__ = ["loopback_only"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("loopback_only")]

SUBSCRIBERS = 20
LOSS = 0.05
THREADS = "4"  # more than most test machines have cores: packets cross from thread to thread
UNREPAIRED_MAX = 0.005
PACKETS = 1500
"""To watch: about eight seconds."""
WARM_UP = 200
"""Packets at the start that are not judged: joining keeps this process busy while its sockets fill. Half as many at the
end may still be on their way."""


@asynccontextmanager
async def all_closed(server: Server) -> AsyncIterator[AsyncExitStack]:
    """A stack for peers; when they have left, the server holds nothing of them."""
    async with AsyncExitStack() as stack:
        yield stack
    await assert_no_media_state_left(server)


def assert_repaired(publisher: AiortcPeer, sender: RTCRtpSender, subscriber: AiortcPeer, pulled: PulledTrack) -> int:
    """What was sent is there, number by number; returns how many packets were looked at."""
    received = subscriber.packets_by_number(pulled)
    numbers = list(received)
    first, last = numbers[0] + WARM_UP, numbers[-1] - WARM_UP // 2
    settled = [number for number in numbers if first <= number <= last]
    missing = last + 1 - first - len(settled)
    assert missing <= len(settled) * UNREPAIRED_MAX, f"{missing} of {len(settled)} were not repaired"
    sent = [packet.payload for packet in publisher.recording.sent if packet.ssrc == sender._ssrc]
    begin = sent.index(received[numbers[0]].payload)
    assert all(received[number].payload == sent[begin + number - numbers[0]] for number in settled)
    return len(settled)


async def test_shld_1_a_subscriber_behind_5_percent_loss_repairs_from_the_server_and_the_publisher_hears_nothing() -> (
    None
):
    async with running_server("--media-threads", THREADS) as server, all_closed(server) as stack:
        publisher = await stack.enter_async_context(open_peer(server))
        senders = await publisher.publish(video=EncodedTrack("VP8"))
        await publisher.connected()

        others = [await stack.enter_async_context(open_light_peer(server)) for _ in range(SUBSCRIBERS - 2)]
        for peer in others:
            await peer.pull_video(publisher.session_id, "video")
        # One that asks for everything again and again (row 9 of the robustness table).
        hostile = await stack.enter_async_context(open_light_peer(server, decrypts=True))
        hostile_ssrc = await hostile.pull_video(publisher.session_id, "video")

        proxy = await stack.enter_async_context(lossy_proxy(server.udp_port, loss_down=LOSS))
        watched = await stack.enter_async_context(open_peer(server))
        watched.edit_sdp = proxy.redirect
        (pulled,) = await watched.pull(publisher, "video")

        await until("video", lambda: bool(watched.packets_received(pulled)) and bool(hostile.packets))
        while len(watched.packets_received(pulled)) < PACKETS:
            await asyncio.sleep(0.1)
            newest = hostile.packets[-1].seq
            for seq in range(newest - 200, newest + 100, 17):
                everything = tuple((seq + distance) & 0xFFFF for distance in range(17))
                hostile.send_feedback(Nack(1, hostile_ssrc, everything))

        assert proxy.lost > PACKETS * LOSS / 2, "the link was bad"
        settled = assert_repaired(publisher, senders["video"], watched, pulled)
        assert all(peer.datagrams > settled // 2 for peer in others)

        nacks = [packet for packet in publisher.recording.feedback if isinstance(packet, Nack)]
        assert nacks == []
        sampled = await figures(server)
        assert sampled["torpor_media_nacks_out_total"] == 0
        assert drops(sampled, "nack_budget") > 0, "the hostile one met its limit"


async def test_shld_2_a_publisher_behind_5_percent_loss_is_asked_and_its_subscribers_miss_nothing() -> None:
    async with running_server("--media-threads", THREADS) as server, all_closed(server) as stack:
        proxy = await stack.enter_async_context(lossy_proxy(server.udp_port, loss_up=LOSS))
        publisher = await stack.enter_async_context(open_peer(server))
        publisher.edit_sdp = proxy.redirect
        senders = await publisher.publish(video=EncodedTrack("VP8"))
        await publisher.connected()
        subscribers = [await stack.enter_async_context(open_peer(server)) for _ in range(2)]
        pulled = [(await subscriber.pull(publisher, "video"))[0] for subscriber in subscribers]
        await until(
            "video",
            lambda: min(len(s.packets_received(p)) for s, p in zip(subscribers, pulled, strict=True)) >= PACKETS,
            within=40,
        )
        assert proxy.lost > PACKETS * LOSS / 2, "the link was bad"
        for subscriber, track in zip(subscribers, pulled, strict=True):
            assert_repaired(publisher, senders["video"], subscriber, track)

        asked = [seq for packet in publisher.recording.feedback if isinstance(packet, Nack) for seq in packet.seqs]
        assert asked
        reports = [packet for packet in publisher.recording.feedback if isinstance(packet, ReceiverReport)]
        fractions = [b.fraction_lost for report in reports for b in report.reports if b.ssrc == senders["video"]._ssrc]
        assert fractions
        assert 256 * LOSS / 3 < sum(fractions) / len(fractions) < 256 * LOSS * 3, (
            "loss is told as it was, before repair"
        )
