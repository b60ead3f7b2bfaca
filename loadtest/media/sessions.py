"""Publications and subscriptions over connected peers: the part that all servers share.

A target knows how descriptions are exchanged; what is offered, sent, received and counted is decided here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.histogram import Histogram
from loadtest.media import sdp
from loadtest.media.client import Link, MediaClient
from loadtest.media.clips import Clip, audio_clip, video_clip
from loadtest.media.figures import (
    PictureFigures,
    PublicationFigures,
    ReceiveFigures,
    SendFigures,
    SubscriptionFigures,
)
from loadtest.media.peer import ConnectFailed, MediaPeer
from loadtest.media.pictures import PictureCheck
from loadtest.media.sdp import RemoteDescription, Sending
from loadtest.media.source import LAYERS, MediaSource
from loadtest.media.target import MediaFailed, PublicationRef
from wire.rtp import HeaderExtension, serialize_extensions
from wire.sdp import MediaSection

FIRST_SEQ_MAX: Final = 0x7FFF  # RFC 3711 §3.3.1: a first packet lost just below a wrap would be guessed wrong
_POLL: Final = 0.02
_CODECS: Final = {"opus": 0, "vp8": 1, "h264": 2}  # as the plane numbers them

PublishExchange = Callable[[str, Sequence[Sending]], Awaitable[tuple[str, PublicationRef]]]
"""Our offer and what is in it, to the server's answer and how subscribers name the publication."""
SubscribeExchange = Callable[[str], Awaitable[None]]
"""Hands our answer to the server."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """One SSRC that we send."""

    sending: Sending
    clip: Clip
    ssrc: int
    rtx_ssrc: int
    rid: str


def _streams(source: MediaSource) -> list[_Stream]:
    """What a source is made of. Encodes what is not in the cache yet."""
    streams = []
    if source.audio:
        sending = Sending("0", "opus", _ssrc())
        streams.append(_Stream(sending, audio_clip(), sending.ssrc, 0, ""))
    if source.video is not None:
        sending = Sending(str(len(streams)), source.video, _ssrc(), _ssrc(), source.rids)
        for rid in source.rids or ("",):
            clip = video_clip(source.video, LAYERS[rid] if rid else source.height)
            ssrcs = (_ssrc(), _ssrc()) if rid else (sending.ssrc, sending.rtx_ssrc)
            streams.append(_Stream(sending, clip, *ssrcs, rid))
    return streams


def _ssrc() -> int:
    return secrets.randbelow(0xFFFFFFFE) + 1


class MediaPublication:
    """`target.Publication` over any server; made by `publish`."""

    def __init__(
        self,
        client: MediaClient,
        link: Link,
        ref: PublicationRef,
        kinds: Sequence[str],
        join_seconds: float,
        on_leave: Callable[[], Awaitable[None]],
    ) -> None:
        self.ref = ref
        self.join_seconds = join_seconds
        self._client, self._link, self._kinds, self._on_leave = client, link, kinds, on_leave
        self._joined_at = time.monotonic()
        self._final: PublicationFigures | None = None

    @property
    def failure(self) -> str:
        """Why it does not send any more, or empty."""
        return self._link.failure

    def figures(self) -> PublicationFigures:
        """Counters so far; after `leave`, as they were then."""
        if self._final is not None:
            return self._final
        streams = self._client.plane.outgoing_figures(self._link.id)
        by_kind = {"audio": SendFigures(), "video": SendFigures()}
        for kind, values in zip(self._kinds, streams, strict=True):
            by_kind[kind] = by_kind[kind].merge(
                SendFigures(**values | {"round_trip": Histogram.from_json(values["round_trip"])})
            )
        return PublicationFigures(
            publications=1,
            seconds=time.monotonic() - self._joined_at,
            join_seconds=_one(self.join_seconds),
            audio=by_kind["audio"],
            video=by_kind["video"],
        )

    async def leave(self) -> None:
        """Say close_notify and free everything. Idempotent."""
        if self._final is None:
            self._final = self.figures()
            self._client.release(self._link)
            await self._on_leave()


class MediaSubscription:
    """`target.Subscription` over any server; made by `subscribe`."""

    def __init__(
        self,
        client: MediaClient,
        link: Link,
        sections: Sequence[MediaSection],
        begun: float,
        check: PictureCheck | None,
        on_leave: Callable[[], Awaitable[None]],
    ) -> None:
        self.join_seconds = time.monotonic() - begun
        self._begun = begun
        self._client, self._link, self._check, self._on_leave = client, link, check, on_leave
        self._kinds = [section.kind for section in sections]
        self._joined_at = time.monotonic()
        self._final: SubscriptionFigures | None = None

    @property
    def failure(self) -> str:
        """Why it does not receive any more, or empty."""
        return self._link.failure

    async def wait_for_media(self, within: float = 10.0) -> float:
        """Wait until each track has brought a whole frame; seconds from the call to `subscribe`.

        Raises:
            MediaFailed: not `within` seconds, or the transport is dead.
        """
        deadline = time.monotonic() + within
        while silent := self._client.plane.silent(self._link.id):
            if self.failure or time.monotonic() > deadline:
                reason = self.failure or f"no media within {within} s"
                raise MediaFailed(f"{silent} of {len(self._kinds)} tracks silent: {reason}")
            await asyncio.sleep(_POLL)
        values = self._client.plane.incoming_figures(self._link.id)
        return float(max(v["first_frame_at"] for v in values)) - self._begun if values else 0.0

    def figures(self) -> SubscriptionFigures:
        """Counters so far; after `leave`, as they were then."""
        if self._final is not None:
            return self._final
        by_kind = {"audio": ReceiveFigures(), "video": ReceiveFigures()}
        silent = 0
        for kind, values in zip(self._kinds, self._client.plane.incoming_figures(self._link.id), strict=True):
            by_kind[kind] = by_kind[kind].merge(self._receive_figures(values))
            silent += not values["frames"]
        return SubscriptionFigures(
            subscriptions=1,
            tracks=len(self._kinds),
            silent_tracks=silent,
            seconds=time.monotonic() - self._joined_at,
            join_seconds=_one(self.join_seconds),
            audio=by_kind["audio"],
            video=by_kind["video"],
            pictures=self._check.figures() if self._check else PictureFigures(),
        )

    async def leave(self) -> None:
        """Say close_notify and free everything. Idempotent."""
        if self._final is not None:
            return
        if self._check is not None:
            self._link.on_media = None
            self._client.decode_seconds += await self._check.close()
        self._final = self.figures()
        self._client.release(self._link)
        await self._on_leave()

    def _receive_figures(self, values: dict[str, Any]) -> ReceiveFigures:
        first_frame_at = values.pop("first_frame_at")
        histograms = {name: Histogram.from_json(values[name]) for name in ("delay", "jitter")}
        first_frame = _one(first_frame_at - self._begun) if first_frame_at else Histogram()
        return ReceiveFigures(**values | histograms, first_frame=first_frame)


async def publish(
    client: MediaClient,
    source: MediaSource,
    exchange: PublishExchange,
    *,
    setup: str = "actpass",
    redirect: Callable[[str], str] | None = None,
    on_leave: Callable[[], Awaitable[None]],
) -> MediaPublication:
    """Offer a source, connect, send.

    Args:
        exchange: the server's signalling.
        setup: of our offer.
        redirect: changes the server's description before it is read: leads its candidates elsewhere.
        on_leave: tells the server that we are gone, where close_notify is not enough.

    Raises:
        MediaFailed: refused, or not connected in time.
    """
    streams = await asyncio.to_thread(_streams, source)
    for stream in streams:
        client.clip(stream.clip)
    begun = time.monotonic()  # media that is made for the first time is no part of a join
    sendings = list({stream.sending.mid: stream.sending for stream in streams}.values())
    peer = client.new_peer()
    try:
        text, ref = await exchange(sdp.offer(sendings, peer.ufrag, peer.password, setup=setup), sendings)
        remote = await _connect(peer, redirect(text) if redirect else text)
        sections = {section.mid: section for section in remote.sections if not section.rejected}
        if missing := [sending.mid for sending in sendings if sending.mid not in sections]:
            raise MediaFailed(f"the server rejected m-sections {', '.join(missing)}")
    except BaseException:
        peer.close()
        raise
    link = client.serve(peer, transport_cc_id=0)
    try:
        phase_us = secrets.randbelow(33_000)  # publishers of one process must not send in step
        for stream in streams:
            _send(client, link, stream, sections[stream.sending.mid], phase_us)
        client.plane.start_peer(link.id)
    except BaseException:
        client.release(link)
        raise
    kinds = [stream.sending.kind for stream in streams]
    return MediaPublication(client, link, ref, kinds, time.monotonic() - begun, on_leave)


async def subscribe(
    client: MediaClient,
    begun: float,
    offer: str,
    exchange: SubscribeExchange,
    *,
    verify: bool = False,
    redirect: Callable[[str], str] | None = None,
    on_leave: Callable[[], Awaitable[None]],
) -> MediaSubscription:
    """Answer a server's offer, connect, receive.

    Args:
        begun: monotonic time when the subscriber began to join.
        verify: decode video and compare its pictures.
        exchange, redirect, on_leave: as for `publish`.

    Raises:
        MediaFailed: refused, or not connected in time.
    """
    try:
        remote = sdp.parse(redirect(offer) if redirect else offer)
    except ValueError as error:
        raise MediaFailed(f"the server's offer: {error}") from error
    peer = client.new_peer()
    try:
        await exchange(sdp.answer(remote, peer.ufrag, peer.password))
        await _connect(peer, remote)
    except BaseException:
        peer.close()
        raise
    sections = [section for section in remote.sections if not section.rejected and section.direction.sends]
    transport_cc_id = next((number for s in sections if (number := sdp.extension_id(s, sdp.TRANSPORT_CC))), 0)
    link = client.serve(peer, transport_cc_id=transport_cc_id)
    try:
        codecs = [_receive(client, link, section, verify=verify) for section in sections]
        check = PictureCheck(codecs) if verify else None
        link.on_media = check.receive if check is not None else None
        client.plane.start_peer(link.id)
    except BaseException:
        client.release(link)
        raise
    return MediaSubscription(client, link, sections, begun, check, on_leave)


async def _connect(peer: MediaPeer, description: str | RemoteDescription) -> RemoteDescription:
    try:
        remote = sdp.parse(description) if isinstance(description, str) else description
        await peer.connect(remote)
    except (ConnectFailed, ValueError) as error:
        raise MediaFailed(str(error)) from error
    return remote


def _send(client: MediaClient, link: Link, stream: _Stream, section: MediaSection, phase_us: int) -> None:
    codec = sdp.codec_of(section)
    rtx = sdp.rtx_of(section, codec) if stream.rtx_ssrc else 0
    client.plane.add_outgoing(
        link.id,
        client.clip(stream.clip),
        ssrc=stream.ssrc,
        payload_type=codec.payload_type,
        rtx_ssrc=stream.rtx_ssrc if rtx else 0,
        rtx_payload_type=rtx,
        extensions=_extensions(section, stream.rid, sdp.RID),
        rtx_extensions=_extensions(section, stream.rid, sdp.REPAIRED_RID),
        first_seq=secrets.randbelow(FIRST_SEQ_MAX) + 1,
        timestamp=secrets.randbelow(2**32),
        frame=0,
        delay_us=phase_us,
    )


def _extensions(section: MediaSection, rid: str, rid_uri: str) -> tuple[bytes, int]:
    """The header extension block, and where the transport-wide number goes in it (-1: nowhere)."""
    elements = []
    if (number := sdp.extension_id(section, sdp.TRANSPORT_CC)) > 0:
        elements.append(HeaderExtension(number, b"\0\0"))
    transport_cc_at = 5 if elements else -1  # behind four bytes of head and one of its own
    if (number := sdp.extension_id(section, sdp.MID)) and section.mid is not None:
        elements.append(HeaderExtension(number, section.mid.encode()))
    if rid and (number := sdp.extension_id(section, rid_uri)):
        elements.append(HeaderExtension(number, rid.encode()))
    return serialize_extensions(elements) if elements else b"", transport_cc_at


def _receive(client: MediaClient, link: Link, section: MediaSection, *, verify: bool) -> str:
    """Count a section the server sends; returns its codec."""
    codec = sdp.codec_of(section)
    ssrc, rtx_ssrc = sdp.ssrcs_of(section)
    name = codec.name.lower()
    client.plane.add_incoming(
        link.id,
        ssrc=ssrc,
        rtx_ssrc=rtx_ssrc if sdp.rtx_of(section, codec) else 0,
        codec=_CODECS[name],
        clock_rate=codec.clock_rate,
        asks="nack" in codec.feedback,
        hand_up=verify and section.kind == "video",
    )
    return name


def _one(seconds: float) -> Histogram:
    histogram = Histogram()
    histogram.record(seconds)
    return histogram
