"""A client changes its network: new ICE credentials by an offer, a new address, and the same SRTP goes on (ICE-7)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.aiortc_peer import loopback_only, open_peer, until
from tests.support.clips import EncodedTrack
from tests.support.light_peer import open_light_peer
from tests.support.server import running_server

__all__ = ["loopback_only"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("loopback_only")]


async def test_ice_7_after_a_restart_media_goes_on_to_the_new_address_without_a_handshake() -> None:
    async with (
        running_server() as server,
        open_peer(server) as publisher,
        open_light_peer(server, decrypts=True) as peer,
    ):
        await publisher.publish(video=EncodedTrack("VP8"))
        await publisher.connected()
        ssrc = await peer.pull_video(publisher.session_id, "video")
        await until("video", lambda: len(peer.packets) >= 50)
        before = len(peer.packets)
        await peer.restart_ice()
        await until("video after the restart", lambda: len(peer.packets) >= before + 100)
        seqs = [packet.seq for packet in peer.packets[before:] if packet.ssrc == ssrc]
        assert all((b - a) & 0xFFFF == 1 for a, b in pairwise(seqs))
