"""Real browsers among the light clients: headless Chromium pages that publish and subscribe over the sessions API.

They cost a good part of a core each, so mix in a few: what they see (`getStats`) is what users see. Figures that a
browser does not know (end-to-end delay, reordering) stay empty. Needs the `playwright` package and Debian's Chromium.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtest.histogram import Histogram
from loadtest.media.figures import PublicationFigures, ReceiveFigures, SendFigures, SubscriptionFigures
from loadtest.media.source import MediaSource
from loadtest.media.target import MediaFailed, MediaTarget, Publication, PublicationRef, Subscription
from loadtest.media.torpor import SessionsApi
from loadtest.peers.debian import ensure_installed

EXECUTABLE: Final = "/usr/bin/chromium"
CONNECT_TIMEOUT: Final = 20.0
_POLL: Final = 1.0

_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

# A canvas that changes 30 times a second and a tone: no device, no permission, no secure origin needed.
_SCRIPT: Final = """
window.load = {
  async publish({audio, video, codec, height, rids}) {
    const pc = window.load.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
    const sections = [];
    if (audio) {
      const context = new AudioContext(), tone = context.createOscillator();
      const sink = context.createMediaStreamDestination();
      tone.connect(sink); tone.start();
      sections.push(["audio", pc.addTransceiver(sink.stream.getAudioTracks()[0], {direction: "sendonly"})]);
    }
    if (video) {
      const canvas = document.createElement("canvas"), draw = canvas.getContext("2d");
      canvas.width = height * 16 / 9; canvas.height = height;
      let n = 0;
      setInterval(() => {
        draw.fillStyle = `hsl(${n % 360} 60% 50%)`; draw.fillRect(0, 0, canvas.width, canvas.height);
        draw.fillStyle = "white"; draw.font = `${height / 4}px sans-serif`;
        draw.fillText(n++, (n * 5) % canvas.width, height / 2);
      }, 1000 / 30);
      const scale = {f: 1, h: 2, q: 4}, best = Math.min(...rids.map((rid) => scale[rid]));
      const sendEncodings = rids.map((rid) => ({rid, scaleResolutionDownBy: scale[rid] / best}));
      const track = canvas.captureStream(30).getVideoTracks()[0];
      const options = {direction: "sendonly", ...(rids.length ? {sendEncodings} : {})};
      const transceiver = pc.addTransceiver(track, options);
      const {codecs} = RTCRtpSender.getCapabilities("video");
      const wanted = codecs.filter((c) => [`video/${codec}`, "video/rtx"].includes(c.mimeType));
      transceiver.setCodecPreferences(wanted);
      sections.push(["video", transceiver]);
    }
    await pc.setLocalDescription();
    return {sdp: pc.localDescription.sdp, sections: sections.map(([kind, t]) => [kind, t.mid])};
  },
  async subscribe(sdp) {
    const pc = window.load.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
    pc.ontrack = ({track, transceiver}) => {
      const element = document.createElement(track.kind);
      element.srcObject = new MediaStream([track]); element.autoplay = true; element.muted = true;
      document.body.append(element);
    };
    await pc.setRemoteDescription({type: "offer", sdp});
    await pc.setLocalDescription();
    return pc.localDescription.sdp;
  },
  answer: (sdp) => window.load.pc.setRemoteDescription({type: "answer", sdp}),
  state: () => window.load.pc.connectionState,
  stats: async () => [...(await window.load.pc.getStats()).values()],
  close: () => window.load.pc && window.load.pc.close(),
};
"""


class _Page:
    """One page with one peer connection, asked for its statistics once a second."""

    def __init__(self, page: Any, target: ChromiumTarget) -> None:
        self.page = page
        self.begun = time.monotonic()
        self.join_seconds = 0.0
        self.entries: list[dict[str, Any]] = []
        self.state = "new"
        self._target = target
        self._joined_at = 0.0
        self._left_at = 0.0
        self._poll: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str:
        """Why its connection is dead, or empty."""
        return f"connection {self.state}" if self.state in ("failed", "closed") else ""

    @property
    def seconds(self) -> float:
        """Since joined, until left."""
        return (self._left_at or time.monotonic()) - self._joined_at

    async def connect(self) -> None:
        """Wait until ICE and DTLS are done. Raises `MediaFailed`."""
        for _ in range(int(CONNECT_TIMEOUT / 0.05)):
            self.state = await self.page.evaluate("load.state()")
            if self.state == "connected":
                self._joined_at = time.monotonic()
                self.join_seconds = self._joined_at - self.begun
                self._poll = asyncio.create_task(self._keep_polling())
                return
            await asyncio.sleep(0.05)
        raise MediaFailed(f"chromium: connection {self.state} after {CONNECT_TIMEOUT:g} s")

    async def poll(self) -> None:
        """Ask now."""
        self.state = await self.page.evaluate("load.state()")
        self.entries = await self.page.evaluate("load.stats()")
        self.note()

    def note(self) -> None:
        """New statistics are there."""

    async def leave(self) -> None:
        """Close the connection and the page. Idempotent."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
            with contextlib.suppress(Exception):  # whatever a page that died says
                await self.poll()
            self._left_at = time.monotonic()
        self._target.forget(self)
        with contextlib.suppress(Exception):
            await self.page.evaluate("load.close()")
            await self.page.context.close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Entries of one type."""
        return [entry for entry in self.entries if entry["type"] == kind]

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            await self.poll()


class ChromiumPublication(_Page):
    """A page that publishes."""

    def __init__(self, page: Any, target: ChromiumTarget) -> None:
        super().__init__(page, target)
        self.ref = PublicationRef("", ())
        self._round_trip = {"audio": Histogram(), "video": Histogram()}

    def note(self) -> None:
        """Round trips are samples; everything else counts by itself."""
        for entry in self.of("remote-inbound-rtp"):
            if "roundTripTime" in entry:
                self._round_trip[entry["kind"]].record(entry["roundTripTime"])

    def figures(self) -> PublicationFigures:
        """Counters as of the last second."""
        by_kind = {"audio": SendFigures(), "video": SendFigures()}
        for entry in self.of("outbound-rtp"):
            remote = [r for r in self.of("remote-inbound-rtp") if r["ssrc"] == entry["ssrc"]]
            figures = SendFigures(
                packets=entry.get("packetsSent", 0) - entry.get("retransmittedPacketsSent", 0),
                bytes=entry.get("bytesSent", 0),
                frames=entry.get("framesSent", 0),
                keyframes=entry.get("keyFramesEncoded", 0),
                nacks_received=entry.get("nackCount", 0),
                resent=entry.get("retransmittedPacketsSent", 0),
                plis_received=entry.get("pliCount", 0) + entry.get("firCount", 0),
                reports_received=sum(r.get("roundTripTimeMeasurements", 0) for r in remote),
                reported_lost=sum(r.get("packetsLost", 0) for r in remote),
            )
            by_kind[entry["kind"]] = by_kind[entry["kind"]].merge(figures)
        for kind, histogram in self._round_trip.items():
            by_kind[kind] = by_kind[kind].merge(SendFigures(round_trip=histogram))
        return PublicationFigures(1, self.seconds, _one(self.join_seconds), by_kind["audio"], by_kind["video"])


class ChromiumSubscription(_Page):
    """A page that plays."""

    def __init__(self, page: Any, target: ChromiumTarget) -> None:
        super().__init__(page, target)
        self.tracks = 0
        self._jitter = {"audio": Histogram(), "video": Histogram()}
        self._first_frame: dict[str, float] = {}

    def note(self) -> None:
        """Samples, and who has begun."""
        for entry in self.of("inbound-rtp"):
            self._jitter[entry["kind"]].record(entry.get("jitter", 0.0))
            if _frames(entry):
                self._first_frame.setdefault(entry["id"], time.monotonic() - self.begun)

    async def wait_for_media(self, within: float = 10.0) -> float:
        """Wait until each track has brought a frame; seconds from the call to `subscribe`, or `MediaFailed`."""
        deadline = time.monotonic() + within
        while len(self._first_frame) < self.tracks:
            if self.failure or time.monotonic() > deadline:
                silent = self.tracks - len(self._first_frame)
                raise MediaFailed(f"{silent} of {self.tracks} tracks silent: {self.failure or f'after {within:g} s'}")
            await self.poll()
            await asyncio.sleep(0.05)
        return max(self._first_frame.values(), default=0.0)

    def figures(self) -> SubscriptionFigures:
        """Counters as of the last second."""
        by_kind = {kind: ReceiveFigures(jitter=histogram) for kind, histogram in self._jitter.items()}
        for entry in self.of("inbound-rtp"):
            lost, recovered = max(0, entry.get("packetsLost", 0)), entry.get("retransmittedPacketsReceived", 0)
            packets = entry.get("packetsReceived", 0)
            first = _one(self._first_frame[entry["id"]]) if entry["id"] in self._first_frame else Histogram()
            figures = ReceiveFigures(
                packets=packets,
                bytes=entry.get("bytesReceived", 0),
                expected=packets + lost,
                lost_before_repair=lost + recovered,
                lost_after_repair=lost,
                recovered=recovered,
                nacks_sent=entry.get("nackCount", 0),
                plis_sent=entry.get("pliCount", 0) + entry.get("firCount", 0),
                frames=_frames(entry),
                keyframes=entry.get("keyFramesDecoded", 0),
                broken=entry.get("framesDropped", 0),
                freezes=entry.get("freezeCount", 0),
                freeze_seconds=entry.get("totalFreezesDuration", 0.0),
                first_frame=first,
            )
            by_kind[entry["kind"]] = by_kind[entry["kind"]].merge(figures)
        return SubscriptionFigures(
            subscriptions=1,
            tracks=self.tracks,
            silent_tracks=self.tracks - len(self._first_frame),
            seconds=self.seconds,
            join_seconds=_one(self.join_seconds),
            audio=by_kind["audio"],
            video=by_kind["video"],
        )


class ChromiumTarget(MediaTarget):
    """An app of the sessions API, and browsers. Use it beside a `TorporTarget`: refs fit both.

    Args:
        url, app_id, app_secret: as for `torpor.SessionsApi`.
    """

    name = "chromium"

    def __init__(self, url: str, app_id: str, app_secret: str) -> None:
        self._api = SessionsApi(url, app_id, app_secret)
        self._starting = asyncio.Lock()
        self._playwright: Any = None
        self._browser: Any = None
        self._joined: set[_Page] = set()

    async def publish(self, source: MediaSource) -> Publication:
        """A page that publishes a canvas and a tone of the source's kind. Raises `MediaFailed`."""
        made = ChromiumPublication(await self._open_page(), self)
        self._joined.add(made)
        try:
            wanted: Mapping[str, Any] = {
                "audio": source.audio,
                "video": source.video is not None,
                "codec": source.video,
                "height": source.height,
                "rids": list(source.rids),
            }
            offered = await made.page.evaluate("load.publish", wanted)
            answer, made.ref = await self._api.publish(offered["sdp"], [tuple(s) for s in offered["sections"]])
            await made.page.evaluate("load.answer", answer)
            await made.connect()
        except BaseException:
            await made.leave()
            raise
        return made

    async def subscribe(self, refs: Sequence[PublicationRef], *, rid: str = "", verify: bool = False) -> Subscription:
        """A page that plays all tracks of `refs`. It decodes them in any case; `verify` adds nothing."""
        made = ChromiumSubscription(await self._open_page(), self)
        self._joined.add(made)
        try:
            session, offer = await self._api.pull(refs, rid)
            await self._api.answer(session, await made.page.evaluate("load.subscribe", offer))
            made.tracks = sum(len(ref.tracks) for ref in refs)
            await made.connect()
        except BaseException:
            await made.leave()
            raise
        return made

    async def close(self) -> None:
        """Leave everything, and end the browser."""
        for page in list(self._joined):
            await page.leave()
        if self._browser is not None:
            await self._browser.close()
            await self._playwright.stop()
            self._browser = None
        await self._api.close()

    def forget(self, page: _Page) -> None:
        """It has left."""
        self._joined.discard(page)

    async def _open_page(self) -> Any:
        async with self._starting:
            if self._browser is None:
                try:
                    from playwright.async_api import async_playwright
                except ImportError:
                    raise MediaFailed("chromium needs playwright: pip install playwright") from None
                await asyncio.to_thread(ensure_installed, "chromium")
                self._playwright = await async_playwright().start()
                self._browser = await self._playwright.chromium.launch(
                    executable_path=EXECUTABLE, args=list(_FLAGS), handle_sigint=False
                )
        context = await self._browser.new_context()
        page = await context.new_page()
        await page.evaluate(_SCRIPT)
        return page


def _frames(entry: Mapping[str, Any]) -> int:
    """Pictures decoded, or packets of sound."""
    return int(entry.get("framesDecoded", 0) if entry["kind"] == "video" else entry.get("packetsReceived", 0))


def _one(seconds: float) -> Histogram:
    histogram = Histogram()
    histogram.record(seconds)
    return histogram
