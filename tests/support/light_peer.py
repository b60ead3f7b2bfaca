"""A peer that costs next to nothing: real ICE, DTLS and SRTP, no codecs. For the many beside the one watched."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pylibsrtp import Policy, Session

from loadtest.media import sdp
from loadtest.media.peer import MediaPeer
from tests.support.aiortc_peer import Api
from tests.support.server import Server
from wire import rtcp, rtp
from wire.rtcp import RtcpPacket
from wire.rtp import RtpPacket

_PROFILES = {
    1: Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    7: Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    8: Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}


MEDIA_TYPE, RTX_TYPE = 96, 97
MID_ID, TRANSPORT_CC_ID = 1, 2


class LightPeer(MediaPeer):
    """One session that publishes or pulls VP8, packet by packet. Use `open_light_peer`.

    Attributes:
        datagrams: media datagrams received.
        packets: the RTP among them, in the clear; only when `decrypts`.
        feedback: the RTCP among them, in the clear; only when `decrypts`.
    """

    def __init__(self, api: Api, session_id: str, *, decrypts: bool) -> None:
        super().__init__()
        self.api = api
        self.session_id = session_id
        self.decrypts = decrypts
        self.datagrams = 0
        self.packets: list[RtpPacket] = []
        self.feedback: list[RtcpPacket] = []
        self._offer = ""
        self._incoming: Session | None = None
        self._outgoing: Session | None = None

    async def publish_video(self, name: str, ssrc: int) -> None:
        """Publish VP8 with RTX (on `ssrc` + 1) and transport-wide feedback, and connect."""
        offer = sdp.offer([sdp.Sending("0", "VP8", ssrc, ssrc + 1)], self.ufrag, self.password)
        answer = await self.api.call(
            "POST",
            f"/sessions/{self.session_id}/tracks/new",
            {
                "sessionDescription": {"type": "offer", "sdp": offer},
                "tracks": [{"location": "local", "mid": "0", "trackName": name}],
            },
        )
        assert "errorCode" not in answer["tracks"][0], answer
        await self._connect(sdp.parse(answer["sessionDescription"]["sdp"]))

    async def pull_video(self, publisher_session: str, name: str) -> int:
        """Pull one track and connect; returns the SSRC it will come under."""
        track = {"location": "remote", "sessionId": publisher_session, "trackName": name}
        answer = await self.api.call("POST", f"/sessions/{self.session_id}/tracks/new", {"tracks": [track]})
        assert "errorCode" not in answer["tracks"][0], answer
        self._offer = answer["sessionDescription"]["sdp"]
        offer = sdp.parse(self._offer)
        await self._renegotiate("answer")
        await self._connect(offer)
        return sdp.ssrcs_of(offer.sections[0])[0]

    async def _connect(self, remote: sdp.RemoteDescription) -> None:
        keys = await self.connect(remote)
        profile = _PROFILES[keys.profile]
        self._incoming = Session(Policy(keys.receive, Policy.SSRC_ANY_INBOUND, srtp_profile=profile))
        self._outgoing = Session(Policy(keys.send, Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile))
        self._listen()

    async def restart_ice(self) -> None:
        """New credentials, a new socket, a new check: the SRTP goes on as it was (ICE-7)."""
        old_ufrag, old_socket = self.remote_ufrag, self.socket
        self.ufrag, self.password = secrets.token_urlsafe(6), secrets.token_urlsafe(18)
        answer = await self._renegotiate("offer")
        self._remote = sdp.parse(answer["sessionDescription"]["sdp"])
        assert self.remote_ufrag != old_ufrag, "a restart answers with new credentials"
        asyncio.get_running_loop().remove_reader(old_socket)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.connect(old_socket.getpeername())
        old_socket.close()
        self._listen()
        self.check()

    @property
    def remote_ufrag(self) -> str:
        assert self._remote is not None
        return self._remote.ufrag

    def send(self, packet: RtpPacket | bytes) -> None:
        """Send one RTP packet; as bytes it need not be a valid one."""
        assert self._outgoing is not None
        data = packet if isinstance(packet, bytes) else packet.serialize()
        self.socket.send(self._outgoing.protect(data))

    def send_feedback(self, packet: RtcpPacket | bytes) -> None:
        """Send one RTCP packet; as bytes it need not be a valid one."""
        assert self._outgoing is not None
        data = packet if isinstance(packet, bytes) else packet.serialize()
        self.socket.send(self._outgoing.protect_rtcp(data))

    def close(self) -> None:
        if self._incoming is not None:
            asyncio.get_running_loop().remove_reader(self.socket)
        super().close()

    async def _renegotiate(self, kind: str) -> dict[str, Any]:
        setup = "active" if kind == "answer" else "actpass"
        text = sdp.answer(sdp.parse(self._offer), self.ufrag, self.password, setup=setup)
        description = {"type": kind, "sdp": text}
        path = f"/sessions/{self.session_id}/renegotiate"
        return await self.api.call("PUT", path, {"sessionDescription": description})

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self.socket, self._receive_media)

    def _receive_media(self) -> None:
        assert self._incoming is not None
        for _ in range(64):
            try:
                data = self.socket.recv(2048)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if not 128 <= data[0] <= 191:
                continue
            self.datagrams += 1
            if not self.decrypts:
                continue
            if 192 <= data[1] <= 223:
                self.feedback += rtcp.parse(self._incoming.unprotect_rtcp(data))
            else:
                self.packets.append(rtp.parse(self._incoming.unprotect(data)))


@asynccontextmanager
async def open_light_peer(server: Server, *, decrypts: bool = False) -> AsyncIterator[LightPeer]:
    """A new session and its socket; both end with the context."""
    api = Api(server)
    session = await api.call("POST", "/sessions/new", status=201)
    peer = LightPeer(api, session["sessionId"], decrypts=decrypts)
    try:
        yield peer
    finally:
        peer.close()
        await api.close()
