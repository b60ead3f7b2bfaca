"""Media through the plane over loopback, against a peer written in plain Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import AUDIO, CM_80, GCM_128, GCM_256, VIDEO, Rtp, SrtpPeer, VideoSource

FROM_PUBLISHER = {1: dataplane.EXT_MID, 2: dataplane.EXT_TRANSPORT_CC, 3: dataplane.EXT_AUDIO_LEVEL, 4: dataplane.EXT_VIDEO_ORIENTATION}


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0)
    plane.start()
    yield plane
    plane.close()


@pytest.mark.parametrize("profile", [CM_80, GCM_128, GCM_256])
def test_a_packet_reaches_the_subscriber_under_the_subscribers_numbers(plane: Plane, profile: int) -> None:
    with SrtpPeer(plane, profile=profile) as publisher, SrtpPeer(plane, profile=profile) as subscriber:
        track = plane.add_track(
            publisher.transport, mid="0", video=True, codecs=VIDEO, extensions=FROM_PUBLISHER, ssrcs=[(1111, 0)]
        )
        forwarder = plane.add_forwarder(
            subscriber.transport, mid="vid", video=True, ssrc=7777, rtx_ssrc=0, cname="someone",
            extensions={dataplane.EXT_MID: 5, dataplane.EXT_TRANSPORT_CC: 9, dataplane.EXT_VIDEO_ORIENTATION: 2},
        )
        plane.set_source(forwarder, track, payload_types={96: 100}, rtx_payload_types={})
        source = VideoSource(publisher, 1111)
        source.extensions = {1: b"0", 3: b"\x7f", 4: b"\x01"}
        sent = source.send(key=True, size=3)
        subscriber.wait(lambda: len(subscriber.rtp) == 3)
        first = subscriber.rtp[0]
        counter = int.from_bytes(first.extensions[9])
        assert 1 <= first.seq <= 32767
        for number, (before, after) in enumerate(zip(sent, subscriber.rtp, strict=True)):
            assert after.payload == before.payload
            assert after.marker == before.marker
            assert (after.payload_type, after.ssrc, after.seq) == (100, 7777, first.seq + number)
            assert after.timestamp == first.timestamp
            assert after.extensions == {5: b"vid", 9: (counter + number).to_bytes(2), 2: b"\x01"}
