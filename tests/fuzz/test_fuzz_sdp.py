"""Mutated offers through the parser and through a whole session: a value or a documented error, and bounded work."""

from __future__ import annotations

import contextlib
import random
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfu.dtls import DtlsContext
from sfu.errors import RemoteProtocolError
from sfu.messages import Location, SessionDescription, SessionId, TrackRequest
from sfu.router import Router
from sfu.session import Session
from sfu.settings import SfuSettings
from sfu.transport import Transport
from tests.support.fake_plane import FakePlane
from tests.support.sdp_offers import NAMES, load
from wire import sdp
from wire.errors import SdpError

SEEDS = [load(name) for name in NAMES]
CONTEXT = DtlsContext()

# What mutations splice in: the corners that a grammar-blind mutation rarely finds.
TOKENS = [
    "a=mid:0", "a=mid:" + "m" * 60, "a=group:BUNDLE 0 1", "a=group:BUNDLE", "m=video 0 UDP/TLS/RTP/SAVPF 96",
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "a=rtpmap:96 VP8/90000",
    "a=rtpmap:96 VP8/0", "a=rtpmap:97 rtx/0", "a=fmtp:97 apt=96", "a=fmtp:97 apt=999", "a=rtcp-fb:* nack pli",
    "a=extmap:0 urn:ietf:params:rtp-hdrext:sdes:mid", "a=extmap:255 urn:ietf:params:rtp-hdrext:sdes:mid",
    "a=simulcast:send a;b,c;~d recv e", "a=rid:a send pt=96", "a=rid:" + "r" * 200 + " send", "a=ssrc:0 cname:x",
    "a=ssrc:4294967295 cname:x", "a=ssrc-group:FID 1 1", "a=ssrc-group:SIM 1 2 3", "a=ssrc-group:SIM 0 0",
    "a=ssrc-group", "a=simulcast:send a;a",
    "a=setup:passive", "a=setup:active", "a=bundle-only", "a=inactive", "a=sendrecv", "a=recvonly", "a=ice-ufrag:x",
    "a=ice-pwd:", "a=fingerprint:sha-256 00", "a=fingerprint:SHA-1 zz", "a=sctp-port:5000", "\x00", "é" * 50, "a=", "=",
    "v=0", "o=- 18446744073709551615 0 IN IP4 0", "a=rtpmap:96 \u0661/90000", "a=extmap:\u0663 urn:x",
]  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    """A few edits of lines and characters."""
    lines = text.split("\r\n")
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                del lines[at : at + rng.randrange(1, 4)]
                lines = lines or [""]
            case 1:
                lines.insert(at, rng.choice(TOKENS))
            case 2:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 3:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 4:
                lines += rng.choice(SEEDS).split("\r\n")[: rng.randrange(80)]
            case 5:
                line = lines[at]
                cut = rng.randrange(len(line) + 1)
                lines[at] = line[:cut] + rng.choice(["", " ", "-1", "9" * 30, ";", ":", "\t", "0"]) + line[cut + 1 :]
            case 6:
                lines[at] = rng.choice(TOKENS)
    return rng.choice(["\r\n", "\n"]).join(lines)


def session() -> tuple[Session, FakePlane]:
    plane: Any = FakePlane()
    router = Router(plane)
    made = Session(
        "app",
        SessionId("fuzz"),
        plane=plane,
        router=router,
        transport=Transport(plane, CONTEXT, now=0.0),
        candidates=("1 1 udp 2130706431 127.0.0.1 40000 typ host",),
        settings=SfuSettings(),
        now=0.0,
    )
    return made, plane


def test_ten_thousand_mutations_end_in_a_value_or_an_error() -> None:
    """SDP-10. What parses can be written, and reads the same again."""
    rng = random.Random(2026)
    parsed = 0
    for _ in range(10_000):
        try:
            description = sdp.parse(mutate(rng.choice(SEEDS), rng))
        except SdpError:
            continue
        parsed += 1
        assert sdp.parse(sdp.serialize(description)).sections is not None
    assert 1000 < parsed < 9900


@pytest.mark.parametrize("seed", range(8))
def test_sessions_survive_mutated_offers(seed: int) -> None:
    """Table 17 row 14: an error leaves the state as it was; an answer fits its offer; the plane hears no nonsense."""
    rng = random.Random(seed)
    target, plane = session()
    answered = 0
    for step in range(250):
        if rng.random() < 0.2:
            target.close("next", float(step))
            target.transport.release()
            assert not plane.tracks
            target, plane = session()
        text = mutate(rng.choice(SEEDS), rng)
        before = (target.negotiation.sections, target.media.tracks(), dict(plane.tracks))
        mids = [str(rng.randrange(3)) for _ in range(rng.randrange(3))]
        try:
            match rng.randrange(4):
                case 0:
                    requests = [TrackRequest(Location.LOCAL, mid, f"track {mid}") for mid in mids]
                    result = target.publish(SessionDescription("offer", text), requests, now=0.0).session_description
                case 1:
                    result = target.discover(SessionDescription("offer", text), now=0.0).session_description
                case 2:
                    closing = target.close_tracks_with_offer(SessionDescription("offer", text), mids, now=0.0)
                    result = closing.session_description
                case _:
                    result = target.receive_offer(SessionDescription("offer", text), now=0.0)
        except RemoteProtocolError:
            assert (target.negotiation.sections, target.media.tracks(), plane.tracks) == before
            continue
        assert result is not None
        offer, answer = sdp.parse(text), sdp.parse(result.sdp)
        assert len(answer.sections) == len(offer.sections)
        for offered, ours in zip(offer.sections, answer.sections, strict=True):
            assert ours.kind == offered.kind
            assert ours.rejected or not offered.rejected
            if offered.is_data:
                continue
            assert {c.payload_type for c in ours.codecs} <= {c.payload_type for c in offered.codecs}
            assert set(ours.extensions) <= set(offered.extensions)
            assert not ours.direction.sends or offered.direction.receives
            assert not ours.direction.receives or offered.direction.sends
        answered += 1
    assert answered > 20


@given(st.text(max_size=2000))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_ends_in_a_value_or_an_error(text: str) -> None:
    with contextlib.suppress(SdpError):
        sdp.parse("v=0\no=- 1 1 IN IP4 0\n" + text)


def events_while(text: str) -> int:
    """Lines of Python executed by the parser: work that no load of the machine can change."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        sdp.parse(text)
    except SdpError:
        pass
    finally:
        sys.settrace(old)
    return count


@pytest.mark.parametrize(
    "line",
    [
        "a=x",
        "a=ssrc:1 cname:x",
        "a=rtcp-fb:* nack",
        "a=rtcp-fb:* {n}",
        "a=fmtp:96 a=b",
        "a=rtpmap:96 VP8/90000",
        "a=candidate:{n}",
        "a=group:BUNDLE 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 0",
        "m=video 9 UDP/TLS/RTP/SAVPF " + " ".join(map(str, range(64))),
    ],
)
def test_work_is_linear_in_size(line: str) -> None:
    """SDP-10: at most a few steps per byte, whatever the bytes say."""
    head = "v=0\r\no=- 1 1 IN IP4 0\r\nm=video 9 UDP/TLS/RTP/SAVPF " + " ".join(map(str, range(64))) + "\r\n"
    for lines in (10, 250, 4000):
        text = head + "".join(line.replace("{n}", str(n)) + "\r\n" for n in range(lines))
        assert events_while(text) < 60_000 + 12 * len(text)
