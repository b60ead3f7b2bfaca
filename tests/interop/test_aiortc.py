"""aiortc publishes and pulls through the public API of a server of its own; what arrives equals what was sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiortc import RTCRtpSender, rtcdtlstransport
from aiortc.rtcdtlstransport import SRTPProtectionProfile
from aiortc.sdp import SessionDescription

from tests.support.aiortc_peer import AiortcPeer, PulledTrack, loopback_only, open_peer, until
from tests.support.clips import EncodedTrack
from tests.support.server import Server, running_server
from wire import rtcp

__all__ = ["loopback_only"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("loopback_only"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(server: Server) -> AsyncIterator[AiortcPeer]:
    async with open_peer(server) as peer:
        yield peer


@pytest_asyncio.fixture(loop_scope="module")
async def subscriber(server: Server) -> AsyncIterator[AiortcPeer]:
    async with open_peer(server) as peer:
        yield peer


def assert_forwarded_exactly(
    publisher: AiortcPeer, sender: RTCRtpSender, subscriber: AiortcPeer, pulled: PulledTrack
) -> None:
    """The subscriber has a piece of what the sender sent: number by number the same payload, marker, distance in time.

    A number may be missing, since a socket buffer overflows when the machine stalls; none may stand for another packet.
    """
    sent = [packet for packet in publisher.recording.sent if packet.ssrc == sender._ssrc]
    received = subscriber.packets_by_number(pulled)
    first_number, first = next(iter(received.items()))
    begin = next(index for index, packet in enumerate(sent) if packet.payload == first.payload)
    for number, packet in received.items():
        original = sent[begin + number - first_number]
        assert packet.payload == original.payload
        assert packet.marker == original.marker
        assert (packet.timestamp - first.timestamp) & 0xFFFFFFFF == (
            original.timestamp - sent[begin].timestamp
        ) & 0xFFFFFFFF
    assert len(received) >= 0.95 * (max(received) - first_number + 1)
    packets = subscriber.packets_received(pulled)
    assert len({packet.payload_type for packet in packets}) == 1
    assert pulled.mid_extension is not None
    assert {packet.extension(pulled.mid_extension) for packet in packets} == {pulled.mid.encode()}
    assert pulled.ssrc != sender._ssrc


class TestForwarding:
    """FWD-1 to FWD-3, RX-5, SW-1: one publisher, one subscriber, no loss."""

    @pytest.mark.parametrize("codec", ["VP8", "H264"])
    async def test_video_and_opus_arrive_bit_for_bit(
        self, publisher: AiortcPeer, subscriber: AiortcPeer, codec: str
    ) -> None:
        senders = await publisher.publish(video=EncodedTrack(codec), audio=EncodedTrack("opus"))
        await publisher.connected()
        tracks = await subscriber.pull(publisher, "video", "audio")
        await subscriber.connected()
        for pulled, packets in zip(tracks, (200, 80), strict=True):
            await until(pulled.name, lambda p=pulled, n=packets: len(subscriber.packets_received(p)) >= n)  # type: ignore[misc]
            assert_forwarded_exactly(publisher, senders[pulled.name], subscriber, pulled)

    async def test_a_subscriber_hears_the_publishers_clock(self, publisher: AiortcPeer, subscriber: AiortcPeer) -> None:
        """RTCP-2: sender reports carry the publisher's NTP time, and the timestamp as it was sent on."""
        senders = await publisher.publish(audio=EncodedTrack("opus"))
        await publisher.connected()
        (pulled,) = await subscriber.pull(publisher, "audio")

        def reports() -> list[rtcp.SenderReport]:
            found = [p for p in subscriber.recording.feedback if isinstance(p, rtcp.SenderReport)]
            return [report for report in found if report.ssrc == pulled.ssrc]

        await until("two sender reports", lambda: len(reports()) >= 2, within=15)
        last = reports()[-1]
        sent = [p for p in publisher.recording.sent if p.ssrc == senders["audio"]._ssrc]
        received = subscriber.packets_received(pulled)
        original = next(p for p in sent if p.payload == received[0].payload)
        # The same instant on both clocks: the publisher's timestamp at the report's time, from its own pace.
        offset = (received[0].timestamp - original.timestamp) & 0xFFFFFFFF
        assert last.packet_count <= len(received) + 5
        published_at_report = (last.rtp_timestamp - offset) & 0xFFFFFFFF
        distances = [((p.timestamp - published_at_report + (1 << 31)) & 0xFFFFFFFF) - (1 << 31) for p in sent]
        assert min(map(abs, distances)) <= 48_000 // 5, "within 200 ms of something that was sent"

    async def test_many_subscribers_get_the_same(self, server: Server, publisher: AiortcPeer) -> None:
        senders = await publisher.publish(video=EncodedTrack("VP8"))
        await publisher.connected()
        async with open_peer(server) as first, open_peer(server) as second, open_peer(server) as third:
            pulled = [await peer.pull(publisher, "video") for peer in (first, second, third)]
            for peer, (track,) in zip((first, second, third), pulled, strict=True):
                await until("video", lambda p=peer, t=track: len(p.packets_received(t)) >= 100)  # type: ignore[misc]
                assert_forwarded_exactly(publisher, senders["video"], peer, track)


