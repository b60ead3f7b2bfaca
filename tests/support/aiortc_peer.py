"""aiortc as the independent peer: a peer connection and its session at the server, joined by the public HTTP API.

Everything that passes the peer's SRTP is recorded in the clear, parsed by our own codecs, so that a test can compare
what one peer sent with what another received.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aioice.ice
import httpx
import pytest
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.rtp import is_rtcp
from aiortc.sdp import SessionDescription

from tests.support.clips import EncodedTrack
from tests.support.server import Server
from wire import rtcp, rtp
from wire.rtcp import RtcpPacket
from wire.rtp import RtpPacket

CONNECT_TIMEOUT = 15.0
MID_EXTENSION = "urn:ietf:params:rtp-hdrext:sdes:mid"


class Api:
    """The session API of one app, as a client without any library would call it."""

    def __init__(self, server: Server) -> None:
        self._client = httpx.AsyncClient(base_url=server.api, headers=server.authorization, timeout=20.0)

    async def call(self, method: str, path: str, body: Any = None, *, status: int = 200) -> dict[str, Any]:
        """One request; an answer with another `status` fails the test with what the server said."""
        response = await self._client.request(method, path, json=body)
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def close(self) -> None:
        await self._client.aclose()


@dataclass
class Recording:
    """What passed one transport, in order."""

    sent: list[RtpPacket] = field(default_factory=list)
    received: list[RtpPacket] = field(default_factory=list)
    feedback: list[RtcpPacket] = field(default_factory=list)
    """RTCP received."""

    def attach(self, transport: RTCDtlsTransport) -> None:
        """Record what `transport` sends and receives from now on."""
        send_rtp, handle_rtp, handle_rtcp = (
            transport._send_rtp,
            transport._handle_rtp_data,
            transport._handle_rtcp_data,
        )

        async def record_send(data: bytes) -> None:
            if not is_rtcp(data):
                self.sent.append(rtp.parse(data))
            await send_rtp(data)

        async def record_rtp(data: bytes, arrival_time_ms: int) -> None:
            self.received.append(rtp.parse(data))
            await handle_rtp(data, arrival_time_ms)

        async def record_rtcp(data: bytes) -> None:
            self.feedback += rtcp.parse(data)
            await handle_rtcp(data)

        transport._send_rtp = record_send
        transport._handle_rtp_data = record_rtp
        transport._handle_rtcp_data = record_rtcp


@dataclass(frozen=True)
class PulledTrack:
    """A track as the server offered it."""

    name: str
    mid: str
    ssrc: int
    rtx_ssrc: int | None
    mid_extension: int | None
    """Wire id of the MID header extension, where it was offered."""


class AiortcPeer:
    """One session. Use `open_peer`."""

    def __init__(self, api: Api, session_id: str, relays: Sequence[RTCIceServer] = ()) -> None:
        self.api = api
        self.session_id = session_id
        self.connection = RTCPeerConnection(
            RTCConfiguration(
                iceServers=list(relays),
                iceTransportPolicy=RTCIceTransportPolicy.RELAY if relays else RTCIceTransportPolicy.ALL,
                bundlePolicy=RTCBundlePolicy.MAX_BUNDLE,
            )
        )
        self.recording = Recording()
        self.edit_sdp: Callable[[str], str] = lambda sdp: sdp
        """Applied to each description of the server before aiortc sees it."""
        self.edit_own_sdp: Callable[[str], str] = lambda sdp: sdp
        """Applied to each of our descriptions before the server sees it."""
        self._attached: set[RTCDtlsTransport] = set()

    async def publish(self, **tracks: MediaStreamTrack) -> dict[str, RTCRtpSender]:
        """Publish `tracks` under their keywords' names; returns their senders."""
        transceivers = {}
        for name, track in tracks.items():
            transceiver = self.connection.addTransceiver(track, direction="sendonly")
            if isinstance(track, EncodedTrack):
                wanted = f"{track.kind}/{track.codec}"
                codecs = RTCRtpSender.getCapabilities(track.kind).codecs
                transceiver.setCodecPreferences([c for c in codecs if c.mimeType in (wanted, f"{track.kind}/rtx")])
            transceivers[name] = transceiver
        await self.connection.setLocalDescription(await self.connection.createOffer())
        answer = await self.api.call(
            "POST",
            f"/sessions/{self.session_id}/tracks/new",
            {
                "sessionDescription": self._local_description(),
                "tracks": [
                    {"location": "local", "mid": transceiver.mid, "trackName": name}
                    for name, transceiver in transceivers.items()
                ],
            },
        )
        assert all("errorCode" not in item for item in answer["tracks"]), answer["tracks"]
        await self._set_remote_description(answer["sessionDescription"])
        return {name: transceiver.sender for name, transceiver in transceivers.items()}

    async def pull(self, publisher: AiortcPeer, *names: str) -> list[PulledTrack]:
        """Subscribe to tracks of `publisher`."""
        answer = await self.api.call(
            "POST",
            f"/sessions/{self.session_id}/tracks/new",
            {
                "tracks": [
                    {"location": "remote", "sessionId": publisher.session_id, "trackName": name} for name in names
                ]
            },
        )
        assert all("errorCode" not in item for item in answer["tracks"]), answer["tracks"]
        assert answer["requiresImmediateRenegotiation"] is True
        offer = answer["sessionDescription"]
        await self._set_remote_description(offer)
        await self.connection.setLocalDescription(await self.connection.createAnswer())
        path = f"/sessions/{self.session_id}/renegotiate"
        await self.api.call("PUT", path, {"sessionDescription": self._local_description()})
        return _pulled_tracks(offer["sdp"], {item["mid"]: item["trackName"] for item in answer["tracks"]})

    async def force_close_tracks(self, mids: Sequence[str]) -> None:
        """Close the tracks of `mids` without SDP: their sections stay, and may serve the next track."""
        body = {"tracks": [{"mid": mid} for mid in mids], "force": True}
        answer = await self.api.call("PUT", f"/sessions/{self.session_id}/tracks/close", body)
        assert all("errorCode" not in item for item in answer["tracks"]), answer["tracks"]

    async def close_tracks(self, mids: Sequence[str]) -> None:
        """Make the transceivers of `mids` inactive, and close their tracks with an offer."""
        for transceiver in self.connection.getTransceivers():
            if transceiver.mid in mids:
                transceiver.direction = "inactive"
        await self.connection.setLocalDescription(await self.connection.createOffer())
        answer = await self.api.call(
            "PUT",
            f"/sessions/{self.session_id}/tracks/close",
            {
                "tracks": [{"mid": mid} for mid in mids],
                "sessionDescription": self._local_description(),
                "force": False,
            },
        )
        assert all("errorCode" not in item for item in answer["tracks"]), answer["tracks"]
        await self._set_remote_description(answer["sessionDescription"])

    async def connected(self) -> None:
        """Wait until the peer connection is up."""
        await self.reach("connected")

    async def reach(self, state: str) -> None:
        """Wait for a `connectionState`."""
        await until(f"state {state}", lambda: self.connection.connectionState == state, within=CONNECT_TIMEOUT)

    async def close(self) -> None:
        await self.connection.close()

    def packets_received(self, pulled: PulledTrack) -> list[RtpPacket]:
        """The packets of a track as they came, repairs not among them."""
        return [packet for packet in self.recording.received if packet.ssrc == pulled.ssrc]

    def packets_by_number(self, pulled: PulledTrack) -> dict[int, RtpPacket]:
        """The packets of a track by unwrapped sequence number, ascending; repairs in the places of what they repair."""
        packets: dict[int, RtpPacket] = {}
        highest: int | None = None
        for packet in self.recording.received:
            if packet.ssrc == pulled.rtx_ssrc and len(packet.payload) > 2:
                packet = replace(packet, seq=int.from_bytes(packet.payload[:2]), payload=packet.payload[2:])
            elif packet.ssrc != pulled.ssrc:
                continue
            if highest is None:
                highest = (1 << 16) + packet.seq
            number = highest + ((packet.seq - highest + 0x8000) & 0xFFFF) - 0x8000
            highest = max(highest, number)
            known = packets.setdefault(number, packet)
            assert known.payload == packet.payload, "a number stands for one payload"
        return {number: packets[number] for number in sorted(packets)}

    def _local_description(self) -> dict[str, str]:
        description = self.connection.localDescription
        return {"type": description.type, "sdp": self.edit_own_sdp(description.sdp)}

    async def _set_remote_description(self, description: dict[str, str]) -> None:
        sdp = self.edit_sdp(description["sdp"])
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, description["type"]))
        for transceiver in self.connection.getTransceivers():
            transport = transceiver.sender.transport
            if transport not in self._attached:
                self._attached.add(transport)
                self.recording.attach(transport)


