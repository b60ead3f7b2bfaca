"""Offers of browsers kept in tests/data/sdp, and small ones built by hand.

`chrome-<version>-*` were recorded from that browser; `*-shape-*` were written after the way that browser writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wire import sdp
from wire.sdp import Codec, Description, Direction, Fingerprint, MediaSection, Setup

DATA = Path(__file__).parent.parent / "data" / "sdp"
NAMES = sorted(path.stem for path in DATA.glob("*.sdp"))

FINGERPRINT = Fingerprint("sha-256", ":".join(["AB"] * 32))

OPUS = Codec(111, "opus", 48000, 2, "minptime=10;useinbandfec=1", ("transport-cc",))
VP8 = Codec(96, "VP8", 90000, feedback=("nack", "nack pli", "ccm fir", "transport-cc", "goog-remb"))
VP8_RTX = Codec(97, "rtx", 90000, parameters="apt=96")
H264 = Codec(102, "H264", 90000, parameters="packetization-mode=1;profile-level-id=42e01f", feedback=("nack pli",))

EXTENSIONS = (
    (1, "urn:ietf:params:rtp-hdrext:sdes:mid"),
    (2, "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"),
    (3, "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"),
    (5, "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"),
)


def load(name: str) -> str:
    """A kept offer, with its line endings."""
    return (DATA / f"{name}.sdp").read_bytes().decode()


def section(
    mid: str,
    kind: str = "video",
    direction: Direction = Direction.SENDONLY,
    *,
    codecs: Sequence[Codec] | None = None,
    port: int = 9,
    rids: Sequence[str] = (),
    ufrag: str = "peer",
    fingerprint: Fingerprint = FINGERPRINT,
    setup: Setup = Setup.ACTPASS,
) -> MediaSection:
    """One m-section as a browser would write it."""
    if codecs is None:
        codecs = (OPUS,) if kind == "audio" else (VP8, VP8_RTX)
    is_data = kind == "application"
    return MediaSection(
        kind=kind,
        port=port,
        protocol="UDP/DTLS/SCTP" if is_data else "UDP/TLS/RTP/SAVPF",
        formats=("webrtc-datachannel",) if is_data else tuple(str(codec.payload_type) for codec in codecs),
        mid=mid,
        direction=direction,
        ice_ufrag=ufrag,
        ice_pwd="p" * 24,
        setup=setup,
        fingerprints=(fingerprint,),
        rtcp_mux=not is_data,
        codecs=() if is_data else tuple(codecs),
        extensions=() if is_data else EXTENSIONS,
        rids=tuple(sdp.Rid(rid, "send") for rid in rids),
        simulcast_send=tuple((rid,) for rid in rids),
        sctp_port=5000 if is_data else None,
    )


def offer(*sections: MediaSection) -> str:
    """A whole description: sections with a port are bundled."""
    bundle = tuple(s.mid for s in sections if s.port and s.mid is not None)
    return sdp.serialize(Description(sections=sections, bundle=bundle, session_id=1, version=1))


class Peer:
    """A client that answers and offers by the rules, without media: what a browser's signalling would do."""

    def __init__(self, ufrag: str = "peer") -> None:
        self.ufrag = ufrag
        self.sections: list[MediaSection] = []

    def offer(self, *new: MediaSection) -> str:
        """Everything agreed so far, plus `new`."""
        self.sections += new
        return offer(*self.sections)

    def take_answer(self, text: str) -> Description:
        """Check an answer the way a browser does, and return it."""
        answer = sdp.parse(text)
        assert [s.kind for s in answer.sections] == [s.kind for s in self.sections]
        for ours, theirs in zip(self.sections, answer.sections, strict=True):
            if theirs.rejected:
                continue
            assert theirs.mid == ours.mid
            assert {c.payload_type for c in theirs.codecs} <= {c.payload_type for c in ours.codecs}
            assert set(theirs.extensions) <= set(ours.extensions)
            assert not theirs.direction.sends or ours.direction.receives
            assert not theirs.direction.receives or ours.direction.sends
        return answer

    def answer(self, text: str, *, reject: Sequence[str] = ()) -> str:
        """The answer to an offer of the server's: receives what is sent, sends what is wanted."""
        offered = sdp.parse(text)
        assert len(offered.sections) >= len(self.sections), "m-sections never disappear"
        answered = []
        for theirs in offered.sections:
            if theirs.rejected or theirs.mid in reject:
                answered.append(replace(theirs, port=0, codecs=theirs.codecs, direction=Direction.INACTIVE))
                continue
            mirrored = Direction.of(sends=theirs.direction.receives, receives=theirs.direction.sends)
            answered.append(
                replace(
                    section(theirs.mid or "", theirs.kind, mirrored, codecs=theirs.codecs, ufrag=self.ufrag),
                    setup=Setup.ACTIVE,
                    extensions=theirs.extensions,
                )
            )
        self.sections = [replace(s, setup=Setup.ACTPASS) for s in answered]
        return offer(*answered)

    def set_direction(self, mid: str, direction: Direction) -> None:
        """What the page may do to a transceiver."""
        self.sections = [replace(s, direction=direction) if s.mid == mid else s for s in self.sections]

    def stop(self, mid: str) -> None:
        """`transceiver.stop()`: port 0 in the next offer."""
        self.sections = [replace(s, port=0, direction=Direction.INACTIVE) if s.mid == mid else s for s in self.sections]