class TestRenegotiation:
    """SDP-7."""

    @pytest.mark.parametrize("force", [True, False], ids=["without SDP", "with an offer"])
    async def test_after_20_cycles_of_pulling_and_closing_the_last_track_plays(
        self, publisher: AiortcPeer, subscriber: AiortcPeer, force: bool
    ) -> None:
        senders = await publisher.publish(audio=EncodedTrack("opus"))
        await publisher.connected()
        ssrcs = []
        for _ in range(20):
            (pulled,) = await subscriber.pull(publisher, "audio")
            await subscriber.connected()
            await until("audio", lambda p=pulled: len(subscriber.packets_received(p)) >= 3)  # type: ignore[misc]
            ssrcs.append(pulled.ssrc)
            await (subscriber.force_close_tracks if force else subscriber.close_tracks)([pulled.mid])
        (pulled,) = await subscriber.pull(publisher, "audio")
        await until("audio", lambda: len(subscriber.packets_received(pulled)) >= 50)
        assert_forwarded_exactly(publisher, senders["audio"], subscriber, pulled)
        assert len({*ssrcs, pulled.ssrc}) == 21, "SRTP-4: an SSRC serves once"
        if force:  # aiortc cannot stop a transceiver: closed with an offer, its sections are never free again
            description = SessionDescription.parse(subscriber.connection.remoteDescription.sdp)
            assert len([media for media in description.media if media.kind == "audio"]) <= 2

    async def test_a_closed_track_brings_no_more_packets(self, publisher: AiortcPeer, subscriber: AiortcPeer) -> None:
        await publisher.publish(audio=EncodedTrack("opus"))
        await publisher.connected()
        (pulled,) = await subscriber.pull(publisher, "audio")
        await until("audio", lambda: len(subscriber.packets_received(pulled)) >= 10)
        await subscriber.close_tracks([pulled.mid])
        await asyncio.sleep(0.1)
        count = len(subscriber.packets_received(pulled))
        await asyncio.sleep(0.3)
        assert len(subscriber.packets_received(pulled)) == count


class TestEnd:
    """DTLS-5, realtime-api.md §5: close_notify ends a session at once; its subscribers keep an inactive track."""

    async def test_a_publisher_that_closes_is_gone_at_once(self, publisher: AiortcPeer, subscriber: AiortcPeer) -> None:
        await publisher.publish(audio=EncodedTrack("opus"))
        await publisher.connected()
        (pulled,) = await subscriber.pull(publisher, "audio")
        await until("audio", lambda: len(subscriber.packets_received(pulled)) >= 10)
        (track,) = (await subscriber.api.call("GET", f"/sessions/{subscriber.session_id}"))["tracks"]
        assert track["status"] == "active"
        await publisher.close()
        await asyncio.sleep(0.2)
        await publisher.api.call("GET", f"/sessions/{publisher.session_id}", status=410)
        (track,) = (await subscriber.api.call("GET", f"/sessions/{subscriber.session_id}"))["tracks"]
        assert (track["mid"], track["status"]) == (pulled.mid, "inactive")
        again = await subscriber.api.call(
            "POST",
            f"/sessions/{subscriber.session_id}/tracks/new",
            {"tracks": [{"location": "remote", "sessionId": publisher.session_id, "trackName": "audio"}]},
        )
        assert again["tracks"][0]["errorCode"] == "not_found_track_error"


CM_32 = SRTPProtectionProfile(
    libsrtp_profile=rtcdtlstransport.SRTP_AES128_CM_SHA1_80.libsrtp_profile,
    openssl_profile=b"SRTP_AES128_CM_SHA1_32",
    key_length=16,
    salt_length=14,
)


class TestSecurity:
    """DTLS-2, DTLS-3."""

    @pytest.mark.parametrize(
        "profile",
        [
            rtcdtlstransport.SRTP_AES128_CM_SHA1_80,
            rtcdtlstransport.SRTP_AEAD_AES_128_GCM,
            rtcdtlstransport.SRTP_AEAD_AES_256_GCM,
        ],
        ids=lambda profile: profile.openssl_profile.decode(),
    )
    async def test_dtls_3_a_client_with_one_profile_gets_it(
        self,
        server: Server,
        publisher: AiortcPeer,
        monkeypatch: pytest.MonkeyPatch,
        profile: SRTPProtectionProfile,
    ) -> None:
        senders = await publisher.publish(audio=EncodedTrack("opus"))
        await publisher.connected()
        monkeypatch.setattr(rtcdtlstransport, "SRTP_PROFILES", [profile])
        async with open_peer(server) as subscriber:
            (pulled,) = await subscriber.pull(publisher, "audio")
            await subscriber.connected()
            (transport,) = {t.receiver.transport for t in subscriber.connection.getTransceivers()}
            assert transport._ssl.get_selected_srtp_profile() == profile.openssl_profile
            await until("audio", lambda: len(subscriber.packets_received(pulled)) >= 20)
            assert_forwarded_exactly(publisher, senders["audio"], subscriber, pulled)

    async def test_dtls_3_a_client_with_only_a_short_tag_is_refused(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rtcdtlstransport, "SRTP_PROFILES", [CM_32])
        async with open_peer(server) as peer:
            await peer.publish(audio=EncodedTrack("opus"))
            await peer.reach("failed")

    async def test_dtls_2_another_certificate_than_announced_means_failed_and_no_media(
        self, server: Server, publisher: AiortcPeer, subscriber: AiortcPeer
    ) -> None:
        publisher.edit_own_sdp = lambda sdp: re.sub(
            r"(a=fingerprint:\S+ )(..)", lambda m: m[1] + ("00" if m[2] != "00" else "11"), sdp
        )
        await publisher.publish(audio=EncodedTrack("opus"))
        await until("the refusal", lambda: any("fingerprint mismatch" in record["event"] for record in server.log))
        response = await subscriber.api.call(
            "POST",
            f"/sessions/{subscriber.session_id}/tracks/new",
            {"tracks": [{"location": "remote", "sessionId": publisher.session_id, "trackName": "audio"}]},
        )
        assert response["tracks"][0]["errorCode"] in ("not_found_track_error", "empty_track_error")
        await publisher.api.call("GET", f"/sessions/{publisher.session_id}", status=410)
        assert publisher.recording.feedback == []
