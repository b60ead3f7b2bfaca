"""Our offers and answers, as a browser would write them for the codecs we have, and what we read of a server's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadtest.media.dtls import fingerprint
from wire import sdp
from wire.sdp import Codec, Description, Direction, Fingerprint, MediaSection, Rid, Setup, SsrcGroup

MID: Final = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID: Final = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
REPAIRED_RID: Final = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
TRANSPORT_CC: Final = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"

_EXTENSIONS: Final = ((1, MID), (2, TRANSPORT_CC), (3, RID), (4, REPAIRED_RID))
_VIDEO_FEEDBACK: Final = ("nack", "nack pli", "ccm fir", "transport-cc")

CODECS: Final = {
    "opus": Codec(111, "opus", 48_000, 2, "minptime=10;useinbandfec=1", ("transport-cc",)),
    "VP8": Codec(96, "VP8", 90_000, feedback=_VIDEO_FEEDBACK),
    "H264": Codec(
        102,
        "H264",
        90_000,
        parameters="level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        feedback=_VIDEO_FEEDBACK,
    ),
}
_RTX_STEP: Final = 1  # from a codec's payload type to its RTX's


@dataclass(frozen=True, slots=True)
class Sending:
    """One m-section that we send. With `rids` the server learns SSRCs from packets, and `ssrc` is not in the SDP."""

    mid: str
    codec: str
    """A key of `CODECS`."""
    ssrc: int
    rtx_ssrc: int = 0
    rids: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`audio` or `video`."""
        return "audio" if self.codec == "opus" else "video"


@dataclass(frozen=True, slots=True)
class RemoteDescription:
    """What we need of the server's description."""

    ufrag: str
    password: str
    fingerprint: str
    candidates: tuple[tuple[str, int], ...]
    """Address and port of those for UDP."""
    sections: tuple[MediaSection, ...]


def parse(text: str) -> RemoteDescription:
    """Read a server's offer or answer.

    Raises:
        ValueError: unreadable (`wire.errors.SdpError`), or without ICE credentials or a SHA-256 fingerprint.
    """
    sections = sdp.parse(text).sections
    for section in sections:
        prints = [f.value for f in section.fingerprints if f.algorithm == "sha-256"]
        if section.ice_ufrag and section.ice_pwd and prints:
            candidates = tuple(_udp_candidates(sections))
            return RemoteDescription(section.ice_ufrag, section.ice_pwd, prints[0], candidates, sections)
    raise ValueError("the server's description has no ICE credentials, or no SHA-256 fingerprint")


def offer(
    sendings: Sequence[Sending], ufrag: str, password: str, *, plain: bool = False, setup: str = "actpass"
) -> str:
    """Our offer; `plain` without RTX and transport-wide feedback, for loads that must not depend on either."""
    sections = []
    for sending in sendings:
        codec = CODECS[sending.codec]
        codecs, extensions = [codec], [e for e in _EXTENSIONS if sending.rids or e[1] in (MID, TRANSPORT_CC)]
        if sending.rtx_ssrc:
            rtx = codec.payload_type + _RTX_STEP
            codecs.append(Codec(rtx, "rtx", codec.clock_rate, parameters=f"apt={codec.payload_type}"))
        ssrcs = tuple(ssrc for ssrc in (sending.ssrc, sending.rtx_ssrc) if ssrc and not sending.rids)
        section = MediaSection(
            sending.kind,
            9,
            "UDP/TLS/RTP/SAVPF",
            (),
            mid=sending.mid,
            direction=Direction.SENDONLY,
            codecs=tuple(codecs),
            extensions=tuple(extensions),
            rids=tuple(Rid(rid, "send") for rid in sending.rids),
            simulcast_send=tuple((rid,) for rid in sending.rids),
            msid=f"load load-{sending.mid}",
            ssrcs=tuple((ssrc, "load") for ssrc in ssrcs),
            ssrc_groups=(SsrcGroup("FID", ssrcs),) if len(ssrcs) == 2 else (),
        )
        sections.append(_ours(section, ufrag, password, setup, plain=plain))
    return _serialize(sections)