def _pulled_tracks(offer: str, names: dict[str, str]) -> list[PulledTrack]:
    tracks = []
    for media in SessionDescription.parse(offer).media:
        if media.rtp.muxId not in names:
            continue
        repaired = {group.items[0]: group.items[1] for group in media.ssrc_group if group.semantic == "FID"}
        ssrc, mid = media.ssrc[0].ssrc, media.rtp.muxId
        extensions = {extension.uri: extension.id for extension in media.rtp.headerExtensions}
        tracks.append(PulledTrack(names[mid], mid, ssrc, repaired.get(ssrc), extensions.get(MID_EXTENSION)))
    return tracks


@asynccontextmanager
async def open_peer(server: Server, *, relays: Sequence[RTCIceServer] = ()) -> AsyncIterator[AiortcPeer]:
    """A new session and its peer connection; both end with the context. With `relays` it uses nothing but them."""
    api = Api(server)
    session = await api.call("POST", "/sessions/new", status=201)
    peer = AiortcPeer(api, session["sessionId"], relays)
    try:
        yield peer
    finally:
        await peer.close()
        await api.close()


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let aiortc gather 127.0.0.1 and nothing else, whatever network the machine has."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


async def until(what: str, condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait for `condition`; after `within` seconds the test fails, saying what it waited for."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"waited {within} s for {what}"
        await asyncio.sleep(0.02)