def answer(remote: RemoteDescription, ufrag: str, password: str, *, plain: bool = False, setup: str = "active") -> str:
    """Our answer to a server that offers to send: of its codecs and extensions we take those we know."""
    sections = []
    for offered in remote.sections:
        section = replace(
            offered,
            direction=Direction.RECVONLY if offered.direction.sends else Direction.INACTIVE,
            codecs=tuple(_known(offered.codecs)),
            extensions=tuple(e for e in offered.extensions if e[1] in (MID, TRANSPORT_CC)),
            rids=(),
            simulcast_send=(),
            simulcast_recv=(),
            msid=None,
            ssrcs=(),
            ssrc_groups=(),
            candidates=(),
            end_of_candidates=False,
        )
        sections.append(_ours(section, ufrag, password, setup, plain=plain))
    return _serialize(sections)


def extension_id(section: MediaSection, uri: str) -> int:
    """Of a negotiated header extension, or 0."""
    return next((number for number, name in section.extensions if name == uri), 0)


def codec_of(section: MediaSection) -> Codec:
    """The first codec that is no RTX. Raises `ValueError`: none of ours."""
    for codec in _known(section.codecs):
        if codec.apt is None:
            return codec
    raise ValueError(f"m-section {section.mid} has no codec of ours")


def rtx_of(section: MediaSection, codec: Codec) -> int:
    """Payload type of the codec's RTX, or 0."""
    return next((c.payload_type for c in section.codecs if c.apt == codec.payload_type), 0)


def ssrcs_of(section: MediaSection) -> tuple[int, int]:
    """SSRC of the media and of its RTX (0 for none) that the server announces. Raises `ValueError`: it does not."""
    for group in section.ssrc_groups:
        if group.semantics == "FID" and len(group.ssrcs) == 2:
            return group.ssrcs[0], group.ssrcs[1]
    if not section.ssrcs:
        raise ValueError(f"m-section {section.mid} announces no SSRC")
    return section.ssrcs[0][0], 0


def _known(codecs: Iterable[Codec]) -> list[Codec]:
    names = {name.lower() for name in CODECS}
    ours = [codec for codec in codecs if codec.name.lower() in names]
    types = {codec.payload_type for codec in ours}
    return ours + [codec for codec in codecs if codec.apt in types]


def _ours(section: MediaSection, ufrag: str, password: str, setup: str, *, plain: bool) -> MediaSection:
    """With our transport; `plain` takes out what answers to losses and bandwidth beyond NACK and PLI."""
    codecs, extensions = section.codecs, section.extensions
    if plain:
        extensions = tuple(e for e in extensions if e[1] != TRANSPORT_CC)
        kept = [codec for codec in codecs if codec.apt is None]
        codecs = tuple(replace(c, feedback=tuple(f for f in c.feedback if f in ("nack", "nack pli"))) for c in kept)
    return replace(
        section,
        formats=tuple(str(codec.payload_type) for codec in codecs),
        codecs=codecs,
        extensions=extensions,
        ice_ufrag=ufrag,
        ice_pwd=password,
        fingerprints=(Fingerprint("sha-256", fingerprint()),),
        setup=Setup(setup),
        rtcp_mux=True,
        rtcp_rsize=True,
    )


def _serialize(sections: Sequence[MediaSection]) -> str:
    mids = tuple(section.mid for section in sections if section.mid is not None)
    return sdp.serialize(Description(tuple(sections), bundle=mids, session_id=1, version=1))


def _udp_candidates(sections: Iterable[MediaSection]) -> Iterable[tuple[str, int]]:
    for section in sections:
        for candidate in section.candidates:
            words = candidate.split()
            if len(words) >= 6 and words[1] == "1" and words[2].lower() == "udp" and words[5].isdigit():
                yield words[4], int(words[5])
